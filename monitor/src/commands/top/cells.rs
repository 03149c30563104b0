//! The texts of the table's cells, for the screen and for lines.

use super::{
    arrange::Distance,
    growth::heights,
    model::{Model, Place, TreeNode},
    source::KnownNumbers,
};
use crate::commands::{fold::cells, human::human};

/// Signs of a terminal: those of Unicode, or ASCII where it shows nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Signs {
    pub branch: &'static str,
    pub corner: &'static str,
    pub line: &'static str,
    pub collapsed: &'static str,
    /// Stands for the rest of a name that does not fit.
    pub cut: &'static str,
    bars: &'static [char],
}

pub const UNICODE: Signs = Signs {
    branch: "\u{251c}\u{2500}",
    corner: "\u{2514}\u{2500}",
    line: "\u{2502} ",
    collapsed: "\u{25b8}",
    cut: "\u{2026}",
    bars: &['\u{2581}', '\u{2582}', '\u{2583}', '\u{2584}', '\u{2585}', '\u{2586}', '\u{2587}', '\u{2588}'],
};

pub const ASCII: Signs = Signs {
    branch: "|-",
    corner: "`-",
    line: "| ",
    collapsed: "+",
    cut: "~",
    bars: &['_', '.', ',', '-', '~', '=', '*', '#'],
};

impl Signs {
    /// Those that the locale of the environment can show.
    pub fn of_locale(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(variable);
        let locale = set.into_iter().find(|value| !value.is_empty()).unwrap_or_default().to_lowercase();
        if locale.contains("utf-8") || locale.contains("utf8") { UNICODE } else { ASCII }
    }

    /// The name as it fits into so many cells.
    pub fn fitted(&self, name: String, room: usize) -> String {
        if cells(&name) <= room {
            return name;
        }
        let (mut text, mut used) = (String::new(), 1);
        for character in name.chars() {
            used += cells(&character.to_string());
            if used > room {
                break;
            }
            text.push(character);
        }
        if room > 0 {
            text += self.cut;
        }
        text
    }

    /// A line of bars for usage at the last ticks.
    pub fn sparkline(&self, node: &TreeNode, tick: u64, width: usize) -> String {
        let samples = node.history.until(tick, width);
        let top = self.bars.len() as u32 - 1;
        heights(&samples, top).into_iter().map(|height| self.bars[height as usize]).collect()
    }
}

const NONE: &str = "-";

fn or_none(text: Option<String>) -> String {
    text.unwrap_or_else(|| NONE.to_owned())
}

pub fn usage(node: &TreeNode) -> String {
    or_none(node.usage.map(human))
}

/// The limit that is nearest; with `^` where it is that of a group above.
pub fn limit(model: &Model, place: Place, distance: &Distance) -> String {
    match distance.room {
        Some((_, of)) => {
            let limit = or_none(model.node(of).limit.map(human));
            if of == place { limit } else { format!("^{limit}") }
        }
        None => or_none(model.node(place).limit.map(human)),
    }
}

pub fn room(distance: &Distance) -> String {
    or_none(distance.room.map(|(bytes, _)| human(bytes)))
}

pub fn growth(distance: &Distance) -> String {
    or_none(distance.growth.map(|slope| match slope {
        0.0 => "0".to_owned(),
        slope if slope > 0.0 => format!("+{}", human(slope as u64)),
        slope => format!("-{}", human(-slope as u64)),
    }))
}

/// A time in its greatest unit: `59s`, `2m`, `3h`, `4d`.
pub fn left(distance: &Distance) -> String {
    or_none(distance.left.map(span))
}

pub fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..100 => format!("{whole}s"),
        100..6000 => format!("{}m", whole / 60),
        6000..172_800 => format!("{}h", whole / 3600),
        172_800..86_400_000 => format!("{}d", whole / 86_400),
        _ => ">999d".to_owned(),
    }
}

pub fn pressure(node: &TreeNode) -> String {
    or_none(node.pressure.map(|percent| format!("{percent:.1}")))
}

/// The number of registrations; nothing for none in a row, where most groups have none.
pub fn registrations(node: &TreeNode, known: KnownNumbers) -> String {
    match node.registrations {
        _ if !known.registrations => NONE.to_owned(),
        0 => NONE.to_owned(),
        count => count.to_string(),
    }
}

pub fn event(node: &TreeNode, now: f64) -> String {
    or_none(node.event.map(|(time, what)| format!("{what} {}", span(now - time))))
}

#[cfg(test)]
mod tests {
    use super::{ASCII, Distance, Signs, UNICODE, growth, left, span};

    #[test]
    fn times_are_short() {
        let spans = [0.4, 99.0, 100.0, 5999.0, 6000.0, 172_800.0, 1e12].map(span);
        assert_eq!(spans, ["0s", "99s", "1m", "99m", "1h", "2d", ">999d"]);
        assert_eq!(left(&Distance::default()), "-");
    }

    #[test]
    fn growth_has_a_sign() {
        let of = |slope| growth(&Distance { growth: slope, ..Distance::default() });
        assert_eq!([of(None), of(Some(0.0)), of(Some(2048.0)), of(Some(-1.5e6))], ["-", "0", "+2K", "-1.4M"]);
    }

    #[test]
    fn names_that_are_cut_have_a_mark() {
        let fitted = |name: &str, room| ASCII.fitted(name.to_owned(), room);
        assert_eq!([5, 4, 1, 0].map(|room| fitted("a.bcd", room)), ["a.bcd", "a.b~", "~", ""]);
        // Two cells each.
        assert_eq!(
            [6, 5, 4].map(|room| fitted("\u{4e00}\u{4e8c}\u{4e09}", room)).map(|name| name.chars().count()),
            [3, 3, 2]
        );
        assert_eq!(UNICODE.fitted("abc".to_owned(), 2), "a\u{2026}");
    }

    #[test]
    fn a_locale_without_utf8_gets_ascii() {
        let signs = |all: Option<&str>, lang: &str| {
            Signs::of_locale(|name| match name {
                "LC_ALL" => all.map(str::to_owned),
                "LANG" => Some(lang.to_owned()),
                _ => None,
            })
        };
        assert_eq!(signs(None, "C.UTF-8").branch, UNICODE.branch);
        assert_eq!(signs(Some("POSIX"), "C.UTF-8").branch, ASCII.branch);
        assert_eq!(signs(Some(""), "en_GB.utf8").branch, UNICODE.branch);
    }
}
