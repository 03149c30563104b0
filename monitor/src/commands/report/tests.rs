//! Tests of the report, from files alone.

use std::{fs, time::Duration};

use clap::Parser as _;
use memcg_monitor::black_box::{
    BlackBoxHeader, KillEntry, LimitEntry, OomEntry, PressureEntry, RecordReason, Recording,
    RegistrationEntry, SignalEntry, UsagePoint,
};
use proptest::prelude::*;

use super::{
    drawn,
    last::only_last,
    story::{facts, headline, limit_at, moments},
    write,
};
use crate::cli::{Cli, ReportFormat};

const OLD: &str = include_str!("../../black_box/fixtures/1.0.jsonl");

fn old() -> Recording {
    Recording::read(OLD.as_bytes()).expect("a file of the first version")
}

fn empty() -> Recording {
    Recording::new(BlackBoxHeader {
        at: 10_000_000_000,
        unix_ms: 1_795_984_800_000,
        ..BlackBoxHeader::new("/a".to_owned(), 7, RecordReason::Request)
    })
}

fn report(recording: &Recording, format: ReportFormat) -> String {
    drawn(recording.clone(), (format, Some(300)), None).expect("a report")
}

/// Checks that each tag of a document is closed in its order.
fn assert_well_formed(markup: &str) {
    let mut open: Vec<&str> = Vec::new();
    for tag in markup.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("a tag ends");
        let name = tag.split([' ', '/', '\n']).next().unwrap_or_default();
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed), "{markup}");
        } else if !tag.ends_with('/') && !tag.starts_with('!') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?} are open");
}

#[test]
fn a_report_replaces_a_file_as_a_whole_and_never_the_recording() {
    let directory = tempfile::tempdir().expect("a directory");
    let (recording, report) = (directory.path().join("a.jsonl"), directory.path().join("a.txt"));
    fs::write(&recording, OLD).expect("a recording");
    fs::write(&report, "before").expect("an earlier report");
    write(&report, &recording, "after").expect("a report");
    assert_eq!(fs::read_to_string(&report).expect("a file"), "after");
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&recording, &link).expect("a link");
    for path in [&recording, &link] {
        let error = write(path, &recording, "x").expect_err("the recording itself");
        assert!(error.to_string().contains("is the recording itself"), "{error}");
    }
    assert_eq!(fs::read_to_string(&recording).expect("a file"), OLD);
    let error = write(&directory.path().join("no/a"), &recording, "x").expect_err("no directory");
    assert!(error.to_string().contains("ENOENT"), "{error}");
    assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 3, "nothing unfinished is left");
}

#[test]
fn a_picture_has_the_curve_the_limit_the_thresholds_and_the_victim() {
    let svg = report(&old(), ReportFormat::Svg);
    assert_well_formed(&svg);
    let one = |class: &str| svg.matches(&format!("class=\"{class}\"")).count();
    assert_eq!(
        (one("area"), one("kill"), one("oom"), one("signal")),
        (1, 2, 2, 3),
        "each once, and in the legend"
    );
    for words in [
        "limit 128 MiB",
        "threshold 64 MiB",
        "killed python3 (4711)",
        "128 MiB",
        ">-60 s<",
        ">kill<",
        "prefers-color-scheme:dark",
    ] {
        assert!(svg.contains(words), "{words} in {svg}");
    }
    assert!(svg.len() < 40_000, "{}", svg.len());
}

/// The rules of a style that give a colour, as pairs of selector and property.
fn coloured(rules: &str) -> Vec<(&str, &str)> {
    let rules = rules.split('}').filter_map(|rule| rule.split_once('{'));
    let declarations = rules.flat_map(|(selector, body)| body.split(';').map(move |one| (selector, one)));
    let colours = declarations.filter_map(|(selector, one)| Some((selector, one.split_once(":#")?.0)));
    colours.collect()
}

