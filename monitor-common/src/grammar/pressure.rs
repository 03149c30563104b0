//! `memory.pressure_level`: its arguments, and who hears of it. The rules of the kernel's
//! `vmpressure.c`, 5.15 to 7.2.

use core::{error, fmt};

use crate::{
    grammar::{line::until_nul, threshold::split_comma},
    protocol::pressure::Level,
};

/// Which groups' pressure a listener hears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PressureMode {
    /// Its own group's, and that of groups below which nobody nearer heard of.
    #[default]
    Default,
    /// Its own group's, and that of every group below.
    Hierarchy,
    /// Its own group's only.
    Local,
}

impl PressureMode {
    /// All, in the kernel's order.
    pub const ALL: [Self; 3] = [Self::Default, Self::Hierarchy, Self::Local];

    /// As the kernel spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Hierarchy => "hierarchy",
            Self::Local => "local",
        }
    }
}

/// What a listener on `memory.pressure_level` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pressure {
    /// The lowest level it hears.
    pub level: Level,
    /// Whose pressure it hears.
    pub mode: PressureMode,
}

/// Longest arguments that are looked at, in bytes (MAX_VMPRESSURE_ARGS_LEN). No
/// accepted level and mode are longer, so what is cut off changes no answer.
pub const MAX_ARGS: usize = 19;

/// Arguments the kernel accepts, and what they mean.
pub const ACCEPTED: &[(&str, Pressure)] = &[
    ("low", Pressure { level: Level::Low, mode: PressureMode::Default }),
    ("medium", Pressure { level: Level::Medium, mode: PressureMode::Default }),
    ("critical", Pressure { level: Level::Critical, mode: PressureMode::Default }),
    ("low,default", Pressure { level: Level::Low, mode: PressureMode::Default }),
    ("low,hierarchy", Pressure { level: Level::Low, mode: PressureMode::Hierarchy }),
    ("medium,local", Pressure { level: Level::Medium, mode: PressureMode::Local }),
    ("critical,hierarchy", Pressure { level: Level::Critical, mode: PressureMode::Hierarchy }),
    ("critical,hierarchy,", Pressure { level: Level::Critical, mode: PressureMode::Hierarchy }),
    ("critical,hierarchy,junk", Pressure { level: Level::Critical, mode: PressureMode::Hierarchy }),
    ("low,local,junk", Pressure { level: Level::Low, mode: PressureMode::Local }),
    ("low,local,,", Pressure { level: Level::Low, mode: PressureMode::Local }),
];

/// Arguments the kernel refuses with EINVAL.
pub const REFUSED: &[&str] = &[
    "",
    "low,",
    ",low",
    ",",
    "LOW",
    "Low",
    "lo",
    "lows",
    "low, local",
    "low local",
    " low",
    "low,Local",
    "low,loc",
    "low,,local",
    "local",
    "default,low",
    "high",
    "1",
    "low;local",
    "critical,hierarchyX",
    "critical,hierarchyXX",
    "critical,hierarchical",
    "medium,hierarchy2,local",
];

/// errno of refused arguments (Linux value).
const EINVAL: i32 = 22;

/// Why the arguments were refused. Offsets count bytes from their start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PressureError {
    /// They do not begin with a level.
    Level,
    /// What follows the first comma is not a mode.
    Mode {
        /// Offset of what follows.
        at: usize,
    },
}

impl PressureError {
    /// The errno (positive, Linux value) the kernel gives: EINVAL.
    #[must_use]
    pub const fn errno(self) -> i32 {
        EINVAL
    }
}

impl fmt::Display for PressureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Level => write!(
                f,
                "pressure: wrong level at offset 0; expected low, medium or critical, then a comma or the end"
            ),
            Self::Mode { at } => write!(
                f,
                "pressure: wrong mode at offset {at}; expected default, hierarchy or local, then a comma or the end"
            ),
        }
    }
}

impl error::Error for PressureError {}

/// Parses `LEVEL[,MODE[,IGNORED]]`, as `vmpressure_register_event` does.
///
/// `args` is [`Line::args`](crate::grammar::line::Line::args); a NUL ends it.
///
/// # Errors
///
/// Where the kernel gives EINVAL: the first part that does not match.
pub fn parse(args: &[u8]) -> Result<Pressure, PressureError> {
    let text = until_nul(args);
    let text = text.get(..MAX_ARGS).unwrap_or(text);
    let (level, rest) = split_comma(text);
    let level = Level::ALL.into_iter().find(|l| l.as_str().as_bytes() == level);
    let level = level.ok_or(PressureError::Level)?;
    let mode = match rest {
        None => PressureMode::Default,
        Some(rest) => {
            let (mode, _) = split_comma(rest);
            let mode = PressureMode::ALL.into_iter().find(|m| m.as_str().as_bytes() == mode);
            mode.ok_or(PressureError::Mode { at: text.len() - rest.len() })?
        }
    };
    Ok(Pressure { level, mode })
}

/// Who hears of one window, as `vmpressure_work_fn` and `vmpressure_event`
/// decide it on the way from reclaim's target group up to the root.
///
/// For each group: ask [`deliver`](Self::deliver) for each of its listeners,
/// then call [`next_group`](Self::next_group). So all default listeners of one
/// group hear together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Propagation {
    signalled: bool,
    ancestor: bool,
}

impl Propagation {
    /// At reclaim's target group; nobody has heard yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { signalled: false, ancestor: false }
    }

    /// Above reclaim's target group, where nobody below could hear.
    #[must_use]
    pub const fn from_below() -> Self {
        Self { signalled: false, ancestor: true }
    }

    /// Whether `listener`, of the group that we are at, hears of `level`.
    #[must_use]
    pub fn deliver(&self, listener: Pressure, level: Level) -> bool {
        match listener.mode {
            PressureMode::Local if self.ancestor => false,
            PressureMode::Default if self.signalled => false,
            _ => level >= listener.level,
        }
    }

    /// Goes on to the parent. `hit`: a listener of the group that we leave
    /// heard, of whatever mode.
    pub fn next_group(&mut self, hit: bool) {
        self.signalled |= hit;
        self.ancestor = true;
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
