//! The project's own clients for other languages, `clients/`: their unit tests, which run the
//! vectors that all of them share and need no agent.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{CCompiler, Clients, go_root, make, one_of};
use crate::apt;
use crate::process::{self, command};
use crate::setup::{self, Need};
use crate::summary::Outcome;
use crate::workspace::{root, short, target, tools};

/// A release of Debian whose Python the client has to run with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Python {
    suite: &'static str,
}

/// The oldest that the client promises, 3.9, and the newest.
pub(super) const PYTHONS: [Python; 2] = [Python { suite: "bullseye" }, Python { suite: "sid" }];

/// The languages of the project's own clients, beside the compilers of the third-party ones.
#[derive(Debug)]
pub(crate) struct Languages;

impl Need for Languages {
    fn name(&self) -> &'static str {
        "languages"
    }

    fn find(&self) -> Result<String> {
        let pythons = PYTHONS.iter().map(|python| Ok(short(&python.interpreter()?)));
        let pythons = pythons.collect::<Result<Vec<_>>>()?.join(" and ");
        Ok(format!("the clients' languages, {pythons}, {}", setup::programs(&["node"])?))
    }

    fn fetch(&self) -> Result<()> {
        for python in PYTHONS {
            if python.interpreter().is_err() {
                println!("setup: downloading Python of {}, into target/ only", python.suite);
                python.fetch()?;
            }
        }
        if setup::programs(&["node"]).is_err() {
            apt::install(&["nodejs"])?;
        }
        Ok(())
    }
}

impl Python {
    fn directory(self) -> PathBuf {
        tools().join(format!("python-{}", self.suite))
    }

    fn interpreter(self) -> Result<PathBuf> {
        one_of(&self.directory().join("usr/bin"), "python3.")
    }

    /// Gets the interpreter, all of the standard library, and what these are linked with.
    fn fetch(self) -> Result<()> {
        let source = apt::Source::suite(self.suite)?;
        let name = source.depends("python3")?.into_iter().find(|name| name.starts_with("python3."));
        let name = name.with_context(|| format!("Debian {} has no python3", self.suite))?;
        let parts = [format!("{name}-minimal"), format!("lib{name}-minimal"), format!("lib{name}-stdlib")];
        let mut packages = BTreeSet::from(["libc6".to_owned(), "libgcc-s1".to_owned(), name]);
        for part in parts {
            let libraries = source.depends(&part)?.into_iter();
            packages.extend(libraries.filter(|name| name.starts_with("lib") || name.starts_with("zlib")));
            packages.insert(part);
        }
        source.unpack(&packages.into_iter().collect::<Vec<_>>(), &self.directory())
    }

    /// Returns a command that runs the interpreter with the libraries of its own release.
    pub(super) fn command(self) -> Result<Command> {
        let places = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|it| self.directory().join(it));
        let loaders = places.iter().map(|place| place.join("ld-linux-x86-64.so.2"));
        let loader = loaders.clone().find(|loader| loader.is_file());
        let loader = loader.with_context(|| format!("there is no loader in {}", short(&self.directory())))?;
        let libraries = places.map(|place| place.display().to_string()).join(":");
        let mut python = command(loader);
        python.arg("--library-path").arg(libraries).arg(self.interpreter()?);
        // Nothing is written beside the sources.
        python.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONPATH", root().join("clients/python"));
        Ok(python)
    }
}

/// Runs the unit tests of each client.
pub(crate) fn unit_tests() -> Result<Outcome> {
    setup::ensure(&[&CCompiler, &Clients, &Languages])?;
    let clients = root().join("clients");
    for python in PYTHONS {
        process::run(
            python
                .command()?
                .args(["-W", "error", "-m", "unittest", "discover", "-s", "tests", "-t", "."])
                .current_dir(clients.join("python")),
        )?;
    }
    for arguments in [&["vet", "./..."][..], &["test", "-count=1", "./..."]] {
        process::run(go()?.args(arguments).current_dir(clients.join("go")))?;
    }
    process::run(command(c_program("test", &["test.c"])?).arg(clients.join("vectors.json")))?;
    process::run(command("node").arg("--test").current_dir(clients.join("node")))?;
    Ok(Outcome { passed: PYTHONS.len() + 3, note: "C, Go, Node, Python".into(), ..Outcome::default() })
}

/// Returns a go for modules, without a network.
pub(super) fn go() -> Result<Command> {
    let home = go_root()?;
    let mut go = command(home.join("bin/go"));
    go.env("GOROOT", &home)
        .env("GOPATH", target().join("clients/go-path"))
        .env("GOCACHE", target().join("clients/go-cache"))
        .env("GO111MODULE", "on")
        .env("GOENV", "off")
        .env("GOFLAGS", "")
        .env("GOPROXY", "off")
        .env("CGO_ENABLED", "0");
    Ok(go)
}

/// Builds the example of the client for C, for the VM.
pub(super) fn example_c(program: &Path) -> Result<PathBuf> {
    let sources = ["examples/c/client.c", "clients/c/memcg_monitor.c"];
    process::run(
        command("cc")
            .args(["-O2", "-static", "-s", "-Wall", "-Wextra", "-Werror", "-I", "clients/c", "-o"])
            .arg(program)
            .args(sources)
            .current_dir(root()),
    )?;
    Ok(program.to_path_buf())
}

/// Builds the example of the client for Go, for the VM.
pub(super) fn example_go(program: &Path) -> Result<PathBuf> {
    process::run(
        go()?
            .args(["build", "-trimpath", "-ldflags", "-s -w", "-o"])
            .arg(program)
            .current_dir(root().join("examples/go/client")),
    )?;
    Ok(program.to_path_buf())
}

/// Compiles a program of sources in `clients/c`.
pub(super) fn c_program(name: &str, sources: &[&str]) -> Result<PathBuf> {
    let directory = target().join("clients/own");
    make(&directory)?;
    let program = directory.join(format!("{name}-c"));
    process::run(
        command("cc")
            .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
            .arg(&program)
            .args(sources)
            .current_dir(root().join("clients/c")),
    )?;
    Ok(program)
}
