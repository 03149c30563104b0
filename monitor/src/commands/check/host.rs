//! Facts about the host that explain what the agent sees, and what it costs there.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use memcg_monitor::{
    cgroup::{Hierarchy, Version},
    kernel::settings::sysctl,
};

/// Inode number of the first cgroup namespace (`PROC_CGROUP_INIT_INO`, `include/linux/proc_ns.h`).
const FIRST_CGROUP_NAMESPACE: u64 = 0xEFFF_FFFB;
/// Inode number of the first pid namespace (`PROC_PID_INIT_INO`).
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// The hierarchy's version and controllers, in words.
pub(super) fn hierarchy(found: &Hierarchy) -> String {
    let root = found.root.display();
    let mode = mode(found.version, &found.others().unwrap_or_default());
    match found.version {
        Version::V1 => format!("cgroup v1 at {root}; {mode}"),
        Version::V2 => {
            let read = |name| fs::read_to_string(found.root.join(name)).unwrap_or_default();
            let (controllers, below) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
            let has = |list: &str| list.split_whitespace().any(|name| name == "memory");
            let groups = match (has(&controllers), has(&below)) {
                (_, true) => "enabled for the groups below".to_owned(),
                (true, false) => {
                    format!("not enabled for the groups below: echo +memory > {root}/cgroup.subtree_control")
                }
                (false, false) => "without the memory controller here".to_owned(),
            };
            format!("cgroup v2 at {root}, {groups}; {mode}")
        }
    }
}

/// The host's mode: whether it has hierarchies of both versions beside each other.
fn mode(version: Version, others: &[(Version, PathBuf)]) -> String {
    let is_hybrid = others.iter().any(|(other, _)| *other != version);
    let mode = match (is_hybrid, version) {
        (true, _) => "hybrid",
        (false, Version::V1) => "legacy",
        (false, Version::V2) => "unified",
    };
    let beside: Vec<_> =
        others.iter().map(|(version, point)| format!("{version} at {}", point.display())).collect();
    let beside =
        if beside.is_empty() { String::new() } else { format!(", without memory: {}", beside.join(", ")) };
    format!("mode {mode}{beside}")
}

/// Whether the namespaces are the host's: an agent in others sees a part of the groups, and
/// cannot take descriptors of processes outside.
pub(super) fn namespaces() -> Result<String, String> {
    let inode = |name| fs::metadata(Path::new("/proc/self/ns").join(name)).map(|data| data.ino());
    judge(inode("cgroup"), inode("pid"))
}

fn judge(cgroup: io::Result<u64>, pid: io::Result<u64>) -> Result<String, String> {
    let is = |found: io::Result<u64>, first| found.map_or(true, |inode| inode == first);
    match (is(cgroup, FIRST_CGROUP_NAMESPACE), is(pid, FIRST_PID_NAMESPACE)) {
        (true, true) => Ok("the host's cgroup and pid namespaces".into()),
        (false, true) => Err("a cgroup namespace of its own: the groups below its root are watched, those of the host beside it are not".into()),
        (true, false) => Err("a pid namespace of its own: clients outside it are refused where they name descriptors by number (Kubernetes: hostPID: true)".into()),
        (false, false) => Err("cgroup and pid namespaces of its own: groups and clients outside them are not served".into()),
    }
}

/// Settings of BPF that cost speed or explain a refusal.
pub(super) fn bpf_settings() -> Result<String, String> {
    let number = |path| sysctl(path)?.parse().ok();
    let (jit, harden) = (number("net/core/bpf_jit_enable"), number("net/core/bpf_jit_harden"));
    let unprivileged = number("kernel/unprivileged_bpf_disabled");
    explain(jit, harden, unprivileged)
}

fn explain(jit: Option<u32>, harden: Option<u32>, unprivileged: Option<u32>) -> Result<String, String> {
    if jit == Some(0) {
        return Err("net.core.bpf_jit_enable is 0: programs are interpreted, so each charge costs several times more: sysctl net.core.bpf_jit_enable=1".into());
    }
    let unprivileged = match unprivileged {
        Some(0) => "open to every user (kernel.unprivileged_bpf_disabled is 0)",
        Some(_) => "for privileged users alone",
        None => "as the kernel was built",
    };
    if harden == Some(2) {
        return Err(format!(
            "net.core.bpf_jit_harden is 2: the programs' constants are blinded, so each charge costs more; BPF is {unprivileged}"
        ));
    }
    Ok(format!("compiled (JIT), {unprivileged}"))
}

#[cfg(test)]
mod tests {
    use std::io;

    use memcg_monitor::cgroup::Version;

    use super::{FIRST_CGROUP_NAMESPACE, FIRST_PID_NAMESPACE, explain, judge, mode};

    #[test]
    fn a_host_with_both_versions_is_hybrid() {
        let others = [(Version::V1, "/cg/cpu".into()), (Version::V1, "/cg/systemd".into())];
        assert_eq!(mode(Version::V2, &[]), "mode unified");
        assert_eq!(
            mode(Version::V2, &others),
            "mode hybrid, without memory: cgroup v1 at /cg/cpu, cgroup v1 at /cg/systemd"
        );
        assert!(mode(Version::V1, &others).starts_with("mode legacy, without memory: "));
        assert!(mode(Version::V1, &[(Version::V2, "/cg/unified".into())]).starts_with("mode hybrid"));
    }

    #[test]
    fn namespaces_of_a_container_are_named() {
        let (cgroup, pid) = (|| Ok(FIRST_CGROUP_NAMESPACE), || Ok(FIRST_PID_NAMESPACE));
        assert!(judge(cgroup(), pid()).is_ok());
        assert!(judge(cgroup(), Ok(7)).is_err_and(|text| text.contains("hostPID")));
        assert!(judge(Ok(7), pid()).is_err_and(|text| text.starts_with("a cgroup namespace")));
        // A kernel without the namespace has one for all.
        assert!(judge(Err(io::ErrorKind::NotFound.into()), pid()).is_ok());
    }

    #[test]
    fn settings_that_cost_are_named_with_the_remedy() {
        assert!(
            explain(Some(0), None, None).is_err_and(|text| text.contains("sysctl net.core.bpf_jit_enable=1"))
        );
        assert!(explain(Some(1), Some(2), Some(2)).is_err_and(|text| text.contains("blinded")));
        assert!(explain(Some(1), Some(1), Some(0)).is_ok_and(|text| text.contains("every user")));
        assert!(explain(None, None, None).is_ok());
    }
}
