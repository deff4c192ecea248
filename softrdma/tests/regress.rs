//! Ways by which a word could land after a right was gone, or a completion say too much, within one process. Each was
//! there once.
#![cfg(not(loom))]

mod pair;

use std::sync::atomic::{AtomicBool, Ordering};

use mu_softrdma::error::Error;
use mu_softrdma::fault::{Fault, Placement};
use mu_softrdma::types::*;
use mu_softrdma::{Fabric, Mw};
use pair::{BYTES, End, Pair, connect, poll, wait};

fn write(x: &mut End, wr_id: u64, remote: RemoteAddr, value: u64) -> WcStatus {
    let bytes = value.to_ne_bytes();
    let payload = Payload::Inline(&bytes);
    let op = SendOp::Write {
        payload,
        remote,
        imm: None,
    };
    x.post(wr_id, op).expect("there is room");
    x.wait().status
}

/// Posts a bind of the window to all of the end's region.
fn post_bind(y: &mut End, mw: &Mw) {
    let op = SendOp::BindMw {
        mw,
        rkey: mw.rkey(),
        mr: &y.mr,
        offset: 0,
        len: BYTES,
        access: Access::REMOTE_WRITE,
    };
    y.qp.post_send(&pair::signalled(1, op))
        .expect("there is room");
}

/// The place of the region's first byte, through a window.
fn through(y: &End, rkey: u32) -> RemoteAddr {
    let addr = y.mr.addr();
    RemoteAddr { addr, rkey }
}

/// The window is deallocated while its bind waits, and its number goes to a region.
#[test]
fn a_waiting_bind_does_not_revive_a_window() {
    let Pair { mut x, mut y } = Pair::new();
    let mw = y.node.alloc_mw(&y.pd).unwrap();
    let rkey = mw.rkey();
    y.qp.inject(Fault::Delay { polls: 20 });
    post_bind(&mut y, &mw);
    mw.close().unwrap();
    let memory = y.node.alloc_memory(BYTES).unwrap();
    let mr = y
        .node
        .reg_mr(&y.pd, &memory, 0..BYTES, Access::ALL)
        .unwrap();
    assert_eq!(
        rkey >> 8 & 0xff,
        mr.key() >> 8 & 0xff,
        "the number of the window is used again"
    );
    assert_eq!(y.wait().status, WcStatus::MW_BIND_ERR);

    let window = through(&y, rkey);
    assert!(!write(&mut x, 2, window, 7).is_success());
    assert_eq!(y.mr.memory().load(0), 0, "landed through a dead window");
    for end in [&x, &y] {
        end.modify(Modify::Reset);
    }
    connect(&x.qp, &y.qp);
    assert_eq!(write(&mut x, 3, mr.remote(0), 8), WcStatus::SUCCESS);
    assert_eq!(write(&mut x, 4, window, 7), WcStatus::REM_ACCESS_ERR);
    assert_eq!((y.mr.memory().load(0), memory.load(0)), (0, 8));
}

#[test]
fn a_region_with_a_bound_window_keeps_its_rights() {
    let Pair { mut x, mut y } = Pair::new();
    let mw = y.node.alloc_mw(&y.pd).unwrap();
    post_bind(&mut y, &mw);
    assert_eq!(y.wait().status, WcStatus::SUCCESS);
    let (window, region) = (through(&y, mw.rkey()), y.mr.remote(8));

    let refused = y.mr.reregister(Access::NONE);
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    assert_eq!(y.mr.access(), Access::ALL);
    assert_eq!(write(&mut x, 2, window, 1), WcStatus::SUCCESS);
    assert_eq!(write(&mut x, 3, region, 2), WcStatus::SUCCESS);
    let memory = y.mr.memory().clone();
    assert_eq!((memory.load(0), memory.load(1)), (1, 2));

    // The region itself is given up by the call; the window stands until it is closed.
    let refused = y.mr.close();
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    assert_eq!(write(&mut x, 4, window, 3), WcStatus::SUCCESS);
    mw.close().unwrap();
    assert_eq!(write(&mut x, 5, window, 4), WcStatus::REM_ACCESS_ERR);
    assert_eq!(memory.load(0), 3);
}

