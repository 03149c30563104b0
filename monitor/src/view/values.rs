//! Converts cgroup v2's file contents to cgroup v1's. Pure: texts in, texts out.

use std::{collections::BTreeMap, fmt::Write as _};

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

/// The ids of tasks in a list of the kernel's, in ascending order, each once. Tasks outside the
/// reader's pid namespace have the id 0 on v2, and are left out, as on v1.
#[must_use]
pub fn ids(list: &str) -> Vec<i32> {
    let mut ids: Vec<_> = list.lines().filter_map(|line| line.parse().ok()).filter(|id| *id > 0).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The text of `cgroup.procs` or `tasks`: v1 sorted it.
#[must_use]
pub fn task_list(mut ids: Vec<i32>) -> String {
    ids.sort_unstable();
    ids.into_iter().map(|id| format!("{id}\n")).collect()
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

/// The text of v1's `memory.stat` from v2's, the lowest limit on the way to the root, and, where
/// the kernel accounts swap, bytes of swap and the lowest limit with swap. v2 counts subtrees
/// only: the plain lines and the `total_` lines are equal.
#[must_use]
pub fn stat(v2: &str, limit: u64, swap: Option<(u64, u64)>) -> String {
    let mut text = String::new();
    let mut lines = |prefix: &str| {
        for (name, source) in STAT {
            let value = match (name, swap) {
                ("swap", None) => continue,
                ("swap", Some((used, _))) => used,
                _ => keyed(v2, source),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{prefix}{name} {value}");
        }
        if prefix.is_empty() {
            let _ = writeln!(text, "hierarchical_memory_limit {limit}");
            if let Some((_, with_swap)) = swap {
                let _ = writeln!(text, "hierarchical_memsw_limit {with_swap}");
            }
        }
    };
    lines("");
    lines("total_");
    text
}

/// Bytes of kernel memory from v2's `memory.stat`. Before 5.18 it has the parts only.
#[must_use]
pub fn kernel(v2: &str) -> u64 {
    let parts = ["kernel_stack", "pagetables", "percpu", "vmalloc", "slab"];
    field(v2, "kernel").unwrap_or_else(|| parts.iter().map(|part| keyed(v2, part)).sum())
}

/// Lines of v1's `memory.numa_stat`, each with the lists that it counts.
const NUMA: [(&str, &[&str]); 4] = [
    ("total", &["inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable"]),
    ("file", &["inactive_file", "active_file"]),
    ("anon", &["inactive_anon", "active_anon"]),
    ("unevictable", &["unevictable"]),
];

/// The text of v1's `memory.numa_stat`, in pages, from v2's, in bytes. v2 counts subtrees only:
/// the plain lines and the `hierarchical_` lines are equal.
#[must_use]
pub fn numa_stat(v2: &str, page: u64) -> String {
    let mut plain = String::new();
    for (name, lists) in NUMA {
        let mut nodes = BTreeMap::<u64, u64>::new();
        for line in v2.lines() {
            let mut words = line.split_whitespace();
            if !words.next().is_some_and(|list| lists.contains(&list)) {
                continue;
            }
            for (node, bytes) in words.filter_map(|word| word.strip_prefix('N')?.split_once('=')) {
                if let (Ok(node), Ok(bytes)) = (node.parse(), bytes.parse::<u64>()) {
                    *nodes.entry(node).or_default() += bytes / page;
                }
            }
        }
        // Writing to a String cannot fail.
        let _ = write!(plain, "{name}={}", nodes.values().sum::<u64>());
        for (node, pages) in nodes {
            let _ = write!(plain, " N{node}={pages}");
        }
        plain.push('\n');
    }
    let hierarchical: String = plain.lines().map(|line| format!("hierarchical_{line}\n")).collect();
    plain + &hierarchical
}

#[cfg(test)]
mod tests {
    use super::{
        ids, kernel, keyed, limit, limit_with_swap, numa_stat, oom_control, root_usage, stat, swap_used,
        task_list, unlimited, working_set,
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
    fn lists_of_tasks_are_sorted_and_leave_out_what_has_no_number() {
        assert_eq!(ids("12\n0\n3\n12\n0\n"), [3, 12]);
        assert!(ids("").is_empty());
        assert_eq!(task_list(vec![12, 3]), "3\n12\n");
        assert_eq!(task_list(Vec::new()), "");
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
        let v2 = "anon 4096\nfile 8192\nanon_thp 0\ninactive_file 12\npgfault 5\n";
        let text = stat(v2, 1, Some((77, 2)));
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
        let text = stat(v2, 1, None);
        assert!(!text.contains("swap ") && !text.contains("memsw"), "{text}");
        assert_eq!(text.lines().count(), 39);
    }

    #[test]
    fn kernel_memory_is_one_line_or_the_sum_of_its_parts() {
        assert_eq!(kernel("kernel 7\nkernel_stack 1\nslab 2\n"), 7);
        assert_eq!(kernel("kernel_stack 1\npagetables 2\npercpu 4\nsock 8\nslab 16\n"), 23);
    }

    #[test]
    fn numa_stat_is_in_pages() {
        let v2 = "anon N0=1 N1=1\nfile N0=1 N1=1\ninactive_anon N0=4096 N1=8192\nactive_anon N0=0 N1=4096\n\
                  inactive_file N0=12288 N1=0\nactive_file N0=4096 N1=0\nunevictable N0=0 N1=4096\n";
        let plain = "total=9 N0=5 N1=4\nfile=4 N0=4 N1=0\nanon=4 N0=1 N1=3\nunevictable=1 N0=0 N1=1\n";
        let hierarchical: String = plain.lines().map(|line| format!("hierarchical_{line}\n")).collect();
        assert_eq!(numa_stat(v2, PAGE), format!("{plain}{hierarchical}"));
    }
}
