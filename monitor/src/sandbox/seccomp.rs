//! Restricts the system calls that may be made (seccomp).
//!
//! A call that is not on the list fails with `EPERM`, and the kernel's log names it: one call
//! too few on an unknown host costs one operation, not all clients' notifications. Calls that
//! no agent ever makes, and only a captured one would, end the process.

use std::collections::BTreeMap;

use libc::c_long;
use monitor_sys::{namespace, seccomp::NotInstalled};
use nix::sys::prctl;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::{
    error::{Error, Result},
    sandbox::{Sandbox, error::SandboxError},
};

/// A set of calls that are allowed.
#[derive(Debug, Default)]
pub struct Set(BTreeMap<c_long, Vec<SeccompRule>>);

/// Calls of every process of the agent's: memory, threads, time, its log, its end.
const ALL: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Further calls of the agent.
const AGENT: &[c_long] = &[
    // Waiting.
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Threads that tokio starts when it needs one.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    // Files: to inspect, and those of its own to remove at its end.
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_readv,
    libc::SYS_preadv,
    libc::SYS_readlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    libc::SYS_getdents64,
    libc::SYS_flock,
    libc::SYS_dup,
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    // Clients, scrapers, and state that outlives the agent: the state file, descriptors in
    // the descriptor store.
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_pwrite64,
    // Notices of changed files, where those are read instead of counters.
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Signals to eventfds.
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_io_getevents,
    libc::SYS_io_destroy,
];

/// Calls answered with `ENOSYS`, so that glibc falls back to `clone`, whose flags can be checked.
const UNKNOWN: &[c_long] = &[libc::SYS_clone3];

/// Calls that end the process: to run a program, to access another process's memory, to
/// change the mounts or the root, to load another kernel.
const NEVER: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_writev,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_move_mount,
    libc::SYS_pivot_root,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
];

/// Flags that open a file other than for reading.
const TO_WRITE: i32 =
    libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND | (libc::O_TMPFILE & !libc::O_DIRECTORY);

/// Commands of `bpf` on maps and programs that are there already: look up, update, delete,
/// the next key, run, a program's statistics, look up and delete.
const BPF_USE: [i32; 7] = [1, 2, 3, 4, 10, 15, 21];

/// Files that the agent opens for writing once it is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// Those of groups, which are there.
    pub groups: bool,
    /// Those of the black box, which it makes; Landlock leaves them to one thread.
    pub black_box: bool,
}

/// Further calls of an agent with a black box, which renames a file once it is on the disk.
const BLACK_BOX: &[c_long] = &[libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_fdatasync];

impl Set {
    /// The calls of the agent once it is ready.
    #[must_use]
    pub fn agent(writes: Writes) -> Self {
        let mut set = Self::of(&[ALL, AGENT, if writes.black_box { BLACK_BOX } else { &[] }]);
        let to_make = writes.black_box.then_some(libc::O_WRONLY | libc::O_CREAT);
        let to_write = writes.groups.then_some(libc::O_WRONLY).into_iter().chain(to_make);
        set.only(
            libc::SYS_openat,
            2,
            &SeccompCmpOp::MaskedEq(bits(TO_WRITE)),
            [0].into_iter().chain(to_write),
        );
        #[cfg(target_arch = "x86_64")]
        set.only(libc::SYS_open, 1, &SeccompCmpOp::MaskedEq(bits(TO_WRITE)), [0]);
        set.only(libc::SYS_open_by_handle_at, 2, &SeccompCmpOp::MaskedEq(bits(TO_WRITE)), [0]);
        for call in [libc::SYS_socket, libc::SYS_socketpair] {
            set.only(call, 0, &SeccompCmpOp::Eq, [libc::AF_UNIX]);
        }
        set.only(libc::SYS_bpf, 0, &SeccompCmpOp::Eq, BPF_USE);
        let thread = libc::CLONE_THREAD;
        set.only(libc::SYS_clone, 0, &SeccompCmpOp::MaskedEq(bits(thread)), [thread]);
        // FIONBIO, and the parent of a reader's pid namespace; FUSE's threads need no other.
        let ioctls = [0x5421, namespace::GET_PARENT.cast_signed()];
        set.only(libc::SYS_ioctl, 1, &SeccompCmpOp::Eq, ioctls);
        // Swaps real and saved user id, to send kept eventfds (`in_flight`): the effective one
        // stays, and without CAP_SETUID no other is possible.
        set.only(libc::SYS_setresuid, 1, &SeccompCmpOp::Eq, [-1]);
        set.only(libc::SYS_prctl, 0, &SeccompCmpOp::Eq, [libc::PR_SET_NAME, libc::PR_SET_VMA]);
        set
    }

