//! Reads what the kernel logs of OOM kills (`mm/oom_kill.c`, 5.1 and newer): records of `/dev/kmsg`.
//!
//! Three lines are of interest. `oom-kill:constraint=...` says by whose limit and of which group, and is left
//! out where there are many (`oom_rs`, ten in five seconds). `Tasks in ... are going to be killed` is of
//! `memory.oom.group`. `...: Killed process ...` is there for each kill.
//!
//! A process chooses its name, and a user to whom a group is delegated those of groups below it: a name may
//! look like a field. So the name of a victim is what stands between a number before it and numbers
//! behind it; the line of the choice has to end with just that name and number; and where paths can be read in
//! two ways they are not known.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use monitor_common::protocol::ring::{KillReason, VictimMemory};

use crate::kernel::page_size;

/// Bytes of a line that are kept: two paths of groups, and the rest.
const LONGEST: usize = 16 << 10;
/// Bytes of a process's name, without the NUL at its end (`TASK_COMM_LEN`).
const NAME: usize = 15;

const CHOSEN: &[u8] = b"oom-kill:constraint=";
const TASKS: &[u8] = b"Tasks in ";
const TASKS_END: &[u8] = b" are going to be killed due to memory.oom.group set";
const KILLED: &[u8] = b"Killed process ";
const TOTAL: &[u8] = b") total-vm:";
const LIMIT: &[u8] = b",oom_memcg=/";
const HOST: &[u8] = b",global_oom,task_memcg=/";
const GROUP: &[u8] = b",task_memcg=/";

/// Something that the kernel has logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Logged {
    /// A process was killed.
    Process(LoggedVictim),
    /// All processes of a group are killed; by the limit of another one, where that is known.
    Group { group: PathBuf, reason: KillReason, limit: Option<PathBuf> },
}

/// A process that was killed. Paths are those of groups below the root of their hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedVictim {
    /// Process id in the first pid namespace.
    pub pid: u64,
    /// The process's name, with a NUL at its end.
    pub comm: [u8; NAME + 1],
    /// User id in the first user namespace.
    pub uid: Option<u32>,
    /// The score's part that is set by hand.
    pub score_adj: Option<i32>,
    /// Memory by kind; swap is not logged.
    pub memory: VictimMemory,
    /// The reason of the kill.
    pub reason: KillReason,
    /// The group whose limit caused it, where that was logged.
    pub limit: Option<PathBuf>,
    /// The victim's own group, where that was logged.
    pub group: Option<PathBuf>,
    /// The group that is killed as a whole, of which the victim may be one.
    pub whole: Option<PathBuf>,
}

/// The lines so far that later ones belong to.
#[derive(Debug, Default)]
pub struct OomLog {
    /// A line that the next record may continue, and the number of that record.
    open: Vec<u8>,
    next: u64,
    /// Reason and limit of the OOM under way, where they were logged.
    cause: Option<(KillReason, Option<PathBuf>)>,
    whole: Option<PathBuf>,
}

/// A record of `/dev/kmsg`: its number, whether it continues the one before, and its text.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    number: u64,
    continues: bool,
    text: Vec<u8>,
}

impl Record {
    /// A record of the kernel's own: what processes write there has another facility, whatever they claim
    /// (`devkmsg_write`).
    fn of(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == b';')?;
        let (header, text) = (str::from_utf8(bytes.get(..end)?).ok()?, bytes.get(end + 1..)?);
        let mut fields = header.split(',');
        let (level, number) = (fields.next()?.parse::<u32>().ok()?, fields.next()?.parse().ok()?);
        let continues = fields.nth(1)?.starts_with('c');
        // What follows the first line is of devices.
        let text = text.split(|byte| *byte == b'\n').next()?;
        (level >> 3 == 0).then(|| Self { number, continues, text: unescaped(text) })
    }
}

/// Undoes `\xNN`, by which the kernel writes what is not printable, and backslashes.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let (mut plain, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((byte, after)) = rest.split_first() {
        let digits = rest.strip_prefix(b"\\x").and_then(|digits| digits.get(..2));
        let escaped = digits.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok());
        plain.push(escaped.unwrap_or(*byte));
        rest = if escaped.is_some() { rest.get(4..).unwrap_or_default() } else { after };
    }
    plain
}

impl OomLog {
    /// Takes in a record, and returns what it tells.
    pub fn read(&mut self, record: &[u8]) -> Option<Logged> {
        let Record { number, continues, text } = Record::of(record)?;
        if continues {
            if self.open.is_empty() || number != self.next || self.open.len() + text.len() > LONGEST {
                return None;
            }
            self.open.extend(text);
            self.next = number + 1;
            return self.whole_group();
        }
        if text.starts_with(CHOSEN) || text.starts_with(TASKS) {
            if text.starts_with(CHOSEN) {
                (self.cause, self.whole) = (None, None);
            }
            (self.open, self.next) = (text, number + 1);
            return self.whole_group();
        }
        self.killed(&text).map(Logged::Process)
    }

