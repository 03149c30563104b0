//! gRPC as far as the kubelet's calls need it: HTTP/2 on a unix socket, without compression.

use std::{
    collections::VecDeque,
    convert::Infallible,
    path::Path,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    HeaderMap, Request, Response,
    body::{Body, Frame, Incoming},
    client,
    header::{CONTENT_TYPE, HeaderValue, TE},
    rt::Executor,
    server,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::timeout,
};

use crate::{
    device_plugin::error::PluginError,
    error::{Error, Result},
};

/// Status of a call that is not served.
pub(super) const UNIMPLEMENTED: u32 = 12;

/// Status of a call whose message cannot be read.
pub(super) const INVALID_ARGUMENT: u32 = 3;

const OK: u32 = 0;

/// Longest message that is read; the kubelet's are a few hundred bytes.
const LONGEST: usize = 1 << 20;

/// Longest time of a call to the kubelet, and until a request of its is there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most connections at once: the kubelet has one, and one more for a moment.
const CONNECTIONS: usize = 8;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const STATUS: &str = "grpc-status";
const MESSAGE: &str = "grpc-message";

/// The answer to a call: messages, then the status.
#[derive(Debug)]
pub(super) struct Reply {
    frames: VecDeque<Frame<Bytes>>,
    /// No end: the connection's end is this call's.
    stays: bool,
}

impl Reply {
    /// Answers with one message.
    pub(super) fn once(message: &[u8]) -> Self {
        let frames = [Frame::data(framed(message)), Frame::trailers(status(OK, ""))];
        Self { frames: frames.into(), stays: false }
    }

    /// Answers with one message, the first of a stream that stays open.
    pub(super) fn first(message: &[u8]) -> Self {
        Self { frames: [Frame::data(framed(message))].into(), stays: true }
    }

    /// Refuses the call with a status.
    pub(super) fn refused(number: u32, why: &'static str) -> Self {
        Self { frames: [Frame::trailers(status(number, why))].into(), stays: false }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.frames.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None if self.stays => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

fn status(number: u32, why: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(STATUS, number.into());
    if !why.is_empty() {
        headers.insert(MESSAGE, HeaderValue::from_static(why));
    }
    headers
}

/// A message with its head: not compressed, and the length.
fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}

/// The message of a body that has exactly one.
fn unframed(body: &Bytes) -> Option<Bytes> {
    let (head, message) = body.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?);
    (head[0] == 0 && usize::try_from(length) == Ok(message.len())).then(|| body.slice(5..))
}

/// Runs connections' tasks on the thread that made them.
#[derive(Clone, Copy, Debug)]
struct OnThisThread;

impl<F: Future + 'static> Executor<F> for OnThisThread {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}

/// Answers a call by its path and its message.
pub(super) type Answer = Rc<dyn Fn(&str, &[u8]) -> Reply>;

/// Serves calls until the future is dropped, which ends their connections, too.
pub(super) async fn serve(listener: &UnixListener, answer: &Answer) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                while connections.try_join_next().is_some() {}
                if connections.len() < CONNECTIONS {
                    connections.spawn_local(converse(stream, Rc::clone(answer)));
                }
            }
            Err(error) => {
                log::warn!("accept on the plugin's socket: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, answer: Answer) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = Rc::clone(&answer);
        async move { Ok::<_, Infallible>(respond(request, &answer).await) }
    });
    let connection =
        server::conn::http2::Builder::new(OnThisThread).serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        log::debug!("the kubelet's connection: {error}");
    }
}

async fn respond(request: Request<Incoming>, answer: &Answer) -> Response<Reply> {
    let (head, body) = request.into_parts();
    let body = timeout(PATIENCE, Limited::new(body, LONGEST).collect()).await;
    let message = body.ok().and_then(Result::ok).and_then(|body| unframed(&body.to_bytes()));
    let reply = match message {
        Some(message) => answer(head.uri.path(), &message),
        None => Reply::refused(INVALID_ARGUMENT, "not one message, uncompressed"),
    };
    let mut response = Response::new(reply);
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// Calls a server at a socket, and returns its message.
///
/// # Errors
/// It cannot be connected to, does not answer in time, or refuses.
pub(super) async fn call(socket: &Path, call: &str, message: Vec<u8>) -> Result<Bytes> {
    let failed = |why: String| -> Error { PluginError::Call { path: socket.into(), why }.into() };
    timeout(PATIENCE, call_now(socket, call, message))
        .await
        .unwrap_or_else(|_| Err(failed(format!("no answer within {} s", PATIENCE.as_secs()))))
}

async fn call_now(socket: &Path, call: &str, message: Vec<u8>) -> Result<Bytes> {
    let failed = |why: String| -> Error { PluginError::Call { path: socket.into(), why }.into() };
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| PluginError::Connect { path: socket.into(), error })?;
    let (mut sender, connection) = client::conn::http2::handshake(OnThisThread, TokioIo::new(stream))
        .await
        .map_err(|error| failed(error.to_string()))?;
    let mut tasks = JoinSet::new();
    tasks.spawn_local(connection);
    let request = Request::post(format!("http://localhost{call}"))
        .header(CONTENT_TYPE, GRPC)
        .header(TE, "trailers")
        .body(Full::new(framed(&message)))
        .map_err(|error| failed(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(|error| failed(error.to_string()))?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, LONGEST).collect().await.map_err(|error| failed(error.to_string()))?;
    // A refusal may have no body: then the status is in the head.
    let text = |name: &str| {
        let found =
            body.trailers().and_then(|trailers| trailers.get(name)).or_else(|| head.headers.get(name));
        found.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    match text(STATUS) {
        Some(status) if status == "0" => {}
        status => {
            let status = status.unwrap_or_else(|| format!("none (HTTP {})", head.status.as_u16()));
            let message = text(MESSAGE).unwrap_or_default();
            return Err(PluginError::Refused { path: socket.into(), status, message }.into());
        }
    }
    unframed(&body.to_bytes()).ok_or_else(|| failed("not one message, uncompressed".into()))
}
