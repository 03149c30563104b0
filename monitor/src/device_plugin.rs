//! The kubelet's device plugin: how a pod that may mount nothing of the host's gets the
//! registration socket.
//!
//! Pod Security's levels "baseline" and "restricted" refuse `hostPath` volumes. A container that
//! asks for the resource ([`PluginOptions::resource`]) gets the socket's directory mounted by the
//! kubelet, since this plugin answers so ([`messages`]). There is no device behind it. The calls are
//! those of `v1beta1`, the only version that kubelets have ([`grpc`] carries them).

pub(crate) mod error;
mod grpc;
mod messages;

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use tokio::net::UnixListener;

use self::{error::PluginError, grpc::Reply, messages::Mount};
use crate::{error::Result, socket_file};

/// The kubelet's own socket, in the plugins' directory.
const KUBELET: &str = "kubelet.sock";

/// Time between two looks at the sockets: a kubelet that starts removes those of all plugins, and
/// expects them to register again.
const LOOK: Duration = Duration::from_secs(1);

/// Time after which a registration that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Options of the device plugin.
#[derive(Clone, Debug)]
pub struct PluginOptions {
    /// Directory of the kubelet's socket and of the plugins'.
    pub directory: PathBuf,
    /// Name of the resource that containers ask for.
    pub resource: String,
    /// Number of containers of a node that can have it at once.
    pub count: u32,
    /// Directory on the host that they get, at the same path, to read only.
    pub shared: PathBuf,
}

/// Serves the kubelet until the future is dropped. A kubelet that is not there, or restarts, is
/// waited for.
///
/// # Errors
/// The plugins' directory, or the socket in it, cannot be used.
pub async fn serve(options: &PluginOptions) -> Result<()> {
    let path = options.directory.join(own_socket(&options.resource));
    let own = options.clone();
    let answer: grpc::Answer = Rc::new(move |call, message| answer(&own, call, message));
    loop {
        let (listener, file) = bind(&path)?;
        tokio::select! {
            () = grpc::serve(&listener, &answer) => {}
            end = registered(options, &file) => match end {
                End::Kubelet => log::info!("the kubelet has started anew; registering again"),
                End::Own if file.is_there() => {}
                End::Own if path.exists() => log::warn!(
                    "another device plugin for {} has taken the place of this one's socket, {}; one of them is too \
                     many",
                    options.resource,
                    path.display()
                ),
                End::Own => log::info!("{} was removed; registering again", path.display()),
            }
        }
        drop(file);
    }
}

/// The name of the socket of a resource's plugin, in the kubelet's directory: each resource has its own.
fn own_socket(resource: &str) -> String {
    format!("{}.sock", resource.replace('/', "_"))
}

/// The socket that has changed, which ends a registration with the kubelet.
enum End {
    /// The kubelet's socket is another one, or gone.
    Kubelet,
    /// The plugin's own socket is.
    Own,
}

/// Registers, and returns once the kubelet has to be registered with again.
async fn registered(options: &PluginOptions, own: &SocketFile) -> End {
    let kubelet = options.directory.join(KUBELET);
    let mut logged = String::new();
    loop {
        let known = inode(&kubelet);
        let request = messages::register(&own_socket(&options.resource), &options.resource);
        match grpc::call(&kubelet, "/v1beta1.Registration/Register", request).await {
            Ok(_) => {
                log::info!("registered {} with the kubelet, {} of it", options.resource, options.count);
                while inode(&kubelet) == known && own.is_there() {
                    tokio::time::sleep(LOOK).await;
                }
                return if own.is_there() { End::Kubelet } else { End::Own };
            }
            // Each once, however long the kubelet is away.
            Err(error) => {
                let text = error.to_string();
                if text != logged {
                    log::warn!("{text}; trying again");
                    logged = text;
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
        if !own.is_there() {
            return End::Own;
        }
    }
}

/// The answer to one call of the kubelet's.
fn answer(options: &PluginOptions, call: &str, message: &[u8]) -> Reply {
    match call {
        // An empty message: no further calls are wanted.
        "/v1beta1.DevicePlugin/GetDevicePluginOptions" => Reply::once(&[]),
        // The list never changes: a client waits for an agent that is not there.
        "/v1beta1.DevicePlugin/ListAndWatch" => Reply::first(&messages::devices(options.count)),
        "/v1beta1.DevicePlugin/Allocate" => {
            let Some(containers) = messages::containers(message) else {
                return Reply::refused(grpc::INVALID_ARGUMENT, "AllocateRequest cannot be read");
            };
            let shared = options.shared.display().to_string();
            let mount = Mount { container_path: shared.clone(), host_path: shared, read_only: true };
            Reply::once(&messages::allocated(containers, &mount))
        }
        _ => Reply::refused(grpc::UNIMPLEMENTED, "no such call"),
    }
}

/// A socket's file, removed with this value.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// The file as it was made; `None` where it was removed before anybody looked.
    made: Option<(u64, i64, i64)>,
}

impl SocketFile {
    /// Whether the path still leads to it.
    fn is_there(&self) -> bool {
        self.made.is_some() && inode(&self.path) == self.made
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds this plugin's socket. The kubelet keeps one plugin for a resource, so what is there was
/// left by one that died.
fn bind(path: &Path) -> Result<(UnixListener, SocketFile)> {
    socket_file::remove_left(path, || PluginError::NotASocket { path: path.into() }.into())?;
    let listener =
        UnixListener::bind(path).map_err(|error| PluginError::Directory { path: path.into(), error })?;
    Ok((listener, SocketFile { path: path.into(), made: inode(path) }))
}

/// Distinguishes a socket's file from the next one at the same path.
fn inode(path: &Path) -> Option<(u64, i64, i64)> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.ino(), found.ctime(), found.ctime_nsec()))
}

#[cfg(test)]
mod tests;
