//! `memcg-monitor top`, driven by keys in a terminal whose screen is read.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::MIB;
use crate::harness::agent::{Agent, BINARY};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::screen::{Screen, Size, size};
use crate::harness::test::vm_test;

const SIZE: Size = size(80, 24);
const TOP: [&str; 4] = [BINARY, "top", "--delay", "0.2"];

const F6: &str = "\x1b[17~";
const F10: &str = "\x1b[21~";
const END: &str = "\x1b[F";
const ESCAPE: &str = "\x1b";

/// The line of a group, by its name.
fn line_of<'a>(lines: &'a [String], name: &str) -> Option<&'a String> {
    lines.iter().skip(4).find(|line| line.ends_with(name))
}

vm_test!(
    top_shows_the_tree,
    "top shows the tree in 80x24: usage, the limit above, growth, time left, registrations; sorts, filters, folds, \
     resizes, tells of a kill, and gives the terminal back at the end",
    Any,
    [Oracle, Standing]
);
fn top_shows_the_tree() -> Result<()> {
    let outer = Group::new("topmost")?;
    let inner = outer.child("within")?;
    let beside = outer.child("beside")?;
    outer.set_limit(128 * MIB)?;
    let _agent = Agent::standing()?;
    let _waiter = Waiter::on(&inner, "64M")?;
    let mut charger = Charger::start(&inner)?;
    let mut screen = Screen::start(&TOP, SIZE, &[])?;
    let lines = screen.says("agent: ")?;
    ensure!(lines[0].starts_with("memcg-monitor top"), "{lines:?}");
    ensure!(lines[3].contains("USAGE") && lines[23].starts_with("F1Help"), "{lines:?}");
    screen.press("\\topmost\r")?;
    // Folded lists have other groups above it; the filter has only its own.
    screen.shows("filtered tree", |lines| {
        lines[4].ends_with("topmost")
            && lines[5..7].iter().all(|line| line.contains('\u{2500}'))
            && lines[7].is_empty()
    })?;
    ensure!(screen.has_color()?, "no colour");
    // Smoothed growth is seen for a while after it has ended.
    charger.grow(Kind::Anonymous, 60 * MIB)?;
    screen.shows("growth, the limit above and a registration", |lines| {
        let Some(line) = line_of(lines, "within") else { return false };
        let words: Vec<_> = line.split_whitespace().collect();
        words.get(1) == Some(&"^128M") && words[3].starts_with('+') && words[4] != "-" && words[6] == "1"
    })?;
    screen.press(F6)?;
    screen.says("Sort by")?;
    screen.press(&format!("{END}\r"))?;
    let lines = screen.says("by GROUP")?;
    ensure!(lines[5].ends_with("beside") && lines[6].ends_with("within"), "{lines:?}");
    // What is looked for is not hidden: a group folds without a filter.
    screen.press("\x1b[H")?;
    screen.press(ESCAPE)?;
    screen.shows("all groups", |lines| !lines[0].contains("with \""))?;
    screen.press("/topmost\r")?;
    screen.press(" ")?;
    screen.says("topmost (2 below)")?;
    screen.press("+")?;
    screen.shows("unfolded groups", |lines| line_of(lines, "within").is_some())?;
    screen.resize(size(120, 30))?;
    screen.shows("wider screen", |lines| {
        lines.len() == 30 && lines[3].contains("EVENT") && lines[29].starts_with("F1Help")
    })?;
    screen.press("\\within\r")?;
    screen.shows("filtered tree", |lines| lines[0].contains("1 with \"within\""))?;
    charger.grow_to_death(200 * MIB)?;
    screen.says("killed, out of memory")?;
    drop(beside);
    screen.press("p")?;
    screen.says("paused")?;
    screen.press(F10)?;
    let status = screen.ends()?;
    ensure!(status.code() == Some(0), "{status}");
    screen.is_restored()
}

vm_test!(
    top_gives_the_terminal_back,
    "top gives the terminal back when a signal ends it, is not stopped where no shell is, and has no colour with \
     NO_COLOR",
    Any,
    [Standing]
);
fn top_gives_the_terminal_back() -> Result<()> {
    let _agent = Agent::standing()?;
    let mut screen = Screen::start(&TOP, SIZE, &[("NO_COLOR", "1")])?;
    screen.says("agent: ")?;
    ensure!(!screen.has_color()?, "colour in spite of NO_COLOR");
    // No shell could let it go on: it stays.
    screen.press("\x1a")?;
    screen.signal(Signal::SIGTSTP)?;
    screen.press("?")?;
    screen.says("any key: back")?;
    screen.signal(Signal::SIGTERM)?;
    let status = screen.ends()?;
    ensure!(status.signal() == Some(Signal::SIGTERM as i32), "{status}");
    screen.is_restored()?;
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGABRT] {
        let mut screen = Screen::start(&TOP, SIZE, &[("LANG", "C")])?;
        screen.says("agent: ")?;
        screen.signal(signal)?;
        let status = screen.ends()?;
        ensure!(status.signal() == Some(signal as i32), "{status}");
        screen.is_restored()?;
    }
    Ok(())
}

