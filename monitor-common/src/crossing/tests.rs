//! Marks against a naive model that sees every value.
