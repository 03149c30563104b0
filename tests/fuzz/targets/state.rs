//! Fuzzes what an agent finds of the one before: the state record, of arbitrary words.
//!
//! Held: no panic; nothing is taken for a registration that is none; what is believed is
//! written as it was read; memory by the words that are there; and the record goes on
//! to work: what is entered, struck out and adopted once more is all there.

#![no_main]

use std::{collections::BTreeMap, fs::File, io::Write as _, os::fd::OwnedFd};

use fuzzing::heap;
use libfuzzer_sys::fuzz_target;
use memcg_monitor::fuzzing::persist::{Record, RecordId, StateFile};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Bytes of a line, and of those before the first record.
const LINE: usize = 64;
const HEAD: usize = 8 * LINE;

/// Allowance for each byte of input, beside a fixed one.
const PER_BYTE: usize = 8;
const FLAT: usize = 1 << 14;

fuzz_target!(|data: &[u8]| {
    let Some((mode, words)) = data.split_first() else { return };
    let bytes = match mode {
        0 => words.to_vec(),
        // Under a head that fits, in whole lines.
        _ => {
            let mut bytes = b"memcgmon\x01".to_vec();
            bytes.resize(HEAD, 0);
            bytes.extend_from_slice(words);
            bytes.resize(bytes.len().next_multiple_of(LINE), 0);
            bytes
        }
    };
    let most = FLAT.max(bytes.len() * PER_BYTE);
    let (adopted, taken) = heap::watch(|| StateFile::adopt(memory(&bytes)));
    assert!(taken.largest <= most, "{} bytes at once for {}", taken.largest, bytes.len());
    let Ok((state, records, flaws)) = adopted else { return };
    let lines = (bytes.len() - HEAD) / LINE;
    assert!(records.len() + usize::try_from(flaws).expect("few") <= lines);
    let _ = (state.instance(), state.restarts(), state.unfinished());
    go_on(state, &records);
});

fn memory(bytes: &[u8]) -> OwnedFd {
    let file = memfd_create(c"state", MFdFlags::MFD_CLOEXEC).expect("a memory file");
    let mut file = File::from(file);
    file.write_all(bytes).expect("memory");
    file.into()
}

fn go_on(mut state: StateFile, records: &[(RecordId, Record)]) {
    let mut expected: BTreeMap<RecordId, Record> = records.iter().copied().collect();
    assert_eq!(expected.len(), records.len(), "an id came twice");
    for (id, record) in records {
        assert_eq!(Record::from_words(record.words()), Ok(Some(*record)));
        match id.0 % 3 {
            0 => {
                state.leave(*id);
                expected.remove(id);
            }
            1 => {
                let id = state.enter(record).expect("memory");
                assert!(expected.insert(id, *record).is_none(), "an id was given twice");
            }
            _ => {
                state.set_above(*id, !record.above);
                state.confirm(*id);
                expected.insert(*id, Record { above: !record.above, sure: true, ..*record });
            }
        }
    }
    let file = state.file().try_clone_to_owned().expect("a duplicate");
    drop(state);
    let (_, again, flaws) = StateFile::adopt(file).expect("it was adopted before");
    assert_eq!(flaws, 0, "what was no registration is gone by now");
    assert_eq!(again.into_iter().collect::<BTreeMap<_, _>>(), expected);
}
