//! Registered eventfds: which file a descriptor is, and how many references files have.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use monitor_common::protocol::{query::Query, word::Word as _};

use crate::{maps, memcg};

/// Runs at `eventfd_show_fdinfo`: the agent queries which file one of its descriptors is.
#[inline(always)]
pub fn shown(file: u64) {
    let Some(scratch) = maps::readings() else {
        return;
    };
    if scratch.agent.get() != bpf_get_current_pid_tgid() {
        return;
    }
    scratch.file.set(file);
    scratch.answers.set(scratch.answers.get() + 1);
}

/// Files that one call of [`count_some`] counts the references of.
const IN_A_CALL: usize = 32;

/// Counts the references of the first `files` files that the agent queries.
#[inline(always)]
pub fn count_references(files: u64) {
    for call in 0..maps::rolled(Query::FILES_AT_ONCE / IN_A_CALL) {
        let first = call * IN_A_CALL;
        if first as u64 >= files {
            return;
        }
        count_some(first as u64);
    }
}

// Global functions, for the verifier: it goes through 64 turns of one loop and 32 of
// another, each a call, not through 2,048 turns.

/// Counts the references of the [`IN_A_CALL`] files from `first` on.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn count_some(first: u64) -> u64 {
    for index in 0..maps::rolled(IN_A_CALL) {
        count_one(first + index as u64);
    }
    0
}

/// Counts the references of one file; of none where the table has none.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn count_one(index: u64) -> u64 {
    if let Some(file) = maps::file(index as u32) {
        let address = file.address.get();
        if address != 0 {
            file.references.set(memcg::file_refs_at(address).unwrap_or(0));
        }
    }
    0
}
