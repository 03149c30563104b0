//! The second front door: a line written to a `cgroup.event_control` of the
//! [`view`](crate::view), by an unmodified client of cgroup v1.
//!
//! The writer waits in the kernel meanwhile, so its thread and its descriptors
//! stay what they are. The control file is looked at without taking it: an
//! `O_PATH` descriptor made through `/proc` asks nothing of the file system that
//! it lies on, be it ours or another's that never answers.

use std::{
    cell::RefCell,
    os::fd::{AsFd as _, OwnedFd},
    rc::Rc,
    sync::Arc,
};

use monitor_common::line;
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use tokio::sync::mpsc;

use crate::{
    cgroup::control_file::ControlFile,
    door::{
        inode::Inode,
        peer::{Credentials, Peer},
        request::{Refusal, Which, control_group, enroll, eventfd, gone, group_of},
    },
    eventfd::EVENTFD,
    source::{GroupId, Source},
    view::{
        Written,
        tree::{Node, Tree},
    },
    watcher::Watcher,
};

/// What it takes to understand a client's descriptors.
#[derive(Clone, Debug)]
pub struct Door {
    /// The tree that is shown.
    pub tree: Arc<Tree>,
    /// `st_dev` of the view.
    pub device: u64,
}

/// Answers writes until the view has gone.
pub async fn serve<S: Source>(
    mut writes: mpsc::Receiver<Written>,
    door: Door,
    watcher: Rc<RefCell<Watcher<S>>>,
) {
    while let Some(written) = writes.recv().await {
        let outcome = door.register(&written, &mut watcher.borrow_mut());
        match outcome {
            Ok(()) => written.reply.accept(),
            Err(refusal) => {
                log::debug!("refused thread {}: {refusal}", written.pid);
                written.reply.refuse(refusal.errno);
            }
        }
    }
}

impl Door {
    fn register<S: Source>(&self, written: &Written, watcher: &mut Watcher<S>) -> Result<(), Refusal> {
        let line = line::parse(&written.line)
            .map_err(|error| Refusal::new(Errno::from_raw(error.errno()), error.to_string()))?;
        let mut writer = Peer::writer(written.pid, written.uid, written.gid).inspect_err(|refusal| {
            // The client sees an errno only.
            log::warn!("a write to cgroup.event_control was refused: {refusal}");
        })?;
        let which = Which::Event(line.event_fd);
        let seen = writer.look_at(which)?;
        // Only an eventfd is taken: to close anything else may take an answer.
        if !seen.path_only && seen.target.as_os_str() != EVENTFD {
            return Err(Refusal::new(Errno::EINVAL, format!("{which} is not an eventfd")));
        }
        let eventfd = eventfd(&mut writer, which)?;
        let which = Which::Control(line.control_fd);
        let control = Control::of(&writer, which)?;
        let group = self.control_group(&control, which, written.group, &writer.credentials, watcher)?;
        enroll(watcher, group, line.args, eventfd, None)
    }

    /// The group to register on, in the kernel's order: may the writer read the
    /// control file, is it one that notifies, of an online group, of the very
    /// group whose `cgroup.event_control` this is.
    fn control_group<S: Source>(
        &self,
        control: &Control,
        which: Which,
        own: u64,
        client: &Credentials,
        watcher: &mut Watcher<S>,
    ) -> Result<GroupId, Refusal> {
        let invalid = |why: &str| Refusal::new(Errno::EINVAL, format!("{which} {why}"));
        let other = "belongs to another group than this cgroup.event_control";
        let inode = &control.inode;
        if inode.device == self.tree.directories().device() {
            let group = control_group(watcher, control.path.as_fd(), which, client)?;
            return if group == self.locate(own, watcher)? { Ok(group) } else { Err(invalid(other)) };
        }
        if inode.device != self.device {
            inode.must_be_readable(which, client)?;
            return Err(invalid("is not a file of a cgroup"));
        }
        let node = Node::numbered(inode.number, self.tree.directories().root_id());
        let node = node.ok_or_else(|| gone(which))?;
        // What the view says of it now; the kernel may remember an older answer.
        let found = self.tree.attributes(node).map_err(|_| gone(which))?;
        let found = Inode { mode: found.mode, uid: found.uid, gid: found.gid, ..*inode };
        found.must_be_readable(which, client)?;
        let file = match node.file {
            Some(file) if file.notifies() => file,
            Some(file) => return Err(invalid(&format!("is {}, which notifies nothing", file.name()))),
            None => return Err(invalid("is a directory")),
        };
        if node.group != own {
            return Err(invalid(other));
        }
        // ==== What can be registered on so far. The group is known to be the right
        // ==== one; each kind needs its own way into the watcher.
        match file {
            ControlFile::Usage => self.locate(own, watcher),
            _ => Err(invalid(&format!("is {}, which is not served yet", file.name()))),
        }
    }

    fn locate<S: Source>(&self, id: u64, watcher: &Watcher<S>) -> Result<GroupId, Refusal> {
        let invalid = |why: &str| Refusal::new(Errno::EINVAL, why);
        if id == self.tree.directories().root_id() {
            return Err(invalid("the root group's usage is not watched"));
        }
        let usage = self.tree.directories().version().usage_file();
        let file = self.tree.open(id).and_then(|directory| directory.file(usage));
        let file = file.map_err(|_| invalid("the group is gone"))?;
        group_of(watcher, file.as_fd(), "the group's usage file")
    }
}

/// A client's control file, looked at from outside.
struct Control {
    path: OwnedFd,
    inode: Inode,
}

impl Control {
    fn of(writer: &Peer, which: Which) -> Result<Self, Refusal> {
        let seen = writer.look_at(which)?;
        if seen.path_only {
            return Err(Refusal::new(
                Errno::EBADF,
                format!("{which} is an O_PATH descriptor; open it for reading"),
            ));
        }
        let path = open(seen.link.as_path(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|_| Refusal::new(Errno::EBADF, format!("{which} was closed")))?;
        let inode = Inode::of(path.as_fd())
            .map_err(|errno| Refusal::new(errno, format!("statx of {which} failed")))?;
        Ok(Self { path, inode })
    }
}
