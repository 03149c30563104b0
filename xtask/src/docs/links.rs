//! Links of the documentation's pages: where each leads, and where it has to lead in the
//! site, whose directories are not the repository's.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Pages by their path in the repository, with `/` between the names.
pub(super) type Pages = BTreeMap<String, String>;

/// Names each link of `pages` that leads to no file, or to no heading of a page.
pub(super) fn faults(pages: &Pages, is_file: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut faults = Vec::new();
    for (page, text) in pages {
        for link in targets(text).into_iter().map(|range| &text[range]).filter(|link| is_ours(link)) {
            if let Some(fault) = fault(pages, is_file, page, link) {
                faults.push(format!("{page}: `{link}` {fault}"));
            }
        }
    }
    faults
}

/// Says what is wrong with one link of `page`, if anything is.
fn fault(pages: &Pages, is_file: &dyn Fn(&str) -> bool, page: &str, link: &str) -> Option<String> {
    let (path, anchor) = split(link);
    let Some(path) = resolve(page, path) else { return Some("leads out of the repository".to_owned()) };
    if !is_file(&path) {
        return Some(format!("leads to {path}, which is no file"));
    }
    match (pages.get(&path), anchor) {
        (Some(text), Some(anchor)) if !anchors(text).contains(anchor) => {
            Some(format!("names no heading of {path}"))
        }
        (None, Some(_)) => Some(format!("names a heading of {path}, which is no page")),
        _ => None,
    }
}

/// Files beside the pages to which the pages link.
pub(super) fn attachments(pages: &Pages) -> BTreeSet<String> {
    let links = pages.iter().flat_map(|(page, text)| {
        let ours = targets(text).into_iter().map(|range| &text[range]).filter(|link| is_ours(link));
        ours.filter_map(|link| resolve(page, split(link).0)).collect::<Vec<_>>()
    });
    links.filter(|path| !pages.contains_key(path)).collect()
}

/// The text of `page` with links as they are in the site.
pub(super) fn for_site(page: &str, text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    let mut from = 0;
    for range in targets(text) {
        let link = &text[range.clone()];
        let (path, anchor) = split(link);
        if path.is_empty() || !is_ours(link) {
            continue;
        }
        let Some(path) = resolve(page, path) else { continue };
        written += &text[from..range.start];
        written += &relative(&in_site(page), &in_site(&path));
        if let Some(anchor) = anchor {
            written += "#";
            written += anchor;
        }
        from = range.end;
    }
    written + &text[from..]
}

/// Returns the path that a file of the repository has in the site: `docs` is its top.
pub(super) fn in_site(path: &str) -> String {
    path.strip_prefix("docs/").unwrap_or(path).to_owned()
}

/// The ranges of all link targets of a page, except in code.
fn targets(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for (start, line) in prose(text) {
        let mut at = 0;
        while at < line.len() {
            let rest = &line[at..];
            let ticks = rest.len() - rest.trim_start_matches('`').len();
            if ticks > 0 {
                let fence = &rest[..ticks];
                at += ticks + rest[ticks..].find(fence).map_or(0, |end| end + ticks);
            } else if let Some(target) = rest.strip_prefix("](") {
                let length = target.find([')', ' ']).unwrap_or(target.len());
                at += 2;
                found.push(start + at..start + at + length);
                at += length;
            } else {
                at += rest.chars().next().map_or(1, char::len_utf8);
            }
        }
    }
    found
}

/// The anchors of a page's headings, as GitHub and mdBook make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, line) in prose(text) {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let anchor: String = title.trim().chars().filter_map(anchor_of).collect();
        let mut unique = anchor.clone();
        for number in 1.. {
            if found.insert(unique) {
                break;
            }
            unique = format!("{anchor}-{number}");
        }
    }
    found
}

fn anchor_of(letter: char) -> Option<char> {
    match letter {
        ' ' => Some('-'),
        '-' | '_' => Some(letter),
        _ if letter.is_alphanumeric() => letter.to_lowercase().next(),
        _ => None,
    }
}

