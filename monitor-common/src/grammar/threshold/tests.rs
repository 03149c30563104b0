//! The table of spellings, and a second parser to compare with.

use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4096;

/// The kernel's LONG_MAX / 4096.
const MAX: u64 = 2_251_799_813_685_247;

#[test]
fn accepts_what_the_kernel_accepts() {
    for &(spelling, bytes) in ACCEPTED {
        let got = parse_threshold(spelling.as_bytes(), PAGE);
        assert_eq!(got, Ok(Pages((bytes / PAGE).min(MAX))), "{spelling:?}");
        // One-byte pages show the bytes, up to the clamp.
        let got = parse_threshold(spelling.as_bytes(), 1);
        let clamped = bytes.min(i64::MAX.unsigned_abs());
        assert_eq!(got, Ok(Pages(clamped)), "{spelling:?} in bytes");
    }
}

#[test]
fn refuses_what_the_kernel_refuses() {
    for &spelling in REFUSED {
        let err = parse_threshold(spelling.as_bytes(), PAGE).expect_err(spelling);
        assert_eq!(err.errno(), 22);
        let ThresholdError::Trailing { at, found } = err else {
            panic!("{spelling:?}: {err:?}");
        };
        assert_eq!(spelling.as_bytes().get(at), Some(&found), "{spelling:?}");
    }
}

#[test]
fn minus_one_is_the_counter_maximum() {
    assert_eq!(parse_threshold(b"-1", PAGE), Ok(Pages(MAX)));
    assert_eq!(parse_threshold(b"-1\0junk", PAGE), Ok(Pages(MAX)));
    assert_eq!(Pages::counter_max(PAGE), Pages(MAX));
    assert_eq!(parse_threshold(b"-1", 65536), Ok(Pages::counter_max(65536)), "64 KiB pages");
}

#[test]
fn pages_are_floored_and_clamped() {
    let pages = |text: &str| parse_threshold(text.as_bytes(), PAGE).map(|pages| pages.0);
    assert_eq!(pages("4095"), Ok(0));
    assert_eq!(pages("8191"), Ok(1));
    assert_eq!(pages("9223372036854775807"), Ok(MAX));
    assert_eq!(pages("9223372036854771711"), Ok(MAX - 1));
    assert_eq!(pages("8E"), Ok(MAX));
    assert_eq!(pages("18446744073709551615"), Ok(MAX));
}

#[test]
fn messages_point_at_the_byte() {
    let message = |text: &[u8]| parse_threshold(text, PAGE).expect_err("refused").to_string();
    assert!(message(b"1KB").starts_with("threshold: wrong byte 'B' at offset 2; expected -1"));
    assert!(message(b"0x").contains("'x' at offset 1"));
    assert!(message(b"-2").contains("'-' at offset 0"));
    assert!(message(b"1\xff").contains("'\\xff'"));
}

#[test]
fn a_page_size_of_zero_is_refused() {
    assert_eq!(parse_threshold(b"1", 0), Err(ThresholdError::PageSize));
    assert_eq!(Pages::counter_max(0), Pages::counter_max(1));
}

/// A second reading of the same prose: index by index, with exact arithmetic.
/// `None` is EINVAL.
fn naive(args: &[u8], page_size: u64) -> Option<u64> {
    const WRAP: u128 = 1 << 64;
    let mut text: Vec<u8> = args.to_vec();
    if let Some(nul) = args.iter().position(|&byte| byte == 0) {
        text.truncate(nul);
    }
    let limit = u128::try_from(i64::MAX).expect("positive") / u128::from(page_size);
    if text == [0x2d, 0x31] {
        return u64::try_from(limit).ok();
    }
    let at = |i: usize| text.get(i).copied().unwrap_or(0);
    let digit_of = |byte: u8| match byte {
        0x30..=0x39 => u128::from(byte) - 0x30,
        0x41..=0x46 => u128::from(byte) - 0x41 + 10,
        0x61..=0x66 => u128::from(byte) - 0x61 + 10,
        _ => 99,
    };
    let mut i = 0;
    let mut base = 10;
    if at(0) == b'0' {
        base = 8;
        if (at(1) == b'x' || at(1) == b'X') && digit_of(at(2)) < 16 {
            base = 16;
            i = 2;
        }
    }
    let mut value = 0_u128;
    while digit_of(at(i)) < base {
        value = (value * base + digit_of(at(i))) % WRAP;
        i += 1;
    }
    let letters = ["kK", "mM", "gG", "tT", "pP", "eE"];
    if i < text.len()
        && let Some(power) = letters.iter().position(|pair| pair.as_bytes().contains(&at(i)))
    {
        for _ in 0..=power {
            value = value * 1024 % WRAP;
        }
        i += 1;
    }
    if i != text.len() {
        return None;
    }
    u64::try_from((value / u128::from(page_size)).min(limit)).ok()
}

/// Bytes that matter to the grammar, so that random text often parses.
fn likely() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        8 => b'0'..=b'9',
        2 => prop::sample::select(b"xX0aAfF".to_vec()),
        2 => prop::sample::select(b"kKmMgGtTpPeE".to_vec()),
        1 => prop::sample::select(b"\0 -,.\xa0".to_vec()),
    ];
    let mostly_digits = "(0|0x|0X|)[0-9]{0,24}[kKmMgGtTpPeE]?".prop_map(String::into_bytes);
    prop_oneof![prop::collection::vec(byte, 0..6), mostly_digits]
}

proptest! {
    #[test]
    fn any_bytes_are_decided_as_documented(
        args in prop::collection::vec(any::<u8>(), 0..64),
        page_size in 1..=u64::MAX,
    ) {
        prop_assert_eq!(parse_threshold(&args, page_size).ok().map(|p| p.0), naive(&args, page_size));
    }

    #[test]
    fn likely_bytes_are_decided_as_documented(
        args in likely(),
        page_size in prop::sample::select(&[1, 4096, 16384, 65536][..]),
    ) {
        prop_assert_eq!(parse_threshold(&args, page_size).ok().map(|p| p.0), naive(&args, page_size));
    }

    #[test]
    fn an_error_points_at_the_byte_it_names(args in likely()) {
        if let Err(ThresholdError::Trailing { at, found }) = parse_threshold(&args, PAGE) {
            prop_assert_eq!(args.get(at), Some(&found));
        }
    }

    #[test]
    fn every_base_and_suffix_round_trips(bytes in any::<u64>(), small in 0..1024_u64) {
        let want = Ok(Pages((bytes / PAGE).min(MAX)));
        for spelling in [format!("{bytes}"), format!("{bytes:#x}"), format!("0{bytes:o}")] {
            prop_assert_eq!(parse_threshold(spelling.as_bytes(), PAGE), want, "{}", spelling);
        }
        for (letter, shift) in [("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50)] {
            let want = Ok(Pages(((small << shift) / PAGE).min(MAX)));
            let upper = format!("{small}{letter}");
            prop_assert_eq!(parse_threshold(upper.as_bytes(), PAGE), want, "{}", upper);
            let lower = upper.to_lowercase();
            prop_assert_eq!(parse_threshold(lower.as_bytes(), PAGE), want, "{}", lower);
        }
    }
}

mod extended;
