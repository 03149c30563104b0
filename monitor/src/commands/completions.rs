//! The command `memcg-monitor completions`, which prints what a shell completes the command line
//! by.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate};

use crate::cli;

const NAME: &str = "memcg-monitor";

pub fn run(options: &cli::Completions) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    out.write_all(&completion(options.shell))?;
    // A last line without an end would be lost without a word.
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// The completion for a shell, of every command that is not hidden.
fn completion(shell: Shell) -> Vec<u8> {
    let all = cli::Cli::command();
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let mut command = Command::new(NAME).args(all.get_arguments().cloned()).subcommands(shown);
    let mut text = Vec::new();
    generate(shell, &mut command, NAME, &mut text);
    if shell == Shell::Bash {
        // clap_complete writes the program's name in two ways where it has a dash, so that its
        // script finds no command.
        let script = String::from_utf8_lossy(&text);
        return script.replace("memcg__subcmd__monitor", "memcg__monitor").into_bytes();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use clap::ValueEnum as _;

    use super::{Shell, completion};

    fn text(shell: Shell) -> String {
        String::from_utf8(completion(shell)).expect("text")
    }

    #[test]
    fn each_shell_completes_commands_and_options() {
        for shell in Shell::value_variants() {
            let text = text(*shell);
            for word in ["listen", "list", "timeout", "require"] {
                assert!(text.contains(word), "{word} for {shell}");
            }
            assert!(!text.contains("unmount"), "a hidden command for {shell}");
        }
    }

    /// The words that bash offers after these.
    fn offered(words: &[&str]) -> String {
        let script = format!(
            "{}\nCOMP_WORDS=({}); COMP_CWORD={}; _memcg__monitor memcg-monitor '{}' '{}'; echo \"${{COMPREPLY[@]}}\"",
            text(Shell::Bash),
            words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
            words.len() - 1,
            words[words.len() - 1],
            words[words.len() - 2],
        );
        let output = Command::new("bash").args(["--norc", "-c", &script]).output().expect("bash");
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    #[test]
    fn bash_completes_a_command_and_what_comes_after_it() {
        assert_eq!(offered(&["memcg-monitor", "li"]), "listen list");
        assert_eq!(offered(&["memcg-monitor", "listen", "--req"]), "--require");
        assert!(offered(&["memcg-monitor", "agent", "--backend", ""]).contains("sampled"));
    }
}
