//! The fake provider moves data as a reliable connection does.

#![cfg(feature = "fake")]

mod rig;

use std::ptr;
use std::thread;

use mu_sys::fake::FakeOptions;
use mu_sys::*;
use rig::*;

const SUCCESS: ibv_wc_status = ibv_wc_status::IBV_WC_SUCCESS;

fn bytes(side: &Side, offset: usize, len: usize) -> Vec<u8> {
    let all: Vec<u8> = (0..WORDS)
        .flat_map(|index| side.word(index).to_ne_bytes())
        .collect();
    all[offset..offset + len].to_vec()
}

fn fill(side: &Side) {
    for index in 0..WORDS {
        side.set_word(
            index,
            u64::from_ne_bytes(std::array::from_fn(|byte| (index * 8 + byte) as u8)),
        );
    }
}

#[test]
fn writes_of_any_size_and_place_land_and_spare_their_neighbours() {
    let (a, b) = Side::pair(FakeOptions::default());
    fill(&a);
    for (len, from, to) in [
        (0, 0, 0),
        (1, 3, 9),
        (3, 6, 13),
        (8, 8, 16),
        (8, 4, 3),
        (63, 1, 64),
        (64, 0, 5),
        (200, 7, 100),
    ] {
        for index in 0..WORDS {
            b.set_word(index, u64::MAX);
        }
        let wc = a.run(write(len, &b, to), &mut [a.sge(from, len as u32)]);
        assert_eq!(
            (wc.status, wc.opcode),
            (SUCCESS, ibv_wc_opcode::IBV_WC_RDMA_WRITE)
        );
        let mut expected = vec![0xff; WORDS * 8];
        expected[to..to + len as usize].copy_from_slice(&bytes(&a, from, len as usize));
        assert_eq!(
            bytes(&b, 0, WORDS * 8),
            expected,
            "{len} bytes from {from} to {to}"
        );
    }
    a.close();
    b.close();
}

#[test]
fn gathers_and_scatters() {
    let (a, b) = Side::pair(FakeOptions::default());
    fill(&a);
    let wc = a.run(write(1, &b, 2), &mut [a.sge(5, 6), a.sge(100, 7)]);
    assert_eq!(wc.status, SUCCESS);
    assert_eq!(
        bytes(&b, 2, 13),
        [bytes(&a, 5, 6), bytes(&a, 100, 7)].concat()
    );

    let read = rdma(2, ibv_wr_opcode::IBV_WR_RDMA_READ, &b, 2);
    let wc = a.run(read, &mut [a.sge(301, 10), a.sge(401, 3)]);
    assert_eq!(
        (wc.status, wc.opcode, wc.byte_len),
        (SUCCESS, ibv_wc_opcode::IBV_WC_RDMA_READ, 13)
    );
    assert_eq!(
        [bytes(&a, 301, 10), bytes(&a, 401, 3)].concat(),
        bytes(&b, 2, 13)
    );
    a.close();
    b.close();
}

#[test]
fn inline_data_needs_no_region() {
    let (a, b) = Side::pair(FakeOptions::default());
    let data = *b"private bytes";
    let mut wr = write(1, &b, 3);
    wr.send_flags = INLINE;
    let addr = data.as_ptr().expose_provenance() as u64;
    let wc = a.run(
        wr,
        &mut [ibv_sge {
            addr,
            length: data.len() as u32,
            lkey: 0,
        }],
    );
    assert_eq!(wc.status, SUCCESS);
    assert_eq!(bytes(&b, 3, data.len()), data);
    a.close();
    b.close();
}

#[test]
fn atomics_return_the_old_value() {
    let (a, b) = Side::pair(FakeOptions::default());
    b.set_word(5, 40);
    let mut add = request(1, ibv_wr_opcode::IBV_WR_ATOMIC_FETCH_AND_ADD);
    add.wr.atomic.remote_addr = b.addr(40);
    add.wr.atomic.rkey = b.rkey();
    add.wr.atomic.compare_add = 2;
    let wc = a.run(add, &mut [a.sge(0, 8)]);
    assert_eq!(
        (wc.status, wc.opcode),
        (SUCCESS, ibv_wc_opcode::IBV_WC_FETCH_ADD)
    );
    assert_eq!((a.word(0), b.word(5)), (40, 42));

    let mut swap = request(2, ibv_wr_opcode::IBV_WR_ATOMIC_CMP_AND_SWP);
    swap.wr.atomic = add_to_swap(&b, 41, 7);
    a.run(swap, &mut [a.sge(0, 8)]);
    assert_eq!((a.word(0), b.word(5)), (42, 42), "compared unequal");
    swap.wr.atomic = add_to_swap(&b, 42, 7);
    let wc = a.run(swap, &mut [a.sge(0, 8)]);
    assert_eq!(
        (wc.opcode, a.word(0), b.word(5)),
        (ibv_wc_opcode::IBV_WC_COMP_SWAP, 42, 7)
    );
    a.close();
    b.close();
}