#[test]
fn a_picture_has_its_light_colours_without_variables_and_conditions() {
    let svg = report(&old(), ReportFormat::Svg);
    let (_, style) = svg.split_once("<style>").expect("a style");
    let (style, _) = style.split_once("</style>").expect("its end");
    let (light, dark) = style.split_once("@media(prefers-color-scheme:dark){").expect("the dark colours");
    for class in [".paper", ".area", ".low", ".medium"] {
        assert!(light.contains(&format!("{class}{{fill:#")), "{class} in {light}");
    }
    assert!(!style.contains("var(") && !light.contains('@'), "{style}");
    assert_eq!(coloured(light), coloured(dark), "each light colour has a dark one");
}

#[test]
fn a_page_loads_nothing_and_runs_nothing() {
    let page = report(&old(), ReportFormat::Html);
    assert_well_formed(&page);
    assert!(
        page.starts_with("<!DOCTYPE html>")
            && page.contains("default-src 'none'".replace('\'', "&#39;").as_str())
    );
    let outside = page.replace("http://www.w3.org/2000/svg", "");
    for word in ["<script", "http:", "https:", "src=", "url(", "@import", "<link", "<img"] {
        assert!(!outside.contains(word), "{word}");
    }
    for words in ["/usr/bin/python3 -m importer --all", "118 MiB", "importer.service", "user 1000"] {
        assert!(page.contains(words), "{words}");
    }
}

#[test]
fn a_text_says_who_was_killed_and_by_whose_limit() {
    let text = report(&old(), ReportFormat::Text);
    let expected = "python3 (4711) was OOM-killed at 2026-11-29 20:39:59.100 UTC: \
        /system.slice/importer.service had reached its limit of 128 MiB\n";
    assert!(text.starts_with(expected), "{text}");
    assert!(
        text.contains("     limit |") && text.lines().any(|line| line.contains("|") && line.contains("####"))
    );
}

#[test]
fn a_text_is_folded_to_a_terminal_and_nowhere_else() {
    let mut recording = old();
    recording.kills[0].cmdline = Some("word ".repeat(100));
    let text = |columns| drawn(recording.clone(), (ReportFormat::Text, columns), None).expect("a report");
    let (folded, whole) = (text(Some(80)), text(None));
    assert!(folded.lines().all(|line| line.chars().count() <= 80), "{folded}");
    assert!(folded.split_whitespace().eq(whole.split_whitespace()), "{folded}");
    let lines = |text: &str| text.lines().filter(|line| line.contains("word")).count();
    assert_eq!(lines(&whole), 1, "{whole}");
    assert!(lines(&folded) > 5, "{folded}");
}

#[test]
fn json_is_the_recording() {
    let value: serde_json::Value = serde_json::from_str(&report(&old(), ReportFormat::Json)).expect("JSON");
    assert_eq!(value["header"]["group"], "/system.slice/importer.service");
    assert_eq!(value["usage"].as_array().map(Vec::len), Some(old().usage.len()));
    assert_eq!(value["kills"][0]["pid"], 4711);
}

#[test]
fn names_that_others_chose_are_shown_and_do_nothing() {
    let mut recording = old();
    recording.header.group = "/</svg><script>alert(1)</script>\u{1b}[2J\n".to_owned();
    recording.kills[0].comm = Some("a\"b\u{202e}<!--".to_owned());
    recording.kills[0].cmdline = Some("</td>\u{fffe}".to_owned());
    recording.notes.push("x\ny".to_owned());
    for format in [ReportFormat::Svg, ReportFormat::Html] {
        let markup = report(&recording, format);
        assert_well_formed(&markup);
        assert!(!markup.contains("<script>") && !markup.contains('\u{1b}') && !markup.contains("<!--"));
    }
    let text = report(&recording, ReportFormat::Text);
    assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}') && text.contains("x\\ny"));
}

