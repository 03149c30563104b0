//! Tests of the format: what is written is read, and what is no file is refused with its line.

use std::error::Error as _;

use proptest::prelude::*;

use super::{
    BlackBoxError, BlackBoxHeader, KillEntry, LimitEntry, MAX_ENTRIES, MAX_FILE, MAX_LINE, OomEntry,
    PressureEntry, RecordReason, Recording, RegistrationEntry, SignalEntry, UsagePoint,
};

/// A file that version 1.0 wrote; it stays as it is.
const OLD: &str = include_str!("fixtures/1.0.jsonl");

fn header() -> BlackBoxHeader {
    BlackBoxHeader {
        at: 1_000,
        unix_ms: 1_790_000_000_000,
        ..BlackBoxHeader::new("/a".to_owned(), 7, RecordReason::Request)
    }
}

fn read(text: &str) -> Result<Recording, BlackBoxError> {
    Recording::read(text.as_bytes())
}

fn written(recording: &Recording) -> String {
    let mut bytes = Vec::new();
    recording.write(&mut bytes).expect("a vector takes it");
    String::from_utf8(bytes).expect("JSON is text")
}

/// The header's line, and these.
fn file_with(lines: &[&str]) -> String {
    let header = serde_json::to_string(&header()).expect("a header");
    format!("{header}\n{}", lines.iter().map(|line| format!("{line}\n")).collect::<String>())
}

fn message(text: &str) -> String {
    read(text).expect_err("no file of the black box").to_string()
}

#[test]
fn a_file_of_the_first_version_is_read_for_ever() {
    let old = read(OLD).expect("the first version's file");
    assert!(old.is_complete);
    assert_eq!(old.header.group, "/system.slice/importer.service");
    assert_eq!(old.header.reason, RecordReason::Oom);
    assert!(old.usage.len() > 100 && old.usage.is_sorted_by_key(|point| point.at));
    assert_eq!(old.limits.len(), 2);
    assert_eq!(old.limits[1].bytes, Some(128 << 20));
    assert_eq!((old.registrations.len(), old.signals.len()), (2, 2));
    assert_eq!((old.pressure.len(), old.ooms.len(), old.unknown), (4, 1, 0));
    let kill = &old.kills[0];
    assert_eq!(kill.name(), "python3 (4711)");
    assert_eq!(kill.cmdline.as_deref(), Some("/usr/bin/python3 -m importer --all"));
    assert_eq!(written(&old).lines().count(), OLD.lines().count());
}

#[test]
fn what_a_later_minor_version_adds_is_ignored() {
    let text = file_with(&[
        r#"{"kind":"usage","at":1,"bytes":4096,"numa_node":3}"#,
        r#"{"kind":"weather","at":2,"sky":["clear"]}"#,
        r#"{"kind":"kill","at":3,"comm":"a","cgroup":{"x":1}}"#,
        r#"{"kind":"end","entries":3,"checksum":"x"}"#,
    ]);
    let text = text.replace("\"minor\":0", "\"minor\":9,\"clock\":\"tai\"").replace("request", "weather");
    let recording = read(&text).expect("a later minor version");
    assert_eq!(recording.header.reason, RecordReason::Other);
    assert_eq!((recording.usage.len(), recording.kills.len(), recording.unknown), (1, 1, 1));
    assert!(recording.is_complete);
}

#[test]
fn a_newer_major_version_is_refused_whatever_else_is_new() {
    let newer = "{\"format\":\"memcg-monitor black box\",\"major\":2,\"all\":\"else\"}\nanything\n";
    assert!(matches!(read(newer), Err(BlackBoxError::Newer { major: 2 })));
    assert!(message(newer).contains("format 2 is newer than this program's 1"), "{}", message(newer));
}

