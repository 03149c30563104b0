//! Examples of the kernel's behaviour, and a second parser to compare with.

use proptest::prelude::*;

use super::*;

/// (line, event fd, control fd, args), each seen on a cgroup v1 kernel or
/// following from its source.
const ACCEPTED: &[(&[u8], u32, u32, &[u8])] = &[
    (b"4 5 1M", 4, 5, b"1M"),
    (b"4 5 1M\n", 4, 5, b"1M"),
    (b"4 5 1M\0", 4, 5, b"1M"),
    (b"4 5 1M\n\0", 4, 5, b"1M"),
    (b"4 5 1M\0 junk \xff", 4, 5, b"1M"),
    (b" \t\n\x0b\x0c\r\xa04 5 1M \t\n\x0b\x0c\r\xa0", 4, 5, b"1M"),
    (b"4 5", 4, 5, b""),
    (b"4 5 ", 4, 5, b""),
    (b"4 5\0 1M", 4, 5, b""),
    (b"0004 5", 4, 5, b""),
    (b"4 0005", 4, 5, b""),
    (b"0 0", 0, 0, b""),
    (b"4294967295 5", u32::MAX, 5, b""),
    (b"4294967300 5", 4, 5, b""),
    (b"18446744073709551620 5", 4, 5, b""),
    (b"4 18446744073709551620 x", 4, 4, b"x"),
    (b"4 4294967301", 4, 5, b""),
    (b"4  5 1M", 4, 0, b"5 1M"),
    (b"4  5", 4, 0, b"5"),
    (b"4   5", 4, 0, b" 5"),
    (b"4 5  1M", 4, 5, b" 1M"),
    (b"4 6 whatever foo", 4, 6, b"whatever foo"),
    (b"4 5 5M 6M", 4, 5, b"5M 6M"),
    (b"4 5 \x80\xff", 4, 5, b"\x80\xff"),
    (b"4 5 low,local", 4, 5, b"low,local"),
    (b"4 5 -1", 4, 5, b"-1"),
];

fn event_fd(at: usize, found: u8) -> LineError {
    LineError::EventFd { at, found }
}

fn control_fd(at: usize, found: u8) -> LineError {
    LineError::ControlFd { at, found }
}

#[test]
fn accepts_what_the_kernel_accepts() {
    for &(line, event_fd, control_fd, args) in ACCEPTED {
        let want = Line { event_fd, control_fd, args };
        assert_eq!(parse(line), Ok(want), "{}", line.escape_ascii());
    }
}

#[test]
fn refuses_what_the_kernel_refuses() {
    let refused: &[(&[u8], LineError)] = &[
        (b"", LineError::Empty),
        (b"\n", LineError::Blank),
        (b"\0", LineError::Blank),
        (b"\x004 5 1M", LineError::Blank),
        (b" \xa0\t", LineError::Blank),
        (b"4", LineError::NoControlFd { at: 1 }),
        (b"4 ", LineError::NoControlFd { at: 1 }),
        (b" 42\n", LineError::NoControlFd { at: 3 }),
        (b"4\0 5", LineError::NoControlFd { at: 1 }),
        (b"-1 5", event_fd(0, b'-')),
        (b"+4 5", event_fd(0, b'+')),
        (b"0x4 5", event_fd(1, b'x')),
        (b"4x 5", event_fd(1, b'x')),
        (b"4\t5 1M", event_fd(1, b'\t')),
        (b"4,5,1M", event_fd(1, b',')),
        (b"4\xa05", event_fd(1, 0xa0)),
        (b"  4\n5", event_fd(3, b'\n')),
        (b"4 -1", control_fd(2, b'-')),
        (b"4 +5", control_fd(2, b'+')),
        (b"4 0x5", control_fd(3, b'x')),
        (b"4 5x", control_fd(3, b'x')),
        (b"4 5\t1M", control_fd(3, b'\t')),
        (b"4 5,1M", control_fd(3, b',')),
        (b"4 \t5", control_fd(2, b'\t')),
        (b" 4 5\xa01M", control_fd(4, 0xa0)),
    ];
    for &(line, want) in refused {
        assert_eq!(parse(line), Err(want), "{}", line.escape_ascii());
        assert_eq!(want.errno(), 22);
    }
}

