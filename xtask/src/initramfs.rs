//! Writes the VM's root file system: a cpio archive in the "newc" format.

/// An archive that grows by one entry per call. Directories come before what is in them.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

/// A device node's kind and numbers.
#[derive(Debug, Clone, Copy, Default)]
struct Device {
    major: u32,
    minor: u32,
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Archive {
    pub(crate) fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, Device::default(), &[]);
    }

    pub(crate) fn program(&mut self, path: &str, contents: &[u8]) {
        self.entry(path, FILE | 0o755, Device::default(), contents);
    }

    pub(crate) fn file(&mut self, path: &str, contents: &[u8]) {
        self.entry(path, FILE | 0o644, Device::default(), contents);
    }

    pub(crate) fn link(&mut self, path: &str, to: &str) {
        self.entry(path, LINK | 0o777, Device::default(), to.as_bytes());
    }

    pub(crate) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER_DEVICE | 0o600, Device { major, minor }, &[]);
    }

    /// Adds the end mark and returns the archive's bytes.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, Device::default(), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: Device, contents: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(contents.len()).expect("a file of the VM is below 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("a path is short");
        // inode, mode, uid, gid, links, mtime, size, device of the file system,
        // device of the node, length of the name, checksum (unused).
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, device.major, device.minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_newc_to_the_byte() {
        let mut archive = Archive::default();
        archive.file("abc", b"hello");
        archive.character_device("tty", 4, 65);
        let bytes = archive.finish();

        let mut expected = String::new();
        expected += "07070100000001000081a400000000000000000000000100000000";
        expected += "0000000500000000000000000000000000000000000000040000000";
        expected += "0abc\0\0\0hello\0\0\0";
        expected += "070701000000020000218000000000000000000000000100000000";
        expected += "0000000000000000000000000000000400000041000000040000000";
        expected += "0tty\0\0\0";
        expected += "070701000000030000000000000000000000000000000100000000";
        expected += "00000000000000000000000000000000000000000000000b0000000";
        expected += "0TRAILER!!!\0\0\0\0";
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
    }
}
