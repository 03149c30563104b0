//! The choice among the declared tests, by the words on the kernel's command line.

use std::str::FromStr;

use anyhow::{Context, Result, ensure};

use crate::harness::test::{Tag, Test};

/// The tests that one boot runs.
#[derive(Debug)]
pub(crate) struct Selection {
    /// `TAG[,TAG]`: with any of these tags; `-TAG`: with none of these.
    pub(crate) select: Choice<Tag>,
    /// Parts of names, by the same rules.
    pub(crate) filter: Choice<String>,
    pub(crate) part: Part,
    /// How many times all of them run.
    pub(crate) repeat: usize,
}

impl Default for Selection {
    fn default() -> Self {
        Self { select: Choice::default(), filter: Choice::default(), part: Part::default(), repeat: 1 }
    }
}

impl Selection {
    /// The wanted ones among `tests`, in their order: those that share an agent first.
    pub(crate) fn of(&self, tests: impl IntoIterator<Item = Test>) -> Vec<Test> {
        let wanted = tests.into_iter().filter(|test| {
            self.select.wants(|tag| test.tags.contains(tag))
                && self.filter.wants(|part| test.name.contains(part.as_str()))
        });
        let mut wanted: Vec<_> = wanted.collect();
        wanted.sort_by_key(|test| !test.tags.contains(&Tag::Standing));
        let wanted: Vec<_> = wanted.into_iter().skip(self.part.first).step_by(self.part.shares).collect();
        wanted.repeat(self.repeat)
    }
}

/// Words of which any is enough, and words after a `-` that exclude.
#[derive(Debug)]
pub(crate) struct Choice<T> {
    any_of: Vec<T>,
    none_of: Vec<T>,
}

impl<T> Choice<T> {
    fn wants(&self, has: impl Fn(&T) -> bool) -> bool {
        (self.any_of.is_empty() || self.any_of.iter().any(&has)) && !self.none_of.iter().any(&has)
    }
}

impl<T> Default for Choice<T> {
    fn default() -> Self {
        Self { any_of: Vec::new(), none_of: Vec::new() }
    }
}

impl<T: FromStr> FromStr for Choice<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> std::result::Result<Self, T::Err> {
        let mut choice = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            match word.strip_prefix('-') {
                Some(word) => choice.none_of.push(word.parse()?),
                None => choice.any_of.push(word.parse()?),
            }
        }
        Ok(choice)
    }
}

/// The share that this machine runs when several share the tests: `K/N`, from 1.
#[derive(Debug)]
pub(crate) struct Part {
    first: usize,
    shares: usize,
}

impl Default for Part {
    fn default() -> Self {
        Self { first: 0, shares: 1 }
    }
}

impl FromStr for Part {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (number, shares) = text.split_once('/').context("a part is K/N")?;
        let (number, shares): (usize, usize) = (number.parse()?, shares.parse()?);
        ensure!((1..=shares).contains(&number), "there is no part {text}");
        Ok(Self { first: number - 1, shares })
    }
}
