//! `cargo xtask test`: every check and test, then one table.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};
use clap::Args;

use crate::build::{self, Guest};
use crate::kernels;
use crate::qemu::Processors;
use crate::run::booting;
use crate::summary::{Outcome, Summary};
use crate::vm::{Boot, Hierarchy, MEMORY};
use crate::{bench, checks, clients, debian, prometheus, setup, soak};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Boot only this kernel (6.1, 6.12, 7.2 or a path); may be repeated
    #[arg(long, value_name = "KERNEL", conflicts_with = "only_host")]
    kernel: Vec<String>,
    /// Leave out the VM
    #[arg(long)]
    only_host: bool,
    /// Run only the VM tests whose name contains this (or one of several, with commas
    /// between; `-NAME`: all but those), and nothing on the host
    #[arg(long, value_name = "NAME", conflicts_with = "only_host")]
    filter: Option<String>,
}

/// A boot of the test VM.
#[derive(Debug, Clone, Copy)]
struct Combination<'a> {
    kernel: &'a str,
    hierarchy: Hierarchy,
    /// Kernel parameters that make it differ from the kernel's own defaults.
    parameters: &'a str,
    /// The tests that it is there for, as `--filter` names them, or with `-` those that
    /// it is not; empty: all. One run of everything everywhere takes longer than people
    /// wait.
    only: &'a str,
}

/// Beside the oracle: what it is there for, and what v1's files make different. The
/// rest runs on the same kernel's v2.
const ORACLE: &str = "conformance_,_kernel_,kernel_describes,v1_memory,threshold_,lifetime_,\
    view_wakes,view_removal,view_errno,view_values,view_modes,view_own,hostile_packets";

/// All but what does not depend on the kernel, and takes long.
const NOT_ON_THE_OLDEST: &str = "-metrics_,-logs_,-neighbours_,-outside_many,-outside_own,-outside_guessed,\
    -outside_another,-outside_forged,-outside_unreadable,-restart_again,-restart_without";

/// What depends on the kernel more than on us; all of it runs on an older and a
/// newer one.
const KERNEL: &str = "kernel_describes,v2_memory,threshold_,lifetime_,event_,loss_,clients_view_,\
    hostile_packets,hostile_churn,hostile_host,cli_listen,outside_rights,outside_calls,outside_number,restart_keeps,\
    view_wakes,view_removal,view_controller,view_errno,view_values,view_open,view_many,view_own";

/// Where a task may be preempted in a program of ours, and another misses it.
const PREEMPTED: &str =
    "threshold_,loss_,event_,view_many,view_errno,hostile_churn,hostile_packets,clients_view_containerd";

/// 6.1 with v1 is the oracle; `preempt=full` is where the kernel's recursion
/// guard skips programs.
const COMBINATIONS: [Combination<'_>; 5] = [
    Combination { kernel: "6.1", hierarchy: Hierarchy::V1, parameters: "", only: ORACLE },
    Combination { kernel: "6.1", hierarchy: Hierarchy::V2, parameters: "", only: NOT_ON_THE_OLDEST },
    Combination { kernel: "6.12", hierarchy: Hierarchy::V2, parameters: "", only: KERNEL },
    Combination { kernel: "6.12", hierarchy: Hierarchy::V2, parameters: "preempt=full", only: PREEMPTED },
    Combination { kernel: kernels::NEWEST, hierarchy: Hierarchy::V2, parameters: "", only: "" },
];

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let mut summary = Summary::default();
    if arguments.filter.is_none() {
        for (name, step) in checks::STEPS {
            summary.step(name, step);
        }
    }
    if arguments
        .filter
        .as_ref()
        .is_some_and(|names| names.split(',').all(|name| name.contains(debian::TESTS)))
    {
        debian_step(arguments, &mut summary);
    } else if !arguments.only_host {
        vm_steps(arguments, &mut summary);
    }
    println!("\n{summary}");
    if summary.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn vm_steps(arguments: &Arguments, summary: &mut Summary) {
    let mut guest = Err(anyhow!("not built"));
    summary.step("VM programs", || {
        setup::ensure(&setup::BUILD)?;
        setup::ensure(&setup::CLIENTS)?;
        guest = Ok(Guest { more: clients::build()?, ..build::guest()? });
        Ok(Outcome::pass(""))
    });
    let before = summary.passed() + summary.failed();
    for combination in combinations(&arguments.kernel) {
        summary.step(&combination.name(), || {
            let Ok(guest) = &guest else { bail!("the VM programs were not built") };
            combination.test(guest, arguments.filter.as_deref())
        });
    }
    // By name, on request: `--filter prometheus`.
    if arguments.filter.as_deref().map_or(arguments.kernel.is_empty(), |names| names.contains("prometheus")) {
        summary.step("VM Prometheus", || {
            let Ok(guest) = &guest else { bail!("the VM programs were not built") };
            prometheus::scrape(guest)
        });
    }
    if arguments.kernel.is_empty() && arguments.filter.is_none() {
        debian_step(arguments, summary);
        summary.step("soak, briefly", soak::brief);
        summary.step("benchmarks, one round", bench::smoke);
    }
    if summary.passed() + summary.failed() == before {
        summary.step("VM", || bail!("no VM ran any test; is --filter right?"));
    }
}

