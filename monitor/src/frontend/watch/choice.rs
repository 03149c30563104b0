//! The groups that a watch is for: patterns of paths, and of units' names.

use std::path::Path;

use monitor_client::wire::WatchRequest;
use monitor_common::grammar::watch;
use nix::errno::Errno;

use crate::{
    cgroup::workload::own_name,
    frontend::refusal::{Refusal, RefusalReason},
    metrics::Pattern,
};

/// Whether a group is among those of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Membership {
    /// It is among them.
    Yes,
    /// It may be: the last name of its path is not known.
    Perhaps,
    /// It is not among them.
    No,
}

/// The pattern below the root, where it is a whole path, and without a slash at its end.
fn below<'a>(text: &'a str, root: &str) -> &'a str {
    let rest = text.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match rest.unwrap_or(text).trim_end_matches('/') {
        "" if text.starts_with('/') => "/",
        pattern => pattern,
    }
}

/// The patterns of a watch.
#[derive(Debug)]
pub(super) struct Choice {
    paths: Vec<PathPattern>,
    units: Vec<glob::Pattern>,
}

#[derive(Debug)]
struct PathPattern {
    whole: Pattern,
    /// Patterns of the path above: a group there has to match one of them.
    above: Vec<Pattern>,
    /// Whether any name may be the last.
    takes_any_name: bool,
    is_root: bool,
}

impl PathPattern {
    fn of(text: &str) -> Result<Self, String> {
        let whole = text.parse()?;
        let (above, last) = text.rsplit_once('/').unwrap_or(("", text));
        // No name at all may stand for `**`, which at a pattern's end stands for one at least.
        let mut texts = vec![above, above.trim_end_matches("/**")];
        texts.dedup();
        let above = texts.into_iter().map(|text| match text {
            "" => "/".parse::<Pattern>(),
            text => text.parse(),
        });
        let above = above.collect::<Result<_, _>>()?;
        Ok(Self { whole, above, takes_any_name: matches!(last, "*" | "**"), is_root: text == "/" })
    }

    /// The root is meant by its own path alone.
    fn matches(&self, path: &str) -> bool {
        self.is_root == (path == "/") && self.whole.matches(path)
    }
}

impl Choice {
    /// Takes the patterns of a request, which may be whole paths, too, as `list` shows them: below the
    /// hierarchy's `root`.
    ///
    /// # Errors
    /// `EINVAL`, with the pattern and the reason.
    pub(super) fn of(request: &WatchRequest, root: &Path) -> Result<Self, Refusal> {
        let root = root.to_string_lossy();
        let refused = |text: &str, why: String| {
            Refusal::new(Errno::EINVAL, RefusalReason::NotAWatch { text: text.to_owned(), why })
        };
        let path = |text: &String| {
            watch::check_path(text).map_err(|error| error.to_string())?;
            PathPattern::of(below(text, &root))
        };
        let unit = |text: &String| {
            watch::check_unit(text).map_err(|error| error.to_string())?;
            glob::Pattern::new(text).map_err(|error| error.to_string())
        };
        let paths = request.patterns.iter().map(|text| path(text).map_err(|why| refused(text, why)));
        let units = request.units.iter().map(|text| unit(text).map_err(|why| refused(text, why)));
        Ok(Self { paths: paths.collect::<Result<_, _>>()?, units: units.collect::<Result<_, _>>()? })
    }

    /// Whether the group at `path` below the root, which begins with `/`, is among them.
    pub(super) fn has(&self, path: &Path) -> bool {
        let text = path.to_string_lossy();
        self.paths.iter().any(|pattern| pattern.matches(&text))
            || own_name(path).is_some_and(|name| self.units.iter().any(|unit| unit.matches(name)))
    }

    /// Whether a group whose own name is not known any more, in the one at `above`, is among them;
    /// `shown` stands for its path.
    pub(super) fn may_have(&self, above: Option<&Path>, shown: &Path) -> Membership {
        let Some(above) = above else { return Membership::Perhaps };
        let (above, shown) = (above.to_string_lossy(), shown.to_string_lossy());
        if self.paths.iter().any(|pattern| pattern.takes_any_name && pattern.matches(&shown)) {
            return Membership::Yes;
        }
        let fits = |pattern: &PathPattern| pattern.above.iter().any(|one| one.matches(&above));
        let may =
            self.paths.iter().any(|pattern| !pattern.takes_any_name && !pattern.is_root && fits(pattern));
        if may || !self.units.is_empty() { Membership::Perhaps } else { Membership::No }
    }

