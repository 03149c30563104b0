//! Notes on the recorded groups over the end of an agent, as the boxes' points are: in memory that the
//! descriptor store holds. Each box has two places, which are written in turn, so that an agent that is
//! killed while it writes leaves the notes before. They have the form of a file of the black box, without a
//! curve; its reason says whether a file is due.

use std::{
    fs::File,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
};

use crate::{
    black_box::Recording,
    boxes::in_memory,
    error::Result,
    fd_store::{FdStore, NOTES, StoredDescriptors},
    source::GroupId,
};

/// Bytes of each of a box's two places; of more notes the older ones of the kind with the most are left out.
const PLACE: usize = 32 << 10;
/// Words before the notes: round, slot, generation, id of the directory, length, checksum.
const WORDS: usize = 6;
const HEAD: usize = WORDS * size_of::<u64>();

/// Takes the notes of an earlier agent out of the descriptors handed over.
#[must_use]
pub fn taken(handed: &mut StoredDescriptors) -> Option<OwnedFd> {
    handed.extract_if(.., |(name, _)| name == NOTES).map(|(_, fd)| fd).last()
}

/// The notes on all boxes.
#[derive(Debug)]
pub struct KeptNotes(File);

/// A place that was read: its group, and what it has.
#[derive(Debug)]
struct PlaceContents {
    round: u64,
    of: [u64; 3],
    notes: Option<Vec<u8>>,
}

impl KeptNotes {
    /// Goes on with what an earlier agent has `left`, if that is for as many boxes; else begins anew.
    ///
    /// # Errors
    /// There is no memory, or the store takes none.
    pub fn open(fd_store: FdStore, left: Option<OwnedFd>, boxes: usize) -> Result<Self> {
        let size = (boxes * 2 * PLACE) as u64;
        if let Some(file) = left.map(File::from) {
            if file.metadata().is_ok_and(|found| found.len() == size) {
                return Ok(Self(file));
            }
            log::info!(
                "notes of an earlier agent's black box are for another number of groups, and are dropped"
            );
            fd_store.forget(NOTES)?;
        }
        let kept = Self::new(boxes)?;
        fd_store.store(NOTES, kept.0.as_fd())?;
        Ok(kept)
    }

    fn new(boxes: usize) -> Result<Self> {
        Ok(Self(in_memory(boxes, 2 * PLACE)?.into()))
    }

    /// Keeps the notes on a group with box `number`.
    pub fn put(&self, number: usize, group: GroupId, mut notes: Recording) {
        let mut text = vec![0_u8; PLACE - HEAD];
        let length = loop {
            // Writing ends where the room does, so that a look at notes that do not fit costs no more.
            let mut room = text.as_mut_slice();
            if notes.write(&mut room).is_ok() {
                break PLACE - HEAD - room.len();
            }
            if !notes.drop_older_half() {
                return log::debug!("notes on {} are larger than the memory for them", notes.header.group);
            }
        };
        text.truncate(length);
        let rounds = [0, 1].map(|half| self.round(number, half));
        let half = usize::from(rounds[0] > rounds[1]);
        let round = rounds[0].max(rounds[1]) + 1;
        let head = [round, group.slot.into(), group.generation, notes.header.cgroup_id, text.len() as u64];
        let mut bytes: Vec<u8> = head.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(checksum(&head, &text).to_ne_bytes());
        bytes.extend(text);
        if let Err(error) = self.0.write_all_at(&bytes, offset(number, half)) {
            log::error!("the notes of the black box are not kept: {error}");
        }
    }

    /// The notes on this group with box `number`. Those of another group are none, and those that cannot be
    /// read are dropped.
    pub fn get(&self, number: usize, group: GroupId, cgroup_id: u64) -> Option<Recording> {
        let wanted = [group.slot.into(), group.generation, cgroup_id];
        let mut found: Vec<_> = [0, 1].into_iter().filter_map(|half| self.read(number, half)).collect();
        found.retain(|place| place.of == wanted);
        found.sort_by_key(|place| std::cmp::Reverse(place.round));
        let has_any = !found.is_empty();
        let read = |place: PlaceContents| {
            Recording::read(place.notes?.as_slice()).ok().filter(|notes| notes.is_complete)
        };
        let notes = found.into_iter().find_map(read);
        if has_any && notes.is_none() {
            log::warn!("notes of an earlier agent on the group #{cgroup_id} cannot be read, and are dropped");
        }
        notes
    }

    /// The round of a place; 0: it was never written.
    fn round(&self, number: usize, half: usize) -> u64 {
        let mut round = [0; size_of::<u64>()];
        let read = self.0.read_exact_at(&mut round, offset(number, half));
        read.map_or(0, |()| u64::from_ne_bytes(round))
    }

