//! The command `memcg-monitor check`: facts about this host, a trial, and the verdict.

mod charges;
mod held_signals;
mod host;
mod trial;

use std::{
    collections::HashMap,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::Result;
use memcg_monitor::{
    Error,
    backend::BackendKind,
    cgroup::{Hierarchy, HierarchyError, Version, handle::Directories},
    in_flight,
    kernel::{self, Facts, Plan},
    printable,
    programs::{self, BpfRefusal, LoadCheck, Pins, Programs, TableSize, TableSizes},
    sandbox, view,
};
use monitor_sys::{aio, seccomp};
use nix::errno::Errno;
use serde::Serialize;

use crate::{
    cli::{Check, Output, Requirement},
    commands::{
        fold::{columns, folded},
        say_bare,
    },
};

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
    /// A fact: what was found, or what is missing.
    fn fact(what: &str, needed: bool, outcome: Result<String, String>) -> Self {
        let (ok, detail) = match outcome {
            Ok(detail) => (true, detail),
            Err(detail) => (false, detail),
        };
        Self { what: what.into(), ok, needed, detail, refusal: None, size: None }
    }

    fn of(loaded: LoadCheck, v1: bool) -> Self {
        let LoadCheck { hook, outcome } = loaded;
        let needed = hook.is_required_on(v1);
        let nameless = |why: &BpfRefusal| why.to_string().trim_start_matches([':', ' ']).to_owned();
        let refusal = outcome.as_ref().err().map(nameless);
        let function = hook.function;
        let (ok, size, detail) = match outcome {
            Ok(size) => (true, Some(size), hook.purpose.into()),
            Err(why) if needed => (false, None, format!("{function}{why}")),
            Err(why) => {
                let without = format!("the agent runs without it and does not see: {}", hook.purpose);
                (false, None, format!("{function}{why}; {without}"))
            }
        };
        let what = format!("{} {function}", hook.kind.as_str());
        Self { what, ok, needed, detail, refusal, size }
    }

    fn line(&self, columns: Option<usize>) -> String {
        line(self.ok, self.needed, (&self.what, &self.detail), columns)
    }
}

/// Columns of a finding's name, those before its detail, and those that a terminal has where the detail
/// goes on below itself.
const NAMES: usize = 32;
const BEFORE: usize = 4 + NAMES + 1;
const ROOM: usize = BEFORE + 32;

fn line(ok: bool, needed: bool, (what, detail): (&str, &str), columns: Option<usize>) -> String {
    let mark = match (ok, needed) {
        (true, _) => "ok",
        (false, true) => "NO",
        (false, false) => "-",
    };
    // A reason may hold a path, and names of groups are others' choice.
    let before = format!("{mark:>2}  {:NAMES$} ", printable(what));
    let indent = if columns.is_some_and(|columns| columns < ROOM) { 6 } else { BEFORE };
    folded(&before, &printable(detail), indent, columns)
}

/// The report's lines. Programs that the kernel refuses for the same reason share one line.
fn lines(findings: &[Finding], columns: Option<usize>) -> Vec<String> {
    let mut alike: HashMap<(&str, bool), Vec<&str>> = HashMap::new();
    for finding in findings {
        if let Some(why) = finding.refusal.as_deref() {
            alike.entry((why, finding.needed)).or_default().push(&finding.what);
        }
    }
    let lines = findings.iter().filter_map(|finding| {
        let Some(why) = finding.refusal.as_deref() else { return Some(finding.line(columns)) };
        // The first of those alike shows them all.
        let names = alike.remove(&(why, finding.needed))?;
        Some(match names[..] {
            [_] => finding.line(columns),
            _ => {
                let without = if finding.needed { "" } else { "; the agent runs without them" };
                let what = format!("{} programs", names.len());
                // Two at one function, one behind the other, have one name.
                let mut shown = names.clone();
                shown.dedup();
                let detail = format!("{why}{without}: {}", shown.join(", "));
                line(false, finding.needed, (&what, &detail), columns)
            }
        })
    });
    lines.collect()
}

