//! Debian with systemd in the VM: the boots that test the units, the container image and the
//! package there.

mod root;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use self::root::Root;
use crate::arch::Arch;
use crate::build::{self, Guest};
use crate::clients::Packed;
use crate::setup;
use crate::summary::Outcome;
use crate::vm::{self, Boot, Hierarchy, booting};
use crate::workspace::{files_below, root, target};
use crate::{apt, deploy, dist, image, kernels};

/// The prefix of the tests that run there.
pub(crate) const TESTS: &str = "debian_";

/// A service with sd-event's memory-pressure protocol, which systemd has from 254 on, and the library
/// that it needs: of the release's backports, where the release itself is older.
const PRESSURE: [&str; 2] = ["systemd-timesyncd", "libsystemd-shared"];

/// The directory of what the guest copies over Debian's files
/// (tests/scenarios/deploy/debian.rs).
const PAYLOAD: &str = "payload";

/// Debian with what the tests of units and of the image need.
pub(crate) const DEBIAN: Root = Root {
    name: "debian",
    file: "root.ext4",
    release: None,
    packages: "systemd,systemd-sysv,dbus,runc",
    size: "700M",
};

/// A release of Debian with nothing but systemd, and the kernel that it comes with.
#[derive(Debug)]
pub(crate) struct Bare {
    /// The release's number, by which tests choose it.
    pub(crate) version: &'static str,
    pub(crate) kernel: &'static str,
    pub(crate) root: Root,
}

/// The releases that the package has to work on.
pub(crate) const BARE: [Bare; 2] = [
    Bare {
        version: "12",
        kernel: "6.1",
        root: Root { name: "debian-12", file: "bookworm.ext4", release: Some("bookworm"), ..SMALLEST },
    },
    Bare {
        version: "13",
        kernel: "6.12",
        root: Root { name: "debian-13", file: "trixie.ext4", release: Some("trixie"), ..SMALLEST },
    },
];

const SMALLEST: Root = Root { packages: "systemd-sysv", size: "600M", ..DEBIAN };

fn directory() -> PathBuf {
    target().join("debian")
}

/// Boots it and runs the tests whose name contains `filter`.
pub(crate) fn test(kernel: &str, filter: &str) -> Result<Outcome> {
    vm::ensure(kernel)?;
    setup::ensure(&[&DEBIAN])?;
    let kernel = kernels::get(kernel)?;
    let programs = build::guest(Arch::Amd64)?;
    image::build(&programs.monitor)?;
    let guest = Guest { more: payload()?, disk: Some(DEBIAN.disk()), ..programs };
    println!("{}, Debian on its disk", booting(&kernel, Hierarchy::V2));
    let words = format!("guest.filter={filter}");
    run(
        &Boot { limit: Duration::from_secs(15 * 60), ..Boot::new(&kernel, Hierarchy::V2, "debian") },
        &words,
        &guest,
    )
}

/// Boots a bare Debian and runs the tests for it whose name contains `filter`.
pub(crate) fn test_bare(bare: &Bare, filter: &str) -> Result<Outcome> {
    vm::ensure(bare.kernel)?;
    setup::ensure(&[&bare.root])?;
    let kernel = kernels::get(bare.kernel)?;
    let programs = build::guest(Arch::Amd64)?;
    let mut more = Vec::new();
    pack(&root().join("tests/scenarios/deploy/debian/units"), "etc/systemd/system", &mut more)?;
    pack(&dist::package(bare.version)?, "root", &mut more)?;
    let guest = Guest { more, disk: Some(bare.root.disk()), ..programs };
    println!("{}, Debian {} on its disk", booting(&kernel, Hierarchy::V2), bare.version);
    let boot = Boot { label: bare.root.name.to_owned(), ..Boot::new(&kernel, Hierarchy::V2, "debian") };
    run(&boot, &format!("guest.filter={filter} guest.args={}", bare.version), &guest)
}

fn run(boot: &Boot<'_>, words: &str, guest: &Guest) -> Result<Outcome> {
    let parameters = format!("{words} systemd.unit=memcg-guest.target");
    let boot = Boot { parameters, label: boot.label.clone(), cpu: None, ..*boot };
    let report = boot.run(guest, &mut |line| println!("{line}"))?;
    ensure!(report.passed + report.failed > 0, "the guest ran no test with {words}; its log is in target/vm");
    Ok(Outcome::of(report, boot.kernel.release.clone()))
}

/// Adds what is to be copied from a directory of this machine to one of Debian's.
fn pack(from: &Path, to: &str, packed: &mut Vec<Packed>) -> Result<()> {
    for path in files_below(from)? {
        let below = path.strip_prefix(from).unwrap_or(&path);
        packed.push(Packed { path: format!("{PAYLOAD}/{to}/{}", below.display()), from: path });
    }
    Ok(())
}

/// The files of [`PRESSURE`], with the paths that they have in the VM: Debian's own stay, as these
/// have their version in the library's name.
fn with_pressure() -> Result<Vec<Packed>> {
    let directory = directory().join("pressure");
    if !directory.exists() {
        apt::Source::backports()?.unpack(&PRESSURE.map(str::to_owned), &directory)?;
    }
    let mut packed = Vec::new();
    for path in files_below(&directory)? {
        let below = path.strip_prefix(&directory).unwrap_or(&path).display().to_string();
        let is_needed = ["libsystemd-shared-", "systemd-timesync"].iter().any(|part| below.contains(part))
            && !["share/man", "share/lintian", "share/doc"].iter().any(|part| below.contains(part));
        if is_needed {
            let place = below.strip_prefix("lib/").map_or(below.clone(), |rest| format!("usr/lib/{rest}"));
            packed.push(Packed { path: format!("{PAYLOAD}/{place}"), from: path });
        }
    }
    ensure!(packed.len() >= 4, "{PRESSURE:?} have other files than expected: {packed:?}");
    Ok(packed)
}

/// Lists what is copied over Debian's files: the agent's units, and the guest's own.
fn payload() -> Result<Vec<Packed>> {
    // The guest reads JSON; what is tested are the manifests all the same.
    let manifests = directory().join("kubernetes");
    fs::create_dir_all(&manifests).with_context(|| format!("cannot make {}", manifests.display()))?;
    for (name, file) in [
        ("daemonset", "base/daemonset.yaml"),
        ("client", "overlays/client/pod.yaml"),
        ("client-hostpath", "overlays/client-hostpath/pod.yaml"),
    ] {
        let path = manifests.join(format!("{name}.json"));
        let manifest = deploy::manifest(file)?;
        fs::write(&path, manifest.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut packed = with_pressure()?;
    for (from, to) in [
        (root().join("deploy/systemd"), "usr/share/memcg-monitor/systemd"),
        (root().join("tests/scenarios/deploy/debian/units"), "etc/systemd/system"),
        (manifests, "usr/share/memcg-monitor/kubernetes"),
        (image::layout(), "usr/share/memcg-monitor/image"),
    ] {
        pack(&from, to, &mut packed)?;
    }
    for (number, from) in dist::for_upgrade(&directory().join("packages"))?.into_iter().enumerate() {
        packed
            .push(Packed { path: format!("{PAYLOAD}/usr/share/memcg-monitor/packages/{number}.deb"), from });
    }
    packed.push(Packed {
        path: format!("{PAYLOAD}/usr/share/memcg-monitor/deploy.md"),
        from: root().join("docs/guide/deploy.md"),
    });
    Ok(packed)
}
