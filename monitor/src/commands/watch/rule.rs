//! Rules that last: a file for each, `NAME.conf` in a directory, with what a `watch` would be started with.
//!
//! A line is a comment (`#`), empty, or `KEY = VALUE`; the value is the rest of the line, so it has neither
//! quotes nor a comment. The keys are `pattern`, `unit`, `spec` (each may be repeated), `exec`, `exec-timeout`,
//! `signal` and `to`.

use std::{
    fmt,
    fs::{self, File, Metadata},
    io::{self, Read as _},
    path::Path,
    time::Duration,
};

use memcg_monitor::{cgroup::workload::unit_pattern, kernel::page_size};
use monitor_client::{
    named,
    wire::{AdminRequest, MAX_REQUEST, WatchRequest},
};
use monitor_common::grammar::watch;
use nix::sys::signal::Signal;
use serde::Serialize;

use crate::{
    cli::{Recipients, Watch, signal, some_seconds},
    commands::watch::request::{self, explained},
};

/// Longest file of a rule, in bytes.
const LONGEST: u64 = 1 << 16;

/// The groups to watch, what to tell of them, and what to do then.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub request: WatchRequest,
    pub exec: Option<String>,
    pub exec_timeout: Option<Duration>,
    pub signal: Option<Signal>,
    pub to: Option<Recipients>,
}

/// Something that is wrong with a rule, or with the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wrong {
    /// The rule's file; none for the command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line, from 1 on; none where the file cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The reason, and what to write instead.
    pub why: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{file}:{line}: {}", self.why),
            (Some(file), None) => write!(f, "{file}: {}", self.why),
            (None, _) => f.write_str(&self.why),
        }
    }
}

impl Rule {
    /// The rule that the options are, or name.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn of(options: &Watch) -> Result<Self, Vec<Wrong>> {
        if let Some(path) = &options.rule {
            return Self::read(path).map(|(rule, _)| rule);
        }
        let (patterns, specs) = options.words.iter().cloned().partition(|word| word.starts_with('/'));
        let units = options.units.iter().map(|unit| unit_pattern(unit)).collect();
        let request = WatchRequest { patterns, units, specs, again: false };
        let mut wrong = request::errors(&request);
        wrong.extend(too_long(&request));
        if !wrong.is_empty() {
            return Err(wrong.into_iter().map(|why| Wrong { file: None, line: None, why }).collect());
        }
        Ok(Self {
            request,
            exec: options.exec.clone(),
            exec_timeout: Some(options.exec_timeout),
            signal: options.signal,
            to: options.to,
        })
    }

    /// Reads a rule from its file; also returns the line of each of its keys.
    ///
    /// # Errors
    /// All that is wrong with it, each with its line.
    pub fn read(path: &Path) -> Result<(Self, KeyLines), Vec<Wrong>> {
        let wrong = |line, why| Wrong { file: Some(path.display().to_string()), line, why };
        let text = text_of(path).map_err(|(line, why)| vec![wrong(line, why)])?;
        Self::parse(&text).map_err(|all| all.into_iter().map(|(line, why)| wrong(Some(line), why)).collect())
    }

    fn parse(text: &str) -> Result<(Self, KeyLines), Vec<(usize, String)>> {
        let (mut rule, mut lines, mut wrong) = (Self::default(), KeyLines::default(), Vec::new());
        let mut last = 1;
        // Of what was meant as one, too.
        let (mut patterns, mut specs) = (0, 0);
        for (line, text) in (1..).zip(text.lines()) {
            last = line;
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let key = text.split(['=', ' ', '\t']).next().unwrap_or_default();
            patterns += usize::from(matches!(key, "pattern" | "unit"));
            specs += usize::from(key == "spec");
            if let Err(why) = rule.set(&mut lines, line, text) {
                wrong.push((line, why));
            }
        }
        let missing = watch::check_counts(patterns, specs).into_iter().flatten();
        wrong.extend(missing.map(|error| {
            let how = match error {
                watch::WatchError::NoGroups => " (pattern = /..., or unit = ...)",
                watch::WatchError::NoSpecs => " (spec = ...)",
                _ => "",
            };
            (last, explained(&error) + how)
        }));
        match (lines.signal, lines.to) {
            (Some(line), None) => {
                wrong.push((line, "signal without to; add to = main, all, or a process".into()));
            }
            (None, Some(line)) => {
                wrong.push((line, "to without signal; add signal = USR1, or another".into()));
            }
            _ => {}
        }
        if let (None, Some(line)) = (lines.exec, lines.exec_timeout) {
            wrong.push((line, "exec-timeout without exec; add exec = COMMAND".into()));
        }
        wrong.extend(too_long(&rule.request).map(|why| (last, why)));
        wrong.sort();
        if wrong.is_empty() { Ok((rule, lines)) } else { Err(wrong) }
    }

    fn set(&mut self, lines: &mut KeyLines, at: usize, line: &str) -> Result<(), String> {
        const KEYS: &str = "pattern, unit, spec, exec, exec-timeout, signal or to";
        let Some((key, value)) = line.split_once('=') else {
            return Err(format!("{line:?} is no setting; write KEY = VALUE, with the key {KEYS}"));
        };
        let (key, value) = (key.trim(), value.trim());
        if value.is_empty() {
            return Err(format!("{key} has no value; write it behind the =, or remove the line"));
        }
        let request = &mut self.request;
        let instead = |why: String| habit(key, value).unwrap_or(why);
        match key {
            "pattern" => {
                request.patterns.push(value.to_owned());
                watch::check_path(value).map_err(|error| instead(explained(&error)))?;
                lines.notes.extend(doubt(key, value).map(|why| (at, why)));
                Ok(())
            }
            "spec" if value.starts_with('/') => {
                Err(format!("{value:?} is a pattern; write pattern = {value}"))
            }
            "spec" => {
                request.specs.push(value.to_owned());
                watch::spec(value, page_size()).map(drop).map_err(|error| instead(explained(&error)))
            }
            "unit" => {
                request.units.push(unit_pattern(value));
                watch::check_unit(value).map_err(|error| instead(explained(&error)))?;
                lines.notes.extend(doubt(key, value).map(|why| (at, why)));
                Ok(())
            }
            "exec" => once(&mut self.exec, &mut lines.exec, (key, at), Ok(value.to_owned())),
            "exec-timeout" => {
                let parsed = some_seconds(value).map_err(instead);
                once(&mut self.exec_timeout, &mut lines.exec_timeout, (key, at), parsed)
            }
            "signal" => {
                let parsed =
                    signal(value).map_err(|why| instead(format!("{value:?} is no signal; write {why}")));
                once(&mut self.signal, &mut lines.signal, (key, at), parsed)
            }
            "to" => {
                let parsed = value
                    .parse()
                    .map_err(|why| instead(format!("{value:?} is nobody to signal; write {why}")));
                once(&mut self.to, &mut lines.to, (key, at), parsed)
            }
            _ => Err(format!("{key:?} is no key; write {KEYS}")),
        }
    }
}

