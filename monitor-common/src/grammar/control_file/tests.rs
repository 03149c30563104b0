//! Names of control files, and the arguments that each takes.

use proptest::prelude::*;

use super::*;
use crate::{
    grammar::{
        pressure::PressureMode,
        threshold::{At, Pages},
    },
    protocol::pressure::Level,
};

const PAGE: u64 = 4096;

const THRESHOLDS: [ControlFile; 3] = [ControlFile::Usage, ControlFile::Memsw, ControlFile::WorkingSet];

#[test]
fn names_are_exact_and_distinct() {
    for file in ControlFile::ALL {
        assert_eq!(ControlFile::from_name(file.name().as_bytes()), Some(file));
        let upper = file.name().to_uppercase();
        let longer = format!("{}s", file.name());
        for wrong in [upper, longer, file.name()[1..].to_owned(), format!("/{}", file.name())] {
            assert_eq!(ControlFile::from_name(wrong.as_bytes()), None, "{wrong}");
        }
    }
    assert_eq!(ControlFile::from_name(b"memory.current"), Some(ControlFile::Usage));
    // Files that the kernel refuses, and that we have no meaning for.
    for wrong in ["", "memory.limit_in_bytes", "memory.max", "cgroup.event_control", "memory.swap.current"] {
        assert_eq!(ControlFile::from_name(wrong.as_bytes()), None, "{wrong}");
    }
}

#[test]
fn three_files_take_thresholds() {
    for file in THRESHOLDS {
        let want = Threshold::plain(Pages(256));
        assert_eq!(parse(file, b"1M", PAGE), Ok(Trigger::Threshold(want)));
        let want = Threshold { at: At::Percent(8_000), up: true, down: false, hysteresis: Pages(16) };
        assert_eq!(parse(file, b"80%,up,hysteresis=64K", PAGE), Ok(Trigger::Threshold(want)));
        let err = parse(file, b"1KB", PAGE).expect_err("1KB");
        assert_eq!(err, ArgsError::Threshold(ThresholdError::Trailing { at: 2, found: b'B' }));
        assert_eq!(err.errno(), 22);
        assert!(err.to_string().starts_with("threshold: wrong byte 'B' at offset 2"));
    }
}

#[test]
fn pressure_takes_a_level_and_a_mode() {
    let file = ControlFile::Pressure;
    let want = Pressure { level: Level::Medium, mode: PressureMode::Local };
    assert_eq!(parse(file, b"medium,local", PAGE), Ok(Trigger::Pressure(want)));
    let err = parse(file, b"1M", PAGE).expect_err("1M");
    assert_eq!(err, ArgsError::Pressure(PressureError::Level));
    assert_eq!(err.errno(), 22);
    assert!(err.to_string().starts_with("pressure: wrong level at offset 0"));
}

#[test]
fn release_takes_no_arguments() {
    let file = ControlFile::Procs;
    assert_eq!(parse(file, b"", PAGE), Ok(Trigger::Empty));
    assert_eq!(parse(file, b"\0junk", PAGE), Ok(Trigger::Empty));
    for args in [&b"1"[..], b" ", b"empty"] {
        let err = parse(file, args, PAGE).expect_err("arguments");
        assert_eq!(err, ArgsError::Unexpected { found: args[0] });
        assert_eq!(err.errno(), 22);
        assert!(err.to_string().contains("expected no arguments"));
    }
}

