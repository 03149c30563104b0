//! The VM's tests, as the sources in `tests/scenarios` declare them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::tidy;
use crate::vm::Hierarchy;
use crate::workspace::{root, short};

/// The directory of the files with declarations.
const DIRECTORY: &str = "tests/scenarios";

/// A test that a `vm_test!` line declares.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) name: String,
    pub(super) on: On,
    pub(super) tags: Vec<String>,
    /// The modules that it is in, below `scenarios`.
    pub(super) modules: Vec<String>,
}

/// The machines that a test makes sense on, as in `tests/harness/test.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum On {
    Any,
    V1,
    V2,
    Locked,
    Debian,
    Debian12,
    Debian13,
}

impl On {
    /// True if a boot with this hierarchy runs such a test, where the kernel is locked down or
    /// not. Debian has a boot of its own.
    pub(super) fn includes(self, hierarchy: Hierarchy, is_locked: bool) -> bool {
        match self {
            Self::Locked => is_locked,
            Self::Any => true,
            Self::V1 => hierarchy == Hierarchy::V1,
            Self::V2 => hierarchy == Hierarchy::V2,
            Self::Debian | Self::Debian12 | Self::Debian13 => false,
        }
    }

    /// Returns the number of the bare release of Debian's that such a test is for.
    pub(super) const fn bare(self) -> Option<&'static str> {
        match self {
            Self::Debian12 => Some("12"),
            Self::Debian13 => Some("13"),
            _ => None,
        }
    }
}

/// Reads the declarations of all tests.
pub(super) fn declared() -> Result<Vec<Declared>> {
    let directory = root().join(DIRECTORY);
    let mut found = Vec::new();
    for path in tidy::files(&directory, "rs")? {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let below = path.strip_prefix(&directory).unwrap_or(&path).with_extension("");
        found.extend(declared_in(&text, &below).with_context(|| short(&path))?);
    }
    Ok(found)
}

/// Reads the declarations of the file at `below`, which is relative and has no extension.
pub(super) fn declared_in(text: &str, below: &Path) -> Result<Vec<Declared>> {
    let modules: Vec<_> = below.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let declarations = text.split("vm_test!(").skip(1);
    let parsed = declarations.map(|text| {
        parse(text, &modules).with_context(|| {
            let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
            format!("`vm_test!({line}` is not a declaration: write vm_test!(NAME, \"..\", ON, [TAG, ..]);")
        })
    });
    parsed.collect()
}

fn parse(declaration: &str, modules: &[String]) -> Option<Declared> {
    let (name, rest) = declaration.split_once(',')?;
    let (_, rest) = rest.split_once('"')?;
    let (_, rest) = rest.split_once("\",")?;
    let (on, rest) = rest.split_once('[')?;
    let (tags, _) = rest.split_once(']')?;
    let on = match on.trim().trim_end_matches(',') {
        "Any" => On::Any,
        "V1" => On::V1,
        "V2" => On::V2,
        "Locked" => On::Locked,
        "Debian" => On::Debian,
        "Debian12" => On::Debian12,
        "Debian13" => On::Debian13,
        _ => return None,
    };
    let tags = tags.split(',').map(|tag| tag.trim().to_owned()).filter(|tag| !tag.is_empty()).collect();
    Some(Declared { name: name.trim().to_owned(), on, tags, modules: modules.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_is_read_in_one_line_and_in_many() {
        let text = "vm_test!(\n    debian_a,\n    \"a, b\",\n    Debian,\n    [Kernel, Quick]\n);\n\
                    vm_test!(units_b, \"c\", Any, []);";
        let tests = declared_in(text, Path::new("deploy/debian")).expect("declarations");
        assert_eq!(tests[0].tags, ["Kernel", "Quick"]);
        assert_eq!(tests[0].modules, ["deploy", "debian"]);
        assert_eq!((tests[1].name.as_str(), tests[1].on), ("units_b", On::Any));
        let error = declared_in("vm_test!(a, \"b\", V3, []);", Path::new("a")).expect_err("no such machine");
        assert!(error.to_string().contains("vm_test!(a, "), "{error}");
    }
}
