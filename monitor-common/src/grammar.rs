//! The grammar of what clients write: a registration's line, and its arguments for each
//! control file.

pub mod control_file;
pub mod line;
pub mod pressure;
pub mod threshold;
