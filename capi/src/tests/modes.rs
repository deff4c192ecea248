//! What both modes do: propose, pipeline, barriers, take-over, handover, coming back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::group::{Counter, Group, PATIENCE_US, last_error, open, options, propose};
use crate::code::*;
use crate::raw::calls_open::{mu_close, mu_stop};
use crate::raw::calls_propose::*;
use crate::raw::calls_state::{mu_get_address, mu_get_json, mu_get_metrics, mu_get_status};
use crate::raw::pointers::MuReply;
use crate::raw::types::*;

fn submit(handle: MuHandle, sequence: u64, byte: u8) -> (MuResult, MuTicket) {
    let mut ticket = 0;
    // SAFETY: byte and ticket are there.
    let code = unsafe { mu_submit(handle, 5, sequence, &byte, 1, &mut ticket) };
    (code, ticket)
}

fn poll(handle: MuHandle, ticket: MuTicket, timeout_us: i64) -> MuResult {
    // SAFETY: no reply is wanted.
    unsafe { mu_poll(handle, ticket, timeout_us, std::ptr::null_mut()) }
}

fn status(handle: MuHandle) -> MuStatus {
    let mut status = MuStatus {
        epoch: 0,
        commit: 0,
        applied: 0,
        in_flight: 0,
        role: 99,
        voter: 0,
        id: 0,
        leader: 0,
    };
    // SAFETY: the memory is there.
    assert_eq!(unsafe { mu_get_status(handle, &mut status) }, MU_OK);
    status
}

#[test]
fn threads_of_its_own_pipeline_and_retry() {
    let group = Group::start(3, MU_MODE_THREADED);
    for sequence in 1..=50 {
        assert_eq!(group.add(sequence, 2), sequence * 2);
    }
    assert_eq!(group.add(50, 2), 100, "a retry gets the old reply");
    pipelined(&group, 100);
    group.until("all apply", || group.sums() == [150; 3]);
    let leader = group.leader();
    for (id, counter) in group.counters.iter().enumerate() {
        let applied = counter.applied.lock().expect("no panic");
        let own = applied.iter().filter(|a| a.3 & MU_APPLY_LEADER != 0);
        assert_eq!(own.count() > 0, id == leader, "{applied:?}");
    }
    let roles = group.counters[leader].roles.lock().expect("no panic");
    let last = *roles.last().expect("it was told");
    assert_eq!((last.role, last.voter), (MU_ROLE_LEADER, 1));
    assert_eq!(usize::from(last.leader), leader);
    assert!(last.epoch > 0);
}

/// 50 commands of 1 in flight, ended in order; then a barrier.
fn pipelined(group: &Group, before: u64) {
    let leader = group.handles[group.leader()];
    let tickets: Vec<_> = (1..=50)
        .map(|sequence| {
            let (code, ticket) = submit(leader, sequence, 1);
            assert_eq!(code, MU_OK, "{}", last_error());
            ticket
        })
        .collect();
    assert!(tickets.is_sorted());
    // The last one ends after the others, which can then be had without waiting.
    let wait = |ticket| loop {
        group.turn();
        match poll(leader, ticket, 1000) {
            MU_TIMED_OUT => {}
            code => return code,
        }
    };
    assert_eq!(wait(tickets[49]), MU_OK, "{}", last_error());
    for ticket in &tickets[..49] {
        assert_eq!(poll(leader, *ticket, 0), MU_OK, "{}", last_error());
    }
    assert_eq!(poll(leader, tickets[0], 0), MU_INVALID_ARGUMENT, "taken");
    let mut barrier = 0;
    // SAFETY: the memory is there.
    assert_eq!(unsafe { mu_submit_barrier(leader, &mut barrier) }, MU_OK);
    assert_eq!(wait(barrier), MU_OK, "{}", last_error());
    assert_eq!(group.sums()[group.leader()], before + 50);
}

#[test]
fn the_programs_own_thread_replicates() {
    let group = Group::start(3, MU_MODE_STEP);
    group.leader();
    // Followers are stepped by a thread of their own while this one proposes.
    let leader = group.leader();
    let others = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        let followers = group.handles.iter().copied().enumerate();
        let followers = followers.filter(|(id, _)| *id != leader);
        for (_, handle) in followers {
            let others = &others;
            scope.spawn(move || {
                while others.load(Ordering::Relaxed) {
                    // SAFETY: no descriptor.
                    assert_eq!(unsafe { mu_step(handle, 1000, -1) }, MU_OK);
                }
            });
        }
        for n in 1..=200 {
            let (code, reply) = propose(group.handles[leader], 3, n, &[1], PATIENCE_US);
            assert_eq!(code, MU_OK, "{}", last_error());
            assert_eq!(reply, n.to_le_bytes());
        }
        assert_eq!(mu_barrier(group.handles[leader], PATIENCE_US), MU_OK);
        others.store(false, Ordering::Relaxed);
    });
    pipelined(&group, 200);
    group.until("all apply", || group.sums() == [250; 3]);
}

