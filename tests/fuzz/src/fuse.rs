//! Requests to the view, as bytes on the FUSE device. The view, its session and the
//! frontend behind a `cgroup.event_control` are the real ones.

use std::{
    cell::OnceCell,
    collections::HashMap,
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsRawFd as _, OwnedFd},
    rc::Rc,
    sync::Arc,
};

use fuser::{Config, Session, SessionACL};
use memcg_monitor::fuzzing::{
    cgroup::V1File,
    frontend,
    view::{Node, View},
};
use nix::{
    libc,
    sys::socket::{
        AddressFamily, Shutdown, SockFlag, SockType, setsockopt, shutdown, socketpair,
        sockopt::{ReceiveTimeout, SndBuf},
    },
    unistd::getpid,
};
use tokio::{runtime::Runtime, sync::mpsc, task::LocalSet};

use crate::{
    Input, heap,
    stage::{Stage, descriptors, none_leaked},
};

/// Requests of one session.
const REQUESTS: usize = 16;
/// Requests that are not answered, by the protocol.
const FORGET: u32 = 2;
const BATCH_FORGET: u32 = 42;
const INIT: u32 = 26;
const DESTROY: u32 = 38;
const READ: u32 = 15;
const WRITE: u32 = 16;
const SETXATTR: u32 = 21;
const IOCTL: u32 = 39;
/// Stands for a request that comes as it is, header and all.
const RAW: u32 = 0xff;
/// Size of `struct fuse_in_header`, in bytes.
const IN_HEADER: usize = 40;
/// Size of `struct fuse_out_header`, in bytes.
const OUT_HEADER: usize = 16;
/// A text, its answer, names: nothing of the view's own is larger.
const LARGEST: usize = 1 << 16;

struct Theatre {
    stage: Stage,
    runtime: Runtime,
}

thread_local! {
    // For ever: the runtime cannot be dropped after the thread's other variables.
    static THEATRE: OnceCell<&'static Theatre> = const { OnceCell::new() };
}

/// A session: greeting, requests, and the answers to them.
pub fn run(data: &[u8]) {
    THEATRE.with(|theatre| theatre.get_or_init(|| Box::leak(Box::new(Theatre::open()))).play(data));
}

impl Theatre {
    fn open() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("epoll");
        Self { stage: Stage::new(true), runtime }
    }

    fn play(&self, data: &[u8]) {
        let before = descriptors();
        self.session(Input(data));
        self.stage.clear();
        none_leaked(before);
    }

    fn session(&self, mut input: Input<'_>) {
        let (device, kernel) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .expect("a pair");
        setsockopt(&device, SndBuf, &(4 << 20)).expect("a buffer");
        setsockopt(&kernel, SndBuf, &(4 << 20)).expect("a buffer");
        let kernel = File::from(kernel);
        (&kernel).write_all(&greeting()).expect("room for it");
        let mut pending = HashMap::new();
        for unique in 2..2 + REQUESTS as u64 {
            if input.is_empty() {
                break;
            }
            let request = self.request(&mut input, unique);
            // As an empty packet, its end.
            if request.bytes.is_empty() || (&kernel).write_all(&request.bytes).is_err() {
                break;
            }
            pending.insert(unique, request);
        }
        shutdown(kernel.as_raw_fd(), Shutdown::Write).expect("it is connected");

        let ((), taken) = heap::watch(|| self.answer(device));
        assert!(taken.largest <= LARGEST, "a request had {} bytes taken at once", taken.largest);
        check(&kernel, pending);
    }

    /// Serves the session to its end, and then the writes that came out of it.
    fn answer(&self, device: OwnedFd) {
        let (writes, written) = mpsc::channel(REQUESTS);
        let view = View::new(Arc::clone(&self.stage.tree), writes);
        let mut config = Config::default();
        config.n_threads = Some(1);
        let Ok(session) = Session::from_fd(view, device, SessionACL::All, config) else { return };
        // An error says how the session ended; each ends.
        let _ = session.run();
        let (watcher, context) = (self.stage.watcher.clone(), Rc::clone(&self.stage.context));
        LocalSet::new()
            .block_on(&self.runtime, frontend::event_control_write::serve(written, watcher, context));
    }

    fn request(&self, input: &mut Input<'_>, unique: u64) -> Request {
        let (opcode, node) = (u32::from(input.byte()), input.byte());
        // A byte of length for each; long ones in steps, what is missing is blank.
        let length = match usize::from(input.byte()) {
            short @ 0..128 => short,
            long => (long - 127) * 64,
        };
        if opcode == RAW {
            // All of it as it comes.
            let mut bytes = input.bytes(length).to_vec();
            true_size(&mut bytes);
            return Request { opcode, size: 0, bytes };
        }
        let who = input.byte();
        let mut body = input.bytes(length).to_vec();
        body.resize(length, b' ');
        let node = match usize::from(node & 7) {
            group @ 0..4 => match (self.stage.groups[group], u64::from(node >> 3)) {
                (_, 0) if group == 0 => 1,
                (id, file) => Node { group: id, file: numbered(file) }.number(self.stage.groups[0]),
            },
            4 => u64::from(node >> 3),
            5 => u64::MAX - u64::from(node >> 3),
            6 => u64::from(input.word()),
            _ => u64::from(input.word()) << 32 | u64::from(input.word()),
        };
        // Its own process, or one out of sight: another's descriptors are not touched.
        let pid = match who & 3 {
            0 | 1 => getpid().as_raw().unsigned_abs(),
            2 => 0,
            _ => u32::MAX,
        };
        let uid = if who & 4 == 0 { 0 } else { 65_534 };
        let size = body.get(16..20).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
        let mut bytes = Vec::with_capacity(IN_HEADER + body.len());
        let total = u32::try_from(IN_HEADER + body.len()).expect("short");
        // Now and then another length than it has.
        let total = if who & 0x80 == 0 { total } else { total.wrapping_add(u32::from(who & 0x78)) };
        bytes.extend(total.to_le_bytes());
        bytes.extend(opcode.to_le_bytes());
        bytes.extend(unique.to_le_bytes());
        bytes.extend(node.to_le_bytes());
        for word in [uid, uid, pid, 0] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(body);
        true_size(&mut bytes);
        Request { opcode, size, bytes }
    }
}

