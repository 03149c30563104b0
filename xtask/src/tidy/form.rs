//! Rules on the form of a file, and on texts that people or CI rely on.

use std::fs;

use anyhow::{Context, Result};

use super::{Fault, Source};
use crate::workspace::root;

/// The most lines of a file; a longer one is two files.
const LONGEST: usize = 500;

/// Text that a file must hold, because people or CI rely on it.
const PROMISES: [(&str, &str); 3] =
    [("README.md", "cargo xtask test"), ("README.md", "cargo xtask run"), (".ci/run", "cargo xtask test")];

/// Finds a missing header, excessive length and characters beyond ASCII.
pub(super) fn faults(source: &Source) -> Vec<Fault> {
    let mut faults = Vec::new();
    if !source.text.starts_with("//!") {
        faults.push(Fault::in_file(
            source,
            1,
            "does not open with a //! line; add one on what the file is for",
        ));
    }
    let lines = source.text.lines().count();
    if lines > LONGEST {
        let text = format!("{lines} lines, more than {LONGEST}; split it by concept");
        faults.push(Fault::in_file(source, lines, text));
    }
    if let Some(at) = source.text.lines().position(|line| !line.is_ascii()) {
        faults.push(Fault::in_file(
            source,
            at + 1,
            "is not ASCII; write \\u{..} in a string, plain words elsewhere",
        ));
    }
    faults
}

/// Finds the files that lack a text which is relied on.
pub(super) fn broken_promises() -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for (name, text) in PROMISES {
        let contents =
            fs::read_to_string(root().join(name)).with_context(|| format!("cannot read {name}"))?;
        if !contents.contains(text) {
            faults.push(format!("{name}: does not say `{text}`; people and CI look for it there"));
        }
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_named() {
        let of = |text: &str| faults(&Source { path: "a.rs".to_owned(), text: text.to_owned() });
        assert!(of("//! Fine.\n").is_empty());
        let lines: Vec<_> = of("fn main() {}\n// \u{e4}\n").iter().map(|fault| fault.line).collect();
        assert_eq!(lines, [1, 2]);
        assert_eq!(of(&"//! Long.\n".repeat(LONGEST + 1)).len(), 1);
    }
}
