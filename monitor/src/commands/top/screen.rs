//! The screen: from the state of the view to cells of the terminal.

use memcg_monitor::printable;
use ratatui::{
    Frame,
    layout::Rect,
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Clear, Paragraph, Wrap},
};

use super::{
    app::{App, Mode},
    arrange::Row,
    cells::{self, Signs},
    host::HostMemory,
    model::Place,
};
use crate::{cli::SortKey, commands::human::human};

/// Lines above the groups, and below.
const ABOVE: u16 = 4;
const BELOW: u16 = 1;

/// The abilities of the terminal.
#[derive(Clone, Copy, Debug)]
pub struct Theme {
    pub signs: Signs,
    pub has_color: bool,
}

/// The texts that are shown beside the groups.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    pub host: HostMemory,
    /// The origin of the numbers.
    pub note: String,
}

/// Rows of groups on a screen of this height.
pub fn rows_of(height: u16) -> usize {
    usize::from(height.saturating_sub(ABOVE + BELOW))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    By(SortKey),
    Limit,
    History,
}

/// The columns before the group's name that a screen has room for, with their widths.
fn columns(width: u16) -> Vec<(Column, usize)> {
    let all = [
        (Column::By(SortKey::Usage), 6, 0),
        (Column::Limit, 7, 50),
        (Column::By(SortKey::Room), 6, 40),
        (Column::By(SortKey::Growth), 8, 0),
        (Column::By(SortKey::Left), 5, 0),
        (Column::By(SortKey::Pressure), 5, 50),
        (Column::By(SortKey::Registrations), 5, 60),
        (Column::History, if width < 110 { 8 } else { 16 }, 75),
        (Column::By(SortKey::Event), 10, 96),
    ];
    all.into_iter().filter(|(.., least)| width >= *least).map(|(column, cells, _)| (column, cells)).collect()
}

/// Draws the whole screen anew.
pub fn draw(frame: &mut Frame<'_>, app: &App, around: &Surroundings, theme: Theme) {
    let screen = Screen { app, around, theme, area: frame.area() };
    screen.draw(frame);
}

struct Screen<'a> {
    app: &'a App,
    around: &'a Surroundings,
    theme: Theme,
    area: Rect,
}

