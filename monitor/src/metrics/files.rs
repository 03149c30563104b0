//! Numbers that only the groups' own files have.

use std::{fs::File, io::Read as _};

use crate::cgroup::{Version, handle::Directory};

/// Names of the lines of `memory.events`.
pub const EVENTS: [&str; 6] = ["low", "high", "max", "oom", "oom_kill", "oom_group_kill"];

/// The nearest counts on v1: the index in [`EVENTS`], the file, and its line, if it has several.
const V1: [(usize, &str, Option<&str>); 2] =
    [(2, "memory.failcnt", None), (4, "memory.oom_control", Some("oom_kill"))];

/// A group's counts of events, in the order of [`EVENTS`].
#[must_use]
pub fn events(directory: &Directory, version: Version) -> [Option<u64>; EVENTS.len()] {
    match version {
        Version::V2 => {
            let text = read(directory, "memory.events").unwrap_or_default();
            EVENTS.map(|name| line(&text, name))
        }
        Version::V1 => {
            let mut events = [None; EVENTS.len()];
            for (at, file, name) in V1 {
                let text = read(directory, file).unwrap_or_default();
                events[at] = name.map_or_else(|| text.trim().parse().ok(), |name| line(&text, name));
            }
            events
        }
    }
}

/// Seconds in which some, and in which all tasks waited for memory.
#[must_use]
pub fn stalls(directory: &Directory) -> [Option<f64>; 2] {
    let text = read(directory, "memory.pressure").unwrap_or_default();
    ["some", "full"].map(|kind| stall(&text, kind))
}

/// The seconds of a line `some avg10=0.00 avg60=0.00 avg300=0.00 total=12345`, whose total is
/// in microseconds.
fn stall(text: &str, kind: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.split(' ').next() == Some(kind))?;
    let total: u64 = line.rsplit_once("total=")?.1.trim().parse().ok()?;
    Some(total as f64 / 1e6)
}

/// The number of the line with this name.
fn line(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn read(directory: &Directory, name: &str) -> Option<String> {
    let mut text = String::new();
    File::from(directory.file(name).ok()?).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::{line, stall};

    #[test]
    fn lines_are_found_by_their_whole_name() {
        let text = "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n";
        assert_eq!([line(text, "oom"), line(text, "oom_kill"), line(text, "o")], [Some(4), Some(5), None]);
        let text = "some avg10=0.00 avg60=0.10 avg300=0.02 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=20\n";
        assert_eq!([stall(text, "some"), stall(text, "full")], [Some(1.5), Some(0.000_02)]);
        assert_eq!(stall("", "some"), None);
    }
}
