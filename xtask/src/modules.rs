//! Kernel modules for the VM: found by name, with what they depend on.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::{command, output_bytes};

/// A module's name and its decompressed contents.
pub(crate) type Module = (String, Vec<u8>);

/// Returns the wanted modules and their dependencies in loading order. One that the
/// kernel has built in is no file and thus not among them.
pub(crate) fn collect(directory: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = HashMap::new();
    index(&directory.join("kernel"), &mut files)?;
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for name in wanted {
        add(name, &files, &mut seen, &mut found)?;
    }
    Ok(found)
}

fn index(directory: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            index(&path, files)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(normal(name), path);
        }
    }
    Ok(())
}

fn add(
    name: &str,
    files: &HashMap<String, PathBuf>,
    seen: &mut BTreeSet<String>,
    found: &mut Vec<Module>,
) -> Result<()> {
    let name = normal(name);
    let Some(path) = files.get(&name) else {
        return Ok(());
    };
    if !seen.insert(name.clone()) {
        return Ok(());
    }
    let contents = read(path)?;
    for dependency in depends(&contents) {
        add(&dependency, files, seen, found)?;
    }
    found.push((name, contents));
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    output_bytes(command(program).args(["-d", "-c"]).arg(path))
        .with_context(|| format!("cannot decompress {}; is {program} installed?", path.display()))
}

/// The `depends=a,b` string of a module's .modinfo section. Packages carry no
/// modules.dep: depmod makes it at installation.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(normal).collect()
}

/// Returns the kernel's form of a name: a file is `lzo-rle.ko`, its module `lzo_rle`.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_depend_on() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let kernel = directory.path().join("kernel/drivers");
        fs::create_dir_all(&kernel).expect("directories");
        fs::write(kernel.join("zram.ko"), b"x\0depends=zs-malloc,base\0").expect("zram");
        fs::write(kernel.join("zs_malloc.ko"), b"x\0depends=base\0").expect("zs_malloc");
        fs::write(kernel.join("base.ko"), b"x\0depends=\0").expect("base");
        let found = collect(directory.path(), &["zram", "built-in"]).expect("collected");
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["base", "zs_malloc", "zram"]);
    }
}
