//! The capabilities that an agent needs while it starts, each with its purpose: the list that
//! `check` goes through, and that the documentation shows.

use caps::{CapSet, Capability};

/// A capability that the agent uses at its start, or later.
#[derive(Clone, Copy, Debug)]
pub struct NeededCapability {
    /// The capability, as the kernel numbers it.
    pub capability: Capability,
    /// Purpose, which a document's table shows word for word.
    pub purpose: &'static str,
}

/// Every capability of use to an agent, those that any agent needs first.
pub const NEEDED: [NeededCapability; 8] = [
    needed(Capability::CAP_BPF, "loading and attaching the programs, as is CAP_PERFMON"),
    needed(Capability::CAP_PERFMON, "programs at the kernel's functions, which read its memory"),
    needed(
        Capability::CAP_SYS_PTRACE,
        "descriptors that a client's line names by number, and clients' /proc",
    ),
    needed(Capability::CAP_DAC_READ_SEARCH, "cgroup directories by id, and groups of other users"),
    needed(
        Capability::CAP_SETUID,
        "a user id of its own for the eventfds that are kept for the next agent (--in-flight-uid)",
    ),
    needed(
        Capability::CAP_SYS_ADMIN,
        "mounting the view, and opening pinned programs again after a restart; not with --no-mount",
    ),
    needed(
        Capability::CAP_SYS_RESOURCE,
        "exempting the parent process of --supervised from the OOM killer; nothing else",
    ),
    needed(
        Capability::CAP_SYSLOG,
        "the kernel's log, by which the backend sampled knows of kills, where kernel.dmesg_restrict is 1",
    ),
];

const fn needed(capability: Capability, purpose: &'static str) -> NeededCapability {
    NeededCapability { capability, purpose }
}

/// Finds the capabilities among [`NEEDED`] that this thread lacks.
#[must_use]
pub fn missing() -> Vec<NeededCapability> {
    let has =
        |one: &NeededCapability| caps::has_cap(None, CapSet::Effective, one.capability).unwrap_or(false);
    NEEDED.into_iter().filter(|one| !has(one)).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::NEEDED;

    fn page(path: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        fs::read_to_string(path).expect("a page")
    }

    /// The names in the order in which a text has them first.
    fn names(text: &str) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for word in text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_') {
            if word.starts_with("CAP_") && !names.contains(&word) {
                names.push(word);
            }
        }
        names
    }

    #[test]
    fn the_documents_list_the_capabilities_that_check_goes_through() {
        let page_of_commands = page("docs/reference/commands.md");
        let rows = NEEDED.map(|one| format!("| `{}` | {} |", one.capability, one.purpose));
        for row in &rows {
            assert!(page_of_commands.contains(row), "docs/reference/commands.md lacks {row}");
        }
        let readme = page("README.md");
        let all = NEEDED.map(|one| one.capability.to_string());
        for name in names(&readme) {
            assert!(all.iter().any(|one| one == name), "{name} in README.md is none of the list");
        }
        for name in &all[..6] {
            assert!(names(&readme).contains(&name.as_str()), "README.md lacks {name}");
        }
    }
}
