//! Third-party clients and the examples for the VM: built below `target/` from packages
//! and their sources, and packed beside the tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::apt;
use crate::process::{self, command};
use crate::setup::{self, Need};
use crate::workspace::{root, short, target, tools};

mod languages;
mod live;
mod readers;

pub(crate) use languages::{Languages, unit_tests};
pub(crate) use live::beside_an_agent;

/// A file that the VM gets.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Packed {
    /// The path in the VM, without a leading slash.
    pub(crate) path: String,
    pub(crate) from: PathBuf,
}

/// A file that is taken, as it is, out of a package.
#[derive(Debug)]
struct Taken {
    package: &'static str,
    /// None: the package is a source package, and this is in its tarball.
    tarball: Option<&'static str>,
    file: &'static str,
}

const LISTENER: Taken = Taken {
    package: "linux-source-6.1",
    tarball: Some("usr/src/linux-source-6.1.tar.xz"),
    file: "tools/cgroup/cgroup_event_listener.c",
};

const NOTIFIER: Taken =
    Taken { package: "kubernetes", tarball: None, file: "pkg/kubelet/eviction/threshold_notifier_linux.go" };

const CONTAINERD: &str = "golang-github-containerd-cgroups-dev";

/// The directory in which a program looks for the system's libraries.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";

/// The libraries that the interpreter needs for the examples, and `cgget`.
const PYTHON_LIBRARIES: [&str; 5] =
    ["libc.so.6", "libpthread.so.0", "libm.so.6", "libz.so.1", "libexpat.so.1"];

/// The prerequisites of the clients that the VM's tests start.
pub(crate) const NEEDS: [&dyn Need; 3] = [&CCompiler, &Clients, &readers::Readers];

/// A C compiler, and xz for the kernel's sources.
#[derive(Debug)]
pub(crate) struct CCompiler;

impl Need for CCompiler {
    fn name(&self) -> &'static str {
        "c"
    }

    fn find(&self) -> Result<String> {
        setup::programs(&["cc", "xz"])
    }

    fn fetch(&self) -> Result<()> {
        apt::install(&["gcc", "libc6-dev", "xz-utils"])
    }
}

/// The clients' sources, and the languages of clients and examples.
#[derive(Debug)]
pub(crate) struct Clients;

impl Need for Clients {
    fn name(&self) -> &'static str {
        "clients"
    }

    fn find(&self) -> Result<String> {
        for path in [LISTENER.path(), NOTIFIER.path()] {
            setup::file(&path)?;
        }
        Ok(format!("clients' sources, Go {}, Python {}", short(&go_root()?), short(&python()?)))
    }

    fn fetch(&self) -> Result<()> {
        let system = apt::Source::system()?;
        if go_root().is_err() {
            println!("setup: downloading Go and {CONTAINERD}, into target/ only");
            system.unpack(&go_packages(&system)?, &go())?;
        }
        if python().is_err() {
            println!("setup: downloading Python, into target/ only");
            system.unpack(&python_packages(&system)?, &tools().join("python"))?;
        }
        [LISTENER, NOTIFIER].iter().try_for_each(Taken::fetch)
    }
}

/// The list of what [`build`] has built.
fn list() -> PathBuf {
    target().join("clients/packed.json")
}

/// Lists the files for the VM, as they were built last: several VMs pack them at a time,
/// so none of them builds.
pub(crate) fn built() -> Result<Vec<Packed>> {
    let path = list();
    let advice =
        || format!("cannot read {}; `cargo xtask test` writes it when it builds the clients", path.display());
    let text = fs::read_to_string(&path).with_context(advice)?;
    serde_json::from_str(&text).with_context(advice)
}