pub fn run(options: &Check) -> Result<ExitCode> {
    let mut findings = Vec::new();
    let mut found = |what: &str, needed: bool, outcome: Result<String, String>| {
        let finding = Finding::fact(what, needed, outcome);
        let ok = finding.ok;
        findings.push(finding);
        ok
    };

    found("kernel", true, Ok(kernel::release()));
    let hierarchy = Hierarchy::find(options.cgroup_root.as_deref());
    let v1 = hierarchy.as_ref().is_ok_and(|found| found.version == Version::V1);
    let can_sample = hierarchy.as_ref().is_ok_and(|found| Directories::new(found).is_ok());
    found("memory controller", true, hierarchy.as_ref().map(host::hierarchy).map_err(ToString::to_string));
    found("namespaces", false, host::namespaces());
    found("BPF settings", false, host::bpf_settings());
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
    found("capabilities", false, capabilities());
    found("descriptors in flight", false, in_flight());
    match Facts::gather(v1) {
        Err(error) => {
            found("BTF", true, Err(error.to_string()));
        }
        Ok(facts) => {
            found("BTF", true, Ok(kernel::VMLINUX_BTF.into()));
            for hook in facts.hooks(facts.windows(&[])).1.into_iter().filter(|hook| !hook.required) {
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
                plan.map(|plan| {
                    let unit = match 1_u64 << plan.band_shift {
                        1 => "page by page".to_owned(),
                        pages => format!("in steps of {pages} pages"),
                    };
                    format!("{} programs; usage is compared with thresholds {unit}", plan.hooks.len())
                }),
            ) {
                match programs::try_all(&facts) {
                    Err(error) => {
                        found("bpf", true, Err(error.to_string()));
                    }
                    Ok(loaded) => {
                        let do_load = loaded.iter().all(|one| one.outcome.is_ok());
                        findings.extend(loaded.into_iter().map(|one| Finding::of(one, v1)));
                        if do_load {
                            findings.push(attached("attach", true, Programs::start(v1, SIZES, &mut None)));
                        }
                    }
                }
            }
        }
    }

    let do_trampolines = findings.iter().all(|finding| finding.ok || !finding.needed);
    if !do_trampolines {
        let mut kprobes = attached("kprobes", false, Programs::start_kprobes(v1, SIZES));
        if findings.iter().any(|finding| finding.detail == kprobes.detail) {
            kprobes.detail = "refused for the same reason".into();
        }
        findings.push(kprobes);
    }
    let do_kprobes = findings.last().is_some_and(|last| last.what == "kprobes" && last.ok);
    let mut verdict = match (do_trampolines, do_kprobes, can_sample) {
        // Without a hierarchy there is nothing to watch, whatever the programs do.
        _ if hierarchy.is_err() => Verdict::Nothing,
        (true, ..) => Verdict::Exact,
        (_, true, _) => Verdict::Kprobes,
        (.., true) => Verdict::Sampled,
        _ => Verdict::Nothing,
    };
    if let Ok(hierarchy) = &hierarchy {
        verdict = try_out(hierarchy, verdict, &mut findings);
    }
    let unmet = verdict.unmet(options.require);
    let ok = verdict != Verdict::Nothing && unmet.is_none();
    let mut out = io::stdout().lock();
    match options.output {
        Output::Json => {
            let backend = verdict.backend();
            let report = serde_json::json!({
                "ok": ok,
                "backend": backend.map(BackendKind::as_str),
                "precision": backend.map(|backend| backend.precision().as_str()),
                "unmet": unmet,
                "findings": findings,
            });
            writeln!(out, "{report}")?;
        }
        Output::Text => {
            let columns = columns();
            for line in lines(&findings, columns) {
                writeln!(out, "{line}")?;
            }
            let unmet = unmet.map(|unmet| format!(" {unmet}")).unwrap_or_default();
            let text = format!("{}{unmet}", verdict.paragraph(&findings, not_a_hierarchy(&hierarchy)));
            writeln!(out, "{}", folded("", &printable(&text), 0, columns))?;
        }
    }
    out.flush()?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The directory that was named for the hierarchy's root, where it is none: the host is not to blame.
fn not_a_hierarchy(found: &Result<Hierarchy, Error>) -> Option<&Path> {
    match found {
        Err(Error::Hierarchy(HierarchyError::NotMountedAt { root, .. })) => Some(root),
        _ => None,
    }
}

/// Tries what was found out by an agent and a group that are there for that alone. A backend that
/// does not signal is not used: the next is tried.
fn try_out(hierarchy: &Hierarchy, mut verdict: Verdict, findings: &mut Vec<Finding>) -> Verdict {
    while let Some(backend) = verdict.backend() {
        if io::stderr().is_terminal() {
            let name = backend.as_str();
            say_bare(&format!("trying backend {name} with an agent and a group for that alone ..."));
        }
        let what = format!("trial of {}", backend.as_str());
        let (is_over, finding) = match trial::run(hierarchy, backend) {
            Ok(proven) => (true, Finding::fact(&what, true, Ok(proven))),
            Err(trial::Failure::NotMade(why)) => {
                (true, Finding::fact(&what, false, Err(format!("not made, so nothing is proven: {why}"))))
            }
            Err(trial::Failure::Failed(why)) => (false, Finding::fact(&what, true, Err(why))),
        };
        findings.push(finding);
        if is_over {
            break;
        }
        verdict = verdict.next();
    }
    verdict
}

/// Attaches all programs for a moment: a kernel may load what it cannot attach, and attach what it
/// then does not call.
fn attached<T>(what: &str, needed: bool, outcome: memcg_monitor::Result<T>) -> Finding {
    Finding {
        what: what.into(),
        ok: outcome.is_ok(),
        needed,
        detail: outcome
            .map_or_else(|error| error.to_string(), |_| "the programs are called, and answer".into()),
        refusal: None,
        size: None,
    }
}

/// Small tables, for an attempt.
const SIZES: TableSizes = TableSizes { groups: 64, ring: 4096, boxes: 0 };

/// The answer to whether the agent can run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The programs can be used.
    Exact,
    /// The programs can be used, by kprobes.
    Kprobes,
    /// Only the groups' files can be read.
    Sampled,
    Nothing,
}

