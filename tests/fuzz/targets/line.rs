//! Fuzzes what a client writes: the line, and the arguments for each control file.
//!
//! Held: no panic; nothing taken from the heap; an error has the errno that it says and
//! an offset within the text; what was understood, written out again, is understood
//! as the same; whatever is not ours (`,` and `%`) means what it means to the kernel.

#![no_main]

use fuzzing::heap;
use libfuzzer_sys::fuzz_target;
use monitor_common::grammar::{
    control_file::{self, ArgsError, ControlFile, Trigger, split_directory_args},
    line::{self, LineError, MAX_LINE},
    pressure::{self, Pressure, PressureError},
    threshold::{self, At, HUNDRED_PERCENT, Pages, Threshold, ThresholdError},
};

const EINVAL: i32 = 22;
const E2BIG: i32 = 7;
const PAGE_SIZES: [u64; 3] = [4096, 16_384, 65_536];

fuzz_target!(|data: &[u8]| {
    let (parsed, taken) = heap::watch(|| line::parse(data));
    assert_eq!(taken.count, 0, "the line's parser is on the heap");
    match parsed {
        Ok(line) => {
            assert!(!line.args.contains(&0) && line.args.len() < data.len());
            let mut again = format!("{} {} ", line.event_fd, line.control_fd).into_bytes();
            again.extend_from_slice(line.args);
            // Numbers in full may be longer than the digits that wrapped, never by much.
            if again.len() <= MAX_LINE {
                assert_eq!(line::parse(&again), Ok(line));
            }
            arguments(line.args);
        }
        Err(error) => {
            refused(error, data);
            // Arguments also come in JSON, without a line around.
            arguments(data);
        }
    }
});

fn refused(error: LineError, line: &[u8]) {
    let expected = if line.len() > MAX_LINE { E2BIG } else { EINVAL };
    assert_eq!(error.errno(), expected);
    match error {
        LineError::Empty => assert!(line.is_empty()),
        LineError::TooLong { len } => assert_eq!(len, line.len()),
        LineError::Blank => {}
        LineError::EventFd { at, found } | LineError::ControlFd { at, found } => assert_eq!(line[at], found),
        LineError::NoControlFd { at } => assert!(at <= line.len()),
    }
    assert!(error.to_string().is_ascii());
}

fn arguments(args: &[u8]) {
    for file in ControlFile::ALL {
        for page in PAGE_SIZES {
            let (trigger, taken) = heap::watch(|| control_file::parse(file, args, page));
            assert_eq!(taken.count, 0, "the arguments' parser is on the heap");
            match trigger {
                Ok(trigger) => understood(file, trigger, page),
                Err(error) => not_understood(error, args),
            }
        }
    }
    for page in PAGE_SIZES {
        as_the_kernel(args, page);
    }
    let (split, taken) = heap::watch(|| split_directory_args(args));
    assert_eq!(taken.count, 0);
    if let Some((file, rest)) = split {
        assert!(args.ends_with(rest) || args.contains(&0));
        let again = [file.name().as_bytes(), b" ", rest].concat();
        assert_eq!(split_directory_args(&again), Some((file, rest)));
    }
}

/// Checks that text which the kernel would take means the same here, and that text which it
/// refuses is refused unless it is one of ours.
fn as_the_kernel(args: &[u8], page: u64) {
    let kernel = threshold::parse_threshold(args, page);
    let ours = threshold::parse(args, page);
    match kernel {
        Ok(pages) => assert_eq!(ours, Ok(Threshold::plain(pages))),
        Err(_) if ours.is_ok() => assert!(args.iter().any(|byte| matches!(byte, b',' | b'%'))),
        Err(_) => {}
    }
}

fn understood(file: ControlFile, trigger: Trigger, page: u64) {
    let text = match trigger {
        Trigger::Threshold(threshold) => threshold_text(&threshold, page),
        Trigger::Pressure(Pressure { level, mode }) => format!("{},{}", level.as_str(), mode.as_str()),
        Trigger::Oom | Trigger::Empty => String::new(),
    };
    assert_eq!(control_file::parse(file, text.as_bytes(), page), Ok(trigger), "written again: {text}");
}

fn threshold_text(threshold: &Threshold, page: u64) -> String {
    let Threshold { at, up, down, hysteresis } = *threshold;
    assert!(up || down);
    assert!(hysteresis <= Pages::counter_max(page));
    let mut text = match at {
        At::Pages(pages) => {
            assert!(pages <= Pages::counter_max(page));
            (pages.0 * page).to_string()
        }
        At::Percent(percent) => {
            assert!(percent <= HUNDRED_PERCENT);
            format!("{}.{:02}%", percent / 100, percent % 100)
        }
    };
    if up != down {
        text += if up { ",up" } else { ",down" };
    }
    if hysteresis != Pages(0) {
        text += &format!(",hysteresis={}", hysteresis.0 * page);
    }
    text
}

fn not_understood(error: ArgsError, args: &[u8]) {
    assert_eq!(error.errno(), EINVAL);
    match error {
        ArgsError::Threshold(ThresholdError::Trailing { at, found }) => assert_eq!(args[at], found),
        ArgsError::Threshold(
            ThresholdError::Percent { at }
            | ThresholdError::Option { at }
            | ThresholdError::Repeated { at }
            | ThresholdError::Size { at },
        )
        | ArgsError::Pressure(PressureError::Mode { at }) => assert!(at <= args.len()),
        ArgsError::Threshold(ThresholdError::PageSize) => panic!("no page size is 0"),
        ArgsError::Pressure(PressureError::Level) => assert!(pressure::parse(args).is_err()),
        ArgsError::Unexpected { found } => assert_eq!(args[0], found),
    }
    assert!(error.to_string().is_ascii());
}
