//! Errors of the programs in the kernel: their pins, their object, the programs that they replace,
//! and the agent's queries to them.

use std::path::PathBuf;

/// Reasons why programs cannot be pinned in a directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinsError {
    /// The path has no last part that could be made.
    #[error("--pins {path}: name a directory")]
    NoName {
        /// Path that was given for the pins.
        path: PathBuf,
    },
    /// Something else than a directory has the name.
    #[error("{path} is not a directory, and belongs to {}: remove it", user(*owner))]
    NotADirectory {
        /// Path that was given for the pins.
        path: PathBuf,
        /// User id of the owner, where that can be seen.
        owner: Option<u32>,
    },
    /// The directory is on another file system.
    #[error("{path} is not on a BPF file system (mount -t bpf -o mode=0700 bpf /sys/fs/bpf)")]
    NotOnBpffs {
        /// Path that was given for the pins.
        path: PathBuf,
    },
    /// The directory belongs to another user than the agent's.
    #[error(
        "{path} belongs to user id {owner}, the agent is {own}: that user could remove pins. Remove it and chmod 0700 /sys/fs/bpf, or name another directory by --pins"
    )]
    OtherOwner {
        /// Path that was given for the pins.
        path: PathBuf,
        /// User id of the owner.
        owner: u32,
        /// User id of the agent.
        own: u32,
    },
    /// Other users may write to the directory.
    #[error("{path} may be written to by others (mode {mode:o}): chmod 0700 {path}")]
    WritableByOthers {
        /// Path that was given for the pins.
        path: PathBuf,
        /// Permission bits of the directory.
        mode: u32,
    },
    /// Other users can put another directory in place of one on the way to the pins.
    #[error(
        "{path}, above the directory for pins, can be changed by others (owner {owner}, mode {mode:o}): name another directory by --pins"
    )]
    AboveChangeable {
        /// Path of the directory above.
        path: PathBuf,
        /// User id of that directory's owner.
        owner: u32,
        /// Permission bits of that directory.
        mode: u32,
    },
    /// Another agent has the directory locked.
    #[error("another agent uses {path}; give this one another directory with --pins")]
    InUse {
        /// Path that was given for the pins.
        path: PathBuf,
    },
}

/// Words for the owner of a file.
fn user(id: Option<u32>) -> String {
    id.map_or_else(|| "another user".into(), |id| format!("user id {id}"))
}

/// Parts that the object with the programs lacks, or has in another form.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// The object has no program of this name.
    #[error("the object has no program `{0}`")]
    NoProgram(&'static str),
    /// The object has no map of this name.
    #[error("the object has no map {0}")]
    NoMap(String),
    /// The map of this name cannot be pinned, by its type.
    #[error("the map {0} is of another type")]
    WrongType(&'static str),
    /// A map that the agent maps into its memory is not an array.
    #[error("a shared map is not an array")]
    NotAnArray,
}

/// Reasons why pinned programs cannot be taken over from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PredecessorError {
    /// The tables of the pinned programs have a layout that this agent does not know.
    #[error("the tables of the pinned programs are of layout {schema}, which this agent cannot read")]
    UnknownLayout {
        /// Number of the layout.
        schema: u32,
    },
    /// The pinned map with the answer cell has no entry.
    #[error("the pinned answer cell is empty")]
    NoAnswerCell,
}

/// Failures of a query to the programs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The programs are being pinned, or their pinning has failed.
    #[error("the programs are not attached")]
    NotAttached,
    /// The program that answers queries is missing among those loaded.
    #[error("the program `ask` is not loaded")]
    NotLoaded,
    /// The cell in which queries are answered is not mapped.
    #[error("the answer cell is not mapped")]
    NoAnswerCell,
    /// The cell in which reads of files are answered is not mapped.
    #[error("the cell for readings is not mapped")]
    NoReadingsCell,
    /// The kernel has run the program too seldom to answer.
    #[error("the program `ask` does not run (BPF_PROG_TEST_RUN)")]
    DoesNotRun,
    /// The program cannot read a number of a group.
    #[error("the counter of slot {slot} cannot be read (ask: {code})")]
    Counter {
        /// Slot of the group in the table.
        slot: u32,
        /// Verdict that the program returned.
        code: u64,
    },
    /// The program cannot read the reference counts of files.
    #[error("the references of eventfds cannot be counted (ask: {code})")]
    References {
        /// Verdict that the program returned.
        code: u64,
    },
    /// The program at `eventfd_show_fdinfo` did not see the agent's read.
    #[error("the kernel did not say which eventfd this is (eventfd_show_fdinfo)")]
    UnknownEventfd,
}
