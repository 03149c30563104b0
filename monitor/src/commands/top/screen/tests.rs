//! The screen as a terminal of 80 columns and 24 lines shows it.

use crossterm::event::KeyCode;
use ratatui::{Terminal, backend::TestBackend, style::Color};

use super::{Surroundings, Theme, draw, rows_of};
use crate::commands::top::{
    app::{
        App,
        tests::{app, press},
    },
    cells::{ASCII, UNICODE},
    host::HostMemory,
    model::OomCounts,
    source::KnownNumbers,
};

const PLAIN: Theme = Theme { signs: ASCII, has_color: false };

fn around() -> Surroundings {
    let host = HostMemory { total: 4 << 30, used: 1 << 30, swap_total: 0, swap_used: 0, pressure: Some(2.5) };
    Surroundings { host, note: "agent: fentry".into() }
}

fn terminal(app: &mut App, (width, height): (u16, u16), theme: Theme) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    app.resize(rows_of(height));
    terminal.draw(|frame| draw(frame, app, &around(), theme)).expect("memory");
    terminal
}

fn lines(app: &mut App, size: (u16, u16), theme: Theme) -> Vec<String> {
    let terminal = terminal(app, size, theme);
    let buffer = terminal.backend().buffer();
    let line = |y| (0..size.0).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..size.1).map(line).collect()
}

#[test]
fn a_screen_of_80_by_24_has_all_that_matters() {
    let mut app = app();
    let screen = lines(&mut app, (80, 24), PLAIN);
    assert_eq!(screen[0], "memcg-monitor top 22 groups  by USAGE  agent: fentry");
    assert_eq!(screen[1], format!("Mem[{:<34}] 1G/4G  Swap 0/0  PSI 2.5%", "|".repeat(9)));
    assert_eq!(screen[2], "no OOM since this began");
    assert_eq!(screen[3], " USAGE   LIMIT   ROOM GROWTH/s  LEFT  PSI%   REG  HISTORY GROUP");
    assert_eq!(screen[4], "  450M    512M    62M     +10M    6s     -     3   _.,~=# a");
    assert_eq!(screen[5], "   20M   ^512M    62M        0    6s     -     -   ______ |-child00");
    assert_eq!(screen[22], "    3M   ^512M    62M        0    6s     -     -   ______ |-child17");
    assert!(
        screen[23].starts_with("F1Help   F3Search F4Filter F5List") && screen[23].ends_with("F10Quit"),
        "{}",
        screen[23]
    );
    press(&mut app, KeyCode::End);
    let end = lines(&mut app, (80, 24), PLAIN);
    assert_eq!(end[21..23].iter().map(|line| &line[58..]).collect::<Vec<_>>(), ["`-child19", "b"]);
}

#[test]
fn every_size_is_drawn() {
    let mut app = app();
    // Characters of two cells, of none, and several that make one.
    app.model.add(7, "/sys/fs/cgroup/a/\u{4e00}\u{4e8c}\u{200b}e\u{301}\u{1f468}\u{200d}\u{1f469}");
    app.arrange();
    for width in [1, 2, 20, 38, 39, 50, 79, 80, 120, 300] {
        for height in [1, 3, 5, 6, 24, 100] {
            for key in
                [KeyCode::F(1), KeyCode::Esc, KeyCode::F(6), KeyCode::Esc, KeyCode::Enter, KeyCode::Esc]
            {
                press(&mut app, key);
                lines(&mut app, (width, height), PLAIN);
            }
        }
    }
    app.model.remove(7);
    app.arrange();
    let narrow = lines(&mut app, (40, 24), PLAIN);
    assert_eq!(narrow[3], " USAGE   ROOM GROWTH/s  LEFT GROUP");
    let wide = lines(&mut app, (120, 24), Theme { signs: UNICODE, has_color: true });
    assert!(wide[3].ends_with("HISTORY      EVENT GROUP"), "{}", wide[3]);
    assert!(
        wide[4].contains("\u{2581}\u{2582}\u{2583}\u{2585}\u{2586}\u{2588}")
            && wide[5].ends_with("\u{251c}\u{2500}child00"),
        "{}",
        wide[4]
    );
}