impl Verdict {
    const fn backend(self) -> Option<BackendKind> {
        match self {
            Self::Exact => Some(BackendKind::Fentry),
            Self::Kprobes => Some(BackendKind::Kprobe),
            Self::Sampled => Some(BackendKind::Sampled),
            Self::Nothing => None,
        }
    }

    /// The verdict where this one's backend does not do its work.
    const fn next(self) -> Self {
        match self {
            Self::Exact => Self::Kprobes,
            Self::Kprobes => Self::Sampled,
            Self::Sampled | Self::Nothing => Self::Nothing,
        }
    }

    /// The requirement that the backend does not meet, in words.
    fn unmet(self, require: Option<Requirement>) -> Option<&'static str> {
        let Requirement::Exact = require?;
        (self == Self::Sampled).then_some(
            "This check fails because of --require exact: thresholds would be sampled on this host.",
        )
    }

    /// The answer in one paragraph, with the first reason why it is not a better one.
    fn paragraph(self, findings: &[Finding], wrong_root: Option<&Path>) -> String {
        if let Some(root) = wrong_root {
            return format!(
                "{} cannot be watched: it is not the mount point of a cgroup hierarchy with the memory \
                 controller. Leave out --cgroup-root to have the hierarchy found.",
                root.display()
            );
        }
        let reason = findings.iter().find(|finding| finding.needed && !finding.ok);
        let reason = reason.map(|finding| finding.refusal.as_deref().unwrap_or(&finding.detail));
        let reason = reason.map(|reason| format!(" The reason: {reason}.")).unwrap_or_default();
        match self {
            Self::Exact => "This host can be watched: every crossing is seen (backend fentry).".into(),
            Self::Kprobes => format!(
                "This host can be watched: every crossing is seen, but for calls that the kernel keeps from a \
                 kprobe, which each sweep makes up for (backend kprobe).{reason}"
            ),
            Self::Sampled => format!(
                "This host can be watched with less precision: the programs cannot be used, so the agent reads \
                 the groups' files (backend sampled), and a crossing with its way back between two readings may \
                 be missed.{reason}"
            ),
            Self::Nothing => format!("This host cannot be watched.{reason}"),
        }
    }
}

/// Checks whether eventfds can be signalled by asynchronous I/O.
fn aio() -> Result<String, String> {
    let number = |path| kernel::settings::sysctl(path).unwrap_or_default();
    let used = format!("fs.aio-nr {} of fs.aio-max-nr {}", number("fs/aio-nr"), number("fs/aio-max-nr"));
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

/// Checks which capabilities are missing, and what for.
fn capabilities() -> Result<String, String> {
    let missing = sandbox::needed::missing();
    if missing.is_empty() {
        return Ok("all that an agent can use".into());
    }
    let missing: Vec<_> = missing.iter().map(|one| format!("{} ({})", one.capability, one.purpose)).collect();
    Err(format!("without {}", missing.join(", ")))
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
    use super::{Finding, Requirement, Verdict, lines};

    #[test]
    fn a_requirement_that_is_not_met_is_named() {
        let exact = Some(Requirement::Exact);
        assert!(Verdict::Sampled.unmet(exact).is_some_and(|text| text.contains("--require exact")));
        assert_eq!((Verdict::Exact.unmet(exact), Verdict::Kprobes.unmet(exact)), (None, None));
        assert_eq!(Verdict::Sampled.unmet(None), None);
    }

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
        let narrow = lines(&findings, Some(40));
        assert_eq!(narrow[1], "NO  2 programs\n      EPERM: fentry a, fentry c");
        let lines = lines(&findings, None);
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[0].starts_with("ok  kernel "), "{lines:?}");
        assert!(lines[1].starts_with("NO  2 programs ") && lines[1].ends_with(" EPERM: fentry a, fentry c"));
        assert!(lines[2].starts_with(" -  fexit b ") && lines[2].ends_with("fexit b's own"));
        assert!(lines[3].starts_with("NO  fentry d ") && lines[3].ends_with("fentry d's own"));
    }
}
