//! The connection of a watch: each event becomes a row, and is sent as fast as its reader takes it.

use std::{io, rc::Rc};

use monitor_client::wire::{Answer, EventRow};
use nix::errno::Errno;

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

/// Longest packet in bytes: clients take twice as much.
const LONGEST: usize = 128 * 1024;

/// The reason why an event is only counted.
const TOO_LONG: &str = "events with names too long to be told";

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
        send(connection, &answer).await?;
    }
}

/// Sends an answer. One that is too long for a packet, here or by the socket's buffer (`wmem_default`), is
/// counted instead: users choose the names in it.
async fn send(connection: &Connection, answer: &Answer) -> io::Result<()> {
    let packet = serde_json::to_vec(answer)?;
    if packet.len() <= LONGEST {
        match connection.send(&packet).await {
            Err(error) if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) => {}
            sent => return sent,
        }
    }
    let count = match answer {
        Answer::Event(row) => row.lost.saturating_add(1),
        Answer::Missed { count, .. } => *count,
        _ => 1,
    };
    let missed = Answer::Missed { count, why: TOO_LONG.into() };
    connection.send(&serde_json::to_vec(&missed)?).await
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use monitor_client::connect;
    use nix::sys::socket::{MsgFlags, recv};
    use tokio::{runtime::Builder, task::LocalSet};

    use super::{Answer, EventRow, LONGEST, TOO_LONG, send};
    use crate::frontend::{
        deferred_close::DeferredClose,
        seqpacket::{Access, Listener},
    };

    #[test]
    fn an_event_that_is_too_long_is_counted_and_the_next_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let event =
            |length| Answer::Event(EventRow { cgroup: "x".repeat(length), lost: 2, ..EventRow::default() });
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client = LocalSet::new().block_on(&runtime, async {
            let access = Access { mode: 0o600, group: None };
            let listener = Listener::bind(&path, &access, &DeferredClose::idle()).expect("a socket");
            let client = connect(&path).expect("a listener");
            let connection = listener.accept().await;
            for length in [LONGEST + 1, 3] {
                send(&connection, &event(length)).await.expect("the connection goes on");
            }
            client
        });
        let received = || {
            let mut packet = vec![0; 2 * LONGEST];
            let length = recv(client.as_raw_fd(), &mut packet, MsgFlags::empty()).expect("a packet");
            serde_json::from_slice::<Answer>(&packet[..length]).expect("an answer")
        };
        assert_eq!(received(), Answer::Missed { count: 3, why: TOO_LONG.into() });
        assert_eq!(received(), event(3));
    }
}