/// The lines of the keys that a rule has once, and those that may not mean what they say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct KeyLines {
    pub exec: Option<usize>,
    exec_timeout: Option<usize>,
    signal: Option<usize>,
    to: Option<usize>,
    /// Lines that are right but may be mistakes, each with the reason.
    pub notes: Vec<(usize, String)>,
}

/// The mistake in a value that is written as in other files: with a comment behind it, or in quotes.
fn habit(key: &str, value: &str) -> Option<String> {
    let is_comment = |at: usize| at == 0 || value[..at].ends_with([' ', '\t']);
    if let Some((at, _)) = value.match_indices('#').find(|(at, _)| is_comment(*at)) {
        let instead = match value[..at].trim_end() {
            "" => String::new(),
            before => format!("; write {key} = {before}"),
        };
        return Some(format!("{value:?}: a comment is a line of its own, which begins with #{instead}"));
    }
    let bare = ['"', '\''].into_iter().find_map(|mark| value.strip_prefix(mark)?.strip_suffix(mark))?;
    Some(format!("{value:?}: a value has no quotes; write {key} = {bare}"))
}

/// The doubt in a pattern that is one, but hardly the one that was meant.
fn doubt(key: &str, value: &str) -> Option<String> {
    let has_blank = value.contains([' ', '\t']);
    habit(key, value).or_else(|| {
        has_blank.then(|| {
            format!("{value:?} is one pattern with a blank in it; another has a line {key} = ... of its own")
        })
    })
}

/// Sets what a rule has once, and notes its line.
fn once<T>(
    place: &mut Option<T>,
    line: &mut Option<usize>,
    (key, at): (&str, usize),
    value: Result<T, String>,
) -> Result<(), String> {
    if let Some(first) = line {
        return Err(format!("{key} stands twice, first in line {first}; remove one of them"));
    }
    *line = Some(at);
    *place = Some(value.map_err(|why| format!("{key}: {why}"))?);
    Ok(())
}

