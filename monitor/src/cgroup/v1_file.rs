//! The files that a directory had in cgroup v1's memory hierarchy.

use monitor_common::grammar::control_file::ControlFile;

/// A file of v1. The variants are in the order in which a v1 kernel lists the files, by a hash
/// of the name (`kernfs_name_hash`): libcgroup's `cgget` fails unless the last one's name has a
/// dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum V1File {
    /// Ids of the group's processes; notifies when the last one has left.
    Procs = 1,
    /// Whether groups below count here, too: always 1.
    UseHierarchy,
    /// Bytes that reclaim could not free easily: usage less `inactive_file`.
    /// cgroup v1 had no such file.
    WorkingSet,
    /// Bytes of TCP buffers.
    TcpUsage,
    /// Most bytes that are left when the host runs short: none.
    SoftLimit,
    /// Whether the hierarchy is v2's: 0. Only the root has it.
    SaneBehavior,
    /// Made the kernel reclaim all that it could; has nothing to read.
    ForceEmpty,
    /// Notifies on reclaim pressure; has nothing to read.
    PressureLevel,
    /// Whether charges followed a task to its new group: 0.
    MoveCharge,
    /// Number of times that the limit with swap was hit.
    MemswFailCount,
    /// Most bytes of TCP buffers at once.
    TcpMaxUsage,
    /// Most bytes charged at once.
    MaxUsage,
    /// Whether the group is out of memory, and how often that killed; notifies on OOM.
    OomControl,
    /// Statistics of the memory's use.
    Stat,
    /// Most bytes that may be charged.
    Limit,
    /// How much reclaim prefers anonymous pages.
    Swappiness,
    /// Most bytes charged at once, with swap.
    MemswMaxUsage,
    /// Pages on each NUMA node.
    NumaStat,
    /// Number of times that the limit of kernel memory was hit: 0.
    KmemFailCount,
    /// Most bytes of kernel memory at once.
    KmemMaxUsage,
    /// Bytes charged now; notifies on thresholds.
    Usage,
    /// Ids of the group's threads.
    Tasks,
    /// Most bytes that may be charged, with swap.
    MemswLimit,
    /// Number of times that the limit was hit.
    FailCount,
    /// Registrations are written to it.
    EventControl,
    /// Number of times that the limit of TCP buffers was hit: 0.
    TcpFailCount,
    /// Most bytes of kernel memory that may be charged: no limit.
    KmemLimit,
    /// Bytes charged now, with swap; notifies on thresholds.
    MemswUsage,
    /// Whether `release_agent` is run for an empty group: 0.
    NotifyOnRelease,
    /// Program that is run for an empty group: none. Only the root has it.
    ReleaseAgent,
    /// Bytes of kernel memory.
    KmemUsage,
    /// Bytes that reclaim cannot free where there is no swap: anonymous, shared and kernel memory.
    /// cgroup v1 had no such file.
    Anon,
    /// Most bytes of TCP buffers: no limit.
    TcpLimit,
    /// Whether groups below begin with a copy of cpuset's settings: 0.
    CloneChildren,
}

impl V1File {
    /// All files, in the order in which a directory lists them.
    pub const ALL: [Self; 34] = [
        Self::Procs,
        Self::UseHierarchy,
        Self::WorkingSet,
        Self::TcpUsage,
        Self::SoftLimit,
        Self::SaneBehavior,
        Self::ForceEmpty,
        Self::PressureLevel,
        Self::MoveCharge,
        Self::MemswFailCount,
        Self::TcpMaxUsage,
        Self::MaxUsage,
        Self::OomControl,
        Self::Stat,
        Self::Limit,
        Self::Swappiness,
        Self::MemswMaxUsage,
        Self::NumaStat,
        Self::KmemFailCount,
        Self::KmemMaxUsage,
        Self::Usage,
        Self::Tasks,
        Self::MemswLimit,
        Self::FailCount,
        Self::EventControl,
        Self::TcpFailCount,
        Self::KmemLimit,
        Self::MemswUsage,
        Self::NotifyOnRelease,
        Self::ReleaseAgent,
        Self::KmemUsage,
        Self::Anon,
        Self::TcpLimit,
        Self::CloneChildren,
    ];

