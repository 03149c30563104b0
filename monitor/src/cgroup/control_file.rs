//! The files of a directory as cgroup v1's memory hierarchy had them.

/// One of them. The number is its place in an inode's number, so it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ControlFile {
    /// Where a registration is written to.
    EventControl = 1,
    /// Bytes charged. Notifies.
    Usage = 2,
    /// Bytes charged, with swap. Notifies.
    MemswUsage = 3,
    /// Whether the group is out of memory, and how often that killed. Notifies.
    OomControl = 4,
    /// Nothing to read. Notifies.
    PressureLevel = 5,
    /// Bytes that reclaim could not free easily: usage less `inactive_file`.
    /// cgroup v1 had no such file.
    WorkingSet = 6,
    /// Most bytes charged at once.
    MaxUsage = 7,
    /// Most bytes that may be charged.
    Limit = 8,
    /// The same, with swap.
    MemswLimit = 9,
    /// How often the limit was hit.
    FailCount = 10,
    /// What the memory is used for.
    Stat = 11,
    /// Processes.
    Procs = 12,
    /// Threads.
    Tasks = 13,
    /// Always 0 on v2.
    NotifyOnRelease = 14,
}

impl ControlFile {
    /// All, in the order in which a directory shows them.
    pub const ALL: [Self; 14] = [
        Self::EventControl,
        Self::Usage,
        Self::MemswUsage,
        Self::OomControl,
        Self::PressureLevel,
        Self::WorkingSet,
        Self::MaxUsage,
        Self::Limit,
        Self::MemswLimit,
        Self::FailCount,
        Self::Stat,
        Self::Procs,
        Self::Tasks,
        Self::NotifyOnRelease,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EventControl => "cgroup.event_control",
            Self::Usage => "memory.usage_in_bytes",
            Self::MemswUsage => "memory.memsw.usage_in_bytes",
            Self::OomControl => "memory.oom_control",
            Self::PressureLevel => "memory.pressure_level",
            Self::WorkingSet => "memory.working_set_bytes",
            Self::MaxUsage => "memory.max_usage_in_bytes",
            Self::Limit => "memory.limit_in_bytes",
            Self::MemswLimit => "memory.memsw.limit_in_bytes",
            Self::FailCount => "memory.failcnt",
            Self::Stat => "memory.stat",
            Self::Procs => "cgroup.procs",
            Self::Tasks => "tasks",
            Self::NotifyOnRelease => "notify_on_release",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|file| file.name().as_bytes() == name)
    }

    /// The one of this number.
    #[must_use]
    pub fn numbered(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|file| file.number() == number)
    }

    /// Its number, from 1 on.
    #[must_use]
    pub const fn number(self) -> u64 {
        self as u64
    }

    /// Permission bits as on the newest kernels with cgroup v1. What v1 let be
    /// written beside `memory.oom_control` is read-only here.
    #[must_use]
    pub const fn mode(self) -> u32 {
        match self {
            Self::EventControl => 0o200,
            Self::OomControl => 0o644,
            _ => 0o444,
        }
    }

    /// Whether the kernel lets one register on it (`memcg_write_event_control`).
    #[must_use]
    pub const fn notifies(self) -> bool {
        matches!(self, Self::Usage | Self::MemswUsage | Self::OomControl | Self::PressureLevel)
    }

    /// Whether it has something to read. The others answer `EINVAL`, as the
    /// kernel's `cgroup_seqfile_show`.
    #[must_use]
    pub const fn readable(self) -> bool {
        !matches!(self, Self::EventControl | Self::PressureLevel)
    }

    /// The v2 file whose reader may read this one, too.
    #[must_use]
    pub const fn v2_source(self) -> Option<&'static str> {
        match self {
            Self::Usage | Self::MemswUsage => Some("memory.current"),
            Self::OomControl | Self::FailCount => Some("memory.events.local"),
            Self::WorkingSet | Self::Stat => Some("memory.stat"),
            Self::MaxUsage => Some("memory.peak"),
            Self::Limit | Self::MemswLimit => Some("memory.max"),
            Self::Procs => Some("cgroup.procs"),
            Self::Tasks => Some("cgroup.threads"),
            Self::EventControl | Self::PressureLevel | Self::NotifyOnRelease => None,
        }
    }

    /// The v1 file whose text this one copies.
    #[must_use]
    pub const fn v1_source(self) -> Option<&'static str> {
        match self {
            Self::EventControl | Self::PressureLevel => None,
            Self::WorkingSet => Some(Self::Usage.name()),
            _ => Some(self.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ControlFile;

    #[test]
    fn names_and_numbers_are_one_to_one() {
        for file in ControlFile::ALL {
            assert_eq!(ControlFile::named(file.name().as_bytes()), Some(file));
            assert_eq!(ControlFile::numbered(file.number()), Some(file));
        }
        assert_eq!(ControlFile::named(b"memory.current"), None);
        assert_eq!(ControlFile::numbered(0), None);
    }
}
