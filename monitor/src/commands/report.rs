//! The command `memcg-monitor report`: draws a file of the black box. It needs no agent, no rights
//! and no kernel: only the file.

mod chart;
mod curve;
mod element;
mod last;
mod lines;
mod marks;
mod page;
mod scale;
mod story;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File},
    io::{self, BufReader, Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{self, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use memcg_monitor::black_box::{MAX_FILE, Recording};
use monitor_client::named;

use self::{
    chart::{Chart, STYLE},
    element::Element,
};
use crate::{
    cli::{ReportFormat, ReportOptions},
    commands::fold::columns,
};

pub fn run(options: &ReportOptions) -> Result<ExitCode> {
    let recording = read(&options.file)?;
    // A file is not folded, also where standard output is a terminal.
    let is_printed = options.output.as_ref().is_none_or(|path| path == Path::new("-"));
    let columns = if is_printed { columns() } else { None };
    let text = drawn(recording, (options.format, columns), options.last)?;
    match &options.output {
        Some(path) if path != Path::new("-") => write(path, &options.file, &text)?,
        _ => {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a report: a file has the whole of it or stays as it was. The recording itself is not overwritten.
fn write(path: &Path, recording: &Path, text: &str) -> Result<()> {
    let shown = path.display();
    let found = fs::metadata(path).ok();
    let is_same = |found: &fs::Metadata| {
        fs::metadata(recording).is_ok_and(|file| (file.dev(), file.ino()) == (found.dev(), found.ino()))
    };
    if found.as_ref().is_some_and(is_same) {
        bail!("{shown} is the recording itself; write the report to another file");
    }
    let failed = |call: &'static str| move |error: io::Error| anyhow!("{call} {shown}: {}", named(&error));
    // A device, a pipe or a link is written as it is.
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        return fs::write(path, text).map_err(failed("write"));
    }
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{}.new", process::id()));
    let written = File::create_new(&unfinished)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&unfinished, path));
    written.inspect_err(|_| _ = fs::remove_file(&unfinished)).map_err(failed("write"))
}

fn read(path: &Path) -> Result<Recording> {
    if path == Path::new("-") {
        return Recording::read(io::stdin().lock()).context("standard input");
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => bail!(
            "open {}: {}; `memcg-monitor record` writes a file, and so does a kill (agent --black-box)",
            path.display(),
            named(&error)
        ),
    };
    // A device or a pipe may never end.
    let bounded = BufReader::new(file.take(MAX_FILE + 1));
    Recording::read(bounded).with_context(|| path.display().to_string())
}

/// The report in a form, its text folded to so many columns, if any; `last`: the time before the end that it
/// is of.
fn drawn(
    recording: Recording,
    (format, columns): (ReportFormat, Option<usize>),
    last: Option<Duration>,
) -> Result<String> {
    let recording = &match last {
        Some(last) => last::only_last(recording, last),
        None => recording,
    };
    let last = last.map(|last| last.as_nanos() as f64);
    Ok(match format {
        ReportFormat::Svg => {
            let style = Element::new("style").rules(STYLE);
            Chart::new(recording, last).draw().child(&style).to_string()
        }
        ReportFormat::Html => page::page(recording, last),
        ReportFormat::Text => {
            let mut text = Vec::new();
            lines::write(&mut text, recording, columns)?;
            String::from_utf8(text)?
        }
        ReportFormat::Json => serde_json::to_string(recording)? + "\n",
    })
}