#[test]
fn the_limit_in_force_is_the_lowest_that_was_said_last_of_each_group() {
    let mut recording = empty();
    let limit = |at, of: Option<&str>, bytes| LimitEntry { at, of: of.map(str::to_owned), bytes };
    recording.limits = vec![
        limit(1, Some("/a"), Some(100)),
        limit(2, Some("/"), Some(50)),
        limit(3, Some("/"), None),
        limit(4, Some("/a"), Some(200)),
    ];
    let at = |at| limit_at(&recording, at);
    assert_eq!([at(0), at(1), at(2), at(3), at(9)], [None, Some(100), Some(50), Some(100), Some(200)]);
}

#[test]
fn what_is_not_there_is_left_out() {
    let mut recording = empty();
    recording.is_complete = true;
    assert!(headline(&recording).starts_with("/a at 2026-11-29 20:40:00.000 UTC"));
    assert!(report(&recording, ReportFormat::Text).contains("no points"));
    assert_well_formed(&report(&recording, ReportFormat::Html));
    recording.ooms.push(OomEntry { at: 9_000_000_000, limit_of: None });
    assert!(headline(&recording).starts_with("OOM in /a at 2026-11-29 20:39:59.000 UTC"));
    recording.kills.extend([KillEntry::default(), KillEntry { at: 9_000_000_000, ..KillEntry::default() }]);
    assert!(
        headline(&recording).starts_with("a process and one more were OOM-killed"),
        "{}",
        headline(&recording)
    );
}

#[test]
fn what_is_missing_in_a_file_is_said() {
    let mut recording = empty();
    (recording.lost, recording.unknown) = (3, 2);
    let said: Vec<_> = facts(&recording).into_iter().map(|(name, _)| name).collect();
    assert!(["lost points", "left out", "cut off"].iter().all(|name| said.contains(name)), "{said:?}");
}

#[test]
fn every_form_shows_the_last_seconds_alone_if_they_are_wanted() {
    let last = Duration::from_secs(2);
    let end = old().kills.last().expect("a kill").at;
    let (begin, whole) = (end - 2_000_000_000, old());
    let short = only_last(old(), last);
    let kept = whole.usage.iter().filter(|point| point.at >= begin).count();
    assert!(kept < whole.usage.len() && (kept..=kept + 1).contains(&short.usage.len()), "{kept}");
    assert!(short.usage.iter().all(|point| point.at >= begin));
    assert_eq!(limit_at(&short, end), limit_at(&whole, end), "a limit from before holds on");
    let drawn = |format| drawn(old(), (format, Some(300)), Some(last)).expect("a report");
    let json: serde_json::Value = serde_json::from_str(&drawn(ReportFormat::Json)).expect("JSON");
    assert_eq!(json["usage"].as_array().map(Vec::len), Some(short.usage.len()));
    assert_eq!(json["notes"][0], "shows the last 2 s alone");
    for format in [ReportFormat::Text, ReportFormat::Html, ReportFormat::Svg] {
        let (short, whole) = (drawn(format), report(&whole, format));
        assert!(short.contains("-2 s") && !short.contains("-60 s"), "{short}");
        assert!(!whole.contains("-2 s"), "{whole}");
    }
    for format in [ReportFormat::Text, ReportFormat::Html] {
        assert!(drawn(format).contains("shows the last 2 s alone"));
    }
}

#[test]
fn usage_and_limits_from_before_are_those_at_the_beginning() {
    let mut recording = empty();
    let limit = |at, of: &str, bytes| LimitEntry { at, of: Some(of.to_owned()), bytes: Some(bytes) };
    recording.limits =
        vec![limit(1, "/a", 100), limit(2, "/", 50), limit(3, "/a", 70), limit(9_500_000_000, "/a", 60)];
    recording.usage =
        [(1, 10), (5, 20), (9_400_000_000, 30)].map(|(at, bytes)| UsagePoint { at, bytes }).into();
    let short = only_last(recording, Duration::from_secs(1));
    let begin = 9_000_000_000;
    assert_eq!(short.limits, [limit(begin, "/", 50), limit(begin, "/a", 70), limit(9_500_000_000, "/a", 60)]);
    assert_eq!(
        short.usage.iter().map(|point| (point.at, point.bytes)).collect::<Vec<_>>(),
        [(begin, 20), (9_400_000_000, 30)]
    );
}

