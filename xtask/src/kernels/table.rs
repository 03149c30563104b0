//! The table of kernels. A new kernel is a new row.

use crate::arch::Arch;

/// A kernel that a package has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packaged {
    /// The name for `--kernel`: a version, then all that sets it apart from the kernel for
    /// x86-64 machines in a cloud.
    pub(super) label: &'static str,
    pub(super) arch: Arch,
    /// The package that depends on the newest image; with a `*`, all packages with such a
    /// name, of which the newest is taken.
    pub(super) package: &'static str,
    /// The suite of the package; None: the machine's own sources.
    pub(super) suite: Option<&'static str>,
    /// True if it has the memory controller of cgroup v1.
    pub(super) v1: bool,
}

impl Packaged {
    /// The name beside an option `--arch`: the label without the architecture.
    pub(super) fn short(&self) -> String {
        self.label.replacen("-arm64", "", 1)
    }

    /// The version in the label.
    pub(super) fn version(&self) -> &'static str {
        self.label.split('-').next().unwrap_or_default()
    }
}

/// A kernel for x86-64, without cgroup v1, from the machine's own sources.
const fn amd64(label: &'static str, package: &'static str) -> Packaged {
    Packaged { label, arch: Arch::Amd64, package, suite: None, v1: false }
}

const fn arm64(label: &'static str, package: &'static str) -> Packaged {
    Packaged { arch: Arch::Arm64, ..amd64(label, package) }
}

const fn from(suite: &'static str, row: Packaged) -> Packaged {
    Packaged { suite: Some(suite), ..row }
}

const fn v1(row: Packaged) -> Packaged {
    Packaged { v1: true, ..row }
}

const BACKPORTS: &str = "trixie-backports";

pub(super) const PACKAGED: [Packaged; 25] = [
    v1(amd64("6.1", "linux-image-cloud-amd64")),
    amd64("6.12", "linux-image-6.12-cloud-amd64"),
    from("sid", amd64("7.2", "linux-image-cloud-amd64")),
    // PREEMPT_RT: spinlocks sleep, interrupts are threads.
    v1(amd64("6.1-rt", "linux-image-rt-amd64")),
    amd64("6.12-rt", "linux-image-6.12-rt-amd64"),
    from("sid", amd64("7.2-rt", "linux-image-rt-amd64")),
    // With the drivers of real machines.
    v1(amd64("6.1-generic", "linux-image-amd64")),
    amd64("6.12-generic", "linux-image-6.12-amd64"),
    from("sid", amd64("7.2-generic", "linux-image-amd64")),
    // Too old: what the agent says of such a kernel.
    v1(from("bullseye", amd64("5.10", "linux-image-cloud-amd64"))),
    v1(from("bullseye", arm64("5.10-arm64", "linux-image-cloud-arm64"))),
    // Between those that the tests boot. They come, and go again.
    from(BACKPORTS, amd64("6.16", "linux-image-6.16.*-cloud-amd64")),
    from(BACKPORTS, amd64("6.17", "linux-image-6.17.*-cloud-amd64")),
    from(BACKPORTS, amd64("6.18", "linux-image-6.18.*-cloud-amd64")),
    from(BACKPORTS, amd64("6.19", "linux-image-6.19.*-cloud-amd64")),
    from(BACKPORTS, amd64("7.0", "linux-image-7.0.*-cloud-amd64")),
    from(BACKPORTS, amd64("7.1", "linux-image-7.1.*-cloud-amd64")),
    // Without the kernel's own windows of reclaim.
    from(BACKPORTS, amd64("7.3", "linux-image-cloud-amd64")),
    // Newer than those that the tests boot.
    from(BACKPORTS, amd64("7.3-rt", "linux-image-7.3.*-rt-amd64")),
    // Pages of 4 KiB.
    v1(arm64("6.1-arm64", "linux-image-cloud-arm64")),
    arm64("6.12-arm64", "linux-image-6.12-cloud-arm64"),
    from("sid", arm64("7.2-arm64", "linux-image-cloud-arm64")),
    // Pages of 16 KiB.
    arm64("6.12-arm64-16k", "linux-image-6.12-arm64-16k"),
    from("sid", arm64("7.2-arm64-16k", "linux-image-arm64-16k")),
    from(BACKPORTS, arm64("7.3-arm64", "linux-image-7.3.*-cloud-arm64")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_there_once_and_names_version_and_architecture() {
        for (at, row) in PACKAGED.iter().enumerate() {
            assert!(PACKAGED[..at].iter().all(|other| other.label != row.label), "{}", row.label);
            assert!(
                PACKAGED[..at].iter().all(|other| other.arch != row.arch || other.short() != row.short())
            );
            assert_eq!(row.label.contains("arm64"), row.arch == Arch::Arm64, "{}", row.label);
            assert!(row.package.contains(row.arch.name()), "{}", row.package);
            assert!(row.version().contains('.'), "{}", row.label);
        }
    }
}
