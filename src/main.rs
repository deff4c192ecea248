//! The `mu` command: reads the command line, runs one command, and turns its outcome into an exit status.

mod bench;
mod cluster;
mod cmd;
mod demo;
mod local;
mod rdma;
mod redis;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cmd::Cli::parse().run()
}
