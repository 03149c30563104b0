//! The project's own part of the grammar: the tables, a second parser to compare with, and
//! that nothing the kernel accepts changed its meaning.

use proptest::prelude::*;

use super::{PAGE, likely, naive};
use crate::{
    grammar::threshold::{
        ACCEPTED, At, EXTENDED, EXTENDED_REFUSED, HUNDRED_PERCENT, Pages, REFUSED, Threshold, ThresholdError,
        parse, parse_threshold, percent_of,
    },
    protocol::crossing::Direction,
};

#[test]
fn accepts_what_the_kernel_accepts_and_means_the_same() {
    for spelling in ACCEPTED.iter().map(|(spelling, _)| *spelling).chain(["-1"]) {
        let want = parse_threshold(spelling.as_bytes(), PAGE).map(Threshold::plain);
        assert_eq!(parse(spelling.as_bytes(), PAGE), want, "{spelling:?}");
        assert!(want.is_ok());
    }
}

#[test]
fn refuses_what_the_kernel_refuses() {
    for &spelling in REFUSED {
        let err = parse(spelling.as_bytes(), PAGE).expect_err(spelling);
        assert_eq!(err.errno(), 22);
    }
}

#[test]
fn accepts_what_is_ours_and_the_kernel_refuses_it() {
    for &(spelling, want) in EXTENDED {
        assert_eq!(parse(spelling.as_bytes(), PAGE), Ok(want), "{spelling:?}");
        let nul = format!("{spelling}\0,junk");
        assert_eq!(parse(nul.as_bytes(), PAGE), Ok(want), "{nul:?}");
        assert!(parse_threshold(spelling.as_bytes(), PAGE).is_err(), "{spelling:?}");
    }
}

#[test]
fn refuses_what_comes_near() {
    for &spelling in EXTENDED_REFUSED {
        let err = parse(spelling.as_bytes(), PAGE).expect_err(spelling);
        assert_eq!(err.errno(), 22);
        assert!(parse_threshold(spelling.as_bytes(), PAGE).is_err(), "{spelling:?}");
    }
}

#[test]
fn errors_name_the_part_and_the_place() {
    let refused: &[(&str, ThresholdError)] = &[
        ("1KB,up", ThresholdError::Trailing { at: 2, found: b'B' }),
        ("up", ThresholdError::Trailing { at: 0, found: b'u' }),
        ("%", ThresholdError::Percent { at: 0 }),
        ("50%x", ThresholdError::Percent { at: 3 }),
        ("50 %", ThresholdError::Percent { at: 2 }),
        ("101%", ThresholdError::Percent { at: 0 }),
        ("010%", ThresholdError::Percent { at: 0 }),
        ("1000%", ThresholdError::Percent { at: 0 }),
        ("5.%", ThresholdError::Percent { at: 2 }),
        ("5.123%", ThresholdError::Percent { at: 4 }),
        ("5.1%2%", ThresholdError::Percent { at: 4 }),
        ("1M,", ThresholdError::Option { at: 3 }),
        ("1M,,up", ThresholdError::Option { at: 3 }),
        ("1M,up,UP", ThresholdError::Option { at: 6 }),
        ("1M,up,up", ThresholdError::Repeated { at: 6 }),
        ("1M,hysteresis=1,hysteresis=2", ThresholdError::Repeated { at: 16 }),
        ("1M,hysteresis=", ThresholdError::Size { at: 14 }),
        ("1M,hysteresis=-1", ThresholdError::Size { at: 14 }),
        ("1M,hysteresis=1KB", ThresholdError::Size { at: 16 }),
    ];
    for &(spelling, want) in refused {
        assert_eq!(parse(spelling.as_bytes(), PAGE), Err(want), "{spelling:?}");
    }
    let message = |text: &str| parse(text.as_bytes(), PAGE).expect_err("refused").to_string();
    assert!(message("1M,low").contains("at offset 3; expected up, down or hysteresis=SIZE"));
    assert!(message("101%").contains("at offset 0; expected 0% to 100%"));
    assert!(message("1,up,up").contains("at offset 5; expected each option at most once"));
    assert!(message("1,hysteresis=K").contains("at offset 13; expected hysteresis= and an integer"));
}

#[test]
fn a_page_size_of_zero_is_refused_for_every_spelling() {
    for text in ["1M", "50%", "50%,hysteresis=1M", "1M,up"] {
        assert_eq!(parse(text.as_bytes(), 0), Err(ThresholdError::PageSize), "{text}");
    }
}

#[test]
fn directions_are_reported_as_requested() {
    let directions = |text: &str| {
        let threshold = parse(text.as_bytes(), PAGE).expect(text);
        (threshold.reports(Direction::Up), threshold.reports(Direction::Down))
    };
    assert_eq!(directions("1M"), (true, true));
    assert_eq!(directions("1M,up"), (true, false));
    assert_eq!(directions("1M,down"), (false, true));
    assert_eq!(directions("1M,down,up"), (true, true));
}

#[test]
fn percentages_of_a_limit() {
    assert_eq!(percent_of(1000, 8_000), 800);
    assert_eq!(percent_of(999, 5_000), 499);
    assert_eq!(percent_of(99, 1), 0);
    assert_eq!(percent_of(0, HUNDRED_PERCENT), 0);
    assert_eq!(percent_of(u64::MAX, HUNDRED_PERCENT), u64::MAX);
    assert_eq!(percent_of(u64::MAX, 0), 0);
    assert_eq!(percent_of(1000, u32::MAX), 1000);
}