    /// Name of the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Procs => "cgroup.procs",
            Self::UseHierarchy => "memory.use_hierarchy",
            Self::WorkingSet => "memory.working_set_bytes",
            Self::TcpUsage => "memory.kmem.tcp.usage_in_bytes",
            Self::SoftLimit => "memory.soft_limit_in_bytes",
            Self::SaneBehavior => "cgroup.sane_behavior",
            Self::ForceEmpty => "memory.force_empty",
            Self::PressureLevel => "memory.pressure_level",
            Self::MoveCharge => "memory.move_charge_at_immigrate",
            Self::MemswFailCount => "memory.memsw.failcnt",
            Self::TcpMaxUsage => "memory.kmem.tcp.max_usage_in_bytes",
            Self::MaxUsage => "memory.max_usage_in_bytes",
            Self::OomControl => "memory.oom_control",
            Self::Stat => "memory.stat",
            Self::Limit => "memory.limit_in_bytes",
            Self::Swappiness => "memory.swappiness",
            Self::MemswMaxUsage => "memory.memsw.max_usage_in_bytes",
            Self::NumaStat => "memory.numa_stat",
            Self::KmemFailCount => "memory.kmem.failcnt",
            Self::KmemMaxUsage => "memory.kmem.max_usage_in_bytes",
            Self::Usage => "memory.usage_in_bytes",
            Self::Tasks => "tasks",
            Self::MemswLimit => "memory.memsw.limit_in_bytes",
            Self::FailCount => "memory.failcnt",
            Self::EventControl => "cgroup.event_control",
            Self::TcpFailCount => "memory.kmem.tcp.failcnt",
            Self::KmemLimit => "memory.kmem.limit_in_bytes",
            Self::MemswUsage => "memory.memsw.usage_in_bytes",
            Self::NotifyOnRelease => "notify_on_release",
            Self::ReleaseAgent => "release_agent",
            Self::KmemUsage => "memory.kmem.usage_in_bytes",
            Self::Anon => "memory.anon_bytes",
            Self::TcpLimit => "memory.kmem.tcp.limit_in_bytes",
            Self::CloneChildren => "cgroup.clone_children",
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
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        Self::ALL.get(index).copied()
    }

    /// Number of the file, from 1 on, in the order of [`Self::ALL`].
    #[must_use]
    pub const fn number(self) -> u64 {
        self as u64
    }

    /// Permission bits as on the newest kernels with cgroup v1.
    #[must_use]
    pub const fn mode(self) -> u32 {
        match self {
            Self::EventControl | Self::ForceEmpty => 0o200,
            Self::WorkingSet
            | Self::Anon
            | Self::TcpUsage
            | Self::SaneBehavior
            | Self::PressureLevel
            | Self::Stat
            | Self::NumaStat
            | Self::Usage
            | Self::MemswUsage
            | Self::KmemUsage => 0o444,
            _ => 0o644,
        }
    }

    /// The control file that it is for registrations, if any.
    #[must_use]
    pub const fn control(self) -> Option<ControlFile> {
        match self {
            Self::Usage => Some(ControlFile::Usage),
            Self::MemswUsage => Some(ControlFile::Memsw),
            Self::WorkingSet => Some(ControlFile::WorkingSet),
            Self::Anon => Some(ControlFile::Anon),
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
        !matches!(self, Self::EventControl | Self::PressureLevel | Self::ForceEmpty)
    }

    /// Whether it lists tasks, by their numbers in the reader's pid namespace.
    #[must_use]
    pub const fn lists_tasks(self) -> bool {
        matches!(self, Self::Procs | Self::Tasks)
    }

    /// Whether the root alone has it.
    #[must_use]
    pub const fn is_of_root(self) -> bool {
        matches!(self, Self::SaneBehavior | Self::ReleaseAgent)
    }

    /// Whether it exists only where the kernel accounts swap.
    #[must_use]
    pub const fn needs_swap(self) -> bool {
        matches!(self, Self::MemswUsage | Self::MemswMaxUsage | Self::MemswLimit | Self::MemswFailCount)
    }

    /// The v2 file whose reader may read this one, too.
    #[must_use]
    pub const fn v2_source(self) -> Option<&'static str> {
        match self {
            Self::Procs => Some("cgroup.procs"),
            Self::WorkingSet
            | Self::Anon
            | Self::TcpUsage
            | Self::TcpMaxUsage
            | Self::Stat
            | Self::KmemMaxUsage
            | Self::KmemUsage => Some("memory.stat"),
            Self::MemswFailCount => Some("memory.swap.events"),
            Self::MaxUsage | Self::MemswMaxUsage => Some("memory.peak"),
            Self::OomControl | Self::FailCount => Some("memory.events.local"),
            Self::Limit => Some("memory.max"),
            Self::NumaStat => Some("memory.numa_stat"),
            Self::Usage | Self::MemswUsage => Some("memory.current"),
            Self::Tasks => Some("cgroup.threads"),
            Self::MemswLimit => Some("memory.swap.max"),
            _ => None,
        }
    }

    /// The v1 file whose text this one copies.
    #[must_use]
    pub const fn v1_source(self) -> Option<&'static str> {
        match self {
            Self::EventControl | Self::PressureLevel => None,
            Self::WorkingSet => Some(Self::Usage.name()),
            Self::Anon => Some(Self::Stat.name()),
            _ => Some(self.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ControlFile, V1File};

    #[test]
    fn names_and_numbers_are_one_to_one() {
        for (index, file) in V1File::ALL.into_iter().enumerate() {
            assert_eq!(file.number(), index as u64 + 1);
            assert_eq!(V1File::named(file.name().as_bytes()), Some(file));
            assert_eq!(V1File::numbered(file.number()), Some(file));
        }
        for control in ControlFile::ALL {
            assert_eq!(V1File::named(control.name().as_bytes()).and_then(V1File::control), Some(control));
        }
        assert_eq!(V1File::named(b"memory.current"), None);
        assert_eq!(V1File::numbered(0), None);
        assert_eq!(V1File::numbered(V1File::ALL.len() as u64 + 1), None);
    }

    #[test]
    fn the_order_is_the_kernels() {
        /// The hash that `kernfs_name_hash` computes.
        fn hash(name: &str) -> u64 {
            let step = |hash: u64, byte: u8| {
                let byte = u64::from(byte);
                hash.wrapping_add(byte << 4).wrapping_add(byte >> 4).wrapping_mul(11)
            };
            (name.bytes().fold(0, step).wrapping_mul(0x61c8_8646_80b5_83eb) >> 32) & 0x7fff_ffff
        }
        assert!(V1File::ALL.is_sorted_by_key(|file| hash(file.name())));
        let last = V1File::ALL.last().map(|file| file.name());
        assert!(last.is_some_and(|name| name.contains('.')), "cgget fails after {last:?}");
    }
}
