//! Elements of SVG and HTML. Names that processes and users chose are in them: every text and
//! every attribute is escaped here, and nowhere else.

use std::fmt::{self, Display, Write as _};

use memcg_monitor::printable;

/// One element, with what is in it.
#[derive(Debug)]
pub struct Element {
    name: &'static str,
    attributes: String,
    content: String,
}

impl Element {
    pub const fn new(name: &'static str) -> Self {
        Self { name, attributes: String::new(), content: String::new() }
    }

    /// Adds an attribute, whose value is escaped.
    pub fn with(mut self, name: &str, value: impl Display) -> Self {
        // Writing to a string does not fail.
        let _ = write!(self.attributes, " {name}=\"{}\"", escaped(&value.to_string()));
        self
    }

    /// Adds a coordinate or a length, to a tenth of a pixel.
    pub fn length(self, name: &str, value: f64) -> Self {
        let tenths = (value * 10.0).round() / 10.0;
        self.with(name, tenths)
    }

    pub fn class(self, class: &str) -> Self {
        self.with("class", class)
    }

    pub fn text(mut self, text: &str) -> Self {
        self.content.push_str(&escaped(text));
        self
    }

    pub fn child(mut self, child: &Self) -> Self {
        // Writing to a string does not fail.
        let _ = write!(self.content, "{child}");
        self
    }

    pub fn children<'a>(self, children: impl IntoIterator<Item = &'a Self>) -> Self {
        children.into_iter().fold(self, Self::child)
    }

    /// Adds the rules of a style sheet, which are the program's own.
    pub fn rules(mut self, rules: &'static str) -> Self {
        self.content.push_str(rules);
        self
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, attributes, content } = self;
        if content.is_empty() && matches!(*name, "path" | "rect" | "line" | "circle" | "meta") {
            return writeln!(f, "<{name}{attributes}/>");
        }
        writeln!(f, "<{name}{attributes}>{content}</{name}>")
    }
}

/// Text as it stands between tags and in quotes; a character that XML does not have is replaced.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in printable(text).chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\u{fffe}' | '\u{ffff}' => safe.push('\u{fffd}'),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Element;

    #[test]
    fn what_is_in_it_is_escaped() {
        let element = Element::new("text").with("x", "\"><script>").text("<b>&'\u{1b}[2J");
        assert_eq!(
            element.to_string(),
            "<text x=\"&quot;&gt;&lt;script&gt;\">&lt;b&gt;&amp;&#39;\\x1b[2J</text>\n"
        );
        assert_eq!(Element::new("rect").length("x", 1.2345).to_string(), "<rect x=\"1.2\"/>\n");
    }

    proptest! {
        #[test]
        fn no_text_is_markup(text in any::<String>()) {
            let element = Element::new("text").with("class", &text).text(&text).to_string();
            prop_assert_eq!(element.matches('<').count(), 2);
            prop_assert_eq!(element.matches('>').count(), 2);
            prop_assert_eq!(element.matches('"').count(), 2);
        }
    }
}