    /// Forgets what came before: records in between are lost.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// The group of a whole line of `memory.oom.group`.
    fn whole_group(&mut self) -> Option<Logged> {
        let group = path(self.open.strip_prefix(TASKS)?.strip_suffix(TASKS_END)?)?;
        self.open.clear();
        self.whole = Some(group.clone());
        let (reason, limit) = self.cause.clone().unwrap_or((KillReason::Unknown, None));
        Some(Logged::Group { group, reason, limit })
    }

    fn killed(&mut self, text: &[u8]) -> Option<LoggedVictim> {
        let (reason, rest) = [
            (KillReason::Limit, &b"Memory cgroup out of memory: "[..]),
            (KillReason::Host, b"Out of memory: "),
            (KillReason::Host, b"Out of memory (oom_kill_allocating_task): "),
        ]
        .into_iter()
        .find_map(|(reason, begin)| Some((reason, text.strip_prefix(begin)?)))?;
        let rest = rest.strip_prefix(KILLED)?;
        let space = rest.iter().position(|byte| *byte == b' ')?;
        let pid = number(rest.get(..space)?)?;
        let rest = rest.get(space..)?.strip_prefix(b" (")?;
        // The last one: behind it are only numbers.
        let end = rest.windows(TOTAL.len()).rposition(|part| part == TOTAL)?;
        let name = rest.get(..end).filter(|name| name.len() <= NAME)?;
        let fields = Fields(str::from_utf8(rest.get(end + 2..)?).ok()?);
        let mut comm = [0; NAME + 1];
        comm.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
        let pages = |name| fields.bytes(name).map_or(VictimMemory::UNKNOWN.swap, |bytes| bytes / page_size());
        let mut victim = LoggedVictim {
            pid,
            comm,
            uid: fields.get("UID").and_then(|uid| uid.parse().ok()),
            score_adj: fields.get("oom_score_adj").and_then(|score| score.parse().ok()),
            memory: VictimMemory {
                total: pages("total-vm"),
                anon: pages("anon-rss"),
                file: pages("file-rss"),
                shmem: pages("shmem-rss"),
                page_tables: fields.bytes("pgtables").unwrap_or(VictimMemory::UNKNOWN.page_tables),
                ..VictimMemory::UNKNOWN
            },
            reason,
            limit: None,
            group: None,
            whole: self.whole.clone(),
        };
        let chosen = std::mem::take(&mut self.open);
        if let Some(places) = chosen.strip_prefix(CHOSEN).and_then(|line| places(line, name, pid)) {
            (victim.limit, victim.group) = places;
            self.cause = Some((reason, victim.limit.clone()));
        } else if self.whole.is_some() {
            victim.limit = self.cause.as_ref().and_then(|(_, limit)| limit.clone());
        } else {
            // Another OOM, whose line of the choice was left out.
            self.cause = Some((reason, None));
        }
        Some(victim)
    }
}

/// The limit's group and the victim's, of a line that chooses this process; `None` where it is of another.
fn places(line: &[u8], name: &[u8], pid: u64) -> Option<(Option<PathBuf>, Option<PathBuf>)> {
    let at = line.windows(5).rposition(|part| part == b",uid=")?;
    number(line.get(at + 5..)?)?;
    let line = line.get(..at)?.strip_suffix(format!(",pid={pid}").as_bytes())?;
    let line = line.strip_suffix(name)?.strip_suffix(b",task=")?;
    let find = |what: &[u8]| line.windows(what.len()).position(|part| part == what);
    // The first of each is the kernel's own: a name of a cpuset, which comes before, has no slash.
    match (find(LIMIT), find(HOST)) {
        (limit, Some(host)) if limit.is_none_or(|limit| host < limit) => {
            Some((None, path(line.get(host + HOST.len() - 1..)?)))
        }
        (Some(limit), _) => {
            let both = line.get(limit + LIMIT.len() - 1..)?;
            let mut readings = (0..both.len()).filter_map(|at| {
                let group = both.get(at..)?.strip_prefix(GROUP)?;
                let group = path(&[b"/", group].concat())?;
                let limit = path(both.get(..at)?)?;
                group.starts_with(&limit).then_some((limit, group))
            });
            let first = readings.next();
            match (first, readings.next()) {
                (Some((limit, group)), None) => Some((Some(limit), Some(group))),
                _ => Some((None, None)),
            }
        }
        _ => Some((None, None)),
    }
}

