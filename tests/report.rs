//! What the guest tells the host: lines on the second serial line.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

/// Tells people something; the host shows it without the prefix.
macro_rules! say {
    ($($text:tt)*) => { println!("memcg-guest: {}", format_args!($($text)*)) };
}
pub(crate) use say;

/// Makes the second serial line our stdout and stderr, and so our children's.
/// The first one is the kernel's, which would cut our lines in two.
pub(crate) fn open() {
    let Ok(line) = OpenOptions::new().read(true).write(true).open("/dev/ttyS1") else {
        return; // Then the console has to do, as when booted by hand.
    };
    for target in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: both are open descriptors, and nobody in this process owns 1 or 2.
        unsafe { libc::dup2(line.as_raw_fd(), target) };
    }
}

/// One row of a measurement: the host prints the rows as a table, columns in
/// the order given.
pub(crate) fn row(name: &str, columns: &[(&str, serde_json::Value)]) {
    let columns: Vec<_> =
        columns.iter().map(|(name, value)| format!("{}:{value}", serde_json::Value::from(*name))).collect();
    let name = serde_json::Value::from(name);
    println!("memcg-guest-json: {{\"row\":{name},\"columns\":{{{}}}}}", columns.join(","));
}

/// The one line that the host judges the whole boot by.
pub(crate) fn verdict(passed: usize, failed: usize) {
    say!("verdict pass={passed} fail={failed}");
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    format!("{error:#}").trim_end().replace('\n', " | ")
}
