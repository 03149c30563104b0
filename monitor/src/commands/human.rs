//! Bytes and quantities as people write them.

use monitor_common::grammar::control_file::ControlFile;

/// The name of a control file's quantity; `None` for usage, and for files without one.
pub const fn quantity(file: ControlFile) -> Option<&'static str> {
    match file {
        ControlFile::Memsw => Some("memory+swap"),
        ControlFile::WorkingSet => Some("working set"),
        ControlFile::Anon => Some("not reclaimable"),
        ControlFile::Usage | ControlFile::Oom | ControlFile::Pressure | ControlFile::Procs => None,
    }
}

/// Writes bytes with a binary suffix, as thresholds are written.
pub fn human(bytes: u64) -> String {
    const SUFFIXES: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];
    let mut step = 0;
    let mut scaled = bytes as f64;
    while scaled >= 1024.0 && step + 1 < SUFFIXES.len() {
        scaled /= 1024.0;
        step += 1;
    }
    let decimals = usize::from(step > 0 && scaled < 100.0 && scaled.fract() >= 0.05);
    format!("{scaled:.decimals$}{}", SUFFIXES[step])
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn sizes_read_as_thresholds_are_written() {
        assert_eq!(human(0), "0");
        assert_eq!(human(4095), "4.0K");
        assert_eq!(human(20 << 20), "20M");
        assert_eq!(human((20 << 20) + (1 << 19)), "20.5M");
        assert_eq!(human(u64::MAX), "16E");
    }
}
