//! The frontends of an operator: how soon they answer.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use monitor_client::{AdminConnection, CONTROL_SOCKET, Error};

/// Address at which metrics are served.
pub(super) const METRICS: &str = "127.0.0.1:9101";

pub(super) struct OperatorFrontends {
    limit: Duration,
}

impl OperatorFrontends {
    pub(super) const fn new(limit: Duration) -> Self {
        Self { limit }
    }

    /// How long the whole list takes; none, where that is longer than the limit.
    pub(super) fn list(&self) -> Result<Option<Duration>> {
        let start = Instant::now();
        let answer = AdminConnection::connect(Path::new(CONTROL_SOCKET)).and_then(|control| {
            control.set_timeout(Some(self.limit))?;
            control.list()
        });
        match answer {
            Ok(_) => Ok(Some(start.elapsed())),
            Err(error) if is_late(&error) => Ok(None),
            Err(error) => Err(error).context("the list"),
        }
    }

    /// How long a scrape takes.
    pub(super) fn scrape(&self) -> Result<Option<Duration>> {
        let start = Instant::now();
        let late = |kind| matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut);
        let mut stream = match TcpStream::connect_timeout(&METRICS.parse()?, self.limit) {
            Err(error) if late(error.kind()) => return Ok(None),
            other => other.with_context(|| format!("cannot connect to {METRICS}"))?,
        };
        stream.set_read_timeout(Some(self.limit))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").context("cannot request metrics")?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if late(error.kind()) => Ok(None),
            Err(error) => Err(error).context("cannot read the metrics"),
            Ok(_) => {
                let head = String::from_utf8_lossy(&answer[..answer.len().min(64)]).into_owned();
                ensure!(head.starts_with("HTTP/1.1 200 "), "a scrape was answered {head:?}");
                Ok(Some(start.elapsed()))
            }
        }
    }

    /// Waits until the list is answered again.
    pub(super) fn until_answered(&self, limit: Duration) -> Result<Option<()>> {
        let start = Instant::now();
        while start.elapsed() < limit {
            if self.list()?.is_some() {
                return Ok(Some(()));
            }
        }
        Ok(None)
    }
}

fn is_late(error: &Error) -> bool {
    error.is_timeout()
}
