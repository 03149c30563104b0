//! Lists of what need not keep a rule yet. A list can only become shorter: an entry without
//! a fault is a fault itself.

use std::collections::BTreeSet;

use super::Fault;

/// The exceptions to one rule, one per line of a file in `xtask/src/tidy/not_yet`.
#[derive(Debug)]
pub(super) struct NotYet {
    /// The file's name in that directory.
    pub(super) file: &'static str,
    /// The kind of the entries, in the plural and as the outcome's note calls them.
    pub(super) what: &'static str,
    pub(super) list: &'static str,
}

impl NotYet {
    fn entries(&self) -> impl Iterator<Item = &'static str> {
        self.list.lines().filter(|line| !line.is_empty())
    }

    /// The number of entries that are left.
    pub(super) fn count(&self) -> usize {
        self.entries().count()
    }

    /// Lines on the faults that no entry excepts, and on the entries without a fault.
    pub(super) fn unexpected(&self, faults: &[Fault]) -> Vec<String> {
        let entries: BTreeSet<_> = self.entries().collect();
        let mut lines: Vec<_> = faults
            .iter()
            .filter(|fault| !entries.contains(fault.key.as_str()))
            .map(ToString::to_string)
            .collect();
        for (at, entry) in self.list.lines().enumerate() {
            if !entry.is_empty() && !faults.iter().any(|fault| fault.key == entry) {
                let line = at + 1;
                lines.push(format!(
                    "{}:{line}: {entry} has no such fault any more; remove this line",
                    self.path()
                ));
            }
        }
        lines
    }

    fn path(&self) -> String {
        format!("xtask/src/tidy/not_yet/{}", self.file)
    }

    /// Writes the list as it has to be for these faults.
    #[cfg(test)]
    pub(super) fn write(&self, faults: &[Fault]) -> anyhow::Result<()> {
        let keys: BTreeSet<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
        let text: String = keys.iter().map(|key| format!("{key}\n")).collect();
        Ok(std::fs::write(crate::workspace::root().join(self.path()), text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_excepts_its_entries_and_has_none_in_vain() {
        let fault = |key: &str| Fault {
            key: key.to_owned(),
            path: key.to_owned(),
            line: 3,
            text: "is wrong; right it".to_owned(),
        };
        let list = NotYet { file: "x.txt", what: "files", list: "a.rs\nb.rs\n" };
        assert_eq!(list.count(), 2);
        assert_eq!(list.unexpected(&[fault("a.rs"), fault("b.rs"), fault("a.rs")]), Vec::<String>::new());
        assert_eq!(
            list.unexpected(&[fault("a.rs"), fault("c.rs")]),
            [
                "c.rs:3: is wrong; right it",
                "xtask/src/tidy/not_yet/x.txt:2: b.rs has no such fault any more; remove this line"
            ]
        );
    }
}