/// The kernel says of these how much data follows, and of each how long it is; fuser
/// takes anything else for a bug of its own, but for less than was announced.
fn true_size(request: &mut [u8]) {
    let length = u32::try_from(request.len()).expect("short");
    if let Some(announced) = request.first_chunk_mut() {
        *announced = u32::from_le_bytes(*announced).max(length).to_le_bytes();
    }
    let Some(opcode) = request.get(4..8) else { return };
    let (size_at, follows) = match u32::from_le_bytes(opcode.try_into().expect("four")) {
        WRITE => (56, Some(80)),
        SETXATTR => {
            let name = request.get(48..).and_then(|rest| rest.iter().position(|byte| *byte == 0));
            (40, name.map(|length| 48 + length + 1))
        }
        IOCTL => (64, Some(72)),
        _ => return,
    };
    let Some(length) = follows.and_then(|follows| request.len().checked_sub(follows)) else { return };
    let length = u32::try_from(length).expect("short");
    request[size_at..size_at + 4].copy_from_slice(&length.to_le_bytes());
}

#[derive(Debug)]
struct Request {
    opcode: u32,
    /// Most bytes that a `READ` may be answered with.
    size: u32,
    bytes: Vec<u8>,
}

/// The file that an input names by a number of five bits. `cgroup.event_control` is 1, so that
/// most inputs that name a file register.
fn numbered(number: u64) -> Option<V1File> {
    match V1File::numbered(number)? {
        V1File::Procs => Some(V1File::EventControl),
        V1File::EventControl => Some(V1File::Procs),
        file => Some(file),
    }
}

/// `FUSE_INIT` of a recent kernel.
fn greeting() -> Vec<u8> {
    let mut words = vec![0_u32; 26];
    words[..4].copy_from_slice(&[104, INIT, 1, 0]);
    // Version 7.39, 128 KiB of read-ahead, every flag.
    words[10..14].copy_from_slice(&[7, 39, 1 << 17, u32::MAX]);
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// At most one answer to each request, and one to each that was looked at; the length
/// is right; an error is an errno; no more data than was requested.
fn check(kernel: &File, mut pending: HashMap<u64, Request>) {
    // All has been answered: what is not there now is not to come.
    let none = nix::sys::time::TimeVal::new(0, 1);
    setsockopt(kernel, ReceiveTimeout, &none).expect("a timeout");
    let mut buffer = vec![0; 1 << 20];
    let mut last = 0;
    // The number of a raw one is its own affair, perhaps another's.
    let wild = pending.values().any(|request| request.opcode == RAW);
    loop {
        let length = match (&*kernel).read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => break,
            Err(error) => panic!("read: {error}"),
        };
        let answer = &buffer[..length];
        assert!(length >= OUT_HEADER, "{length} bytes are no answer");
        let word = |at: usize| u32::from_le_bytes(answer[at..at + 4].try_into().expect("four"));
        assert_eq!(usize::try_from(word(0)), Ok(length));
        let error = word(4).cast_signed();
        assert!(error <= 0 && error > -4096, "{error} is no errno");
        let unique = u64::from(word(12)) << 32 | u64::from(word(8));
        if unique == 1 {
            continue; // The greeting's.
        }
        let Some(request) = pending.remove(&unique) else {
            assert!(wild, "answered twice: {unique}");
            continue;
        };
        last = last.max(unique);
        if request.opcode == READ && error == 0 && !wild {
            assert!(length - OUT_HEADER <= request.size as usize, "more than was requested");
        }
    }
    // Every write before an answered one was looked at, too. Writes are
    // answered late.
    for (unique, request) in pending {
        let silent = wild || [FORGET, BATCH_FORGET, DESTROY, WRITE].contains(&request.opcode);
        assert!(silent || unique > last, "not answered: {request:?}");
    }
}