/// The tests that need systemd, on the newest kernel unless one is asked for.
fn debian_step(arguments: &Arguments, summary: &mut Summary) {
    let kernel = arguments.kernel.first().map_or(kernels::NEWEST, String::as_str);
    summary.step(&format!("VM {kernel} Debian"), || {
        debian::test(kernel, arguments.filter.as_deref().unwrap_or(debian::TESTS))
    });
}

/// The rows of the table for these kernels; a kernel outside the table gets v2.
fn combinations(kernels: &[String]) -> Vec<Combination<'_>> {
    if kernels.is_empty() {
        return COMBINATIONS.to_vec();
    }
    let of = |kernel| {
        let mut known: Vec<_> = COMBINATIONS.into_iter().filter(|row| row.kernel == kernel).collect();
        if known.is_empty() {
            known.push(Combination { kernel, hierarchy: Hierarchy::V2, parameters: "", only: "" });
        }
        known
    };
    kernels.iter().flat_map(|kernel| of(kernel)).collect()
}

impl Combination<'_> {
    fn name(&self) -> String {
        let parts = ["VM", self.kernel, self.hierarchy.name(), self.parameters];
        parts.join(" ").trim_end().to_owned()
    }

    fn test(&self, guest: &Guest, filter: Option<&str>) -> Result<Outcome> {
        setup::ensure(&setup::vm(self.kernel))?;
        let kernel = kernels::get(self.kernel)?;
        println!("{}", booting(&kernel, self.hierarchy));
        let by_hand = filter.is_some();
        let filter = filter.or((!self.only.is_empty()).then_some(self.only));
        let filtered = filter.map_or(String::new(), |name| format!(" guest.filter={name}"));
        let boot = Boot {
            kernel: &kernel,
            hierarchy: self.hierarchy,
            mode: "test",
            parameters: format!("{}{filtered}", self.parameters),
            processors: Processors::Two,
            memory: MEMORY,
            limit: Duration::from_secs(20 * 60),
        };
        let report = boot.run(guest, &mut |line| println!("{line}"))?;
        // A name given by hand may be meant for another hierarchy.
        if !by_hand {
            ensure!(report.passed + report.failed > 0, "the guest ran no test");
        }
        Ok(Outcome::of(report, kernels::remark(&kernel).unwrap_or(kernel.release)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_outside_the_table_gets_one_boot() {
        let names = |kernels: &[&str]| {
            let kernels: Vec<_> = kernels.iter().map(ToString::to_string).collect();
            combinations(&kernels).iter().map(Combination::name).collect::<Vec<_>>()
        };
        assert_eq!(names(&[]).len(), COMBINATIONS.len());
        assert_eq!(names(&["6.1"]), ["VM 6.1 v1", "VM 6.1 v2"]);
        assert_eq!(names(&["/boot/vmlinuz"]), ["VM /boot/vmlinuz v2"]);
    }
}
