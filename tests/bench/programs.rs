//! How big the programs are on this kernel, so that growth is seen.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::harness::agent::{BACKEND, BINARY};
use crate::harness::report::row;

/// Reports what `check -o json` says of each program, and their sum. Those are the programs of
/// BPF trampolines, so that other backends have no such report.
pub(crate) fn report() -> Result<()> {
    if BACKEND.get().is_some_and(|backend| backend != "fentry") {
        return Ok(());
    }
    const COLUMNS: [(&str, &str); 3] = [
        ("verifier steps", "verifier_steps"),
        ("bytes of BPF", "bpf_bytes"),
        ("bytes of machine code", "native_bytes"),
    ];
    let output = Command::new(BINARY).args(["check", "-o", "json"]).output();
    let output = output.with_context(|| format!("cannot start {BINARY}"))?;
    let report: Value = serde_json::from_slice(&output.stdout).context("check says no JSON")?;
    let findings = report["findings"].as_array().context("check has no findings")?;
    let mut sums = [0; 3];
    for finding in findings.iter().filter(|finding| finding["native_bytes"].is_u64()) {
        let numbers = COLUMNS.map(|(_, field)| finding[field].as_u64().unwrap_or(0));
        sums = std::array::from_fn(|at| sums[at] + numbers[at]);
        let twin = finding["detail"].as_str().is_some_and(|text| text.ends_with("(second program)"));
        let what = finding["what"].as_str().unwrap_or("?");
        let name = if twin { format!("{what} (twin)") } else { what.to_owned() };
        row("programs", &name, &columns(COLUMNS, numbers));
    }
    ensure!(sums[2] > 0, "check loaded no program: {report}");
    row("programs", "all", &columns(COLUMNS, sums));
    Ok(())
}

fn columns<'a>(names: [(&'a str, &str); 3], numbers: [u64; 3]) -> Vec<(&'a str, Value)> {
    names.iter().zip(numbers).map(|((name, _), number)| (*name, Value::from(number))).collect()
}