#[test]
fn a_directory_needs_a_file_name() {
    use ControlFile::{Oom, Pressure, Procs, Usage};

    let split = |text: &'static str| split_directory_args(text.as_bytes());
    assert_eq!(split("memory.pressure_level low,local"), Some((Pressure, &b"low,local"[..])));
    assert_eq!(split("memory.oom_control"), Some((Oom, &b""[..])));
    assert_eq!(split("memory.oom_control "), Some((Oom, &b""[..])));
    assert_eq!(split("memory.oom_control what ever"), Some((Oom, &b"what ever"[..])));
    assert_eq!(split("cgroup.procs\0 junk"), Some((Procs, &b""[..])));
    assert_eq!(split("memory.current 1M"), Some((Usage, &b"1M"[..])));
    // One space is the separator; what follows is the arguments', as in the line.
    assert_eq!(split("memory.usage_in_bytes  1M"), Some((Usage, &b" 1M"[..])));
    for wrong in ["", " ", "1M", "-1", "low,local", " memory.oom_control", "memory.oom_control\t1"] {
        assert_eq!(split(wrong), None, "{wrong:?}");
    }
}

proptest! {
    #[test]
    fn oom_ignores_any_arguments(args in prop::collection::vec(any::<u8>(), 0..40), page_size in any::<u64>()) {
        prop_assert_eq!(parse(ControlFile::Oom, &args, page_size), Ok(Trigger::Oom));
    }

    #[test]
    fn a_directorys_arguments_are_left_untouched(
        file in prop::sample::select(&ControlFile::ALL[..]),
        args in "[ -~]{0,40}",
    ) {
        let text = format!("{} {args}", file.name());
        prop_assert_eq!(split_directory_args(text.as_bytes()), Some((file, args.as_bytes())));
    }

    /// The arguments of a file and those of a directory cannot be mixed up: no
    /// threshold and no level of pressure begins with a file's name.
    #[test]
    fn a_files_arguments_are_no_directorys(args in prop::collection::vec(any::<u8>(), 0..40)) {
        let taken = [ControlFile::Usage, ControlFile::Pressure, ControlFile::Procs]
            .into_iter()
            .any(|file| parse(file, &args, PAGE).is_ok());
        prop_assert!(!taken || split_directory_args(&args).is_none());
    }
}

/// The texts that a table cell of the document holds in backticks; the bare word "empty"
/// stands for empty arguments.
fn spellings(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').enumerate().filter_map(|(i, part)| match i % 2 {
        0 => part.contains("empty").then_some(""),
        _ => Some(part),
    })
}

/// The document's accepted and refused arguments are that.
#[test]
fn the_documents_examples_hold() {
    let text = include_str!("../../../../docs/guide/registration.md");
    let (mut files, mut examples, mut counts) = (Vec::new(), false, [0, 0]);
    for line in text.lines() {
        if let Some(names) = line.strip_prefix("Control files: ") {
            files =
                spellings(names).map(|name| ControlFile::from_name(name.as_bytes()).expect(name)).collect();
        }
        let cells: Vec<&str> = line.split('|').collect();
        let [_, accepted, _, refused, _, _] = cells[..] else {
            examples &= line.starts_with('|');
            continue;
        };
        examples |= accepted.trim() == "accepted";
        if !examples {
            continue;
        }
        for file in &files {
            for args in spellings(accepted) {
                assert!(parse(*file, args.as_bytes(), PAGE).is_ok(), "{file:?} {args:?}");
                counts[0] += 1;
            }
            for args in spellings(refused) {
                assert!(parse(*file, args.as_bytes(), PAGE).is_err(), "{file:?} {args:?}");
                counts[1] += 1;
            }
        }
    }
    // So that a change of the layout does not turn the test off.
    assert!(counts[0] > 60 && counts[1] > 60, "{counts:?}");
}

#[test]
fn exact_is_the_last_option() {
    for (args, before, is_exact) in [
        (&b"8M,exact"[..], &b"8M"[..], true),
        (b"80%,up,exact", b"80%,up", true),
        (b"low,local,exact\0x", b"low,local", true),
        (b"exact", b"", true),
        (b"8M", b"8M", false),
        (b"8Mexact", b"8Mexact", false),
        (b"8M,exact,up", b"8M,exact,up", false),
        (b"", b"", false),
    ] {
        assert_eq!(split_exact(args), (before, is_exact), "{}", args.escape_ascii());
    }
}
