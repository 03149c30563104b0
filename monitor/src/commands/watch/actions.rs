//! All that `watch` does for an event beside telling it: a signal, a command of the shell.

use std::{sync::Arc, thread, time::Duration};

use anyhow::Result;
use monitor_client::wire::EventRow;

use crate::commands::watch::{
    ending::{self, Ending},
    exec::{self, ShellCommand},
    queue::Executor,
    rule::Rule,
    signal::GroupSignal,
};

/// The time that a command may take, where a rule does not say it; as the option's default.
const EXEC_TIMEOUT: Duration = Duration::from_secs(60);

/// The work that a rule asks for.
pub struct Actions {
    signals: Option<Executor>,
    commands: Option<Executor>,
    ending: Arc<Ending>,
}

impl Actions {
    /// Prepares what the rule asks to do for each event. With a command, a signal that ends the process is
    /// caught from now on.
    ///
    /// # Errors
    /// The process to signal is not there, or signals cannot be caught.
    pub fn of(rule: &Rule) -> Result<Arc<Self>> {
        let ending = Arc::new(Ending::new()?);
        let signals = match rule.signal.zip(rule.to) {
            Some((signal, to)) => {
                let signal = GroupSignal::new(signal, to)?;
                Some(Executor::new("--signal", 1, move |event, _| signal.send(event)))
            }
            None => None,
        };
        let commands = rule.exec.as_ref().map(|text| {
            let limit = rule.exec_timeout.unwrap_or(EXEC_TIMEOUT);
            let command = ShellCommand::new(text.clone(), limit, Arc::clone(&ending));
            Executor::new("--exec", exec::AT_ONCE, move |event, dropped| command.run(event, dropped))
        });
        let actions = Arc::new(Self { signals, commands, ending });
        if actions.commands.is_some() {
            let ended = Arc::clone(&actions);
            ending::before_a_signal_ends(move || ended.end())?;
        }
        Ok(actions)
    }

    /// Begins what is to be done for an event; nothing of that holds up the next event.
    pub fn run(&self, event: &EventRow) {
        self.all().for_each(|action| action.run(event));
    }

    /// Drops the commands whose turn has not come. Signals take no time, and are all sent.
    pub fn break_off(&self) {
        if let Some(commands) = &self.commands {
            commands.break_off();
        }
    }

    /// Waits until everything is done that runs or waits.
    pub fn finish(&self) {
        self.all().for_each(Executor::wait);
        self.leave_to_signal();
    }

    /// Waits for the end of the process, where a signal ends it: its status is to be that of the signal.
    pub fn leave_to_signal(&self) {
        while self.ending.is_begun() {
            thread::park();
        }
    }

    /// Ends the commands that run, and drops those that wait.
    fn end(&self) {
        // First, so that none of them takes the place of one that ends.
        self.break_off();
        self.ending.begin();
        self.all().for_each(Executor::wait);
    }

    fn all(&self) -> impl Iterator<Item = &Executor> {
        [&self.signals, &self.commands].into_iter().flatten()
    }
}
