//! Spellings, and what becomes of each: one table for the tests of every frontend.

use super::{At, Pages, Threshold};

/// Spellings the kernel accepts, and their value in bytes. `-1` is not here: its
/// value depends on the page size, see [`Pages::counter_max`].
pub const ACCEPTED: &[(&str, u64)] = &[
    ("", 0),
    ("0", 0),
    ("4096", 4096),
    ("4K", 4096),
    ("4k", 4096),
    ("0x1000", 4096),
    ("0X1000", 4096),
    ("010000", 4096),
    ("18446744073709555712", 4096),
    ("010", 8),
    ("00", 0),
    ("0K", 0),
    ("0E", 0),
    ("K", 0),
    ("e", 0),
    ("0x1E", 30),
    ("0x1e", 30),
    ("0xEE", 238),
    ("0x1EK", 30 << 10),
    ("0x10000000000000001", 1),
    ("1M", 1 << 20),
    ("1m", 1 << 20),
    ("010M", 8 << 20),
    ("1G", 1 << 30),
    ("1T", 1 << 40),
    ("1P", 1 << 50),
    ("1E", 1 << 60),
    ("15E", 15 << 60),
    ("16E", 0),
    ("17E", 1 << 60),
    ("18446744073709551615", u64::MAX),
    ("18446744073709551616", 0),
];

/// Spellings the kernel refuses with EINVAL.
pub const REFUSED: &[&str] = &[
    "-2", "-", "--1", "-1 ", " -1", "-10", "-1K", "-0", "+1", "max", "1KB", "1KK", "1B", "1.5M", "1 M",
    " 1M", "1M ", "5M 6M", "1M,", "0x", "0X", "0xg", "0xK", "00x1", "x1", "1x1", "08", "09", "018", "1_000",
    "1a", "0x1EB5G0", "1EE", "\t1", "1\n",
];

const fn both(at: At, hysteresis: u64) -> Threshold {
    Threshold { at, up: true, down: true, hysteresis: Pages(hysteresis) }
}

const fn only_up(at: At, hysteresis: u64) -> Threshold {
    Threshold { at, up: true, down: false, hysteresis: Pages(hysteresis) }
}

const fn only_down(at: At, hysteresis: u64) -> Threshold {
    Threshold { at, up: false, down: true, hysteresis: Pages(hysteresis) }
}

const fn pages(pages: u64) -> At {
    At::Pages(Pages(pages))
}

/// Spellings that are ours and that the kernel refuses, and what they mean with
/// pages of 4096 bytes.
pub const EXTENDED: &[(&str, Threshold)] = &[
    ("1M,up", only_up(pages(256), 0)),
    ("1M,down", only_down(pages(256), 0)),
    ("1M,up,down", both(pages(256), 0)),
    ("1M,down,up", both(pages(256), 0)),
    ("0x100000,up", only_up(pages(256), 0)),
    ("-1,up", only_up(At::Pages(Pages::counter_max(4096)), 0)),
    (",up", only_up(pages(0), 0)),
    ("K,down", only_down(pages(0), 0)),
    ("1M,hysteresis=64K", both(pages(256), 16)),
    ("1M,hysteresis=0x10000", both(pages(256), 16)),
    ("1M,hysteresis=8191", both(pages(256), 1)),
    ("1M,hysteresis=4095", both(pages(256), 0)),
    ("1M,hysteresis=0", both(pages(256), 0)),
    ("1M,hysteresis=2M", both(pages(256), 512)),
    ("1M,hysteresis=8E", both(pages(256), Pages::counter_max(4096).0)),
    ("1M,up,hysteresis=64K", only_up(pages(256), 16)),
    ("1M,hysteresis=64K,down", only_down(pages(256), 16)),
    ("1M,down,hysteresis=64k,up", both(pages(256), 16)),
    ("0%", both(At::Percent(0), 0)),
    ("0.0%", both(At::Percent(0), 0)),
    ("0.01%", both(At::Percent(1), 0)),
    ("0.5%", both(At::Percent(50), 0)),
    ("1%", both(At::Percent(100), 0)),
    ("80%", both(At::Percent(8_000), 0)),
    ("99.9%", both(At::Percent(9_990), 0)),
    ("99.99%", both(At::Percent(9_999), 0)),
    ("100%", both(At::Percent(10_000), 0)),
    ("100.00%", both(At::Percent(10_000), 0)),
    ("80%,up", only_up(At::Percent(8_000), 0)),
    ("80%,hysteresis=1M,down", only_down(At::Percent(8_000), 256)),
];

/// Spellings that come near to [`EXTENDED`], and are refused with EINVAL.
pub const EXTENDED_REFUSED: &[&str] = &[
    ",",
    "1M,",
    "1M,,up",
    "1M,up,",
    "1M,UP",
    "1M,Up",
    "1M,u",
    "1M,upp",
    "1M, up",
    "1M,up down",
    "1M ,up",
    "1M,up,up",
    "1M,down,down",
    "1M,up,down,up",
    "1M,2M",
    "1M,-1",
    "1M;up",
    "1M,both",
    "1M,up=1",
    "1M,hysteresis",
    "1M,hysteresis=",
    "1M,hysteresis=-1",
    "1M,hysteresis=K",
    "1M,hysteresis=1KB",
    "1M,hysteresis=10%",
    "1M,hysteresis= 1K",
    "1M,hysteresis=1K,hysteresis=1K",
    "1M,HYSTERESIS=1K",
    "1M,hysteresis=08",
    "1KB,up",
    "0x,up",
    "-2,up",
    "up",
    "up,1M",
    "hysteresis=1K",
    "%",
    "%50",
    "50%%",
    "50%x",
    "50 %",
    "-1%",
    "-0%",
    "+1%",
    "101%",
    "100.01%",
    "100.1%",
    "1000%",
    "010%",
    "00%",
    "080%",
    "0x10%",
    "1K%",
    ".5%",
    "5.%",
    "5.123%",
    "5.5.5%",
    "5,5%",
    "5.x%",
    "50.5",
    "1e1%",
    "50%,",
    "50%up",
    "50%,50%",
];
