//! `watch --check-config`: names all that is wrong with the rules in a directory, or with one.

mod command;

use std::{
    fmt, fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use memcg_monitor::{cgroup::workload::is_in_unit_name, printable};
use monitor_client::named;
use nix::errno::Errno;
use serde::Serialize;

use super::rule::{Rule, Wrong};
use crate::{cli::Output, commands::say_bare};

/// Something that is found in a rule; in JSON, its "type" says which.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Finding {
    /// No `watch` takes the rule, or it cannot do what it says.
    Wrong(Wrong),
    /// The rule may say something else than was meant.
    Note(Wrong),
}

/// A line as compilers write it, so that editors find the place.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong(wrong) => wrong.fmt(f),
            Self::Note(note) => Wrong { why: format!("note: {}", note.why), ..note.clone() }.fmt(f),
        }
    }
}

/// The last line of the check's output in JSON.
#[derive(Serialize)]
#[serde(tag = "type", rename = "checked")]
struct Checked {
    rules: usize,
    /// Rules that are wrong; 1 where there are none to read.
    wrong: usize,
}

/// Checks all rules in a directory, or the one in a file, and says what is wrong; whether nothing is.
///
/// # Errors
/// The path cannot be read, which in JSON is one of the findings.
pub fn check(path: &Path, output: Output) -> Result<bool> {
    report(path, output, &mut io::stdout().lock())
}

fn report(path: &Path, output: Output, out: &mut impl Write) -> Result<bool> {
    let rules = match (rules(path), output) {
        (Ok(rules), _) => rules,
        (Err(why), Output::Text) => bail!("cannot read {}: {why}", path.display()),
        // A program reads the output alone.
        (Err(why), Output::Json) => {
            let why = format!("cannot read it: {why}");
            let wrong = Wrong { file: Some(path.display().to_string()), line: None, why };
            writeln!(out, "{}", serde_json::to_string(&Finding::Wrong(wrong))?)?;
            writeln!(out, "{}", serde_json::to_string(&Checked { rules: 0, wrong: 1 })?)?;
            out.flush()?;
            return Ok(false);
        }
    };
    let found: Vec<_> = rules.files.iter().map(|rule| findings(rule)).collect();
    let is_wrong = |found: &&Vec<Finding>| found.iter().any(|one| matches!(one, Finding::Wrong(_)));
    let wrong = found.iter().filter(is_wrong).count();
    for finding in found.iter().flatten() {
        match output {
            Output::Json => writeln!(out, "{}", serde_json::to_string(finding)?)?,
            Output::Text => say_bare(&printable(&finding.to_string())),
        }
    }
    let count = rules.files.len();
    match output {
        Output::Json => writeln!(out, "{}", serde_json::to_string(&Checked { rules: count, wrong })?)?,
        Output::Text => {
            let others = match rules.others {
                0 => String::new(),
                others => format!("; {others} other files are none (a rule is NAME.conf)"),
            };
            writeln!(out, "{count} rules in {}, {wrong} of them wrong{others}", path.display())?;
        }
    }
    out.flush()?;
    Ok(wrong == 0)
}

/// The files of rules, and the number of others beside them.
struct Rules {
    files: Vec<PathBuf>,
    others: usize,
}

/// Finds the rules; else says why the path cannot be read, and what to do.
fn rules(path: &Path) -> Result<Rules, String> {
    let failed = |error: &io::Error| {
        let advice = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => {
                "; make the directory and put rules there (NAME.conf), or name another, or a rule"
            }
            Some(Errno::EACCES) => "; run this as a user that may",
            _ => "",
        };
        format!("{}{advice}", named(error))
    };
    if !fs::metadata(path).map_err(|error| failed(&error))?.is_dir() {
        return Ok(Rules { files: vec![path.to_owned()], others: 0 });
    }
    let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let paths = entries.map_err(|error| failed(&error))?.into_iter().map(|entry| entry.path());
    let (mut files, others): (Vec<_>, Vec<_>) =
        paths.partition(|path| path.extension().is_some_and(|ending| ending == "conf"));
    files.sort();
    Ok(Rules { files, others: others.len() })
}

/// Looks at a rule; also at its name, and at the command that it runs on this host.
fn findings(path: &Path) -> Vec<Finding> {
    let at = |line, why| Wrong { file: Some(path.display().to_string()), line, why };
    let mut found: Vec<_> = wrong_name(path).map(|why| Finding::Wrong(at(None, why))).into_iter().collect();
    let (rule, lines) = match Rule::read(path) {
        Ok(read) => read,
        Err(wrong) => {
            found.extend(wrong.into_iter().map(Finding::Wrong));
            return found;
        }
    };
    let notes = lines.notes.into_iter().map(|(line, why)| Finding::Note(at(Some(line), why)));
    found.extend(notes);
    let exec = |why: String| at(lines.exec, format!("exec: {why}"));
    match rule.exec.as_deref().map(command::check) {
        None | Some(Ok(None)) => {}
        Some(Ok(Some(why))) => found.push(Finding::Note(exec(why))),
        Some(Err(why)) => found.push(Finding::Wrong(exec(why))),
    }
    found
}

