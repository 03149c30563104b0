//! The programs in `examples/`, as their head comments say.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::harness::agent::Agent;
use crate::harness::group::Group;
use crate::harness::program::Program;
use crate::harness::test::vm_test;
use crate::scenarios::clients::{Notice, Place, Side, each_its_own, up_and_down};

const C: &[&str] = &["/bin/examples/listen"];
const GO: &[&str] = &["/bin/examples/listen-go"];
const PYTHON: &[&str] = &["/bin/examples/listen.py"];
const C_SOCKET: &[&str] = &["/bin/examples/socket"];
const PYTHON_SOCKET: &[&str] = &["/bin/examples/listen.py", "--socket"];
const C_CLIENT: &[&str] = &["/bin/examples/client"];
const GO_CLIENT: &[&str] = &["/bin/examples/client-go"];

vm_test!(examples_kernel_c, "C: every kind and the removal, from the kernel's files", V1, [Oracle]);
fn examples_kernel_c() -> Result<()> {
    files(Side::Kernel, C)
}

vm_test!(examples_kernel_go, "Go: every kind and the removal, from the kernel's files", V1, [Oracle]);
fn examples_kernel_go() -> Result<()> {
    files(Side::Kernel, GO)
}

vm_test!(examples_kernel_python, "Python: every kind and the removal, from the kernel's files", V1, [Oracle]);
fn examples_kernel_python() -> Result<()> {
    files(Side::Kernel, PYTHON)
}

vm_test!(examples_view_c, "C: every kind and the removal, from the view", Any, []);
fn examples_view_c() -> Result<()> {
    files(Side::View, C)
}

vm_test!(examples_view_go, "Go: every kind and the removal, from the view", Any, []);
fn examples_view_go() -> Result<()> {
    files(Side::View, GO)
}

vm_test!(examples_view_python, "Python: every kind and the removal, from the view", Any, []);
fn examples_view_python() -> Result<()> {
    files(Side::View, PYTHON)
}

vm_test!(
    examples_socket_c,
    "C: crossings, an OOM, the removal, a refusal and the agent's end, through the socket",
    Any,
    []
);
fn examples_socket_c() -> Result<()> {
    socket(C_SOCKET)
}

vm_test!(
    examples_socket_python,
    "Python: crossings, an OOM, the removal, a refusal and the agent's end, through the socket",
    Any,
    []
);
fn examples_socket_python() -> Result<()> {
    socket(PYTHON_SOCKET)
}

vm_test!(examples_client_c, "the client for C: the socket first, then the view", V2, []);
fn examples_client_c() -> Result<()> {
    client(C_CLIENT)
}

vm_test!(examples_client_go, "the client for Go: the socket first, then the view", V2, []);
fn examples_client_go() -> Result<()> {
    client(GO_CLIENT)
}

fn start(program: &[&str], arguments: &[&str]) -> Result<Program> {
    let mut program = Program::start(&[program, arguments].concat())?;
    program.says("registered")?;
    Ok(program)
}

/// Checks that it prints this text and exits with 1.
fn fails(program: &[&str], arguments: &[&str], text: &str) -> Result<()> {
    let (code, last) = Program::start(&[program, arguments].concat())?.end()?;
    ensure!(code == 1 && last.contains(text), "{arguments:?}: exit code {code} after {last:?}, not {text:?}");
    Ok(())
}

fn removed(program: Program) -> Result<()> {
    let (code, last) = program.end()?;
    ensure!(code == 0 && last == "removed", "exit code {code} after {last:?}");
    Ok(())
}

fn files(side: Side, program: &[&str]) -> Result<()> {
    let place = Place::new(side, "example")?;
    let usage_file = place.file("memory.usage_in_bytes");
    fails(program, &[&usage_file, "much"], "is the argument one that this control file takes?")?;
    fails(program, &[&place.file("no.such.file")], "is there such a group, and does the agent run?")?;

    let mut programs = Vec::new();
    for &notice in Notice::ALL {
        let file = place.file(notice.file());
        let arguments = [file.as_str(), notice.argument()];
        let some = if notice.argument().is_empty() { 1 } else { 2 };
        programs.push((notice, start(program, &arguments[..some])?));
    }
    each_its_own(&place, "signals: ", &mut programs)?;
    place.group.remove()?;
    programs.into_iter().try_for_each(|(_, program)| removed(program))
}

fn socket(program: &[&str]) -> Result<()> {
    let group = Group::new("example")?;
    let file = group.usage_file();
    let file = file.to_str().context("a path of ours is text")?;
    fails(program, &[file, "20M"], "does the agent run?")?;
    let agent = Agent::start(&[])?;
    fails(program, &[file, "much"], "EINVAL")?;
    let elsewhere = format!("--socket={}.elsewhere", monitor_client::SOCKET);
    fails(&program[..1], &[&elsewhere, file, "20M"], "does the agent run?")?;
    let directory = group.path.to_str().context("a path of ours is text")?;
    let mut oom = start(program, &[directory, "memory.oom_control"])?;
    let mut usage = start(program, &[file, "20M"])?;
    up_and_down(&group, "signals: ", [&mut usage])?;
    ensure!(oom.count("signals: ")? == 0, "an OOM, although there is no limit");
    let place = Place { group, directory: String::new(), agent: None };
    place.out_of_memory()?;
    oom.says("signals: ")?;
    place.group.remove()?;
    removed(usage)?;
    removed(oom)?;

    let other = Group::new("example-end")?;
    let other_file = other.usage_file();
    let mut left = start(program, &[other_file.to_str().context("a path of ours is text")?, "20M"])?;
    agent.end(Signal::SIGTERM)?;
    left.says("agent ended")
}

/// A client of ours at the socket; then, where that is gone, through the view beside the group.
fn client(program: &[&str]) -> Result<()> {
    let group = Group::new("example")?;
    let path = group.path.to_str().context("a path of ours is text")?;
    fails(program, &[path, "20M"], "is `memcg-monitor agent` running?")?;
    let _agent = Agent::start(&[])?;
    fails(program, &[path, "much"], "EINVAL: threshold")?;
    let at_socket = start(program, &[path, "20M"])?;
    fs::remove_file(monitor_client::SOCKET).context("cannot remove the socket")?;
    fails(program, &[path, "much"], "cgroup.event_control")?;
    let mut both = [at_socket, start(program, &[path, "20M"])?];
    up_and_down(&group, "signals: ", both.iter_mut())?;
    group.remove()?;
    both.into_iter().try_for_each(removed)
}
