//! The command of a rule, looked at without running it: the shell reads its text, and finds the program that
//! it begins with.

use std::{
    fs,
    io::{self, Write as _},
    process::{Command, Stdio},
};

use monitor_client::named;
use nix::{
    errno::Errno,
    unistd::{AccessFlags, access},
};

/// The shell that runs the commands of rules.
const SHELL: &str = "/bin/sh";

/// Looks at a command. Returns a note where this host may lack the program that it begins with.
///
/// # Errors
/// The shell cannot read the command, or its program is not there: what is wrong, and what to do.
pub fn check(command: &str) -> Result<Option<String>, String> {
    read_by_shell(command)?;
    match program(command) {
        Some(path) if path.starts_with('/') => missing(&path).map_or(Ok(None), Err),
        Some(name) if !name.contains('/') => Ok(unknown(&name)),
        // Below a directory that the rule's unit chooses, or nothing that is known before it runs.
        _ => Ok(None),
    }
}

/// Has the shell read a command and run nothing of it (`-n`).
fn read_by_shell(command: &str) -> Result<(), String> {
    let failed = |error: io::Error| format!("{SHELL} cannot be run: {}", named(&error));
    // As a script on its standard input, which -n is for.
    let mut shell = Command::new(SHELL)
        .arg("-n")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = shell.stdin.take() {
        // After an error the shell reads no more, which is no failure here.
        let _ = input.write_all(command.as_bytes());
    }
    let output = shell.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("the shell cannot read it: {}", said.lines().next().unwrap_or("it does not say why")))
}

/// The program that a command begins with, behind settings of variables and `exec`; `None` where only the
/// shell knows.
fn program(command: &str) -> Option<String> {
    let mut rest = command;
    loop {
        let (word, after) = plain_word(rest)?;
        let setting = word.split_once('=').map(|(name, _)| name);
        match setting {
            None if word == "exec" => {}
            // `name () ...` makes a function.
            None => return (!after.trim_start().starts_with('(')).then_some(word),
            // PATH decides where programs are looked for.
            Some(name) if is_variable(name) && name != "PATH" && rest.trim_start().starts_with(name) => {}
            Some(_) => return None,
        }
        rest = after;
    }
}

/// Whether a variable of the shell may have this name.
fn is_variable(name: &str) -> bool {
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    name.chars().all(is_letter) && name.starts_with(|first: char| !first.is_ascii_digit())
}

/// The first word of a text and what follows it, where the shell takes the word as it is, but for quotes.
fn plain_word(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start();
    let (mut word, mut quote) = (String::new(), None);
    let mut end = text.len();
    for (at, letter) in text.char_indices() {
        match quote {
            Some(mark) if letter == mark => quote = None,
            None if matches!(letter, '"' | '\'') => quote = Some(letter),
            None if letter.is_whitespace() || ";&|".contains(letter) => {
                end = at;
                break;
            }
            _ if letter.is_alphanumeric() || "/._-+@:=,%".contains(letter) => word.push(letter),
            Some(_) if letter == ' ' => word.push(letter),
            _ => return None,
        }
    }
    let is_word = quote.is_none() && !word.is_empty() && !word.starts_with('-');
    is_word.then(|| (word, &text[end..]))
}

/// Says why the program at a path cannot be run.
fn missing(program: &str) -> Option<String> {
    let is_directory = || fs::metadata(program).is_ok_and(|found| found.is_dir());
    let why = match access(program, AccessFlags::X_OK) {
        Ok(()) if is_directory() => "is a directory; name a program in it".to_owned(),
        Ok(()) => return None,
        Err(Errno::ENOENT) => "is not there; install it, or write its path".to_owned(),
        Err(errno) => format!("cannot be run: {errno}; see its mode (chmod +x)"),
    };
    Some(format!("{program} {why}"))
}

/// Says that the shell knows no program, builtin or keyword of a name. The rule's unit may have another PATH
/// than whoever checks it.
fn unknown(name: &str) -> Option<String> {
    let mut shell = Command::new(SHELL);
    shell.args(["-c", "command -v \"$1\"", SHELL, name]);
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let is_found = shell.status().map_or(true, |status| status.success());
    (!is_found)
        .then(|| format!("{name} is in no directory of PATH here; install it, or write its whole path"))
}

#[cfg(test)]
mod tests {
    use super::{check, program};

    #[test]
    fn a_program_that_is_not_there_is_named() {
        for good in [
            "/bin/sh -c x",
            "sh -c x",
            "test -x /nonexistent",
            "/nonexistent/$A",
            "if /nonexistent; then :; fi",
            "A=1 exec /bin/sh",
            "PATH=/nonexistent nosuchprogram",
            "nosuchprogram () { :; }; nosuchprogram",
            "./nosuchprogram",
            "{ nosuchprogram; }",
            ": $(nosuchprogram)",
        ] {
            assert_eq!(check(good), Ok(None), "{good}");
        }
        for path in [
            "/nonexistent/a \"$B\"",
            "\"/nonexistent/a\" x",
            "'/nonexistent/a'",
            "A=1 B=\"x y\" /nonexistent/a",
            "exec /nonexistent/a",
            "/nonexistent/a; true",
        ] {
            assert_eq!(
                check(path),
                Err("/nonexistent/a is not there; install it, or write its path".into()),
                "{path}"
            );
        }
        assert!(check("/tmp x").is_err_and(|why| why.contains("a directory")));
    }

    #[test]
    fn a_name_that_is_in_no_path_is_noted() {
        for name in ["nosuchprogram x", "A=1 nosuchprogram", "exec nosuchprogram", "nosuchprogram|cat"] {
            let note = check(name).expect("no error: another PATH may have it");
            assert!(note.is_some_and(|note| note.starts_with("nosuchprogram is in no")), "{name}");
        }
    }

    #[test]
    fn what_the_shell_cannot_read_is_told_and_nothing_is_run() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("made");
        let touch = format!("touch {}", file.display());
        for wrong in ["echo \"a", "if true; then echo", "echo $(", "a ) b"] {
            let why = check(&format!("{touch}; {wrong}")).expect_err(wrong);
            assert!(why.starts_with("the shell cannot read it: "), "{wrong}: {why}");
        }
        for right in [touch.clone(), format!("{touch}; set +n; {touch}"), format!(": $({touch})")] {
            assert_eq!(check(&right), Ok(None), "{right}");
        }
        assert!(!file.exists(), "a command was run");
    }

    #[test]
    fn a_program_is_a_plain_word() {
        for (command, expected) in [
            ("a b", Some("a")),
            ("  /x/a\tb", Some("/x/a")),
            ("A= B='' exec exec a", Some("a")),
            ("\"/x y/a\" b", Some("/x y/a")),
            ("a&&b", Some("a")),
            ("exec", None),
            ("exec >log", None),
            ("exec -a b c", None),
            ("A=1", None),
            ("A=$B c", None),
            ("/x/a=b /nonexistent", None),
            ("\"A=1\" /nonexistent", None),
            ("1A=1 /nonexistent", None),
            ("\"a", None),
            ("\\a", None),
            ("~/a", None),
            ("a>b", None),
            ("2>b a", None),
            ("(a)", None),
            ("# a", None),
            ("", None),
        ] {
            assert_eq!(program(command).as_deref(), expected, "{command}");
        }
    }
}
