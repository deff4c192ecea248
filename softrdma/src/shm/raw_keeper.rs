//! A task that holds a killed process's address space for a moment.
//!
//! The last thread of a killed process gives its memory back, page after page, for milliseconds, on the processor
//! where it happens to run. A kernel without preemption lets nobody else in there meanwhile, and where processors are
//! scarce it is the peers who wait: those who have to see the death and replace the leader. So every process has a
//! keeper: a child that shares its address space and nothing else. While the keeper lives the space has a user, so the
//! process itself is gone at once, its descriptors closed and its peers told; the keeper ends [`KEPT_MS`] later, when
//! the successor is at work, and pays then.
//!
//! It is killed with the others by whoever kills a whole control group or process group, and cannot be had where a
//! sandbox forbids it. Then the death is as slow as without it, and nothing else differs.
//!
//! # Safety argument
//!
//! The keeper is made by `clone` with `CLONE_VM`. It has a stack of its own that is never freed, its own table of
//! descriptors and its own signal handlers, and blocks all signals, as the thread does that makes it. That thread's
//! thread-local memory is the keeper's too; the thread does nothing any more but sleep. The keeper runs [`keep`], which
//! calls the kernel and nothing else: no lock, no allocation, no unwinding, nor any write to `errno`, since no call of
//! it fails (`close_range` is there, or there would be no line to wait for).

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::thread;

use nix::sys::signal::SigSet;

/// How long the memory outlives its process, in milliseconds: several times as long as it takes to replace a leader.
const KEPT_MS: i64 = 20;
/// Bytes of the keeper's stack, which holds a few calls.
const STACK_BYTES: usize = 32 << 10;

/// Starts the keeper of this process. It ends after `line` hangs up, which has to end with the process.
pub(super) fn start(line: &OwnedFd) {
    let line = line.as_raw_fd();
    let body = move || {
        // Otherwise a signal that is meant for the process would end the keeper.
        if SigSet::all().thread_block().is_ok() && beget(line) {
            loop {
                thread::park();
            }
        }
    };
    // Without one the process dies as others do.
    let _ = thread::Builder::new()
        .name("mu-shm-keep".into())
        .spawn(body);
}

/// Makes the keeper; says whether there is one.
fn beget(line: RawFd) -> bool {
    let stack = Box::leak(vec![0u128; STACK_BYTES / size_of::<u128>()].into_boxed_slice());
    let top = stack.as_mut_ptr_range().end;
    let line = line as usize as *mut c_void;
    // SAFETY: see the module. The stack is this call's alone and aligned to 16 bytes, and grows down from its end on
    // every target. `keep` takes the number that is passed here as a pointer, and does not return.
    unsafe { libc::clone(keep, top.cast(), libc::CLONE_VM, line) > 0 }
}

/// All that the keeper does.
extern "C" fn keep(line: *mut c_void) -> c_int {
    let line = line as usize as libc::c_uint;
    let mut byte = 0u8;
    let kept = libc::timespec {
        tv_sec: 0,
        tv_nsec: KEPT_MS * 1_000_000,
    };
    // SAFETY: system calls on numbers and on this function's own variables. The table of descriptors is the keeper's
    // own, so nobody else's are closed, and it has none left but `line`: what its process closes is closed.
    unsafe {
        libc::syscall(libc::SYS_close_range, line + 1, libc::c_uint::MAX, 0);
        if line > 0 {
            libc::syscall(libc::SYS_close_range, 0, line - 1, 0);
        }
        // Nothing is ever written into it, and no signal ends the call: it returns when the other end is gone.
        libc::syscall(libc::SYS_read, line, &raw mut byte, 1);
        libc::syscall(libc::SYS_nanosleep, &raw const kept, null_mut::<c_void>());
        libc::syscall(libc::SYS_exit_group, 0);
    }
    0
}