/// Says that a request is longer than an agent reads.
fn too_long(request: &WatchRequest) -> Option<String> {
    let bytes = serde_json::to_vec(&AdminRequest::Watch(request.clone())).map_or(0, |text| text.len());
    (bytes > MAX_REQUEST).then(|| {
        format!("patterns and specifications of {bytes} bytes; {MAX_REQUEST} at most, so divide them among watches")
    })
}

/// The text of a rule; else the line, where it is known, and the reason.
fn text_of(path: &Path) -> Result<String, (Option<usize>, String)> {
    let failed = |error: &io::Error| {
        let advice = if error.kind() == io::ErrorKind::NotFound { "; name a rule, NAME.conf" } else { "" };
        (None, format!("cannot read it: {}{advice}", named(error)))
    };
    // A pipe that nobody writes to never ends; one of the shell's, `<(...)`, does.
    let is_of_process = path.starts_with("/dev") || path.starts_with("/proc");
    let is_other = |found: &Metadata| !found.is_file() && !found.is_dir();
    if !is_of_process && fs::metadata(path).is_ok_and(|found| is_other(&found)) {
        return Err((None, "neither a file nor a link to one; a rule is a file of text".into()));
    }
    let file = File::open(path).map_err(|error| failed(&error))?;
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    if bytes.len() as u64 > LONGEST {
        return Err((None, format!("longer than {LONGEST} bytes, which no rule is")));
    }
    let wrong = |good: &[u8], what: &str| {
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        (Some(line), format!("{what}; write the line anew"))
    };
    if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
        return Err(wrong(&bytes[..at], "a NUL byte"));
    }
    String::from_utf8(bytes).map_err(|error| {
        wrong(&error.as_bytes()[..error.utf8_error().valid_up_to()], "a byte that is not UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use clap::Parser as _;
    use monitor_client::wire::WatchRequest;
    use nix::sys::signal::Signal;

    use super::Rule;
    use crate::cli::{Cli, Command, Recipients};

    #[test]
    fn a_rule_is_what_the_command_line_would_be() {
        let rule = Rule::parse(
            "# a heap dump\n\npattern = /a/*\npattern=/b/**\nunit = app-*.service\nspec = 90%,up\n\
             exec = test \"$A\" = 1 # all of it\nexec-timeout = 2.5\nsignal = HUP\nto = all\n",
        );
        let expected = Rule {
            request: WatchRequest {
                patterns: ["/a/*", "/b/**"].map(str::to_owned).into(),
                units: vec!["app-*.service".into()],
                specs: vec!["90%,up".into()],
                again: false,
            },
            exec: Some("test \"$A\" = 1 # all of it".into()),
            exec_timeout: Some(Duration::from_millis(2500)),
            signal: Some(Signal::SIGHUP),
            to: Some(Recipients::All),
        };
        assert_eq!(rule.expect("a rule").0, expected);
    }

    #[test]
    fn all_that_is_wrong_is_named_with_its_line_and_a_remedy() {
        for (text, expected) in [
            ("pattern = /a\nspec = often", &[(2, "\"often\"")][..]),
            ("pattern = /a\nspec = 16MB\nspec", &[(2, "write 16M"), (3, "write KEY = VALUE")]),
            ("pattern = a\nspec = oom", &[(1, "begins with /")]),
            ("pattern = /a\nspec = oom\nexec = x\nexec = y", &[(4, "first in line 3")]),
            ("pattern = /a\nspec = oom\nsignal = NONE\nto = me", &[(3, "SIGUSR1"), (4, "main, all")]),
            ("pattern = /a\nspec = oom\nsignal = HUP", &[(3, "add to = main")]),
            ("pattern = /a\nspec = oom\nto = main\n", &[(3, "add signal")]),
            ("pattern = /a\nspec = oom\nexec-timeout = 3", &[(3, "add exec = COMMAND")]),
            ("pattern = /a\nspec = oom\nexec = x\nexec-timeout = soon", &[(4, "exec-timeout: ")]),
            ("pattern = /a\nspec = oom\nexec = x\nexec-timeout = 1e19", &[(4, "(ten years)")]),
            ("pattern = /a\nspec = oom\nexec = x\nexec-timeout = 0", &[(4, "seconds above 0")]),
            ("pattern = /a\nspec = oom\ncolour = red", &[(3, "\"colour\" is no key")]),
            ("pattern = /a/***\nunit = [\nspec = oom", &[(1, "/a/***"), (2, "no pattern of units")]),
            ("spec = /a", &[(1, "write pattern = /a"), (1, "name groups")]),
            ("\n# nothing\n", &[(2, "name groups"), (2, "say what to tell")]),
            ("", &[(1, "name groups"), (1, "say what to tell")]),
        ] {
            let wrong = Rule::parse(text).expect_err(text);
            assert_eq!(wrong.len(), expected.len(), "{text}: {wrong:?}");
            for ((line, why), (expected, part)) in wrong.iter().zip(expected) {
                assert!(line == expected && why.contains(part), "{text}: {wrong:?}");
            }
        }
        let many = "spec = 1M\n".repeat(17) + "pattern = /a";
        assert!(Rule::parse(&many).expect_err("too many")[0].1.contains("17 specifications"));
        let long = format!("pattern = /{}\n", "a".repeat(1000)).repeat(5) + "spec = oom";
        assert!(Rule::parse(&long).expect_err("too long")[0].1.contains("4096 at most"));
    }

    #[test]
    fn a_pipe_and_a_byte_that_no_program_takes_are_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let (pipe, file) = (directory.path().join("a.conf"), directory.path().join("b.conf"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let why = |path| Rule::read(path).expect_err("no rule")[0].to_string();
        assert!(why(&pipe).contains("neither a file nor a link"), "{}", why(&pipe));
        fs::write(&file, "pattern = /a\nspec = oom\nexec = echo \0x\n").expect("a file");
        assert!(why(&file).contains("b.conf:3: a NUL byte"), "{}", why(&file));
    }

    #[test]
    fn a_unit_without_an_ending_is_a_service() {
        let rule = Rule::parse("unit = nginx\nunit = app-*\nspec = oom").expect("a rule").0;
        assert_eq!(rule.request.units, ["nginx.service", "app-*"]);
        let words = ["memcg-monitor", "watch", "--unit", "nginx", "--unit", "a.slice", "oom"];
        let Command::Watch(options) = Cli::try_parse_from(words).expect("options").command else {
            panic!("another command")
        };
        assert_eq!(Rule::of(&options).expect("a rule").request.units, ["nginx.service", "a.slice"]);
    }

    #[test]
    fn values_as_other_files_have_them_are_named() {
        for (line, part) in [
            (
                "spec = oom # comment",
                "\"oom # comment\": a comment is a line of its own, which begins with #; write spec = oom",
            ),
            ("spec = # none", "a comment is a line of its own"),
            ("spec = 'memory.anon_bytes 1G'", "a value has no quotes; write spec = memory.anon_bytes 1G"),
            ("spec = oom removed", "(in a rule, a line for each): oom, removed"),
            ("pattern = \"/a/*\"", "a value has no quotes; write pattern = /a/*"),
            ("signal = USR1 # collect", "write signal = USR1"),
            ("to = \"main\"", "write to = main"),
            ("exec-timeout = 30 # s", "write exec-timeout = 30"),
        ] {
            let wrong = Rule::parse(line).expect_err(line);
            assert!(wrong.iter().any(|(_, why)| why.contains(part)), "{line}: {wrong:?}");
        }
        let wrong = Rule::parse("colour = red # blue").expect_err("no key");
        assert!(wrong.iter().any(|(_, why)| why.contains("\"colour\" is no key")), "{wrong:?}");
    }

    #[test]
    fn a_pattern_that_looks_like_more_than_one_is_noted() {
        let notes = |line: &str| Rule::parse(&format!("{line}\nspec = oom\n")).expect(line).1.notes;
        for line in ["pattern = /a /b", "unit = a.service b.service"] {
            let notes = notes(line);
            assert!(notes.len() == 1 && notes[0].0 == 1 && notes[0].1.contains("one pattern"), "{notes:?}");
        }
        assert!(notes("pattern = /a # all of it")[0].1.contains("a comment is a line of its own"));
        assert!(notes("unit = \"a.service\"")[0].1.contains("no quotes"));
        assert_eq!(notes("pattern = /a#1\nunit = app-*.service"), []);
    }

    #[test]
    fn a_file_that_is_no_text_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("a.conf");
        let why = |file| Rule::read(file).expect_err("no rule")[0].to_string();
        assert!(
            why(&file).ends_with(
                "a.conf: cannot read it: ENOENT: No such file or directory; name a rule, NAME.conf"
            )
        );
        fs::write(&file, b"# a\npattern = /\xff\n").expect("a file");
        assert!(why(&file).contains("a.conf:2: a byte that is not UTF-8"), "{}", why(&file));
        fs::write(&file, vec![b'#'; 1 << 17]).expect("a file");
        assert!(why(&file).contains("longer than"));
    }
}
