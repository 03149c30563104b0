//! The files that a directory had in cgroup v1's memory hierarchy.

use monitor_common::grammar::control_file::ControlFile;

/// A file of v1. Its number is a part of the inode's number, so it never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum V1File {
    /// `cgroup.event_control`: registrations are written to it.
    EventControl = 1,
    /// Bytes charged now; notifies on thresholds.
    Usage = 2,
    /// Bytes charged now, with swap; notifies on thresholds.
    MemswUsage = 3,
    /// Whether the group is out of memory, and how often that killed; notifies on OOM.
    OomControl = 4,
    /// Notifies on reclaim pressure; has nothing to read.
    PressureLevel = 5,
    /// Bytes that reclaim could not free easily: usage less `inactive_file`.
    /// cgroup v1 had no such file.
    WorkingSet = 6,
    /// Most bytes charged at once.
    MaxUsage = 7,
    /// Most bytes that may be charged.
    Limit = 8,
    /// Most bytes that may be charged, with swap.
    MemswLimit = 9,
    /// Number of times that the limit was hit.
    FailCount = 10,
    /// Statistics of the memory's use.
    Stat = 11,
    /// Ids of the group's processes.
    Procs = 12,
    /// Ids of the group's threads.
    Tasks = 13,
    /// `notify_on_release`, always 0 on v2.
    NotifyOnRelease = 14,
}

impl V1File {
    /// All files, in the order in which a directory lists them.
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

    /// Name of the file.
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

    /// The file with this name.
    #[must_use]
    pub fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|file| file.name().as_bytes() == name)
    }

    /// The file with this number.
    #[must_use]
    pub fn numbered(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|file| file.number() == number)
    }

    /// Number of the file, from 1 on.
    #[must_use]
    pub const fn number(self) -> u64 {
        self as u64
    }

    /// Permission bits as on the newest kernels with cgroup v1. Other files that v1 let be
    /// written, beside `memory.oom_control`, are read-only here.
    #[must_use]
    pub const fn mode(self) -> u32 {
        match self {
            Self::EventControl => 0o200,
            Self::OomControl => 0o644,
            _ => 0o444,
        }
    }

    /// The control file that it is for registrations, if any.
    #[must_use]
    pub const fn control(self) -> Option<ControlFile> {
        match self {
            Self::Usage => Some(ControlFile::Usage),
            Self::MemswUsage => Some(ControlFile::Memsw),
            Self::WorkingSet => Some(ControlFile::WorkingSet),
            Self::OomControl => Some(ControlFile::Oom),
            Self::PressureLevel => Some(ControlFile::Pressure),
            Self::Procs => Some(ControlFile::Procs),
            _ => None,
        }
    }

    /// Whether it can be read. The others answer `EINVAL`, like the kernel's
    /// `cgroup_seqfile_show`.
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
    use super::{ControlFile, V1File};

    #[test]
    fn names_and_numbers_are_one_to_one() {
        for file in V1File::ALL {
            assert_eq!(V1File::named(file.name().as_bytes()), Some(file));
            assert_eq!(V1File::numbered(file.number()), Some(file));
        }
        for control in ControlFile::ALL {
            assert_eq!(V1File::named(control.name().as_bytes()).and_then(V1File::control), Some(control));
        }
        assert_eq!(V1File::named(b"memory.current"), None);
        assert_eq!(V1File::numbered(0), None);
    }
}