#[test]
fn one_is_said_in_the_singular() {
    let mut recording = empty();
    recording.usage = vec![UsagePoint { at: 1, bytes: 1 }];
    recording.unknown = 1;
    let said: String = facts(&recording).into_iter().map(|(_, value)| value + "\n").collect();
    assert!(said.contains("1 point in") && said.contains("1 entry of"), "{said}");
}

/// A whole file of points at these milliseconds, of so many MiB, and a kill at 100 s.
fn killed_at_100_s(points: &[(u64, u64)]) -> Recording {
    let mut recording = empty();
    recording.is_complete = true;
    recording.header.step = Some(1 << 20);
    let point = |(ms, mib): &(u64, u64)| UsagePoint { at: ms * 1_000_000, bytes: mib << 20 };
    recording.usage = points.iter().map(point).collect();
    recording.kills = vec![KillEntry { at: 100_000_000_000, ..KillEntry::default() }];
    recording
}

/// The row of a report that says how usage grew; empty where there is none.
fn growth(recording: &Recording) -> String {
    let row = facts(recording).into_iter().find(|(name, _)| *name == "growth");
    row.map_or_else(String::new, |(_, words)| words)
}

#[test]
fn growth_is_measured_up_to_the_kill() {
    for (points, expected) in [
        (
            &[(10_000, 1), (99_500, 2), (99_750, 42), (100_200, 9)][..],
            "80 MiB/s in the last 500 ms before the kill",
        ),
        (&[(70_000, 10), (80_000, 20), (90_000, 30)], "512 KiB/s in the last 20 s before the kill"),
        (&[(29_600, 10), (30_000, 30)], "less than 1 MiB in the last 70 s before the kill"),
        (&[(1_000, 30)], "less than 1 MiB in the last 99 s before the kill"),
        (&[(99_500, 30), (99_800, 20)], ""),
        (&[(100_000, 30)], ""),
    ] {
        assert_eq!(growth(&killed_at_100_s(points)), expected, "{points:?}");
    }
}

#[test]
fn no_growth_is_told_that_is_not_known() {
    let mut recording = killed_at_100_s(&[(29_600, 10), (30_000, 30)]);
    recording.header.step = None;
    assert_eq!(growth(&recording), "none in the last 70 s before the kill");
    recording.is_complete = false;
    assert_eq!(growth(&recording), "", "a file that is cut off has lost the points of its end");
}

#[test]
fn a_report_of_no_time_is_refused() {
    for (last, is_taken) in
        [("0", false), ("0.0", false), ("-1", false), ("nan", false), ("1e9", false), ("0.5", true)]
    {
        let line = ["memcg-monitor", "report", "file", &format!("--last={last}")].map(str::to_owned);
        let parsed = Cli::try_parse_from(line);
        assert_eq!(parsed.as_ref().err().map(clap::Error::exit_code), (!is_taken).then_some(2), "{last}");
        let bounds = "a number of seconds above 0, up to 315360000 (ten years)";
        assert!(is_taken || parsed.is_err_and(|error| error.to_string().contains(bounds)), "{last}");
    }
}

#[test]
fn a_storm_makes_no_large_report() {
    let mut recording = old();
    let signal = recording.signals[0].clone();
    recording.signals = vec![signal; 50_000];
    recording.kills = vec![recording.kills[0].clone(); 5_000];
    recording.usage = (0..300_000)
        .map(|at| UsagePoint { at: 5_000_000_000_000 + at * 400_000, bytes: (at % 977) << 16 })
        .collect();
    assert_eq!(moments(&recording).0.len(), 500);
    for format in [ReportFormat::Svg, ReportFormat::Html, ReportFormat::Text] {
        let length = report(&recording, format).len();
        assert!(length < 600_000, "{format:?}: {length}");
    }
}

