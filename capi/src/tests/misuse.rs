//! What a program can do wrong is answered with a code, and what a callback says ends the replica ends it.

use std::ffi::CString;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::group::{
    Counter, Group, PATIENCE, PATIENCE_US, callbacks, config, last_error, open, options, propose,
};
use crate::code::*;
use crate::raw::calls_data::{mu_left, mu_read, mu_write};
use crate::raw::calls_open::*;
use crate::raw::calls_propose::*;
use crate::raw::calls_state::*;
use crate::raw::pointers::MuReply;
use crate::raw::types::*;

#[test]
fn null_and_nonsense_are_invalid_arguments() {
    let group = Group::start(1, MU_MODE_THREADED);
    let (handle, mut other, mut count) = (group.handles[0], 7, 0);
    let (good, counter) = (options(MU_MODE_THREADED, 0, true), Counter::default());
    let path = CString::new("nowhere").expect("no 0");
    let complete = callbacks(&counter);
    let short = MuCallbacks {
        size: 8,
        ..complete
    };
    let without = MuCallbacks {
        load: None,
        ..complete
    };
    let odd_form = MuOptions { form: 2, ..good };
    let odd_mode = MuOptions { mode: 9, ..good };
    // SAFETY: what is not NULL is there.
    let codes = unsafe {
        [
            mu_open_file(null(), &good, &complete, &mut other),
            mu_open_file(path.as_ptr(), null(), &complete, &mut other),
            mu_open_file(path.as_ptr(), &good, null(), &mut other),
            mu_open_file(path.as_ptr(), &good, &complete, null_mut()),
            mu_open_file(path.as_ptr(), &good, &short, &mut other),
            mu_open_file(path.as_ptr(), &good, &without, &mut other),
            mu_open_file(path.as_ptr(), &odd_form, &complete, &mut other),
            mu_open_text(null(), null(), &good, &complete, &mut other),
            mu_options_init(null_mut()),
            mu_log(null()),
            mu_propose(handle, 0, 0, null(), 1, -1, null_mut()),
            mu_propose(
                handle,
                0,
                0,
                path.as_ptr().cast(),
                usize::MAX,
                -1,
                null_mut(),
            ),
            mu_submit(handle, 0, 0, path.as_ptr().cast(), 1, null_mut()),
            mu_submit_barrier(handle, null_mut()),
            mu_poll(handle, 12345, 0, null_mut()),
            mu_forget(handle, 12345),
            mu_get_leader(handle, null_mut()),
            mu_get_status(handle, null_mut()),
            mu_get_metrics(handle, null_mut(), 9, &mut count),
            mu_get_address(handle, 0, null_mut(), 9),
            mu_read(1, null_mut(), 9, &mut count),
            mu_left(1, null_mut()),
            mu_write(1, null(), 9),
            mu_transfer(handle, 200, null_mut()),
            mu_propose(0, 0, 0, null(), 0, -1, null_mut()),
            mu_close(0),
            mu_close(u64::MAX),
            mu_stop(0xdead_beef_dead_beef),
        ]
    };
    assert_eq!(codes, [MU_INVALID_ARGUMENT; 28]);
    assert_eq!(other, 0, "no handle");
    let (code, none) = open(&group.config, odd_mode, &counter);
    assert_eq!((code, none), (MU_INVALID_ARGUMENT, 0));
    // SAFETY: what is not NULL is there.
    let code = unsafe { mu_open_file(path.as_ptr(), &good, &complete, &mut other) };
    assert_eq!(code, MU_CONFIG);
    assert!(last_error().contains("nowhere"), "{}", last_error());
    let (code, _) = open(&group.config, options(MU_MODE_STEP, 7, true), &counter);
    assert_eq!(code, MU_CONFIG, "{}", last_error());
    let (code, _) = open(&group.config, good, &counter);
    assert_eq!(code, MU_SYSTEM, "the address is taken: {}", last_error());
    let big = vec![1; 1 << 20];
    group.leader();
    assert_eq!(propose(handle, 0, 0, &big, -1).0, MU_TOO_LARGE);
}

#[test]
fn a_reply_over_its_command_is_refused() {
    let group = Group::start(1, MU_MODE_THREADED);
    let handle = group.handles[group.leader()];
    let mut memory = [1_u8; 32];
    let start = memory.as_mut_ptr();
    let over = |data: usize, len: usize, to: usize, capacity: usize| {
        let mut reply = MuReply {
            data: start.wrapping_add(to),
            capacity,
            len: 0,
            index: 0,
        };
        let data = start.wrapping_add(data);
        // SAFETY: both are inside of the memory.
        unsafe { mu_propose(handle, 0, 0, data, len, PATIENCE_US, &mut reply) }
    };
    for (data, len, to, capacity) in [(0, 4, 0, 8), (7, 1, 0, 8), (0, 16, 4, 8), (8, 2, 9, 8)] {
        assert_eq!(over(data, len, to, capacity), MU_INVALID_ARGUMENT);
        assert!(last_error().contains("overlap"), "{}", last_error());
    }
    assert_eq!(over(8, 1, 0, 8), MU_OK, "side by side");
    assert_eq!(over(0, 1, 1, 8), MU_OK, "side by side");
    assert_eq!(over(0, 1, 0, 0), MU_TRUNCATED, "no room is nowhere");
    // SAFETY: the structure is there; it is read as the command that it would be.
    let code = unsafe {
        let mut reply = MuReply {
            data: start,
            capacity: 8,
            len: 0,
            index: 0,
        };
        let to: *mut MuReply = &mut reply;
        mu_propose(handle, 0, 0, to.cast(), 1, PATIENCE_US, to)
    };
    assert_eq!(code, MU_INVALID_ARGUMENT);
}

