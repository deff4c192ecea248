//! The `mu` command.
fn main() {}
