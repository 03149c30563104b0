//! The workload that a group belongs to, by the names in its path alone: a unit of systemd, a pod
//! of Kubernetes, a container. Service managers and container runtimes give groups these names;
//! nothing else is read, so it holds for a group that is gone, too.

use std::{ffi::OsStr, path::Path};

/// Endings of the units that have a group (`systemd.unit(5)`); slices have one, too.
const UNITS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

const SLICE: &str = ".slice";

/// Prefixes of the scopes that runtimes make for a container's processes: docker, podman,
/// containerd by CRI, CRI-O, nerdctl.
const SCOPES: [&str; 5] = ["docker-", "libpod-", "cri-containerd-", "crio-", "nerdctl-"];

/// Hexadecimal digits of a container's full id.
const ID: usize = 64;

/// The workload of a group; what its path does not name is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Innermost unit: of a user's service manager, where there is one. A slice only where there
    /// is nothing else.
    pub unit: Option<String>,
    /// Unique id of the pod, as `kubectl` prints it; a static pod has one without dashes.
    pub pod_uid: Option<String>,
    /// Full id of the container, 64 hexadecimal digits.
    pub container_id: Option<String>,
}

impl Workload {
    /// The workload of the group at `path`, below the hierarchy's root.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        let mut found = Self::default();
        let mut slice = None;
        for name in path.iter().filter_map(OsStr::to_str) {
            let name = unescaped(name);
            if let Some(uid) = pod_uid(name) {
                (found.pod_uid, found.container_id) = (Some(uid), None);
            }
            if let Some(id) = container_id(name) {
                found.container_id = Some(id.to_owned());
            }
            if is_named(name, &UNITS) {
                found.unit = Some(name.to_owned());
            } else if is_named(name, &[SLICE]) {
                slice = Some(name.to_owned());
            }
        }
        found.unit = found.unit.or(slice);
        found
    }
}

/// Whether the last name of a group's path is this unit's.
#[must_use]
pub fn is_unit(path: &Path, unit: &str) -> bool {
    own_name(path) == Some(unit)
}

/// The last name of a group's path, which is a unit's where the group is one.
#[must_use]
pub fn own_name(path: &Path) -> Option<&str> {
    path.file_name().and_then(OsStr::to_str).map(unescaped)
}

/// The full name of a unit: as for `systemctl`, one without an ending is a service's.
#[must_use]
pub fn unit_name(name: &str) -> String {
    let has_ending = is_named(name, &UNITS) || is_named(name, &[SLICE]);
    if has_ending { name.to_owned() } else { format!("{name}.service") }
}

/// The pattern of full names of units that a text stands for: one without `*`, `?` and `[` is a unit's name.
#[must_use]
pub fn unit_pattern(text: &str) -> String {
    if text.contains(['*', '?', '[']) { text.to_owned() } else { unit_name(text) }
}

/// Whether a byte may stand in the name of a unit, or of an instance (`unit_instance_is_valid`).
#[must_use]
pub const fn is_in_unit_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'-' | b'_' | b'.' | b'\\' | b'@')
}

fn is_named(name: &str, endings: &[&str]) -> bool {
    endings.iter().any(|ending| name.strip_suffix(ending).is_some_and(|rest| !rest.is_empty()))
}

/// The name without the `_` that systemd puts before one that would be a file of the kernel's
/// (`cg_escape`).
fn unescaped(name: &str) -> &str {
    name.strip_prefix('_').unwrap_or(name)
}

