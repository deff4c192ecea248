//! The fake provider refuses what a reliable connection refuses, with the statuses that real devices give.

#![cfg(feature = "fake")]

mod rig;

use std::ptr;

use mu_sys::fake::FakeOptions;
use mu_sys::*;
use rig::*;

type S = ibv_wc_status;
const RTS: ibv_qp_state = ibv_qp_state::IBV_QPS_RTS;
const ERR: ibv_qp_state = ibv_qp_state::IBV_QPS_ERR;

/// Runs one request on a fresh pair, and tears the pair down; returns the status, the states of both sides, and the
/// event at the responder.
fn outcome(
    prepare: impl FnOnce(&Side, &Side),
    make: impl FnOnce(&Side, &Side) -> (ibv_send_wr, Vec<ibv_sge>),
) -> (S, ibv_qp_state, ibv_qp_state, Option<ibv_event_type>) {
    let (a, b) = Side::pair(FakeOptions::default());
    b.set_word(0, 1);
    prepare(&a, &b);
    let (wr, mut list) = make(&a, &b);
    let wc = a.run(wr, &mut list);
    let result = (wc.status, a.state(), b.state(), b.event());
    assert_eq!(a.event(), None);
    a.close();
    b.close();
    result
}

fn only(flags: &[ibv_access_flags]) -> ibv_access_flags {
    flags
        .iter()
        .fold(ibv_access_flags(0), |all, flag| all | *flag)
}

#[test]
fn rights_missing_on_the_queue_pair() {
    let expected = (
        S::IBV_WC_REM_INV_REQ_ERR,
        ERR,
        ERR,
        Some(ibv_event_type::IBV_EVENT_QP_REQ_ERR),
    );
    let no_rights = |_: &Side, b: &Side| assert_eq!(b.set_access(ibv_access_flags(0)), 0);
    assert_eq!(
        outcome(no_rights, |a, b| (write(1, b, 0), vec![a.sge(0, 8)])),
        expected
    );
    let read = |a: &Side, b: &Side| {
        (
            rdma(1, ibv_wr_opcode::IBV_WR_RDMA_READ, b, 0),
            vec![a.sge(0, 8)],
        )
    };
    assert_eq!(outcome(no_rights, read), expected);
    let only_read = |_: &Side, b: &Side| {
        assert_eq!(
            b.set_access(only(&[ibv_access_flags::IBV_ACCESS_REMOTE_READ])),
            0
        )
    };
    assert_eq!(
        outcome(only_read, read),
        (S::IBV_WC_SUCCESS, RTS, RTS, None)
    );
    assert_eq!(
        outcome(only_read, |a, b| (write(1, b, 0), vec![a.sge(0, 8)])),
        expected
    );
}

#[test]
fn wrong_keys_bounds_and_region_rights() {
    let expected = (
        S::IBV_WC_REM_ACCESS_ERR,
        ERR,
        ERR,
        Some(ibv_event_type::IBV_EVENT_QP_ACCESS_ERR),
    );
    let nothing = |_: &Side, _: &Side| ();
    let wrong_key = |a: &Side, b: &Side| {
        let mut wr = write(1, b, 0);
        wr.wr.rdma.rkey = wrong(b.rkey());
        (wr, vec![a.sge(0, 8)])
    };
    assert_eq!(outcome(nothing, wrong_key), expected);
    assert_eq!(
        outcome(nothing, |a, b| (
            write(1, b, WORDS * 8 - 7),
            vec![a.sge(0, 8)]
        )),
        expected
    );
    let overflow = |a: &Side, b: &Side| {
        let mut wr = write(1, b, 0);
        wr.wr.rdma.remote_addr = u64::MAX - 3;
        (wr, vec![a.sge(0, 8)])
    };
    assert_eq!(outcome(nothing, overflow), expected);
    let read_only = |_: &Side, b: &Side| {
        let flags = only(&[ibv_access_flags::IBV_ACCESS_REMOTE_READ]);
        assert_eq!(
            rereg(
                b,
                ibv_rereg_mr_flags::IBV_REREG_MR_CHANGE_ACCESS,
                b.pd,
                flags
            ),
            0
        );
    };
    assert_eq!(
        outcome(read_only, |a, b| (write(1, b, 0), vec![a.sge(0, 8)])),
        expected
    );
    // The last byte of the region is still inside, and nothing at all needs no key.
    let whole = |a: &Side, b: &Side| (write(1, b, WORDS * 8 - 8), vec![a.sge(0, 8)]);
    assert_eq!(outcome(nothing, whole), (S::IBV_WC_SUCCESS, RTS, RTS, None));
    let empty = |_: &Side, b: &Side| {
        let mut wr = write(1, b, 0);
        wr.wr.rdma.rkey = wrong(b.rkey());
        (wr, vec![])
    };
    assert_eq!(outcome(nothing, empty), (S::IBV_WC_SUCCESS, RTS, RTS, None));
}

