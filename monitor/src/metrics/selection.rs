//! The choice of groups shown: a bounded number of series, whatever is made on the host.

use std::{collections::HashSet, str::FromStr};

use monitor_common::grammar::pattern;

/// Longest path that is shown, in bytes. The kernel takes names of 255, at any depth.
const LONGEST: usize = 1024;

/// A shell pattern on a group's path below the root: `*` and `?` stay within one name,
/// `**` is any number of names. It is matched name by name: users choose the names, and `glob` tries
/// each `*` of a whole path anew for every `*` after it, up to the next slash.
#[derive(Clone, Debug)]
pub struct Pattern(Vec<NamePattern>);

/// A part of a pattern, between two slashes.
#[derive(Clone, Debug)]
enum NamePattern {
    /// Any number of names, or none: `**`. It is never the last part.
    Names,
    /// A pattern of one name.
    Name(glob::Pattern),
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        pattern::check_path(text).map_err(|error| error.to_string())?;
        let part = |text: &str| match text {
            "**" => Ok(NamePattern::Names),
            text => glob::Pattern::new(text).map(NamePattern::Name).map_err(|error| error.to_string()),
        };
        // A slash after `**` belongs to it.
        let text = text.strip_suffix('/').filter(|text| text.ends_with("/**")).unwrap_or(text);
        let mut parts = text.split('/').map(part).collect::<Result<Vec<_>, _>>()?;
        if matches!(parts.last(), Some(NamePattern::Names)) {
            // At the end it is one name or more.
            parts.push(part("*")?);
        }
        Ok(Self(parts))
    }
}

impl Pattern {
    /// Whether the path below the root, which begins with `/`, matches. The time is that of matching each
    /// name with each part at most: within a name, without slashes, `glob` moves no `*` but the latest.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let (mut at, mut names) = (0, path.split('/'));
        // The part after the latest `**`, and the names that this has not taken. An earlier one never has
        // to take more: the latest can have the same names.
        let mut latest = None;
        loop {
            let mut rest = names.clone();
            let Some(name) = rest.next() else { return at == self.0.len() };
            match self.0.get(at) {
                Some(NamePattern::Names) => {
                    at += 1;
                    latest = Some((at, names.clone()));
                }
                Some(NamePattern::Name(pattern)) if pattern.matches(name) => {
                    at += 1;
                    names = rest;
                }
                Some(NamePattern::Name(_)) | None => {
                    let Some((after, left)) = &mut latest else { return false };
                    left.next();
                    (at, names) = (*after, left.clone());
                }
            }
        }
    }

    /// Whether the paths that match may have any number of names.
    #[must_use]
    pub fn is_of_any_depth(&self) -> bool {
        self.0.iter().any(|part| matches!(part, NamePattern::Names))
    }

    /// Whether a path somewhere below this one, which begins with `/` and is not the root's, may match.
    #[must_use]
    pub fn may_match_below(&self, path: &str) -> bool {
        let mut names = path.split('/');
        for part in &self.0 {
            let NamePattern::Name(pattern) = part else { return true };
            match names.next() {
                None => return true,
                Some(name) if !pattern.matches(name) => return false,
                Some(_) => {}
            }
        }
        // All of it is used up here.
        false
    }
}

/// The operator's choice of groups.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Patterns of groups to show; an empty list shows all.
    pub allow: Vec<Pattern>,
    /// Patterns of groups to leave out.
    pub deny: Vec<Pattern>,
    /// The number of further groups shown, those with the highest usage.
    pub top: usize,
}

/// A group that could be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Slot of the group.
    pub slot: u32,
    /// Generation of the slot.
    pub generation: u64,
    /// `st_ino` of the group's directory.
    pub cgroup_id: u64,
    /// Bytes that are charged now.
    pub usage: u64,
}

/// A group that is shown, with its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The group that is shown.
    pub group: Candidate,
    /// Path of the group below the root.
    pub id: String,
}

/// Counts of the groups not shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Left out by the patterns.
    pub pattern: u64,
    /// Left out for lower usage than the top ones.
    pub top: u64,
    /// Left out for a path that is too long, or reads as another group's where bytes that are
    /// not UTF-8 were replaced.
    pub name: u64,
}

impl Selection {
    /// Whether the patterns let a group with this path be shown.
    pub fn allows(&self, path: &str) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(path));
        (self.allow.is_empty() || any(&self.allow)) && !any(&self.deny)
    }

    /// Chooses among `groups`; `path_of` returns a group's path, `None` once it is removed. With
    /// patterns every path is looked up, else only those of groups that are shown.
    pub fn choose(
        &self,
        mut groups: Vec<Candidate>,
        path_of: impl Fn(u64) -> Option<String>,
    ) -> (Vec<Chosen>, LeftOut) {
        groups.sort_by_key(|group| (std::cmp::Reverse(group.usage), group.cgroup_id));
        let (mut chosen, mut left_out) = (Vec::new(), LeftOut::default());
        let mut names = HashSet::new();
        let any_pattern = !(self.allow.is_empty() && self.deny.is_empty());
        for (at, group) in groups.iter().enumerate() {
            if chosen.len() >= self.top && !any_pattern {
                left_out.top += (groups.len() - at) as u64;
                break;
            }
            let Some(id) = path_of(group.cgroup_id) else { continue };
            if !self.allows(&id) {
                left_out.pattern += 1;
            } else if chosen.len() >= self.top {
                left_out.top += 1;
            } else if id.len() > LONGEST || !names.insert(id.clone()) {
                left_out.name += 1;
            } else {
                chosen.push(Chosen { group: *group, id });
            }
        }
        chosen.sort_by(|a, b| a.id.cmp(&b.id));
        (chosen, left_out)
    }
}

