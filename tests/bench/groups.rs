//! Groups by the thousand, and a process that goes from one to the next and charges each.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::subject::Mapping;
use crate::harness::client::page;
use crate::harness::group::Group;
use crate::harness::process;
use crate::harness::report::say;

/// Children of a parent.
const BROOD: u64 = 100;

/// Groups, two levels deep; children go first.
pub(crate) struct Groups {
    pub(crate) leaves: Vec<Group>,
    pub(crate) parents: Vec<Group>,
}

impl Groups {
    pub(crate) fn make(count: u64) -> Result<Self> {
        let start = Instant::now();
        let mut groups = Self { leaves: Vec::new(), parents: Vec::new() };
        let brood = BROOD.min(count / 2);
        for parent in 0..count / brood {
            let parent = Group::new(&format!("many{parent}"))?;
            for child in 0..brood {
                groups.leaves.push(parent.child(&child.to_string())?);
            }
            groups.parents.push(parent);
        }
        say!("made {} groups in {:.1} s of guest time", groups.leaves.len(), start.elapsed().as_secs_f64());
        Ok(groups)
    }

    /// Number of all groups.
    pub(crate) fn count(&self) -> usize {
        self.leaves.len() + self.parents.len()
    }
}

/// One order to a [`Visitor`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounds {
    /// Times that each group is visited.
    pub(crate) count: u32,
    /// Pages that are touched at each visit; of those that stay one to as many, not the same in each
    /// group, so that the order by usage changes, too.
    pub(crate) pages: u32,
    /// Whether they stay until the last round has ended.
    pub(crate) stay: bool,
    /// Time of a round, over which its visits are spread.
    pub(crate) time: Duration,
}

/// Visits between two looks at the clock.
const AT_ONCE: usize = 50;

/// A process that charges groups one after the other: it enters a group, and touches pages.
#[derive(Debug)]
pub(crate) struct Visitor {
    pid: Pid,
    pipe: UnixStream,
}

impl Visitor {
    /// Starts one, which waits in `home`.
    pub(crate) fn start(groups: &Groups, home: &Group) -> Result<Self> {
        process::allow_descriptors(groups.leaves.len())?;
        let open = |group: &Group| {
            let path = group.path.join("cgroup.procs");
            OpenOptions::new()
                .write(true)
                .open(&path)
                .with_context(|| format!("cannot open {}", path.display()))
        };
        let doors = groups.leaves.iter().map(open).collect::<Result<Vec<_>>>()?;
        let home = open(home)?;
        let (pid, pipe) = process::spawn_with_socket(move |pipe| visit_all(pipe, &doors, &home))?;
        Ok(Self { pid, pipe })
    }

    /// Begins rounds, which go on by themselves.
    pub(crate) fn begin(&mut self, rounds: Rounds) -> Result<()> {
        let Rounds { count, pages, stay, time } = rounds;
        let words = [count, pages, stay.into(), u32::try_from(time.as_millis())?];
        let bytes: Vec<_> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.pipe.write_all(&bytes).context("the visitor has ended")
    }

    /// Waits for the end of the rounds; returns how long they took, which is longer than was
    /// ordered where the machine is too slow.
    pub(crate) fn end(&mut self) -> Result<Duration> {
        let mut answer = [0; 8];
        self.pipe.read_exact(&mut answer).context("the visitor has ended")?;
        Ok(Duration::from_millis(u64::from_le_bytes(answer)))
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

fn visit_all(mut pipe: UnixStream, doors: &[File], home: &File) -> Result<()> {
    let enter = |mut door: &File| door.write_all(b"0").context("cannot enter a group");
    enter(home)?;
    let mut order = [0; 16];
    while pipe.read_exact(&mut order).is_ok() {
        let mut words = order
            .chunks_exact(4)
            .map(|word| word.iter().rev().fold(0, |all, &byte| all << 8 | u32::from(byte)));
        let mut word = || words.next().unwrap_or(0);
        let (count, pages, stay, time) = (word(), word() as usize, word() != 0, word());
        let size = usize::try_from(page())?;
        let start = Instant::now();
        // One mapping for all that stays: to find one among others is part of a fault.
        let room = if stay { count as usize * doors.len() * pages } else { pages };
        let mut kept = Mapping::new(room * size)?;
        let mut next = 0;
        for round in 0..count {
            for (at, door) in doors.iter().enumerate() {
                enter(door)?;
                let touched = if stay { 1 + (at * 7 + round as usize * 5) % pages } else { pages };
                for _ in 0..touched {
                    kept.touch(next * size);
                    next += 1;
                }
                if !stay {
                    kept = Mapping::new(room * size)?;
                    next = 0;
                }
                if at % AT_ONCE == 0 {
                    let share = f64::from(round) + at as f64 / doors.len() as f64;
                    let due = start + Duration::from_millis(time.into()).mul_f64(share);
                    sleep(due.saturating_duration_since(Instant::now()));
                }
            }
        }
        enter(home)?;
        drop(kept);
        pipe.write_all(&u64::try_from(start.elapsed().as_millis())?.to_le_bytes())?;
    }
    Ok(())
}