#[test]
fn folded_groups_lists_and_prompts_are_shown() {
    let mut app = app();
    press(&mut app, KeyCode::Char(' '));
    let folded = lines(&mut app, (80, 24), PLAIN);
    assert!(folded[4].ends_with(" +a (20 below)") && folded[5].ends_with(" b"), "{}", folded[4]);
    press(&mut app, KeyCode::Char(' '));
    press(&mut app, KeyCode::F(5));
    assert!(lines(&mut app, (80, 24), PLAIN)[5].ends_with(" /a/child00"));
    press(&mut app, KeyCode::F(4));
    press(&mut app, KeyCode::Char('9'));
    let filtered = lines(&mut app, (80, 24), PLAIN);
    assert!(filtered[0].contains("22 groups, 2 with \"9\""), "{}", filtered[0]);
    assert!(filtered[23].starts_with("Filter: 9_") && filtered[6].is_empty(), "{}", filtered[23]);
    press(&mut app, KeyCode::Esc);
    press(&mut app, KeyCode::Char('<'));
    assert!(lines(&mut app, (80, 24), PLAIN)[6].starts_with(" GROWTH/s"));
}

#[test]
fn long_names_are_cut_with_a_mark_and_shifted() {
    let mut app = app();
    app.model.add(7, &format!("/sys/fs/cgroup/{}end", "x".repeat(60)));
    app.arrange();
    let row = |app: &mut App, theme| {
        let screen = lines(app, (80, 30), theme);
        screen.into_iter().find(|line| line.contains("xx")).expect("a row")
    };
    let ascii = row(&mut app, PLAIN);
    assert!(ascii.ends_with("xx~") && ascii.len() == 80, "{ascii}");
    assert!(row(&mut app, Theme { signs: UNICODE, has_color: false }).ends_with("xx\u{2026}"));
    for _ in 0..6 {
        press(&mut app, KeyCode::Right);
    }
    assert!(row(&mut app, PLAIN).ends_with("xxend"));
}

#[test]
fn help_fits_and_details_name_whose_limit_is_near() {
    let mut app = app();
    press(&mut app, KeyCode::F(1));
    let help = lines(&mut app, (80, 24), PLAIN);
    assert!(super::HELP.lines().all(|line| line.chars().count() < 80));
    assert!(
        help[0].starts_with("memcg-monitor top:") && help[20].contains("EVENT      last OOM"),
        "{help:#?}"
    );
    press(&mut app, KeyCode::Esc);
    press(&mut app, KeyCode::Down);
    press(&mut app, KeyCode::Enter);
    let details = lines(&mut app, (80, 24), PLAIN);
    assert_eq!(details[0], "/sys/fs/cgroup/a/child00");
    assert!(details[4].ends_with("62M left to the limit of /sys/fs/cgroup/a"), "{}", details[4]);
    assert!(details[8].ends_with("registrations  0") && details[9].ends_with("limit  -"), "{details:#?}");
    let place = app.selected().expect("a group");
    app.model.set_counts(place, OomCounts { oom: 0, oom_kill: 2 });
    let counts =
        |app: &mut App| lines(app, (80, 24), PLAIN)[8..11].iter().map(|line| line[24..].to_owned()).collect();
    let known: Vec<String> = counts(&mut app);
    assert_eq!(known, ["0", "0", "2"]);
    app.known = KnownNumbers { registrations: false, ooms: false, kills: true };
    let from_files: Vec<String> = counts(&mut app);
    assert_eq!(from_files, ["-", "-", "2"]);
}

#[test]
fn names_do_not_drive_the_terminal_and_kills_are_told() {
    let mut app = app();
    app.model.add(7, "/sys/fs/cgroup/x\u{1b}[31m");
    let place = app.model.place_of(7).expect("there");
    app.model.set_counts(place, OomCounts::default());
    app.model.set_counts(place, OomCounts { oom: 1, oom_kill: 1 });
    app.model.now += 3.0;
    app.arrange();
    let screen = lines(&mut app, (120, 30), PLAIN);
    assert_eq!(screen[2], "3s ago /x\\x1b[31m: 1 process killed, out of memory");
    assert!(screen.iter().any(|line| line.contains("kill 3s x\\x1b[31m")), "{screen:#?}");
}

#[test]
fn without_colour_there_is_none() {
    let mut app = app();
    let has_color = |terminal: &Terminal<TestBackend>| {
        let cells = &terminal.backend().buffer().content;
        cells.iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    assert!(!has_color(&terminal(&mut app, (80, 24), PLAIN)));
    assert!(has_color(&terminal(&mut app, (80, 24), Theme { has_color: true, ..PLAIN })));
}
