//! The list of all prerequisites, in the order in which `cargo xtask setup` gets them.

use crate::arch::Arch;
use crate::busybox::Busybox;
use crate::checks::CargoDeny;
use crate::clients::{CCompiler, Clients, Languages};
use crate::cross::{CrossLinker, Library};
use crate::debian::{BARE, DEBIAN};
use crate::deploy::Kustomize;
use crate::dist::{Cyclonedx, Linters, RpmBuild};
use crate::docs::MdBook;
use crate::fuzz::CargoFuzz;
use crate::image::Buildah;
use crate::kernels::KernelImage;
use crate::project::Project;
use crate::prometheus::Prometheus;
use crate::qemu::Qemu;
use crate::setup::Need;
use crate::test;
use crate::toolchain::{Compiler, Linker};

/// Returns everything that any command needs.
pub(crate) fn all() -> Vec<Box<dyn Need>> {
    let mut needs: Vec<Box<dyn Need>> =
        vec![Box::new(Compiler), Box::new(Linker), Box::new(CrossLinker), Box::new(Library)];
    for arch in [Arch::Amd64, Arch::Arm64] {
        needs.extend([Box::new(Qemu(arch)) as Box<dyn Need>, Box::new(Busybox(arch))]);
    }
    needs.extend(test::kernels().into_iter().map(|label| -> Box<dyn Need> { Box::new(KernelImage(label)) }));
    needs.extend([
        Box::new(CCompiler) as Box<dyn Need>,
        Box::new(Clients),
        Box::new(Languages),
        Box::new(Project),
        Box::new(DEBIAN),
        Box::new(BARE[0].root),
        Box::new(BARE[1].root),
        Box::new(Buildah),
        Box::new(Prometheus),
        Box::new(Kustomize),
        Box::new(RpmBuild),
        Box::new(Linters),
        Box::new(Cyclonedx),
        Box::new(CargoDeny),
        Box::new(MdBook),
        Box::new(CargoFuzz),
    ]);
    needs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_prerequisite_is_there_once_and_the_compiler_is_first() {
        let names: Vec<_> = all().iter().map(|need| need.name()).collect();
        let kernels = vec!["kernel"; test::kernels().len()];
        let before = [
            "compiler",
            "linker",
            "linker-arm64",
            "library-arm64",
            "qemu-system-x86_64",
            "busybox",
            "qemu-system-aarch64",
            "busybox-arm64",
        ];
        let after = [
            "c",
            "clients",
            "languages",
            "project",
            "debian",
            "debian-12",
            "debian-13",
            "buildah",
            "prometheus",
            "kustomize",
            "rpm",
            "lintian",
            "cyclonedx",
            "deny",
            "mdbook",
            "fuzz",
        ];
        assert_eq!(names, [&before[..], &kernels, &after].concat());
    }
}
