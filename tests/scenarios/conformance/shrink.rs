//! Makes a failing schedule smaller.

use std::time::Instant;

use anyhow::{Result, ensure};

/// The smallest list found until `deadline` that `fails` still: without a half, a
/// quarter, and so on, and at last without single legs.
pub(crate) fn smallest<T: Clone>(
    legs: &[T],
    deadline: Instant,
    mut fails: impl FnMut(&[T]) -> bool,
) -> Vec<T> {
    let mut legs = legs.to_vec();
    let mut size = legs.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < legs.len() {
            if Instant::now() >= deadline {
                return legs;
            }
            let end = (at + size).min(legs.len());
            let fewer = [&legs[..at], &legs[end..]].concat();
            if fails(&fewer) {
                legs = fewer;
            } else {
                at = end;
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    legs
}

/// The shrinking itself, on a fault that is known.
pub(super) fn finds_the_culprits() -> Result<()> {
    let legs: Vec<u32> = (0..40).collect();
    let deadline = Instant::now() + crate::harness::agent::PATIENCE;
    let found = smallest(&legs, deadline, |legs| {
        let at = |leg| legs.iter().position(|held| *held == leg);
        at(7).is_some_and(|seven| at(31).is_some_and(|other| seven < other))
    });
    ensure!(found == [7, 31], "{found:?}");
    let found = smallest(&legs, Instant::now(), |_| true);
    ensure!(found == legs, "no time, nothing tried");
    Ok(())
}
