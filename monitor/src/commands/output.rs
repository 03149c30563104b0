//! Standard output of the commands that print for as long as they run: whether anybody reads it still, and
//! lines that keep to the command's time.

use std::{
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use anyhow::{Result, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};

use crate::commands::deadline::{self, TimeOver};

/// No event but the end of the output's reader, which `poll` reports in any case.
pub const READER_ALONE: PollFlags = PollFlags::empty();

/// Bytes that a pipe takes at once wherever it is writable (`PIPE_BUF`).
const AT_ONCE: usize = 4096;

/// Waits until this time, or until nobody reads standard output any more; returns whether nobody does.
///
/// # Errors
/// `poll` failed.
pub fn is_left_before(then: Instant) -> Result<bool> {
    is_left(io::stdout().as_fd(), then)
}

fn is_left(out: BorrowedFd<'_>, then: Instant) -> Result<bool> {
    loop {
        match poll(&mut [PollFd::new(out, READER_ALONE)], deadline::left(Some(then))) {
            Ok(0) if Instant::now() >= then => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => bail!("poll: {errno}"),
        }
    }
}

/// Prints a line to standard output, unless nobody makes room for it before the deadline.
///
/// # Errors
/// [`TimeOver`] at the deadline; `poll` or `write` failed.
pub fn print(line: &str, deadline: Option<Instant>) -> Result<()> {
    write(&mut io::stdout().lock(), &format!("{line}\n"), deadline)
}

fn write(out: &mut (impl Write + AsFd), text: &str, deadline: Option<Instant>) -> Result<()> {
    if deadline.is_none() {
        out.write_all(text.as_bytes())?;
        return Ok(out.flush()?);
    }
    for part in text.as_bytes().chunks(AT_ONCE) {
        wait_for_room(out.as_fd(), deadline)?;
        out.write_all(part)?;
        out.flush()?;
    }
    Ok(())
}

fn wait_for_room(out: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<()> {
    loop {
        match poll(&mut [PollFd::new(out, PollFlags::POLLOUT)], deadline::left(deadline)) {
            Ok(0) if deadline::is_over(deadline) => return Err(TimeOver.into()),
            Ok(0) | Err(Errno::EINTR) => {}
            // Also where the reader is gone: the write says so.
            Ok(_) => return Ok(()),
            Err(errno) => bail!("poll: {errno}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Read as _},
        os::fd::AsFd as _,
        thread,
        time::{Duration, Instant},
    };

    use super::{is_left, write};
    use crate::commands::deadline::TimeOver;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(1)
    }

    fn late() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    #[test]
    fn a_reader_that_leaves_is_noticed_while_nothing_is_written() {
        let (reader, writer) = io::pipe().expect("a pipe");
        assert!(!is_left(writer.as_fd(), soon()).expect("poll"));
        let waiting = thread::spawn(move || is_left(writer.as_fd(), late()));
        drop(reader);
        assert!(waiting.join().expect("the thread").expect("poll"));
    }

    #[test]
    fn a_line_that_nobody_makes_room_for_ends_at_the_deadline() {
        let (mut reader, mut writer) = io::pipe().expect("a pipe");
        let mut lines = 0;
        let error = loop {
            match write(&mut writer, "x".repeat(5000).as_str(), Some(soon())) {
                Ok(()) => lines += 1,
                Err(error) => break error,
            }
        };
        assert!(error.is::<TimeOver>() && lines > 0, "{error}");
        let reading = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        // There is a reader, so that there will be room.
        write(&mut writer, "\nthe last\n", Some(late())).expect("room");
        drop(writer);
        let text = reading.join().expect("the thread").expect("text");
        assert!(text.ends_with("x\nthe last\n"), "{} bytes", text.len());
    }
}
