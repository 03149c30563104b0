//! The grammar of what clients write: a registration's line, its arguments for each control
//! file, and the request for a watch.

pub mod control_file;
pub mod line;
pub mod pattern;
pub mod pressure;
pub mod spec;
pub mod threshold;
pub mod watch;