impl Screen<'_> {
    fn draw(&self, frame: &mut Frame<'_>) {
        let Rect { width, height, .. } = self.area;
        let lines = [self.title(), self.memory(), self.last_event(), self.headings()];
        for (at, line) in lines.into_iter().enumerate() {
            self.put(frame, at as u16, line);
        }
        match &self.app.mode {
            Mode::Help => self.overlay(frame, HELP.lines().map(Line::from).collect()),
            Mode::Details => self.overlay(frame, self.details()),
            _ => {
                for (at, row) in
                    self.app.arranged.rows.iter().skip(self.app.offset).take(rows_of(height)).enumerate()
                {
                    let line = self.row(row, self.app.offset + at == self.app.cursor, width);
                    self.put(frame, ABOVE + at as u16, line);
                }
                if let Mode::Sort(at) = self.app.mode {
                    self.menu(frame, at);
                }
            }
        }
        if height > ABOVE {
            self.put(frame, height - 1, self.keys());
        }
    }

    fn put(&self, frame: &mut Frame<'_>, row: u16, line: Line<'_>) {
        if row < self.area.height {
            frame.render_widget(line, Rect::new(0, row, self.area.width, 1));
        }
    }

    fn colored(&self, color: Color) -> Style {
        if self.theme.has_color { Style::new().fg(color) } else { Style::new() }
    }

    /// The style of what is serious: bold, since there may be no colour.
    fn alarm(&self) -> Style {
        self.colored(Color::Red).add_modifier(Modifier::BOLD)
    }

    fn title(&self) -> Line<'static> {
        let (model, app) = (&self.app.model, self.app);
        let mut text = format!(" {} groups", model.len());
        if !model.filter().is_empty() {
            text += &format!(", {} with \"{}\"", app.arranged.matching, printable(model.filter()));
        }
        text += &format!("  by {}", app.by.sort.heading());
        if app.by.is_inverted {
            text += " inverted";
        }
        if app.is_paused {
            text += "  paused";
        }
        text += &format!("  {}", self.around.note);
        Line::from(vec![
            Span::styled("memcg-monitor top", Style::new().add_modifier(Modifier::BOLD)),
            text.into(),
        ])
    }

    fn memory(&self) -> Line<'static> {
        let HostMemory { total, used, swap_total, swap_used, pressure } = self.around.host;
        let room = usize::from(self.area.width).saturating_sub(46).clamp(4, 40);
        let filled = if total == 0 { 0 } else { (used as f64 / total as f64 * room as f64).round() as usize };
        let filled = filled.min(room);
        let psi = pressure.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.1}"));
        Line::from(vec![
            "Mem[".into(),
            Span::styled("|".repeat(filled), self.colored(Color::Green)),
            format!("{:<1$}", "", room - filled).into(),
            format!(
                "] {}/{}  Swap {}/{}  PSI {psi}%",
                human(used),
                human(total),
                human(swap_used),
                human(swap_total)
            )
            .into(),
        ])
    }

    fn last_event(&self) -> Line<'static> {
        let model = &self.app.model;
        match model.recent.front() {
            Some(event) => {
                let text = format!("{} ago {}", cells::span(model.now - event.time), event.text);
                Line::styled(text, self.alarm())
            }
            None => Line::raw("no OOM since this began"),
        }
    }

    fn headings(&self) -> Line<'static> {
        let by = self.app.by.sort;
        let heading = |text: &str, is_by| {
            let style = Style::new().add_modifier(if is_by {
                Modifier::BOLD | Modifier::UNDERLINED
            } else {
                Modifier::BOLD
            });
            Span::styled(text.to_owned(), style)
        };
        let mut spans = Vec::new();
        for (column, width) in columns(self.area.width) {
            let (text, is_by) = match column {
                Column::By(key) => (key.heading(), key == by),
                Column::Limit => ("LIMIT", false),
                Column::History => ("HISTORY", false),
            };
            spans.push(heading(&format!("{text:>width$}"), is_by));
            spans.push(" ".into());
        }
        spans.push(heading(SortKey::Group.heading(), by == SortKey::Group));
        Line::from(spans)
    }

    fn row(&self, row: &Row, is_selected: bool, width: u16) -> Line<'static> {
        let mut spans = Vec::new();
        let mut used = 0;
        for (column, width) in columns(width) {
            let (text, style) = self.cell(column, row.place, width);
            spans.push(Span::styled(format!("{text:>width$} "), style));
            used += width + 1;
        }
        let room = usize::from(width).saturating_sub(used);
        let name: String = self.name(row).chars().skip(self.app.shift).collect();
        // To the end of the line, so that the cursor's is filled.
        let name = self.theme.signs.fitted(name, room);
        spans.push(format!("{name:<room$}").into());
        let line = Line::from(spans);
        if is_selected { line.style(Style::new().add_modifier(Modifier::REVERSED)) } else { line }
    }

    fn cell(&self, column: Column, place: Place, width: usize) -> (String, Style) {
        let (model, node) = (&self.app.model, self.app.model.node(place));
        let distance = self.app.arranged.distance(model, place);
        let plain = Style::new();
        let by_level = |alarm: bool, warning: bool| match (alarm, warning) {
            (true, _) => self.alarm(),
            (_, true) => self.colored(Color::Yellow),
            _ => plain,
        };
        match column {
            Column::By(SortKey::Usage) => (cells::usage(node), plain),
            Column::Limit => (cells::limit(model, place, &distance), plain),
            Column::By(SortKey::Room) => {
                let limit = distance.room.and_then(|(room, of)| Some((room, model.node(of).limit?)));
                let below = |part| limit.is_some_and(|(room, limit)| room < limit / part);
                (cells::room(&distance), by_level(below(20), below(5)))
            }
            Column::By(SortKey::Growth) => (cells::growth(&distance), plain),
            Column::By(SortKey::Left) => {
                let within = |seconds| distance.left.is_some_and(|left| left < seconds);
                (cells::left(&distance), by_level(within(60.0), within(600.0)))
            }
            Column::By(SortKey::Pressure) => {
                let above = |percent| node.pressure.is_some_and(|pressure| pressure > percent);
                (cells::pressure(node), by_level(above(10.0), above(1.0)))
            }
            Column::By(SortKey::Registrations) => (cells::registrations(node, self.app.known), plain),
            Column::By(SortKey::Event) => {
                (cells::event(node, model.now), by_level(node.event.is_some(), false))
            }
            Column::History => {
                (self.theme.signs.sparkline(node, model.tick, width), self.colored(Color::Cyan))
            }
            Column::By(SortKey::Group) => (String::new(), plain),
        }
    }

    /// A group's name with the tree's lines; in a list, its path.
    fn name(&self, row: &Row) -> String {
        let node = self.app.model.node(row.place);
        if !self.app.by.is_tree {
            return printable(&node.path).into_owned();
        }
        let signs = self.theme.signs;
        let mut text = String::new();
        for level in 1..=row.depth {
            let follows = level < 64 && row.follows & (1 << level) != 0;
            text += match (level == row.depth, follows) {
                (true, true) => signs.branch,
                (true, false) => signs.corner,
                (false, true) => signs.line,
                (false, false) => "  ",
            };
        }
        if node.is_collapsed && self.app.model.filter().is_empty() {
            text += &format!("{}{} ({} below)", signs.collapsed, node.name, node.children.len());
        } else {
            text += &node.name;
        }
        text
    }

    fn keys(&self) -> Line<'static> {
        let prompt = |what: &str, text: &str, keys: &str| {
            Line::from(vec![
                Span::styled(format!("{what}: "), Style::new().add_modifier(Modifier::BOLD)),
                Span::raw(format!("{}_", printable(text))),
                Span::raw(format!("  {keys}")),
            ])
        };
        match &self.app.mode {
            Mode::Search(text) => prompt("Search", text, "F3 next  Enter done  Esc end"),
            Mode::Filter(text) => prompt("Filter", text, "Enter done  Esc show all"),
            Mode::Sort(_) => Line::raw("Sort by: arrows choose  Enter sort  Esc back"),
            Mode::Help | Mode::Details => Line::raw("any key: back"),
            Mode::Normal => {
                let tree = if self.app.by.is_tree { "List" } else { "Tree" };
                let keys = [
                    ("F1", "Help"),
                    ("F3", "Search"),
                    ("F4", "Filter"),
                    ("F5", tree),
                    ("F6", "Sort"),
                    ("Space", "Fold"),
                    ("p", "Pause"),
                    ("F10", "Quit"),
                ];
                let spans = keys.into_iter().flat_map(|(key, what)| {
                    [
                        Span::raw(key),
                        Span::styled(format!("{what:<6}"), Style::new().add_modifier(Modifier::REVERSED)),
                        " ".into(),
                    ]
                });
                Line::from_iter(spans)
            }
        }
    }

    fn menu(&self, frame: &mut Frame<'_>, chosen: usize) {
        let area = Rect::new(0, ABOVE, 16, SortKey::ALL.len() as u16).intersection(self.area);
        frame.render_widget(Clear, area);
        let lines = SortKey::ALL.into_iter().enumerate().map(|(at, key)| {
            let line = Line::raw(format!(" {:<14} ", key.heading()));
            if at == chosen { line.style(Style::new().add_modifier(Modifier::REVERSED)) } else { line }
        });
        frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
    }

    fn overlay(&self, frame: &mut Frame<'_>, lines: Vec<Line<'_>>) {
        let area = Rect::new(0, 0, self.area.width, self.area.height.saturating_sub(BELOW));
        frame.render_widget(Clear, area);
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
    }

    fn details(&self) -> Vec<Line<'static>> {
        let Some(place) = self.app.selected() else { return Vec::new() };
        let (model, node) = (&self.app.model, self.app.model.node(place));
        let distance = self.app.arranged.distance(model, place);
        let nearest = distance.room.map(|(room, of)| {
            format!("{} left to the limit of {}", human(room), printable(&model.full_path(of)))
        });
        let (known, none) = (self.app.known, || "-".to_owned());
        let count = |is_known: bool, number: Option<u64>| {
            number.filter(|_| is_known).map_or_else(none, |number| number.to_string())
        };
        let fields = [
            ("usage", cells::usage(node)),
            ("own limit", node.limit.map_or_else(none, human)),
            ("nearest limit", nearest.unwrap_or_else(none)),
            ("growth a second", cells::growth(&distance)),
            ("time left", cells::left(&distance)),
            ("pressure, some, 10 s", cells::pressure(node)),
            ("registrations", count(known.registrations, Some(node.registrations))),
            ("OOMs by its limit", count(known.ooms, node.counts.map(|counts| counts.oom))),
            ("processes killed", count(known.kills, node.counts.map(|counts| counts.oom_kill))),
            ("last event", cells::event(node, model.now)),
            ("history", self.theme.signs.sparkline(node, model.tick, 16)),
        ];
        let title = printable(&model.full_path(place)).into_owned();
        let mut lines = vec![Line::styled(title, Style::new().add_modifier(Modifier::BOLD)), Line::raw("")];
        lines.extend(fields.into_iter().map(|(name, value)| Line::raw(format!("{name:>22}  {value}"))));
        lines.push(Line::raw(""));
        let last = model.recent.iter().take(6);
        lines.extend(
            last.map(|event| {
                Line::raw(format!("{} ago {}", cells::span(model.now - event.time), event.text))
            }),
        );
        lines
    }
}

const HELP: &str = "\
memcg-monitor top: memory cgroups, their limits, and the time left to them

 F1 h ?     this page                 arrows PgUp PgDn Home End  move
 F3 /       search; then F3 n: next   Left Right    shift long names
 F4 \\       filter by path, Esc: all  F5 t         tree or list
 F6 < >     column to sort by         I             the other way round
 M G T P N  sort by usage, growth, time left, pressure, name
 Space + -  fold and unfold           *             fold or unfold all
 Enter      the group's details       p Z           pause
 Ctrl-L     draw anew                 Ctrl-Z        suspend
 q F10      quit

 USAGE      memory charged
 LIMIT      the nearest limit: the group's own, or (^) of a group above
 ROOM       bytes left to it
 GROWTH/s   bytes a second, smoothed over some 5 s
 LEFT       time until the first limit from the group up is hit, at this growth
 PSI%       share of the last 10 s in which a task waited for memory
 REG        registrations with the agent
 HISTORY    usage at the last ticks
 EVENT      last OOM or kill, and how long ago (on wide screens)";

#[cfg(test)]
mod tests;
