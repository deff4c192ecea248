//! The far process of a measurement between two processes. Started by `mu` itself, never by people.

use anyhow::Result;

use mu::host::die_with;

use super::Status;
use crate::bench::backend::open_shm;
use crate::bench::map_raw::Words;
use crate::bench::peer::{Link, Lost, WORDS, serve};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Descriptor of the words shared with the near end
    #[arg(long)]
    words: i32,
    /// Process to die with
    #[arg(long)]
    parent: i32,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    die_with(args.parent)?;
    let words = Words::inherited(args.words, WORDS)?;
    let mut link = Link::new(std::io::stdin(), std::io::stdout());
    match serve(&open_shm()?, &mut link, &words) {
        // The near end knows why, and it is the one that reports.
        Err(error) if error.is::<Lost>() => Ok(Status::DoesNotHold),
        done => done.map(|()| Status::Holds),
    }
}