    /// The calls of the process that waits to unmount.
    #[must_use]
    pub fn unmounter() -> Self {
        let mut set = Self::of(&[ALL, &[libc::SYS_umount2, libc::SYS_unlinkat]]);
        #[cfg(target_arch = "x86_64")]
        set.0.insert(libc::SYS_rmdir, Vec::new());
        set.only(libc::SYS_openat, 2, &SeccompCmpOp::MaskedEq(bits(TO_WRITE)), [0]);
        set
    }

    /// The number of calls in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the set allows no call.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(calls: &[&[c_long]]) -> Self {
        let mut set = Self(calls.iter().copied().flatten().map(|call| (*call, Vec::new())).collect());
        // No memory that is executable.
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            set.only(call, 2, &SeccompCmpOp::MaskedEq(bits(libc::PROT_EXEC)), [0]);
        }
        set
    }

    /// Allows `call` where the argument compares so with one of `values`.
    fn only(
        &mut self,
        call: c_long,
        argument: u8,
        compare: &SeccompCmpOp,
        values: impl IntoIterator<Item = i32>,
    ) {
        let rules = values.into_iter().filter_map(|value| {
            let condition = SeccompCondition::new(argument, Dword, compare.clone(), bits(value)).ok()?;
            SeccompRule::new(vec![condition]).ok()
        });
        self.0.entry(call).or_default().extend(rules);
    }
}

const fn bits(number: i32) -> u64 {
    // The upper half is not compared.
    number as u32 as u64
}

/// Allows only these calls from now on, for all threads. With [`Sandbox::Warn`] others are
/// allowed, too, and the kernel's log names them.
///
/// # Errors
/// The kernel has no seccomp, or a thread has a filter of its own.
pub fn restrict(set: &Set, mode: Sandbox) -> Result<()> {
    prctl::set_no_new_privs().map_err(|errno| Error::syscall("prctl PR_SET_NO_NEW_PRIVS", errno))?;
    let refused =
        if mode == Sandbox::On { SeccompAction::Errno(libc::EPERM as u32) } else { SeccompAction::Log };
    let mut filters = Vec::new();
    if mode == Sandbox::On {
        filters.push((each(NEVER).collect(), SeccompAction::Allow, SeccompAction::KillProcess));
        filters.push((
            each(UNKNOWN).collect(),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS as u32),
        ));
    }
    // The list last: it allows what installs the others.
    let mut allowed = set.0.clone();
    // Answered above, and of two filters that refuse, the later one's errno would count.
    // With `Sandbox::Warn` it is made, and expected: threads are started by it.
    allowed.extend(each(UNKNOWN));
    filters.push((allowed, refused, SeccompAction::Allow));
    for (rules, otherwise, listed) in filters {
        install(&compile(rules, otherwise, listed)?)?;
    }
    Ok(())
}

fn each(calls: &[c_long]) -> impl Iterator<Item = (c_long, Vec<SeccompRule>)> {
    calls.iter().map(|call| (*call, Vec::new()))
}

fn compile(
    rules: BTreeMap<c_long, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram> {
    let machine = TargetArch::try_from(std::env::consts::ARCH).map_err(SandboxError::Seccomp)?;
    let filter = SeccompFilter::new(rules, otherwise, listed, machine).map_err(SandboxError::Seccomp)?;
    Ok(filter.try_into().map_err(SandboxError::Seccomp)?)
}

/// Installs a filter with the flag, missing in the crate, by which the kernel logs each
/// refused call.
fn install(program: &BpfProgram) -> Result<()> {
    let instruction = |from: &seccompiler::sock_filter| {
        let seccompiler::sock_filter { code, jt, jf, k } = *from;
        libc::sock_filter { code, jt, jf, k }
    };
    let filter: Vec<_> = program.iter().map(instruction).collect();
    monitor_sys::seccomp::install(&filter).map_err(|why| match why {
        NotInstalled::OtherFilter(thread) => SandboxError::OtherFilter(thread).into(),
        NotInstalled::Syscall(errno) => Error::syscall("seccomp SECCOMP_SET_MODE_FILTER", errno),
    })
}

#[cfg(test)]
mod tests {
    use seccompiler::SeccompAction;

    use super::{NEVER, Set, UNKNOWN, Writes, compile};

    #[test]
    fn the_lists_compile_and_do_not_contradict_each_other() {
        let all = Writes { groups: true, black_box: true };
        for set in [Set::agent(Writes::default()), Set::agent(all), Set::unmounter()] {
            assert!(!set.is_empty());
            assert!(NEVER.iter().chain(UNKNOWN).all(|call| !set.0.contains_key(call)));
            assert!(compile(set.0, SeccompAction::Errno(1), SeccompAction::Allow).is_ok());
        }
    }

    #[test]
    fn the_black_box_may_wait_for_the_disk_and_no_other_agent() {
        for black_box in [true, false] {
            let set = Set::agent(Writes { groups: true, black_box });
            assert_eq!(set.0.contains_key(&libc::SYS_fdatasync), black_box);
        }
    }
}