/// A recording of ten seconds without a kill, in which usage is 1 MiB.
fn ten_seconds(limits: impl IntoIterator<Item = LimitEntry>) -> Recording {
    let mut recording = empty();
    recording.usage = [0, 10_000_000_000].map(|at| UsagePoint { at, bytes: 1 << 20 }).into();
    recording.limits = limits.into_iter().collect();
    recording
}

/// The path of the limit's line.
fn limit_line(recording: &Recording) -> String {
    let svg = report(recording, ReportFormat::Svg);
    let (_, line) = svg.split_once("<path class=\"limit\" d=\"").expect("a line of the limit");
    line.split('"').next().unwrap_or_default().to_owned()
}

#[test]
fn the_line_of_the_limit_has_a_step_where_the_lowest_changes() {
    let limit = |second: u64, of: &str, mib: Option<u64>| LimitEntry {
        at: second * 1_000_000_000,
        of: Some(of.to_owned()),
        bytes: mib.map(|mib| mib << 20),
    };
    let limits =
        [limit(1, "/a", Some(3)), limit(2, "/", Some(4)), limit(5, "/", Some(2)), limit(7, "/", None)];
    assert_eq!(limit_line(&ten_seconds(limits)), "M150.2 204.0H439.0M439.0 260.0H583.4M583.4 204.0H800.0");
}

#[test]
fn of_many_limits_the_latest_are_drawn() {
    let limit = |at: u64| LimitEntry { at: at * 3_000_000, of: None, bytes: Some((2 + at % 2) << 20) };
    let line = limit_line(&ten_seconds((1..=3_000).map(limit)));
    assert_eq!(line.matches('M').count(), 400);
    assert!(line.ends_with("H800.0"), "{line}");
}

/// A look at all limits before each of them would take hours.
#[test]
fn a_report_of_the_limits_of_many_groups_ends() {
    let limit = |at: u64| LimitEntry {
        at: at * 100_000,
        of: Some(format!("/{at}")),
        bytes: Some((2 + at % 2) << 20),
    };
    let recording = ten_seconds((1..=50_000).map(limit));
    assert_eq!(limit_at(&recording, recording.header.at), Some(2 << 20));
    for format in [ReportFormat::Svg, ReportFormat::Html, ReportFormat::Text] {
        let length = report(&recording, format).len();
        assert!(length < 600_000, "{format:?}: {length}");
    }
}

proptest! {
    #[test]
    fn any_recording_is_drawn(
        points in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..30),
        events in proptest::collection::vec((any::<u64>(), any::<Option<u64>>(), ".{0,12}"), 0..6),
        at in any::<u64>(),
        unix_ms in any::<u64>(),
        last in proptest::option::of(1u64..1_000_000_000_000),
    ) {
        let mut recording = empty();
        (recording.header.at, recording.header.unix_ms) = (at, unix_ms);
        recording.is_complete = at % 2 == 0;
        recording.usage = points.into_iter().map(|(at, bytes)| UsagePoint { at, bytes }).collect();
        for (at, bytes, text) in events {
            recording.limits.push(LimitEntry { at, of: Some(text.clone()), bytes });
            recording.registrations.push(RegistrationEntry {
                registration: at, trigger: text.clone(), bytes, uid: None,
            });
            recording.signals.push(SignalEntry { at, registration: None, cause: text.clone(), bytes });
            recording.pressure.push(PressureEntry { at, level: text.clone() });
            recording.ooms.push(OomEntry { at, limit_of: Some(text.clone()) });
            recording.kills.push(KillEntry { at, comm: Some(text), ..KillEntry::default() });
        }
        recording.sort();
        for format in [ReportFormat::Svg, ReportFormat::Html, ReportFormat::Text, ReportFormat::Json] {
            let text = drawn(recording.clone(), (format, None), last.map(Duration::from_nanos)).expect("a report");
            prop_assert!(!text.contains("NaN") && !text.contains("inf\""));
            if matches!(format, ReportFormat::Svg | ReportFormat::Html) {
                assert_well_formed(&text);
            }
        }
    }
}
