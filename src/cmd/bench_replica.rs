//! A replica of `mu bench failover` and `mu bench rejoin`. Started by `mu` itself, never by people: it is `mu serve`
//! with something around it that does faults to it, or has it tell its state, when the parent says so, through words
//! that it inherits. No other command has that.

use anyhow::Result;

use super::{Status, serve};
use crate::bench::failover::replica::Marionette;

// Its group would have the name of the one inside.
#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    serve: serve::Args,
    /// Descriptor of the words shared with the measurement
    #[arg(long)]
    words: i32,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    let strings = Marionette::inherited(args.words, args.serve.id())?;
    serve::run_in(&args.serve, strings)
}
