//! The command `memcg-monitor drop-in`, which prints the drop-in that has a unit's programs woken
//! by the agent, in systemd's memory-pressure protocol.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use memcg_monitor::{
    cgroup::workload::{is_in_unit_name, unit_name},
    pressure_text::{DESCRIPTORS, MAX_LINES, MAX_TEXT},
};
use monitor_common::grammar::control_file::{ControlFile, parse, split_directory_args, split_exact};

use crate::{cli, commands::wrong_usage};

/// The socket unit of the pressure socket.
const SOCKET_UNIT: &str = "memcg-monitor-pressure.socket";

pub fn run(options: &cli::DropIn) -> Result<ExitCode> {
    let checked = options.events.iter().try_for_each(|event| check(event));
    let text = match checked.and_then(|()| text(options)) {
        Ok(text) => text,
        Err(error) => return Ok(wrong_usage(&error)),
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses what the agent would refuse, which cannot tell the unit's program why.
fn check(event: &str) -> Result<()> {
    /// Sizes are rounded to it; no page size of Linux makes a wrong line right.
    const PAGE: u64 = 4096;
    let names = || ControlFile::ALL.map(ControlFile::name).join(", ");
    ensure!(!event.contains(['\n', '\r', '\0']), "{event:?} is more than one line");
    let (file, args) = split_directory_args(event.as_bytes())
        .with_context(|| format!("{event:?} does not begin with a control file's name: {}", names()))?;
    // v1 takes no number for the threshold 0, which is never crossed.
    ensure!(
        !ControlFile::QUANTITIES.contains(&file) || !args.is_empty(),
        "{event:?} has no threshold; an event is one word: '{} 80%'",
        file.name()
    );
    parse(file, split_exact(args).0, PAGE).with_context(|| format!("{event:?} is refused"))?;
    Ok(())
}

fn text(options: &cli::DropIn) -> Result<String> {
    let socket = &options.socket;
    ensure!(
        socket.is_absolute() && !socket.components().any(|part| part.as_os_str() == ".."),
        "--socket {} is to be an absolute path without `..`: sd-event takes no other",
        socket.display()
    );
    let path = socket.to_str().filter(|path| !path.contains(char::is_control));
    let path = path.with_context(|| format!("--socket {socket:?} is to be text in one line"))?;
    let mut written = options.events.join("\n");
    // As the one that systemd writes for PSI: the end of the text.
    written.push('\0');
    let most = MAX_TEXT - DESCRIPTORS.len();
    ensure!(
        written.len() <= most && options.events.len() <= MAX_LINES,
        "the events are more than the agent takes: {MAX_LINES}, of {most} bytes together"
    );
    let mut text = String::new();
    if let Some(unit) = &options.unit {
        let unit = unit_name(unit);
        ensure!(is_service(&unit), "--unit {unit:?} is not the name of a service");
        let directory = if options.user { "~/.config/systemd/user" } else { "/etc/systemd/system" };
        writeln!(text, "# {directory}/{unit}.d/memory-pressure.conf")?;
    }
    for event in &options.events {
        writeln!(text, "# {event}")?;
    }
    // A user's service manager knows no units of the system's.
    if !options.user {
        // No Wants=: it would start again what was stopped.
        writeln!(text, "\n[Unit]\nAfter={SOCKET_UNIT}")?;
    }
    writeln!(text, "\n[Service]\nEnvironment=\"MEMORY_PRESSURE_WATCH={}\"", quoted(path))?;
    writeln!(text, "Environment=MEMORY_PRESSURE_WRITE={}", STANDARD.encode(written))?;
    Ok(text)
}

/// Whether this is the full name of a service (systemd.unit(5)).
fn is_service(unit: &str) -> bool {
    /// Endings of other units, which the ending of a service was put behind.
    const OTHERS: [&str; 10] = [
        ".automount",
        ".device",
        ".mount",
        ".path",
        ".scope",
        ".slice",
        ".socket",
        ".swap",
        ".target",
        ".timer",
    ];
    let name = unit.strip_suffix(".service").unwrap_or_default();
    let is_other = OTHERS.iter().any(|ending| name.ends_with(ending));
    !name.is_empty() && !is_other && unit.len() < 256 && name.bytes().all(is_in_unit_name)
}

/// A path within the double quotes of a unit file (systemd.syntax(7)).
fn quoted(path: &str) -> String {
    path.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%")
}

#[cfg(test)]
mod tests {
    use std::process::ExitCode;

    use clap::Parser as _;

    use super::{check, run, text};
    use crate::cli::{Cli, Command, DropIn};

    fn options(arguments: &[&str]) -> anyhow::Result<DropIn> {
        let words = ["memcg-monitor", "drop-in"].iter().chain(arguments);
        match Cli::try_parse_from(words)?.command {
            Command::DropIn(options) => Ok(options),
            other => anyhow::bail!("{other:?}"),
        }
    }

    fn drop_in(arguments: &[&str]) -> anyhow::Result<String> {
        text(&options(arguments)?)
    }

    #[test]
    fn an_event_that_is_refused_is_wrong_usage() {
        for words in [&["80%"][..], &["memory.oom_control", "--unit", "a.timer"]] {
            let code = run(&options(words).expect("options")).expect("an exit code");
            assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(2)), "{words:?}");
        }
    }

    #[test]
    fn more_than_the_agent_takes_is_refused() {
        let long = format!("memory.usage_in_bytes {}5M", "0".repeat(4200));
        assert!(drop_in(&[&long]).is_err());
        assert!(drop_in(&["memory.oom_control"; 16]).is_ok());
        assert!(drop_in(&["memory.oom_control"; 17]).is_err());
    }

    #[test]
    fn a_unit_is_a_services_name() {
        for (unit, path) in [("shop", "shop.service"), ("a@b.service", "a@b.service"), ("x.y", "x.y.service")]
        {
            let text = drop_in(&["--unit", unit, "memory.oom_control"]).expect("a unit");
            assert!(text.starts_with(&format!("# /etc/systemd/system/{path}.d/")), "{text}");
        }
        for unit in ["", "a/b", "x y", "shop.timer", "shop.slice"] {
            assert!(drop_in(&["--unit", unit, "memory.oom_control"]).is_err(), "{unit:?}");
        }
    }

    #[test]
    fn a_drop_in_has_what_the_program_writes() {
        let text = drop_in(&["--unit", "web", "memory.usage_in_bytes 80%", "memory.oom_control"]);
        let expected = "# /etc/systemd/system/web.service.d/memory-pressure.conf\n\
            # memory.usage_in_bytes 80%\n\
            # memory.oom_control\n\n\
            [Unit]\nAfter=memcg-monitor-pressure.socket\n\n\
            [Service]\n\
            Environment=\"MEMORY_PRESSURE_WATCH=/run/memcg-monitor/memory_pressure.sock\"\n\
            Environment=MEMORY_PRESSURE_WRITE=bWVtb3J5LnVzYWdlX2luX2J5dGVzIDgwJQptZW1vcnkub29tX2NvbnRyb2wA\n";
        assert_eq!(text.expect("a drop-in"), expected);
        let of_user = drop_in(&["--user", "--unit", "a.service", "cgroup.procs"]).expect("a drop-in");
        assert!(of_user.starts_with("# ~/.config/systemd/user/a.service.d/") && !of_user.contains("[Unit]"));
        assert!(drop_in(&["--socket", "relative", "cgroup.procs"]).is_err());
        assert!(drop_in(&["--socket", "/run/../x", "cgroup.procs"]).is_err());
        assert!(drop_in(&["--socket", "/run/x\"\nExecStart=/bin/x", "cgroup.procs"]).is_err());
    }

    #[test]
    fn what_the_agent_would_refuse_is_refused_here() {
        for right in ["memory.usage_in_bytes 1G,up", "memory.usage_in_bytes 80%,exact", "memory.oom_control"]
        {
            assert!(check(right).is_ok(), "{right}");
        }
        let wrong = [
            "memory.usage_in_bytes",
            "memory.usage_in_bytes 101%",
            "memory.high 5M",
            "",
            "cgroup.procs\n",
            "cgroup.procs\r",
        ];
        for wrong in wrong {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }
}
