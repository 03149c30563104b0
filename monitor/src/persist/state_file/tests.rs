//! Tests that the next agent reads all that an agent left.

use std::os::fd::AsFd as _;

use monitor_common::{
    grammar::control_file::{ControlFile, Trigger},
    protocol::band::{Excursion, Seen},
};

use super::{RecordId, StateFile, Unfinished};
use crate::{
    error::Result,
    persist::record::Record,
    registry::Account,
    source::{FileId, GroupId},
};

fn record(file: u64) -> Record {
    Record {
        on: ControlFile::Oom,
        trigger: Trigger::Oom,
        file: FileId(file),
        account: Account::User(0),
        group: GroupId { slot: 1, generation: 2 },
        cgroup_id: 3,
        above: false,
        sure: false,
        owed: 0,
    }
}

fn next(state: StateFile) -> Result<super::Adopted> {
    let file = state.file.try_clone().expect("dup");
    drop(state);
    StateFile::adopt(file)
}

#[test]
fn the_next_agent_reads_what_was_entered() -> Result<()> {
    let mut state = StateFile::new()?;
    let record_ids: Vec<_> = (0..1000).map(|file| state.enter(&record(file))).collect::<Result<_>>()?;
    for record_id in record_ids.iter().step_by(2) {
        state.leave(*record_id);
    }
    state.confirm(record_ids[1]);
    state.set_instance(77);
    let (mut state, records, flaws) = next(state)?;
    assert_eq!((records.len(), flaws, state.instance(), state.restarts()), (500, 0, 77, 1));
    assert_eq!(records[0], (record_ids[1], Record { sure: true, ..record(1) }));
    assert!(records[1..].iter().all(|(_, record)| !record.sure));
    // Places that are free again are reused, and none twice.
    for file in 0..500 {
        let record_id = state.enter(&record(file))?;
        assert_eq!(record_id.0 % 2, 0);
    }
    assert_eq!(next(state)?.1.len(), 1000);
    Ok(())
}

#[test]
fn a_record_of_the_format_before_is_taken_over() -> Result<()> {
    let mut state = StateFile::new()?;
    state.enter(&record(1))?;
    state.word(0, 1).store(1, std::sync::atomic::Ordering::Relaxed);
    let (state, records, flaws) = next(state)?;
    assert_eq!((records.len(), flaws), (1, 0));
    assert_eq!(state.word(0, 1).load(std::sync::atomic::Ordering::Relaxed), 2);
    Ok(())
}

#[test]
fn what_was_begun_is_reported_until_it_ended() -> Result<()> {
    let state = StateFile::new()?;
    assert_eq!(state.unfinished(), []);
    let seen = Seen {
        memory: Excursion { min: 1, max: 2 },
        sum: Excursion { min: 3, max: 4 },
        late: [Excursion::NONE; 2],
        ooms: 5,
        windows: [6, 7, 8],
        windows_below: [3, 0, 1],
        emptied: 9,
    };
    let taken = Unfinished { cgroup_id: 42, seen };
    state.begin(&taken);
    let (mut state, _, _) = next(state)?;
    assert_eq!(state.unfinished(), [taken]);
    let lines = state.keep_on(&taken)?;
    state.end();
    let (state, records, flaws) = next(state)?;
    assert_eq!((lines.len(), records.len(), flaws), (3, 0, 0));
    let [ranges, counts, below] = state.unfinished()[..] else { panic!("three lines") };
    assert_eq!((ranges.seen.memory, counts.seen.ooms), (seen.memory, 5));
    assert_eq!(below.seen.windows_below, [3, 0, 1]);
    state.begin(&taken);
    let (mut state, _, _) = next(state)?;
    assert_eq!(state.unfinished().len(), 3, "not four");
    state.end_all();
    assert_eq!(state.enter(&record(1))?, lines[2], "places are used again");
    assert_eq!(next(state)?.0.unfinished(), []);
    Ok(())
}

#[test]
fn a_signal_is_owed_until_it_is_paid() -> Result<()> {
    let mut state = StateFile::new()?;
    let record_id = state.enter(&record(1))?;
    state.owe(record_id, 5);
    state.pay(record_id, 2);
    state.set_above(record_id, true);
    let (state, records, _) = next(state)?;
    assert_eq!(records[0].1, Record { owed: 3, above: true, ..record(1) });
    state.pay(record_id, 3);
    // An earlier agent wrote nothing there.
    state.word(0, 1).store(1, std::sync::atomic::Ordering::Relaxed);
    let (state, records, _) = next(state)?;
    assert_eq!(records[0].1.owed, 0);
    assert_eq!(state.word(0, 1).load(std::sync::atomic::Ordering::Relaxed), 2);
    Ok(())
}

#[test]
fn what_is_no_record_is_refused() -> Result<()> {
    let state = StateFile::new()?;
    state.word(0, 1).store(99, std::sync::atomic::Ordering::Relaxed);
    assert!(next(state).is_err(), "another format");
    let state = StateFile::new()?;
    nix::unistd::ftruncate(state.file().as_fd(), 100).expect("ftruncate");
    assert!(next(state).is_err(), "cut off");
    let mut state = StateFile::new()?;
    state.enter(&record(1))?;
    state.word(8, 0).store(0xffff, std::sync::atomic::Ordering::Relaxed);
    let (_, records, flaws) = next(state)?;
    assert_eq!((records.len(), flaws), (0, 1));
    Ok(())
}

#[test]
fn room_that_is_needed_no_more_is_given_back() -> Result<()> {
    let mut state = StateFile::new()?;
    let record_ids: Vec<_> = (0..5000).map(|file| state.enter(&record(file))).collect::<Result<_>>()?;
    record_ids.into_iter().for_each(|record_id| state.leave(record_id));
    assert!(nix::sys::stat::fstat(state.file()).expect("fstat").st_size < 64 * 1024);
    assert_eq!(state.enter(&record(1))?, RecordId(0));
    Ok(())
}
