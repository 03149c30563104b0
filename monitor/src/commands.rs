//! The commands of the command line, one file for each.

pub mod agent;
pub mod check;
pub mod list;
pub mod listen;
pub mod status;
pub mod unmount;
