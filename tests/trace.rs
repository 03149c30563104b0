//! The counter's own trace.
