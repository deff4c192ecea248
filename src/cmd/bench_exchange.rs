//! `mu bench exchange`: the measurements of the exchange, which is a program of its own.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{Status, misuse, sibling};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
    /// Further options of mu-exchange bench, after --
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    let program = sibling("mu-exchange")?;
    let mut command = Command::new(&program);
    command
        .arg("bench")
        .args(args.json.then_some("--json"))
        .args(&args.options);
    let status = command
        .status()
        .with_context(|| format!("starting {}", program.display()))?;
    match status.code() {
        Some(0) => Ok(Status::Holds),
        Some(2) => Err(misuse("mu-exchange bench refused its options, see above")),
        Some(1) => Ok(Status::DoesNotHold),
        _ => bail!("{} bench: {status}", program.display()),
    }
}
