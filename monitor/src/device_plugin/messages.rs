//! The messages of `v1beta1` that are needed (`k8s.io/kubelet/pkg/apis/deviceplugin`), in Protocol
//! Buffers' encoding. Fields that later versions add are skipped.

use prost::Message;

/// The only version of the calls that kubelets have.
const VERSION: &str = "v1beta1";

/// A directory of the host's that a container gets.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Mount {
    #[prost(string, tag = "1")]
    pub(super) container_path: String,
    #[prost(string, tag = "2")]
    pub(super) host_path: String,
    #[prost(bool, tag = "3")]
    pub(super) read_only: bool,
}

#[derive(Clone, PartialEq, Message)]
struct RegisterRequest {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    endpoint: String,
    #[prost(string, tag = "3")]
    resource_name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ListAndWatchResponse {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<Device>,
}

#[derive(Clone, PartialEq, Message)]
struct Device {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    health: String,
}

#[derive(Clone, PartialEq, Message)]
struct AllocateRequest {
    #[prost(message, repeated, tag = "1")]
    container_requests: Vec<ContainerAllocateRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerAllocateRequest {
    #[prost(string, repeated, tag = "1")]
    devices_ids: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct AllocateResponse {
    #[prost(message, repeated, tag = "1")]
    container_responses: Vec<ContainerAllocateResponse>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerAllocateResponse {
    #[prost(message, repeated, tag = "2")]
    mounts: Vec<Mount>,
}

/// `RegisterRequest`: the plugin's socket beside the kubelet's, and the resource.
pub(super) fn register(endpoint: &str, resource: &str) -> Vec<u8> {
    let (version, endpoint, resource_name) = (VERSION.into(), endpoint.into(), resource.into());
    RegisterRequest { version, endpoint, resource_name }.encode_to_vec()
}

/// `ListAndWatchResponse`: this many devices, all healthy.
pub(super) fn devices(count: u32) -> Vec<u8> {
    let device = |number: u32| Device { id: number.to_string(), health: "Healthy".into() };
    ListAndWatchResponse { devices: (0..count).map(device).collect() }.encode_to_vec()
}

/// `AllocateResponse`: the mount, for each of the containers.
pub(super) fn allocated(containers: usize, mount: &Mount) -> Vec<u8> {
    let one = ContainerAllocateResponse { mounts: vec![mount.clone()] };
    AllocateResponse { container_responses: vec![one; containers] }.encode_to_vec()
}

/// Counts the containers of an `AllocateRequest`; `None` where it cannot be read.
pub(super) fn containers(message: &[u8]) -> Option<usize> {
    Some(AllocateRequest::decode(message).ok()?.container_requests.len())
}

#[cfg(test)]
mod tests {
    use super::{Mount, allocated, containers, devices, register};

    #[test]
    fn messages_are_encoded_as_protocol_buffers_are() {
        assert_eq!(register("a.sock", "b/c"), b"\n\x07v1beta1\x12\x06a.sock\x1a\x03b/c");
        assert_eq!(devices(2), b"\n\x0c\n\x010\x12\x07Healthy\n\x0c\n\x011\x12\x07Healthy");
        let mount = Mount { container_path: "/c".into(), host_path: "/h".into(), read_only: true };
        let one = b"\n\x0c\x12\n\n\x02/c\x12\x02/h\x18\x01";
        assert_eq!(allocated(1, &mount), one);
        assert_eq!(allocated(2, &mount), [&one[..], one].concat());
        // 300 bytes take two bytes of length.
        let long = "x".repeat(300);
        assert_eq!(register(&long, "")[9..12], [0x12, 0xac, 0x02]);
    }

    #[test]
    fn containers_are_counted_whatever_else_a_later_version_sends() {
        assert_eq!(containers(b""), Some(0));
        assert_eq!(containers(b"\n\x03\n\x010"), Some(1));
        assert_eq!(containers(b"\n\x03\n\x010\n\x00"), Some(2));
        // Other fields: a number, eight bytes, a text, four bytes.
        assert_eq!(containers(b"\x10\x96\x01\x1912345678\x22\x02hi\x2d1234\n\x00"), Some(1));
        for broken in [&b"\n"[..], b"\n\x05abc", b"\x0b", b"\x80", b"\x2d123", &[0xff; 12]] {
            assert_eq!(containers(broken), None, "{broken:?}");
        }
    }
}