/// The lines outside code blocks, each with its place in the text.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let (mut lines, mut at, mut is_code) = (Vec::new(), 0, false);
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            lines.push((at, line));
        }
        at += line.len();
    }
    lines
}

/// True if the link leads to something in the repository.
fn is_ours(link: &str) -> bool {
    !link.contains("://") && !link.starts_with("mailto:")
}

fn split(link: &str) -> (&str, Option<&str>) {
    match link.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (link, None),
    }
}

/// The repository's path for a link of `page`; none if that is not in the repository.
fn resolve(page: &str, link: &str) -> Option<String> {
    if link.is_empty() {
        return Some(page.to_owned());
    }
    let mut names: Vec<&str> = page.split('/').collect();
    names.pop();
    for name in link.split('/') {
        match name {
            ".." => drop(names.pop()?),
            "." | "" => {}
            _ => names.push(name),
        }
    }
    Some(names.join("/"))
}

/// A link from one file to another, both by their path from the top.
fn relative(from: &str, to: &str) -> String {
    let (from, to): (Vec<_>, Vec<_>) = (from.split('/').collect(), to.split('/').collect());
    let directories = &from[..from.len() - 1];
    let same = directories.iter().zip(&to[..to.len() - 1]).take_while(|(a, b)| a == b).count();
    let mut names = vec![".."; directories.len() - same];
    names.extend(&to[same..]);
    names.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(texts: &[(&str, &str)]) -> Pages {
        texts.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn each_kind_of_dead_link_is_found() {
        let pages = pages(&[
            ("README.md", "# A b\n[x](docs/a.md#c-d) ![y](docs/a.svg) [z](#a-b) [w](https://x.y/z)"),
            (
                "docs/a.md",
                "## C, `d`!\n[1](../README.md#none) [2](b.md) [3](../../out) [4](a.svg#c)\n\
                 `[5](not-a-link)`\n```\n[6](not-a-link)\n# not-a-heading\n```\n[7](#not-a-heading)\n",
            ),
        ]);
        let is_file = |path: &str| ["README.md", "docs/a.md", "docs/a.svg"].contains(&path);
        let faults = faults(&pages, &is_file);
        assert_eq!(faults.len(), 5, "{faults:#?}");
        assert!(faults.iter().all(|fault| fault.starts_with("docs/a.md")), "{faults:#?}");
        for (fault, link) in faults.iter().zip(["../README.md#none", "b.md", "../../out", "a.svg#c", "#not"])
        {
            assert!(fault.contains(link), "{fault}");
        }
    }

    #[test]
    fn headings_have_the_anchors_that_sites_give_them() {
        let anchors = anchors("# Limits, honestly\n## `--pins`, a\n## Twice\n## Twice\n#not\n");
        let wanted = ["limits-honestly", "--pins-a", "twice", "twice-1"].map(str::to_owned);
        assert_eq!(anchors, BTreeSet::from(wanted));
    }

    #[test]
    fn links_are_written_for_the_site() {
        for (page, link, wanted) in [
            ("docs/guide/a.md", "b.md", "b.md"),
            ("docs/guide/a.md", "../reference/b.md#c", "../reference/b.md#c"),
            ("docs/guide/a.md", "../../SPECIFICATION.md", "../SPECIFICATION.md"),
            ("docs/guide/a.md", "../../deploy/x.yaml", "../deploy/x.yaml"),
            ("docs/SUMMARY.md", "../README.md", "README.md"),
            ("README.md", "docs/guide/a.md", "guide/a.md"),
            ("README.md", "#here", "#here"),
            ("README.md", "https://x.y/docs/z", "https://x.y/docs/z"),
        ] {
            assert_eq!(for_site(page, &format!("[a]({link}).")), format!("[a]({wanted})."), "{page}");
        }
    }

    #[test]
    fn files_beside_the_pages_are_named_once() {
        let pages = pages(&[
            ("README.md", "[x](docs/a.md) [y](LICENSE-MIT)"),
            ("docs/a.md", "[z](../LICENSE-MIT) [v](https://x.y)"),
        ]);
        assert_eq!(attachments(&pages), BTreeSet::from(["LICENSE-MIT".to_owned()]));
    }
}
