//! A kubelet's side of the calls, by the same transport.

use std::{cell::RefCell, path::Path};

use tokio::{net::UnixListener, runtime::Builder, sync::Notify, task::LocalSet};

use super::*;

/// The socket of the plugin under test.
const OWN: &str = "memcg-monitor_socket.sock";

/// A kubelet that takes registrations.
struct Kubelet {
    registered: Rc<RefCell<Vec<Vec<u8>>>>,
    changed: Rc<Notify>,
}

impl Kubelet {
    /// Removes the plugins' sockets, as a kubelet does that starts, and serves at its own.
    fn start(directory: &Path) -> (Self, tokio::task::JoinHandle<()>) {
        for entry in fs::read_dir(directory).expect("a directory") {
            fs::remove_file(entry.expect("an entry").path()).expect("it can be removed");
        }
        let listener = UnixListener::bind(directory.join(KUBELET)).expect("a socket");
        let kubelet = Self { registered: Rc::default(), changed: Rc::default() };
        let (registered, changed) = (Rc::clone(&kubelet.registered), Rc::clone(&kubelet.changed));
        let answer: grpc::Answer = Rc::new(move |call, message| {
            assert_eq!(call, "/v1beta1.Registration/Register");
            registered.borrow_mut().push(message.to_vec());
            changed.notify_one();
            Reply::once(&[])
        });
        let serve = async move { grpc::serve(&listener, &answer).await };
        (kubelet, tokio::task::spawn_local(serve))
    }

    async fn next(&self) -> Vec<u8> {
        loop {
            if let Some(message) = self.registered.borrow_mut().pop() {
                return message;
            }
            self.changed.notified().await;
        }
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, test);
}

fn options(directory: &Path) -> PluginOptions {
    PluginOptions {
        directory: directory.to_owned(),
        resource: "memcg-monitor/socket".into(),
        count: 2,
        shared: "/run/memcg-monitor".into(),
    }
}

#[test]
fn a_kubelet_is_registered_with_whenever_it_starts() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_owned();
    run(async move {
        let (kubelet, served) = Kubelet::start(&path);
        let plugin = tokio::task::spawn_local({
            let options = options(&path);
            async move { serve(&options).await }
        });
        let expected = messages::register(OWN, "memcg-monitor/socket");
        assert_eq!(kubelet.next().await, expected);

        served.abort();
        let (kubelet, served) = Kubelet::start(&path);
        assert_eq!(kubelet.next().await, expected, "registered with the next kubelet");
        assert!(path.join(OWN).exists(), "the socket is there again");

        plugin.abort();
        assert!(plugin.await.is_err_and(|error| error.is_cancelled()));
        assert!(!path.join(OWN).exists(), "the socket is left behind");
        served.abort();
    });
}

#[test]
fn a_socket_that_was_removed_before_the_first_look_is_made_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_owned();
    run(async move {
        let (_kubelet, served) = Kubelet::start(&path);
        let (_listener, mut file) = bind(&path.join(OWN)).expect("a socket");
        fs::remove_file(path.join(OWN)).expect("it was there");
        let options = options(&path);
        let end = async |file: &SocketFile| {
            let ended = tokio::time::timeout(LOOK * 5, registered(&options, file)).await;
            ended.is_ok_and(|end| matches!(end, End::Own))
        };
        assert!(end(&file).await, "removed after it was made known");
        file.made = inode(&path.join(OWN));
        assert!(file.made.is_none() && end(&file).await, "removed before that");
        served.abort();
    });
}

#[test]
fn each_container_gets_the_directory_to_read_only() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_owned();
    run(async move {
        let (kubelet, _served) = Kubelet::start(&path);
        let plugin = tokio::task::spawn_local({
            let options = options(&path);
            async move { serve(&options).await }
        });
        kubelet.next().await;
        let socket = path.join(OWN);
        let called = |call: &'static str, message: &'static [u8]| {
            let socket = socket.clone();
            async move {
                let call = format!("/v1beta1.DevicePlugin/{call}");
                grpc::call(&socket, &call, message.to_vec()).await.map_err(|error| error.to_string())
            }
        };
        assert_eq!(called("GetDevicePluginOptions", b"").await.as_deref(), Ok(&b""[..]));
        // Two containers, of which one has two devices.
        let answer = called("Allocate", b"\n\x06\n\x010\n\x011\n\x03\n\x012").await.expect("an answer");
        let place = String::from("/run/memcg-monitor");
        let mount = Mount { container_path: place.clone(), host_path: place, read_only: true };
        assert_eq!(answer, messages::allocated(2, &mount));
        let refused = called("Allocate", b"\x0b").await.expect_err("no message");
        assert!(refused.contains("status 3"), "{refused}");
        let refused = called("PreStartContainer", b"").await.expect_err("not wanted");
        assert!(refused.contains("status 12"), "{refused}");
        plugin.abort();
    });
}

#[test]
fn what_is_in_the_way_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_owned();
    fs::write(path.join(OWN), "precious").expect("a file");
    run(async move {
        let error = serve(&options(&path)).await.expect_err("a file is in the way").to_string();
        assert!(error.contains("is not a socket"), "{error}");
        let error = serve(&options(&path.join("absent"))).await.expect_err("no directory").to_string();
        assert!(error.contains("ENOENT") && error.contains("--plugins"), "{error}");
        let error = grpc::call(&path.join(KUBELET), "/x", Vec::new()).await.expect_err("no kubelet");
        assert!(error.to_string().contains("is the kubelet running?"), "{error}");
    });
}
