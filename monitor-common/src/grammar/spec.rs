//! The specification of a watch: what is to be told of each group that matches its patterns.
//!
//! | text | tells |
//! |---|---|
//! | `80%`, `512M,up`, `1G,hysteresis=64M` | a threshold on usage, as for `memory.usage_in_bytes` |
//! | `FILE ARGS`, as `memory.anon_bytes 1G` | what a registration on that control file tells |
//! | `oom` | the group, or one above it, is out of memory |
//! | `low`, `medium,hierarchy`, `critical,local` | reclaim reaches that level, as for `memory.pressure_level` |
//! | `empty` | the last process left the group and those below it |
//! | `removed` | the group was removed |
//!
//! `,exact` at the end refuses to sample, as for a registration. No text begins with `/`, with which
//! patterns begin.

use crate::grammar::{
    control_file::{ArgsError, ControlFile, Trigger, parse, split_directory_args, split_exact},
    pressure,
};

/// A specification: an event that is told of each group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Spec {
    /// An event that a registration tells.
    Event {
        /// The control file to register on.
        on: ControlFile,
        /// The trigger to register.
        trigger: Trigger,
        /// Whether it is refused where it would be sampled.
        is_exact: bool,
    },
    /// The removal of the group.
    Removed,
}

impl Spec {
    /// Parses a specification; thresholds are rounded down to pages of `page_size` bytes.
    ///
    /// # Errors
    /// The arguments are not what their control file takes.
    pub fn parse(text: &[u8], page_size: u64) -> Result<Self, ArgsError> {
        if text == b"removed" {
            return Ok(Self::Removed);
        }
        let (text, is_exact) = split_exact(text);
        let (on, args) = match text {
            b"oom" => (ControlFile::Oom, &b""[..]),
            b"empty" => (ControlFile::Procs, &b""[..]),
            _ => match split_directory_args(text) {
                Some(named) => named,
                None if pressure::parse(text).is_ok() => (ControlFile::Pressure, text),
                None => (ControlFile::Usage, text),
            },
        };
        Ok(Self::Event { on, trigger: parse(on, args, page_size)?, is_exact })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::Spec;
    use crate::grammar::control_file::{ControlFile, Trigger, parse};

    const PAGE: u64 = 4096;

    fn of(text: &str) -> Option<Spec> {
        Spec::parse(text.as_bytes(), PAGE).ok()
    }

    fn event(on: ControlFile, args: &str, is_exact: bool) -> Spec {
        let trigger = parse(on, args.as_bytes(), PAGE).expect("arguments");
        Spec::Event { on, trigger, is_exact }
    }

    #[test]
    fn a_specification_is_a_registrations_arguments_or_a_word() {
        for (text, expected) in [
            ("80%", event(ControlFile::Usage, "80%", false)),
            ("512M,up,exact", event(ControlFile::Usage, "512M,up", true)),
            ("memory.current 1G", event(ControlFile::Usage, "1G", false)),
            ("memory.anon_bytes 1G,down", event(ControlFile::Anon, "1G,down", false)),
            ("oom", event(ControlFile::Oom, "", false)),
            ("oom,exact", event(ControlFile::Oom, "", true)),
            ("memory.oom_control", event(ControlFile::Oom, "", false)),
            ("critical", event(ControlFile::Pressure, "critical", false)),
            ("low,hierarchy", event(ControlFile::Pressure, "low,hierarchy", false)),
            ("memory.pressure_level medium", event(ControlFile::Pressure, "medium", false)),
            ("empty", event(ControlFile::Procs, "", false)),
            ("removed", Spec::Removed),
        ] {
            assert_eq!(of(text), Some(expected), "{text}");
        }
        for text in ["removed,exact", "ooms", "OOM", "low,", "80%,sideways", "/a", "empty 1", "memory.oops 1"]
        {
            assert_eq!(of(text), None, "{text}");
        }
        assert!(matches!(of("oom"), Some(Spec::Event { trigger: Trigger::Oom, .. })));
    }
}
