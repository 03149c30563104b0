//! Writes a file of the black box.

use std::io::Write;

use serde::Serialize;

use crate::black_box::{BlackBoxEntry, BlackBoxError, MAX_FILE, MAX_LINE, Recording};

impl Recording {
    /// Writes the file: the header, each entry, and the last line.
    ///
    /// # Errors
    /// It could not be written, or is larger than a file may be; then what was written is no
    /// whole file.
    pub fn write(&self, out: impl Write) -> Result<(), BlackBoxError> {
        let mut lines = BoundedLines { out, line: 0, bytes: 0 };
        lines.put(&self.header)?;
        for limit in &self.limits {
            lines.put(&BlackBoxEntry::Limit(limit.clone()))?;
        }
        for registration in &self.registrations {
            lines.put(&BlackBoxEntry::Registration(registration.clone()))?;
        }
        if self.lost > 0 {
            let at = self.usage.first().map_or(self.header.at, |point| point.at);
            lines.put(&BlackBoxEntry::Lost { at, points: self.lost })?;
        }
        for point in &self.usage {
            lines.put(&BlackBoxEntry::Usage(*point))?;
        }
        for window in &self.pressure {
            lines.put(&BlackBoxEntry::Pressure(window.clone()))?;
        }
        for signal in &self.signals {
            lines.put(&BlackBoxEntry::Signal(signal.clone()))?;
        }
        for oom in &self.ooms {
            lines.put(&BlackBoxEntry::Oom(oom.clone()))?;
        }
        for kill in &self.kills {
            lines.put(&BlackBoxEntry::Kill(Box::new(kill.clone())))?;
        }
        for text in &self.notes {
            lines.put(&BlackBoxEntry::Note { text: text.clone() })?;
        }
        let entries = lines.line - 1;
        lines.put(&BlackBoxEntry::End { entries })?;
        Ok(lines.out.flush()?)
    }
}

/// Lines that a reader accepts.
struct BoundedLines<W> {
    out: W,
    line: u64,
    bytes: u64,
}

impl<W: Write> BoundedLines<W> {
    fn put(&mut self, what: &impl Serialize) -> Result<(), BlackBoxError> {
        self.line += 1;
        let line = self.line;
        let mut text = serde_json::to_vec(what).map_err(|error| BlackBoxError::of_line(line, &error))?;
        text.push(b'\n');
        self.bytes += text.len() as u64;
        if text.len() > MAX_LINE {
            return Err(BlackBoxError::LongLine { line });
        }
        if self.bytes > MAX_FILE {
            return Err(BlackBoxError::LongFile { line });
        }
        Ok(self.out.write_all(&text)?)
    }
}
