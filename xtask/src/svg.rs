//! Parts of pictures, as SVG has them.

/// Text as it stands between two tags.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
