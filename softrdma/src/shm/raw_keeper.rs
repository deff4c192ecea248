//! A task that holds a killed process's address space for a moment.
//!
//! The last thread of a killed process gives its memory back, page after page, for milliseconds, on the processor
//! where it happens to run. A kernel without preemption lets nobody else in there meanwhile, and where processors are
//! scarce it is the peers who wait: those who have to see the death and replace the leader. So every process has a
//! keeper: a child that shares its address space and holds nothing else. While the keeper lives the space has a user,
//! so the process itself is gone at once, its descriptors closed and its peers told; the keeper ends [`KEPT_MS`]
//! later, when the successor is at work, and pays then. What else an address space refers to (the program's file,
//! mapped files) stays in use so much longer.
//!
//! It cannot be had where a sandbox forbids it, and it is killed with its process by whoever kills a whole control
//! group, by the kernel if memory runs out, and at the end of PID 1 of a container. Then the death is as slow as
//! without it, and nothing else differs.
//!
//! # Safety argument
//!
//! The keeper is made by `clone` with `CLONE_VM`. It has a stack of its own that is never freed, its own table of
//! descriptors and its own signal handlers, and blocks all signals (but the C library's own two), as the thread does
//! that makes it. That thread's thread-local memory is the keeper's too, and the thread never ends before the process
//! does, nor does anything any more but sleep. The keeper runs [`keep`], which calls the kernel and nothing else: no
//! lock, no allocation, no unwinding. All that it could write into memory that is not its own is `errno`, if a call
//! failed, and that belongs to the thread that sleeps.

use std::ffi::{CStr, c_int, c_void};
use std::os::fd::RawFd;
use std::ptr::null;

use nix::sys::signal::SigSet;

/// How long the memory outlives its process, in milliseconds: several times as long as it takes to replace a leader.
const KEPT_MS: i64 = 20;
/// The keeper's name in lists of processes.
const NAME: &CStr = c"mu-shm-keep";
/// Bytes of the keeper's stack, which holds a few calls.
const STACK_BYTES: usize = 32 << 10;

/// Starts the keeper of this process, from a thread that sleeps for ever after that. The keeper ends after `line` has
/// hung up, which it has to do when the process ends. Without one the process dies as others do.
pub(super) fn start(line: RawFd) {
    // Otherwise a signal that is meant for the process would end the keeper.
    if SigSet::all().thread_block().is_err() {
        return;
    }
    let stack = Box::leak(vec![0u128; STACK_BYTES / size_of::<u128>()].into_boxed_slice());
    let top = stack.as_mut_ptr_range().end;
    let line = line as usize as *mut c_void;
    // SAFETY: see the module. The stack is this call's alone and aligned to 16 bytes, and grows down from its end on
    // every target. `keep` takes the number that is passed here as a pointer, and does not return.
    unsafe { libc::clone(keep, top.cast(), libc::CLONE_VM, line) };
}

/// All that the keeper does.
extern "C" fn keep(line: *mut c_void) -> c_int {
    const LOOK_S: i64 = 1;
    let line = line as usize as c_int;
    let (below, above) = (line as libc::c_uint, line as libc::c_uint + 1);
    let mut poll = libc::pollfd {
        fd: line,
        events: 0,
        revents: 0,
    };
    let time = |tv_sec, tv_nsec| libc::timespec { tv_sec, tv_nsec };
    let kept = time(0, KEPT_MS * 1_000_000);
    // SAFETY: system calls on numbers, on names, and on this function's own variables. The table of descriptors is the
    // keeper's own, so nobody else's are closed, and it has none left but `line`: what its process closes is closed.
    unsafe {
        libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME, NAME.as_ptr(), 0, 0, 0);
        // Whoever stops the process's group is not to stop it: it would stay, with all of the memory.
        libc::syscall(libc::SYS_setpgid, 0, 0);
        libc::syscall(libc::SYS_chdir, c"/".as_ptr());
        libc::syscall(libc::SYS_close_range, above, libc::c_uint::MAX, 0);
        if below > 0 {
            libc::syscall(libc::SYS_close_range, 0, below - 1, 0);
        }
        let process = libc::syscall(libc::SYS_getppid);
        // Until the other end of the line is gone. A child that the process forked just when it made the line has that
        // end too, so now and then the keeper looks whether it has been left to another parent.
        loop {
            // The call leaves in it what is left of the time.
            let mut look = time(LOOK_S, 0);
            let hung_up = libc::syscall(
                libc::SYS_ppoll,
                &raw mut poll,
                1,
                &raw mut look,
                null::<c_void>(),
                0,
            );
            if hung_up != 0 || libc::syscall(libc::SYS_getppid) != process {
                break;
            }
        }
        libc::syscall(libc::SYS_nanosleep, &raw const kept, null::<c_void>());
        libc::syscall(libc::SYS_exit_group, 0);
    }
    0
}
