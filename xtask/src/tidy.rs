//! Rules on the sources that no other tool checks.

mod circles;
mod comments;
mod form;
mod manifests;
mod names;
mod not_yet;
mod words;

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::not_yet::NotYet;
use crate::summary::Outcome;
use crate::workspace::{root, short};

/// A file that rules look at.
#[derive(Debug)]
struct Source {
    /// Relative to the workspace's root.
    path: String,
    text: String,
}

/// A violation of a rule, at its place.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    /// The word under which a list of exceptions has it: the file, or a name.
    key: String,
    path: String,
    line: usize,
    /// The violation, and what to do about it.
    text: String,
}

impl Display for Fault {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { path, line, text, .. } = self;
        write!(f, "{path}:{line}: {text}")
    }
}

impl Fault {
    /// A fault whose exception is the whole file.
    fn in_file(source: &Source, line: usize, text: impl Into<String>) -> Self {
        Self { key: source.path.clone(), path: source.path.clone(), line, text: text.into() }
    }
}

/// A rule that old sources need not keep yet.
struct Rule {
    exceptions: NotYet,
    faults: fn(&Sources) -> Vec<Fault>,
}

/// The rules with exceptions. What is not excepted is held at once.
const RULES: [Rule; 4] = [
    Rule { exceptions: circles::NOT_YET, faults: |sources| circles::faults(&sources.rust) },
    Rule { exceptions: names::NOT_YET, faults: |sources| names::faults(&sources.rust) },
    Rule { exceptions: comments::NOT_YET, faults: |sources| comments::faults(&sources.rust) },
    Rule { exceptions: words::NOT_YET, faults: |sources| words::faults(sources.all()) },
];

/// The files of the workspace that rules look at.
struct Sources {
    rust: Vec<Source>,
    prose: Vec<Source>,
}

impl Sources {
    fn read() -> Result<Self> {
        Ok(Self { rust: Source::all("rs")?, prose: Source::all("md")? })
    }

    fn all(&self) -> impl Iterator<Item = &Source> {
        self.rust.iter().chain(&self.prose)
    }
}

impl Source {
    fn all(extension: &str) -> Result<Vec<Self>> {
        files(root(), extension)?.iter().map(|path| Self::read(path)).collect()
    }

    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { path: short(path), text })
    }

    /// The text before the tests at the file's end.
    fn without_tests(&self) -> &str {
        let mut at = 0;
        let mut lines = self.text.split_inclusive('\n').peekable();
        while let Some(line) = lines.next() {
            let opens_tests = line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test,");
            if opens_tests && lines.peek().is_some_and(|next| next.trim_end().ends_with('{')) {
                return &self.text[..at];
            }
            at += line.len();
        }
        &self.text
    }
}

/// Checks every rule on the whole workspace.
pub(crate) fn check() -> Result<Outcome> {
    let sources = Sources::read()?;
    let mut faults: Vec<String> = sources.rust.iter().flat_map(form::faults).map(|f| f.to_string()).collect();
    faults.extend(form::broken_promises()?);
    faults.extend(manifests::faults()?);
    let mut left = Vec::new();
    for rule in RULES {
        let found = (rule.faults)(&sources);
        faults.extend(rule.exceptions.unexpected(&found));
        left.push(format!("{} {}", rule.exceptions.count(), rule.exceptions.what));
    }
    if !faults.is_empty() {
        bail!("{} faults in the sources:\n{}", faults.len(), faults.join("\n"));
    }
    let count = sources.all().count();
    Ok(Outcome::pass(format!("{count} files; left: {}", left.join(", "))))
}

/// Lists the files below `directory` with this extension, except in `target` and in hidden
/// directories.
pub(crate) fn files(directory: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                found.extend(files(&path, extension)?);
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_keeps_every_rule() {
        if let Err(error) = check() {
            panic!("{error:#}");
        }
    }

    #[test]
    #[ignore = "writes the lists of exceptions anew: cargo test -p xtask write_exceptions -- --ignored"]
    fn write_exceptions() {
        let sources = Sources::read().expect("readable sources");
        for rule in RULES {
            rule.exceptions.write(&(rule.faults)(&sources)).expect("a list");
        }
    }

    #[test]
    fn tests_at_the_end_are_no_part_of_the_code() {
        let source = |text: &str| Source { path: "a.rs".to_owned(), text: text.to_owned() };
        let text = "mod a;\n#[cfg(test)]\nmod b;\n#[cfg(test)]\nmod tests {\n}\n";
        assert_eq!(source(text).without_tests(), "mod a;\n#[cfg(test)]\nmod b;\n");
        let text = "a\n#[cfg(all(test, not(loom)))]\nmod tests {\n}\n";
        assert_eq!(source(text).without_tests(), "a\n");
        assert_eq!(source("mod a;\n").without_tests(), "mod a;\n");
    }
}
