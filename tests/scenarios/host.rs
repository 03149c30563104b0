//! The test VM itself: what all other tests stand on.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::harness::runner::{On, Test};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test {
            name: "host_kernel_describes_its_types",
            what: "the kernel has BTF, which offsets are read from",
            on: On::Any,
            run: kernel_describes_its_types,
        },
        Test {
            name: "host_v1_memory_controller",
            what: "the kernel's own event_control is there, the oracle",
            on: On::V1,
            run: || controller("/sys/fs/cgroup/memory/cgroup.event_control", ""),
        },
        Test {
            name: "host_v2_memory_controller",
            what: "groups below the root account their memory",
            on: On::V2,
            run: || controller("/sys/fs/cgroup/cgroup.subtree_control", "memory"),
        },
    ]
}

fn kernel_describes_its_types() -> Result<()> {
    let path = "/sys/kernel/btf/vmlinux";
    let bytes = fs::read(path).with_context(|| format!("cannot read {path}"))?;
    ensure!(bytes.starts_with(&[0x9f, 0xeb]), "{path} does not open with BTF's magic number");
    Ok(())
}

fn controller(path: &str, word: &str) -> Result<()> {
    let file = fs::metadata(path).with_context(|| format!("there is no {path}"))?;
    ensure!(file.is_file(), "{path} is no file");
    if !word.is_empty() {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        ensure!(text.split_whitespace().any(|found| found == word), "{path} lists no {word}");
    }
    Ok(())
}
