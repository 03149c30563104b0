//! Counts memory events through the crate cgroups-rs: `cgroups-rs DIRECTORY LEVEL`.
//! Ends once the crate has closed both channels, which means a removed group.

use std::error::Error;
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::thread;

use cgroups_rs::fs::events::{notify_memory_pressure, notify_on_oom_v1};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [directory, level] = args.as_slice() else {
        return Err("usage: cgroups-rs DIRECTORY LEVEL".into());
    };
    let directory = Path::new(directory);
    let channels =
        [notify_on_oom_v1("oom", directory)?, notify_memory_pressure("pressure", directory, level)?];
    println!("registered");
    let counters = channels.map(|channel| thread::spawn(move || count(&channel)));
    for counter in counters {
        counter.join().map_err(|_| "a counter panicked")?;
    }
    Ok(())
}

fn count(channel: &Receiver<String>) {
    let mut received = 0;
    while let Ok(key) = channel.recv() {
        received += 1;
        println!("{key} {received}");
    }
    println!("closed after {received}");
}
