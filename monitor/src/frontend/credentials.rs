//! The credentials of a client, and what they permit.

use nix::sys::socket::UnixCredentials;

/// The credentials that a client registers with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User id for file access (fsuid).
    pub uid: u32,
    /// Group id for file access (fsgid).
    pub gid: u32,
    /// Ids of the supplementary groups.
    pub groups: Vec<u32>,
    /// Whether it has `CAP_DAC_OVERRIDE` or `CAP_DAC_READ_SEARCH` in the agent's user namespace.
    pub reads_all: bool,
    /// Whether it has `CAP_SYS_RESOURCE` in the agent's user namespace, which overrides the
    /// kernel's own quotas.
    pub overrides_quotas: bool,
    /// Whether it has `CAP_SYS_ADMIN` in the agent's user namespace.
    pub administers: bool,
    /// Whether it has `CAP_SYS_PTRACE` in the agent's user namespace: of use against the agent
    /// where the agent is visible, in its own pid namespace.
    pub traces: bool,
    /// The real user and group. Where they differ from the others, a program does more than its
    /// user may (set-user-ID), perhaps at that user's request: then both must be allowed.
    pub real: (u32, u32),
}

const CAP_DAC_OVERRIDE: u64 = 1 << 1;
const CAP_DAC_READ_SEARCH: u64 = 1 << 2;
const CAP_SYS_PTRACE: u64 = 1 << 19;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_SYS_RESOURCE: u64 = 1 << 24;

impl Credentials {
    /// Credentials of a sender of which only the kernel's `SCM_CREDENTIALS` are known.
    #[must_use]
    pub fn stranger(sender: &UnixCredentials) -> Self {
        let (uid, gid) = (sender.uid(), sender.gid());
        Self { uid, gid, real: (uid, gid), ..Self::default() }
    }

    /// Whether they permit reading, by the kernel's `file_permission(MAY_READ)` for files without
    /// ACLs: the inode's mode counts, not how the descriptor was opened.
    #[must_use]
    pub fn may_read(&self, mode: u32, owner: u32, group: u32) -> bool {
        let (uid, _) = self.real;
        (self.reads_all && uid == self.uid) || self.is_allowed(4, mode, owner, group)
    }

    /// Whether they permit writing (`MAY_WRITE`), without any capability: `CAP_DAC_OVERRIDE` is
    /// among those that root in a container has.
    #[must_use]
    pub fn may_write(&self, mode: u32, owner: u32, group: u32) -> bool {
        self.is_allowed(2, mode, owner, group)
    }

    fn is_allowed(&self, what: u32, mode: u32, owner: u32, group: u32) -> bool {
        let allowed = |uid: u32, gid: u32| {
            let class = if uid == owner {
                6
            } else if gid == group || self.groups.contains(&group) {
                3
            } else {
                0
            };
            mode >> class & what != 0
        };
        let (uid, gid) = self.real;
        allowed(self.uid, self.gid) && allowed(uid, gid)
    }

    /// Whether no quota applies: not by the user id, which is 0 in many a container, and not
    /// where the process may act for another user (set-user-ID).
    #[must_use]
    pub const fn is_privileged(&self) -> bool {
        self.overrides_quotas && self.real.0 == self.uid
    }

    /// Whether it may do more to the host, or to the agent, than an operator's request does, as
    /// root in a container may not: not with `CAP_SYS_PTRACE` over processes of its own pid
    /// namespace alone.
    #[must_use]
    pub const fn is_administrator(&self, is_in_our_pid_namespace: bool) -> bool {
        (self.administers || (self.traces && is_in_our_pid_namespace)) && self.real.0 == self.uid
    }

    /// Reads the text of `/proc/PID/status`. `sender` is the sender by the kernel's
    /// `SCM_CREDENTIALS`; capabilities count only where the process is in the agent's own user
    /// namespace.
    pub(super) fn from_status(status: &str, sender: &UnixCredentials, same_user_namespace: bool) -> Self {
        let caps = field(status, "CapEff:").and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        let caps = caps.filter(|_| same_user_namespace).unwrap_or(0);
        Self {
            uid: numbers(status, "Uid:").get(3).copied().unwrap_or_else(|| sender.uid()),
            gid: numbers(status, "Gid:").get(3).copied().unwrap_or_else(|| sender.gid()),
            groups: numbers(status, "Groups:"),
            reads_all: caps & (CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH) != 0,
            overrides_quotas: caps & CAP_SYS_RESOURCE != 0,
            administers: caps & CAP_SYS_ADMIN != 0,
            traces: caps & CAP_SYS_PTRACE != 0,
            real: (sender.uid(), sender.gid()),
        }
    }

    /// Credentials of a writer, whose user and group the kernel has reported.
    pub(super) fn of_writer(status: &str, writer: &UnixCredentials, same_user_namespace: bool) -> Self {
        let (uid, gid) = (writer.uid(), writer.gid());
        let id = |name, other| numbers(status, name).first().copied().unwrap_or(other);
        let real = (id("Uid:", uid), id("Gid:", gid));
        Self { uid, gid, real, ..Self::from_status(status, writer, same_user_namespace) }
    }

