//! The file that a client registers on, and the trigger of that registration.
//!
//! The first, second, fourth and fifth file are those of the kernel's
//! `memcg_write_event_control`. The others are ours; v1 refuses them with EINVAL.

use core::{error, fmt};

use crate::grammar::{
    line::until_nul,
    pressure::{self, Pressure, PressureError},
    threshold::{self, Threshold, ThresholdError},
};

/// A control file that a client can register on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ControlFile {
    /// `memory.usage_in_bytes`, v2's `memory.current`: memory.
    Usage,
    /// `memory.memsw.usage_in_bytes`: memory and swap.
    Memsw,
    /// `memory.working_set_bytes`, ours: memory without inactive file pages.
    WorkingSet,
    /// `memory.oom_control`: the group, or one above it, is out of memory.
    Oom,
    /// `memory.pressure_level`: reclaim works hard for what it gets.
    Pressure,
    /// `cgroup.procs`, ours: the last process left the group.
    Procs,
    /// `memory.anon_bytes`, ours: memory that no reclaim frees without swap.
    Anon,
}

impl ControlFile {
    /// All the control files.
    pub const ALL: [Self; 7] =
        [Self::Usage, Self::Memsw, Self::WorkingSet, Self::Oom, Self::Pressure, Self::Procs, Self::Anon];

    /// Control files that have a quantity, which thresholds are on.
    pub const QUANTITIES: [Self; 4] = [Self::Usage, Self::Memsw, Self::WorkingSet, Self::Anon];

    /// Those of them that no counter of the kernel has, for any group: they are read from files.
    pub const SAMPLED: [Self; 2] = [Self::WorkingSet, Self::Anon];

    /// The file's name: v1's, or ours.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Usage => "memory.usage_in_bytes",
            Self::Memsw => "memory.memsw.usage_in_bytes",
            Self::WorkingSet => "memory.working_set_bytes",
            Self::Oom => "memory.oom_control",
            Self::Pressure => "memory.pressure_level",
            Self::Procs => "cgroup.procs",
            Self::Anon => "memory.anon_bytes",
        }
    }

    /// The file of that [`name`](Self::name), exactly; also v2's
    /// `memory.current` for [`Usage`](Self::Usage).
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        if name == b"memory.current" {
            return Some(Self::Usage);
        }
        Self::ALL.into_iter().find(|file| file.name().as_bytes() == name)
    }
}

/// An event for which a registration is signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// A counter crosses a threshold; the control file says which counter.
    Threshold(Threshold),
    /// The group is out of memory.
    Oom,
    /// Reclaim reaches a level of pressure.
    Pressure(Pressure),
    /// The group becomes empty: the last process of it and of the groups below
    /// it left.
    Empty,
}

/// errno of refused arguments (Linux value).
const EINVAL: i32 = 22;

/// Why the arguments were refused. Offsets count bytes from their start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgsError {
    /// The arguments are not a threshold.
    Threshold(ThresholdError),
    /// The arguments are not a level of pressure.
    Pressure(PressureError),
    /// `cgroup.procs` takes no arguments.
    Unexpected {
        /// The first byte of them.
        found: u8,
    },
}

impl ArgsError {
    /// The errno (positive, Linux value): EINVAL.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::Threshold(inner) => inner.errno(),
            Self::Pressure(inner) => inner.errno(),
            Self::Unexpected { .. } => EINVAL,
        }
    }
}

impl From<ThresholdError> for ArgsError {
    fn from(inner: ThresholdError) -> Self {
        Self::Threshold(inner)
    }
}

impl From<PressureError> for ArgsError {
    fn from(inner: PressureError) -> Self {
        Self::Pressure(inner)
    }
}

impl fmt::Display for ArgsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Threshold(inner) => inner.fmt(f),
            Self::Pressure(inner) => inner.fmt(f),
            Self::Unexpected { found } => write!(
                f,
                "cgroup.procs: wrong byte '{}' at offset 0; expected no arguments",
                found.escape_ascii()
            ),
        }
    }
}

// No source: what it shows is the inner error in full.
impl error::Error for ArgsError {}

/// Parses the arguments of a registration on `file`.
///
/// `args` is [`Line::args`](crate::grammar::line::Line::args), or what
/// [`split_directory_args`] leaves of it; a NUL ends it. Sizes are rounded down
/// to pages of `page_size` bytes. `memory.oom_control` ignores its arguments, as
/// `mem_cgroup_oom_register_event` does.
///
/// # Errors
///
/// [`ArgsError`], always EINVAL, if they are not what `file` takes.
pub fn parse(file: ControlFile, args: &[u8], page_size: u64) -> Result<Trigger, ArgsError> {
    match file {
        ControlFile::Usage | ControlFile::Memsw | ControlFile::WorkingSet | ControlFile::Anon => {
            Ok(Trigger::Threshold(threshold::parse(args, page_size)?))
        }
        ControlFile::Oom => Ok(Trigger::Oom),
        ControlFile::Pressure => Ok(Trigger::Pressure(pressure::parse(args)?)),
        ControlFile::Procs => match until_nul(args) {
            [] => Ok(Trigger::Empty),
            [found, ..] => Err(ArgsError::Unexpected { found: *found }),
        },
    }
}

/// Splits `,exact` off the end of the arguments, or `exact` where there are no others: a client
/// that writes it is refused where its notification would be sampled. The kernel refuses it with
/// EINVAL, as it does every option.
#[must_use]
pub fn split_exact(args: &[u8]) -> (&[u8], bool) {
    let args = until_nul(args);
    match args.strip_suffix(b"exact") {
        Some([]) => (b"", true),
        Some([before @ .., b',']) => (before, true),
        _ => (args, false),
    }
}

/// Splits the arguments of a registration whose control fd is the group's
/// *directory*: a control file's name, then the end or one space, then that
/// file's arguments, untouched. `None`: no control file's name.
///
/// v2 has no `memory.pressure_level` to open, so clients name it this way. The
/// kernel refuses every directory with EINVAL.
#[must_use]
pub fn split_directory_args(args: &[u8]) -> Option<(ControlFile, &[u8])> {
    let mut parts = until_nul(args).splitn(2, |&byte| byte == b' ');
    let file = ControlFile::from_name(parts.next()?)?;
    Some((file, parts.next().unwrap_or_default()))
}

#[cfg(all(test, not(loom)))]
mod tests;
