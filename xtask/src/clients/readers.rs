//! Programs that read v1's statistics, from Debian: runc's library and libcgroup's `cgget`.

use std::path::PathBuf;

use anyhow::Result;

use super::{LIBRARIES, Packed, go_build, one_of};
use crate::apt;
use crate::setup::{self, Need};
use crate::workspace::{root, short, target, tools};

/// Packages that runc's package of v1's groups imports, beside those that containerd's does.
const RUNC: [&str; 3] = [
    "golang-github-opencontainers-runc-dev",
    "golang-github-cyphar-filepath-securejoin-dev",
    "golang-github-moby-sys-dev",
];

const CGGET: [&str; 2] = ["cgroup-tools", "libcgroup2"];

/// The sources and programs of these readers.
#[derive(Debug)]
pub(crate) struct Readers;

impl Need for Readers {
    fn name(&self) -> &'static str {
        "readers"
    }

    fn find(&self) -> Result<String> {
        setup::file(&gocode().join("src/github.com/opencontainers/runc/libcontainer/cgroups/fs/memory.go"))?;
        setup::file(&cgget())?;
        Ok(format!("runc's sources, {}", short(&library()?)))
    }

    fn fetch(&self) -> Result<()> {
        let system = apt::Source::system()?;
        println!("setup: downloading runc's library and cgget, into target/ only");
        system.unpack(&RUNC.map(str::to_owned), &tools().join("runc"))?;
        system.unpack(&CGGET.map(str::to_owned), &cgroup_tools())
    }
}

fn gocode() -> PathBuf {
    tools().join("runc/usr/share/gocode")
}

fn cgroup_tools() -> PathBuf {
    tools().join("cgroup-tools")
}

fn cgget() -> PathBuf {
    cgroup_tools().join("usr/bin/cgget")
}

fn library() -> Result<PathBuf> {
    one_of(&cgroup_tools().join(LIBRARIES), "libcgroup.so.2.")
}

/// Builds what is built of them, and packs them.
pub(super) fn pack(packed: &mut Vec<Packed>) -> Result<()> {
    let program = target().join("clients/bin/runc");
    let runc = go_build(&root().join("tests/clients/runc"), Some(&gocode()), &program)?;
    let files = [
        ("bin/clients/runc".to_owned(), runc),
        ("bin/clients/cgget".to_owned(), cgget()),
        (format!("{LIBRARIES}/libcgroup.so.2"), library()?),
    ];
    packed.extend(files.map(|(path, from)| Packed { path, from }));
    Ok(())
}