    /// Whether a group whose path is too long may be among them: it is somewhere below the one at `above`, if
    /// that is known.
    pub(super) fn may_have_below(&self, above: Option<&Path>) -> bool {
        let above = above.map(Path::to_string_lossy);
        let may = |pattern: &PathPattern| match &above {
            Some(above) => pattern.whole.may_match_below(above),
            None => pattern.whole.is_of_any_depth(),
        };
        !self.units.is_empty() || self.paths.iter().any(may)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use monitor_client::wire::WatchRequest;
    use monitor_common::grammar::watch;
    use proptest::prelude::*;

    use super::{Choice, Membership, PathPattern};

    fn choice(patterns: &[&str], units: &[&str]) -> Choice {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let request =
            WatchRequest { patterns: owned(patterns), units: owned(units), ..WatchRequest::default() };
        Choice::of(&request, Path::new(ROOT)).expect("patterns")
    }

    const ROOT: &str = "/sys/fs/cgroup";

    #[test]
    fn a_whole_path_is_one_below_the_root() {
        let has = |pattern: &str, path: &str| choice(&[pattern], &[]).has(Path::new(path));
        assert!(has("/sys/fs/cgroup/a/*", "/a/b") && has("/sys/fs/cgroup", "/") && has("/a/", "/a"));
        assert!(has("/sys/fs/cgroups", "/sys/fs/cgroups") && !has("/sys/fs/cgroup/a", "/b"));
    }

    #[test]
    fn a_star_is_one_name_and_two_are_any_number() {
        let has = |pattern: &str, path: &str| choice(&[pattern], &[]).has(Path::new(path));
        for (pattern, path, expected) in [
            ("/a/*", "/a/b", true),
            ("/a/*", "/a/b/c", false),
            ("/a/*", "/a", false),
            ("/a/**", "/a/b", true),
            ("/a/**", "/a/b/c", true),
            ("/a/**", "/ab", false),
            ("/**", "/a", true),
            ("/**", "/", false),
            ("/", "/", true),
            ("/", "/a", false),
            ("/*.slice/app-?.service", "/x.slice/app-1.service", true),
            ("/**/b", "/a/c/b", true),
        ] {
            assert_eq!(has(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_unit_is_the_group_of_that_name_and_not_what_is_in_it() {
        let units = choice(&[], &["app-*.service"]);
        assert!(units.has(Path::new("/a.slice/app-1.service")));
        assert!(units.has(Path::new("/a.slice/_app-1.service")), "as systemd escapes it");
        assert!(!units.has(Path::new("/a.slice/app-1.service/worker")));
    }

    #[test]
    fn a_group_without_a_name_is_known_by_what_it_is_in() {
        let of = |pattern: &str| choice(&[pattern], &[]).may_have(Some(Path::new("/a")), Path::new("/a/#7"));
        assert_eq!([of("/a/*"), of("/**"), of("/a/**")], [Membership::Yes; 3]);
        assert_eq!(of("/a/app-*"), Membership::Perhaps);
        assert_eq!([of("/b/*"), of("/b/app-*"), of("/")], [Membership::No; 3]);
        assert_eq!(choice(&["/b/*"], &[]).may_have(None, Path::new("#7")), Membership::Perhaps);
    }

    #[test]
    fn two_stars_may_be_no_name_above_one_that_is_not_known() {
        let of = |pattern: &str, above: &str| {
            let shown = Path::new(above).join("#7");
            choice(&[pattern], &[]).may_have(Some(Path::new(above)), &shown)
        };
        assert_eq!(of("/a/**/b", "/a"), Membership::Perhaps, "it may have been /a/b");
        assert_eq!(of("/a/**/**/b", "/a"), Membership::Perhaps);
        assert_eq!(of("/a/**/b", "/a/c"), Membership::Perhaps);
        assert_eq!(of("/**/b", "/"), Membership::Perhaps);
        assert_eq!([of("/a/**/b", "/"), of("/a/**/b/c", "/a"), of("/a/**/b", "/ab")], [Membership::No; 3]);
    }

    #[test]
    fn a_group_with_too_long_a_path_is_known_by_one_above() {
        let above = Path::new("/a/b");
        let may = |patterns: &[&str], units: &[&str]| choice(patterns, units).may_have_below(Some(above));
        assert!(may(&["/b", "/a/**"], &[]) && may(&["/a/*/c"], &[]) && may(&["/b"], &["c.service"]));
        assert!(!may(&["/a/*", "/b/**"], &[]));
        assert!(choice(&["/b/**"], &[]).may_have_below(None) && !choice(&["/b/*"], &[]).may_have_below(None));
    }

    proptest! {
        /// The shared grammar takes what the matcher takes, but for slashes within brackets.
        #[test]
        fn the_grammar_is_the_matchers(text in r"[\]\[/ab*?!-]{0,9}") {
            let is_pattern = glob::Pattern::new(&text).is_ok();
            prop_assert_eq!(watch::check_unit(&text).is_ok(), is_pattern, "{}", text);
            let path = format!("/{text}");
            if watch::check_path(&path).is_ok() {
                prop_assert!(PathPattern::of(&path).is_ok(), "{}", path);
            }
        }
    }

    #[test]
    fn what_is_no_pattern_is_named() {
        for (patterns, units) in
            [(vec!["a"], vec![]), (vec!["/a/***"], vec![]), (vec!["/a[/]b"], vec![]), (vec![], vec!["["])]
        {
            let owned = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect();
            let request =
                WatchRequest { patterns: owned(patterns), units: owned(units), ..WatchRequest::default() };
            assert!(Choice::of(&request, Path::new(ROOT)).is_err(), "{request:?}");
        }
    }
}
