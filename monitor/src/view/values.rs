//! Converts cgroup v2's file contents to cgroup v1's. Pure: texts in, texts out.

use std::fmt::Write as _;

use crate::cgroup::host::field;
pub use crate::cgroup::host::{root_usage, swap_used};

/// The number that v1 shows for "no limit": the kernel's `PAGE_COUNTER_MAX` pages in bytes.
#[must_use]
pub const fn unlimited(page: u64) -> u64 {
    i64::MAX as u64 / page * page
}

/// Parses a limit of v2 in bytes: a number, or `max`.
#[must_use]
pub fn limit(text: &str, page: u64) -> Option<u64> {
    match text.trim() {
        "max" => Some(unlimited(page)),
        number => number.parse().ok(),
    }
}

/// The limit of memory and swap together, as in v1, from v2's separate limits.
#[must_use]
pub fn limit_with_swap(memory: u64, swap: u64, page: u64) -> u64 {
    memory.saturating_add(swap).min(unlimited(page))
}

/// The number behind `key` in a flat keyed text; 0 where there is none.
#[must_use]
pub fn keyed(text: &str, key: &str) -> u64 {
    field(text, key).unwrap_or(0)
}

/// A line of one number and a newline.
#[must_use]
pub fn line(number: u64) -> String {
    format!("{number}\n")
}

/// The text of `memory.oom_control` from `memory.events.local`. v2 cannot turn the OOM killer
/// off, so no group stays under OOM.
#[must_use]
pub fn oom_control(events_local: &str) -> String {
    format!("oom_kill_disable 0\nunder_oom 0\noom_kill {}\n", keyed(events_local, "oom_kill"))
}

/// The working set: usage less inactive file pages, which reclaim could free easily.
#[must_use]
pub const fn working_set(usage: u64, inactive_file: u64) -> u64 {
    usage.saturating_sub(inactive_file)
}

/// Names in v1's `memory.stat`, each with v2's, in v1's order (`memcg1_stat_format`). Swap is
/// not in v2's.
const STAT: [(&str, &str); 20] = [
    ("cache", "file"),
    ("rss", "anon"),
    ("rss_huge", "anon_thp"),
    ("shmem", "shmem"),
    ("mapped_file", "file_mapped"),
    ("dirty", "file_dirty"),
    ("writeback", "file_writeback"),
    ("workingset_refault_anon", "workingset_refault_anon"),
    ("workingset_refault_file", "workingset_refault_file"),
    ("swap", ""),
    ("swapcached", "swapcached"),
    ("pgpgin", "pgpgin"),
    ("pgpgout", "pgpgout"),
    ("pgfault", "pgfault"),
    ("pgmajfault", "pgmajfault"),
    ("inactive_anon", "inactive_anon"),
    ("active_anon", "active_anon"),
    ("inactive_file", "inactive_file"),
    ("active_file", "active_file"),
    ("unevictable", "unevictable"),
];

/// The text of v1's `memory.stat` from v2's, bytes of swap, and the lowest limits on the way
/// to the root. v2 counts subtrees only: the plain lines and the `total_` lines are equal.
#[must_use]
pub fn stat(v2: &str, swap: u64, limit: u64, limit_with_swap: u64) -> String {
    let mut text = String::new();
    let mut lines = |prefix: &str| {
        for (name, source) in STAT {
            let value = if name == "swap" { swap } else { keyed(v2, source) };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{prefix}{name} {value}");
        }
        if prefix.is_empty() {
            let _ = writeln!(text, "hierarchical_memory_limit {limit}");
            let _ = writeln!(text, "hierarchical_memsw_limit {limit_with_swap}");
        }
    };
    lines("");
    lines("total_");
    text
}

#[cfg(test)]
mod tests {
    use super::{
        keyed, limit, limit_with_swap, oom_control, root_usage, stat, swap_used, unlimited, working_set,
    };

    const PAGE: u64 = 4096;

    #[test]
    fn no_limit_is_spelled_as_in_v1() {
        assert_eq!(limit("max\n", PAGE), Some(9_223_372_036_854_771_712));
        assert_eq!(limit("8192\n", PAGE), Some(8192));
        assert_eq!(limit("", PAGE), None);
    }

    #[test]
    fn limits_add_up_and_saturate() {
        assert_eq!(limit_with_swap(8192, 4096, PAGE), 12_288);
        assert_eq!(limit_with_swap(8192, unlimited(PAGE), PAGE), unlimited(PAGE));
        assert_eq!(limit_with_swap(u64::MAX, u64::MAX, PAGE), unlimited(PAGE));
    }

    #[test]
    fn events_are_the_groups_own() {
        let events = "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(oom_control(events), "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
        assert_eq!(keyed(events, "max"), 7);
        assert_eq!(keyed(events, "ma"), 0);
        assert_eq!(oom_control(""), "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n");
    }

    #[test]
    fn the_working_set_is_never_negative() {
        assert_eq!(working_set(10, 3), 7);
        assert_eq!(working_set(3, 10), 0);
    }

    #[test]
    fn the_root_is_the_host() {
        let meminfo = "MemTotal:  999 kB\nBuffers:  1 kB\nCached:   20 kB\nSwapCached:   300 kB\n\
                       AnonPages:  4000 kB\nSwapTotal:       100 kB\nSwapFree:         40 kB\n";
        assert_eq!(root_usage(meminfo).ok(), Some(4321 * 1024));
        assert!(root_usage("Cached: 1 kB\n").is_err());
        assert_eq!(swap_used(meminfo), 60 * 1024);
        assert_eq!(swap_used("MemTotal: 999 kB\n"), 0);
    }

    #[test]
    fn stat_has_v1s_names() {
        let text = stat("anon 4096\nfile 8192\nanon_thp 0\ninactive_file 12\npgfault 5\n", 77, 1, 2);
        for (key, value) in [
            ("cache", 8192),
            ("rss", 4096),
            ("swap", 77),
            ("inactive_file", 12),
            ("hierarchical_memory_limit", 1),
            ("hierarchical_memsw_limit", 2),
            ("total_cache", 8192),
            ("total_inactive_file", 12),
            ("total_pgfault", 5),
        ] {
            assert_eq!(keyed(&text, key), value, "{key}");
        }
        assert_eq!(text.lines().count(), 42);
    }
}