/// A path of a group, which begins at the root.
fn path(bytes: &[u8]) -> Option<PathBuf> {
    let is_plain = |part: &[u8]| part != b".." && part != b".";
    let is_path = bytes.starts_with(b"/") && bytes.split(|byte| *byte == b'/').all(is_plain);
    is_path.then(|| Path::new(OsStr::from_bytes(bytes)).to_owned())
}

fn number(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()
}

/// Fields of a line, each `name:value`, behind the names that others choose.
struct Fields<'a>(&'a str);

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.split([' ', ',']).find_map(|field| field.strip_prefix(name)?.strip_prefix(':'))
    }

    fn bytes(&self, name: &str) -> Option<u64> {
        self.get(name)?.strip_suffix("kB")?.parse::<u64>().ok()?.checked_mul(1024)
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use monitor_common::protocol::ring::{KillReason, VictimMemory};
    use proptest::prelude::*;

    use super::{Logged, LoggedVictim, OomLog};
    use crate::kernel::page_size;

    const NUMBERS: &str = "total-vm:4096kB, anon-rss:1024kB, file-rss:512kB, shmem-rss:0kB, UID:1000 pgtables:64kB oom_score_adj:-5";

    /// A record as `/dev/kmsg` shows it, with what is not printable escaped.
    fn record(number: u64, flag: char, text: &[u8]) -> Vec<u8> {
        let mut record = format!("6,{number},5000,{flag};").into_bytes();
        for byte in text {
            match byte {
                b' '..=b'~' if *byte != b'\\' => record.push(*byte),
                _ => record.extend(format!("\\x{byte:02x}").bytes()),
            }
        }
        record.push(b'\n');
        record
    }

    fn chosen(places: &str, name: &str) -> String {
        format!(
            "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=box,mems_allowed=0{places},task={name},pid=42,uid=1000"
        )
    }

    fn killed(name: &str) -> String {
        format!("Memory cgroup out of memory: Killed process 42 ({name}) {NUMBERS}")
    }

    fn read(lines: &[&str]) -> Vec<Logged> {
        let mut log = OomLog::default();
        (0..)
            .zip(lines)
            .filter_map(|(number, line)| log.read(&record(number, '-', line.as_bytes())))
            .collect()
    }

    fn victim(lines: &[&str]) -> LoggedVictim {
        match read(lines).pop() {
            Some(Logged::Process(victim)) => victim,
            other => panic!("{other:?} of {lines:?}"),
        }
    }

    fn known_path(path: &str) -> PathBuf {
        PathBuf::from(path)
    }

    #[test]
    fn a_kill_is_read_with_its_groups_and_memory() {
        let found = victim(&[&chosen(",oom_memcg=/a,task_memcg=/a/b c", "sh"), &killed("sh")]);
        assert_eq!(
            (found.pid, &found.comm[..3], found.uid, found.score_adj),
            (42, &b"sh\0"[..], Some(1000), Some(-5))
        );
        assert_eq!(
            (found.limit, found.group, found.reason),
            (Some(known_path("/a")), Some(known_path("/a/b c")), KillReason::Limit)
        );
        assert_eq!(found.memory.anon, (1 << 20) / page_size());
        assert_eq!((found.memory.page_tables, found.memory.swap), (64 << 10, VictimMemory::UNKNOWN.swap));
        let line = chosen(",global_oom,task_memcg=/a", "sh").replace("CONSTRAINT_MEMCG", "CONSTRAINT_NONE");
        let host = victim(&[&line, &killed("sh").replace("Memory cgroup out", "Out")]);
        assert_eq!((host.limit, host.group, host.reason), (None, Some(known_path("/a")), KillReason::Host));
        // A kernel that says less.
        let short = victim(&["Out of memory: Killed process 7 (x) total-vm:8kB, anon-rss:4kB"]);
        assert_eq!((short.pid, short.uid, short.memory.file), (7, None, VictimMemory::UNKNOWN.file));
    }

    #[test]
    fn a_line_that_was_left_out_is_not_made_up_from_another() {
        let lines = [&chosen(",oom_memcg=/a,task_memcg=/a", "sh"), &killed("sh"), &killed("sh")];
        let found = victim(&lines.map(String::as_str));
        assert_eq!((found.limit, found.group), (None, None));
        let other = killed("sh").replace("42", "43");
        assert_eq!(victim(&[lines[0], &other]).group, None, "it was about another process");
    }

    #[test]
    fn a_group_that_is_killed_as_a_whole_is_told_with_each_of_its_processes() {
        let tasks = "Tasks in /a/b are going to be killed due to memory.oom.group set";
        let found =
            read(&[&chosen(",oom_memcg=/a,task_memcg=/a/b", "sh"), &killed("sh"), tasks, &killed("x")]);
        let group =
            Logged::Group { group: "/a/b".into(), reason: KillReason::Limit, limit: Some(known_path("/a")) };
        assert_eq!(found[1], group);
        let Logged::Process(last) = &found[2] else { panic!("{found:?}") };
        assert_eq!(
            (&last.limit, &last.group, &last.whole),
            (&Some(known_path("/a")), &None, &Some(known_path("/a/b")))
        );
    }

    #[test]
    fn a_line_in_parts_is_put_together() {
        let mut log = OomLog::default();
        let line = chosen(",oom_memcg=/a,task_memcg=/a", "sh");
        let (first, second) = line.split_at(90);
        assert_eq!(log.read(&record(4, '-', first.as_bytes())), None);
        assert_eq!(log.read(&record(5, 'c', second.as_bytes())), None);
        let Some(Logged::Process(found)) = log.read(&record(6, '-', killed("sh").as_bytes())) else {
            panic!()
        };
        assert_eq!(found.group, Some(known_path("/a")));
        // A record in between is lost.
        log.read(&record(7, '-', first.as_bytes()));
        log.read(&record(9, 'c', second.as_bytes()));
        let Some(Logged::Process(found)) = log.read(&record(10, '-', killed("sh").as_bytes())) else {
            panic!()
        };
        assert_eq!(found.group, None);
    }

    #[test]
    fn what_processes_write_to_the_log_is_no_kill() {
        let text = killed("sh");
        let mut log = OomLog::default();
        assert_eq!(log.read(format!("12,1,5,-;{text}\n").as_bytes()), None, "facility 1 is of users");
        assert!(log.read(format!("4,1,5,-,caller=T7;{text}\n SUBSYSTEM=x\n").as_bytes()).is_some());
        for none in ["", ";", "6,1,5;x", "x,1,5,-;x", "6,1,5,-;Killed process 4 (x) total-vm:1kB"] {
            assert_eq!(log.read(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn a_name_that_looks_like_fields_is_a_name() {
        for name in [") total-vm:9", ",pid=1,uid=0", "a,task=b", "x\n6,7,8,-;", "\\x0a", "", "a,task_memcg=/"]
        {
            let found = victim(&[&chosen(",oom_memcg=/a,task_memcg=/a/b", name), &killed(name)]);
            let comm: Vec<u8> = found.comm.into_iter().take_while(|byte| *byte != 0).collect();
            assert_eq!((comm.as_slice(), found.pid, found.uid), (name.as_bytes(), 42, Some(1000)));
            assert_eq!(
                (found.limit, found.group),
                (Some(known_path("/a")), Some(known_path("/a/b"))),
                "{name}"
            );
        }
        // Groups may be named so that there are two readings.
        let places = ",oom_memcg=/u,task_memcg=/u/x,task_memcg=/u,task_memcg=/u/x";
        let found = victim(&[&chosen(places, "sh"), &killed("sh")]);
        assert_eq!((found.limit, found.group), (None, None));
        assert_eq!(read(&["Tasks in /a/../b are going to be killed due to memory.oom.group set"]), []);
    }

    proptest! {
        /// Whatever bytes a record has: nothing but text of the right form is a kill.
        #[test]
        fn no_record_is_trouble(records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..8)) {
            let mut log = OomLog::default();
            for record in records {
                log.read(&record);
                let mut text = b"6,1,2,-;oom-kill:constraint=".to_vec();
                text.extend(&record);
                log.read(&text);
                let mut text = b"6,2,2,c;Out of memory: Killed process ".to_vec();
                text.extend(&record);
                log.read(&text);
            }
        }

        /// A victim is read as it is, whatever it and its groups are called, or its groups are not known.
        #[test]
        fn names_change_nothing_else(
            name in "[a-z,=()/ \\\\:\n]{0,15}",
            limit in "/[a-z,=_]{1,12}",
            below in "(/[a-z,=_]{1,20}){0,3}",
        ) {
            let group = format!("{limit}{below}");
            let found = victim(&[&chosen(&format!(",oom_memcg={limit},task_memcg={group}"), &name), &killed(&name)]);
            prop_assert_eq!(&found.comm[..name.len()], name.as_bytes());
            prop_assert_eq!((found.pid, found.uid), (42, Some(1000)));
            if let Some(known) = found.group {
                prop_assert_eq!(&known, Path::new(&group));
                prop_assert_eq!(found.limit, Some(known_path(&limit)));
            }
        }
    }
}
