//! The list of all prerequisites, in the order in which `cargo xtask setup` gets them.

use crate::busybox::Busybox;
use crate::checks::CargoDeny;
use crate::clients::{CCompiler, Clients};
use crate::debian::Debian;
use crate::docs::MdBook;
use crate::fuzz::CargoFuzz;
use crate::image::Buildah;
use crate::kernels::{self, KernelImage};
use crate::project::Project;
use crate::prometheus::Prometheus;
use crate::qemu::Qemu;
use crate::setup::Need;
use crate::toolchain::{Compiler, Linker};

/// Returns everything that any command needs.
pub(crate) fn all() -> Vec<Box<dyn Need>> {
    let mut needs: Vec<Box<dyn Need>> =
        vec![Box::new(Compiler), Box::new(Linker), Box::new(Qemu), Box::new(Busybox)];
    needs.extend(kernels::labels().map(|label| -> Box<dyn Need> { Box::new(KernelImage(label)) }));
    needs.extend([
        Box::new(CCompiler) as Box<dyn Need>,
        Box::new(Clients),
        Box::new(Project),
        Box::new(Debian),
        Box::new(Buildah),
        Box::new(Prometheus),
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
        let kernels = vec!["kernel"; kernels::labels().count()];
        let before = ["compiler", "linker", "qemu", "busybox"];
        let after = ["c", "clients", "project", "debian", "buildah", "prometheus", "deny", "mdbook", "fuzz"];
        assert_eq!(names, [&before[..], &kernels, &after].concat());
    }
}