#[test]
fn length_is_checked_before_content() {
    let mut line = vec![b' '; MAX_LINE];
    line[..3].copy_from_slice(b"4 5");
    assert!(parse(&line).is_ok());
    line.push(b' ');
    let err = parse(&line).expect_err("4097 bytes");
    assert_eq!(err, LineError::TooLong { len: 4097 });
    assert_eq!(err.errno(), 7);
}

#[test]
fn messages_name_the_part_and_the_place() {
    let message = |line: &[u8]| parse(line).expect_err("refused").to_string();
    assert_eq!(
        message(b"4\t5"),
        "event fd: wrong byte '\\t' at offset 1; expected decimal digits, then one space"
    );
    assert!(message(b"4 5x").starts_with("control fd: wrong byte 'x' at offset 3;"));
    assert!(message(b"4").contains("expected one space and the control fd"));
    assert!(message(&[b'1'; 5000]).contains("5000 bytes"));
}

/// A second reading of the same prose: index by index, with exact arithmetic.
/// `None` is EINVAL.
fn naive(line: &[u8]) -> Option<(u32, u32, Vec<u8>)> {
    let white = [0x20, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0xa0];
    let mut text = Vec::new();
    for &byte in line {
        if byte == 0 {
            break;
        }
        text.push(byte);
    }
    while text.last().is_some_and(|byte| white.contains(byte)) {
        text.pop();
    }
    while text.first().is_some_and(|byte| white.contains(byte)) {
        text.remove(0);
    }
    let number = |from: usize| {
        let mut value = 0_u128;
        let mut i = from;
        while i < text.len() && text[i].is_ascii_digit() {
            value = (value * 10 + u128::from(text[i]) - 48) % (1 << 64);
            i += 1;
        }
        (u32::try_from(value % (1 << 32)).expect("32 bits"), i)
    };
    let (event_fd, i) = number(0);
    if i == text.len() || text[i] != 0x20 {
        return None;
    }
    let (control_fd, j) = number(i + 1);
    if j == text.len() {
        return Some((event_fd, control_fd, Vec::new()));
    }
    (text[j] == 0x20).then(|| (event_fd, control_fd, text[j + 1..].to_vec()))
}

/// Bytes that matter to the grammar, so that random lines often parse.
fn likely() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        8 => b'0'..=b'9',
        6 => Just(b' '),
        2 => prop::sample::select(b"\0\t\n\x0b\x0c\r\xa0+-x,MK".to_vec()),
        1 => any::<u8>(),
    ];
    prop::collection::vec(byte, 0..40)
}

fn compare(line: &[u8]) -> Result<(), TestCaseError> {
    let got = parse(line);
    if line.is_empty() {
        prop_assert_eq!(got, Err(LineError::Empty));
    } else if line.len() > MAX_LINE {
        prop_assert_eq!(got, Err(LineError::TooLong { len: line.len() }));
    } else {
        let got = got.ok().map(|line| (line.event_fd, line.control_fd, line.args.to_vec()));
        prop_assert_eq!(got, naive(line));
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_bytes_are_decided_as_documented(line in prop::collection::vec(any::<u8>(), 0..200)) {
        compare(&line)?;
    }

    #[test]
    fn likely_bytes_are_decided_as_documented(line in likely()) {
        compare(&line)?;
    }

    #[test]
    fn lengths_around_the_limit(len in MAX_LINE - 3..MAX_LINE + 3, byte in any::<u8>()) {
        compare(&vec![byte; len])?;
    }

    #[test]
    fn an_error_points_at_the_byte_it_names(line in likely()) {
        match parse(&line) {
            Err(LineError::EventFd { at, found } | LineError::ControlFd { at, found }) => {
                prop_assert_eq!(line.get(at), Some(&found));
            }
            Err(LineError::NoControlFd { at }) => prop_assert!(at <= line.len()),
            _ => {}
        }
    }

    #[test]
    fn well_formed_lines_round_trip(
        event_fd in any::<u32>(),
        control_fd in any::<u32>(),
        args in "[!-~]([ -~]{0,40}[!-~])?|",
        end in prop::sample::select(vec!["", "\n", "\0", "\n\0", " "]),
    ) {
        let line = format!("{event_fd} {control_fd} {args}{end}");
        let want = Line { event_fd, control_fd, args: args.as_bytes() };
        prop_assert_eq!(parse(line.as_bytes()), Ok(want));
    }
}