#[test]
fn what_is_no_file_is_refused_with_its_line() {
    for text in ["", "\n", "{}\n", "no", "{\"format\":\"another\",\"major\":1}\n", &"x".repeat(MAX_LINE + 2)]
    {
        assert!(matches!(read(text), Err(BlackBoxError::NoHeader)), "{}", &text[..text.len().min(40)]);
    }
    let point = r#"{"kind":"usage","at":1,"bytes":1}"#;
    let bad = [
        (file_with(&[point, "{"]), "line 3: "),
        (file_with(&[r#"{"kind":"usage","at":-1,"bytes":1}"#]), "line 2: "),
        (file_with(&[r#"{"at":1}"#]), "line 2: missing field `kind`"),
        (file_with(&[point, "", point]), "line 3: "),
        (file_with(&[&format!("\"{}\"", "x".repeat(MAX_LINE))]), "line 2: longer than 65536 bytes"),
        (
            file_with(&[point, r#"{"kind":"end","entries":1}"#, point]),
            "line 4: behind the end that line 3 says",
        ),
        (file_with(&[point, r#"{"kind":"end","entries":2}"#]), "line 3: 2 entries are said, and 1 are there"),
        (file_with(&[]).replace("\"at\":1000,", ""), "line 1: missing field `at`"),
    ];
    for (text, expected) in bad {
        assert!(message(&text).starts_with(expected), "{} for {expected}", message(&text));
    }
}

#[test]
fn a_file_longer_than_any_is_no_file_that_was_cut_off() {
    let length = usize::try_from(MAX_FILE).expect("a length");
    let line = |spaces: usize| format!("{{\"kind\":\"usage\",\"at\":1,\"bytes\":1{}}}\n", " ".repeat(spaces));
    let mut text = file_with(&[]) + &line(60_000).repeat(length / 60_000 + 1);
    // As a reader has it that takes no more than one byte too many.
    text.truncate(length + 1);
    assert!(message(&text).contains("the file is longer than"), "{}", message(&text));
    text.truncate(length);
    assert!(!read(&text).expect("a file that was cut off").is_complete);
}

#[test]
fn no_kind_has_more_entries_than_a_reader_has_room_for() {
    let many = vec![r#"{"kind":"kill","at":1}"#; MAX_ENTRIES + 1];
    assert_eq!(read(&file_with(&many[1..])).expect("a file").kills.len(), MAX_ENTRIES);
    assert_eq!(
        message(&file_with(&many)),
        format!("line {}: more than 16384 entries of a kind", MAX_ENTRIES + 2)
    );
}

#[test]
fn a_line_that_is_no_entry_is_told_once_with_its_number_in_the_file() {
    let error = read(&file_with(&["x"])).expect_err("no JSON");
    assert_eq!(error.to_string(), "line 2: expected value at column 1");
    assert!(error.source().is_none(), "a cause is told beside it");
}

#[test]
fn a_file_that_is_cut_off_is_read_as_far_as_it_is() {
    let whole = OLD.lines().count() - 2;
    for cut in [OLD.len() - 1, OLD.len() - 10] {
        let read = read(&OLD[..cut]).expect("whole lines");
        assert!(!read.is_complete);
        let again = written(&read);
        assert_eq!(again.lines().count(), whole + 2, "header and end beside the entries");
    }
}

#[test]
fn a_line_that_no_reader_takes_is_not_written() {
    let mut recording = Recording::new(header());
    recording.notes.push("x".repeat(MAX_LINE));
    let refused = recording.write(Vec::new()).expect_err("a long line");
    assert!(matches!(refused, BlackBoxError::LongLine { line: 2 }));
}

fn kill() -> impl Strategy<Value = KillEntry> {
    let name = proptest::option::of(".{0,20}");
    (any::<u64>(), any::<Option<u32>>(), name.clone(), name, any::<Option<i32>>(), any::<Option<u64>>())
        .prop_map(|(at, pid, comm, cmdline, oom_score_adj, anon_rss)| KillEntry {
            at,
            pid,
            comm,
            cmdline,
            oom_score_adj,
            anon_rss,
            ..KillEntry::default()
        })
}

fn recording() -> impl Strategy<Value = Recording> {
    let points = proptest::collection::vec((any::<u64>(), any::<u64>()), 0..20);
    let limits = proptest::collection::vec((any::<u64>(), any::<Option<u64>>()), 0..4);
    let texts = proptest::collection::vec((any::<u64>(), ".{0,30}"), 0..4);
    let kills = proptest::collection::vec(kill(), 0..3);
    (points, limits, texts, kills, any::<u64>()).prop_map(|(points, limits, texts, kills, lost)| {
        let mut recording = Recording::new(header());
        recording.usage = points.into_iter().map(|(at, bytes)| UsagePoint { at, bytes }).collect();
        recording.limits = limits.into_iter().map(|(at, bytes)| LimitEntry { at, of: None, bytes }).collect();
        for (at, text) in texts {
            recording.notes.push(text.clone());
            recording.ooms.push(OomEntry { at, limit_of: Some(text.clone()) });
            recording.pressure.push(PressureEntry { at, level: text.clone() });
            recording.signals.push(SignalEntry { at, registration: None, cause: text.clone(), bytes: None });
            let registration =
                RegistrationEntry { registration: at, trigger: text, bytes: Some(at), uid: None };
            recording.registrations.push(registration);
        }
        (recording.kills, recording.lost, recording.is_complete) = (kills, lost, true);
        recording.sort();
        recording
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(recording in recording()) {
        prop_assert_eq!(read(&written(&recording)).expect("it was written"), recording);
    }

    #[test]
    fn any_bytes_are_a_file_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Recording::read(&bytes[..]);
    }

    #[test]
    fn a_damaged_file_is_read_or_refused(at in 0..OLD.len(), byte in any::<u8>()) {
        let mut bytes = OLD.as_bytes().to_vec();
        bytes[at] = byte;
        let _ = Recording::read(&bytes[..]);
    }
}
