//! The test VM itself: what all other tests stand on.

use std::fs;

use crate::harness::test::vm_test;
use anyhow::{Context, Result, ensure};

vm_test!(host_v1_memory_controller, "the kernel's own event_control is there, the oracle", V1, [Oracle]);
fn host_v1_memory_controller() -> Result<()> {
    controller("/sys/fs/cgroup/memory/cgroup.event_control", "")
}

vm_test!(host_v2_memory_controller, "groups below the root account their memory", V2, [Kernel]);
fn host_v2_memory_controller() -> Result<()> {
    controller("/sys/fs/cgroup/cgroup.subtree_control", "memory")
}

vm_test!(
    host_kernel_describes_its_types,
    "the kernel has BTF, which offsets are read from",
    Any,
    [Oracle, Kernel]
);
fn host_kernel_describes_its_types() -> Result<()> {
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