/// The prose of the grammar read a second time, on whole strings. `None` is
/// EINVAL. Takes a page size that is not 0.
fn naive_extended(args: &[u8], page_size: u64) -> Option<Threshold> {
    let end = args.iter().position(|&byte| byte == 0).unwrap_or(args.len());
    let parts: Vec<&[u8]> = args[..end].split(|&byte| byte == b',').collect();
    let at = match parts[0].strip_suffix(b"%") {
        Some(number) => {
            // All that there is, spelled out: no arithmetic that could err alike.
            let number = std::str::from_utf8(number).ok()?;
            let found = (0..=HUNDRED_PERCENT).find(|hundredths| {
                let (whole, part) = (hundredths / 100, hundredths % 100);
                number == format!("{whole}.{part:02}")
                    || part % 10 == 0 && number == format!("{whole}.{}", part / 10)
                    || part == 0 && number == whole.to_string()
            });
            At::Percent(found?)
        }
        None => At::Pages(Pages(naive(parts[0], page_size)?)),
    };
    let count = |name: &[u8]| parts[1..].iter().filter(|part| **part == name).count();
    let (ups, downs) = (count(b"up"), count(b"down"));
    let sizes: Vec<&[u8]> = parts[1..].iter().filter_map(|part| part.strip_prefix(b"hysteresis=")).collect();
    if ups > 1 || downs > 1 || sizes.len() > 1 || ups + downs + sizes.len() != parts.len() - 1 {
        return None;
    }
    let hysteresis = match sizes.first() {
        None => 0,
        Some(size) if size.first().is_some_and(u8::is_ascii_digit) => naive(size, page_size)?,
        Some(_) => return None,
    };
    Some(Threshold {
        at,
        up: ups == 1 || downs == 0,
        down: downs == 1 || ups == 0,
        hysteresis: Pages(hysteresis),
    })
}

/// Text made of the grammar's pieces, right and wrong.
fn likely_extended() -> impl Strategy<Value = Vec<u8>> {
    let percent =
        prop_oneof!["(0|[1-9][0-9]?|100)(\\.[0-9]{1,2})?%", "[0-9]{0,4}\\.?[0-9]{0,3}%{0,2}[0-9a-z]?",]
            .prop_map(String::into_bytes);
    let level = prop_oneof![likely(), percent, Just(b"-1".to_vec())];
    let size = prop_oneof![Just(b"64K".to_vec()), likely()].prop_map(|size| {
        let mut option = b"hysteresis=".to_vec();
        option.extend(size);
        option
    });
    let option = prop_oneof![
        4 => Just(b"up".to_vec()),
        4 => Just(b"down".to_vec()),
        4 => size,
        1 => "[a-z=, ]{0,3}".prop_map(String::into_bytes),
    ];
    (level, prop::collection::vec(option, 0..4)).prop_map(|(mut text, options)| {
        for option in options {
            text.push(b',');
            text.extend(option);
        }
        text
    })
}

const PAGE_SIZES: &[u64] = &[1, 4096, 16384, 65536];

proptest! {
    #[test]
    fn extended_bytes_are_decided_as_documented(
        args in likely_extended(),
        page_size in prop::sample::select(PAGE_SIZES),
    ) {
        prop_assert_eq!(parse(&args, page_size).ok(), naive_extended(&args, page_size));
    }

    #[test]
    fn any_bytes_are_decided_as_documented(
        args in prop::collection::vec(any::<u8>(), 0..40),
        page_size in 1..=u64::MAX,
    ) {
        prop_assert_eq!(parse(&args, page_size).ok(), naive_extended(&args, page_size));
    }

    /// Text that the kernel accepts holds neither `,` nor `%`, and means the same;
    /// where the two disagree, the text holds one of them.
    #[test]
    fn nothing_the_kernel_accepts_changed_its_meaning(
        args in prop_oneof![likely(), likely_extended()],
        page_size in prop::sample::select(PAGE_SIZES),
    ) {
        let text = args.split(|&byte| byte == 0).next().unwrap_or_default();
        let ours = text.iter().any(|byte| b",%".contains(byte));
        let kernel = parse_threshold(&args, page_size);
        let got = parse(&args, page_size);
        if ours {
            prop_assert!(kernel.is_err());
        } else {
            prop_assert_eq!(got, kernel.map(Threshold::plain));
        }
    }

    #[test]
    fn values_stay_in_range_and_errors_in_the_text(
        args in likely_extended(),
        page_size in prop::sample::select(PAGE_SIZES),
    ) {
        match parse(&args, page_size) {
            Ok(Threshold { at, up, down, hysteresis }) => {
                prop_assert!(up || down);
                prop_assert!(hysteresis <= Pages::counter_max(page_size));
                match at {
                    At::Pages(pages) => prop_assert!(pages <= Pages::counter_max(page_size)),
                    At::Percent(percent) => prop_assert!(percent <= HUNDRED_PERCENT),
                }
            }
            Err(
                ThresholdError::Percent { at } | ThresholdError::Option { at }
                | ThresholdError::Size { at } | ThresholdError::Repeated { at },
            ) => prop_assert!(at <= args.len()),
            Err(ThresholdError::Trailing { at, found }) => prop_assert_eq!(args.get(at), Some(&found)),
            Err(err) => prop_assert!(false, "{:?}", err),
        }
    }

    #[test]
    fn a_percentage_is_floored_and_exact(limit in any::<u64>(), percent in 0..=HUNDRED_PERCENT) {
        let exact = u128::from(limit) * u128::from(percent) / 10_000;
        prop_assert_eq!(u128::from(percent_of(limit, percent)), exact);
    }
}
