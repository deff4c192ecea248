//! The `mu-exchange` command.

fn main() {}