/// A WRITE of which one chunk is placed; the target makes a new connection with the same queue pair meanwhile.
#[test]
fn a_stale_request_does_not_go_on_over_a_new_connection() {
    let fabric = Fabric::new();
    let torn = fabric.open_with(Placement::TornAtMtu).unwrap();
    let Pair { mut x, mut y } = Pair::between(&torn, &fabric.open().unwrap());
    x.mr.memory().write_bytes(0, &[9; BYTES]);
    let remote = y.mr.remote(0);
    let recv = |y: &mut End, wr_id| y.qp.post_recv(&RecvWr { wr_id, local: &[] }).unwrap();
    recv(&mut y, 5);
    let place = [Sge::new(&x.mr, 0, BYTES)];
    let payload = Payload::Regions(&place);
    let imm = Some(3);
    let op = SendOp::Write {
        payload,
        remote,
        imm,
    };
    x.qp.post_send(&pair::signalled(1, op)).unwrap();
    let last = BYTES / 8 - 1;
    assert_ne!(y.mr.memory().load(0), 0, "the first chunk is placed");
    assert_eq!(y.mr.memory().load(last), 0);

    y.modify(Modify::Reset);
    y.mr.memory().write_bytes(0, &[0; BYTES]);
    y.modify(Modify::Init(Access::LOG));
    recv(&mut y, 6);
    y.modify(Modify::Rtr(RtrAttr::new(x.qp.control().endpoint())));
    y.modify(Modify::Rts(RtsAttr::default()));
    assert_eq!(x.wait().status, WcStatus::RETRY_EXC_ERR);
    assert_eq!(y.poll(), None, "a receive was completed");
    assert!((0..=last).all(|word| y.mr.memory().load(word) == 0));
}

/// The polling thread is in the middle of a READ into a region that another thread deregisters.
#[test]
#[cfg_attr(miri, ignore = "too many bytes; it needs a READ that takes long")]
fn a_deregistration_waits_for_a_read_under_way() {
    const LEN: usize = 64 << 20;
    const ROUNDS: u32 = 60;
    /// Words that are looked at, spread over the region.
    const SAMPLES: usize = 64;
    let sample = |n: usize| (n + 1) * (LEN / 8 / SAMPLES) - 1;
    let fabric = Fabric::new();
    let y = End::new(&fabric.open().unwrap(), LEN);
    y.mr.memory().write_bytes(0, &vec![5; LEN]);
    let five = u64::from_ne_bytes([5; 8]);
    let (mut under_way, mut rounds) = (0, 0);
    while under_way < 3 && rounds < ROUNDS {
        rounds += 1;
        let mut x = End::new(&fabric.open().unwrap(), LEN);
        y.modify(Modify::Reset);
        connect(&x.qp, &y.qp);
        x.qp.inject(Fault::Delay { polls: 2 });
        x.read(1, y.mr.remote(0), LEN);
        // The queue pair lives on: its destruction would wait as well.
        let End {
            qp: _qp,
            mut cq,
            mr,
            ..
        } = x;
        let memory = mr.memory().clone();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let status = wait(&mut cq).status;
                over.store(true, Ordering::SeqCst);
                status
            });
            while memory.load(0) != five && !over.load(Ordering::SeqCst) {
                std::hint::spin_loop();
            }
            under_way += u32::from(memory.load(sample(SAMPLES / 2)) != five);
            mr.close().unwrap();
            let before: Vec<u64> = (0..SAMPLES).map(|n| memory.load(sample(n))).collect();
            assert_eq!(reader.join().unwrap(), WcStatus::SUCCESS);
            let late = (0..SAMPLES).filter(|&n| memory.load(sample(n)) != before[n]);
            assert_eq!(late.count(), 0, "words landed after the deregistration");
        });
        assert_eq!(poll(&mut cq), None);
    }
    println!("{under_way} of {rounds} were deregistered in mid-READ");
    assert!(
        under_way > 0,
        "the test never deregistered in the middle of a READ"
    );
}
