//! The far process of a measurement between two processes. Started by `mu` itself, never by people.

use anyhow::{Context as _, Result, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

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
    set_pdeathsig(Signal::SIGKILL).context("prctl PR_SET_PDEATHSIG")?;
    // The parent may have died before the line above.
    ensure!(
        getppid() == Pid::from_raw(args.parent),
        "the process that started this one is gone"
    );
    let words = Words::inherited(args.words, WORDS)?;
    let mut link = Link::new(std::io::stdin(), std::io::stdout());
    match serve(&open_shm()?, &mut link, &words) {
        // The near end knows why, and it is the one that reports.
        Err(error) if error.is::<Lost>() => Ok(Status::DoesNotHold),
        done => done.map(|()| Status::Holds),
    }
}
