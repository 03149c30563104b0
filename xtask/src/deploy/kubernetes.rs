//! The manifests of `deploy/kubernetes`: built by Debian's kustomize, and checked as a whole.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::resources;
use crate::apt;
use crate::process::{self, command};
use crate::setup::{self, Need};
use crate::summary::Outcome;
use crate::workspace::{root, short, tools};

/// The base and each overlay, below `deploy/kubernetes`.
pub(super) const OVERLAYS: [&str; 5] = [
    "base",
    "overlays/metrics",
    "overlays/prometheus-operator",
    "overlays/client",
    "overlays/client-hostpath",
];

fn program() -> PathBuf {
    tools().join("kustomize/usr/bin/kustomize")
}

/// The program kustomize. Debian's releases have none yet; the one of `sid` needs no library but C's,
/// from 2.34 on.
#[derive(Debug)]
pub(crate) struct Kustomize;

impl Need for Kustomize {
    fn name(&self) -> &'static str {
        "kustomize"
    }

    fn find(&self) -> Result<String> {
        Ok(format!("kustomize {}", setup::file(&program())?))
    }

    fn fetch(&self) -> Result<()> {
        println!("setup: downloading kustomize, into target/ only");
        std::fs::create_dir_all(tools()).context("cannot make target/tools")?;
        apt::Source::suite("sid")?.unpack(&["kustomize".to_owned()], &tools().join("kustomize"))
    }
}

/// Builds the base and each overlay, and checks what would be applied.
pub(crate) fn check() -> Result<Outcome> {
    setup::ensure(&[&Kustomize])?;
    let mut count = 0;
    for overlay in OVERLAYS {
        let directory = root().join("deploy/kubernetes").join(overlay);
        let text = process::output(command(program()).arg("build").arg(&directory))
            .with_context(|| format!("kustomize cannot build {}", short(&directory)))?;
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text)
            .with_context(|| format!("kustomize wrote no YAML of {}", short(&directory)))?;
        let faults = resources::faults(&objects);
        ensure!(
            faults.is_empty(),
            "{}, as kustomize builds it, has faults; repair its files: {}",
            short(&directory),
            faults.join("; ")
        );
        count += objects.len();
    }
    Ok(Outcome::pass(format!("{count} objects in {} overlays", OVERLAYS.len())))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::super::pod_security::{containers, violations};
    use super::super::{manifest, resources::pod_of};
    use super::*;
    use crate::workspace::files_below;

    fn strings(value: &Value) -> BTreeSet<String> {
        let list = value.as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    }

    #[test]
    fn every_overlay_is_built_and_every_file_is_used() {
        let mut used = BTreeSet::new();
        for overlay in OVERLAYS {
            let name = format!("{overlay}/kustomization.yaml");
            let file = manifest(&name).expect(&name);
            used.insert(name);
            let patches = file["patches"].as_array().into_iter().flatten();
            let patches = patches.filter_map(|patch| patch["path"].as_str()).map(str::to_owned);
            for path in strings(&file["resources"]).into_iter().chain(patches) {
                let path = match path.strip_prefix("../") {
                    Some(base) => format!("{}/kustomization.yaml", base.replace("../", "")),
                    None => format!("{overlay}/{path}"),
                };
                let path = if path.starts_with("metrics") { format!("overlays/{path}") } else { path };
                assert!(root().join("deploy/kubernetes").join(&path).is_file(), "{overlay}: {path}");
                used.insert(path);
            }
        }
        let directory = root().join("deploy/kubernetes");
        for path in files_below(&directory).expect("files") {
            let path = path.strip_prefix(&directory).expect("it is below").display().to_string();
            assert!(used.contains(&path), "no kustomization uses {path}");
        }
    }

    #[test]
    fn a_client_pod_is_admitted_by_every_level_and_one_with_a_host_path_by_none() {
        let client = manifest("overlays/client/pod.yaml").expect("a manifest");
        assert_eq!(violations("baseline", &client), Vec::<&str>::new());
        assert_eq!(violations("restricted", &client), Vec::<&str>::new());
        let with_path = manifest("overlays/client-hostpath/pod.yaml").expect("a manifest");
        assert_eq!(violations("restricted", &with_path), ["HostPath Volumes", "Volume Types"]);
        let agent = manifest("base/daemonset.yaml").expect("a manifest");
        let agent = pod_of(&agent).expect("a template");
        let needed = ["Host Namespaces", "Capabilities", "HostPath Volumes", "AppArmor"];
        assert_eq!(violations("baseline", agent), needed);
    }

    /// Both clients differ by nothing but the way to the socket.
    #[test]
    fn the_clients_are_one_pod() {
        let pod = |name: &str| {
            let mut pod = manifest(&format!("overlays/{name}/pod.yaml")).expect(name);
            pod["metadata"]["namespace"] = Value::Null;
            let container = &mut pod["spec"]["containers"][0];
            container["volumeMounts"] = Value::Null;
            container["resources"]["limits"]["memcg-monitor/socket"] = Value::Null;
            pod["spec"]["volumes"] = Value::Null;
            pod
        };
        assert_eq!(pod("client"), pod("client-hostpath"));
    }

    #[test]
    fn manifests_name_the_options_defaults_and_version_that_the_program_has() {
        let read = |path: &str| fs::read_to_string(root().join(path)).expect(path);
        let options = read("docs/reference/cli.md");
        let client = manifest("overlays/client/pod.yaml").expect("a manifest");
        let limits = client["spec"]["containers"][0]["resources"]["limits"].as_object().expect("limits");
        let resource = limits.keys().find(|name| name.contains('/')).expect("the resource");
        assert!(options.contains(&format!("Default value: `{resource}`")), "{resource}");
        let quota = read("deploy/kubernetes/overlays/client/namespace.yaml");
        assert!(quota.contains(&format!("requests.{resource}:")), "the quota is of another resource");

        let agent = manifest("base/daemonset.yaml").expect("a manifest");
        let plugin = containers(&agent["spec"]["template"]["spec"])
            .find(|container| container["name"] == "device-plugin")
            .expect("the plugin");
        let directory = plugin["volumeMounts"][0]["mountPath"].as_str().expect("a directory");
        assert!(options.contains(&format!("Default value: `{directory}`")), "{directory}");
        let patch = manifest("overlays/metrics/daemonset.yaml").expect("a patch");
        let added = patch.as_array().into_iter().flatten().filter_map(|change| change["value"].as_str());
        let of_agent = strings(&agent["spec"]["template"]["spec"]["containers"][0]["args"]);
        for option in of_agent.into_iter().chain(added.map(str::to_owned)) {
            let name = option.split('=').next().unwrap_or_default().to_owned();
            assert!(!name.starts_with('-') || options.contains(&format!("`{name}")), "{name}");
        }
        for overlay in ["base", "overlays/metrics", "overlays/prometheus-operator"] {
            let file = manifest(&format!("{overlay}/kustomization.yaml")).expect(overlay);
            let version = &file["labels"][0]["pairs"]["app.kubernetes.io/version"];
            assert_eq!(version, env!("CARGO_PKG_VERSION"), "{overlay}");
        }
    }
}
