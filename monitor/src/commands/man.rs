//! The command `memcg-monitor man`, which writes the man pages: one of the program, one of each
//! command, and one of the grammar.

use std::{fs, io, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_mangen::Man;

use crate::cli;

/// The page of the grammar, which no option shows.
const GRAMMAR: &str = include_str!("man/memcg-monitor.7");

/// Commands that only an administrator runs: section 8.
const ADMINISTRATION: [&str; 3] = ["agent", "check", "device-plugin"];

pub fn run(options: &cli::Man) -> Result<ExitCode> {
    let directory = &options.directory;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for (name, text) in pages().context("cannot format the man pages")? {
        let path = directory.join(&name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// File names and texts of all pages.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut program = cli::Cli::command().disable_help_subcommand(true);
    program.build();
    let mut pages = vec![("memcg-monitor.7".to_owned(), GRAMMAR.as_bytes().to_vec())];
    let shown =
        program.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help");
    for command in shown {
        let name = format!("memcg-monitor-{}", command.get_name());
        let section = section(command);
        let usage = format!("memcg-monitor {}", command.get_name());
        let command = command.clone().display_name(&name).bin_name(usage);
        pages.push((format!("{name}.{section}"), page(command, section)?));
    }
    let names = program.get_subcommands().map(|command| (command.get_name().to_owned(), section(command)));
    let names: Vec<_> = names.collect();
    let text = String::from_utf8_lossy(&page(program, "8")?).into_owned();
    // clap_mangen takes each command's page for one of the program's own section.
    let text = names.iter().fold(text, |text, (name, section)| {
        let name = name.replace('-', "\\-");
        text.replace(&format!("\\-{name}(8)"), &format!("\\-{name}({section})"))
    });
    pages.push(("memcg-monitor.8".to_owned(), text.into_bytes()));
    Ok(pages)
}

/// The manual's section with the page of a command.
fn section(command: &clap::Command) -> &'static str {
    if ADMINISTRATION.contains(&command.get_name()) { "8" } else { "1" }
}

/// The page of a command. It has no date: the same program writes the same bytes.
fn page(command: clap::Command, section: &str) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let version = format!("memcg-monitor {}", env!("CARGO_PKG_VERSION"));
    let page = Man::new(command).section(section).source(version).manual("memcg-monitor").date("");
    page.render(&mut text)?;
    text.extend_from_slice(
        b".SH \"SEE ALSO\"\n\\fBmemcg\\-monitor\\fR(7) has the grammar of registrations.\n",
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use monitor_common::grammar::control_file::ControlFile;

    use super::{GRAMMAR, pages};

    #[test]
    fn each_command_has_a_page_with_its_options() {
        let pages = pages().expect("they are written to memory");
        let text = |name: &str| {
            let (_, text) = pages.iter().find(|(page, _)| page == name).unwrap_or_else(|| panic!("{name}"));
            String::from_utf8(text.clone()).expect("text").replace("\\-", "-")
        };
        assert!(text("memcg-monitor-listen.1").contains("--timeout"));
        assert!(text("memcg-monitor-list.1").contains("memcg-monitor list"));
        assert!(text("memcg-monitor-agent.8").contains("--max-registrations"));
        assert!(text("memcg-monitor.8").contains("Exit codes"));
        for (name, _) in pages.iter().filter(|(name, _)| name.starts_with("memcg-monitor-")) {
            let (page, section) = name.rsplit_once('.').expect("a section");
            assert!(text("memcg-monitor.8").contains(&format!("{page}({section})")), "{name}");
        }
        assert!(!text("memcg-monitor.8").contains("-help("), "a page that is not there");
        assert!(!pages.iter().any(|(name, _)| name.contains("unmount")), "a hidden command has no page");
    }

    #[test]
    fn the_grammar_names_each_control_file() {
        for file in ControlFile::ALL {
            assert!(GRAMMAR.replace("\\-", "-").contains(file.name()), "{}", file.name());
        }
    }
}