#[cfg(test)]
mod tests {
    use glob::MatchOptions;
    use proptest::prelude::*;

    use super::{Candidate, LONGEST, LeftOut, Pattern, Selection};

    fn selection(allow: &[&str], deny: &[&str], top: usize) -> Selection {
        let patterns = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a pattern")).collect();
        Selection { allow: patterns(allow), deny: patterns(deny), top }
    }

    fn choose(selection: &Selection, paths: &[&str]) -> (Vec<String>, LeftOut) {
        // The first has the highest usage.
        let groups = (0..paths.len() as u32).map(|slot| Candidate {
            slot,
            generation: 0,
            cgroup_id: slot.into(),
            usage: 1000 - u64::from(slot),
        });
        let (chosen, left_out) =
            selection.choose(groups.collect(), |id| Some(paths[usize::try_from(id).ok()?].to_owned()));
        (chosen.into_iter().map(|chosen| chosen.id).collect(), left_out)
    }

    #[test]
    fn patterns_stay_within_a_name_but_for_two_stars() {
        let paths = ["/", "/a", "/a/b", "/a/b/c", "/b", "/.hidden"];
        let shown = |allow: &[&str], deny: &[&str]| choose(&selection(allow, deny, 10), &paths).0;
        assert_eq!(shown(&[], &[]).len(), 6);
        assert_eq!(shown(&["/*"], &[]), ["/", "/.hidden", "/a", "/b"]);
        assert_eq!(shown(&["/a/**"], &[]), ["/a/b", "/a/b/c"]);
        assert_eq!(shown(&["/a", "/a/*"], &[]), ["/a", "/a/b"]);
        assert_eq!(shown(&[], &["/a/**", "/.*"]), ["/", "/a", "/b"]);
        assert_eq!(shown(&["/[ab]"], &["/b"]), ["/a"]);
        assert_eq!(choose(&selection(&["/a"], &[], 10), &paths).1.pattern, 5);
        for bad in ["a", "", "/[", "/a**"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_path_that_was_made_to_be_slow_is_matched_at_once() {
        let matches = |pattern: &str, path: &str| {
            let pattern = pattern.parse::<Pattern>().expect("a pattern");
            pattern.matches(path)
        };
        let dashes = "-".repeat(255);
        // Tried in all ways, these are some 10^10 steps and more.
        assert!(!matches("/x/*-*-*-*-*y", &format!("/x/{dashes}/z")));
        assert!(matches("/x/*-*-*-*-*", &format!("/x/{dashes}")));
        assert!(!matches("/**/*-*-*-*-*-*-*-*y", &format!("/{dashes}").repeat(15)));
        let names = "/a".repeat(500);
        assert!(!matches("/**/a/**/a/**/a/**/a/**/a/**/b", &names));
        assert!(matches("/**/a/**/a/**/a/**/a/**/a/**/b", &format!("{names}/b")));
    }

    #[test]
    fn what_is_below_a_path_is_known_by_the_first_names() {
        let may = |pattern: &str, path: &str| {
            let pattern = pattern.parse::<Pattern>().expect("a pattern");
            pattern.may_match_below(path)
        };
        for (pattern, path) in [("/a/*/c", "/a/b"), ("/a/**", "/a"), ("/a/**/z", "/a/b/c"), ("/**/z", "/a")] {
            assert!(may(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [("/a/*", "/a/b"), ("/a", "/a"), ("/b/**", "/a"), ("/a/b*/**", "/a/c/d")] {
            assert!(!may(pattern, path), "{pattern} {path}");
        }
    }

    proptest! {
        /// Whatever is written, it means what `glob` takes it for as a whole.
        #[test]
        fn a_pattern_is_the_same_name_by_name(
            parts in prop::collection::vec(r"\*\*|[ab*?]{0,3}|a?\[!a\]\*?", 1..5),
            names in prop::collection::vec("[ab]{1,3}", 0..5),
        ) {
            const OPTIONS: MatchOptions = MatchOptions {
                case_sensitive: true,
                require_literal_separator: true,
                require_literal_leading_dot: false,
            };
            let (text, path) = (format!("/{}", parts.join("/")), format!("/{}", names.join("/")));
            if let Ok(pattern) = text.parse::<Pattern>() {
                let whole = glob::Pattern::new(&text).expect("a pattern");
                let expected = whole.matches_with(&path, OPTIONS);
                prop_assert_eq!(pattern.matches(&path), expected, "{} {}", text, path);
            }
        }
    }

    #[test]
    fn the_biggest_are_shown_and_the_others_counted() {
        let (shown, left_out) = choose(&selection(&[], &[], 2), &["/z", "/y", "/x", "/w"]);
        assert_eq!(shown, ["/y", "/z"]);
        assert_eq!(left_out, LeftOut { top: 2, ..LeftOut::default() });
        let (shown, left_out) = choose(&selection(&["/[xyz]"], &["/z"], 1), &["/z", "/y", "/x", "/w"]);
        assert_eq!(shown, ["/y"]);
        assert_eq!(left_out, LeftOut { pattern: 2, top: 1, name: 0 });
        assert_eq!(
            choose(&selection(&[], &[], 0), &["/z"]),
            (vec![], LeftOut { top: 1, ..LeftOut::default() })
        );
    }

    #[test]
    fn a_path_is_shown_once_and_not_at_any_length() {
        let long = format!("/{}", "x".repeat(LONGEST));
        let (shown, left_out) = choose(&selection(&[], &[], 9), &["/\u{fffd}", "/\u{fffd}", &long]);
        assert_eq!((shown.len(), left_out.name), (1, 2));
    }
}