fn wrong(key: u32) -> u32 {
    key ^ 1
}

fn rereg(side: &Side, flags: ibv_rereg_mr_flags, pd: *mut ibv_pd, access: ibv_access_flags) -> i32 {
    let rereg_mr = side.lib.ibv_rereg_mr.expect("the fake has it");
    // SAFETY: a live region and domain.
    unsafe {
        rereg_mr(
            side.mr,
            flags.0 as i32,
            pd,
            ptr::null_mut(),
            0,
            access.0 as i32,
        )
    }
}

#[test]
fn a_region_of_another_domain() {
    let (a, b) = Side::pair(FakeOptions::default());
    // SAFETY: objects are live, and the second domain is freed when nothing uses it.
    unsafe {
        let other = (b.lib.ibv_alloc_pd)(b.context);
        assert_eq!(
            rereg(&b, ibv_rereg_mr_flags::IBV_REREG_MR_CHANGE_PD, other, ALL),
            0
        );
        let wc = a.run(write(1, &b, 0), &mut [a.sge(0, 8)]);
        assert_eq!(wc.status, S::IBV_WC_REM_ACCESS_ERR);
        assert_eq!(b.event(), Some(ibv_event_type::IBV_EVENT_QP_ACCESS_ERR));
        assert_eq!((b.lib.ibv_dealloc_pd)(other), libc::EBUSY);
        assert_eq!(
            rereg(&b, ibv_rereg_mr_flags::IBV_REREG_MR_CHANGE_PD, b.pd, ALL),
            0
        );
        assert_eq!((b.lib.ibv_dealloc_pd)(other), 0);
    }
    a.close();
    b.close();
}

#[test]
fn local_buffers_outside_their_region() {
    let expected = (S::IBV_WC_LOC_PROT_ERR, ERR, RTS, None);
    let nothing = |_: &Side, _: &Side| ();
    assert_eq!(
        outcome(nothing, |a, b| (
            write(1, b, 0),
            vec![a.sge(WORDS * 8 - 4, 8)]
        )),
        expected
    );
    let remote_key = |a: &Side, b: &Side| {
        let sge = ibv_sge {
            lkey: a.rkey(),
            ..a.sge(0, 8)
        };
        (write(1, b, 0), vec![sge])
    };
    assert_eq!(outcome(nothing, remote_key), expected);
    let read_only = |a: &Side, _: &Side| {
        assert_eq!(
            rereg(
                a,
                ibv_rereg_mr_flags::IBV_REREG_MR_CHANGE_ACCESS,
                a.pd,
                ibv_access_flags(0)
            ),
            0
        );
    };
    let read = |a: &Side, b: &Side| {
        (
            rdma(1, ibv_wr_opcode::IBV_WR_RDMA_READ, b, 0),
            vec![a.sge(0, 8)],
        )
    };
    assert_eq!(outcome(read_only, read), expected);
    assert_eq!(
        outcome(read_only, |a, b| (write(1, b, 0), vec![a.sge(0, 8)])),
        (S::IBV_WC_SUCCESS, RTS, RTS, None)
    );
}

#[test]
fn a_peer_that_does_not_answer() {
    let make = |a: &Side, b: &Side| (write(1, b, 0), vec![a.sge(0, 8)]);
    let error = |_: &Side, b: &Side| assert_eq!(b.set_state(ERR), 0);
    assert_eq!(
        outcome(error, make),
        (S::IBV_WC_RETRY_EXC_ERR, ERR, ERR, None)
    );
    let reset = |_: &Side, b: &Side| assert_eq!(b.set_state(ibv_qp_state::IBV_QPS_RESET), 0);
    assert_eq!(outcome(reset, make).0, S::IBV_WC_RETRY_EXC_ERR);
    // Connected anew, but it expects other packet sequence numbers than the old connection has reached.
    let reconnected = |a: &Side, b: &Side| {
        assert_eq!(
            a.run(write(9, b, 0), &mut [a.sge(0, 8)]).status,
            S::IBV_WC_SUCCESS
        );
        assert_eq!(b.set_state(ibv_qp_state::IBV_QPS_RESET), 0);
        b.connect(a);
    };
    assert_eq!(
        outcome(reconnected, make),
        (S::IBV_WC_RETRY_EXC_ERR, ERR, RTS, None)
    );

    let (a, b) = Side::pair(FakeOptions::default());
    let wr = write(1, &b, 0);
    b.close();
    assert_eq!(
        a.run(wr, &mut [a.sge(0, 8)]).status,
        S::IBV_WC_RETRY_EXC_ERR
    );
    a.close();
}

