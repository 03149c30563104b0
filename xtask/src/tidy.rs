//! Rules on the sources that no other tool checks.

mod circles;
mod comments;
mod form;
mod manifests;
mod names;
mod not_yet;
mod surface;
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

    /// The files that are compiled for tests alone, without `.rs`: `a` for `a.rs` and `a/b.rs`.
    fn test_modules(&self) -> impl Iterator<Item = String> {
        let directory = self.path.trim_end_matches(".rs");
        let directory =
            ["lib", "main", "mod"].iter().find_map(|name| directory.strip_suffix(&format!("/{name}")));
        let directory = directory.unwrap_or(self.path.trim_end_matches(".rs"));
        let lines = self.text.lines().zip(self.text.lines().skip(1));
        lines.filter(|(line, _)| is_for_tests(line)).filter_map(move |(_, line)| {
            let (_, name) = line.strip_suffix(';')?.rsplit_once("mod ")?;
            Some(format!("{directory}/{name}"))
        })
    }

    /// The text before the tests at the file's end.
    fn without_tests(&self) -> &str {
        let mut at = 0;
        let mut lines = self.text.split_inclusive('\n').peekable();
        while let Some(line) = lines.next() {
            if is_for_tests(line) && lines.peek().is_some_and(|next| next.trim_end().ends_with('{')) {
                return &self.text[..at];
            }
            at += line.len();
        }
        &self.text
    }
}

/// True if a line leaves out what follows unless tests are compiled.
fn is_for_tests(line: &str) -> bool {
    line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test,")
}

/// Leaves out the files that are compiled for tests alone.
fn without_test_modules(sources: &[Source]) -> impl Iterator<Item = &Source> {
    let alone: Vec<_> = sources.iter().flat_map(Source::test_modules).collect();
    sources.iter().filter(move |source| {
        let is_in = |module: &String| {
            let rest = source.path.strip_prefix(module.as_str());
            rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        };
        !alone.iter().any(is_in)
    })
}

/// Checks every rule on the whole workspace.
pub(crate) fn check() -> Result<Outcome> {
    let sources = Sources::read()?;
    let mut faults: Vec<String> = sources.rust.iter().flat_map(form::faults).map(|f| f.to_string()).collect();
    faults.extend(form::broken_promises()?);
    faults.extend(manifests::faults()?);
    faults.extend(surface::faults()?);
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

    #[test]
    fn a_module_for_tests_is_left_out_with_what_is_below() {
        let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
        let sources = [
            source("a/src/lib.rs", "#[cfg(test)]\nmod model;\nmod b;\n"),
            source("a/src/b.rs", "#[cfg(all(test, not(loom)))]\npub(crate) mod c;\n"),
            source("a/src/b/c.rs", ""),
            source("a/src/b/c/d.rs", ""),
            source("a/src/model.rs", ""),
            source("a/src/models.rs", ""),
        ];
        let left: Vec<_> = without_test_modules(&sources).map(|source| source.path.as_str()).collect();
        assert_eq!(left, ["a/src/lib.rs", "a/src/b.rs", "a/src/models.rs"]);
    }
}
