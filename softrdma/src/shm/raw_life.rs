//! Descriptors that end before everything else of a dying process.
//!
//! A killed process tears its address space down before it closes its descriptors, and only after that does its pidfd
//! say that it has ended: with large memories that is many milliseconds. A thread with a table of descriptors of its
//! own is faster. It ends as soon as the signal reaches it, and then its table is closed, unless by chance it is the
//! last thread to go, which is the one that tears the address space down. So two such threads of every process each
//! hold the only end of a pipe into which nothing is ever written, and do nothing else; peers hold the other ends and
//! see one of them hang up.
//!
//! What is seen so says that the process is dying, and not that all its threads have stopped. So it may end what this
//! side does with the memory of that process, and never the waiting for what that process does with the memory here.
//!
//! # Safety argument
//!
//! `close_range` with `CLOSE_RANGE_UNSHARE` gives the calling thread a copy of the table before it closes anything, so
//! no descriptor that other threads own is touched. The thread owns none itself, and makes none after that.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::mpsc::channel;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

/// Lines of a process. One thread can be the last, two cannot.
pub(super) const LIFELINES: usize = 2;

/// Of this process: the ends to be given to peers. Those that cannot be had are missing; then they have the pidfd.
pub(super) fn lifelines() -> &'static [OwnedFd] {
    static LINES: OnceLock<Vec<OwnedFd>> = OnceLock::new();
    LINES.get_or_init(|| {
        let lines: Vec<OwnedFd> = (0..LIFELINES).map_while(|_| start()).collect();
        // The sanitizers keep books of threads in thread-local memory, which a keeper borrows.
        #[cfg(not(mu_sanitize))]
        lines.iter().take(1).for_each(super::raw_keeper::start);
        lines
    })
}

fn start() -> Option<OwnedFd> {
    let (peers, own) = pipe2(OFlag::O_CLOEXEC).ok()?;
    let held = own.as_raw_fd();
    let (tell, told) = channel();
    let body = move || {
        let alone = close_all_but(held);
        // `own` is closed after this, which leaves the copy that is held here.
        let _ = tell.send(alone.is_ok());
        if alone.is_ok() {
            loop {
                thread::park();
            }
        }
    };
    thread::Builder::new()
        .name("mu-shm-life".into())
        .spawn(body)
        .ok()?;
    let alone = told.recv().ok()?;
    alone.then_some(peers)
}

/// Gives the calling thread a table of descriptors of its own with nothing but `kept`.
fn close_all_but(kept: RawFd) -> Result<(), Errno> {
    let kept = libc::c_uint::try_from(kept).map_err(|_| Errno::EBADF)?;
    close_range(kept + 1, libc::c_uint::MAX)?;
    match kept {
        0 => Ok(()),
        _ => close_range(0, kept - 1),
    }
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> Result<(), Errno> {
    /// Linux 5.9.
    const CLOSE_RANGE_UNSHARE: libc::c_uint = 1 << 1;
    // SAFETY: a system call on numbers. Only the calling thread's own table changes, see the module.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, CLOSE_RANGE_UNSHARE) };
    Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::raw::has_ended;
    use super::*;

    #[test]
    fn the_lines_hold_while_the_process_lives_and_other_descriptors_stay() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        let lines = lifelines();
        assert_eq!(lines.len(), LIFELINES, "a kernel with close_range");
        assert!(!lines.iter().any(has_ended));
        nix::unistd::write(&write, b"x").expect("still open");
        assert_eq!(nix::unistd::read(&read, &mut [0; 1]), Ok(1));
        drop(write);
        assert!(has_ended(&read), "nobody else holds it open");
    }
}