fn add_to_swap(b: &Side, compare: u64, swap: u64) -> ibv_send_wr__bindgen_ty_2__bindgen_ty_2 {
    ibv_send_wr__bindgen_ty_2__bindgen_ty_2 {
        remote_addr: b.addr(40),
        compare_add: compare,
        swap,
        rkey: b.rkey(),
    }
}

#[test]
fn messages_arrive_in_receive_requests() {
    let (a, b) = Side::pair(FakeOptions::default());
    fill(&a);
    assert_eq!(b.post_recv(70, &mut [b.sge(0, 16), b.sge(32, 16)]), 0);
    assert_eq!(b.post_recv(71, &mut []), 0);

    let mut send = request(1, ibv_wr_opcode::IBV_WR_SEND_WITH_IMM);
    send.__bindgen_anon_1.imm_data = 0xabcd;
    assert_eq!(a.run(send, &mut [a.sge(8, 20)]).status, SUCCESS);
    let wc = b.poll().expect("it arrived");
    assert_eq!(
        (wc.wr_id, wc.status, wc.opcode),
        (70, SUCCESS, ibv_wc_opcode::IBV_WC_RECV)
    );
    assert_eq!(
        (wc.byte_len, wc.wc_flags, wc.src_qp),
        (20, ibv_wc_flags::IBV_WC_WITH_IMM.0, a.number())
    );
    // SAFETY: the flag says that the immediate data is set.
    let result = unsafe { wc.__bindgen_anon_1.imm_data };
    assert_eq!(result, 0xabcd);
    assert_eq!(
        [bytes(&b, 0, 16), bytes(&b, 32, 4)].concat(),
        bytes(&a, 8, 20)
    );

    let mut immediate = rdma(2, ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM, &b, 100);
    immediate.__bindgen_anon_1.imm_data = 9;
    assert_eq!(a.run(immediate, &mut [a.sge(0, 24)]).status, SUCCESS);
    let wc = b.poll().expect("it arrived");
    assert_eq!(
        (wc.wr_id, wc.opcode, wc.byte_len),
        (71, ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM, 24)
    );
    assert_eq!(bytes(&b, 100, 24), bytes(&a, 0, 24));
    a.close();
    b.close();
}

#[test]
fn slots_are_freed_by_polling_a_later_completion() {
    let (a, b) = Side::pair(FakeOptions::default());
    let mut list = [a.sge(0, 8)];
    for wr_id in 0..3 {
        assert_eq!(a.post(&mut write(wr_id, &b, 0), &mut list), 0);
    }
    let mut last = write(3, &b, 0);
    last.send_flags = SIGNALED;
    assert_eq!(a.post(&mut last, &mut list), 0);
    assert_eq!(
        a.post(&mut write(4, &b, 0), &mut list),
        libc::ENOMEM,
        "full until the completion is polled"
    );
    assert_eq!(a.poll().map(|wc| wc.wr_id), Some(3));
    assert!(a.poll().is_none(), "unsignalled requests complete silently");
    for wr_id in 5..9 {
        assert_eq!(a.post(&mut write(wr_id, &b, 0), &mut list), 0);
    }
    a.close();
    b.close();
}

#[test]
fn a_list_stops_at_the_request_that_does_not_fit() {
    let (a, b) = Side::pair(FakeOptions::default());
    let mut list = a.sge(0, 8);
    let mut requests: [ibv_send_wr; 6] = std::array::from_fn(|index| {
        let mut wr = write(index as u64, &b, index * 8);
        (wr.send_flags, wr.sg_list, wr.num_sge) = (SIGNALED, &raw mut list, 1);
        wr
    });
    a.set_word(0, 1);
    let requests = requests.as_mut_ptr();
    let mut bad = ptr::null_mut();
    // SAFETY: six requests in one array, linked in order; a live queue pair.
    unsafe {
        for index in 0..5 {
            (*requests.add(index)).next = requests.add(index + 1);
        }
        assert_eq!(inline::post_send(a.qp, requests, &mut bad), libc::ENOMEM);
        assert_eq!(bad, requests.add(DEPTH as usize));
    }
    assert_eq!((b.word(3), b.word(4)), (1, 0));
    a.close();
    b.close();
}

