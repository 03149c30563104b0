//! Runs other programs; an error names the command and shows its messages.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Returns a command that cannot prompt: no stdin, no translated messages.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).env("LC_ALL", "C");
    command
}

/// Runs a command to its end, its output going where ours goes.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| {
        format!("cannot start {}; `cargo xtask setup` gets every prerequisite", shown(command))
    })?;
    if !status.success() {
        bail!("{} failed ({status}); its messages are above", shown(command));
    }
    Ok(())
}

/// Runs a command silently and returns its stdout.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output_bytes(command)?).into_owned())
}

/// Like `output`, for a command that prints bytes.
pub(crate) fn output_bytes(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| {
        format!("cannot start {}; `cargo xtask setup` gets every prerequisite", shown(command))
    })?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}):\n{}", shown(command), output.status, stderr.trim());
    }
    Ok(output.stdout)
}

/// Makes the command's process end when ours does, in whatever way.
pub(crate) fn end_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let ask_for_it = move || {
        // SAFETY: prctl and getppid are async-signal-safe and take no pointers here.
        let set = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // SAFETY: as above.
        let is_orphaned = u32::try_from(unsafe { libc::getppid() }) != Ok(parent);
        if set != 0 || is_orphaned {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        Ok(())
    };
    // SAFETY: the closure only makes async-signal-safe calls and does not allocate.
    unsafe { command.pre_exec(ask_for_it) };
}

/// True if the program can be started at all.
pub(crate) fn exists(program: impl AsRef<OsStr>) -> bool {
    command(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn shown(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    format!("`{}`", words.join(" "))
}
