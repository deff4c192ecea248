//! A process that is stopped for a while (`SIGSTOP`), wherever it happens to be.

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A stopped child; goes on when resumed or dropped.
pub(crate) struct StoppedProcess(Pid);

impl StoppedProcess {
    /// Stops the child and waits until all its threads stand still.
    pub(crate) fn new(child: Pid) -> Result<Self> {
        kill(child, Signal::SIGSTOP).context("stopping the writer")?;
        let stopped = Self(child);
        match waitpid(child, Some(WaitPidFlag::WUNTRACED))
            .context("waiting for the writer to stop")?
        {
            WaitStatus::Stopped(..) => Ok(stopped),
            other => bail!("the writer did not stop but ended: {other:?}"),
        }
    }

    /// Lets it go on.
    pub(crate) fn resume(self) -> Result<()> {
        kill(self.0, Signal::SIGCONT).context("letting the writer go on")
    }
}

impl Drop for StoppedProcess {
    fn drop(&mut self) {
        // To a process that was resumed already, or is gone, this does nothing.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}
