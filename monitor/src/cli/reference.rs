//! The page docs/reference/cli.md, which is written from the definitions of the command line.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Arg, CommandFactory as _, builder::Str};
use clap_markdown::{MarkdownOptions, help_markdown_custom};

use super::Cli;

/// The page of all options, as Markdown.
fn reference() -> String {
    let options = MarkdownOptions::new()
        .title("Options of each command".into())
        .show_footer(false)
        .show_table_of_contents(false);
    let page = help_markdown_custom::<Cli>(&options);
    // Only a command that is built knows how many values its arguments take.
    let mut program = Cli::command();
    program.build();
    program.get_subcommands().filter(|command| !command.is_hide_set()).fold(page, |page, command| {
        let (start, end) = section(&page, command.get_name());
        let ours =
            command.get_arguments().fold(page[start..end].to_owned(), |text, arg| as_in_help(&text, arg));
        format!("{}{ours}{}", &page[..start], &page[end..])
    })
}

/// Finds the beginning and the end of a command's section; of one that is not on the page, the page's end.
fn section(page: &str, command: &str) -> (usize, usize) {
    let heading = format!("\n## `memcg-monitor {command}`\n");
    let Some(start) = page.find(&heading) else { return (page.len(), page.len()) };
    let body = start + heading.len();
    (start, page[body..].find("\n## ").map_or(page.len(), |length| body + length))
}

/// Writes an argument as `--help` does, which hides some, and has brackets around what may be left out.
fn as_in_help(section: &str, arg: &Arg) -> String {
    let name = arg.get_value_names().and_then(<[_]>::first).map_or("", Str::as_str);
    match arg.get_long() {
        None if arg.is_positional() && arg.is_hide_set() => {
            let hidden = format!("* `<{name}>`");
            section.split_inclusive('\n').filter(|line| !line.starts_with(&hidden)).collect()
        }
        None if arg.is_positional() => section.replace(&format!("\n* `<{name}>`"), &format!("\n* `{arg}`")),
        Some(long) if arg.get_action().takes_values() => {
            section.replace(&format!("`--{long} <{name}>`"), &format!("`{arg}`"))
        }
        _ => section.to_owned(),
    }
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/cli.md")
}

#[test]
fn the_reference_has_the_brackets_of_help() {
    let page = reference();
    for argument in [
        "* `--black-box[=<GLOB>]` ",
        "* `--check-config [<DIRECTORY|FILE>]` ",
        "* `[PATTERN|SPEC]...` ",
        "* `[CONTROL_FILE]` ",
        "* `<EVENT>...` ",
        "* `<SHELL>` ",
        "* `-o`, `--output <OUTPUT>` ",
        "* `--unit <PATTERN>` ",
    ] {
        assert!(page.contains(argument), "{argument}");
    }
    assert!(!page.contains("<REST>"), "what --help hides");
}

#[test]
fn the_reference_shows_these_definitions() {
    let page = fs::read_to_string(page()).unwrap_or_default();
    assert!(
        page == reference(),
        "docs/reference/cli.md is stale; renew it: \
         cargo test -p memcg-monitor --bin memcg-monitor write_cli_reference -- --ignored"
    );
}

#[test]
#[ignore = "writes docs/reference/cli.md anew"]
fn write_cli_reference() {
    fs::write(page(), reference()).expect("the page");
}
