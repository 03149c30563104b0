//! Notes on a recorded group beside its curve: the latest of each kind, which
//! [`kept`](super::kept) has for the next agent.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    black_box::{
        BlackBoxHeader, KillEntry, LimitEntry, OomEntry, PressureEntry, RecordReason, Recording, SignalEntry,
    },
    frontend::victim_row,
    kernel::page_size,
    kills::{CommandLine, Kill},
    source::GroupId,
    watcher::{Cause, Event},
};

/// Entries of each kind that are kept.
const KEPT: usize = 256;
/// Bytes of text in the entries of a kind: users choose how long a group's path and a command line are.
const TEXT: usize = 64 << 10;
/// Time from a kill to its file, which has the end of the curve and further victims.
const AFTER: Duration = Duration::from_millis(300);
/// The shortest time between two files of a group.
const BETWEEN: Duration = Duration::from_secs(10);

/// A kill, and the process while the agent looks up its details; `None`: a group as a whole, or the entry has
/// them.
#[derive(Clone, Debug, Default)]
pub struct NotedKill {
    pub entry: KillEntry,
    pub process: Option<Arc<Kill>>,
}

impl NotedKill {
    /// The entry with what is known of the process by now.
    fn entry(&self) -> KillEntry {
        let Some(process) = &self.process else { return self.entry.clone() };
        let row = victim_row(process, |id| format!("#{id}"));
        let pid = |pid: Option<u64>| pid.and_then(|pid| u32::try_from(pid).ok());
        KillEntry {
            pid: pid(row.pid),
            ns_pid: pid(row.own_pid),
            comm: row.comm,
            cmdline: row.command.map(|args| args.join(" ")),
            exe: row.exe,
            uid: row.uid,
            anon_rss: row.anon_rss,
            file_rss: row.file_rss,
            shmem_rss: row.shmem_rss,
            swap: row.swap,
            oom_score_adj: row.oom_score_adj,
            unit: row.unit,
            container: row.container_id,
            ..self.entry.clone()
        }
    }

    /// Bytes of text; of a process that is being looked up as many as it may have.
    fn text(&self) -> usize {
        const MOST: usize = 4 * CommandLine::MOST;
        let KillEntry { comm, cmdline, exe, unit, container, victim_group, limit_of, .. } = &self.entry;
        let texts = [comm, cmdline, exe, unit, container, victim_group, limit_of];
        let known: usize = texts.into_iter().flatten().map(String::len).sum();
        known + if self.process.is_some() { MOST } else { 0 }
    }

    /// Lets go of a process that was looked up: from then on the entry has all that is shown of it.
    fn settle(&mut self) {
        if self.process.as_ref().is_some_and(|process| process.details().is_some()) {
            self.entry = self.entry();
            self.process = None;
        }
    }
}

/// A recorded group, with its notes.
#[derive(Debug)]
pub struct RecordedGroup {
    pub group: GroupId,
    pub cgroup_id: u64,
    /// Path below the hierarchy's root.
    pub path: String,
    /// When the group was found to be gone.
    pub gone: Option<Instant>,
    /// When its next file is due.
    due: Option<Instant>,
    /// When its last file was written.
    written: Option<Instant>,
    limits: VecDeque<LimitEntry>,
    signals: VecDeque<SignalEntry>,
    pressure: VecDeque<PressureEntry>,
    ooms: VecDeque<OomEntry>,
    kills: VecDeque<NotedKill>,
    /// Whether there are notes that are not kept yet.
    is_new: bool,
}

impl RecordedGroup {
    pub fn new(group: GroupId, cgroup_id: u64, path: String) -> Self {
        Self {
            group,
            cgroup_id,
            path,
            gone: None,
            due: None,
            written: None,
            limits: VecDeque::new(),
            signals: VecDeque::new(),
            pressure: VecDeque::new(),
            ooms: VecDeque::new(),
            kills: VecDeque::new(),
            is_new: false,
        }
    }

    /// Goes on with the notes of an earlier agent, and with the file that was due.
    pub fn go_on_with(&mut self, notes: Recording) {
        let of_kill = |entry| NotedKill { entry, process: None };
        self.limits = notes.limits.into();
        self.signals = notes.signals.into();
        self.pressure = notes.pressure.into();
        self.ooms = notes.ooms.into();
        self.kills = notes.kills.into_iter().map(of_kill).collect();
        self.due = (notes.header.reason == RecordReason::Oom).then(|| Instant::now() + AFTER);
    }