#[test]
fn receives_that_are_missing_short_or_wrong() {
    let send = |a: &Side, _: &Side| (request(1, ibv_wr_opcode::IBV_WR_SEND), vec![a.sge(0, 8)]);
    assert_eq!(
        outcome(|_, _| (), send),
        (S::IBV_WC_RNR_RETRY_EXC_ERR, ERR, RTS, None)
    );
    let immediate = |a: &Side, b: &Side| {
        (
            rdma(1, ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM, b, 0),
            vec![a.sge(0, 8)],
        )
    };
    assert_eq!(
        outcome(|_, _| (), immediate),
        (S::IBV_WC_RNR_RETRY_EXC_ERR, ERR, RTS, None)
    );

    for (length, lkey_error, requester, responder) in [
        (7, 0, S::IBV_WC_REM_INV_REQ_ERR, S::IBV_WC_LOC_LEN_ERR),
        (8, 1, S::IBV_WC_REM_OP_ERR, S::IBV_WC_LOC_PROT_ERR),
    ] {
        let (a, b) = Side::pair(FakeOptions::default());
        let sge = b.sge(0, length);
        assert_eq!(
            b.post_recv(
                50,
                &mut [ibv_sge {
                    lkey: sge.lkey ^ lkey_error,
                    ..sge
                }]
            ),
            0
        );
        assert_eq!(b.post_recv(51, &mut []), 0);
        assert_eq!(b.post_recv(52, &mut []), 0);
        let wc = a.run(request(1, ibv_wr_opcode::IBV_WR_SEND), &mut [a.sge(0, 8)]);
        assert_eq!((wc.status, a.state(), b.state()), (requester, ERR, ERR));
        let received = [b.poll(), b.poll(), b.poll()].map(|wc| wc.map(|wc| (wc.wr_id, wc.status)));
        assert_eq!(
            received,
            [
                Some((50, responder)),
                Some((51, S::IBV_WC_WR_FLUSH_ERR)),
                Some((52, S::IBV_WC_WR_FLUSH_ERR))
            ]
        );
        a.close();
        b.close();
    }
}

#[test]
fn misaligned_atomics() {
    let make = |a: &Side, b: &Side| {
        let mut wr = request(1, ibv_wr_opcode::IBV_WR_ATOMIC_FETCH_AND_ADD);
        wr.wr.atomic.remote_addr = b.addr(4);
        wr.wr.atomic.rkey = b.rkey();
        (wr, vec![a.sge(0, 8)])
    };
    let event = Some(ibv_event_type::IBV_EVENT_QP_REQ_ERR);
    assert_eq!(
        outcome(|_, _| (), make),
        (S::IBV_WC_REM_INV_REQ_ERR, ERR, ERR, event)
    );
}

#[test]
fn the_rest_is_flushed_in_order_and_a_reset_starts_anew() {
    let (a, b) = Side::pair(FakeOptions::default());
    let mut list = [a.sge(0, 8)];
    a.set_word(0, 5);
    assert_eq!(b.set_access(ibv_access_flags(0)), 0);
    for wr_id in 0..4 {
        // Unsignalled: in error everything completes all the same.
        assert_eq!(a.post(&mut write(wr_id, &b, 0), &mut list), 0);
    }
    assert_eq!(a.post(&mut write(4, &b, 0), &mut list), libc::ENOMEM);
    let statuses: Vec<_> = std::iter::from_fn(|| a.poll())
        .map(|wc| (wc.wr_id, wc.status))
        .collect();
    let flush = S::IBV_WC_WR_FLUSH_ERR;
    assert_eq!(
        statuses,
        [
            (0, S::IBV_WC_REM_INV_REQ_ERR),
            (1, flush),
            (2, flush),
            (3, flush)
        ]
    );
    assert_eq!(b.word(0), 0);

    assert_eq!(a.post_recv(60, &mut [a.sge(0, 8)]), 0);
    assert_eq!(a.poll().map(|wc| (wc.wr_id, wc.status)), Some((60, flush)));

    for (side, peer) in [(&a, &b), (&b, &a)] {
        assert_eq!(side.set_state(ibv_qp_state::IBV_QPS_RESET), 0);
        side.connect(peer);
    }
    assert_eq!(a.run(write(5, &b, 0), &mut list).status, S::IBV_WC_SUCCESS);
    assert_eq!(b.word(0), 5);
    a.close();
    b.close();
}

