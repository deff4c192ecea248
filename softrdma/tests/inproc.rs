//! Two contexts of one process: the shortest complete use of each operation. The conformance suite has the rest.

use mu_softrdma::types::*;
use mu_softrdma::{Cq, Fabric, Mr, Mw, Node, Pd, Qp};

struct End {
    pd: Pd,
    cq: Cq,
    qp: Qp,
    mr: Mr,
}

fn end(node: &Node, bytes: usize) -> End {
    let pd = node.alloc_pd();
    let memory = node.alloc_memory(bytes).unwrap();
    let mr = node.reg_mr(&pd, &memory, 0..bytes, Access::ALL).unwrap();
    let cq = node.create_cq(64).unwrap();
    let qp = node.create_qp(&pd, &cq, &cq, &QpCap::default()).unwrap();
    End { pd, cq, qp, mr }
}

fn connect(a: &Qp, b: &Qp) {
    let all = Access::LOG | Access::REMOTE_ATOMIC;
    for qp in [a, b] {
        qp.control().modify(&Modify::Init(all)).unwrap();
    }
    for (qp, peer) in [(a, b), (b, a)] {
        qp.control()
            .modify(&Modify::Rtr(RtrAttr::new(peer.control().endpoint())))
            .unwrap();
        qp.control()
            .modify(&Modify::Rts(RtsAttr {
                timeout: 8,
                retry_cnt: 1,
                ..RtsAttr::default()
            }))
            .unwrap();
    }
}

fn pair(bytes: usize) -> (Node, Node, End, End) {
    let fabric = Fabric::new();
    let (a, b) = (fabric.open().unwrap(), fabric.open().unwrap());
    let (x, y) = (end(&a, bytes), end(&b, bytes));
    connect(&x.qp, &y.qp);
    (a, b, x, y)
}

fn wait(cq: &mut Cq) -> Completion {
    let mut out = [Completion::EMPTY];
    let start = std::time::Instant::now();
    while cq.poll(&mut out) == 0 {
        assert!(start.elapsed().as_secs() < 10, "no completion");
        std::thread::yield_now();
    }
    out[0]
}

fn signalled<'a>(wr_id: u64, op: SendOp<'a, Mr, Mw>) -> SendWr<'a, Mr, Mw> {
    SendWr {
        wr_id,
        op,
        flags: SendFlags::SIGNALED,
    }
}

#[test]
fn write_read_atomics_send() {
    let (_a, _b, mut x, mut y) = pair(4096);
    x.mr.memory()
        .write_bytes(0, b"one-sided writes straight into logs");
    let sges = [Sge::new(&x.mr, 0, 35)];
    let write = SendOp::Write {
        payload: Payload::Regions(&sges),
        remote: y.mr.remote(100),
        imm: None,
    };
    x.qp.post_send(&signalled(1, write)).unwrap();
    let done = wait(&mut x.cq);
    assert_eq!(
        (done.wr_id, done.status, done.opcode),
        (1, WcStatus::SUCCESS, WcOpcode::RDMA_WRITE)
    );
    let mut got = [0; 35];
    y.mr.memory().read_bytes(100, &mut got);
    assert_eq!(&got, b"one-sided writes straight into logs");

    let back = [Sge::new(&x.mr, 1024, 35)];
    x.qp.post_send(&signalled(
        2,
        SendOp::Read {
            local: &back,
            remote: y.mr.remote(100),
        },
    ))
    .unwrap();
    assert_eq!(wait(&mut x.cq).status, WcStatus::SUCCESS);
    x.mr.memory().read_bytes(1024, &mut got);
    assert_eq!(&got, b"one-sided writes straight into logs");

    y.mr.memory().store(0, 41);
    let local = Sge::new(&x.mr, 2048, 8);
    x.qp.post_send(&signalled(
        3,
        SendOp::FetchAdd {
            local,
            remote: y.mr.remote(0),
            add: 1,
        },
    ))
    .unwrap();
    let cas = SendOp::CompareSwap {
        local,
        remote: y.mr.remote(0),
        compare: 42,
        swap: 7,
    };
    x.qp.post_send(&signalled(4, cas)).unwrap();
    assert_eq!(wait(&mut x.cq).wr_id, 3);
    assert_eq!(wait(&mut x.cq).wr_id, 4);
    assert_eq!((x.mr.memory().load(256), y.mr.memory().load(0)), (42, 7));

    y.qp.post_recv(&RecvWr {
        wr_id: 9,
        local: &[Sge::new(&y.mr, 512, 64)],
    })
    .unwrap();
    x.qp.post_send(&signalled(
        5,
        SendOp::Send {
            payload: Payload::Inline(b"hello"),
            imm: Some(77),
        },
    ))
    .unwrap();
    assert_eq!(wait(&mut x.cq).status, WcStatus::SUCCESS);
    let got = wait(&mut y.cq);
    assert_eq!(
        (got.wr_id, got.byte_len, got.imm_data, got.opcode),
        (9, 5, Some(77), WcOpcode::RECV)
    );
}

