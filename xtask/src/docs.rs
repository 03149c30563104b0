//! `cargo xtask docs`: builds the documentation as a site, and checks every link in it.

mod links;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::links::Pages;
use crate::cargo_install;
use crate::process::{self, command};
use crate::setup::{self, Need};
use crate::summary::Outcome;
use crate::workspace::{root, short, target};

/// The generator's version: another one may lay the site out differently.
const VERSION: &str = "0.5.4";

/// Pages that lie in the repository's root, where hosts and readers look for them.
const ROOT_PAGES: [&str; 6] =
    ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "SPECIFICATION.md"];

/// The page that lists the others in the order of the site.
const SUMMARY: &str = "docs/SUMMARY.md";

/// The generator of the site.
#[derive(Debug)]
pub(crate) struct MdBook;

impl Need for MdBook {
    fn name(&self) -> &'static str {
        "mdbook"
    }

    fn find(&self) -> Result<String> {
        let path = cargo_install::found("mdbook", &["--version"], VERSION)?;
        Ok(format!("documentation generator {path}"))
    }

    fn fetch(&self) -> Result<()> {
        // It runs for a second: an optimized build takes minutes.
        let version = format!("={VERSION}");
        let options = ["--version", &version, "--debug", "--no-default-features", "--features", "search"];
        cargo_install::install("mdbook", &options, &[])
    }
}

/// Builds the site in `target/docs`; fails if a link is dead or a page is missing.
pub(crate) fn build() -> Result<Outcome> {
    let pages = pages()?;
    let faults = faults(&pages);
    if !faults.is_empty() {
        bail!("{} faults in the documentation:\n{}", faults.len(), faults.join("\n"));
    }
    setup::ensure(&[&MdBook])?;
    let source = stage(&pages)?;
    let site = site();
    process::run(
        command(cargo_install::program("mdbook")).arg("build").arg(&source).arg("--dest-dir").arg(&site),
    )?;
    Ok(Outcome::pass(format!("{} pages in {}", pages.len(), short(&site))))
}

/// The directory that the site is built in.
fn site() -> PathBuf {
    target().join("docs")
}

/// Names dead links, and pages that the summary does not list.
fn faults(pages: &Pages) -> Vec<String> {
    let mut faults = links::faults(pages, &|path| root().join(path).is_file());
    let summary = pages.get(SUMMARY).map_or("", String::as_str);
    let listed = links::for_site(SUMMARY, summary);
    for path in pages.keys().filter(|path| *path != SUMMARY) {
        if !listed.contains(&format!("]({})", links::in_site(path))) {
            faults.push(format!("{SUMMARY}: does not list {path}"));
        }
    }
    faults
}

/// All pages, those in the root and those below `docs`.
fn pages() -> Result<Pages> {
    let mut paths: Vec<_> = ROOT_PAGES.iter().map(|name| root().join(name)).collect();
    collect(&root().join("docs"), &mut paths)?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    let mut pages = Pages::new();
    for path in paths {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        pages.insert(short(&path), text);
    }
    Ok(pages)
}

/// Puts pages, drawings and linked files where the site has them, with links that hold there.
fn stage(pages: &Pages) -> Result<PathBuf> {
    let stage = target().join("docs-source");
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| format!("cannot remove {}", stage.display()))?;
    }
    let place = |path: &str| -> Result<PathBuf> {
        let to = stage.join(links::in_site(path));
        let parent = to.parent().unwrap_or(&stage);
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        Ok(to)
    };
    for (path, text) in pages {
        let to = place(path)?;
        fs::write(&to, links::for_site(path, text))
            .with_context(|| format!("cannot write {}", to.display()))?;
    }
    let mut files = links::attachments(pages);
    files.insert("docs/book.toml".to_owned());
    for path in &files {
        let to = place(path)?;
        fs::copy(root().join(path), &to)
            .with_context(|| format!("cannot copy {path} to {}", to.display()))?;
    }
    Ok(stage)
}

/// All files below a directory.
fn collect(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() { collect(&path, found)? } else { found.push(path) }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_link_leads_somewhere_and_each_page_is_listed() {
        let pages = pages().expect("pages");
        assert!(pages.len() > ROOT_PAGES.len(), "{} pages", pages.len());
        assert_eq!(faults(&pages), Vec::<String>::new());
    }

    #[test]
    fn each_function_that_a_page_names_by_its_file_is_there() {
        let mut named = 0;
        for (page, text) in pages().expect("pages") {
            for code in text.split('`').skip(1).step_by(2) {
                let Some((file, function)) = code.split_once(".rs:") else { continue };
                let source = fs::read_to_string(root().join(format!("{file}.rs")));
                let source = source.unwrap_or_else(|error| panic!("{page}: {code}: {error}"));
                assert!(source.contains(&format!("fn {function}")), "{page}: {code}: no such function");
                named += 1;
            }
        }
        assert!(named > 4, "{named} functions are named");
    }
}