    /// Whether there are notes to keep for the next agent.
    pub const fn has_new(&self) -> bool {
        self.is_new
    }

    /// The notes to keep for the next agent, where there are new ones.
    pub fn take_new(&mut self) -> Option<Recording> {
        if !self.is_new {
            return None;
        }
        self.settle_kills();
        // Details of a process come later.
        self.is_new = self.kills.iter().any(|kill| kill.process.is_some());
        let reason = if self.due.is_some() { RecordReason::Oom } else { RecordReason::Request };
        Some(self.recording(BlackBoxHeader::new(self.path.clone(), self.cgroup_id, reason)))
    }

    /// Notes the lowest limit from the group up, in pages, if it is another than before.
    pub fn note_limit(&mut self, at: u64, pages: u64) {
        let bytes = (pages != u64::MAX).then(|| pages.saturating_mul(page_size()));
        if self.limits.back().is_none_or(|last| last.bytes != bytes) {
            self.is_new = true;
            keep(&mut self.limits, LimitEntry { at, of: None, bytes });
        }
    }

    /// Notes what a registration on the group was signalled for; `name` is a group's path.
    pub fn note_signal(&mut self, at: u64, event: &Event, name: impl Fn(u64) -> String) {
        let (mut bytes, page) = (None, page_size());
        self.is_new = true;
        let cause = match &event.cause {
            Cause::Crossed { on, threshold, direction, usage } => {
                bytes = Some(usage.saturating_mul(page));
                format!("{} crossed {} {}", on.name(), threshold.saturating_mul(page), direction.as_str())
            }
            Cause::Oom { limit } => {
                let limit_of = Some(name(*limit));
                self.keep_oom(OomEntry { at, limit_of });
                "OOM".to_owned()
            }
            Cause::Pressure { level, origin } => {
                // The group's own windows come by themselves, without signals.
                if event.signals == 0 || *origin != event.cgroup_id {
                    keep(&mut self.pressure, PressureEntry { at, level: level.as_str().to_owned() });
                }
                if event.signals == 0 {
                    return;
                }
                format!("pressure {}", level.as_str())
            }
            Cause::Empty => "the last task left".to_owned(),
            Cause::Removed => "the group was removed".to_owned(),
            Cause::OomKill { .. } | Cause::GroupKill { .. } => return,
        };
        keep(&mut self.signals, SignalEntry { at, registration: None, cause, bytes });
    }

    /// Notes an OOM; the oldest give way.
    fn keep_oom(&mut self, oom: OomEntry) {
        keep(&mut self.ooms, oom);
        bound(&mut self.ooms, |oom| oom.limit_of.as_ref().map_or(0, String::len));
    }

    /// Lets go of the processes that were looked up.
    fn settle_kills(&mut self) {
        self.kills.iter_mut().for_each(NotedKill::settle);
    }

    /// Notes a kill, for which a file is due soon.
    pub fn note_kill(&mut self, kill: NotedKill) {
        // Where no next agent gets the notes, this alone lets go of them.
        self.settle_kills();
        let KillEntry { at, limit_of, .. } = &kill.entry;
        // An OOM with a registration on it has been noted already.
        let is_known = self.ooms.back().is_some_and(|oom| at.abs_diff(oom.at) < 1_000_000_000);
        if !is_known {
            self.keep_oom(OomEntry { at: *at, limit_of: limit_of.clone() });
        }
        keep(&mut self.kills, kill);
        bound(&mut self.kills, NotedKill::text);
        self.is_new = true;
        let soon = Instant::now() + AFTER;
        let earliest = self.written.map_or(soon, |written| soon.max(written + BETWEEN));
        self.due.get_or_insert(earliest);
    }

    /// When a file is due because of a kill.
    pub const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether a file is due by then; `None`: at the end, which no file waits for.
    pub fn is_due(&self, by: Option<Instant>) -> bool {
        self.due.is_some_and(|due| by.is_none_or(|by| due <= by))
    }

    /// Notes that a file was written, or could not be.
    pub fn note_written(&mut self, reason: RecordReason) {
        if reason == RecordReason::Oom {
            (self.due, self.written) = (None, Some(Instant::now()));
            self.is_new = true;
        }
    }

