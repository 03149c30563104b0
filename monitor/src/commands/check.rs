//! The command `memcg-monitor check`: facts about this host, and the verdict.

use std::{fs, path::Path, process::ExitCode};

use memcg_monitor::{
    cgroup::{Hierarchy, Version},
    in_flight,
    kernel::{self, Facts, Plan},
    programs::{self, LoadCheck, Pins, TableSize},
    sandbox, view,
};
use monitor_sys::{aio, seccomp};
use nix::errno::Errno;
use serde::Serialize;

use crate::cli::{Check, Output};

/// One line of the report.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    ok: bool,
    /// Whether the agent needs it; a missing optional part is shown, and does no harm.
    needed: bool,
    detail: String,
    /// Why a program does not load, without its name.
    #[serde(skip)]
    refusal: Option<String>,
    /// Size of a program that loads.
    #[serde(flatten)]
    size: Option<TableSize>,
}

impl Finding {
    fn of(loaded: LoadCheck, v1: bool) -> Self {
        let LoadCheck { hook, outcome } = loaded;
        let needed = hook.is_required_on(v1);
        let nameless = |why: &String| {
            let why = why.strip_prefix(hook.function).unwrap_or(why);
            why.trim_start_matches([':', ' ']).to_owned()
        };
        let refusal = outcome.as_ref().err().map(nameless);
        let (ok, size, detail) = match outcome {
            Ok(size) => (true, Some(size), hook.purpose.into()),
            Err(why) if needed => (false, None, why),
            Err(why) => {
                (false, None, format!("{why}; the agent runs without it and does not see: {}", hook.purpose))
            }
        };
        let what = format!("{} {}", hook.kind.as_str(), hook.function);
        Self { what, ok, needed, detail, refusal, size }
    }

    fn line(&self) -> String {
        line(self.ok, self.needed, &self.what, &self.detail)
    }
}

fn line(ok: bool, needed: bool, what: &str, detail: &str) -> String {
    let mark = match (ok, needed) {
        (true, _) => "ok",
        (false, true) => "NO",
        (false, false) => "-",
    };
    format!("{mark:>2}  {what:32} {detail}")
}

/// The report's lines. Programs that the kernel refuses for the same reason share one line.
fn lines(findings: &[Finding]) -> Vec<String> {
    let mut shown: Vec<(&str, bool)> = Vec::new();
    let mut lines = Vec::new();
    for finding in findings {
        let Some(why) = finding.refusal.as_deref() else {
            lines.push(finding.line());
            continue;
        };
        if shown.contains(&(why, finding.needed)) {
            continue;
        }
        shown.push((why, finding.needed));
        let same = findings.iter().filter(|other| {
            (other.refusal.as_deref(), other.needed) == (finding.refusal.as_deref(), finding.needed)
        });
        let names: Vec<_> = same.map(|other| other.what.as_str()).collect();
        lines.push(match names[..] {
            [_] => finding.line(),
            _ => {
                let without = if finding.needed { "" } else { "; the agent runs without them" };
                let what = format!("{} programs", names.len());
                line(false, finding.needed, &what, &format!("{why}{without}: {}", names.join(", ")))
            }
        });
    }
    lines
}

