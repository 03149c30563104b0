//! The wire format in exact text, and the documentation's examples of it.

use super::*;

/// The answers that the module's documentation shows, one on a line.
fn documented() -> Vec<&'static str> {
    let lines = include_str!("../wire.rs").lines().filter_map(|line| line.strip_prefix("//! "));
    lines.filter(|line| line.starts_with("{\"type\"")).collect()
}

#[test]
fn the_documented_answers_are_what_is_sent() {
    let all = documented();
    let mut kinds = Vec::new();
    for text in &all {
        let answer: Answer = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(serde_json::to_string(&answer).expect("JSON"), *text);
        kinds.push(match answer {
            Answer::Group(_) => "group",
            Answer::Status(_) => "status",
            Answer::Listening => "listening",
            Answer::Event(_) => "event",
            Answer::Changes(_) => "changes",
            Answer::Watching { .. } => "watching",
            Answer::Note(_) => "note",
            Answer::Missed { .. } => "missed",
            Answer::Recorded { .. } => "recorded",
            Answer::Error { .. } => "error",
        });
    }
    assert_eq!(
        kinds,
        [
            "group",
            "status",
            "listening",
            "event",
            "changes",
            "watching",
            "note",
            "missed",
            "recorded",
            "error"
        ]
    );
}

#[test]
fn requests_are_a_word_or_an_object_with_the_line() {
    for (request, text) in [
        (AdminRequest::List, "\"list\""),
        (AdminRequest::Status, "\"status\""),
        (AdminRequest::Kills, "\"kills\""),
        (AdminRequest::Changes, "\"changes\""),
        (AdminRequest::Listen("7 8 512M".into()), "{\"listen\":\"7 8 512M\"}"),
        (
            AdminRequest::Watch(WatchRequest {
                patterns: vec!["/a/**".into()],
                specs: vec!["80%".into()],
                ..WatchRequest::default()
            }),
            "{\"watch\":{\"patterns\":[\"/a/**\"],\"specs\":[\"80%\"]}}",
        ),
        (AdminRequest::Record(42), "{\"record\":42}"),
    ] {
        assert_eq!(serde_json::to_string(&request).expect("JSON"), text);
        assert_eq!(serde_json::from_str::<AdminRequest>(text).expect("a request"), request);
    }
}

#[test]
fn answers_of_older_and_newer_agents_are_read() {
    let older = r#"{"type":"status","registrations":1,"signals":2,"failed_signals":0,"resyncs":0,"skipped":0,"losses":{},"runs":0,"run_ns":0}"#;
    let status = AgentStatus { registrations: 1, signals: 2, ..AgentStatus::default() };
    assert_eq!(serde_json::from_str::<Answer>(older).expect("a status"), Answer::Status(status));
    let newer = r#"{"type":"event","time":1.0,"cgroup":"/a","event":"empty","signals":1,"more":[1]}"#;
    let row =
        EventRow { time: 1.0, cgroup: "/a".into(), event: "empty".into(), signals: 1, ..EventRow::default() };
    assert_eq!(serde_json::from_str::<Answer>(newer).expect("an event"), Answer::Event(row));
    assert!(serde_json::from_str::<Answer>(r#"{"listening":null}"#).is_err(), "an answer has a type");
}
