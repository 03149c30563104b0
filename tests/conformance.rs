//! Conformance with the real kernel.
