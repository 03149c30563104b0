//! Faults that befall the agent while something happens.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::harness::agent::Agent;
use crate::harness::process;
use crate::harness::random::Random;
use crate::soak::tally::Tally;
use crate::soak::world::Act;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Nothing,
    /// SIGKILL, some time into the act.
    Kill,
    /// SIGHUP to the supervisor, likewise.
    HandOver,
    /// SIGSTOP before, SIGCONT after.
    Stop,
}

impl Fault {
    pub(super) fn choose(random: &mut Random, act: Act) -> Self {
        match random.below(20) {
            0..8 => Self::Nothing,
            8..17 => Self::Kill,
            17 => Self::HandOver,
            // A client that registers waits for the answer.
            _ if act.needs_the_agent() => Self::Nothing,
            _ => Self::Stop,
        }
    }

    pub(super) const fn ends_the_agent(self) -> bool {
        matches!(self, Self::Kill | Self::HandOver)
    }
}

/// A fault that is on its way.
#[derive(Debug)]
pub(super) struct Underway {
    fault: Fault,
    agent_pid: Pid,
    sender: Option<Pid>,
}

impl Underway {
    pub(super) fn begin(agent: &Agent, fault: Fault, random: &mut Random) -> Result<Self> {
        let agent_pid = agent.supervised()?;
        // From 10 microseconds to 40 milliseconds, each power of two as likely.
        let delay = Duration::from_micros((10 << random.below(12)) + random.below(10) as u64);
        let sender = match fault {
            Fault::Nothing => None,
            Fault::Kill => Some(later(delay, agent_pid, Signal::SIGKILL)?),
            Fault::HandOver => Some(later(delay, agent.pid(), Signal::SIGHUP)?),
            Fault::Stop => {
                kill(agent_pid, Signal::SIGSTOP).context("cannot stop the agent")?;
                None
            }
        };
        Ok(Self { fault, agent_pid, sender })
    }

    /// The act is over: waits until the agent is back.
    pub(super) fn end(self, agent: &mut Agent, tally: &mut Tally) -> Result<()> {
        if let Some(sender) = self.sender {
            waitpid(sender, None).context("cannot wait for the sender of the signal")?;
            let sent = Instant::now();
            agent.ready()?;
            let away = sent.elapsed();
            tally.away += away;
            tally.longest_away = tally.longest_away.max(away);
            ensure!(agent.supervised()? != self.agent_pid, "the agent is the same process");
        }
        match self.fault {
            Fault::Nothing => {}
            Fault::Kill => tally.kills += 1,
            Fault::HandOver => tally.hand_overs += 1,
            Fault::Stop => {
                kill(self.agent_pid, Signal::SIGCONT).context("cannot continue the agent")?;
                tally.stops += 1;
            }
        }
        Ok(())
    }
}

/// Sends a signal after a while, from a process of its own.
fn later(delay: Duration, to: Pid, signal: Signal) -> Result<Pid> {
    process::spawn(|| {
        std::thread::sleep(delay);
        Ok(kill(to, signal)?)
    })
}
