//! `memory.pressure_level`: its arguments, and which listeners are signalled. The rules of the
//! kernel's `vmpressure.c`, 5.15 to 7.2.

use core::{error, fmt};

use crate::{
    grammar::{line::until_nul, threshold::split_comma},
    protocol::pressure::Level,
};

/// Groups of whose pressure a listener is notified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PressureMode {
    /// The listener's own group, and groups below whose pressure signalled no listener nearer to
    /// them.
    #[default]
    Default,
    /// The listener's own group, and every group below.
    Hierarchy,
    /// The listener's own group only.
    Local,
}

impl PressureMode {
    /// All modes, in the kernel's order.
    pub const ALL: [Self; 3] = [Self::Default, Self::Hierarchy, Self::Local];

    /// The mode as the kernel spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Hierarchy => "hierarchy",
            Self::Local => "local",
        }
    }
}

/// The arguments of a listener on `memory.pressure_level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pressure {
    /// The lowest level of which it is notified.
    pub level: Level,
    /// The groups of whose pressure it is notified.
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
    /// The arguments do not begin with a level.
    Level,
    /// The text after the first comma is not a mode.
    Mode {
        /// Offset of the text after the comma.
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

/// Decides which listeners one window signals, as `vmpressure_work_fn` and
/// `vmpressure_event` do on the way from reclaim's target group up to the root.
///
/// For each group: call [`deliver`](Self::deliver) for each of its listeners,
/// then [`next_group`](Self::next_group). So all default listeners of one
/// group are signalled together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Propagation {
    signalled: bool,
    ancestor: bool,
}

impl Propagation {
    /// Begins at reclaim's target group; no listener was signalled yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { signalled: false, ancestor: false }
    }

    /// Begins above reclaim's target group, where no listener below could be signalled.
    #[must_use]
    pub const fn from_below() -> Self {
        Self { signalled: false, ancestor: true }
    }

    /// Whether `listener`, of the present group, is notified of `level`.
    #[must_use]
    pub fn deliver(&self, listener: Pressure, level: Level) -> bool {
        match listener.mode {
            PressureMode::Local if self.ancestor => false,
            PressureMode::Default if self.signalled => false,
            _ => level >= listener.level,
        }
    }

    /// Goes on to the parent. `hit`: a listener of the group below it was
    /// signalled, of whatever mode.
    pub fn next_group(&mut self, hit: bool) {
        self.signalled |= hit;
        self.ancestor = true;
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
