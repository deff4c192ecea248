//! The `mu-exchange` command: a replica of the exchange, and its measurements.

mod cmd;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A replicated matching engine: FIX 4.4 order entry, ITCH 5.0 market data.
#[derive(Parser)]
#[command(name = "mu-exchange", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one replica of a cluster
    Serve(cmd::serve::Args),
    /// Measures: the engine alone and on mu, and orders a second through three processes
    Bench(cmd::bench::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(args) => cmd::serve::run(&args),
        Command::Bench(args) => cmd::bench::run(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("mu-exchange: {error:#}");
            ExitCode::from(if error.is::<cmd::Misuse>() { 2 } else { 1 })
        }
    }
}