    /// Whether the process of this `/proc/PID/status` could have sent as `uid`.
    pub(super) fn may_send_as(status: &str, uid: u32) -> bool {
        numbers(status, "Uid:").contains(&uid)
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name))
}

fn numbers(status: &str, name: &str) -> Vec<u32> {
    let words = field(status, name).unwrap_or_default().split_whitespace();
    words.filter_map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::UnixCredentials;

    use super::{CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_SYS_RESOURCE, Credentials};

    fn user(uid: u32, gid: u32, groups: &[u32]) -> Credentials {
        Credentials { uid, gid, groups: groups.to_vec(), real: (uid, gid), ..Credentials::default() }
    }

    #[test]
    fn the_class_of_the_caller_decides_alone() {
        assert!(user(1, 1, &[]).may_read(0o444, 0, 0));
        assert!(!user(1, 1, &[]).may_read(0o440, 0, 0));
        assert!(user(1, 1, &[7]).may_read(0o440, 0, 7));
        // The owner's class counts even where others may do more.
        assert!(!user(1, 1, &[]).may_read(0o044, 1, 0));
        assert!(Credentials { reads_all: true, ..user(1, 1, &[]) }.may_read(0, 0, 0));
    }

    #[test]
    fn a_set_user_id_program_reads_nothing_that_its_user_may_not() {
        let helper = Credentials { reads_all: true, real: (1, 1), ..user(0, 0, &[]) };
        assert!(!helper.may_read(0o600, 0, 0));
        assert!(helper.may_read(0o604, 0, 7));
        // Nor is a right of the user alone enough, which the set-user-ID program lacks.
        assert!(!Credentials { real: (0, 0), ..user(1, 1, &[]) }.may_read(0o600, 0, 0));
    }

    #[test]
    fn a_capability_is_privileged_and_user_id_0_is_not() {
        let read = |ids: &str, caps: &str, same| {
            let status = format!("Uid:\t{ids}\nGid:\t0\t0\t0\t0\nCapEff:\t{caps}\n");
            let (uid, _) = ids.split_once('\t').expect("four");
            let uid = uid.parse().expect("a number");
            let sender = libc::ucred { pid: 1, uid, gid: 0 }.into();
            Credentials::from_status(&status, &sender, same).is_privileged()
        };
        assert!(read("0\t0\t0\t0", "000001ffffffffff", true));
        assert!(read("7\t7\t7\t7", "0000000001000000", true));
        assert!(!read("0\t0\t0\t0", "000001fffeffffff", true), "a container's root");
        assert!(!read("0\t0\t0\t0", "000001ffffffffff", false), "of a namespace of its own");
        assert!(!read("7\t0\t0\t0", "000001ffffffffff", true), "set-user-ID");
    }

    #[test]
    fn a_capability_is_an_administrators_and_user_id_0_is_not() {
        let read = |caps: u64, same, same_pids| {
            let status = format!("Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nCapEff:\t{caps:016x}\n");
            let sender = libc::ucred { pid: 1, uid: 0, gid: 0 }.into();
            Credentials::from_status(&status, &sender, same).is_administrator(same_pids)
        };
        // The capabilities that docker, containerd and CRI-O leave to root in a container.
        const CONTAINER: u64 = 0xa804_25fb;
        assert!(!read(CONTAINER, true, true), "a container's root");
        assert!(!read(u64::MAX, false, true), "of a user namespace of its own");
        assert!(read(CONTAINER | CAP_SYS_ADMIN, true, false));
        assert!(read(CONTAINER | CAP_SYS_PTRACE, true, true), "beside the agent, in its container");
        assert!(!read(CONTAINER | CAP_SYS_PTRACE, true, false), "a container for debuggers");
        assert!(!read(CONTAINER | CAP_SYS_RESOURCE, true, true), "a container for databases");
    }

    #[test]
    fn no_capability_lets_write() {
        assert!(user(1, 1, &[]).may_write(0o600, 1, 0));
        assert!(user(1, 1, &[7]).may_write(0o660, 0, 7));
        assert!(!user(1, 1, &[7]).may_write(0o640, 0, 7));
        assert!(!Credentials { reads_all: true, ..user(1, 1, &[]) }.may_write(0o600, 0, 0));
        // By setfsuid.
        assert!(!Credentials { real: (1, 1), ..user(0, 0, &[]) }.may_write(0o600, 0, 0));
    }

    #[test]
    fn status_gives_the_file_system_ids() {
        let status =
            "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapEff:\t0000000000000002\n";
        let read = Credentials::from_status(status, &UnixCredentials::new(), true);
        assert_eq!((read.uid, read.gid, read.groups, read.reads_all), (4, 8, vec![9, 10], true));
        assert!(Credentials::may_send_as(status, 2) && !Credentials::may_send_as(status, 5));
        assert!(!Credentials::from_status(status, &UnixCredentials::new(), false).reads_all);
    }
}