    /// A recording of the group, without curve and registrations.
    pub fn recording(&self, header: BlackBoxHeader) -> Recording {
        let mut recording = Recording::new(header);
        recording.limits = self.limits.iter().cloned().collect();
        recording.signals = self.signals.iter().cloned().collect();
        recording.pressure = self.pressure.iter().cloned().collect();
        recording.ooms = self.ooms.iter().cloned().collect();
        recording.kills = self.kills.iter().map(NotedKill::entry).collect();
        recording
    }
}

/// Adds an entry; the oldest gives way.
fn keep<T>(all: &mut VecDeque<T>, entry: T) {
    if all.len() == KEPT {
        all.pop_front();
    }
    all.push_back(entry);
}

/// Bounds the entries' text; the newest stays, however long it is.
fn bound<T>(all: &mut VecDeque<T>, text: impl Fn(&T) -> usize) {
    let mut bytes: usize = all.iter().map(&text).sum();
    while bytes > TEXT && all.len() > 1 {
        bytes -= all.pop_front().as_ref().map_or(0, &text);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use monitor_common::{
        grammar::control_file::ControlFile,
        protocol::{
            crossing::Direction,
            pressure::Level,
            ring::{KillReason, Victim},
        },
    };

    use super::{KEPT, NotedKill, RecordedGroup, TEXT};
    use crate::{
        black_box::{BlackBoxHeader, KillEntry, RecordReason},
        kernel::page_size,
        kills::{Kill, KillDetails},
        source::GroupId,
        watcher::{Cause, Event},
    };

    fn group() -> RecordedGroup {
        RecordedGroup::new(GroupId { slot: 1, generation: 2 }, 42, "/a".to_owned())
    }

    fn killed(entry: KillEntry) -> NotedKill {
        NotedKill { entry, process: None }
    }

    fn header() -> BlackBoxHeader {
        BlackBoxHeader::new("/a".to_owned(), 42, RecordReason::Oom)
    }

    #[test]
    fn a_limit_is_noted_when_it_moves() {
        let mut group = group();
        for (at, pages) in [(1, 10), (2, 10), (3, u64::MAX), (4, 10)] {
            group.note_limit(at, pages);
        }
        let limits = group.recording(header()).limits;
        let page = page_size();
        let found: Vec<_> = limits.iter().map(|limit| (limit.at, limit.bytes)).collect();
        assert_eq!(found, [(1, Some(10 * page)), (3, None), (4, Some(10 * page))]);
    }

    #[test]
    fn an_oom_that_was_signalled_and_kills_is_noted_once() {
        let mut group = group();
        let event = Event { cgroup_id: 42, cause: Cause::Oom { limit: 42 }, signals: 1 };
        group.note_signal(5, &event, |id| format!("#{id}"));
        group.note_kill(killed(KillEntry { at: 6, ..KillEntry::default() }));
        group.note_kill(killed(KillEntry {
            at: 5_000_000_000,
            limit_of: Some("/".to_owned()),
            ..KillEntry::default()
        }));
        let recording = group.recording(header());
        assert_eq!(recording.ooms.iter().map(|oom| oom.at).collect::<Vec<_>>(), [5, 5_000_000_000]);
        assert_eq!(recording.ooms[0].limit_of.as_deref(), Some("#42"));
        assert_eq!(recording.kills.len(), 2);
    }

    #[test]
    fn a_file_is_due_after_a_kill_and_not_at_once_again() {
        let mut group = group();
        assert!(group.due().is_none());
        group.note_kill(NotedKill::default());
        let first = group.due().expect("a file is due");
        group.note_kill(NotedKill::default());
        assert_eq!(group.due(), Some(first), "one file for both");
        group.note_written(RecordReason::Oom);
        group.note_kill(NotedKill::default());
        assert!(group.due().expect("another file") > first + super::AFTER);
        let now = Some(std::time::Instant::now());
        assert!(!group.is_due(now) && group.is_due(None), "at the agent's end it is written all the same");
        group.note_written(RecordReason::Request);
        assert!(group.due().is_some(), "what somebody requested is no answer to the kill");
    }

    #[test]
    fn a_window_is_noted_once_whoever_is_signalled() {
        let mut group = group();
        let mut note = |at, origin, signals| {
            let cause = Cause::Pressure { level: Level::Medium, origin };
            group.note_signal(at, &Event { cgroup_id: 42, cause, signals }, |_| String::new());
        };
        note(1, 42, 0);
        note(2, 42, 1);
        note(3, 43, 1);
        let recording = group.recording(header());
        let at: Vec<_> = recording.pressure.iter().map(|window| (window.at, window.level.as_str())).collect();
        assert_eq!(at, [(1, "medium"), (3, "medium")], "its own, and one from below");
        assert_eq!(recording.signals.len(), 2);
    }

    #[test]
    fn the_next_agent_goes_on_with_the_notes_and_the_file_that_is_due() {
        let mut before = group();
        before.note_limit(1, 10);
        before.note_kill(killed(KillEntry { at: 6, pid: Some(7), ..KillEntry::default() }));
        let notes = before.take_new().expect("new ones");
        assert!(before.take_new().is_none(), "they are kept");
        let mut after = group();
        after.go_on_with(notes.clone());
        assert!(after.due().is_some() && after.take_new().is_none());
        assert_eq!(after.recording(header()).kills, notes.kills);
        after.note_limit(7, 10);
        assert_eq!(after.recording(header()).limits, notes.limits, "it has not moved");
        after.note_written(RecordReason::Oom);
        let mut last = group();
        last.go_on_with(after.take_new().expect("new ones"));
        assert!(last.due().is_none(), "it was written");
    }

    #[test]
    fn a_process_that_was_looked_up_is_let_go_and_its_details_stay() {
        let victim = Victim::from_bytes(&[0; 40]).expect("a record's first part");
        let kill = || Arc::new(Kill::new(victim, KillReason::Limit, None));
        let noted =
            |process: &Arc<Kill>| NotedKill { process: Some(Arc::clone(process)), ..NotedKill::default() };
        let (mut group, process) = (group(), kill());
        group.note_kill(noted(&process));
        assert!(group.take_new().is_some() && group.has_new(), "its details come later");
        process.set_details(KillDetails { exe: Some("/bin/a".to_owned()), ..KillDetails::default() });
        let notes = group.take_new().expect("the details");
        assert_eq!(notes.kills[0].exe.as_deref(), Some("/bin/a"));
        assert_eq!((Arc::strong_count(&process), group.has_new()), (1, false));
        // Also where nobody takes the notes.
        let second = kill();
        second.set_details(KillDetails::default());
        group.note_kill(noted(&second));
        group.note_kill(NotedKill::default());
        assert_eq!(Arc::strong_count(&second), 1);
        assert_eq!(group.recording(header()).kills[0], notes.kills[0]);
    }

    #[test]
    fn long_paths_and_command_lines_are_bounded_in_bytes() {
        let mut group = group();
        for at in 0..KEPT as u64 {
            let long = |size| Some("x".repeat(size));
            let at = at * 10_000_000_000;
            group.note_kill(killed(KillEntry {
                at,
                limit_of: long(4000),
                exe: long(4000),
                ..KillEntry::default()
            }));
        }
        let recording = group.recording(header());
        assert_eq!((recording.kills.len(), recording.ooms.len()), (TEXT / 8000, TEXT / 4000));
        let newest = (KEPT as u64 - 1) * 10_000_000_000;
        assert_eq!(recording.kills.last().map(|kill| kill.at), Some(newest), "the oldest have given way");
        group.note_kill(killed(KillEntry { exe: Some("x".repeat(2 * TEXT)), ..KillEntry::default() }));
        assert_eq!(group.recording(header()).kills.len(), 1, "the newest stays");
    }

    #[test]
    fn the_oldest_signals_give_way() {
        let mut group = group();
        for at in 0..KEPT as u64 + 5 {
            let cause =
                Cause::Crossed { on: ControlFile::Usage, threshold: 2, direction: Direction::Up, usage: 3 };
            group.note_signal(at, &Event { cgroup_id: 42, cause, signals: 1 }, |_| String::new());
        }
        let signals = group.recording(header()).signals;
        assert_eq!((signals.len(), signals[0].at), (KEPT, 5));
        assert_eq!(signals[0].bytes, Some(3 * page_size()));
        assert_eq!(signals[0].cause, format!("memory.usage_in_bytes crossed {} up", 2 * page_size()));
    }
}
