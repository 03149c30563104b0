//! The public items of a source that rustfmt has formed: indentation says where an item ends.

/// Lists the public items: `pub` declarations with their attributes, the fields and variants
/// of public types, public methods, and implemented traits.
pub(crate) fn public(source: &str) -> String {
    let lines: Vec<&str> = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let mut found = String::new();
    let mut at = 0;
    let mut attributes = Vec::new();
    while at < lines.len() {
        let end = end_of(&lines, at);
        let item = &lines[at..end];
        let first = item[0];
        if first.starts_with("#[") {
            attributes.push(item.join(" "));
        } else if !first.is_empty() {
            if !is_for_tests(&attributes) {
                found.push_str(&of_item(item, &attributes));
            }
            attributes.clear();
        }
        at = end;
    }
    found
}

/// The line behind an item, a field or an attribute that begins at a line: the first one that
/// is indented no more, but for the closing bracket's.
fn end_of(lines: &[&str], at: usize) -> usize {
    let indent = indent_of(lines[at]);
    let is_inner = |line: &&&str| {
        let goes_on = ["}", ")", "]", "where", "{"].iter().any(|start| line.trim_start().starts_with(start));
        line.is_empty() || indent_of(line) > indent || goes_on
    };
    let ends = lines[at].ends_with([';', '}', ']', ',']) || lines[at].is_empty();
    if ends { at + 1 } else { at + 1 + lines[at + 1..].iter().take_while(is_inner).count() }
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn is_for_tests(attributes: &[String]) -> bool {
    attributes.iter().any(|attribute| attribute.starts_with("#[cfg(test)]"))
}

/// Attributes that users of the library can notice.
fn visible(attributes: &[String], indent: &str) -> String {
    const SHOWN: [&str; 6] = ["#[derive", "#[serde", "#[non_exhaustive", "#[must_use", "#[cfg", "#[error"];
    let shown = attributes.iter().filter(|text| SHOWN.iter().any(|start| text.starts_with(start)));
    shown.map(|text| format!("{indent}{text}\n")).collect()
}

fn of_item(item: &[&str], attributes: &[String]) -> String {
    let declared = declaration(item);
    if item[0].starts_with("impl") {
        let body = members(item, |line| line.starts_with("pub "));
        let is_of_trait = declared.contains(" for ");
        let is_shown = is_of_trait || !body.is_empty();
        return if is_shown {
            format!("{}{declared}\n{body}", visible(attributes, ""))
        } else {
            String::new()
        };
    }
    if !item[0].starts_with("pub ") {
        return String::new();
    }
    let body = match declared.split(' ').nth(1) {
        Some("struct") => members(item, |line| line.starts_with("pub ")),
        Some("enum") => members(item, |_| true),
        _ => String::new(),
    };
    format!("{}{declared}\n{body}", visible(attributes, ""))
}

/// An item in one line, up to its body.
fn declaration(item: &[&str]) -> String {
    let mut words = Vec::new();
    for line in item {
        words.extend(line.split_whitespace());
        if line.ends_with('{') && !line.trim_start().starts_with("pub use") {
            break;
        }
        if line.ends_with(';') {
            break;
        }
    }
    let text = words.join(" ");
    let text = text.trim_end_matches("{}").trim_end_matches(['{', ',']).trim_end();
    let text = text.split(" { ").next().filter(|_| text.contains("fn ")).unwrap_or(text);
    text.replace("( ", "(").replace(", )", ")")
}

/// The members of an item's body that are shown, with their attributes.
fn members(item: &[&str], is_shown: fn(&str) -> bool) -> String {
    let Some(start) = item.iter().position(|line| line.ends_with('{')) else { return String::new() };
    let body = &item[start + 1..];
    let mut found = String::new();
    let mut attributes = Vec::new();
    let mut at = 0;
    while at < body.len() {
        let end = end_of(body, at);
        let line = body[at].trim_start();
        if line.starts_with("#[") {
            let text: Vec<_> = body[at..end].iter().map(|line| line.trim()).collect();
            attributes.push(text.join(" "));
        } else if !line.is_empty() && !line.starts_with('}') {
            if is_shown(line) {
                found.push_str(&visible(&attributes, "    "));
                found.push_str(&format!("    {}\n", declaration(&body[at..end])));
                if !line.contains("fn ") {
                    let inner = members(&body[at..end], |_| true);
                    found.extend(inner.lines().map(|line| format!("    {line}\n")));
                }
            }
            attributes.clear();
        }
        at = end;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_items_are_listed_without_comments_and_bodies() {
        let source = "//! A file.\n\nuse a::b;\n\nmod c;\n\n/// A type.\n#[derive(Debug)]\n#[expect(x)]\n\
                      pub struct A {\n    /// A field.\n    pub a: u8,\n    b: u8,\n}\n\n#[cfg(feature = \"x\")]\n\
                      pub use c::{\n    D,\n    E,\n};\n\nimpl A {\n    /// A method.\n    #[must_use]\n    \
                      pub fn f(\n        &self,\n        a: u8,\n    ) -> u8 {\n        if a > 1 {\n            1\n        \
                      } else {\n            2\n        }\n    }\n\n    fn g() {}\n\n    pub fn h() {}\n}\n\n\
                      impl Drop for A {\n    fn drop(&mut self) {}\n}\n\nimpl B {\n    fn i() {}\n}\n\n\
                      pub enum E {\n    One,\n    #[serde(x)]\n    Two {\n        n: u8,\n    },\n}\n\n\
                      pub const N: u8 = 1;\n\npub fn k() -> u8 {\n    1\n}\n\n\
                      #[cfg(test)]\nmod tests {\n    pub fn t() {}\n}\n";
        let expected = [
            "#[derive(Debug)]",
            "pub struct A",
            "    pub a: u8",
            "#[cfg(feature = \"x\")]",
            "pub use c::{ D, E, };",
            "impl A",
            "    #[must_use]",
            "    pub fn f(&self, a: u8) -> u8",
            "    pub fn h()",
            "impl Drop for A",
            "pub enum E",
            "    One",
            "    #[serde(x)]",
            "    Two",
            "        n: u8",
            "pub const N: u8 = 1;",
            "pub fn k() -> u8",
        ];
        assert_eq!(public(source).lines().collect::<Vec<_>>(), expected);
    }
}