#[test]
fn deregistered_memory_is_out_of_reach() {
    let (a, b) = Side::pair(FakeOptions::default());
    let wr = write(1, &b, 0);
    // SAFETY: the region is live; its replacement is closed with the side.
    let again = unsafe {
        assert_eq!((b.lib.ibv_dereg_mr)(b.mr), 0);
        (b.lib.ibv_reg_mr)(
            b.pd,
            b.words.as_ptr().cast_mut().cast(),
            WORDS * 8,
            ALL.0 as i32,
        )
    };
    let b = Side { mr: again, ..b };
    assert_eq!(
        a.run(wr, &mut [a.sge(0, 8)]).status,
        S::IBV_WC_REM_ACCESS_ERR
    );
    a.close();
    b.close();
}

#[test]
fn requests_that_are_not_taken() {
    let (a, b) = Side::pair(FakeOptions::default());
    let data = [0_u8; 65];
    let addr = data.as_ptr().expose_provenance() as u64;
    let mut inline = write(1, &b, 0);
    inline.send_flags = INLINE;
    assert_eq!(
        a.post(
            &mut inline,
            &mut [ibv_sge {
                addr,
                length: 65,
                lkey: 0
            }]
        ),
        libc::EINVAL
    );
    assert_eq!(
        a.post(
            &mut write(1, &b, 0),
            &mut [a.sge(0, 1), a.sge(0, 1), a.sge(0, 1)]
        ),
        libc::EINVAL
    );
    let mut read = rdma(1, ibv_wr_opcode::IBV_WR_RDMA_READ, &b, 0);
    read.send_flags = INLINE;
    assert_eq!(a.post(&mut read, &mut [a.sge(0, 8)]), libc::EINVAL);
    assert_eq!(
        a.post(&mut request(1, ibv_wr_opcode::IBV_WR_TSO), &mut []),
        libc::EINVAL
    );
    assert_eq!(
        a.post(
            &mut request(1, ibv_wr_opcode::IBV_WR_ATOMIC_FETCH_AND_ADD),
            &mut [a.sge(0, 4)]
        ),
        libc::EINVAL
    );
    assert_eq!(a.set_state(ibv_qp_state::IBV_QPS_RESET), 0);
    assert_eq!(
        a.post(&mut write(1, &b, 0), &mut [a.sge(0, 8)]),
        libc::EINVAL
    );
    assert_eq!(a.post_recv(1, &mut []), libc::EINVAL);
    a.close();
    b.close();
}

#[test]
fn a_completion_queue_that_overruns() {
    let (a, b) = Side::pair(FakeOptions::default());
    // SAFETY: live objects, ended in order.
    unsafe {
        let cq = (a.lib.ibv_create_cq)(a.context, 2, ptr::null_mut(), ptr::null_mut(), 0);
        let mut init = ibv_qp_init_attr {
            send_cq: cq,
            recv_cq: cq,
            qp_type: ibv_qp_type::IBV_QPT_RC,
            ..Default::default()
        };
        init.cap.max_send_wr = 4;
        let qp = (a.lib.ibv_create_qp)(a.pd, &mut init);
        let (old_qp, old_cq) = (a.qp, a.cq);
        let a = Side { qp, cq, ..a };
        a.connect(&a);
        for wr_id in 0..4 {
            let mut wr = write(wr_id, &a, 0);
            wr.send_flags = SIGNALED;
            assert_eq!(a.post(&mut wr, &mut [a.sge(8, 8)]), 0);
        }
        assert_eq!(a.event(), Some(ibv_event_type::IBV_EVENT_CQ_ERR));
        assert_eq!(a.event(), None);
        assert_eq!((a.lib.ibv_destroy_qp)(qp), 0);
        assert_eq!((a.lib.ibv_destroy_cq)(cq), 0);
        Side {
            qp: old_qp,
            cq: old_cq,
            ..a
        }
        .close();
    }
    b.close();
}
