//! `memparse` and `simple_strtoull` of the kernel, identical in Linux 5.15 to 7.2.

/// `memparse`: a number, then at most one suffix letter; and what follows.
pub(super) fn memparse(text: &[u8]) -> (u64, &[u8]) {
    let (value, rest) = number(text);
    let [letter, after @ ..] = rest else {
        return (value, rest);
    };
    let shift = match letter.to_ascii_uppercase() {
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        b'T' => 40,
        b'P' => 50,
        b'E' => 60,
        _ => return (value, rest),
    };
    // Bits shifted out are lost, as in C.
    (value << shift, after)
}

/// `simple_strtoull` base 0: the wrapped value, and what follows the digits.
fn number(text: &[u8]) -> (u64, &[u8]) {
    let (base, mut rest) = match text {
        [b'0', b'x' | b'X', digits @ ..] if digits.first().is_some_and(u8::is_ascii_hexdigit) => (16, digits),
        [b'0', ..] => (8, text),
        _ => (10, text),
    };
    let mut value = 0_u64;
    while let [digit, tail @ ..] = rest
        && let Some(digit) = char::from(*digit).to_digit(base)
    {
        value = value.wrapping_mul(u64::from(base)).wrapping_add(u64::from(digit));
        rest = tail;
    }
    (value, rest)
}
