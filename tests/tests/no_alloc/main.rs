//! Posting and polling allocate nothing: a counting global allocator, after a warm-up that may allocate.

mod allocator_raw;

use allocator_raw::allocations;
use mu_tests::backends::{Backend, FakeDevice, Inproc, Shm};
use mu_tests::harness::{AT, End, SIGNALED, Setup, UNSIGNALED};
use mu_verbs::{
    Completion, CompletionQueue, Context, Payload, QueuePair, RecvWr, RemoteAddr, SendOp, SendWr,
    Sge, WORD,
};

/// Polls until a completion is there; `false` after far too many polls.
fn polled<Q: CompletionQueue>(cq: &mut Q) -> bool {
    let mut one = [Completion::EMPTY];
    (0..100_000_000).any(|_| cq.poll(&mut one) == 1) && one[0].status.is_success()
}

/// Every kind of request, one by one and as a list, with its completions; also a refused post and a poll of nothing.
fn round<C: Context>(a: &mut End<C>, b: &mut End<C>, remote: RemoteAddr) {
    let inline = [7_u8; 32];
    let piece = [Sge::new(&a.mr, AT, 3000)];
    let word = Sge::new(&a.mr, AT, WORD);
    let regions = Payload::Regions(&piece);
    let one_sided = [
        SendOp::Write {
            payload: Payload::Inline(&inline),
            remote,
            imm: None,
        },
        SendOp::Write {
            payload: regions,
            remote,
            imm: None,
        },
        SendOp::Read {
            local: &piece,
            remote,
        },
        SendOp::CompareSwap {
            local: word,
            remote,
            compare: 1,
            swap: 2,
        },
        SendOp::FetchAdd {
            local: word,
            remote,
            add: 1,
        },
    ];
    for op in one_sided {
        assert!(
            a.qp.post_send(&SendWr {
                wr_id: 1,
                op,
                flags: UNSIGNALED
            })
            .is_ok()
        );
        assert!(
            a.qp.post_send(&SendWr {
                wr_id: 2,
                op,
                flags: SIGNALED
            })
            .is_ok()
        );
        assert!(polled(&mut a.send_cq));
    }
    let two_sided = [
        SendOp::Send {
            payload: regions,
            imm: Some(1),
        },
        SendOp::Write {
            payload: regions,
            remote,
            imm: Some(2),
        },
    ];
    for op in two_sided {
        let into = [Sge::new(&b.mr, AT, 4096)];
        assert!(
            b.qp.post_recv(&RecvWr {
                wr_id: 3,
                local: &into
            })
            .is_ok()
        );
        assert!(
            a.qp.post_send(&SendWr {
                wr_id: 4,
                op,
                flags: SIGNALED
            })
            .is_ok()
        );
        assert!(polled(&mut a.send_cq) && polled(&mut b.recv_cq));
    }
    let list = one_sided.map(|op| SendWr {
        wr_id: 5,
        op,
        flags: SIGNALED,
    });
    assert!(a.qp.post_send_list(&list).is_ok());
    list.iter().for_each(|_| assert!(polled(&mut a.send_cq)));
    let too_long = [0_u8; 4096];
    let op = SendOp::Write {
        payload: Payload::Inline(&too_long),
        remote,
        imm: None,
    };
    assert!(
        a.qp.post_send(&SendWr {
            wr_id: 6,
            op,
            flags: SIGNALED
        })
        .is_err()
    );
    assert!(a.send_cq.poll(&mut [Completion::EMPTY]) == 0);
}

fn allocates_nothing<B: Backend>(backend: &B) {
    let setup = Setup::new(backend.open(), backend.traits(), 1).expect("the backend opens");
    let mut link = setup.link().expect("two ends connect");
    let remote = link.b.at(AT);
    for _ in 0..100 {
        round(&mut link.a, &mut link.b, remote);
    }
    let before = allocations();
    for _ in 0..1000 {
        round(&mut link.a, &mut link.b, remote);
    }
    let made = allocations() - before;
    assert_eq!(
        made,
        0,
        "{}: {made} allocations in 1000 rounds of posting and polling",
        backend.name()
    );
}

/// One test, so that no other thread of the harness allocates meanwhile.
#[test]
fn post_and_poll_allocate_nothing() {
    let before = allocations();
    drop(std::hint::black_box(vec![0_u8; 100]));
    assert!(allocations() > before, "the counter counts");
    allocates_nothing(&Inproc);
    allocates_nothing(&Shm);
    allocates_nothing(&FakeDevice);
}
