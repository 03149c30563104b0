//! The state of the view, and the keys that change it. Knows neither the terminal nor the
//! source of the numbers.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{
    arrange::{Arranged, Arrangement},
    model::{Model, Place, is_match},
    source::KnownNumbers,
};
use crate::cli::SortKey;

/// The part of the view that keys act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The table of groups.
    Normal,
    Help,
    /// The details of one group.
    Details,
    /// A text to look for, being typed.
    Search(String),
    /// A text that paths must contain, being typed.
    Filter(String),
    /// The menu of columns, with the chosen one.
    Sort(usize),
}

/// A key's request to the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Draws what has changed.
    Draw,
    /// Clears the terminal, and draws.
    Redraw,
    /// Ends the whole program.
    Quit,
    /// Stops, as a shell's job.
    Suspend,
}

/// The state of the view.
#[derive(Debug)]
pub struct App {
    pub model: Model,
    pub arranged: Arranged,
    pub by: Arrangement,
    pub mode: Mode,
    pub is_paused: bool,
    /// The row under the cursor, and the first one on the screen.
    pub cursor: usize,
    pub offset: usize,
    /// Characters by which names are shifted to the left.
    pub shift: usize,
    /// Rows that the screen has.
    pub height: usize,
    pub known: KnownNumbers,
    search: String,
}

impl App {
    pub fn new(model: Model, by: Arrangement) -> Self {
        Self {
            model,
            arranged: Arranged::default(),
            by,
            mode: Mode::Normal,
            is_paused: false,
            cursor: 0,
            offset: 0,
            shift: 0,
            height: 1,
            known: KnownNumbers::ALL,
            search: String::new(),
        }
    }

    /// The group under the cursor.
    pub fn selected(&self) -> Option<Place> {
        self.arranged.rows.get(self.cursor).map(|row| row.place)
    }

    /// The groups on the screen.
    pub fn visible(&self) -> Vec<Place> {
        let rows = self.arranged.rows.iter().skip(self.offset).take(self.height);
        rows.map(|row| row.place).collect()
    }

    /// Arranges the groups anew. The cursor stays on its group; on the first row it stays there, so
    /// that the first one is always seen.
    pub fn arrange(&mut self) {
        let id = self.selected().filter(|_| self.cursor > 0).and_then(|place| self.model.node(place).id);
        self.arranged.renew(&self.model, self.by);
        let place = id.and_then(|id| self.model.place_of(id));
        let found = place.and_then(|place| self.arranged.rows.iter().position(|row| row.place == place));
        self.go_to(found.unwrap_or(self.cursor));
    }

    /// Moves the cursor, and the screen as far as needed.
    fn go_to(&mut self, row: usize) {
        let last = self.arranged.rows.len().saturating_sub(1);
        self.cursor = row.min(last);
        let lowest = (self.cursor + 1).saturating_sub(self.height);
        self.offset = self.offset.clamp(lowest, self.cursor.max(lowest)).min(last);
    }

    /// Notes how many rows the screen has.
    pub fn resize(&mut self, height: usize) {
        self.height = height.max(1);
        self.go_to(self.cursor);
    }

