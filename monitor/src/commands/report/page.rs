//! The report as one HTML page: nothing is loaded, and no script runs.

use memcg_monitor::black_box::Recording;

use super::{
    chart::{Chart, STYLE},
    element::Element,
    scale::offset,
    story::{earlier, facts, headline, moments, since, victim, zero, zero_name},
};

const PAGE_STYLE: &str = "\
body{margin:2rem auto;max-width:62rem;padding:0 1rem;background:#fff;color:#1f2328;\
font:15px/1.5 system-ui,sans-serif}h1{font-size:1.3rem}h2{font-size:1.05rem;margin-top:2rem}svg{width:100%;height:auto}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0;\
border-bottom:1px solid #d1d9e0;overflow-wrap:anywhere}th{color:#59636e;font-weight:400;white-space:nowrap}\
.when{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}\
@media(prefers-color-scheme:dark){body{background:#0d1117;color:#f0f6fc}th,td{border-bottom-color:#3d444d}\
th{color:#9198a1}}";

/// No page may be loaded by it, nor a script run, whatever a name in it says.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// The part of a recording that a second picture shows, where most of the curve is in little time.
const CLOSE_UP: f64 = 20.0;

/// The page; `last`: the nanoseconds before the end that its picture shows.
pub fn page(recording: &Recording, last: Option<f64>) -> String {
    let headline = headline(recording);
    let head = Element::new("head")
        .child(&Element::new("meta").with("charset", "utf-8"))
        .child(&Element::new("meta").with("http-equiv", "Content-Security-Policy").with("content", POLICY))
        .child(&Element::new("meta").with("name", "viewport").with("content", "width=device-width"))
        .child(&Element::new("meta").with("name", "color-scheme").with("content", "light dark"))
        .child(&Element::new("title").text(&headline))
        .child(&Element::new("style").rules(STYLE).rules(PAGE_STYLE));
    let mut body = Element::new("body")
        .child(&Element::new("h1").text(&headline))
        .child(&Chart::new(recording, last).draw());
    if let Some(last) = close_up(recording) {
        let words = format!("The last {}", super::scale::duration(last));
        body = body.child(&heading(&words)).child(&Chart::new(recording, Some(last)).draw());
    }
    for kill in recording.kills.iter().rev().take(20) {
        let rows = victim(kill).into_iter().map(|(name, value)| row(name, &value)).collect::<Vec<_>>();
        body = body.child(&heading(&format!("Killed: {}", kill.name()))).child(&table(&rows));
    }
    let (moments, left_out) = moments(recording);
    let zero = zero(recording);
    if !moments.is_empty() {
        let rows: Vec<_> = moments
            .iter()
            .map(|moment| {
                let when = Element::new("td").class("when").text(&offset(since(zero, moment.at)));
                Element::new("tr").child(&when).child(&cell(moment.what)).child(&cell(&moment.text))
            })
            .collect();
        body = body.child(&heading("What happened")).child(&table(&rows));
        let words = format!("Times are before and after the {}.", zero_name(recording));
        let more = if left_out > 0 { format!(" {} left out.", earlier(left_out)) } else { String::new() };
        body = body.child(&Element::new("p").text(&(words + &more)));
    }
    let registrations: Vec<_> = recording
        .registrations
        .iter()
        .take(500)
        .map(|one| {
            let user = one.uid.map_or_else(String::new, |uid| format!("user {uid}"));
            row(&one.registration.to_string(), &one.trigger).child(&cell(&user))
        })
        .collect();
    if !registrations.is_empty() {
        body = body.child(&heading("Registrations")).child(&table(&registrations));
    }
    let facts: Vec<_> = facts(recording).into_iter().map(|(name, value)| row(name, &value)).collect();
    body = body.child(&heading("The recording")).child(&table(&facts));
    format!("<!DOCTYPE html>\n{}", Element::new("html").with("lang", "en").child(&head).child(&body))
}

/// The time before the end that a second picture shows: where more than half of the points are in
/// the last twentieth.
fn close_up(recording: &Recording) -> Option<f64> {
    let (zero, first) = (zero(recording), recording.usage.first()?.at);
    let last = -since(zero, first) / CLOSE_UP;
    let within = recording.usage.iter().filter(|point| since(zero, point.at) >= -last).count();
    (last > 1e6 && within > 10 && within * 2 > recording.usage.len()).then_some(last)
}

fn heading(text: &str) -> Element {
    Element::new("h2").text(text)
}

fn cell(text: &str) -> Element {
    Element::new("td").text(text)
}

fn row(name: &str, value: &str) -> Element {
    Element::new("tr").child(&Element::new("th").with("scope", "row").text(name)).child(&cell(value))
}

fn table(rows: &[Element]) -> Element {
    Element::new("table").children(rows)
}
