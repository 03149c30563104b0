//! Packets at the registration socket and at the admin socket: bytes, descriptors of all
//! kinds up to the kernel's most, in one message or several parts, and their senders.

use std::{
    cell::OnceCell,
    io,
    io::IoSlice,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    path::{Path, PathBuf},
    rc::Rc,
};

use memcg_monitor::fuzzing::{
    async_fd::wait_on,
    frontend::{
        registration_socket,
        seqpacket::{Access, Connection, Listener},
    },
    watcher::EventSink,
};
use monitor_client::{
    connect,
    wire::{AdminRequest, MAX_REQUEST},
};
use nix::{
    errno::Errno,
    libc,
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::{ControlMessage, MsgFlags, Shutdown, UnixAddr, recv, sendmsg, shutdown},
    },
    unistd::{geteuid, getpid},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Runtime,
    task::LocalSet,
};

use crate::{
    Input, heap,
    stage::{Stage, descriptors, none_leaked},
};

/// Most descriptors of a message: the kernel's `SCM_MAX_FD`.
const MOST: usize = 253;
/// Packets of one client.
const PACKETS: usize = 4;
/// A line or request, its answer, and the kernel's space for 253 descriptors.
const LARGEST: usize = 1 << 16;

struct Sockets {
    stage: Stage,
    runtime: Runtime,
    tasks: LocalSet,
    registration: PathBuf,
    operator: (PathBuf, Listener),
}

thread_local! {
    // For ever: the runtime cannot be dropped after the thread's other variables.
    static SOCKETS: OnceCell<&'static Sockets> = const { OnceCell::new() };
}

/// Connects as a client, sends its packets, reads the answers, and disconnects.
pub fn run(data: &[u8]) {
    SOCKETS.with(|sockets| sockets.get_or_init(|| Box::leak(Box::new(Sockets::open()))).serve(data));
}

impl Sockets {
    fn open() -> Self {
        let stage = Stage::new(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("epoll");
        let tasks = LocalSet::new();
        let access = Access { mode: 0o600, group: None };
        let [registration, operator] = ["registration", "operator"].map(|name| stage.directory.join(name));
        let guard = runtime.enter();
        let bind = |path: &Path| {
            Listener::bind(path, &access, &stage.context.deferred_close)
                .expect("a socket in the stage's directory")
        };
        let (first, second) = (bind(&registration), bind(&operator));
        drop(guard);
        tasks.spawn_local(registration_socket::serve(
            Rc::new(first),
            stage.watcher.clone(),
            Rc::clone(&stage.context),
        ));
        Self { stage, runtime, tasks, registration, operator: (operator, second) }
    }

    fn serve(&self, data: &[u8]) {
        let before = descriptors();
        let mut input = Input(data);
        let by_json = input.byte() & 1 == 1;
        let path = if by_json { &self.operator.0 } else { &self.registration };
        let client = connect(path).expect("the socket is open");
        self.send(&client, &mut input);
        shutdown(client.as_raw_fd(), Shutdown::Write).expect("it is connected");
        let ((), taken) = heap::watch(|| {
            self.runtime.block_on(self.tasks.run_until(async {
                let client = wait_on(client).expect("epoll");
                if by_json {
                    let connection = self.operator.1.accept().await;
                    self.operate(&connection).await;
                }
                answers(&client).await;
            }));
        });
        assert!(taken.largest <= LARGEST, "a client had {} bytes taken at once", taken.largest);
        self.stage.clear();
        none_leaked(before);
    }

    fn send(&self, client: &OwnedFd, input: &mut Input<'_>) {
        for _ in 0..PACKETS {
            if input.is_empty() {
                return;
            }
            let count = usize::from(input.byte()).min(MOST);
            let kinds = [input.byte(), input.byte()];
            let (parts, who) = (input.byte(), input.byte());
            // A byte of length for each; long ones in steps, what is missing is blank.
            let length = match usize::from(input.byte()) {
                short @ 0..128 => short,
                long => (long - 127) * 64,
            };
            let mut bytes = input.bytes(length).to_vec();
            bytes.resize(length, b' ');
            self.send_one(client, &bytes, (count, kinds, parts), who);
        }
    }

    fn send_one(&self, client: &OwnedFd, bytes: &[u8], (count, kinds, parts): (usize, [u8; 2], u8), who: u8) {
        let fresh = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
        let all = &self.stage.kinds;
        let kind = |at: usize| -> RawFd {
            match kinds.get(at).map_or(at, |kind| usize::from(*kind)) % (all.len() + 1) {
                0 => fresh.as_raw_fd(),
                kind => all[kind - 1].as_raw_fd(),
            }
        };
        let fds: Vec<RawFd> = (0..count).map(kind).collect();
        let mut control: Vec<_> = match usize::from(parts) {
            _ if fds.is_empty() => Vec::new(),
            0 => vec![ControlMessage::ScmRights(&fds)],
            step => fds.chunks(step).map(ControlMessage::ScmRights).collect(),
        };
        // Who may may claim to be another user, never another process: the agent would
        // take that one's descriptors.
        let mut claim = libc::ucred { pid: getpid().as_raw(), uid: u32::from(who), gid: u32::from(who) };
        if who & 1 == 1 {
            claim.uid = 65_534;
        }
        let claim = claim.into();
        if who != 0 && geteuid().is_root() {
            control.push(ControlMessage::ScmCredentials(&claim));
        }
        let slices = [IoSlice::new(bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        // What the kernel itself does not let through never comes to the agent.
        let _ = sendmsg::<UnixAddr>(client.as_raw_fd(), &slices, &control, flags, None);
    }

    /// The admin socket, as far as it does not need the real programs.
    async fn operate(&self, connection: &Connection) {
        while let Ok(Some(packet)) = connection.receive(MAX_REQUEST).await {
            let Ok(AdminRequest::Listen(line)) = serde_json::from_slice(&packet.bytes) else { continue };
            if packet.truncated {
                continue;
            }
            let follower = EventSink::new(|_| true);
            let answer = registration_socket::from_packet(
                packet,
                line.as_bytes(),
                &mut None,
                &self.stage.watcher,
                &self.stage.context,
                Some(follower),
            )
            .await;
            if let Err(refusal) = answer {
                assert!(!refusal.reason.to_string().is_empty());
            }
        }
    }
}

/// Reads until the agent has hung up. Each answer is `0`, or an errno and its name.
async fn answers(client: &AsyncFd<OwnedFd>) {
    let mut buffer = [0; 4096];
    loop {
        let read = client
            .async_io(Interest::READABLE, |fd| {
                recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from)
            })
            .await;
        match read {
            Ok(0) => return,
            Ok(length) => {
                let answer = str::from_utf8(&buffer[..length]).expect("answers are text");
                let errno = answer.split(' ').next().unwrap_or_default().parse::<i32>();
                assert!(errno.is_ok_and(|errno| errno <= 0 && errno > -4096), "{answer}");
            }
            Err(error) if error.raw_os_error() == Some(Errno::ECONNRESET as i32) => return,
            Err(error) => panic!("recv: {error}"),
        }
    }
}
