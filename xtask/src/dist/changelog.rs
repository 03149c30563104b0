//! CHANGELOG.md's newest section, in the format of Debian's changelogs.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::Release;
use super::deb::MAINTAINER;
use crate::process;
use crate::workspace::root;

/// The width that Debian's policy has in mind.
const WIDTH: usize = 78;

/// Returns the changelog of the package, of one entry.
pub(super) fn debian(release: &Release) -> Result<String> {
    let text = fs::read_to_string(root().join("CHANGELOG.md")).context("cannot read CHANGELOG.md")?;
    let mut date = release.command("date");
    let date = process::output(date.args(["-u", "-R", "-d"]).arg(format!("@{}", release.epoch)))?;
    let points = newest(&text);
    ensure!(!points.is_empty(), "the first section of CHANGELOG.md has no points");
    let points: String = points.iter().map(|point| wrapped(point)).collect();
    let version = release.debian_version();
    Ok(format!(
        "memcg-monitor ({version}) unstable; urgency=medium\n\n{points}\n -- {MAINTAINER}  {}\n",
        date.trim()
    ))
}

/// The points of the first section, each in one line.
fn newest(text: &str) -> Vec<String> {
    let mut points: Vec<String> = Vec::new();
    let section = text.lines().skip_while(|line| !line.starts_with("## ")).skip(1);
    for line in section.take_while(|line| !line.starts_with("## ")) {
        if let Some(point) = line.strip_prefix("* ") {
            points.push(point.to_owned());
        } else if let (Some(rest), Some(point)) = (line.strip_prefix("  "), points.last_mut()) {
            *point += &format!(" {}", rest.trim());
        }
    }
    points.iter().map(|point| plain(point)).collect()
}

/// Leaves out Markdown's marks and the addresses of links.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("](") {
        let Some((_, behind)) = after.split_once(')') else { break };
        let (head, shown) = before.rsplit_once('[').unwrap_or((before, ""));
        plain += head;
        plain += shown;
        rest = behind;
    }
    plain += rest;
    plain.replace("**", "").replace('`', "")
}

fn wrapped(point: &str) -> String {
    let (mut text, mut line) = (String::new(), "  *".to_owned());
    for word in point.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            text += &line;
            text.push('\n');
            "   ".clone_into(&mut line);
        }
        line.push(' ');
        line += word;
    }
    text + &line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_section_alone_is_taken_without_marks() {
        let text = "# C\n\n## 2\n\nFirst.\n\n* a `b`\n  c ([d](e.md))\n* **f**\n\n## 1\n\n* g\n";
        assert_eq!(newest(text), ["a b c (d)", "f"]);
    }

    #[test]
    fn lines_are_as_long_as_debian_wants_them() {
        let text = wrapped(&"word ".repeat(40));
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert!(text.starts_with("  * word") && text.contains("\n    word"), "{text}");
    }
}