/// Builds all clients, and lists the files for the VM.
pub(crate) fn build() -> Result<Vec<Packed>> {
    println!("building the clients and examples (two minutes the first time, then seconds)");
    let mut packed = Vec::new();
    let bin = target().join("clients/bin");
    make(&bin)?;
    let mut add = |directory: &str, name: &str, from: PathBuf| {
        packed.push(Packed { path: format!("bin/{directory}/{name}"), from });
    };

    add("clients", "cgroup_event_listener", cc(&LISTENER.path(), &bin.join("cgroup_event_listener"))?);
    let sources = root().join("tests/clients");
    add("clients", "containerd", go_build(&sources.join("containerd"), None, &bin.join("containerd"))?);
    let path = kubelet(&sources.join("kubelet"))?;
    add("clients", "kubelet", go_build(&path.join("src/driver"), Some(&path), &bin.join("kubelet"))?);
    add("clients", "cgroups-rs", cargo(&sources.join("cgroups-rs"))?);

    let examples = root().join("examples");
    for name in ["listen", "socket"] {
        add("examples", name, cc(&examples.join("c").join(format!("{name}.c")), &bin.join(name))?);
    }
    add("examples", "listen-go", go_build(&examples.join("go"), None, &bin.join("listen-go"))?);
    add("examples", "listen.py", examples.join("python/listen.py"));
    add("examples", "client", languages::example_c(&bin.join("client"))?);
    add("examples", "client-go", languages::example_go(&bin.join("client-go"))?);
    readers::pack(&mut packed)?;
    pack_python(&mut packed)?;
    let path = list();
    fs::write(&path, serde_json::to_string(&packed)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(packed)
}

/// The directories that these files need, parents first.
pub(crate) fn directories(packed: &[Packed]) -> BTreeSet<&str> {
    let parents = packed.iter().flat_map(|file| file.path.match_indices('/').map(|(at, _)| &file.path[..at]));
    parents.collect()
}

impl Taken {
    /// Returns the path of the file once it is here.
    fn path(&self) -> PathBuf {
        target().join("clients/taken").join(self.file.rsplit('/').next().unwrap_or(self.file))
    }

    fn fetch(&self) -> Result<()> {
        if self.path().is_file() {
            return Ok(());
        }
        let Self { package, tarball, file } = self;
        println!("setup: taking {file} out of Debian's {package}");
        let directory = target().join("clients/downloads").join(package);
        let tarball = match tarball {
            Some(tarball) => {
                remove(&directory)?;
                make(&target().join("clients/downloads"))?;
                apt::Source::system()?.unpack(&[(*package).to_owned()], &directory)?;
                directory.join(tarball)
            }
            None => {
                apt::Source::sources()?.download_source(package, &directory)?;
                tarball_in(&directory)?
            }
        };
        // The first name is the tarball's top directory, which has a version.
        let text = process::output_bytes(
            command("tar")
                .args(["--wildcards", "--occurrence=1", "-xOf"])
                .arg(&tarball)
                .arg(format!("*/{file}")),
        )?;
        let path = self.path();
        make(path.parent().context("it has a parent")?)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        remove(&directory)
    }
}

/// The upstream tarball of a source package.
pub(crate) fn tarball_in(directory: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().contains(".orig.tar."))
        .with_context(|| {
            format!("no upstream tarball in {}; remove it and run `cargo xtask setup`", directory.display())
        })
}

/// Returns the directory with Go and its libraries.
fn go() -> PathBuf {
    tools().join("go")
}

/// The toolchain, which Debian puts under its version.
fn go_root() -> Result<PathBuf> {
    one_of(&go().join("usr/lib"), "go-")
}

/// The toolchain behind the meta-package, and the library with what it names.
fn go_packages(source: &apt::Source) -> Result<Vec<String>> {
    let mut packages = vec![CONTAINERD.to_owned()];
    packages.extend(source.depends(CONTAINERD)?.into_iter().filter(|name| name.starts_with("golang-")));
    let of_toolchain = |name: &str| -> Result<Vec<String>> {
        Ok(source.depends(name)?.into_iter().filter(|name| name.starts_with("golang-1.")).collect())
    };
    for compiler in of_toolchain("golang-go")? {
        packages.extend(of_toolchain(&compiler)?);
        packages.push(compiler);
    }
    Ok(packages)
}

/// Builds a Go program; Go's cache goes by content, so an unchanged one takes no time.
fn go_build(directory: &Path, path: Option<&Path>, program: &Path) -> Result<PathBuf> {
    let home = go_root()?;
    let libraries = go().join("usr/share/gocode");
    let path = path.map_or(String::new(), |path| format!("{}:", path.display()));
    process::run(
        command(home.join("bin/go"))
            .args(["build", "-trimpath", "-ldflags", "-s -w", "-o"])
            .arg(program)
            .current_dir(directory)
            .env("GOROOT", &home)
            .env("GOPATH", format!("{path}{}", libraries.display()))
            .env("GOCACHE", target().join("clients/go-cache"))
            .env("GO111MODULE", "off")
            .env("GOENV", "off")
            .env("GOFLAGS", "")
            // Static, and no C compiler.
            .env("CGO_ENABLED", "0"),
    )?;
    Ok(program.to_path_buf())
}

