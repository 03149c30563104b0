//! The crates that a client depends on: none of the agent's, and no build of eBPF programs.

use std::{env, process::Command};

/// Crates that must not be built for a client, by the beginning of their names.
const UNWANTED: [&str; 8] =
    ["aya", "bpf", "fuser", "hyper", "libbpf", "memcg-monitor", "monitor-ebpf", "xtask"];

/// The crates that the library names itself, with all features.
const DIRECT: [&str; 6] = ["monitor-common", "nix", "serde", "serde_json", "thiserror", "tokio"];

/// The packages of `cargo tree` for normal and build dependencies, with all features.
fn tree(depth: &str) -> Vec<String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--package", "monitor-client", "--all-features", "--edges", "normal,build"])
        .args(["--offline", "--locked", "--prefix", "none", "--format", "{p}", "--depth", depth])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo starts");
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "cargo tree: {errors}");
    let names = text.lines().filter_map(|line| line.split(' ').next());
    let mut names: Vec<_> = names.filter(|name| !name.is_empty()).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn a_client_builds_nothing_of_the_agent() {
    let all = tree("64");
    assert!(DIRECT.iter().all(|name| all.iter().any(|found| found == name)), "{all:?}");
    let unwanted = |name: &&String| UNWANTED.iter().any(|start| name.starts_with(start));
    assert_eq!(all.iter().filter(unwanted).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn the_direct_dependencies_are_few() {
    let direct = tree("1");
    let others: Vec<_> = direct.iter().filter(|name| *name != "monitor-client").collect();
    assert_eq!(others, DIRECT);
}
