//! The host's own memory, for the line above the groups.

use std::fs;

/// The host's memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HostMemory {
    pub total: u64,
    pub used: u64,
    pub swap_total: u64,
    pub swap_used: u64,
    /// Share of the last ten seconds in which some task waited for memory, in percent.
    pub pressure: Option<f64>,
}

impl HostMemory {
    /// Reads the host's files; what they lack is 0.
    pub fn read() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        Self::of(&text("/proc/meminfo"), &text("/proc/pressure/memory"))
    }

    fn of(meminfo: &str, pressure: &str) -> Self {
        let field = |name: &str| -> u64 {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kibibytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
            kibibytes.unwrap_or(0).saturating_mul(1024)
        };
        let (total, swap_total) = (field("MemTotal"), field("SwapTotal"));
        Self {
            total,
            used: total.saturating_sub(field("MemAvailable")),
            swap_total,
            swap_used: swap_total.saturating_sub(field("SwapFree")),
            pressure: super::source::details::some_avg10(pressure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::HostMemory;

    #[test]
    fn used_is_what_is_not_available() {
        let meminfo =
            "MemTotal:  100 kB\nMemFree: 5 kB\nMemAvailable: 60 kB\nSwapTotal: 10 kB\nSwapFree: 9 kB\n";
        let host = HostMemory::of(meminfo, "some avg10=0.25 avg60=0 avg300=0 total=1\n");
        let expected = HostMemory {
            total: 102_400,
            used: 40_960,
            swap_total: 10_240,
            swap_used: 1024,
            pressure: Some(0.25),
        };
        assert_eq!(host, expected);
        assert_eq!(HostMemory::of("", ""), HostMemory::default());
    }
}
