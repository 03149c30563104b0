//! The vectors that the clients of all languages share, `clients/vectors.json`: what those
//! clients write is good here, and what they read is what is sent.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use anyhow::{Context as _, Result, ensure};
use monitor_common::grammar::{
    control_file::{self, ControlFile},
    line,
};
use serde_json::Value;

use crate::{
    Error, Target,
    admin::answer_of,
    register::outcome,
    wire::{AdminRequest, Answer, EventRow},
};

const PAGE: u64 = 4096;

/// Calls `check` with each vector of a kind, of which there must be some.
fn each(kind: &str, check: impl Fn(&Value) -> Result<()>) -> Result<()> {
    let all: Value = serde_json::from_str(include_str!("../../clients/vectors.json"))?;
    let vectors = all[kind].as_array().with_context(|| format!("there are no {kind}"))?;
    ensure!(!vectors.is_empty(), "there are no {kind}");
    vectors.iter().try_for_each(|vector| check(vector).with_context(|| vector.to_string()))
}

fn text<'a>(vector: &'a Value, name: &str) -> Result<&'a str> {
    vector[name].as_str().with_context(|| format!("it has no text {name}"))
}

/// Parses arguments as the agent does.
fn parse(file: &str, args: &str) -> Result<Result<(), i32>> {
    let file =
        ControlFile::from_name(file.as_bytes()).with_context(|| format!("{file} is no control file"))?;
    let (args, _) = control_file::split_exact(args.as_bytes());
    Ok(control_file::parse(file, args, PAGE).map(drop).map_err(control_file::ArgsError::errno))
}

#[test]
fn what_clients_request_is_in_the_grammar() -> Result<()> {
    each("requests", |vector| {
        ensure!(parse(text(vector, "file")?, text(vector, "args")?)?.is_ok(), "it is refused");
        Ok(())
    })?;
    each("refused", |vector| {
        let errno = parse(text(vector, "file")?, text(vector, "args")?)?.err();
        ensure!(errno.map(i64::from) == vector["errno"].as_i64(), "{errno:?}");
        Ok(())
    })
}

#[test]
fn lines_are_read_as_they_are_meant() -> Result<()> {
    each("lines", |vector| {
        let sent = text(vector, "line")?;
        let line = line::parse(sent.as_bytes())?;
        let descriptors = [&vector["event_fd"], &vector["control_fd"]].map(Value::as_u64);
        ensure!(descriptors == [line.event_fd, line.control_fd].map(|fd| Some(fd.into())), "{line:?}");
        // White space at the end is dropped.
        let args = text(vector, "args")?.trim_end().as_bytes();
        ensure!(line.args == args, "{line:?}");
        let request: AdminRequest = serde_json::from_str(text(vector, "listen")?)?;
        ensure!(request == AdminRequest::Listen(sent.to_owned()), "{request:?}");
        Ok(())
    })
}

#[test]
fn targets_are_opened_as_every_client_does() -> Result<()> {
    each("targets", |vector| {
        let directory = tempfile::tempdir()?;
        for name in vector["has"].as_array().context("it has files")? {
            fs::write(directory.path().join(name.as_str().context("a name")?), "0\n")?;
        }
        let opened = Target::open(&directory.path().join(text(vector, "file")?));
        if let Some(errno) = vector["errno"].as_i64() {
            let found = opened.err().and_then(|error| error.errno());
            ensure!(found.map(i64::from) == Some(errno), "{found:?}");
            return Ok(());
        }
        let target = opened?;
        let fd = fs::read_link(format!("/proc/self/fd/{}", target.as_fd().as_raw_fd()))?;
        ensure!(fd == directory.path().join(text(vector, "opens")?).components().as_path(), "{fd:?}");
        ensure!(target.args(text(vector, "args")?) == text(vector, "sends")?, "{target:?}");
        let mark = target.into_mark();
        ensure!(mark.is_there()?, "{mark:?}");
        fs::write(directory.path().join("other"), "")?;
        fs::rename(directory.path().join("other"), directory.path().join(text(vector, "mark")?))?;
        ensure!(!mark.is_there()?, "a namesake is not the group: {mark:?}");
        Ok(())
    })
}

#[test]
fn answers_of_the_registration_socket_are_read() -> Result<()> {
    each("answers", |vector| {
        check(vector, &outcome(text(vector, "packet")?.as_bytes()).map(|()| "registered"))
    })
}

#[test]
fn answers_of_the_admin_socket_are_read() -> Result<()> {
    each("events", |vector| {
        let answer = answer_of(text(vector, "packet")?.as_bytes());
        let kind = match answer {
            Ok(None) => Err(Error::agent_ended()),
            Ok(Some(Answer::Listening)) => Ok("listening"),
            Ok(Some(Answer::Event(row))) => {
                check_row(&row, &vector["event"])?;
                Ok("event")
            }
            Ok(Some(other)) => Err(Error::Answer(format!("{other:?}"))),
            Err(error) => Err(error),
        };
        check(vector, &kind)
    })
}

fn check(vector: &Value, found: &crate::Result<&str>) -> Result<()> {
    let (kind, errno, message) = match found {
        Ok(kind) => (*kind, None, None),
        Err(Error::Refused { errno, message }) => {
            ("refused", Some(i64::from(*errno)), Some(message.as_str()))
        }
        Err(Error::Ended(_)) => ("ended", None, None),
        Err(Error::Answer(_)) => ("not understood", None, None),
        Err(other) => ("another error", other.errno().map(i64::from), None),
    };
    let wanted = (text(vector, "outcome")?, vector["errno"].as_i64(), vector["message"].as_str());
    ensure!((kind, errno, message) == wanted, "{found:?}");
    Ok(())
}

/// Compares a row with a vector, which names all that the row can have: what is absent is null, 0 or
/// false.
fn check_row(row: &EventRow, wanted: &Value) -> Result<()> {
    let found = serde_json::to_value(row)?;
    let mut wanted = wanted.clone();
    drop_absent(&mut wanted);
    ensure!(found == wanted, "{found} is not {wanted}");
    Ok(())
}

fn drop_absent(value: &mut Value) {
    let is_absent = |name: &str, member: &Value| match name {
        "id" | "lost" => member.as_u64() == Some(0),
        "late" | "command_cut" => member.as_bool() == Some(false),
        _ => member.is_null(),
    };
    if let Value::Object(members) = value {
        members.retain(|name, member| !is_absent(name, member));
        members.values_mut().for_each(drop_absent);
    }
}
