//! Kubernetes' Pod Security Standards: what the levels "baseline" and "restricted" refuse, control by
//! control, as the published list has them.

use serde_json::Value;

use super::json::list;

/// Capabilities that a container may add at the level baseline.
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

const SELINUX_TYPES: [&str; 5] =
    ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

/// Kinds of volumes at the level restricted.
const VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The containers of a pod's `spec`, of each kind.
pub(super) fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|kind| list(&spec[kind]))
}

/// The security contexts of a pod and of its containers.
fn contexts(spec: &Value) -> impl Iterator<Item = &Value> {
    std::iter::once(&spec["securityContext"])
        .chain(containers(spec).map(|container| &container["securityContext"]))
}

/// Names the controls of a level that a pod, or a workload's template, violates.
pub(super) fn violations(level: &str, pod: &Value) -> Vec<&'static str> {
    let controls: &[Control] = match level {
        "privileged" => &[],
        "baseline" => &BASELINE,
        "restricted" => &RESTRICTED,
        _ => return vec!["no such level"],
    };
    let mut found: Vec<_> =
        controls.iter().filter(|(_, violates)| violates(pod)).map(|(name, _)| *name).collect();
    if level == "restricted" {
        found.splice(0..0, violations("baseline", pod));
    }
    found
}

/// A control's name, and whether a pod violates it.
type Control = (&'static str, fn(&Value) -> bool);

const BASELINE: [Control; 12] = [
    ("HostProcess", |pod| {
        contexts(&pod["spec"]).any(|context| context["windowsOptions"]["hostProcess"] == true)
    }),
    ("Host Namespaces", |pod| {
        ["hostNetwork", "hostPID", "hostIPC"].iter().any(|name| pod["spec"][name] == true)
    }),
    ("Privileged Containers", |pod| {
        containers(&pod["spec"]).any(|container| container["securityContext"]["privileged"] == true)
    }),
    ("Capabilities", |pod| adds(pod, &CAPABILITIES)),
    ("HostPath Volumes", |pod| list(&pod["spec"]["volumes"]).any(|volume| !volume["hostPath"].is_null())),
    ("Host Ports", |pod| {
        let mut ports = containers(&pod["spec"]).flat_map(|container| list(&container["ports"]));
        ports.any(|port| port["hostPort"].as_u64().is_some_and(|number| number > 0))
    }),
    ("Host Probes / Lifecycle Hooks", |pod| {
        let probes = ["livenessProbe", "readinessProbe", "startupProbe"];
        let hooks = ["postStart", "preStop"];
        let names_host = |action: &Value| {
            ["httpGet", "tcpSocket"]
                .iter()
                .any(|kind| action[kind]["host"].as_str().is_some_and(|host| !host.is_empty()))
        };
        containers(&pod["spec"]).any(|container| {
            probes.iter().any(|name| names_host(&container[name]))
                || hooks.iter().any(|name| names_host(&container["lifecycle"][name]))
        })
    }),
    ("AppArmor", |pod| {
        let annotations = pod["metadata"]["annotations"].as_object().into_iter().flatten();
        contexts(&pod["spec"]).any(|context| context["appArmorProfile"]["type"] == "Unconfined")
            || annotations.into_iter().any(|(name, value)| {
                let value = value.as_str().unwrap_or_default();
                name.starts_with(APPARMOR)
                    && !(value.is_empty() || value == "runtime/default" || value.starts_with("localhost/"))
            })
    }),
    ("SELinux", |pod| {
        contexts(&pod["spec"]).map(|context| &context["seLinuxOptions"]).any(|options| {
            let text = |name: &str| options[name].as_str().unwrap_or_default().to_owned();
            !SELINUX_TYPES.contains(&text("type").as_str())
                || !text("user").is_empty()
                || !text("role").is_empty()
        })
    }),
    ("/proc Mount Type", |pod| {
        contexts(&pod["spec"])
            .any(|context| context["procMount"].as_str().is_some_and(|kind| kind != "Default"))
    }),
    ("Seccomp", |pod| {
        contexts(&pod["spec"]).any(|context| context["seccompProfile"]["type"] == "Unconfined")
    }),
    ("Sysctls", |pod| {
        list(&pod["spec"]["securityContext"]["sysctls"])
            .any(|sysctl| !SYSCTLS.contains(&sysctl["name"].as_str().unwrap_or_default()))
    }),
];

const RESTRICTED: [Control; 6] = [
    ("Volume Types", |pod| {
        list(&pod["spec"]["volumes"]).any(|volume| !VOLUMES.iter().any(|kind| !volume[kind].is_null()))
    }),
    ("Privilege Escalation", |pod| {
        containers(&pod["spec"])
            .any(|container| container["securityContext"]["allowPrivilegeEscalation"] != false)
    }),
    ("Running as Non-root", |pod| {
        let of_pod = pod["spec"]["securityContext"]["runAsNonRoot"] == true;
        containers(&pod["spec"]).any(|container| match &container["securityContext"]["runAsNonRoot"] {
            Value::Bool(is_so) => !is_so,
            _ => !of_pod,
        })
    }),
    ("Running as Non-root user", |pod| contexts(&pod["spec"]).any(|context| context["runAsUser"] == 0)),
    ("Seccomp (restricted)", |pod| {
        let is_so = |context: &Value| {
            ["RuntimeDefault", "Localhost"].iter().any(|kind| context["seccompProfile"]["type"] == *kind)
        };
        let of_pod = is_so(&pod["spec"]["securityContext"]);
        containers(&pod["spec"]).any(|container| {
            let own = &container["securityContext"];
            if own["seccompProfile"].is_null() { !of_pod } else { !is_so(own) }
        })
    }),
    ("Capabilities (restricted)", |pod| {
        let drops_all = |container: &Value| {
            list(&container["securityContext"]["capabilities"]["drop"]).any(|name| name == "ALL")
        };
        adds(pod, &["NET_BIND_SERVICE"]) || !containers(&pod["spec"]).all(drops_all)
    }),
];

/// Whether a container adds a capability that is not among these.
fn adds(pod: &Value, allowed: &[&str]) -> bool {
    containers(&pod["spec"])
        .flat_map(|container| list(&container["securityContext"]["capabilities"]["add"]))
        .any(|name| !allowed.contains(&name.as_str().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::violations;

    /// A pod that the level restricted admits.
    fn pod() -> Value {
        json!({ "metadata": {}, "spec": {
            "volumes": [{ "name": "a", "emptyDir": {} }],
            "containers": [{ "name": "a", "securityContext": {
                "allowPrivilegeEscalation": false,
                "runAsNonRoot": true,
                "capabilities": { "drop": ["ALL"] },
                "seccompProfile": { "type": "RuntimeDefault" },
            }}],
        }})
    }

    fn with(pointer: &str, value: Value) -> Value {
        let mut pod = pod();
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        pod.pointer_mut(parent).expect("it is there")[name] = value;
        pod
    }

    #[test]
    fn each_control_is_found_violated_by_what_it_is_about() {
        const CONTEXT: &str = "/spec/containers/0/securityContext";
        assert!(violations("restricted", &pod()).is_empty());
        assert!(violations("privileged", &with("/spec/hostPID", json!(true))).is_empty());
        for (path, value, control) in [
            ("/spec/hostPID", json!(true), "Host Namespaces"),
            ("/spec/hostNetwork", json!(true), "Host Namespaces"),
            ("/spec/volumes", json!([{ "hostPath": { "path": "/run" } }]), "HostPath Volumes"),
            ("/spec/containers/0/ports", json!([{ "hostPort": 80 }]), "Host Ports"),
            (
                "/spec/containers/0/livenessProbe",
                json!({ "httpGet": { "host": "10.0.0.1" } }),
                "Host Probes / Lifecycle Hooks",
            ),
            (
                "/metadata/annotations",
                json!({ "container.apparmor.security.beta.kubernetes.io/a": "unconfined" }),
                "AppArmor",
            ),
            ("/spec/securityContext", json!({ "appArmorProfile": { "type": "Unconfined" } }), "AppArmor"),
            ("/spec/securityContext", json!({ "seLinuxOptions": { "type": "spc_t" } }), "SELinux"),
            ("/spec/securityContext", json!({ "sysctls": [{ "name": "kernel.msgmax" }] }), "Sysctls"),
            ("/spec/securityContext", json!({ "windowsOptions": { "hostProcess": true } }), "HostProcess"),
            (&format!("{CONTEXT}/privileged"), json!(true), "Privileged Containers"),
            (
                &format!("{CONTEXT}/capabilities"),
                json!({ "drop": ["ALL"], "add": ["SYS_ADMIN"] }),
                "Capabilities",
            ),
            (&format!("{CONTEXT}/procMount"), json!("Unmasked"), "/proc Mount Type"),
            (&format!("{CONTEXT}/seccompProfile"), json!({ "type": "Unconfined" }), "Seccomp"),
        ] {
            let found = violations("baseline", &with(path, value));
            assert_eq!(found, [control], "{path}");
        }
        for (path, value, control) in [
            ("/spec/volumes", json!([{ "nfs": {} }]), "Volume Types"),
            (&format!("{CONTEXT}/allowPrivilegeEscalation"), json!(null), "Privilege Escalation"),
            (&format!("{CONTEXT}/runAsNonRoot"), json!(null), "Running as Non-root"),
            (&format!("{CONTEXT}/runAsUser"), json!(0), "Running as Non-root user"),
            (&format!("{CONTEXT}/seccompProfile"), json!(null), "Seccomp (restricted)"),
            (&format!("{CONTEXT}/capabilities"), json!({}), "Capabilities (restricted)"),
        ] {
            let pod = with(path, value);
            assert_eq!(violations("baseline", &pod), Vec::<&str>::new(), "{path}");
            assert_eq!(violations("restricted", &pod), [control], "{path}");
        }
    }
}
