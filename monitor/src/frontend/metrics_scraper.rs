//! A scraper's connection at the unix socket of the metrics.
//!
//! A client may send descriptors along with its request, of any kind: one that lingers, or whose file
//! system never answers, would have the thread that closes it wait. They are taken and left to the
//! threads for that, and so is the connection, in whose queue more may lie.

use std::{
    io,
    os::fd::AsFd as _,
    pin::Pin,
    task::{Context, Poll, ready},
};

use monitor_sys::message::{MAX_DESCRIPTORS, receive};
use nix::sys::socket::MsgFlags;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::UnixStream,
};

use crate::{frontend::deferred_close::DeferredClose, registry::Account};

/// A connection whose descriptors are closed by other threads.
#[derive(Debug)]
pub(super) struct ScraperStream {
    stream: Option<UnixStream>,
    account: Account,
    deferred_close: DeferredClose,
}

impl ScraperStream {
    /// Wraps a connection that was accepted; what it brings counts against `account`.
    pub(super) const fn new(stream: UnixStream, account: Account, deferred_close: DeferredClose) -> Self {
        Self { stream: Some(stream), account, deferred_close }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut UnixStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for ScraperStream {
    fn drop(&mut self) {
        if let Some(Ok(stream)) = self.stream.take().map(UnixStream::into_std) {
            self.deferred_close.close(self.account, stream.into());
        }
    }
}

impl AsyncRead for ScraperStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let stream = self.stream()?;
            ready!(stream.poll_read_ready(context))?;
            let received = stream.try_io(Interest::READABLE, || {
                let flags = MsgFlags::MSG_DONTWAIT;
                Ok(receive(stream.as_fd(), buffer.initialize_unfilled(), MAX_DESCRIPTORS, flags)?)
            });
            match received {
                Ok(message) => {
                    buffer.advance(message.length);
                    for fd in message.descriptors {
                        self.deferred_close.close(self.account, fd);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for ScraperStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::IoSlice,
        os::{fd::AsRawFd as _, unix::net::UnixStream as Client},
    };

    use nix::{
        sys::socket::{ControlMessage, sendmsg},
        unistd::pipe,
    };
    use tokio::{io::AsyncReadExt as _, runtime::Builder};

    use super::{Account, DeferredClose, MsgFlags, ScraperStream, UnixStream};

    #[test]
    fn descriptors_and_the_connection_are_closed_by_other_threads() {
        let runtime = Builder::new_current_thread().enable_io().build().expect("a runtime");
        runtime.block_on(async {
            let (ours, theirs) = Client::pair().expect("a pair");
            ours.set_nonblocking(true).expect("fcntl");
            // Without threads, to see what waits for them.
            let closer = DeferredClose::idle();
            let ours = UnixStream::from_std(ours).expect("epoll");
            let mut scraper = ScraperStream::new(ours, Account::User(1), closer.clone());
            let (foreign, _) = pipe().expect("a pipe");
            let (bytes, fds) = ([IoSlice::new(b"GET /")], [foreign.as_raw_fd()]);
            let rights = [ControlMessage::ScmRights(&fds)];
            sendmsg::<()>(theirs.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).expect("room");
            let mut request = [0; 5];
            scraper.read_exact(&mut request).await.expect("a request");
            assert_eq!((&request, closer.waiting()), (b"GET /", 1));
            drop(theirs);
            assert_eq!(scraper.read(&mut request).await.expect("the end"), 0);
            drop(scraper);
            assert_eq!(closer.waiting(), 2);
        });
    }
}