/// Lays the notifier and its stubs out as Go expects packages.
fn kubelet(sources: &Path) -> Result<PathBuf> {
    let path = target().join("clients/kubelet");
    let copies = [
        (sources.join("driver/main.go"), "driver/main.go"),
        (sources.join("eviction/rest.go"), "eviction/rest.go"),
        (NOTIFIER.path(), "eviction/threshold_notifier_linux.go"),
        (sources.join("klog/klog.go"), "k8s.io/klog/v2/klog.go"),
    ];
    remove(&path)?;
    for (from, to) in copies {
        let to = path.join("src").join(to);
        make(to.parent().context("it has a parent")?)?;
        fs::copy(&from, &to)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    Ok(path)
}

fn cc(source: &Path, program: &Path) -> Result<PathBuf> {
    process::run(
        command("cc").args(["-O2", "-static", "-s", "-Wall", "-Werror", "-o"]).arg(program).arg(source),
    )?;
    Ok(program.to_path_buf())
}

fn cargo(directory: &Path) -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let build = target().join("clients/cargo");
    process::run(
        static_cargo()
            .args(["build", "--release", "--quiet", "--locked", "--target", TARGET, "--target-dir"])
            .arg(&build)
            .current_dir(directory),
    )?;
    Ok(build.join(TARGET).join("release/cgroups-rs-client"))
}

/// Returns a cargo whose programs carry their own libraries.
fn static_cargo() -> Command {
    let mut cargo = command("cargo");
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", "-C target-feature=+crt-static");
    cargo
}

/// Debian's minimal interpreter; the packages' names have its version.
fn python_packages(source: &apt::Source) -> Result<Vec<String>> {
    let mut packages = Vec::new();
    for interpreter in source.depends("python3-minimal")? {
        if interpreter.starts_with("python3.") {
            packages.extend(source.depends(&interpreter)?);
            packages.push(interpreter);
        }
    }
    Ok(packages)
}

fn python() -> Result<PathBuf> {
    one_of(&tools().join("python/usr/bin"), "python3.")
}

/// The interpreter, its libraries and its modules, at their usual places.
fn pack_python(packed: &mut Vec<Packed>) -> Result<()> {
    let unpacked = tools().join("python");
    let interpreter = python()?;
    let name = interpreter.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut add = |path: String, from: PathBuf| packed.push(Packed { path, from });
    let library = |name: &str| -> Result<PathBuf> {
        let places =
            [LIBRARIES, "usr/lib/x86_64-linux-gnu"].map(|directory| unpacked.join(directory).join(name));
        places.into_iter().find(|path| path.is_file()).with_context(|| {
            format!("Debian's Python lacks {name}; remove target/tools/python and run `cargo xtask setup`")
        })
    };
    // The loader's usual name is a link, absolute and so useless here.
    let loader = "ld-linux-x86-64.so.2";
    add(format!("lib64/{loader}"), library(loader)?);
    for name in PYTHON_LIBRARIES {
        add(format!("{LIBRARIES}/{name}"), library(name)?);
    }
    let modules = unpacked.join("usr/lib").join(&name);
    let mut open = vec![modules];
    while let Some(directory) = open.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            if path.is_dir() {
                open.push(path);
            } else if path.is_file() {
                let inner = path.strip_prefix(&unpacked).context("it is below")?;
                add(inner.display().to_string(), path.clone());
            }
        }
    }
    add("usr/bin/python3".to_owned(), interpreter);
    Ok(())
}

/// Finds the entry of `directory` whose name begins with `prefix`.
fn one_of(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { bail!("there is no {}", short(directory)) };
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .with_context(|| format!("there is no {prefix}* in {}", short(directory)))
}

pub(crate) fn make(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))
}

pub(crate) fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_before_what_is_in_them() {
        let file = |path: &str| Packed { path: path.to_owned(), from: PathBuf::new() };
        let packed = [file("usr/lib/python3/a.py"), file("bin/clients/b"), file("init")];
        let found: Vec<_> = directories(&packed).into_iter().collect();
        assert_eq!(found, ["bin", "bin/clients", "usr", "usr/lib", "usr/lib/python3"]);
    }
}
