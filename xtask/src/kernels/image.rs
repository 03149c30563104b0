//! Architecture and version of a kernel, as its image has them.

use std::path::Path;

use crate::arch::Arch;

/// Returns architecture and version of an image that a boot loader starts.
pub(super) fn read(path: &Path, image: &[u8]) -> Option<(Arch, String)> {
    if let Some(release) = bzimage(image) {
        return Some((Arch::Amd64, release));
    }
    if image.get(0x38..0x3c)? != b"ARMd" {
        return None;
    }
    Some((Arch::Arm64, named(path).or_else(|| banner(image))?))
}

/// The version string that the boot header points to (Documentation/arch/x86/boot.rst).
fn bzimage(image: &[u8]) -> Option<String> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let offset = u16::from_le_bytes(image.get(0x20e..0x210)?.try_into().ok()?);
    let text = image.get(0x200 + usize::from(offset)..)?;
    let end = text.iter().position(|byte| matches!(byte, 0 | b' '))?;
    Some(String::from_utf8_lossy(text.get(..end)?).into_owned())
}

/// The version in `vmlinuz-RELEASE` or `lib/modules/RELEASE/vmlinuz`: arm64's header
/// (Documentation/arch/arm64/booting.rst) has none.
fn named(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy();
    if let Some(release) = name.strip_prefix("vmlinuz-") {
        return Some(release.to_owned());
    }
    let directory = path.parent()?;
    let is_modules = directory.parent()?.file_name()? == "modules";
    is_modules.then(|| Some(directory.file_name()?.to_string_lossy().into_owned()))?
}

/// The version in the kernel's banner, where the image is not compressed.
fn banner(image: &[u8]) -> Option<String> {
    const WORDS: &[u8] = b"Linux version ";
    let mut rest = image;
    loop {
        let at = rest.iter().position(|byte| *byte == WORDS[0])?;
        rest = &rest[at..];
        // Another of these texts is a format, with a `%s` there.
        if rest.starts_with(WORDS) && rest.get(WORDS.len()).is_some_and(u8::is_ascii_digit) {
            let text = &rest[WORDS.len()..];
            let end = text.iter().position(|byte| matches!(byte, 0 | b' '))?;
            return Some(String::from_utf8_lossy(&text[..end]).into_owned());
        }
        rest = &rest[1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_header_of_a_bzimage_has_the_release() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x30a].copy_from_slice(b"7.2.1-abc ");
        let path = Path::new("vmlinuz");
        assert_eq!(read(path, &image), Some((Arch::Amd64, "7.2.1-abc".to_owned())));
        assert_eq!(read(path, b"short"), None);
    }

    #[test]
    fn an_image_for_arm64_is_known_by_its_header_and_named_by_its_place() {
        let mut image = vec![0; 0x400];
        image[0x38..0x3c].copy_from_slice(b"ARMd");
        let release = |path: &str, image: &[u8]| read(Path::new(path), image).map(|(_, release)| release);
        assert_eq!(release("/boot/vmlinuz-6.12-arm64", &image).as_deref(), Some("6.12-arm64"));
        assert_eq!(release("/lib/modules/7.2-arm64/vmlinuz", &image).as_deref(), Some("7.2-arm64"));
        assert_eq!(release("arch/arm64/boot/Image", &image), None);
        image.extend_from_slice(b"Linux Linux version %s\0 Linux version 7.2.1-mine (me@here)\0");
        assert_eq!(release("arch/arm64/boot/Image", &image).as_deref(), Some("7.2.1-mine"));
        image[0x38] = 0;
        assert_eq!(release("/boot/vmlinuz-6.12-arm64", &image), None);
    }
}
