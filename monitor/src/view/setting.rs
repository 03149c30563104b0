//! Answers to writes that would set something. The view sets nothing: `EPERM` where a v1 kernel
//! would take the text, and the kernel's errno where it would not.

use monitor_common::grammar::threshold::parse_threshold;
use nix::errno::Errno;

use crate::{cgroup::v1_file::V1File, kernel::page_size};

/// Checks a write to a file that takes no registrations. `Ok`: what it would set holds already.
///
/// # Errors
/// `EPERM` for a valid text. Otherwise `EINVAL`, and `ERANGE` for a number that is too large.
pub fn check(file: V1File, is_root: bool, text: &[u8]) -> Result<(), Errno> {
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    match file {
        // `mem_cgroup_write`, `mem_cgroup_force_empty_write`, `mem_cgroup_oom_control_write`.
        V1File::Limit
        | V1File::MemswLimit
        | V1File::KmemLimit
        | V1File::TcpLimit
        | V1File::ForceEmpty
        | V1File::OomControl
            if is_root =>
        {
            return Err(Errno::EINVAL);
        }
        V1File::Limit | V1File::MemswLimit | V1File::KmemLimit | V1File::TcpLimit | V1File::SoftLimit => {
            parse_threshold(text.trim_ascii(), page_size()).map_err(|_| Errno::EINVAL)?;
        }
        // `mem_cgroup_reset` and these look at no number.
        V1File::MaxUsage
        | V1File::MemswMaxUsage
        | V1File::KmemMaxUsage
        | V1File::TcpMaxUsage
        | V1File::FailCount
        | V1File::MemswFailCount
        | V1File::KmemFailCount
        | V1File::TcpFailCount
        | V1File::ForceEmpty
        | V1File::ReleaseAgent => {}
        V1File::UseHierarchy => {
            return number(text)?.eq(&1).then_some(()).ok_or(Errno::EINVAL);
        }
        V1File::OomControl => at_most(text, 1)?,
        V1File::MoveCharge => at_most(text, 3)?,
        V1File::Swappiness => at_most(text, 200)?,
        V1File::NotifyOnRelease | V1File::CloneChildren => at_most(text, u64::MAX)?,
        V1File::Procs | V1File::Tasks => {
            let id = number(text.trim_ascii()).map_err(|_| Errno::EINVAL)?;
            i32::try_from(id).map_err(|_| Errno::EINVAL)?;
        }
        V1File::EventControl
        | V1File::Usage
        | V1File::MemswUsage
        | V1File::KmemUsage
        | V1File::TcpUsage
        | V1File::WorkingSet
        | V1File::Anon
        | V1File::PressureLevel
        | V1File::Stat
        | V1File::NumaStat
        | V1File::SaneBehavior => return Err(Errno::EINVAL),
    }
    Err(Errno::EPERM)
}

fn at_most(text: &[u8], largest: u64) -> Result<(), Errno> {
    if number(text)? <= largest { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Parses a number as `kstrtoull` with base 0.
fn number(text: &[u8]) -> Result<u64, Errno> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let text = text.strip_prefix(b"+").unwrap_or(text);
    let (base, digits) = match text {
        [b'0', b'x' | b'X', digits @ ..] => (16, digits),
        [b'0', digits @ ..] if !digits.is_empty() => (8, digits),
        digits => (10, digits),
    };
    if digits.is_empty() {
        return Err(Errno::EINVAL);
    }
    let mut number = Some(0_u64);
    for byte in digits {
        let digit = char::from(*byte).to_digit(base).ok_or(Errno::EINVAL)?;
        number = number.and_then(|number| number.checked_mul(base.into())?.checked_add(digit.into()));
    }
    number.ok_or(Errno::ERANGE)
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::{check, number};
    use crate::cgroup::v1_file::V1File;

    #[test]
    fn a_valid_text_is_not_permitted_and_a_bad_one_is_invalid() {
        let of = |file, text: &str| check(file, false, text.as_bytes()).err();
        for text in ["-1", "0", "4095", "1k", "0x10", " 1", "1\n", "1G\0", "99999999999999999999"] {
            assert_eq!(of(V1File::Limit, text), Some(Errno::EPERM), "{text:?}");
        }
        for text in ["x", "-2", "1 x", "max", "1.5M"] {
            assert_eq!(of(V1File::Limit, text), Some(Errno::EINVAL), "{text:?}");
        }
        assert_eq!(of(V1File::MaxUsage, "whatever"), Some(Errno::EPERM));
        assert_eq!(of(V1File::Swappiness, "200"), Some(Errno::EPERM));
        assert_eq!(of(V1File::Swappiness, "201"), Some(Errno::EINVAL));
        assert_eq!(of(V1File::Procs, " 4095 "), Some(Errno::EPERM));
        assert_eq!(of(V1File::Procs, "99999999999"), Some(Errno::EINVAL));
        assert_eq!(of(V1File::UseHierarchy, "1\n"), None);
        assert_eq!(of(V1File::UseHierarchy, "0"), Some(Errno::EINVAL));
        assert_eq!(of(V1File::Usage, "0"), Some(Errno::EINVAL));
        assert_eq!(check(V1File::Limit, true, b"1"), Err(Errno::EINVAL));
        assert_eq!(check(V1File::SoftLimit, true, b"1"), Err(Errno::EPERM));
    }

    #[test]
    fn numbers_are_the_kernels() {
        for (text, value) in
            [("0", 0), ("010", 8), ("0x1f\n", 31), ("+7", 7), ("18446744073709551615", u64::MAX)]
        {
            assert_eq!(number(text.as_bytes()), Ok(value), "{text:?}");
        }
        for text in ["", "\n", "0x", "08", " 1", "1 ", "-1", "1k", "++1", "1\n\n"] {
            assert_eq!(number(text.as_bytes()), Err(Errno::EINVAL), "{text:?}");
        }
        assert_eq!(number(b"18446744073709551616"), Err(Errno::ERANGE));
        assert_eq!(number(b"99999999999999999999x"), Err(Errno::EINVAL));
    }
}
