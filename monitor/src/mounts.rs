//! Mount points, from the text of `/proc/self/mountinfo`.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// A mount: one line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Major and minor number of the file system's device.
    pub device: (u32, u32),
    /// Directory of the file system that is mounted: `/`, or another for a bind mount.
    pub root: PathBuf,
    /// Mount point, in this process's view of the tree.
    pub point: PathBuf,
    /// Type of the file system.
    pub kind: String,
    /// Source of the mount; a name that the file system chose.
    pub source: String,
    /// Options of the file system, with commas between them.
    pub options: String,
}

/// This process's mounts, in the order in which they were made.
///
/// # Errors
/// `/proc` is not mounted.
pub fn all() -> Result<Vec<Mount>> {
    let path = "/proc/self/mountinfo";
    // Names are bytes: a name that is not UTF-8 must not hide the others.
    let text = std::fs::read(path).map_err(|error| Error::file("read", path, error))?;
    Ok(parse(&text))
}

/// The topmost mount on `point`.
///
/// # Errors
/// `/proc` is not mounted.
pub fn on(point: &Path) -> Result<Option<Mount>> {
    Ok(all()?.into_iter().rev().find(|mount| mount.point == point))
}

/// Parses the mounts of this text; malformed lines are left out.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

/// Parses `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG...] - KIND SOURCE OPTIONS`.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let device = (device.0.parse().ok()?, device.1.parse().ok()?);
    let (root, point) = (fields.next()?, fields.next()?);
    let path = |text| PathBuf::from(OsString::from_vec(unescape(text)));
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let mut text = || Some(String::from_utf8_lossy(&unescape(rest.next()?)).into_owned());
    let (kind, source, options) = (text()?, text()?, text()?);
    Some(Mount { device, root: path(root), point: path(point), kind, source, options })
}

/// Decodes octal escapes: mountinfo has them for space, tab, newline and backslash.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let code = tail.get(..3).filter(|code| code.iter().all(|digit| (b'0'..b'8').contains(digit)));
        match code {
            Some(code) if *first == b'\\' => {
                let value = code.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                plain.push((value & 0xff) as u8);
                rest = &tail[3..];
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::parse;

    #[test]
    fn lines_with_and_without_tags() {
        let text =
            b"30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 master:1 - cgroup2 cgroup2 rw,nsdelegate\n\
            31 23 0:27 / /a\\040b\\134\\012\xff rw - fuse memcg-monitor rw,user_id=0\n\
            nonsense\n\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].point, Path::new("/sys/fs/cgroup"));
        assert_eq!((mounts[0].device, mounts[0].root.as_path()), ((0, 26), Path::new("/")));
        assert_eq!((mounts[0].kind.as_str(), mounts[0].options.as_str()), ("cgroup2", "rw,nsdelegate"));
        use std::os::unix::ffi::OsStrExt as _;
        assert_eq!(mounts[1].point.as_os_str().as_bytes(), b"/a b\\\n\xff");
        assert_eq!((mounts[1].kind.as_str(), mounts[1].source.as_str()), ("fuse", "memcg-monitor"));
    }
}
