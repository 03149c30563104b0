//! The files of `deploy/`, read as a cluster or a service manager reads them.

mod dashboard;
mod json;
mod kubernetes;
mod picture;
mod pod_security;
mod resources;

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

pub(crate) use self::dashboard::{queries, recorded};
pub(crate) use self::kubernetes::{Kustomize, check};
pub(crate) use self::picture::draw;
use crate::workspace::root;

/// Reads a manifest of deploy/kubernetes.
pub(crate) fn manifest(name: &str) -> Result<Value> {
    let path = root().join("deploy/kubernetes").join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("{} is not YAML", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn read(path: &str) -> String {
        fs::read_to_string(root().join(path)).expect(path)
    }

    /// The words of all lines of a unit that set `key`; a `~` takes words away.
    fn setting(units: &[&str], key: &str) -> BTreeSet<String> {
        let mut words = BTreeSet::new();
        for line in units.iter().flat_map(|path| read(path).lines().map(str::to_owned).collect::<Vec<_>>()) {
            let Some(value) = line.strip_prefix(key).and_then(|rest| rest.strip_prefix('=')) else {
                continue;
            };
            match value.strip_prefix('~') {
                Some(value) => value.split_whitespace().for_each(|word| {
                    words.remove(word);
                }),
                None => words.extend(value.split_whitespace().map(str::to_owned)),
            }
        }
        words
    }

    fn strings(value: &Value) -> BTreeSet<String> {
        let list = value.as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    }

    const SERVICE: &str = "deploy/systemd/memcg-monitor.service";
    const NO_VIEW: &str = "deploy/systemd/memcg-monitor.service.d/no-view.conf";

    #[test]
    fn a_user_of_its_own_has_the_capabilities_of_the_unit() {
        let own = setting(&["deploy/systemd/memcg-monitor.service.d/own-user.conf"], "AmbientCapabilities");
        assert_eq!(own, setting(&[SERVICE], "CapabilityBoundingSet"));
    }

    #[test]
    fn the_pod_has_the_capabilities_of_the_unit_without_the_view() {
        let set = manifest("base/daemonset.yaml").expect("a manifest");
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        let capabilities = &container["securityContext"]["capabilities"];
        assert_eq!(strings(&capabilities["drop"]), BTreeSet::from(["ALL".to_owned()]));
        let pod: BTreeSet<_> =
            strings(&capabilities["add"]).iter().map(|name| format!("CAP_{name}")).collect();
        assert_eq!(pod, setting(&[SERVICE, NO_VIEW], "CapabilityBoundingSet"));
        assert!(strings(&container["args"]).contains("--no-mount"));
    }

    #[test]
    fn each_capability_has_a_reason() {
        let unit = read(SERVICE);
        let document = read("docs/guide/deploy.md");
        for name in setting(&[SERVICE], "CapabilityBoundingSet") {
            assert!(unit.contains(&format!("# {name}: ")), "{name} in {SERVICE}");
            assert!(document.contains(&format!("| `{name}` |")), "{name} in docs/guide/deploy.md");
        }
    }

    /// Root in a pod passes by any mode, so the socket must not be where pods can reach it.
    #[test]
    fn no_pod_mounts_the_operators_socket() {
        let set = manifest("base/daemonset.yaml").expect("a manifest");
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        let socket = strings(&container["args"]);
        let socket = socket.iter().find_map(|arg| arg.strip_prefix("--control-socket=")).expect("the socket");
        let pod = manifest("overlays/client-hostpath/pod.yaml").expect("a manifest");
        let volumes = pod["spec"]["volumes"].as_array().expect("volumes");
        for path in volumes.iter().filter_map(|volume| volume["hostPath"]["path"].as_str()) {
            assert!(!socket.starts_with(&format!("{path}/")), "{socket} is below {path}");
        }
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let command = strings(&container[probe]["exec"]["command"]);
            assert!(command.contains("status"), "{probe} requests more than it needs");
            assert!(command.contains(&format!("--control-socket={socket}")), "{probe}");
        }
    }
}