/// Says that no unit `memcg-monitor-watch@NAME` stands for a rule's file: `%i` has no other letters.
fn wrong_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.as_encoded_bytes().strip_suffix(b".conf")?;
    if name.iter().copied().all(is_in_unit_name) {
        return None;
    }
    let name = String::from_utf8_lossy(name);
    let is_good = |letter: char| u8::try_from(letter).is_ok_and(is_in_unit_name);
    let better: String = name.chars().map(|letter| if is_good(letter) { letter } else { '-' }).collect();
    Some(format!(
        "no unit memcg-monitor-watch@NAME runs it: NAME has ASCII letters, digits and :-_.\\@ alone; rename it, \
         as {better}.conf"
    ))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{check, findings, report, rules, wrong_name};
    use crate::cli::Output;

    /// Checks a path, and returns whether nothing is wrong, and the output in JSON.
    fn in_json(path: &Path) -> (bool, Vec<serde_json::Value>) {
        let mut out = Vec::new();
        let is_good = report(path, Output::Json, &mut out).expect("readable");
        let lines = out.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        (is_good, lines.map(|line| serde_json::from_slice(line).expect("JSON")).collect())
    }

    #[test]
    fn all_rules_of_a_directory_and_one_by_its_name_are_checked() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        let write = |name: &str, text: &str| fs::write(path.join(name), text).expect("a file");
        write("a.conf", "pattern = /a\nspec = oom\n");
        write("b.conf", "pattern = /a/***\nspec = sometimes\n");
        write("c.conf.old", "nothing");
        let found = rules(path).expect("a directory");
        assert_eq!((found.files.len(), found.others), (2, 1));
        let wrong: Vec<_> = findings(&path.join("b.conf")).iter().map(ToString::to_string).collect();
        let at = |line| format!("{}:{line}: ", path.join("b.conf").display());
        assert!(
            wrong.len() == 2 && wrong[0].starts_with(&at(1)) && wrong[1].starts_with(&at(2)),
            "{wrong:?}"
        );
        let is_good = |path: &Path| check(path, Output::Text).expect("readable");
        assert!(!is_good(path) && is_good(&path.join("a.conf")) && !is_good(&path.join("b.conf")));
        let error = check(&path.join("none"), Output::Text).expect_err("not there").to_string();
        assert!(error.contains("ENOENT") && error.contains("make the directory"), "{error}");
    }

    #[test]
    fn a_program_is_told_what_cannot_be_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        let (is_good, lines) = in_json(&path.join("none"));
        assert!(!is_good && lines.len() == 2, "{lines:?}");
        assert!(lines[0]["why"].as_str().is_some_and(|why| why.contains("ENOENT")), "{lines:?}");
        assert_eq!(lines[1], serde_json::json!({"type": "checked", "rules": 0, "wrong": 1}));
        std::os::unix::fs::symlink(path.join("none"), path.join("a.conf")).expect("a link");
        let (is_good, lines) = in_json(path);
        assert!(!is_good && lines[0]["type"] == "wrong" && lines[0].get("line").is_none(), "{lines:?}");
        assert_eq!(lines[1], serde_json::json!({"type": "checked", "rules": 1, "wrong": 1}));
    }

    #[test]
    fn a_note_is_told_and_is_no_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("a.conf");
        fs::write(&file, "spec = oom\npattern = /a /b\n").expect("a file");
        let text = findings(&file)[0].to_string();
        assert!(text.starts_with(&format!("{}:2: note: \"/a /b\" is one", file.display())), "{text}");
        let (is_good, lines) = in_json(&file);
        assert!(is_good && lines.len() == 2, "{lines:?}");
        assert_eq!((&lines[0]["type"], &lines[0]["line"]), (&"note".into(), &2.into()));
        assert_eq!(lines[1], serde_json::json!({"type": "checked", "rules": 1, "wrong": 0}));
    }

    #[test]
    fn a_name_that_no_unit_has_is_wrong() {
        for name in ["a.conf", "a-b_c:d@1.x\\20.conf", "my rule.txt", "/dev/fd/63"] {
            assert_eq!(wrong_name(name.as_ref()), None, "{name}");
        }
        for (name, better) in [("/x y/my rule.conf", "as my-rule.conf"), ("caf\u{e9}.conf", "as caf-.conf")] {
            let why = wrong_name(name.as_ref()).expect(name);
            assert!(why.ends_with(better), "{why}");
        }
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("my rule.conf");
        fs::write(&file, "pattern = /a\nspec = oom\n").expect("a file");
        let (is_good, lines) = in_json(&file);
        assert!(!is_good && lines[0]["type"] == "wrong" && lines[0].get("line").is_none(), "{lines:?}");
    }

    #[test]
    fn a_command_is_looked_at_with_the_line_of_its_key() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("a.conf");
        let found = |exec: &str| {
            fs::write(&file, format!("pattern = /a\nspec = oom\nexec = {exec}\n")).expect("a file");
            findings(&file).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let at = |what: &str| format!("{}:3: {what}", file.display());
        assert!(found("/nonexistent/a").starts_with(&at("exec: /nonexistent/a is not there")));
        assert!(found("echo \"a").starts_with(&at("exec: the shell cannot read it")));
        assert!(found("nosuchprogram").starts_with(&at("note: exec: nosuchprogram is in no")));
        assert_eq!(found("echo \"$MEMCG_CGROUP\""), "");
    }
}
