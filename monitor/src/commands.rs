//! One file for each verb of the command line.

pub mod agent;
pub mod check;
pub mod list;
pub mod listen;
pub mod status;
pub mod unmount;