#[test]
fn a_stopped_leader_is_followed_by_another_and_comes_back() {
    let mut group = Group::start(3, MU_MODE_THREADED);
    assert_eq!(group.add(1, 1), 1);
    group.all_vote();
    let old = group.leader();
    let handle = group.handles[old];
    assert_eq!(mu_stop(handle), MU_OK);
    assert_eq!(propose(handle, 9, 2, &[1], -1).0, MU_STOPPED);
    assert_eq!(status(handle).role, MU_ROLE_STOPPED);
    assert_eq!(mu_stop(handle), MU_OK, "again");
    assert!(
        group.counters[old]
            .fatal
            .lock()
            .expect("no panic")
            .is_empty()
    );
    assert_eq!(group.add(2, 1), 2);
    assert_eq!(mu_close(handle), MU_OK);
    assert_eq!(propose(handle, 9, 3, &[1], -1).0, MU_CLOSED);
    // What peers say to whoever asks is up to 50 ms old.
    std::thread::sleep(std::time::Duration::from_millis(500));
    // It comes back without memory; that it is told to found the group is seen to be wrong.
    let again = Arc::new(Counter::default());
    let (code, reopened) = open(
        &group.config,
        options(MU_MODE_THREADED, old as u8, true),
        &again,
    );
    assert_eq!(code, MU_OK, "{}", last_error());
    assert_ne!(reopened, handle);
    assert_eq!(
        mu_close(handle),
        MU_CLOSED,
        "the old handle is not the new one"
    );
    group.handles[old] = reopened;
    group.counters[old] = again;
    assert_eq!(group.add(3, 1), 3);
    group.until("it caught up", || group.sums() == [3; 3]);
    let applied = group.counters[old].applied.lock().expect("no panic");
    let replayed = applied.iter().filter(|a| a.3 & MU_APPLY_REPLAY != 0);
    // By a snapshot or by the log, as the leader had it.
    let loads = group.counters[old].loads.load(Ordering::Relaxed);
    assert!(loads > 0 || replayed.count() >= 2, "{applied:?}");
}

#[test]
fn leadership_is_handed_over_and_status_says_so() {
    for mode in [MU_MODE_THREADED, MU_MODE_STEP] {
        let group = Group::start(1, mode);
        let handle = group.handles[group.leader()];
        assert_eq!(group.add(1, 1), 1);
        // SAFETY: nobody wants to know who was chosen.
        let alone = unsafe { mu_transfer(handle, MU_NO_LEADER, std::ptr::null_mut()) };
        assert_eq!(alone, MU_BUSY, "{}", last_error());
    }
    let group = Group::start(3, MU_MODE_THREADED);
    assert_eq!(group.add(1, 1), 1);
    let old = group.leader();
    group.all_vote();
    let mut chosen = 99;
    // SAFETY: the memory is there.
    let code = unsafe { mu_transfer(group.handles[old], MU_NO_LEADER, &mut chosen) };
    assert_eq!(code, MU_OK, "{}", last_error());
    assert_ne!(usize::from(chosen), old);
    // The chosen one, as a rule; another may be quicker.
    assert_eq!(group.add(2, 1), 2);
    let epochs = |counter: &Counter| {
        let roles = counter.roles.lock().expect("no panic");
        let led = roles.iter().filter(|role| role.role == MU_ROLE_LEADER);
        led.map(|role| role.epoch).collect::<Vec<_>>()
    };
    let mut led: Vec<u64> = group.counters.iter().flat_map(|c| epochs(c)).collect();
    led.dedup();
    assert!(
        led.len() >= 2,
        "one leadership ended, another began: {led:?}"
    );
    let status = status(group.handles[old]);
    assert_eq!(usize::from(status.id), old);
    assert!(status.commit >= 1 && status.applied >= 1, "{status:?}");
}

#[test]
fn texts_are_copied_whole_or_said_to_be_longer() {
    let group = Group::start(1, MU_MODE_THREADED);
    group.leader();
    let handle = group.handles[0];
    let mut text = vec![0_u8; 1 << 16];
    let mut len = 0;
    for get in [mu_get_metrics, mu_get_json] {
        // SAFETY: the memory is there.
        let code = unsafe { get(handle, text.as_mut_ptr().cast(), text.len(), &mut len) };
        assert_eq!(code, MU_OK);
        assert_eq!(text[len], 0);
        let whole = String::from_utf8(text[..len].to_vec()).expect("a text");
        assert!(whole.contains("capi"), "{whole}");
        // SAFETY: as above.
        let code = unsafe { get(handle, text.as_mut_ptr().cast(), 10, &mut len) };
        assert_eq!(code, MU_TRUNCATED);
        assert!(len > 10 && text[9] == 0 && text[..9] == whole.as_bytes()[..9]);
        // SAFETY: no memory is wanted.
        let code = unsafe { get(handle, std::ptr::null_mut(), 0, &mut len) };
        assert_eq!(code, MU_TRUNCATED);
    }
    // SAFETY: the memory is there.
    let code = unsafe { mu_get_address(handle, 0, text.as_mut_ptr().cast(), text.len()) };
    assert_eq!((code, &text[..15]), (MU_OK, &b"192.0.2.1:7000\0"[..]));
    // SAFETY: the memory is there.
    let code = unsafe { mu_get_address(handle, 8, text.as_mut_ptr().cast(), text.len()) };
    assert_eq!(code, MU_INVALID_ARGUMENT);
    let mut small = [0_u8; 3];
    let mut reply = MuReply {
        data: small.as_mut_ptr(),
        capacity: 3,
        len: 0,
        index: 0,
    };
    // SAFETY: command and buffer are there.
    let code = unsafe { mu_propose(handle, 0, 0, [7].as_ptr(), 1, -1, &mut reply) };
    assert_eq!((code, reply.len, small), (MU_TRUNCATED, 8, [7, 0, 0]));
    assert!(reply.index > 0);
}