    /// Does what a key is for.
    pub fn press(&mut self, key: KeyEvent) -> Request {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            match key.code {
                KeyCode::Char('c') => return Request::Quit,
                KeyCode::Char('z') => return Request::Suspend,
                KeyCode::Char('l') => return Request::Redraw,
                _ => {}
            }
        }
        match std::mem::replace(&mut self.mode, Mode::Normal) {
            Mode::Normal => return self.press_normal(key.code),
            // Any key leaves it.
            Mode::Help | Mode::Details => {}
            Mode::Search(text) => self.press_search(text, key.code),
            Mode::Filter(text) => self.press_filter(text, key.code),
            Mode::Sort(at) => self.press_sort(at, key.code),
        }
        Request::Draw
    }

    fn press_normal(&mut self, key: KeyCode) -> Request {
        let page = self.height.saturating_sub(1).max(1);
        match key {
            KeyCode::F(10) | KeyCode::Char('q') => return Request::Quit,
            KeyCode::F(1) | KeyCode::Char('h' | '?') => self.mode = Mode::Help,
            KeyCode::F(3) if !self.search.is_empty() => self.find_next(1),
            KeyCode::F(3) | KeyCode::Char('/') => self.mode = Mode::Search(String::new()),
            KeyCode::Char('n') => self.find_next(1),
            KeyCode::F(4) | KeyCode::Char('\\') => self.mode = Mode::Filter(self.model.filter().to_owned()),
            KeyCode::F(5) | KeyCode::Char('t') => {
                self.by.is_tree = !self.by.is_tree;
                self.arrange();
            }
            KeyCode::F(6) | KeyCode::Char('<' | '>' | ',' | '.') => {
                let at = SortKey::ALL.iter().position(|key| *key == self.by.sort);
                self.mode = Mode::Sort(at.unwrap_or(0));
            }
            KeyCode::Char('I') => {
                self.by.is_inverted = !self.by.is_inverted;
                self.arrange();
            }
            KeyCode::Char('M') => self.sort_by(SortKey::Usage),
            KeyCode::Char('G') => self.sort_by(SortKey::Growth),
            KeyCode::Char('T') => self.sort_by(SortKey::Left),
            KeyCode::Char('P') => self.sort_by(SortKey::Pressure),
            KeyCode::Char('N') => self.sort_by(SortKey::Group),
            KeyCode::Char('p' | 'Z') => self.is_paused = !self.is_paused,
            KeyCode::Char(' ') => self.collapse(None),
            KeyCode::Char('+') => self.collapse(Some(false)),
            KeyCode::Char('-') => self.collapse(Some(true)),
            KeyCode::Char('*') => self.collapse_all(),
            KeyCode::Enter => self.mode = Mode::Details,
            KeyCode::Up | KeyCode::Char('k') => self.go_to(self.cursor.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.go_to(self.cursor + 1),
            KeyCode::PageUp => self.go_to(self.cursor.saturating_sub(page)),
            KeyCode::PageDown => self.go_to(self.cursor + page),
            KeyCode::Home => self.go_to(0),
            KeyCode::End => self.go_to(usize::MAX - 1),
            KeyCode::Left => self.shift = self.shift.saturating_sub(8),
            KeyCode::Right => self.shift = (self.shift + 8).min(4096),
            KeyCode::Esc if !self.model.filter().is_empty() => self.filter(""),
            _ => {}
        }
        Request::Draw
    }

    fn press_search(&mut self, mut text: String, key: KeyCode) {
        match key {
            KeyCode::Enter => return,
            KeyCode::Esc => {
                self.search.clear();
                return;
            }
            KeyCode::F(3) => self.find_next(1),
            KeyCode::Backspace => drop(text.pop()),
            KeyCode::Char(character) => text.push(character),
            _ => {}
        }
        if text.to_lowercase() != self.search {
            self.search = text.to_lowercase();
            // The one under the cursor is as good as any.
            self.find_next(0);
        }
        self.mode = Mode::Search(text);
    }

    fn press_filter(&mut self, mut text: String, key: KeyCode) {
        match key {
            KeyCode::Enter => return,
            KeyCode::Esc => text.clear(),
            KeyCode::Backspace => drop(text.pop()),
            KeyCode::Char(character) => text.push(character),
            _ => {}
        }
        self.filter(&text);
        if key != KeyCode::Esc {
            self.mode = Mode::Filter(text);
        }
    }

    fn press_sort(&mut self, at: usize, key: KeyCode) {
        let last = SortKey::ALL.len() - 1;
        match key {
            KeyCode::Enter => self.sort_by(SortKey::ALL[at]),
            KeyCode::Up | KeyCode::Char('k') => self.mode = Mode::Sort(at.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.mode = Mode::Sort((at + 1).min(last)),
            KeyCode::Home => self.mode = Mode::Sort(0),
            KeyCode::End => self.mode = Mode::Sort(last),
            KeyCode::Esc | KeyCode::Char('q') | KeyCode::F(10 | 6) => {}
            _ => self.mode = Mode::Sort(at),
        }
    }

    /// Sorts by a column, its greatest first.
    fn sort_by(&mut self, key: SortKey) {
        (self.by.sort, self.by.is_inverted) = (key, false);
        self.arrange();
    }

    /// Shows only groups whose paths contain this.
    pub fn filter(&mut self, text: &str) {
        self.model.set_filter(text);
        self.arrange();
    }

    /// Collapses the group under the cursor, expands it, or does the other of both.
    fn collapse(&mut self, wanted: Option<bool>) {
        if let Some(place) = self.selected() {
            let node = self.model.node_mut(place);
            node.is_collapsed = !node.children.is_empty() && wanted.unwrap_or(!node.is_collapsed);
            self.arrange();
        }
    }

    /// Collapses all groups, or expands them where one is collapsed.
    fn collapse_all(&mut self) {
        let places = || 0..self.model.places();
        let is_any = places().any(|place| self.model.node(place).is_collapsed);
        for place in 0..self.model.places() {
            let node = self.model.node_mut(place);
            node.is_collapsed = !is_any && !node.children.is_empty();
        }
        self.arrange();
    }

    /// Moves the cursor to the next group that contains what was looked for, from `ahead` on.
    fn find_next(&mut self, ahead: usize) {
        let (rows, length) = (&self.arranged.rows, self.arranged.rows.len());
        if self.search.is_empty() {
            return;
        }
        let is_it = |row: &usize| is_match(&self.model.node(rows[*row].place).path, &self.search);
        let found = (0..length).map(|step| (self.cursor + ahead + step) % length).find(is_it);
        if let Some(found) = found {
            self.go_to(found);
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// An app with `/a` (limited), twenty groups in it, and `/b`.
    pub fn app() -> App {
        let by = Arrangement { sort: SortKey::Usage, is_inverted: false, is_tree: true };
        let mut app = App::new(Model::new("/sys/fs/cgroup"), by);
        let model = &mut app.model;
        model.add(1, "/sys/fs/cgroup/a");
        model.add(2, "/sys/fs/cgroup/b");
        for id in 0..20 {
            model.add(100 + id, &format!("/sys/fs/cgroup/a/child{id:02}"));
        }
        for tick in 0..6 {
            model.begin(f64::from(tick));
            let grown = u64::from(tick as u32);
            model.set_usage(1, (400 + 10 * grown) * MIB, model.now - 1.0);
            model.set_usage(2, 8 * MIB, model.now - 1.0);
            (0..20).for_each(|id| model.set_usage(100 + id, (20 - id) * MIB, model.now - 1.0));
        }
        model.set_limit(1, Some(512 * MIB));
        model.set_registrations(1, 3);
        app.resize(10);
        app.arrange();
        app
    }

    pub fn press(app: &mut App, code: KeyCode) -> Request {
        app.press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn write(app: &mut App, text: &str) {
        for character in text.chars() {
            press(app, KeyCode::Char(character));
        }
    }

    fn path(app: &App) -> &str {
        app.selected().map_or("", |place| &app.model.node(place).path)
    }

    #[test]
    fn the_cursor_moves_by_rows_and_pages_and_stays_in_the_table() {
        let mut app = app();
        for (key, row, offset) in [
            (KeyCode::Up, 0, 0),
            (KeyCode::Down, 1, 0),
            (KeyCode::PageDown, 10, 1),
            (KeyCode::End, 21, 12),
            (KeyCode::Down, 21, 12),
            (KeyCode::PageUp, 12, 12),
            (KeyCode::Home, 0, 0),
        ] {
            assert_eq!(press(&mut app, key), Request::Draw);
            assert_eq!((app.cursor, app.offset), (row, offset), "{key:?}");
        }
        press(&mut app, KeyCode::End);
        app.resize(30);
        assert!(app.offset == 12 && app.visible().len() == 10);
        app.resize(5);
        assert_eq!(app.offset, 17);
    }

    #[test]
    fn the_cursor_stays_on_its_group_and_on_the_first_row() {
        let mut app = app();
        assert_eq!(path(&app), "/a");
        press(&mut app, KeyCode::Char('N'));
        press(&mut app, KeyCode::Down);
        press(&mut app, KeyCode::Down);
        assert_eq!(path(&app), "/a/child01");
        press(&mut app, KeyCode::Char('I'));
        assert_eq!((path(&app), app.cursor), ("/a/child01", 20));
        press(&mut app, KeyCode::Home);
        press(&mut app, KeyCode::Char('t'));
        assert_eq!((path(&app), app.cursor), ("/b", 0));
    }

    #[test]
    fn groups_collapse_and_expand() {
        let mut app = app();
        let rows = |app: &App| app.arranged.rows.len();
        for (key, count) in [(' ', 2), (' ', 22), ('-', 2), ('-', 2), ('+', 22), ('*', 2), ('*', 22)] {
            press(&mut app, KeyCode::Char(key));
            assert_eq!(rows(&app), count, "{key}");
        }
    }

    #[test]
    fn a_search_moves_the_cursor_and_a_filter_hides_the_others() {
        let mut app = app();
        press(&mut app, KeyCode::Char('/'));
        write(&mut app, "CHILD1");
        assert_eq!((path(&app), &app.mode), ("/a/child10", &Mode::Search("CHILD1".into())));
        press(&mut app, KeyCode::F(3));
        assert_eq!(path(&app), "/a/child11");
        press(&mut app, KeyCode::Enter);
        press(&mut app, KeyCode::Char('n'));
        assert_eq!((path(&app), &app.mode), ("/a/child12", &Mode::Normal));
        press(&mut app, KeyCode::F(4));
        write(&mut app, "d07q");
        press(&mut app, KeyCode::Backspace);
        press(&mut app, KeyCode::Enter);
        assert_eq!((app.arranged.rows.len(), app.arranged.matching), (2, 1));
        press(&mut app, KeyCode::Esc);
        assert_eq!(app.arranged.rows.len(), 22);
    }

    #[test]
    fn columns_are_chosen_from_a_menu() {
        let mut app = app();
        press(&mut app, KeyCode::F(6));
        assert_eq!(app.mode, Mode::Sort(0));
        press(&mut app, KeyCode::Down);
        press(&mut app, KeyCode::Down);
        press(&mut app, KeyCode::Enter);
        assert_eq!((app.by.sort, &app.mode), (SortKey::Growth, &Mode::Normal));
    }

    #[test]
    fn keys_end_suspend_and_pause() {
        let mut app = app();
        let control =
            |app: &mut App, key| app.press(KeyEvent::new(KeyCode::Char(key), KeyModifiers::CONTROL));
        assert_eq!(control(&mut app, 'c'), Request::Quit);
        assert_eq!(control(&mut app, 'z'), Request::Suspend);
        assert_eq!(control(&mut app, 'l'), Request::Redraw);
        assert_eq!(press(&mut app, KeyCode::F(10)), Request::Quit);
        press(&mut app, KeyCode::Char('h'));
        assert_eq!((press(&mut app, KeyCode::Char('q')), &app.mode), (Request::Draw, &Mode::Normal));
        press(&mut app, KeyCode::Char('p'));
        assert!(app.is_paused);
    }

    #[test]
    fn no_key_does_anything_to_an_empty_table() {
        let mut app = App::new(Model::new("/cg"), app().by);
        app.arrange();
        for key in
            "jk n*+-tIMGTPN<".chars().map(KeyCode::Char).chain([KeyCode::End, KeyCode::Enter, KeyCode::F(3)])
        {
            press(&mut app, key);
            press(&mut app, KeyCode::Esc);
        }
        assert!(app.selected().is_none());
    }
}