pub fn run(options: &Check) -> ExitCode {
    let mut findings = Vec::new();
    let mut found = |what: &str, needed: bool, outcome: Result<String, String>| {
        let (ok, detail) = match outcome {
            Ok(detail) => (true, detail),
            Err(detail) => (false, detail),
        };
        findings.push(Finding { what: what.into(), ok, needed, detail, refusal: None, size: None });
        ok
    };

    found("kernel", true, Ok(kernel::release()));
    let hierarchy = Hierarchy::find(options.cgroup_root.as_deref());
    let v1 = hierarchy.as_ref().is_ok_and(|found| found.version == Version::V1);
    found(
        "memory controller",
        true,
        hierarchy
            .map(|found| {
                let version = if found.version == Version::V2 { "v2" } else { "v1" };
                format!("cgroup {version} at {}", found.root.display())
            })
            .map_err(|error| error.to_string()),
    );
    found(
        "FUSE",
        false,
        view::mount::available().map(|()| "the view can be shown".into()).map_err(|error| error.to_string()),
    );
    found(
        "seccomp",
        false,
        seccomp::available()
            .map(|()| "the agent's system calls can be filtered".into())
            .map_err(|errno| format!("{errno}; any system call may be made")),
    );
    found(
        "Landlock",
        false,
        sandbox::landlock::available()
            .map(|abi| format!("{abi}; the view's threads are kept to the groups' files"))
            .map_err(ToOwned::to_owned),
    );
    found("AIO", false, aio());
    found("descriptors of clients", false, descriptors_by_number());
    found(
        "pins",
        false,
        Pins::possible(Path::new(programs::PINS_DIRECTORY)).map_err(|error| error.to_string()),
    );
    found("descriptors in flight", false, in_flight());
    match Facts::gather(v1) {
        Err(error) => {
            found("BTF", true, Err(error.to_string()));
        }
        Ok(facts) => {
            found("BTF", true, Ok(kernel::VMLINUX_BTF.into()));
            for hook in facts.hooks().1.into_iter().filter(|hook| !hook.required) {
                found(
                    hook.function,
                    false,
                    Err(format!("not in this kernel; it would show: {}", hook.purpose)),
                );
            }
            let plan = Plan::decide(&facts, &[]).map_err(|error| error.to_string());
            if found(
                "plan",
                true,
                plan.map(|plan| format!("{} programs, band shift {}", plan.hooks.len(), plan.band_shift)),
            ) {
                match programs::try_all(&facts) {
                    Err(error) => {
                        found("bpf", true, Err(error.to_string()));
                    }
                    Ok(loaded) => {
                        findings.extend(loaded.into_iter().map(|one| Finding::of(one, v1)));
                    }
                }
            }
        }
    }

    let ok = findings.iter().all(|finding| finding.ok || !finding.needed);
    match options.output {
        Output::Json => {
            let report = serde_json::json!({ "ok": ok, "findings": findings });
            println!("{report}");
        }
        Output::Text => {
            for line in lines(&findings) {
                println!("{line}");
            }
            println!(
                "{}",
                if ok {
                    "This host can be watched."
                } else {
                    "This host cannot be watched; see the lines marked NO."
                }
            );
        }
    }
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Checks whether eventfds can be signalled by asynchronous I/O.
fn aio() -> Result<String, String> {
    let number =
        |name| fs::read_to_string(format!("/proc/sys/fs/{name}")).unwrap_or_default().trim().to_owned();
    let used = format!("fs.aio-nr {} of fs.aio-max-nr {}", number("aio-nr"), number("aio-max-nr"));
    match aio::try_setup() {
        Ok(()) => Ok(format!("signals never wait for clients ({used})")),
        Err(Errno::ENOSYS) => Err("not in this kernel (CONFIG_AIO); threads write to eventfds".into()),
        Err(errno) => {
            Err(format!("io_setup: {errno} ({used}); threads write to eventfds until a context is free"))
        }
    }
}

/// Checks whether the agent can take clients' descriptors by their numbers, as lines and the
/// view name them.
fn descriptors_by_number() -> Result<String, String> {
    match kernel::ptrace_scope().as_deref() {
        // Even with CAP_SYS_PTRACE, and until the next boot.
        Some("3") => Err("kernel.yama.ptrace_scope is 3: pidfd_getfd is EPERM, so the view and lines with numbers are refused; clients that send their descriptors along are served".into()),
        _ => Ok("can be taken by their numbers (pidfd_getfd)".into()),
    }
}

/// Checks whether the eventfds kept for the next agent can count against a user id of their own.
fn in_flight() -> Result<String, String> {
    match caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SETUID) {
        Ok(true) => Ok(format!("of kept eventfds count against user id {}", in_flight::UID)),
        _ => Err("without CAP_SETUID those of kept eventfds count against the agent's own user".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Finding, lines};

    #[test]
    fn equal_refusals_share_a_line() {
        let finding = |what: &str, needed, refusal: Option<&str>| Finding {
            what: what.into(),
            ok: refusal.is_none(),
            needed,
            detail: format!("{what}'s own"),
            refusal: refusal.map(ToOwned::to_owned),
            size: None,
        };
        let findings = [
            finding("kernel", true, None),
            finding("fentry a", true, Some("EPERM")),
            finding("fexit b", false, Some("EPERM")),
            finding("fentry c", true, Some("EPERM")),
            finding("fentry d", true, Some("E2BIG")),
        ];
        let lines = lines(&findings);
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[0].starts_with("ok  kernel "), "{lines:?}");
        assert!(lines[1].starts_with("NO  2 programs ") && lines[1].ends_with(" EPERM: fentry a, fentry c"));
        assert!(lines[2].starts_with(" -  fexit b ") && lines[2].ends_with("fexit b's own"));
        assert!(lines[3].starts_with("NO  fentry d ") && lines[3].ends_with("fentry d's own"));
    }
}
