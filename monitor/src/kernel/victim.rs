//! Places of what is told of a victim of the OOM killer. A kernel that lacks one of them is watched
//! all the same: 0 says that it is not known.

use crate::kernel::btf::Btf;

/// The offsets that the programs read a victim by, each with the name of its global.
pub(super) fn offsets(btf: &Btf) -> Vec<(&'static str, u64)> {
    let at = |name: &str, path: &str| btf.member_offset(name, path).ok().map(u64::from);
    let both = |first: Option<u64>, second: Option<u64>| first.zip(second).unwrap_or_default();
    let in_enum =
        |name: &str, variant: &str| btf.enum_value(name, variant).and_then(|value| u64::try_from(value).ok());
    let leader = in_enum("pid_type", "PIDTYPE_TGID")
        .and_then(|of_group| Some(at("signal_struct", "pids")? + of_group * size_of::<u64>() as u64));
    let number = at("upid", "nr").and_then(|number| Some(at("pid", "numbers")? + number));
    let own_pid = [leader, at("pid", "level"), number, btf.struct_size("upid").map(u64::from)];
    let own_pid: Option<Vec<u64>> = own_pid.into_iter().collect();
    let own_pid = own_pid.unwrap_or_else(|| vec![0; 4]);
    let (cred, uid) = both(at("task_struct", "real_cred"), at("cred", "uid"));
    let (group_leader, start) = both(at("task_struct", "group_leader"), at("task_struct", "start_boottime"));
    let (arg_start, arg_end) = both(at("mm_struct", "arg_start"), at("mm_struct", "arg_end"));
    let counters = Counters::of(btf);
    let pages = |variant: &str| {
        let index = in_enum("", variant);
        counters.as_ref().zip(index).map_or(0, |(counters, index)| counters.first + index * counters.each)
    };
    vec![
        ("OFF_SIGNAL_SCORE_ADJ", at("signal_struct", "oom_score_adj").unwrap_or(0)),
        ("OFF_SIGNAL_PID", own_pid[0]),
        ("OFF_PID_LEVEL", own_pid[1]),
        ("OFF_PID_NUMBERS", own_pid[2]),
        ("SIZE_UPID", own_pid[3]),
        ("OFF_TASK_CRED", cred),
        ("OFF_CRED_UID", uid),
        ("OFF_TASK_LEADER", group_leader),
        ("OFF_TASK_START", start),
        ("OFF_TASK_MM", at("task_struct", "mm").unwrap_or(0)),
        ("OFF_MM_TOTAL", at("mm_struct", "total_vm").unwrap_or(0)),
        ("OFF_MM_ANON", pages("MM_ANONPAGES")),
        ("OFF_MM_FILE", pages("MM_FILEPAGES")),
        ("OFF_MM_SHMEM", pages("MM_SHMEMPAGES")),
        ("OFF_MM_SWAP", pages("MM_SWAPENTS")),
        ("OFF_MM_PAGE_TABLES", at("mm_struct", "pgtables_bytes").unwrap_or(0)),
        ("OFF_MM_ARG_START", arg_start),
        ("OFF_MM_ARG_END", arg_end),
    ]
}

/// The places of a process's counts of pages by kind (`mm_struct.rss_stat`).
struct Counters {
    first: u64,
    each: u64,
}

impl Counters {
    /// Counters of the kinds that are known: plain words (up to 6.1), or counters of which each
    /// processor has a part (6.2 and newer). The kernel's own line of a kill leaves these parts out.
    fn of(btf: &Btf) -> Option<Self> {
        if let Ok(first) = btf.member_offset("mm_struct", "rss_stat.count") {
            return Some(Self { first: first.into(), each: size_of::<u64>() as u64 });
        }
        if !btf.is_array_of("mm_struct", "rss_stat", "percpu_counter") {
            return None;
        }
        let first = btf.member_offset("mm_struct", "rss_stat").ok()?;
        let count = btf.member_offset("percpu_counter", "count").ok()?;
        Some(Self { first: u64::from(first + count), each: btf.struct_size("percpu_counter")?.into() })
    }
}
