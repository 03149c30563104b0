//! The log: lines for people on stderr, structured records where stderr is connected to
//! journald, and neither without bound.
//!
//! Fields of records are the `log` crate's key-values; journald has them in capitals
//! (`MEMCG_ERRNO`). Events are not logged one by one: followers and metrics report them.

mod pace;

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use log::{Level, Log, Metadata, Record, kv::Key};
use systemd_journal_logger::{JournalLog, connected_to_journal};

use crate::{
    logging::pace::{Pace, Site},
    printable::printable,
};

/// Log target of the programs in the kernel.
pub const PROGRAMS: &str = "memcg_monitor::ebpf";

/// Sets the log up with this filter, unless `RUST_LOG` has another.
pub fn init(level: &str) {
    let text = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level)).build();
    let journal = if connected_to_journal() { JournalLog::empty().ok() } else { None };
    let journal = journal.map(|journal| journal.with_syslog_identifier("memcg-monitor".to_owned()));
    let max = text.filter();
    let logger = Logger { text, journal, pace: Mutex::default(), start: Instant::now() };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(max);
    }
}

struct Logger {
    /// The logger of text, which also filters for both.
    text: env_logger::Logger,
    journal: Option<JournalLog>,
    pace: Mutex<Pace>,
    start: Instant,
}

impl Logger {
    fn write(&self, record: &Record<'_>) {
        match &self.journal {
            Some(journal) => journal.log(record),
            None => self.text.log(record),
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.text.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.text.matches(record) {
            return;
        }
        // The text may hold names that other users chose, and clients' input.
        let text = record.args().to_string();
        let text = printable(&text);
        let write = |args: fmt::Arguments<'_>| self.write(&record.to_builder().args(args).build());
        // Debug messages were requested, and are all shown.
        if record.level() >= Level::Debug {
            return write(format_args!("{text}"));
        }
        let site = Site {
            module: record.module_path_static().unwrap_or_default(),
            line: record.line().unwrap_or(0),
            level: record.level(),
            user: record.key_values().get(Key::from("memcg_uid")).and_then(|uid| uid.to_u64()),
        };
        let now = self.start.elapsed();
        // A panic while counting spoils no count that matters.
        let admitted = self.pace.lock().unwrap_or_else(PoisonError::into_inner).admit(site, now);
        match admitted {
            None => {}
            Some(0) => write(format_args!("{text}")),
            Some(more) => write(format_args!("{text} (and {more} more like this since the last)")),
        }
    }

    /// Logs how many lines were left out.
    fn flush(&self) {
        for (site, more) in self.pace.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            let Site { module, line, level, user } = site;
            let of = user.map(|user| format!(", about user {user}")).unwrap_or_default();
            self.write(
                &Record::builder()
                    .level(level)
                    .target(module)
                    .args(format_args!("{more} more lines like the last of {module}, line {line}{of}"))
                    .build(),
            );
        }
    }
}

/// Receives the programs' own lines, and logs them at debug level. What they report is counted
/// as well, and the agent logs the counts.
#[derive(Clone, Copy, Debug)]
pub struct FromPrograms;

impl Log for FromPrograms {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        log::log_enabled!(target: PROGRAMS, Level::Debug)
    }

    fn log(&self, record: &Record<'_>) {
        let level = record.level().as_str().to_ascii_lowercase();
        log::debug!(target: PROGRAMS, memcg_program = record.target(); "{level}: {}", record.args());
    }

    fn flush(&self) {}
}
