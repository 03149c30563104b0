//! Checks of a set of Kubernetes' objects, as they would be applied together: what each refers to is
//! there, and what a namespace's level of Pod Security refuses is not.

use std::collections::BTreeSet;

use serde_json::Value;

use super::json::list;
use super::pod_security::{containers, violations};
use crate::image;

/// A namespace that each cluster has, where the agent runs; it has no level of Pod Security.
const SYSTEM: &str = "kube-system";

/// Kinds that are in no namespace.
const CLUSTER_WIDE: [&str; 1] = ["Namespace"];

/// Labels that Kubernetes recommends, as far as each object has them.
const LABELS: [&str; 4] = ["name", "instance", "part-of", "managed-by"];

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn names(values: &Value) -> BTreeSet<&str> {
    list(values).map(|value| text(&value["name"])).collect()
}

/// The pod that an object is, or makes.
pub(super) fn pod_of(object: &Value) -> Option<&Value> {
    match text(&object["kind"]) {
        "Pod" => Some(object),
        "DaemonSet" | "Deployment" | "StatefulSet" => Some(&object["spec"]["template"]),
        _ => None,
    }
}

/// Whether an object's labels have each of these.
fn has_labels(object: &Value, wanted: &Value) -> bool {
    let wanted = wanted.as_object();
    wanted.is_some_and(|wanted| {
        !wanted.is_empty() && wanted.iter().all(|(name, value)| object["metadata"]["labels"][name] == *value)
    })
}

/// A text for each fault.
pub(super) fn faults(objects: &[Value]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut known = BTreeSet::new();
    for object in objects {
        let (kind, namespace) = (text(&object["kind"]), text(&object["metadata"]["namespace"]));
        let name = format!("{kind} {namespace}/{}", text(&object["metadata"]["name"]));
        let mut fault = |what: String| faults.push(format!("{name}: {what}"));
        if text(&object["apiVersion"]).is_empty() || name.ends_with('/') || !known.insert(name.clone()) {
            fault("has no version or name, or is there twice".into());
        }
        for label in LABELS.map(|label| format!("app.kubernetes.io/{label}")) {
            if text(&object["metadata"]["labels"][&label]).is_empty() {
                fault(format!("has no label {label}"));
            }
        }
        let is_there =
            |other: &&Value| other["kind"] == "Namespace" && other["metadata"]["name"] == namespace;
        let home = objects.iter().find(is_there);
        if !CLUSTER_WIDE.contains(&kind) && namespace != SYSTEM && home.is_none() {
            fault("its namespace is not there".into());
        }
        for what in references(object, objects) {
            fault(what);
        }
        if let Some(pod) = pod_of(object) {
            pod_faults(pod).into_iter().for_each(&mut fault);
            let level = home.map_or("privileged", |home| {
                text(&home["metadata"]["labels"]["pod-security.kubernetes.io/enforce"])
            });
            for control in violations(level, pod) {
                fault(format!("its namespace's level {level} refuses it: {control}"));
            }
        }
    }
    faults
}

/// Faults of selectors and named ports.
fn references(object: &Value, objects: &[Value]) -> Vec<String> {
    let spec = &object["spec"];
    let pods = |selector: &Value| -> Vec<&Value> {
        let pods = objects.iter().filter_map(pod_of);
        pods.filter(|pod| has_labels(pod, selector)).collect()
    };
    let ports = |pods: &[&Value]| -> BTreeSet<String> {
        let containers = pods.iter().flat_map(|pod| containers(&pod["spec"]));
        containers.flat_map(|container| names(&container["ports"])).map(str::to_owned).collect()
    };
    let (selector, wanted): (_, Vec<&Value>) = match text(&object["kind"]) {
        "DaemonSet" | "Deployment" | "StatefulSet" => {
            let labels = &spec["selector"]["matchLabels"];
            let is_own = has_labels(&spec["template"], labels);
            return if is_own { Vec::new() } else { vec!["selects other pods than it makes".into()] };
        }
        "Service" => (&spec["selector"], list(&spec["ports"]).map(|port| &port["targetPort"]).collect()),
        "NetworkPolicy" => {
            let rules = list(&spec["ingress"]).flat_map(|rule| list(&rule["ports"]));
            (&spec["podSelector"]["matchLabels"], rules.map(|port| &port["port"]).collect())
        }
        "PodMonitor" => {
            let ends = list(&spec["podMetricsEndpoints"]).map(|end| &end["port"]);
            (&spec["selector"]["matchLabels"], ends.collect())
        }
        _ => return Vec::new(),
    };
    let pods = pods(selector);
    if pods.is_empty() {
        return vec!["selects no pod".into()];
    }
    let there = ports(&pods);
    let absent = wanted.into_iter().map(text).filter(|port| !there.contains(*port));
    absent.map(|port| format!("no container has the port {port:?}")).collect()
}

