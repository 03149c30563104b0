//! The user that the agent's descriptors in flight are counted against.
//!
//! A descriptor that was sent and not received yet (`SCM_RIGHTS`) counts against the *real*
//! user id of the task that sent it (`user_struct::unix_inflight`). A user with more of them
//! than its `RLIMIT_NOFILE` may send none, without `CAP_SYS_RESOURCE` or `CAP_SYS_ADMIN`:
//! `ETOOMANYREFS` (`too_many_unix_fds`, Linux 4.5 and newer). The eventfds kept for the next
//! agent are in flight for days. Counted against root they would take descriptor passing away
//! from root's other processes, and theirs could take it away from the agent.
//!
//! So the agent sends with a real user id that no other process has. Credentials are a thread's
//! own: [`count_against`] makes that id the thread's *saved* one, which needs `CAP_SETUID`, and
//! threads that start later have it, too. [`apart`] swaps saved and real for one call, which
//! needs no capability. The effective id, capabilities and dumpability stay as they are, and
//! processes that may signal the agent still may.

use std::sync::OnceLock;

use monitor_sys::user_id::{UNCHANGED, set_real_and_saved};
use nix::{errno::Errno, unistd::getresuid};

/// The default user id, in a range that no distribution, no container runtime and no
/// `/etc/subuid` assigns, since half of all programs read it as a negative number (systemd's
/// `UIDS-GIDS.md`: 2147483648 to 4294967294 are to be avoided). Not the last two: -1 is no
/// user id, and -2 is some systems' nobody.
pub const UID: u32 = 4_294_967_292;

/// The kernel's `overflowuid`, shown for users without a number, and Debian's nobody.
pub const OVERFLOW: u32 = 65_534;

#[derive(Clone, Copy, Debug)]
struct Users {
    own: u32,
    counted: u32,
}

static USERS: OnceLock<Users> = OnceLock::new();

/// Whether no other process can be expected to have this user id.
#[must_use]
pub const fn is_apart(uid: u32) -> bool {
    !matches!(uid, 0 | OVERFLOW | UNCHANGED)
}

/// Counts descriptors that this thread, and threads that it starts, send by [`apart`] against
/// `uid` from now on. To be called once, before other threads start.
///
/// # Errors
/// `EPERM` without `CAP_SETUID`: then they count against the agent's own user.
pub fn count_against(uid: u32) -> Result<(), Errno> {
    let own = getresuid()?.real.as_raw();
    if own == uid {
        return Ok(());
    }
    set_real_and_saved(UNCHANGED, uid)?;
    let _ = USERS.set(Users { own, counted: uid });
    Ok(())
}

/// Calls `send` as the user that [`count_against`] has set; as the agent's own where that
/// failed.
pub fn apart<T>(send: impl FnOnce() -> T) -> T {
    let Some(Users { own, counted }) = USERS.get().copied() else { return send() };
    // A thread older than count_against may not, and the kernel may be out of memory.
    let _back = set_real_and_saved(counted, own).is_ok().then_some(Back { own, counted });
    send()
}

/// Restores the thread's own ids on drop, whatever happens meanwhile.
struct Back {
    own: u32,
    counted: u32,
}

impl Drop for Back {
    fn drop(&mut self) {
        if let Err(errno) = set_real_and_saved(self.own, self.counted) {
            // Only the accounting is off until the next call corrects it.
            log::warn!("setresuid back to the real user id {}: {errno}", self.own);
        }
    }
}

#[cfg(test)]
mod tests {
    use monitor_sys::user_id::{UNCHANGED, set_real_and_saved};
    use nix::unistd::{geteuid, getresuid};

    use super::{Back, UID, is_apart};

    #[test]
    fn ids_that_others_have_are_refused() {
        assert!(is_apart(UID) && is_apart(1000));
        assert!([0, 65_534, u32::MAX].iter().all(|uid| !is_apart(*uid)));
    }

    #[test]
    fn ids_are_swapped_for_one_thread_and_back() {
        if !geteuid().is_root() {
            return;
        }
        let ids =
            || getresuid().map(|ids| [ids.real, ids.effective, ids.saved].map(nix::unistd::Uid::as_raw));
        let own = ids().expect("getresuid")[0];
        let swapped = std::thread::spawn(move || {
            set_real_and_saved(UNCHANGED, UID).expect("root may");
            let before = ids();
            set_real_and_saved(UID, own).expect("either is one of its own");
            let within = ids();
            drop(Back { own, counted: UID });
            (before, within, ids())
        });
        let (before, within, after) = swapped.join().expect("the thread");
        assert_eq!(within, Ok([UID, own, own]));
        assert_eq!((before, after), (Ok([own, own, UID]), Ok([own, own, UID])));
        assert_eq!(ids(), Ok([own; 3]), "other threads are as before");
    }
}
