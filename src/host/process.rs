//! A replica as a process: the signals that end it, and the process that it dies with.

use std::io;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getppid};

/// SIGINT and SIGTERM as something to poll. To be taken before any thread starts, so that all of them leave signals to
/// the descriptor.
///
/// # Errors
/// What the operating system says.
pub fn end_signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    set.thread_block()?;
    Ok(SignalFd::with_flags(
        &set,
        SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC,
    )?)
}

/// Makes this process die with the one that started it.
///
/// # Errors
/// What the operating system says, or that the other one is gone already.
pub fn die_with(parent: i32) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    // It may have died before the line above.
    if getppid() == Pid::from_raw(parent) {
        return Ok(());
    }
    Err(io::Error::other(
        "the process that started this one is gone",
    ))
}
