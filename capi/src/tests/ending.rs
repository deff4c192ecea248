//! Closing beside calls of other threads, and calls of threads that end.

use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use super::group::{Group, PATIENCE, PATIENCE_US, leader_of, propose};
use crate::code::*;
use crate::raw::calls_open::{mu_close, mu_last_error, mu_stop};
use crate::raw::calls_propose::mu_submit;
use crate::raw::types::*;

/// As in a program that holds a lock of its own around a call, and takes the same one in `apply`.
#[test]
fn a_close_that_waits_for_a_callback_keeps_no_call_waiting() {
    for end in [mu_stop, mu_close] {
        let group = Group::start(1, MU_MODE_THREADED);
        let handle = group.handles[group.leader()];
        let (begun, begins) = mpsc::channel();
        let (unlock, unlocked) = mpsc::channel::<()>();
        let got_on = Arc::new(AtomicBool::new(false));
        let hook = {
            let got_on = Arc::clone(&got_on);
            move |_: &MuCommand, _: MuSink| {
                begun.send(()).expect("the test waits");
                let in_time = unlocked.recv_timeout(Duration::from_secs(3)).is_ok();
                got_on.store(in_time, Ordering::Relaxed);
                0
            }
        };
        *group.counters[0].hook.lock().expect("no panic") = Some(Box::new(hook));
        let mut ticket = 0;
        // SAFETY: byte and ticket are there.
        let mut submit = || unsafe { mu_submit(handle, 5, 1, &1, 1, &mut ticket) };
        assert_eq!(submit(), MU_OK);
        begins.recv_timeout(PATIENCE).expect("it is applied");
        let ending = thread::spawn(move || end(handle));
        // The other thread waits inside of the call; sooner, this would prove less and still hold.
        thread::sleep(Duration::from_millis(200));
        let code = submit();
        assert!(matches!(code, MU_STOPPED | MU_CLOSED), "{code}");
        assert!(!ending.is_finished(), "the callback still runs");
        unlock.send(()).expect("the callback waits");
        assert_eq!(ending.join().expect("no panic"), MU_OK);
        assert!(got_on.load(Ordering::Relaxed), "the submit had to wait");
    }
}

#[test]
fn a_close_beside_a_stop_waits_for_the_callback_too() {
    let group = Group::start(1, MU_MODE_THREADED);
    let handle = group.handles[group.leader()];
    let (begun, begins) = mpsc::channel();
    let over = Arc::new(AtomicBool::new(false));
    let hook = {
        let over = Arc::clone(&over);
        move |_: &MuCommand, _: MuSink| {
            begun.send(()).expect("the test waits");
            thread::sleep(Duration::from_millis(500));
            over.store(true, Ordering::Relaxed);
            0
        }
    };
    *group.counters[0].hook.lock().expect("no panic") = Some(Box::new(hook));
    let mut ticket = 0;
    // SAFETY: byte and ticket are there.
    let submitted = unsafe { mu_submit(handle, 5, 1, &1, 1, &mut ticket) };
    assert_eq!(submitted, MU_OK);
    begins.recv_timeout(PATIENCE).expect("it is applied");
    let stop = thread::spawn(move || mu_stop(handle));
    thread::sleep(Duration::from_millis(100));
    assert_eq!(mu_close(handle), MU_OK);
    assert!(over.load(Ordering::Relaxed), "a callback still runs");
    assert_eq!(stop.join().expect("no panic"), MU_OK);
}

/// What a thread's own destructor got for its calls.
static CODES: [AtomicI32; 4] = [const { AtomicI32::new(-1) }; 4];

/// Calls in when its thread ends.
struct AtEnd(MuHandle);

impl Drop for AtEnd {
    fn drop(&mut self) {
        let leader = leader_of(self.0);
        CODES[0].store(leader.into(), Ordering::Relaxed);
        CODES[1].store(propose(self.0, 0, 0, &[1], 0).0, Ordering::Relaxed);
        CODES[2].store(mu_close(self.0), Ordering::Relaxed);
        // SAFETY: a text, as always.
        let text = unsafe { CStr::from_ptr(mu_last_error()) };
        CODES[3].store(text.count_bytes() as i32, Ordering::Relaxed);
    }
}

thread_local! {
    static AT_END: std::cell::RefCell<Option<AtEnd>> = const { std::cell::RefCell::new(None) };
}

#[test]
fn a_thread_that_ends_can_close() {
    for (mode, proposed) in [(MU_MODE_THREADED, MU_UNKNOWN), (MU_MODE_STEP, MU_MISUSE)] {
        let group = Group::start(1, mode);
        let handle = group.handles[group.leader()];
        assert_eq!(group.add(1, 1), 1);
        let ends = thread::spawn(move || {
            // Before the library's own thread-local values, so that those go first.
            AT_END.set(Some(AtEnd(handle)));
            assert_eq!(mu_close(0), MU_INVALID_ARGUMENT);
            assert_eq!(propose(handle, 2, 1, &[1], PATIENCE_US).0, MU_OK);
        });
        ends.join().expect("no panic");
        let codes = CODES.each_ref().map(|code| code.load(Ordering::Relaxed));
        // Proposed without patience, it may be decided already.
        assert!(
            codes[1] == proposed || mode == MU_MODE_THREADED && codes[1] == MU_OK,
            "{codes:?}"
        );
        assert_eq!((codes[0], codes[2], codes[3]), (0, MU_OK, 0), "{codes:?}");
        assert_eq!(mu_close(handle), MU_CLOSED);
    }
}
