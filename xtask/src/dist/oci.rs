//! Container images as OCI archives: one for each architecture, and one for all of them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Release;
use super::program::Program;
use crate::arch::Arch;
use crate::clients::remove;
use crate::image;
use crate::process::{self, command};
use crate::workspace::target;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Writes the image of an architecture. Returns its layout.
pub(super) fn write(release: &Release, arch: Arch, program: &Program, directory: &Path) -> Result<PathBuf> {
    let layout = image::layout_for(&program.stripped, arch, release.epoch)?;
    archive(release, &layout, &path(release, arch, directory))?;
    Ok(layout)
}

fn path(release: &Release, arch: Arch, directory: &Path) -> PathBuf {
    directory.join(format!("memcg-monitor-{}-{}-oci.tar", release.version, arch.name()))
}

fn archive(release: &Release, layout: &Path, archive: &Path) -> Result<()> {
    release.tar(layout, &["blobs", "index.json", "oci-layout"], archive)
}

/// Writes one archive with the images of several architectures, of which a runtime takes its own.
pub(super) fn write_all(release: &Release, layouts: &[(Arch, PathBuf)], directory: &Path) -> Result<()> {
    let all = target().join("image/layout-all");
    remove(&all)?;
    let blobs = all.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("cannot make {}", blobs.display()))?;
    let mut manifests = Vec::new();
    for (arch, layout) in layouts {
        let from = layout.join("blobs/sha256");
        for entry in fs::read_dir(&from).with_context(|| format!("cannot list {}", from.display()))? {
            let entry = entry?;
            fs::copy(entry.path(), blobs.join(entry.file_name())).context("cannot copy a blob")?;
        }
        let manifest = &read(&layout.join("index.json"))?["manifests"][0];
        manifests.push(json!({
            "mediaType": manifest["mediaType"],
            "digest": manifest["digest"],
            "size": manifest["size"],
            "platform": { "architecture": arch.name(), "os": "linux" },
        }));
    }
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }).to_string();
    let partial = all.join("index");
    fs::write(&partial, &index).context("cannot write the index")?;
    let digest = sha256(&partial)?;
    fs::rename(&partial, blobs.join(&digest)).context("cannot rename the index")?;
    let top = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": INDEX,
        "digest": format!("sha256:{digest}"),
        "size": index.len(),
        "annotations": { "org.opencontainers.image.ref.name": release.version },
    }] });
    fs::write(all.join("index.json"), top.to_string()).context("cannot write the index")?;
    fs::copy(layouts[0].1.join("oci-layout"), all.join("oci-layout")).context("cannot copy oci-layout")?;
    check_all(&all, layouts)?;
    archive(release, &all, &directory.join(format!("memcg-monitor-{}-oci.tar", release.version)))
}

/// Returns the SHA-256 of a file.
pub(super) fn sha256(path: &Path) -> Result<String> {
    let text = process::output(command("sha256sum").arg(path))?;
    Ok(text.split_whitespace().next().context("sha256sum printed nothing")?.to_owned())
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))
}

/// Returns the path of the blob that a descriptor names.
fn blob(layout: &Path, descriptor: &Value) -> Result<PathBuf> {
    let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
    let path = layout.join("blobs/sha256").join(digest.context("a descriptor without a digest")?);
    ensure!(Some(sha256(&path)?.as_str()) == digest, "{} has another digest", path.display());
    Ok(path)
}

/// Fails unless the index leads to the image of each architecture.
fn check_all(all: &Path, layouts: &[(Arch, PathBuf)]) -> Result<()> {
    let index = read(&blob(all, &read(&all.join("index.json"))?["manifests"][0])?)?;
    for (at, (arch, _)) in layouts.iter().enumerate() {
        check_manifest(all, &index["manifests"][at], *arch)?;
    }
    Ok(())
}

/// Checks an image's configuration. Returns the path of its layer.
fn check_manifest(layout: &Path, descriptor: &Value, arch: Arch) -> Result<PathBuf> {
    let manifest = read(&blob(layout, descriptor)?)?;
    let configuration = read(&blob(layout, &manifest["config"])?)?;
    let named = &configuration["architecture"];
    ensure!(named == arch.name(), "the image is for {named}, not {}", arch.name());
    let layers = manifest["layers"].as_array().map_or(0, Vec::len);
    ensure!(layers == 1, "the image has {layers} layers");
    blob(layout, &manifest["layers"][0])
}

/// Fails unless an image has this program, and says so.
pub(super) fn check(layout: &Path, arch: Arch, program: &Program) -> Result<()> {
    let layer = check_manifest(layout, &read(&layout.join("index.json"))?["manifests"][0], arch)?;
    let packed = process::output_bytes(command("tar").arg("-xOf").arg(&layer).arg("memcg-monitor"))?;
    ensure!(packed == program.bytes()?, "{} has another program", layer.display());
    Ok(())
}