/// The pod of a group's name: `pod<UID>` by the driver cgroupfs, `kubepods[-CLASS]-pod<UID>.slice`
/// by the driver systemd, in which `_` stands for `-`.
fn pod_uid(name: &str) -> Option<String> {
    let of_systemd = name.strip_suffix(SLICE).filter(|name| name.starts_with("kubepods"));
    let uid = match of_systemd {
        Some(name) => name.rsplit_once("-pod")?.1.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let dashes = uid.bytes().filter(|byte| *byte == b'-').count();
    (digits == 32 && (dashes == 0 || dashes == 4) && digits + dashes == uid.len()).then_some(uid)
}

/// The container of a group's name: the id alone, or a scope with a runtime's prefix.
fn container_id(name: &str) -> Option<&str> {
    let in_scope = |name: &str| SCOPES.iter().find_map(|prefix| name.strip_prefix(prefix).map(str::len));
    let id = match name.strip_suffix(".scope") {
        Some(scope) => scope.get(scope.len() - in_scope(scope)?..)?,
        None => name,
    };
    (id.len() == ID && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Workload, is_unit, unit_name, unit_pattern};

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const POD: &str = "8a1fbc1e-7d41-4b73-b0a8-7c1d7f0e9a55";

    fn of(path: &str) -> (Option<String>, Option<String>, Option<String>) {
        let Workload { unit, pod_uid, container_id } = Workload::of(Path::new(path));
        (unit, pod_uid, container_id)
    }

    #[test]
    fn the_layouts_of_runtimes_and_service_managers_are_known() {
        let (id, pod) = (Some(ID.to_owned()), Some(POD.to_owned()));
        let unit = |name: &str| Some(name.to_owned());
        let in_slice = POD.replace('-', "_");
        for (path, expected) in [
            ("/", (None, None, None)),
            ("/a/b", (None, None, None)),
            ("/system.slice", (unit("system.slice"), None, None)),
            ("/system.slice/nginx.service", (unit("nginx.service"), None, None)),
            ("/system.slice/nginx.service/worker", (unit("nginx.service"), None, None)),
            ("/system.slice/system-getty.slice/getty@tty1.service", (unit("getty@tty1.service"), None, None)),
            ("/system.slice/_cpu.service", (unit("cpu.service"), None, None)),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/editor.service",
                (unit("editor.service"), None, None),
            ),
            (&format!("/docker/{ID}"), (None, None, id.clone())),
            (
                &format!("/system.slice/docker-{ID}.scope"),
                (unit(&format!("docker-{ID}.scope")), None, id.clone()),
            ),
            (
                &format!("/machine.slice/libpod-{ID}.scope/container"),
                (unit(&format!("libpod-{ID}.scope")), None, id.clone()),
            ),
            // The monitor of a container is not in it.
            (
                &format!("/machine.slice/libpod-conmon-{ID}.scope"),
                (unit(&format!("libpod-conmon-{ID}.scope")), None, None),
            ),
            (&format!("/kubepods/burstable/pod{POD}"), (None, pod.clone(), None)),
            (&format!("/kubepods/burstable/pod{POD}/{ID}"), (None, pod.clone(), id.clone())),
            (
                &format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{in_slice}.slice/cri-containerd-{ID}.scope"
                ),
                (unit(&format!("cri-containerd-{ID}.scope")), pod.clone(), id.clone()),
            ),
            (
                &format!("/kubepods.slice/kubepods-pod{in_slice}.slice/crio-{ID}.scope"),
                (unit(&format!("crio-{ID}.scope")), pod.clone(), id.clone()),
            ),
            // A static pod's id is a hash.
            (
                "/kubepods/besteffort/pod0123456789abcdef0123456789abcdef",
                (None, Some("0123456789abcdef0123456789abcdef".to_owned()), None),
            ),
            // A node in a container: the innermost counts.
            (&format!("/docker/{}/kubelet/kubepods/pod{POD}/{ID}", "f".repeat(64)), (None, pod, id)),
        ] {
            assert_eq!(of(path), expected, "{path}");
        }
    }

    #[test]
    fn names_that_only_look_alike_are_not_taken() {
        for path in ["/pod12", "/docker/abc", "/podman", ".service", "/docker-.scope", "/docker-xyz.scope"] {
            let (_, pod, container) = of(path);
            assert_eq!((pod, container), (None, None), "{path}");
        }
        assert_eq!(of("/.service").0, None);
    }

    #[test]
    fn a_unit_is_found_by_its_name() {
        assert_eq!(unit_name("nginx"), "nginx.service");
        assert_eq!(unit_name("user@1000"), "user@1000.service");
        assert_eq!(unit_name("a.scope"), "a.scope");
        assert_eq!(unit_name("dot.ted"), "dot.ted.service");
        assert_eq!(unit_pattern("nginx"), "nginx.service");
        assert_eq!(unit_pattern("system.slice"), "system.slice");
        for pattern in ["app-*", "app-?.service", "app-[12]"] {
            assert_eq!(unit_pattern(pattern), pattern);
        }
        assert!(is_unit(Path::new("/system.slice/_cpu.service"), "cpu.service"));
        assert!(!is_unit(Path::new("/system.slice/nginx.service/worker"), "nginx.service"));
    }
}
