//! A replica as a process: the signals that end it, and the process that it dies with.

use std::io;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
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

/// Lets this process have as many descriptors as it may: clients should not take those that peers need. Where that
/// fails, there are as many as before.
pub fn raise_descriptors() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
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
