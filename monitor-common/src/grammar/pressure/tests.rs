//! Arguments, and which listeners a level signals, each against a second reading of the
//! kernel's rules.

use proptest::{collection::vec, prelude::*};

use super::*;

#[test]
fn accepts_what_the_kernel_accepts() {
    for &(args, want) in ACCEPTED {
        assert_eq!(parse(args.as_bytes()), Ok(want), "{args:?}");
        assert_eq!(parse(format!("{args}\0junk").as_bytes()), Ok(want), "{args:?}");
    }
}

#[test]
fn refuses_what_the_kernel_refuses() {
    for &args in REFUSED {
        let err = parse(args.as_bytes()).expect_err(args);
        assert_eq!(err.errno(), 22);
    }
}

#[test]
fn errors_name_the_part_and_the_place() {
    assert_eq!(parse(b"LOW,local"), Err(PressureError::Level));
    assert_eq!(parse(b"low, local"), Err(PressureError::Mode { at: 4 }));
    assert_eq!(parse(b"critical,"), Err(PressureError::Mode { at: 9 }));
    let message = |args: &[u8]| parse(args).expect_err("refused").to_string();
    assert!(message(b"").contains("at offset 0; expected low, medium or critical"));
    assert!(message(b"low,").contains("at offset 4; expected default, hierarchy or local"));
}

#[test]
fn no_accepted_text_is_longer_than_what_is_looked_at() {
    for level in Level::ALL {
        for mode in PressureMode::ALL {
            assert!(level.as_str().len() + 1 + mode.as_str().len() < MAX_ARGS);
        }
    }
}

fn at(level: Level, mode: PressureMode) -> Pressure {
    Pressure { level, mode }
}

/// Lists which listeners are signalled, group by group from the target up.
fn ours(groups: &[Vec<Pressure>], level: Level) -> Vec<Vec<bool>> {
    let mut walk = Propagation::new();
    let mut signalled = Vec::new();
    for listeners in groups {
        let hits: Vec<bool> = listeners.iter().map(|l| walk.deliver(*l, level)).collect();
        walk.next_group(hits.contains(&true));
        signalled.push(hits);
    }
    signalled
}

/// The rule without a walk: each listener looks at what lies below it.
fn naive(groups: &[Vec<Pressure>], level: Level) -> Vec<Vec<bool>> {
    let mut signalled: Vec<Vec<bool>> = Vec::new();
    for (depth, listeners) in groups.iter().enumerate() {
        let nearer = signalled.iter().flatten().any(|hit| *hit);
        let is_signalled = |l: &Pressure| {
            l.level <= level
                && match l.mode {
                    PressureMode::Hierarchy => true,
                    PressureMode::Local => depth == 0,
                    PressureMode::Default => !nearer,
                }
        };
        signalled.push(listeners.iter().map(is_signalled).collect());
    }
    signalled
}

#[test]
fn default_registrations_of_one_group_are_signalled_together_and_hide_from_those_above() {
    let low = at(Level::Low, PressureMode::Default);
    assert_eq!(ours(&[vec![low, low], vec![low]], Level::Low), [vec![true, true], vec![false]]);
    // A listener on a higher level does not hide.
    let medium = at(Level::Medium, PressureMode::Default);
    assert_eq!(ours(&[vec![medium], vec![low]], Level::Low), [vec![false], vec![true]]);
    // Any mode hides.
    for mode in PressureMode::ALL {
        assert_eq!(ours(&[vec![at(Level::Low, mode)], vec![low]], Level::Low), [vec![true], vec![false]]);
    }
    // What was signalled below is signalled above to hierarchy listeners only.
    let above = vec![low, at(Level::Low, PressureMode::Hierarchy), at(Level::Low, PressureMode::Local)];
    assert_eq!(ours(&[vec![low], above], Level::Critical)[1], [false, true, false]);
}

fn listener() -> impl Strategy<Value = Pressure> {
    (prop::sample::select(&Level::ALL[..]), prop::sample::select(&PressureMode::ALL[..]))
        .prop_map(|(level, mode)| Pressure { level, mode })
}

fn likely() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        6 => prop::sample::select(vec!["low", "medium", "critical", "default", "hierarchy", "local"]),
        1 => prop::sample::select(vec!["", "LOW", " ", "loc", "\0", "x"]),
    ];
    vec(piece, 0..4).prop_map(|pieces| pieces.join(",").into_bytes())
}

/// The kernel's words, each compared in full. `None` is EINVAL.
fn naive_parse(args: &[u8]) -> Option<Pressure> {
    let mut text = args.to_vec();
    text.truncate(args.iter().position(|byte| *byte == 0).unwrap_or(args.len()));
    text.truncate(19);
    let parts: Vec<&[u8]> = text.split(|byte| *byte == b',').collect();
    let level = match parts[0] {
        b"low" => Level::Low,
        b"medium" => Level::Medium,
        b"critical" => Level::Critical,
        _ => return None,
    };
    let mode = match parts.get(1) {
        None | Some(&b"default") => PressureMode::Default,
        Some(&b"hierarchy") => PressureMode::Hierarchy,
        Some(&b"local") => PressureMode::Local,
        Some(_) => return None,
    };
    Some(Pressure { level, mode })
}

proptest! {
    #[test]
    fn arguments_are_decided_as_documented(
        args in prop_oneof![likely(), vec(any::<u8>(), 0..30)],
    ) {
        prop_assert_eq!(parse(&args).ok(), naive_parse(&args));
    }

    #[test]
    fn signals_are_as_the_kernel_documents(
        groups in vec(vec(listener(), 0..4), 1..6),
        level in prop::sample::select(&Level::ALL[..]),
    ) {
        prop_assert_eq!(ours(&groups, level), naive(&groups, level));
    }
}
