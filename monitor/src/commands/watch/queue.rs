//! Work of `watch` for events, one at a time for each group, beside the reading of events.
//!
//! While something is done for a group, the latest event of that group waits, and those before it are dropped
//! and counted. The others' events wait for their turn; none holds up the reading of events.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use memcg_monitor::printable;
use monitor_client::{named, wire::EventRow};

use crate::commands::{say, text_of};

/// Groups whose events wait; those of others are dropped.
const WAITING: usize = 4096;

/// Time until it is said again that events find no room.
const SAID_AGAIN: Duration = Duration::from_secs(10);

/// Done for an event, with the number of those that were dropped before it.
type Work = Box<dyn Fn(&EventRow, u64) -> Result<()> + Send + Sync>;

/// Does something for events; the drop waits until that is done for those that run or wait.
pub struct Executor(Arc<Inner>);

struct Inner {
    /// The option that asks for it.
    option: &'static str,
    work: Work,
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    /// Groups whose work runs or waits, each with the event that is next.
    groups: HashMap<u64, Next>,
    /// Groups whose work waits for its turn.
    waiting: VecDeque<u64>,
    running: usize,
    /// Most groups that run at once.
    at_once: usize,
    /// Events of groups that found no room.
    unheard: Unheard,
    /// Whether no more work is begun.
    is_over: bool,
}

/// The next event of a group, and those that it replaced.
#[derive(Default)]
struct Next {
    event: Option<EventRow>,
    dropped: u64,
    /// Whether the group's work has begun, for an event before.
    is_begun: bool,
}

impl Next {
    /// Drops these events, and counts them.
    fn drop_all(&mut self) -> u64 {
        u64::from(self.event.take().is_some()) + std::mem::take(&mut self.dropped)
    }
}

/// The number of events that found no room, which is said once in a while.
#[derive(Default)]
struct Unheard {
    count: u64,
    said: u64,
    last: Option<Instant>,
}

impl Unheard {
    /// Counts one more; returns the number where it is to be said now.
    fn add(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        let is_due = self.last.is_none_or(|last| now.saturating_duration_since(last) >= SAID_AGAIN);
        if is_due {
            self.last = Some(now);
        }
        is_due.then(|| self.rest()).flatten()
    }

    /// The number, unless it was said.
    fn rest(&mut self) -> Option<u64> {
        (std::mem::replace(&mut self.said, self.count) < self.count).then_some(self.count)
    }
}

/// The place that a new event finds.
enum Place {
    Runs,
    Waits,
    NoRoom,
    /// No work is begun any more.
    None,
}

impl State {
    fn new(at_once: usize) -> Self {
        Self {
            groups: HashMap::new(),
            waiting: VecDeque::new(),
            running: 0,
            at_once,
            unheard: Unheard::default(),
            is_over: false,
        }
    }

    /// Adds an event; a group that has none begins to run, or to wait.
    fn add(&mut self, event: EventRow) -> Place {
        if self.is_over {
            return Place::None;
        }
        let id = event.id;
        if let Some(next) = self.groups.get_mut(&id) {
            next.dropped += u64::from(next.event.replace(event).is_some());
            return Place::Waits;
        }
        if self.waiting.len() >= WAITING {
            return Place::NoRoom;
        }
        self.groups.insert(id, Next { event: Some(event), ..Next::default() });
        if self.running < self.at_once {
            self.running += 1;
            return Place::Runs;
        }
        self.waiting.push_back(id);
        Place::Waits
    }

    /// The next event to work for, after one of group `id`; its place is free without one.
    fn next(&mut self, id: u64) -> Option<(EventRow, u64)> {
        let mut id = id;
        loop {
            if let Some(next) = self.groups.get_mut(&id)
                && let Some(event) = next.event.take()
            {
                next.is_begun = true;
                return Some((event, std::mem::take(&mut next.dropped)));
            }
            self.groups.remove(&id);
            match self.waiting.pop_front() {
                Some(waiting) => id = waiting,
                None => {
                    self.running -= 1;
                    return None;
                }
            }
        }
    }

    /// Drops the events whose work has not begun, and all that come later; returns the number of the former.
    fn end(&mut self) -> u64 {
        self.is_over = true;
        let mut dropped = 0;
        for id in std::mem::take(&mut self.waiting) {
            dropped += self.groups.remove(&id).map_or(0, |mut next| next.drop_all());
        }
        // The first event of a group whose thread has only been started is worked on.
        for next in self.groups.values_mut().filter(|next| next.is_begun) {
            dropped += next.drop_all();
        }
        dropped
    }
}

impl Executor {
    /// Makes one for an option, whose work is done for so many groups at once.
    pub fn new(
        option: &'static str,
        at_once: usize,
        work: impl Fn(&EventRow, u64) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        let state = Mutex::new(State::new(at_once));
        Self(Arc::new(Inner { option, work: Box::new(work), state, moved: Condvar::new() }))
    }

    /// Does it for an event, now or once its group's turn comes.
    pub fn run(&self, event: &EventRow) {
        let (id, option) = (event.id, self.0.option);
        let place = self.0.state().add(event.clone());
        match place {
            Place::Waits | Place::None => {}
            Place::Runs => {
                let inner = Arc::clone(&self.0);
                let work = move || inner.run_from(id);
                if let Err(error) = thread::Builder::new().name("event".into()).spawn(work) {
                    let (group, why) = (printable(&event.cgroup), named(&error));
                    say(&format!(
                        "{group}: {option}: the event is dropped, as no thread can be started: {why}"
                    ));
                    let mut state = self.0.state();
                    state.running -= 1;
                    state.groups.remove(&id);
                    drop(state);
                    self.0.moved.notify_all();
                }
            }
            Place::NoRoom => {
                let unheard = self.0.state().unheard.add(Instant::now());
                self.0.say_unheard(unheard);
            }
        }
    }

