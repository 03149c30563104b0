//! Names, and what each file takes.
