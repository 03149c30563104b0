//! The connection of a watch: each event becomes a row, and is sent as fast as its reader takes it.

use std::{io, rc::Rc};

use monitor_client::wire::{Answer, EventRow};

use crate::{
    frontend::{
        event_row,
        seqpacket::Connection,
        watch::{
            growth,
            hub::Hub,
            member::{Happened, Told, WatchItem},
            request::Watch,
        },
    },
    kernel::page_size,
    watcher::Cause,
};

/// Serves a watch until its connection ends, and then ends it.
pub(in crate::frontend) async fn follow(
    connection: &Connection,
    hub: &Rc<Hub>,
    watch: Watch,
    mut told: Told,
) -> io::Result<()> {
    let served = hub.begin(watch);
    loop {
        let next = tokio::select! {
            next = told.items.recv() => next,
            // A watcher says nothing more; this ends when it leaves.
            _ = connection.receive(1) => return Ok(()),
        };
        let answer = match next {
            None => return Ok(()),
            Some(WatchItem::Watching(groups)) => Answer::Watching { groups },
            Some(WatchItem::Note(row)) => Answer::Note(row),
            Some(WatchItem::Missed(count, why)) => Answer::Missed { count, why },
            Some(WatchItem::Event(happened)) => {
                if let Cause::OomKill(kill) = &happened.event.cause {
                    kill.looked_up().await;
                }
                Answer::Event(row(hub, served.watch(), &happened, told.take_lost()))
            }
        };
        connection.send(&serde_json::to_vec(&answer)?).await?;
    }
}

/// The row of an event, with what the group's own numbers add to it.
fn row(hub: &Hub, watch: &Watch, happened: &Happened, lost: u64) -> EventRow {
    let Happened { time, member, spec, event, late } = happened;
    let mut row = event_row::row(*time, event, lost, |id| {
        if id == member.id { member.path.to_string_lossy().into_owned() } else { hub.name_of(id) }
    });
    row.id = member.id;
    row.spec = watch.specs.get(*spec).map(|(text, _)| text.as_ref().to_owned());
    row.late = late.is_some();
    let page = page_size();
    let (mut usage, mut limit) = (row.usage.map(|usage| usage / page), None);
    match late {
        Some((peak, of_then)) => {
            row.peak = Some(peak * page);
            limit = Some(*of_then);
        }
        None if event.cause != Cause::Removed => (usage, limit) = hub.numbers(member.group, usage),
        None => {}
    }
    row.usage = usage.map(|usage| usage * page);
    row.limit = limit.filter(|limit| *limit != u64::MAX).map(|limit| limit * page);
    // What is told late may have happened at any time.
    let has_growth = late.is_none() && growth::is_told_with(&event.cause);
    row.growth = usage.filter(|_| has_growth).and_then(|usage| hub.growth(member.group, usage));
    row
}
