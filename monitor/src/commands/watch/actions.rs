//! All that `watch` does for an event beside telling it: a signal, a command of the shell.

use std::time::Duration;

use anyhow::Result;
use monitor_client::wire::EventRow;

use crate::commands::watch::{
    exec::{self, ShellCommand},
    queue::Executor,
    rule::Rule,
    signal::GroupSignal,
};

/// The time that a command may take, where a rule does not say it; as the option's default.
const EXEC_TIMEOUT: Duration = Duration::from_secs(60);

/// The work of a rule; the drop waits until that is done for the events that run or wait.
pub struct Actions {
    signals: Option<Executor>,
    commands: Option<Executor>,
}

impl Actions {
    /// Prepares what the rule asks to do for each event.
    ///
    /// # Errors
    /// The process to signal is not there.
    pub fn of(rule: &Rule) -> Result<Self> {
        let signals = match rule.signal.zip(rule.to) {
            Some((signal, to)) => {
                let signal = GroupSignal::new(signal, to)?;
                Some(Executor::new("--signal", 1, move |event, _| signal.send(event)))
            }
            None => None,
        };
        let commands = rule.exec.as_ref().map(|text| {
            let command = ShellCommand::new(text.clone(), rule.exec_timeout.unwrap_or(EXEC_TIMEOUT));
            Executor::new("--exec", exec::AT_ONCE, move |event, dropped| command.run(event, dropped))
        });
        Ok(Self { signals, commands })
    }

    /// Begins what is to be done for an event; nothing of that holds up the next event.
    pub fn run(&self, event: &EventRow) {
        for action in [&self.signals, &self.commands].into_iter().flatten() {
            action.run(event);
        }
    }

    /// Drops the commands whose turn has not come. Signals take no time, and are all sent.
    pub fn break_off(&self) {
        if let Some(commands) = &self.commands {
            commands.break_off();
        }
    }
}
