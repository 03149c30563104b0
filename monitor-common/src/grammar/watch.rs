//! The request for a watch: patterns of groups, and specifications of what is told of each.
//!
//! Who asks and who is asked check it here, each part by itself, so that all that is wrong can be named.

use core::{error, fmt};

use crate::grammar::{
    control_file::{ArgsError, ControlFile},
    pattern::{self, PatternError},
    spec::Spec,
};

/// Most specifications of a watch: each is a registration in each group.
pub const MOST_SPECS: usize = u16::BITS as usize;

/// A part of a request that no agent takes: the text, and what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchError<'a> {
    /// A pattern of paths is none.
    Path(&'a str, PatternError),
    /// A pattern of units is none.
    Unit(&'a str, PatternError),
    /// A specification is none.
    Spec(&'a str, ArgsError),
    /// The name of a control file whose quantity has thresholds stands without one.
    NoThreshold(&'a str),
    /// Neither a pattern of paths nor one of units is given.
    NoGroups,
    /// No specification is given.
    NoSpecs,
    /// There are more specifications than a watch has.
    TooManySpecs(usize),
}

impl<'a> WatchError<'a> {
    /// The word that is wrong; empty where one is missing, or there are too many.
    #[must_use]
    pub const fn text(&self) -> &'a str {
        match self {
            Self::Path(text, _) | Self::Unit(text, _) | Self::Spec(text, _) | Self::NoThreshold(text) => text,
            Self::NoGroups | Self::NoSpecs | Self::TooManySpecs(_) => "",
        }
    }
}

/// The reason and the remedy, without the word itself.
impl fmt::Display for WatchError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(_, error) => write!(f, "no pattern of paths: {error}"),
            Self::Unit(_, error) => write!(f, "no pattern of units: {error}"),
            Self::Spec(text, error) if is_like_a_quantity(text) => error.fmt(f),
            Self::Spec(..) => f.write_str(
                "nothing that is told; write a threshold (80%, 512M,up), oom, low, medium, critical, empty or removed",
            ),
            Self::NoThreshold(text) => write!(f, "names no threshold; write both as one word: '{text} 1G'"),
            Self::NoGroups => f.write_str(
                "name groups: a pattern of paths that begins with / (the hierarchy's root), as /system.slice/**, or a \
                 unit",
            ),
            Self::NoSpecs => f.write_str("say what to tell: 80%, 512M,up, oom, critical, empty or removed"),
            Self::TooManySpecs(count) => write!(
                f,
                "{count} specifications; a watch has {MOST_SPECS} at most, and another may have the others"
            ),
        }
    }
}

impl error::Error for WatchError<'_> {}

/// Whether a text that is no specification begins as a threshold, a level or a control file does, so that
/// the parser's own words are of use.
fn is_like_a_quantity(text: &str) -> bool {
    let first = text.split([',', ' ']).next().unwrap_or(text);
    let is_number = first.starts_with(|letter: char| letter.is_ascii_digit() || letter == '-');
    is_number || first.contains('%') || text.len() > first.len()
}

/// Checks a pattern of paths.
///
/// # Errors
/// It is none.
pub fn check_path(text: &str) -> Result<(), WatchError<'_>> {
    pattern::check_path(text).map_err(|error| WatchError::Path(text, error))
}

/// Checks a pattern of units' names.
///
/// # Errors
/// It is none.
pub fn check_unit(text: &str) -> Result<(), WatchError<'_>> {
    pattern::check_unit(text).map_err(|error| WatchError::Unit(text, error))
}

/// Parses a specification; thresholds are rounded down to pages of `page_size` bytes.
///
/// # Errors
/// It is none.
pub fn spec(text: &str, page_size: u64) -> Result<Spec, WatchError<'_>> {
    let named = ControlFile::from_name(text.as_bytes());
    if named.is_some_and(|file| ControlFile::QUANTITIES.contains(&file)) {
        return Err(WatchError::NoThreshold(text));
    }
    Spec::parse(text.as_bytes(), page_size).map_err(|error| WatchError::Spec(text, error))
}

/// Checks the numbers of patterns, of either kind, and of specifications.
///
/// # Errors
/// There are none, or too many; each of both is in the answer.
pub const fn check_counts(patterns: usize, specs: usize) -> [Option<WatchError<'static>>; 2] {
    let groups = if patterns == 0 { Some(WatchError::NoGroups) } else { None };
    let told = match specs {
        0 => Some(WatchError::NoSpecs),
        1..=MOST_SPECS => None,
        count => Some(WatchError::TooManySpecs(count)),
    };
    [groups, told]
}

/// All that is wrong with a request, in its order.
pub fn errors<'a, T: AsRef<str>>(
    (patterns, units): (&'a [T], &'a [T]),
    specs: &'a [T],
    page_size: u64,
) -> impl Iterator<Item = WatchError<'a>> {
    let paths = patterns.iter().filter_map(|text| check_path(text.as_ref()).err());
    let units_wrong = units.iter().filter_map(|text| check_unit(text.as_ref()).err());
    let specs_wrong = specs.iter().filter_map(move |text| spec(text.as_ref(), page_size).err());
    let counts = check_counts(patterns.len() + units.len(), specs.len());
    counts.into_iter().flatten().chain(paths).chain(units_wrong).chain(specs_wrong)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{MOST_SPECS, WatchError, errors};

    const PAGE: u64 = 4096;

    fn texts(patterns: &[&str], units: &[&str], specs: &[&str]) -> Vec<(String, String)> {
        errors((patterns, units), specs, PAGE).map(|error| (error.text().into(), error.to_string())).collect()
    }

    #[test]
    fn all_that_is_wrong_is_named() {
        assert_eq!(texts(&["/a/*"], &["a-[0-9]"], &["80%", "oom"]), []);
        let found = texts(&["/a/***", "/a/["], &["["], &["80%", "sometimes", "memory.anon_bytes", "16MB"]);
        let words: Vec<_> = found.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(words, ["/a/***", "/a/[", "[", "sometimes", "memory.anon_bytes", "16MB"]);
        assert!(found[2].1.starts_with("no pattern of units"), "{found:?}");
        assert!(found[3].1.contains("oom, low, medium"), "{found:?}");
        assert!(found[4].1.contains("'memory.anon_bytes 1G'"), "{found:?}");
        assert!(found[5].1.contains("offset 3"), "{found:?}");
    }

    #[test]
    fn a_request_has_groups_and_as_many_specifications_as_fit() {
        let (all, one_more) = (["1M"; MOST_SPECS], ["1M"; MOST_SPECS + 1]);
        assert_eq!(texts(&["/"], &[], &all), []);
        let only = |patterns: &[&str], specs: &[&str]| {
            errors((patterns, &[]), specs, PAGE).collect::<Vec<_>>()
                == [match (patterns, specs) {
                    ([], _) => WatchError::NoGroups,
                    (_, []) => WatchError::NoSpecs,
                    _ => WatchError::TooManySpecs(specs.len()),
                }]
        };
        assert!(only(&[], &["oom"]) && only(&["/a"], &[]) && only(&["/a"], &one_more));
    }

    #[test]
    fn a_reason_fits_into_two_lines() {
        let bad = ["/a/***", "/a**", "/a/[", "/a[/]b"];
        let specs =
            ["often", "16MB", "low,loc", "80%,sideways", "101%", "memory.anon_bytes", "empty 1", "1M,up,up"];
        for (text, why) in texts(&bad, &["["], &specs).into_iter().chain(texts(&[], &[], &[])) {
            assert!(text.len() + why.len() < 180, "{text}: {why}");
        }
    }
}