#[test]
fn a_queue_pair_can_talk_to_itself() {
    let a = Side::new(FakeOptions::default(), 0);
    a.connect(&a);
    a.set_word(0, 77);
    assert_eq!(a.run(write(1, &a, 80), &mut [a.sge(0, 8)]).status, SUCCESS);
    assert_eq!(a.word(10), 77);
    a.close();
}

#[test]
fn a_reader_of_words_sees_a_write_in_ascending_order() {
    let (a, b) = Side::pair(FakeOptions::default());
    let rounds: u64 = if cfg!(miri) { 30 } else { 2000 };
    let reader = thread::scope(|scope| {
        let words = b.words;
        let reader = scope.spawn(move || {
            let load = |index: usize| words[index].load(std::sync::atomic::Ordering::Acquire);
            let mut last = 0;
            while last < rounds {
                let seen = load(7);
                // Only now: an earlier look at word 0 would already bar an older value of it.
                assert!(
                    seen == last || load(0) >= seen,
                    "the last word landed before the first"
                );
                last = seen;
                thread::yield_now();
            }
            last
        });
        for round in 1..=rounds {
            for index in 0..8 {
                a.set_word(index, round);
            }
            assert_eq!(
                a.run(write(round, &b, 0), &mut [a.sge(0, 64)]).status,
                SUCCESS
            );
            // Lets the reader see many rounds, where Miri would run them all in one go.
            thread::yield_now();
        }
        reader.join().expect("the reader holds")
    });
    assert_eq!(reader, rounds);
    a.close();
    b.close();
}

#[test]
fn a_channel_tells_once_per_request() {
    let lib = fake::lib(FakeOptions::default());
    let (a, b) = Side::pair(FakeOptions::default());
    // SAFETY: objects in use are live and end in order; a queue pair of its own delivers to the armed queue.
    unsafe {
        let channel = (lib.ibv_create_comp_channel)(a.context);
        let mut cookie = 5_u8;
        let cookie = (&raw mut cookie).cast();
        let cq = (lib.ibv_create_cq)(a.context, 8, cookie, channel, 0);
        let mut init = ibv_qp_init_attr {
            send_cq: cq,
            recv_cq: cq,
            qp_type: ibv_qp_type::IBV_QPT_RC,
            ..Default::default()
        };
        init.cap.max_send_wr = 4;
        let plain = a.qp;
        let a = Side {
            qp: (lib.ibv_create_qp)(a.pd, &mut init),
            cq,
            ..a
        };
        a.connect(&a);

        let (mut from, mut context) = (ptr::null_mut(), ptr::null_mut());
        let mut get = || (lib.ibv_get_cq_event)(channel, &mut from, &mut context);
        a.run(write(1, &a, 0), &mut [a.sge(8, 8)]);
        assert_eq!(get(), -1, "nobody asked");
        assert_eq!(inline::req_notify_cq(cq, 0), 0);
        a.run(write(2, &a, 0), &mut [a.sge(8, 8)]);
        a.run(write(3, &a, 0), &mut [a.sge(8, 8)]);
        assert_eq!(get(), 0);
        assert_eq!(get(), -1, "one event for one request");
        assert_eq!((from, context), (cq, cookie));

        assert_eq!((lib.ibv_destroy_qp)(a.qp), 0);
        assert_eq!(
            (lib.ibv_destroy_cq)(cq),
            libc::EBUSY,
            "its event is not acknowledged"
        );
        (lib.ibv_ack_cq_events)(cq, 1);
        assert_eq!((lib.ibv_destroy_comp_channel)(channel), libc::EBUSY);
        assert_eq!((lib.ibv_destroy_cq)(cq), 0);
        assert_eq!((lib.ibv_destroy_comp_channel)(channel), 0);
        let send_cq = (*plain).send_cq;
        Side {
            qp: plain,
            cq: send_cq,
            ..a
        }
        .close();
    }
    b.close();
}
