//! The report as text: lines that fit a terminal, and for programs and files one line for one thing.

use std::io::{self, Write};

use memcg_monitor::{black_box::Recording, printable};

use crate::commands::fold::folded;

use super::{
    scale::{byte_marks, bytes, offset},
    story::{earlier, facts, headline, limit_at, moments, since, victim, zero, zero_name},
};

/// Columns and rows of the curve.
const ACROSS: usize = 64;
const ROWS: usize = 12;

pub fn write(out: &mut impl Write, recording: &Recording, columns: Option<usize>) -> io::Result<()> {
    writeln!(out, "{}\n", folded("", &printable(&headline(recording)), 2, columns))?;
    draw(out, recording)?;
    for kill in recording.kills.iter().rev().take(20) {
        writeln!(out, "\nkilled {}", printable(&kill.name()))?;
        rows(out, victim(kill), columns)?;
    }
    let (moments, left_out) = moments(recording);
    if !moments.is_empty() {
        writeln!(out, "\nbeside the {}", zero_name(recording))?;
    }
    if left_out > 0 {
        writeln!(out, "  ({} left out)", earlier(left_out))?;
    }
    for moment in moments {
        let when = offset(since(zero(recording), moment.at));
        let before = format!("  {when:>10}  {:<7} ", moment.what);
        writeln!(out, "{}", folded(&before, &printable(&moment.text), 22, columns))?;
    }
    if !recording.registrations.is_empty() {
        writeln!(out, "\nregistrations")?;
    }
    for one in recording.registrations.iter().take(500) {
        let user = one.uid.map_or_else(String::new, |uid| format!(" (user {uid})"));
        let (before, text) = (format!("  {:>10}  ", one.registration), format!("{}{user}", one.trigger));
        writeln!(out, "{}", folded(&before, &printable(&text), 14, columns))?;
    }
    writeln!(out, "\nthe recording")?;
    rows(out, facts(recording), columns)
}

fn rows(out: &mut impl Write, rows: Vec<(&'static str, String)>, columns: Option<usize>) -> io::Result<()> {
    rows.into_iter().try_for_each(|(name, value)| {
        writeln!(out, "{}", folded(&format!("  {name:<22} "), &printable(&value), 25, columns))
    })
}

/// The curve: in each column the highest usage of that time, and the limit where it is in reach.
fn draw(out: &mut impl Write, recording: &Recording) -> io::Result<()> {
    let (zero, Some(first)) = (zero(recording), recording.usage.first()) else {
        return writeln!(out, "no points");
    };
    let (from, highest) =
        (since(zero, first.at).min(-1.0), recording.usage.iter().map(|point| point.bytes).max().unwrap_or(0));
    let limit = limit_at(recording, zero).filter(|limit| *limit <= highest.saturating_mul(4));
    let (_, top) = byte_marks(limit.map_or(highest, |limit| limit.max(highest)));
    let mut columns = [0u64; ACROSS];
    let mut points = recording.usage.iter().peekable();
    let mut usage = 0;
    for (at, column) in columns.iter_mut().enumerate() {
        let end = from - from * (at + 1) as f64 / ACROSS as f64;
        *column = usage;
        while let Some(point) = points.next_if(|point| since(zero, point.at) <= end) {
            usage = point.bytes;
            *column = (*column).max(usage);
        }
    }
    let row_of = |level: u64| (level as f64 / top as f64 * ROWS as f64).ceil() as usize;
    for row in (1..=ROWS).rev() {
        let mark = (top as f64 * row as f64 / ROWS as f64) as u64;
        let is_limit = limit.is_some_and(|limit| row_of(limit) == row);
        let blank = if is_limit { '-' } else { ' ' };
        let line: String =
            columns.iter().map(|usage| if row_of(*usage) >= row { '#' } else { blank }).collect();
        let name = if is_limit { "limit".to_owned() } else { bytes(mark) };
        let name = if is_limit || row % 3 == 0 { name } else { String::new() };
        writeln!(out, "{name:>10} |{}", line.trim_end())?;
    }
    writeln!(out, "{:>10} +{}", "0", "-".repeat(ACROSS))?;
    writeln!(out, "{:>10}  {:<width$}{}", "", offset(from), zero_name(recording), width = ACROSS - 4)
}