vm_test!(
    top_is_a_job_of_its_shell,
    "top stops at Ctrl-Z as a job of its shell, with the terminal as before, and goes on in the foreground",
    Any,
    [Standing]
);
fn top_is_a_job_of_its_shell() -> Result<()> {
    // The shell stops itself where a person would type, and lets its job go on once it goes on itself.
    const SHELL: &str = "\"$0\" top --delay 0.2; while kill -STOP $$; do fg; code=$?; \
                         [ $code -lt 128 ] && exit $code; done";
    let _agent = Agent::standing()?;
    let mut screen = Screen::start(&["/bin/busybox", "sh", "-mc", SHELL, BINARY], SIZE, &[])?;
    for _ in 0..2 {
        screen.says("F1Help")?;
        screen.press("\x1a")?;
        screen.stops()?;
        screen.is_restored()?;
        screen.signal(Signal::SIGCONT)?;
    }
    screen.says("F1Help")?;
    screen.press("q")?;
    let status = screen.ends()?;
    ensure!(status.code() == Some(0), "{status}");
    screen.is_restored()
}

/// Runs it to its end; exit code, standard output, standard error.
fn run(arguments: &[&str]) -> Result<(i32, String, String)> {
    let mut command = Command::new(BINARY);
    let output =
        command.arg("top").args(arguments).stdin(Stdio::null()).output().context("cannot start top")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code().context("killed")?, text(&output.stdout), text(&output.stderr)))
}

vm_test!(
    top_lines,
    "top writes lines for programs, works from files without an agent and says so, and follows an agent that comes \
     and goes",
    Any,
    [Oracle]
);
fn top_lines() -> Result<()> {
    let group = Group::new("lined")?;
    group.set_limit(64 * MIB)?;
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    let (code, out, error) = run(&[])?;
    ensure!(
        code == 1 && out.is_empty() && error.contains("no terminal") && error.contains("--once"),
        "{error}"
    );
    let check = |source: &str| -> Result<()> {
        let (code, out, error) = run(&["--once", "--filter", "lined"])?;
        ensure!(code == 0 && out.starts_with(|first: char| first.is_ascii_digit()), "{out}{error}");
        ensure!(out.lines().next().is_some_and(|line| line.ends_with(source)), "{out}");
        let (code, out, error) = run(&["-o", "json", "-n", "2", "-d", "0.2", "--filter", "lined"])?;
        ensure!(code == 0, "{error}");
        let rows: Vec<Value> = out.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let name = group.path.to_string_lossy();
        let rows: Vec<_> = rows.iter().filter(|row| row["cgroup"] == *name).collect();
        ensure!(rows.len() == 2, "{out}");
        for row in &rows {
            let number = |name: &str| row[name].as_u64().with_context(|| format!("no {name}: {row}"));
            ensure!((8 * MIB..16 * MIB).contains(&number("usage")?), "{row}");
            ensure!(number("limit")? == 64 * MIB && number("room")? == 64 * MIB - number("usage")?, "{row}");
            ensure!(row["room_of"] == *name, "{row}");
        }
        ensure!(rows[0]["growth"].is_null() && rows[1]["growth"].is_number(), "{out}");
        Ok(())
    };
    check("no agent: from files")?;
    let mut screen = Screen::start(&TOP, SIZE, &[])?;
    screen.says("no agent: from files")?;
    let agent = Agent::start(&[])?;
    check(&format!("agent: {}", agent.status()?.backend))?;
    screen.press("\\lined\r")?;
    screen.says("  agent: ")?;
    screen.says("64M")?;
    agent.end(Signal::SIGTERM)?;
    screen.says("from files")?;
    let lines = screen.says("64M")?;
    ensure!(line_of(&lines, "lined").is_some(), "{lines:?}");
    drop(charger);
    group.remove()?;
    screen.shows("group that went", |lines| line_of(lines, "lined").is_none())?;
    let another = Group::new("lined2")?;
    screen.shows("group that came", |lines| line_of(lines, "lined2").is_some())?;
    drop(another);
    screen.press("q")?;
    ensure!(screen.ends()?.code() == Some(0), "exit code");
    screen.is_restored()
}
