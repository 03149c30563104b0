//! An OCI bundle, made of a manifest and an image as a kubelet and its runtime would.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::scenarios::deploy::debian::output;

/// Directory of what the host packed.
const SHARE: &str = "/usr/share/memcg-monitor";

/// A directory that runc starts.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) directory: PathBuf,
}

/// The configuration of an image.
struct Image {
    entrypoint: Vec<Value>,
    env: Value,
}

impl Bundle {
    /// Path on the host of a volume of the pod's own.
    pub(super) fn volume(&self, name: &str) -> PathBuf {
        self.directory.join("volumes").join(name)
    }

    /// The first container of a manifest, with its own group at `cgroup`.
    /// A user namespace maps its users to `users` and above.
    pub(super) fn of(name: &str, manifest: &str, cgroup: &str, users: Option<u32>) -> Result<Self> {
        let directory = PathBuf::from("/var/lib/memcg-containers").join(name);
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(directory.join("rootfs"))
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let image = unpack(&directory.join("rootfs"))?;
        let manifest = read(&Path::new(SHARE).join(format!("kubernetes/{manifest}.json")))?;
        let mut config = config(&directory, &manifest, &image, cgroup)?;
        if let Some(users) = users {
            map_users(&mut config, users);
            // A runtime maps the image's files, too.
            let root = directory.join("rootfs").display().to_string();
            output("chown", &["-R", &format!("{users}:{users}"), &root])?;
        }
        fs::write(directory.join("config.json"), config.to_string()).context("cannot write config.json")?;
        Ok(Self { directory })
    }
}

/// Maps user ids as `hostUsers: false` does.
fn map_users(config: &mut Value, first: u32) {
    let map = json!([{ "containerID": 0, "hostID": first, "size": 65536 }]);
    let linux = &mut config["linux"];
    (linux["uidMappings"], linux["gidMappings"]) = (map.clone(), map);
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.push(json!({ "type": "user" }));
    }
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
}

/// Unpacks the layers of the image, in their order.
fn unpack(root: &Path) -> Result<Image> {
    let layout = Path::new(SHARE).join("image");
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().context("a descriptor without a digest")?;
        Ok::<_, anyhow::Error>(layout.join("blobs").join(digest.replace(':', "/")))
    };
    let index = read(&layout.join("index.json"))?;
    let manifest = read(&blob(&index["manifests"][0])?)?;
    for layer in manifest["layers"].as_array().context("an image without layers")? {
        let path = blob(layer)?;
        output("tar", &["-xzf", &path.display().to_string(), "-C", &root.display().to_string()])?;
    }
    let config = read(&blob(&manifest["config"])?)?;
    let entrypoint = config["config"]["Entrypoint"].as_array().cloned().unwrap_or_default();
    Ok(Image { entrypoint, env: config["config"]["Env"].clone() })
}

/// The runtime's own defaults for a pod, and what the manifest says.
fn config(directory: &Path, manifest: &Value, image: &Image, cgroup: &str) -> Result<Value> {
    let template = &manifest["spec"]["template"]["spec"];
    let pod = if template.is_null() { &manifest["spec"] } else { template };
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    ensure!(security["privileged"] == false, "the manifest is privileged");
    ensure!(security["capabilities"]["drop"] == json!(["ALL"]), "the manifest keeps default capabilities");
    let added = security["capabilities"]["add"].as_array().cloned().unwrap_or_default();
    let capabilities: Vec<_> =
        added.iter().filter_map(Value::as_str).map(|name| format!("CAP_{name}")).collect();
    let given = container["args"].as_array().cloned().unwrap_or_default();
    let args = [image.entrypoint.as_slice(), given.as_slice()].concat();
    let mut namespaces = vec!["mount", "uts", "ipc", "network", "cgroup"];
    if pod["hostPID"] != true {
        namespaces.push("pid");
    }
    let limit = container["resources"]["limits"]["memory"].as_str().context("no limit of memory")?;
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {
                "uid": security["runAsUser"],
                "gid": security["runAsGroup"].as_u64().unwrap_or(0),
            },
            "args": args,
            "env": image.env,
            "cwd": "/",
            "noNewPrivileges": security["allowPrivilegeEscalation"] == false,
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
        },
        "root": { "path": "rootfs", "readonly": security["readOnlyRootFilesystem"] },
        "hostname": "pod",
        "mounts": mounts(directory, pod, container)?,
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces.iter().map(|kind| json!({ "type": kind })).collect::<Vec<_>>(),
            "resources": {
                "memory": { "limit": mebibytes(limit)? << 20 },
                "devices": [{ "allow": false, "access": "rwm" }],
            },
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }))
}

/// Makes a volume of the pod's own (`emptyDir`), and returns its path on the host.
fn empty_directory(bundle: &Path, volume: &Value) -> Result<PathBuf> {
    let name = volume.as_str().context("a volume without a name")?;
    Ok(Bundle { directory: bundle.to_owned() }.volume(name))
}

fn mounts(directory: &Path, pod: &Value, container: &Value) -> Result<Vec<Value>> {
    let plain = ["nosuid", "noexec", "nodev"];
    let mount = |point: &str, kind: &str, options: &[&str]| json!({ "destination": point, "type": kind, "source": kind, "options": options });
    let mut mounts = vec![
        mount("/proc", "proc", &plain),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    for volume in container["volumeMounts"].as_array().into_iter().flatten() {
        let all = pod["volumes"].as_array().into_iter().flatten();
        let source = all.clone().find(|found| found["name"] == volume["name"]);
        let source = source.with_context(|| format!("no volume {}", volume["name"]))?;
        let host = &source["hostPath"];
        let own = source["emptyDir"].is_object();
        let path = match host["path"].as_str() {
            Some(path) => PathBuf::from(path),
            None if own => empty_directory(directory, &source["name"])?,
            None => bail!("the volume {} is of another kind", volume["name"]),
        };
        if own || host["type"] == "DirectoryOrCreate" {
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let access = if volume["readOnly"] == true { "ro" } else { "rw" };
        let point = volume["mountPath"].clone();
        mounts.retain(|mount| mount["destination"] != point);
        mounts.push(
            json!({ "destination": point, "type": "bind", "source": path, "options": ["rbind", "rprivate", "nosuid", "nodev", access] }),
        );
    }
    // What a kubelet mounts for the resource, by the device plugin's answer.
    if container["resources"]["limits"]["memcg-monitor/socket"].is_number() {
        mounts.push(json!({
            "destination": "/run/memcg-monitor", "type": "bind", "source": "/run/memcg-monitor",
            "options": ["rbind", "rprivate", "nosuid", "nodev", "ro"],
        }));
    }
    Ok(mounts)
}

/// Number of bytes of a text such as `64Mi`.
fn mebibytes(text: &str) -> Result<u64> {
    let number = text.strip_suffix("Mi").and_then(|number| number.parse().ok());
    number.with_context(|| format!("{text:?} is not a number of Mi"))
}