    fn read(&self, number: usize, half: usize) -> Option<PlaceContents> {
        let mut bytes = vec![0; PLACE];
        self.0.read_exact_at(&mut bytes, offset(number, half)).ok()?;
        let (head, rest) = bytes.split_at(HEAD);
        let words: Vec<u64> =
            head.chunks_exact(8).filter_map(|word| Some(u64::from_ne_bytes(word.try_into().ok()?))).collect();
        let (head, sum) = words.split_at_checked(WORDS - 1)?;
        let &[round, slot, generation, cgroup_id, length] = head else { return None };
        let notes = usize::try_from(length).ok().and_then(|length| rest.get(..length));
        let notes = notes.filter(|notes| sum == [checksum(head, notes)]).map(<[u8]>::to_vec);
        // A place that was never written has no round.
        (round > 0).then_some(PlaceContents { round, of: [slot, generation, cgroup_id], notes })
    }
}

const fn offset(number: usize, half: usize) -> u64 {
    ((number * 2 + half) * PLACE) as u64
}

/// FNV-1a, by which a place that was half written is known.
fn checksum(head: &[u64], text: &[u8]) -> u64 {
    let head = head.iter().flat_map(|word| word.to_ne_bytes());
    head.chain(text.iter().copied())
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::{HEAD, KeptNotes, PLACE, offset};
    use crate::{
        black_box::{BlackBoxHeader, KillEntry, PressureEntry, RecordReason, Recording, SignalEntry},
        source::GroupId,
    };

    const GROUP: GroupId = GroupId { slot: 3, generation: 9 };

    fn notes(signals: u64) -> Recording {
        let mut notes = Recording::new(BlackBoxHeader::new("/a".to_owned(), 42, RecordReason::Oom));
        let signal = |at| SignalEntry { at, registration: None, cause: "x".repeat(100), bytes: None };
        notes.signals = (1..=signals).map(signal).collect();
        notes
    }

    fn signals(kept: &KeptNotes) -> Option<usize> {
        kept.get(1, GROUP, 42).map(|notes| notes.signals.len())
    }

    #[test]
    fn notes_are_of_one_group_and_the_latest() {
        let kept = KeptNotes::new(2).expect("memory");
        assert_eq!(signals(&kept), None);
        for count in 1..=5 {
            kept.put(1, GROUP, notes(count));
            assert_eq!(signals(&kept), Some(usize::try_from(count).expect("small")));
        }
        let next = GroupId { generation: 10, ..GROUP };
        assert!(kept.get(1, next, 42).is_none() && kept.get(1, GROUP, 43).is_none());
        assert!(kept.get(0, GROUP, 42).is_none(), "another box");
        kept.put(1, next, notes(7));
        assert_eq!(kept.get(1, next, 42).map(|notes| notes.signals.len()), Some(7));
    }

    #[test]
    fn an_agent_that_is_killed_while_it_writes_leaves_the_notes_before() {
        let kept = KeptNotes::new(2).expect("memory");
        kept.put(1, GROUP, notes(1));
        kept.put(1, GROUP, notes(2));
        // The second round is in the second place.
        let at = offset(1, 1) + HEAD as u64 + 20;
        kept.0.write_all_at(b"#", at).expect("written");
        assert_eq!(signals(&kept), Some(1));
        kept.0.write_all_at(&vec![7; PLACE - 40], offset(1, 0) + 40).expect("written");
        assert_eq!(signals(&kept), None, "neither can be read");
        kept.put(1, GROUP, notes(3));
        assert_eq!(signals(&kept), Some(3));
    }

    #[test]
    fn of_many_notes_the_latest_are_kept() {
        let kept = KeptNotes::new(2).expect("memory");
        kept.put(1, GROUP, notes(1000));
        let notes = kept.get(1, GROUP, 42).expect("kept");
        assert_eq!(notes.signals.last().map(|signal| signal.at), Some(1000));
        assert!((100..400).contains(&notes.signals.len()), "{}", notes.signals.len());
        assert_eq!(notes.header.reason, RecordReason::Oom);
    }

    #[test]
    fn many_signals_and_windows_take_no_room_of_the_kill() {
        let kept = KeptNotes::new(2).expect("memory");
        let mut notes = notes(256);
        notes.pressure = (1..=256).map(|at| PressureEntry { at, level: "medium".to_owned() }).collect();
        notes.kills = vec![KillEntry { at: 1, pid: Some(7), ..KillEntry::default() }];
        kept.put(1, GROUP, notes.clone());
        let found = kept.get(1, GROUP, 42).expect("kept");
        assert_eq!(found.kills, notes.kills);
        assert_eq!(found.signals.last(), notes.signals.last());
        assert_eq!(found.pressure.last(), notes.pressure.last());
    }
}
