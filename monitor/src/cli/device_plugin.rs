//! The options of the command `device-plugin`.

use std::path::{Path, PathBuf};

use clap::Args;

/// Options of the command `device-plugin`.
#[derive(Args, Debug)]
pub struct DevicePlugin {
    /// Directory of device plugins: the kubelet's socket is in it. Others than this where the
    /// kubelet has another --root-dir
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet/device-plugins", value_parser = absolute)]
    pub plugins: PathBuf,
    /// Name of the resource that a container asks for, DOMAIN/NAME
    #[arg(long, value_name = "NAME", default_value = "memcg-monitor/socket", value_parser = resource)]
    pub resource: String,
    /// Number of containers of this node that can have it at once
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub count: u32,
    /// Directory on the host that such a container gets, at the same path, to read only: that of
    /// the registration socket
    #[arg(long, value_name = "DIR", default_value = "/run/memcg-monitor", value_parser = absolute)]
    pub share: PathBuf,
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if path.is_absolute() { Ok(path.into()) } else { Err("a path that begins with /".into()) }
}

/// Reads a resource's name as a kubelet does: a domain and a name, neither of Kubernetes' own.
fn resource(text: &str) -> Result<String, String> {
    let wrong = || "DOMAIN/NAME of letters, digits, - and ., such as memcg-monitor/socket".to_owned();
    let (domain, name) = text.split_once('/').ok_or_else(wrong)?;
    let is_word = |word: &str, longest, more: &[u8]| {
        let is_inner = |byte: &u8| byte.is_ascii_alphanumeric() || more.contains(byte);
        let ends = [word.bytes().next(), word.bytes().last()];
        word.len() <= longest
            && ends.iter().all(|end| end.is_some_and(|byte| byte.is_ascii_alphanumeric()))
            && word.as_bytes().iter().all(is_inner)
    };
    let is_domain = is_word(domain, 253, b"-.") && !domain.bytes().any(|byte| byte.is_ascii_uppercase());
    if !is_domain || !is_word(name, 63, b"-._") {
        return Err(wrong());
    }
    if domain == "kubernetes.io" || domain.ends_with(".kubernetes.io") || domain.starts_with("requests.") {
        return Err("kubernetes.io and requests. are Kubernetes' own".into());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::resource;

    #[test]
    fn a_resource_is_named_as_a_kubelet_takes_it() {
        for good in ["memcg-monitor/socket", "example.com/a_b.c-d"] {
            assert_eq!(resource(good).as_deref(), Ok(good));
        }
        for bad in [
            "socket",
            "/socket",
            "a/",
            "a/b/c",
            "A/b",
            "-a/b",
            "a/b-",
            "a b/c",
            "kubernetes.io/x",
            "x.kubernetes.io/y",
            "requests.a/b",
        ] {
            assert!(resource(bad).is_err(), "{bad}");
        }
        assert!(resource(&format!("a/{}", "x".repeat(64))).is_err());
    }
}