    /// Drops the events that wait, and says how many; what runs goes on.
    pub fn break_off(&self) {
        let dropped = self.0.state().end();
        if dropped > 0 {
            let option = self.0.option;
            say(&format!("{option}: {dropped} events that waited are dropped, as the watch ends"));
        }
    }

    /// Waits until nothing runs or waits.
    pub fn wait(&self) {
        let mut state = self.0.state();
        while state.running > 0 {
            state = self.0.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let unheard = state.unheard.rest();
        drop(state);
        self.0.say_unheard(unheard);
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.wait();
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say_unheard(&self, count: Option<u64>) {
        if let Some(count) = count {
            let option = self.option;
            say(&format!(
                "{option}: {count} events were dropped so far, since those of {WAITING} groups wait"
            ));
        }
    }

    fn run_from(&self, id: u64) {
        let (mut id, option) = (id, self.option);
        loop {
            let Some((event, dropped)) = self.state().next(id) else { break };
            id = event.id;
            let group = printable(&event.cgroup);
            if dropped > 0 {
                say(&format!(
                    "{group}: {option}: {dropped} events were dropped while one before was worked on; the latest is next"
                ));
            }
            if let Err(error) = (self.work)(&event, dropped) {
                say(&format!("{group}: {option}: {}", printable(&text_of(&error))));
            }
        }
        self.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::channel,
        time::{Duration, Instant},
    };

    use monitor_client::wire::EventRow;

    use super::{Executor, Place, SAID_AGAIN, State, Unheard};

    fn event(id: u64, usage: u64) -> EventRow {
        EventRow { id, usage: Some(usage), ..EventRow::default() }
    }

    #[test]
    fn one_command_runs_for_a_group_and_the_latest_event_is_next() {
        let mut state = State::new(1);
        for usage in 1..=4 {
            state.add(event(1, usage));
        }
        let usage = |next: Option<(EventRow, u64)>| next.map(|(event, dropped)| (event.usage, dropped));
        assert_eq!(usage(state.next(1)), Some((Some(4), 3)), "it has not begun");
        state.add(event(1, 5));
        assert_eq!((usage(state.next(1)), usage(state.next(1))), (Some((Some(5), 0)), None));
        assert_eq!((state.running, state.groups.len()), (0, 0));
    }

    #[test]
    fn groups_wait_for_their_turn() {
        let mut state = State::new(8);
        for id in 1..=10 {
            state.add(event(id, id));
        }
        assert_eq!((state.running, state.waiting.len()), (8, 2));
        assert!(state.next(1).is_some());
        let (next, _) = state.next(1).expect("one that waits");
        assert_eq!(next.id, 9);
    }

    #[test]
    fn work_does_not_hold_up_the_reader_and_is_done_before_the_end() {
        let (go, gate) = channel();
        let (done, seen) = channel();
        let gate = std::sync::Mutex::new(gate);
        let executor = Executor::new("--signal", 1, move |event, dropped| {
            let _ = gate.lock().expect("the gate").recv();
            Ok(done.send((event.id, event.usage, dropped))?)
        });
        // All of these return while the work of the first stands still.
        for (id, usage) in [(1, 1), (2, 2), (2, 3)] {
            executor.run(&event(id, usage));
        }
        go.send(()).expect("the first");
        assert_eq!(seen.recv().expect("the first"), (1, Some(1), 0));
        go.send(()).expect("the second");
        drop(executor);
        assert_eq!(seen.iter().collect::<Vec<_>>(), [(2, Some(3), 1)]);
    }

    #[test]
    fn an_end_drops_what_waits_and_not_the_one_event_of_a_watch() {
        let mut state = State::new(1);
        state.add(event(1, 1));
        assert_eq!(state.end(), 0, "its thread begins");
        assert!(state.next(1).is_some());
        let mut state = State::new(1);
        for (id, usage) in [(1, 1), (2, 2), (2, 3), (3, 4)] {
            state.add(event(id, usage));
        }
        assert!(state.next(1).is_some());
        state.add(event(1, 5));
        assert_eq!(state.end(), 4, "two of the second, the third, and what is next of the first");
        assert!(matches!(state.add(event(4, 6)), Place::None));
        assert!(state.next(1).is_none());
        assert_eq!((state.running, state.groups.len()), (0, 0));
    }

    #[test]
    fn events_without_room_are_said_once_in_a_while() {
        let (mut unheard, start) = (Unheard::default(), Instant::now());
        assert_eq!(unheard.add(start), Some(1));
        assert_eq!(unheard.add(start + Duration::from_secs(1)), None);
        assert_eq!(unheard.add(start + SAID_AGAIN), Some(3));
        assert_eq!((unheard.rest(), unheard.add(start + SAID_AGAIN)), (None, None));
        assert_eq!((unheard.rest(), unheard.rest()), (Some(4), None), "at the end");
    }

    #[test]
    fn work_that_waits_is_not_waited_for_when_it_is_broken_off() {
        let (go, gate) = channel();
        let (done, seen) = channel();
        let gate = std::sync::Mutex::new(gate);
        let executor = Executor::new("--exec", 1, move |event, _| {
            done.send(event.usage)?;
            Ok(gate.lock().expect("the gate").recv()?)
        });
        executor.run(&event(1, 1));
        assert_eq!(seen.recv().expect("the first"), Some(1));
        for (id, usage) in [(1, 2), (2, 3)] {
            executor.run(&event(id, usage));
        }
        executor.break_off();
        go.send(()).expect("the first");
        drop(executor);
        assert_eq!(seen.iter().count(), 0);
    }
}