/// Faults of a pod by itself.
fn pod_faults(pod: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let spec = &pod["spec"];
    let volumes = names(&spec["volumes"]);
    let mounted: BTreeSet<_> =
        containers(spec).flat_map(|container| names(&container["volumeMounts"])).collect();
    for name in volumes.symmetric_difference(&mounted) {
        faults.push(format!("the volume {name} is not there, or not mounted"));
    }
    for container in containers(spec) {
        let name = text(&container["name"]);
        if container["image"] != image::NAME {
            faults.push(format!("{name}: its image is {}, not {}", container["image"], image::NAME));
        }
        let context = &container["securityContext"];
        if context["privileged"] != false || context["readOnlyRootFilesystem"] != true {
            faults.push(format!("{name}: it is privileged, or may write to its image"));
        }
        if container["resources"]["limits"]["memory"].is_null() {
            faults.push(format!("{name}: it has no limit of memory"));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::faults;

    fn set() -> Vec<Value> {
        let labels = json!({
            "app.kubernetes.io/name": "a",
            "app.kubernetes.io/instance": "a",
            "app.kubernetes.io/part-of": "a",
            "app.kubernetes.io/managed-by": "kustomize",
        });
        let mut enforced = labels.clone();
        enforced["pod-security.kubernetes.io/enforce"] = json!("baseline");
        let own = json!({ "app.kubernetes.io/name": "a" });
        vec![
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "n", "labels": enforced } }),
            json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "namespace": "n", "labels": labels },
                "spec": {
                    "volumes": [{ "name": "v", "emptyDir": {} }],
                    "containers": [{
                        "name": "c", "image": crate::image::NAME, "ports": [{ "name": "metrics" }],
                        "resources": { "limits": { "memory": "1Mi" } },
                        "securityContext": { "privileged": false, "readOnlyRootFilesystem": true },
                        "volumeMounts": [{ "name": "v" }],
                    }],
                } }),
            json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s", "namespace": "n", "labels": labels },
                "spec": { "selector": own, "ports": [{ "targetPort": "metrics" }] } }),
            json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": { "name": "n", "namespace": "n", "labels": labels },
                "spec": { "podSelector": { "matchLabels": own }, "ingress": [{ "ports": [{ "port": "metrics" }] }] } }),
        ]
    }

    #[test]
    fn each_reference_is_followed() {
        assert_eq!(faults(&set()), Vec::<String>::new());
        for (at, pointer, value, word) in [
            (0, "/metadata/name", json!("other"), "its namespace is not there"),
            (1, "/metadata/labels", json!({}), "has no label"),
            (1, "/spec/volumes", json!([]), "the volume v"),
            (
                1,
                "/spec/volumes",
                json!([{ "name": "v", "hostPath": {} }]),
                "level baseline refuses it: HostPath",
            ),
            (1, "/spec/containers/0/image", json!("x"), "its image is"),
            (1, "/spec/containers/0/resources/limits", json!({}), "no limit of memory"),
            (1, "/spec/containers/0/securityContext", json!({}), "may write to its image"),
            (1, "/spec/containers/0/ports", json!([]), "no container has the port"),
            (2, "/spec/selector", json!({ "app.kubernetes.io/name": "b" }), "selects no pod"),
            (3, "/spec/podSelector/matchLabels", json!({}), "selects no pod"),
            (3, "/metadata/name", json!(""), "no version or name"),
        ] {
            let mut set = set();
            *set[at].pointer_mut(pointer).expect(pointer) = value;
            let found = faults(&set);
            assert!(found.iter().any(|fault| fault.contains(word)), "{pointer}: {found:?}");
        }
        let mut set = set();
        set.push(set[1].clone());
        assert!(faults(&set).iter().any(|fault| fault.contains("twice")));
    }
}
