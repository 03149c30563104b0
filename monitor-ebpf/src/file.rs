//! The life of registered eventfds: which file a descriptor is, and when a
//! reference to it is closed.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use monitor_common::{ring::Doorbell, word::Word as _};

use crate::{kernel, maps};

/// `eventfd_show_fdinfo`: the agent asks which file one of its descriptors is.
#[inline(always)]
pub fn shown(file: u64) {
    let Some(scratch) = maps::readings() else {
        return;
    };
    if scratch.agent.get() != bpf_get_current_pid_tgid() {
        return;
    }
    scratch.file.set(file);
    scratch.value.set(kernel::file_refs_at(file).unwrap_or(0));
    maps::eventfd_operations().set(kernel::file_op_at(file).unwrap_or(0));
    scratch.answers.set(scratch.answers.get() + 1);
}

/// `filp_close` and `filp_flush`: somebody closes a descriptor. `op` is the
/// file's `f_op`; all but eventfds end here. The agent's own duplicates come and go
/// without a sound: what it closes is not what keeps a registration alive.
#[inline(always)]
pub fn closed(file: u64, op: u64) {
    if op != maps::eventfd_operations().get() || !maps::is_registered_file(file) {
        return;
    }
    if maps::readings().is_some_and(|readings| readings.agent.get() == bpf_get_current_pid_tgid()) {
        return;
    }
    maps::ring(Doorbell { kind: Doorbell::FILE, slot: 0, value: file });
}