#[test]
fn callbacks_that_call_back_are_refused_and_their_numbers_go_stale() {
    let group = Group::start(1, MU_MODE_THREADED);
    let handle = group.handles[group.leader()];
    let codes = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::new(AtomicU64::new(0));
    let hook = {
        let (codes, kept) = (Arc::clone(&codes), Arc::clone(&kept));
        move |_: &MuCommand, sink: MuSink| {
            kept.store(sink, Ordering::Relaxed);
            let (mut ticket, mut leader, mut count) = (0, 0, 0);
            // SAFETY: what is not NULL is there.
            *codes.lock().expect("no panic") = unsafe {
                vec![
                    mu_propose(handle, 0, 0, &1, 1, -1, null_mut()),
                    mu_submit(handle, 0, 0, &1, 1, &mut ticket),
                    mu_submit_barrier(handle, &mut ticket),
                    mu_barrier(handle, -1),
                    mu_poll(handle, 1, -1, null_mut()),
                    mu_step(handle, 0, -1),
                    mu_transfer(handle, MU_NO_LEADER, null_mut()),
                    mu_stop(handle),
                    mu_close(handle),
                    mu_write(sink + 1, &1, 1),
                    mu_left(sink, &mut count),
                    mu_get_leader(handle, &mut leader),
                ]
            };
            0
        }
    };
    *group.counters[0].hook.lock().expect("no panic") = Some(Box::new(hook));
    assert_eq!(propose(handle, 0, 0, &[1], PATIENCE_US).0, MU_OK);
    let codes = codes.lock().expect("no panic").clone();
    assert_eq!(codes[..11], [MU_MISUSE; 11]);
    assert_eq!(codes[11], MU_OK, "asking is allowed");
    let sink = kept.load(Ordering::Relaxed);
    assert_ne!(sink, 0);
    // SAFETY: the byte is there.
    let code = unsafe { mu_write(sink, &1, 1) };
    assert_eq!(code, MU_MISUSE, "after the callback");
    assert!(last_error().contains("sink"), "{}", last_error());
    // SAFETY: no descriptor.
    let code = unsafe { mu_step(handle, 0, -1) };
    assert_eq!(code, MU_MISUSE, "it has its own thread");
}

#[test]
fn an_apply_that_fails_ends_the_replica_and_the_program_is_told_why() {
    for mode in [MU_MODE_THREADED, MU_MODE_STEP] {
        let group = Group::start(1, mode);
        let handle = group.handles[group.leader()];
        let counter = &group.counters[0];
        *counter.hook.lock().expect("no panic") = Some(Box::new(|_, _| 42));
        let (code, _) = propose(handle, 1, 1, &[1], PATIENCE_US);
        assert_eq!(code, MU_UNKNOWN, "{}", last_error());
        group.until("fatal", || {
            !counter.fatal.lock().expect("no panic").is_empty()
        });
        let fatal = counter.fatal.lock().expect("no panic").clone();
        assert_eq!(fatal, ["the apply callback returned 42"]);
        assert_eq!(propose(handle, 1, 2, &[1], -1).0, MU_STOPPED);
    }
}

#[test]
fn two_threads_in_one_stepped_replica_are_one_too_many() {
    let config = config(3);
    let counter = Counter::default();
    // Alone of three it gets no leader, and its barrier or step waits.
    let (code, handle) = open(&config, options(MU_MODE_STEP, 0, true), &counter);
    assert_eq!(code, MU_OK, "{}", last_error());
    let refused = std::thread::scope(|scope| {
        let begin = Instant::now();
        let inside = scope.spawn(move || {
            // SAFETY: no descriptor.
            while unsafe { mu_step(handle, 100_000, -1) } != MU_CLOSED {
                assert!(begin.elapsed() < 2 * PATIENCE, "it was not closed");
            }
        });
        let mut refused = 0;
        while refused < 3 && begin.elapsed() < PATIENCE {
            // SAFETY: no descriptor.
            refused += u32::from(unsafe { mu_step(handle, 0, -1) } == MU_MISUSE);
            // The other thread has to get in.
            std::thread::sleep(Duration::from_micros(100));
        }
        assert_eq!(mu_close(handle), MU_OK, "it waits for the other thread");
        inside.join().expect("it ends");
        refused
    });
    assert_eq!(refused, 3);
    assert_eq!(mu_wake(handle), MU_CLOSED);
}

#[test]
fn a_snapshot_that_is_refused_is_asked_for_again() {
    let mut group = Group::start(3, MU_MODE_THREADED);
    assert_eq!(group.add(1, 1), 1);
    group.all_vote();
    let away = (group.leader() + 1) % 3;
    assert_eq!(mu_close(group.handles[away]), MU_OK);
    // More than the log holds, so that it cannot come back by the log alone.
    for sequence in 2..=2000 {
        group.add(sequence, 1);
    }
    let again = Arc::new(Counter::default());
    again.refuse_load.store(true, Ordering::Relaxed);
    let (code, handle) = open(
        &group.config,
        options(MU_MODE_THREADED, away as u8, false),
        &again,
    );
    assert_eq!(code, MU_OK, "{}", last_error());
    group.handles[away] = handle;
    group.counters[away] = again;
    // The refused one had the right sum already.
    let loads = |group: &Group| group.counters[away].loads.load(Ordering::Relaxed);
    group.until("it loads again", || loads(&group) >= 2);
    group.until("it caught up", || group.sums() == [2000; 3]);
    assert_eq!(group.add(2001, 1), 2001);
    group.until("it follows", || group.sums() == [2001; 3]);
}