#[test]
fn a_revoked_right_refuses_and_fails_both_ends() {
    let (_a, b, mut x, mut y) = pair(4096);
    y.qp.control()
        .modify(&Modify::Access(Access::REMOTE_READ))
        .unwrap();
    let write = SendOp::Write {
        payload: Payload::Inline(&[1; 8]),
        remote: y.mr.remote(0),
        imm: None,
    };
    y.qp.post_recv(&RecvWr {
        wr_id: 5,
        local: &[],
    })
    .unwrap();
    for id in 0..2 {
        x.qp.post_send(&signalled(id, write)).unwrap();
    }
    assert_eq!(wait(&mut x.cq).status, WcStatus::REM_INV_REQ_ERR);
    assert_eq!(wait(&mut x.cq).status, WcStatus::WR_FLUSH_ERR);
    assert_eq!(wait(&mut y.cq).status, WcStatus::WR_FLUSH_ERR);
    assert_eq!(y.qp.control().state(), QpState::Err);
    assert_eq!(x.qp.control().state(), QpState::Err);
    assert_eq!(y.mr.memory().load(0), 0);
    assert!(matches!(
        b.poll_async_event(),
        Some(AsyncEvent::QpRequestError { .. })
    ));

    for end in [&x, &y] {
        end.qp.control().modify(&Modify::Reset).unwrap();
    }
    connect(&x.qp, &y.qp);
    x.qp.post_send(&signalled(3, write)).unwrap();
    assert_eq!(wait(&mut x.cq).status, WcStatus::SUCCESS);
    assert_ne!(y.mr.memory().load(0), 0);
}

#[test]
fn a_peer_that_is_not_there_ends_in_retry_exceeded() {
    let (_a, _b, mut x, y) = pair(4096);
    let remote = y.mr.remote(0);
    drop(y);
    x.qp.post_send(&signalled(
        1,
        SendOp::Write {
            payload: Payload::Inline(&[1; 8]),
            remote,
            imm: None,
        },
    ))
    .unwrap();
    assert_eq!(wait(&mut x.cq).status, WcStatus::RETRY_EXC_ERR);
    drop(x.pd);
}

/// A refusal belongs to the queue pair it was meant for, not to the next one that gets its slot.
#[test]
fn a_new_queue_pair_does_not_inherit_a_refusal() {
    let (_a, b, mut x, y) = pair(4096);
    y.qp.control()
        .modify(&Modify::Access(Access::NONE))
        .unwrap();
    let remote = y.mr.remote(0);
    let write = SendOp::Write {
        payload: Payload::Inline(&[1; 8]),
        remote,
        imm: None,
    };
    x.qp.post_send(&signalled(1, write)).unwrap();
    assert_eq!(wait(&mut x.cq).status, WcStatus::REM_INV_REQ_ERR);
    y.qp.close().unwrap();
    let qp = b.create_qp(&y.pd, &y.cq, &y.cq, &QpCap::default()).unwrap();
    x.qp.control().modify(&Modify::Reset).unwrap();
    connect(&x.qp, &qp);
    assert_eq!(qp.control().state(), QpState::Rts);
    x.qp.post_send(&signalled(2, write)).unwrap();
    assert_eq!(wait(&mut x.cq).status, WcStatus::SUCCESS);
}
