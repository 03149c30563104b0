//! A write to a `cgroup.event_control`, on its way to the agent's loop and back.

use fuser::ReplyWrite;
use nix::errno::Errno;

use crate::view::share::QueuePlace;

/// Registrations that wait for the frontends' thread, of all users together; each is a
/// client's blocked thread. Those beyond a user's [`share`](super::share) are refused.
pub(super) const WAITING: usize = 1024;

/// One write to a `cgroup.event_control`. Its writer waits in the kernel.
#[derive(Debug)]
pub struct Written {
    /// The bytes that were written.
    pub line: Vec<u8>,
    /// Thread id of the writer; 0 when it is outside the agent's pid namespace.
    pub pid: i32,
    /// File-system user id of the writer.
    pub uid: u32,
    /// File-system group id of the writer.
    pub gid: u32,
    /// Id of the directory of the `cgroup.event_control`.
    pub group: u64,
    /// Handle that answers the writer.
    pub reply: WrittenReply,
}

/// Answers a write, at the latest when it is dropped.
#[derive(Debug)]
pub struct WrittenReply {
    reply: Option<ReplyWrite>,
    length: usize,
    _place: QueuePlace,
}

impl WrittenReply {
    pub(crate) const fn new(reply: ReplyWrite, length: usize, place: QueuePlace) -> Self {
        Self { reply: Some(reply), length, _place: place }
    }

    /// Answers that all bytes were written.
    pub fn accept(mut self) {
        if let Some(reply) = self.reply.take() {
            reply.written(self.length.try_into().unwrap_or(u32::MAX));
        }
    }

    /// Answers with an error.
    pub fn refuse(mut self, errno: Errno) {
        self.answer(errno);
    }

    fn answer(&mut self, errno: Errno) {
        if let Some(reply) = self.reply.take() {
            reply.error(fuser::Errno::from_i32(errno as i32));
        }
    }
}

impl Drop for WrittenReply {
    fn drop(&mut self) {
        // The agent ends: the errno that a later write would get.
        self.answer(Errno::ENOTCONN);
    }
}
