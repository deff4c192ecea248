//! Placement modes and faults, one at a time: what each does to the bytes, the completion and the states.
#![cfg(not(loom))]

mod pair;

use mu_softrdma::Fabric;
use mu_softrdma::fault::{Fault, LATE_POLLS, Placement};
use mu_softrdma::types::*;
use pair::{End, Pair, connect};

/// One word of ones in a WRITE of 8 bytes.
const ONES: u64 = u64::from_ne_bytes([1; 8]);

fn write(x: &mut End, id: u64, remote: RemoteAddr, bytes: &[u8]) {
    let payload = Payload::Inline(bytes);
    x.post(
        id,
        SendOp::Write {
            payload,
            remote,
            imm: None,
        },
    )
    .expect("there is room");
}

/// A pair whose writer is in the given mode.
fn in_mode(placement: Placement) -> Pair {
    let fabric = Fabric::new();
    Pair::between(
        &fabric.open_with(placement).unwrap(),
        &fabric.open().unwrap(),
    )
}

/// A late write is complete and not visible; whatever takes the right away makes it visible first, and nothing comes
/// after that.
#[test]
fn late_writes_land_before_a_revocation_returns() {
    type Revoke = fn(End) -> Option<End>;
    let ways: [(&str, Revoke); 5] = [
        ("flags", |y| {
            y.modify(Modify::Access(Access::REMOTE_READ));
            Some(y)
        }),
        ("ERR", |y| {
            y.modify(Modify::Err);
            Some(y)
        }),
        ("RESET", |y| {
            y.modify(Modify::Reset);
            Some(y)
        }),
        ("deregistration", |y| {
            let End { mr, qp, .. } = y;
            mr.close().unwrap();
            drop(qp);
            None
        }),
        ("destruction", |y| {
            y.qp.close().unwrap();
            None
        }),
    ];
    for (name, revoke) in ways {
        let Pair { mut x, y } = in_mode(Placement::Late);
        let memory = y.mr.memory().clone();
        write(&mut x, 1, y.mr.remote(0), &[1; 8]);
        assert_eq!(x.wait().status, WcStatus::SUCCESS);
        assert_eq!(memory.load(0), 0, "{name}: the mode is not late");
        let kept = revoke(y);
        assert_eq!(memory.load(0), ONES, "{name}: an admitted write was lost");
        memory.store(0, 99);
        for _ in 0..=2 * LATE_POLLS {
            assert_eq!(x.poll(), None);
        }
        assert_eq!(
            memory.load(0),
            99,
            "{name}: a write landed after the revocation"
        );
        drop(kept);
    }
}

#[test]
fn late_writes_become_visible_at_a_read_or_by_themselves() {
    let Pair { mut x, y } = in_mode(Placement::Late);
    write(&mut x, 1, y.mr.remote(0), &[1; 8]);
    x.wait();
    assert_eq!(y.mr.memory().load(0), 0);
    x.read(2, y.mr.remote(0), 8);
    assert_eq!(
        (x.wait().status, y.mr.memory().load(0)),
        (WcStatus::SUCCESS, ONES)
    );
    write(&mut x, 3, y.mr.remote(8), &[1; 8]);
    x.wait();
    assert_eq!(y.mr.memory().load(1), 0);
    (0..=LATE_POLLS).for_each(|_| assert_eq!(x.poll(), None));
    assert_eq!(y.mr.memory().load(1), ONES);
}

/// A queue pair connected to itself invalidates a window in late mode: the revocation lets its own late writes land.
#[test]
fn a_window_is_invalidated_over_a_loop_in_late_mode() {
    let fabric = Fabric::new();
    let node = fabric.open_with(Placement::Late).unwrap();
    let mut x = End::new(&node, 4096);
    connect(&x.qp, &x.qp);
    let window = node.alloc_mw(&x.pd).unwrap();
    let rkey = window.rkey().wrapping_add(1) & 0xff | window.rkey() & !0xff;
    let End { qp, mr, .. } = &mut x;
    let bind = SendOp::BindMw {
        mw: &window,
        rkey,
        mr,
        offset: 0,
        len: 64,
        access: Access::REMOTE_WRITE,
    };
    for (wr_id, op) in [(1, bind), (2, SendOp::LocalInv { rkey })] {
        qp.post_send(&SendWr {
            wr_id,
            op,
            flags: SendFlags::SIGNALED,
        })
        .unwrap();
    }
    for id in [1, 2] {
        let done = x.wait();
        assert_eq!((done.wr_id, done.status), (id, WcStatus::SUCCESS));
    }
    window.close().unwrap();
}

#[test]
fn torn_at_the_mtu() {
    let Pair { mut x, y } = in_mode(Placement::TornAtMtu);
    let bytes = 3 * Mtu::default().bytes();
    x.mr.memory().write_bytes(0, &vec![1; bytes]);
    let word_of = |chunk: usize| y.mr.memory().load(chunk * Mtu::default().bytes() / 8);
    x.write_region(1, y.mr.remote(0), bytes);
    let mut steps = vec![[0, 1, 2].map(word_of)];
    while x.poll().is_none() {
        steps.push([0, 1, 2].map(word_of));
    }
    assert!(
        steps.contains(&[ONES, 0, 0]) && steps.contains(&[ONES, ONES, 0]),
        "{steps:x?}"
    );
    assert_eq!([0, 1, 2].map(word_of), [ONES; 3]);
}

#[test]
fn shuffled_blocks_all_arrive() {
    for mode in [Placement::Shuffle64, Placement::Shuffle128] {
        let Pair { mut x, y } = in_mode(mode);
        let bytes: Vec<u8> = (0..3000).map(|i| (i * 7 + 1) as u8).collect();
        x.mr.memory().write_bytes(0, &bytes);
        x.write_region(1, y.mr.remote(100), bytes.len());
        assert_eq!(x.wait().status, WcStatus::SUCCESS);
        let mut got = vec![0; bytes.len()];
        y.mr.memory().read_bytes(100, &mut got);
        assert_eq!(got, bytes, "{mode:?}");
        assert_eq!(
            y.mr.memory().load(12) as u32,
            0,
            "{mode:?} wrote before its range"
        );
    }
}

#[test]
fn faults_do_what_they_say() {
    let landed = |y: &End, at: usize| y.mr.memory().load(at) == ONES;

    let Pair { mut x, y } = Pair::new();
    x.qp.inject(Fault::Delay { polls: 5 });
    write(&mut x, 1, y.mr.remote(0), &[1; 8]);
    assert!(x.poll().is_none() && !landed(&y, 0));
    assert_eq!(x.wait().status, WcStatus::SUCCESS);
    assert!(landed(&y, 0));

    x.qp.inject(Fault::DropCompletion);
    write(&mut x, 2, y.mr.remote(8), &[1; 8]);
    write(&mut x, 3, y.mr.remote(16), &[1; 8]);
    assert_eq!(x.wait().wr_id, 3, "the completion of 2 is lost");
    assert!(landed(&y, 1) && landed(&y, 2));

    x.qp.inject(Fault::ErrorAfterLanding(WcStatus::RETRY_EXC_ERR));
    write(&mut x, 4, y.mr.remote(24), &[1; 8]);
    assert_eq!(x.wait().status, WcStatus::RETRY_EXC_ERR);
    assert!(landed(&y, 3));
    assert_eq!(x.qp.control().state(), QpState::Err);

    let Pair { mut x, y } = Pair::new();
    x.qp.inject(Fault::ToErr);
    write(&mut x, 5, y.mr.remote(0), &[1; 8]);
    assert_eq!(
        (x.wait().status, landed(&y, 0)),
        (WcStatus::WR_FLUSH_ERR, false)
    );
}

/// A context that dies in mid-copy leaves a prefix and a sequence that stays odd. Its peer can still revoke, finds
/// nothing later, and connects to another one.
#[test]
fn death_in_the_middle_of_a_copy() {
    let fabric = Fabric::new();
    let Pair { mut x, y } = Pair::between(&fabric.open().unwrap(), &fabric.open().unwrap());
    x.qp.inject(Fault::CrashInCopy { bytes: 16 });
    write(&mut x, 1, y.mr.remote(0), &[1; 32]);
    assert_eq!(x.wait().status, WcStatus::RETRY_EXC_ERR);
    x.node.crash();
    y.modify(Modify::Reset);
    assert_eq!(
        [0, 1, 2, 3].map(|at| y.mr.memory().load(at)),
        [ONES, ONES, 0, 0]
    );
    let mut z = End::new(&fabric.open().unwrap(), 64);
    connect(&z.qp, &y.qp);
    write(&mut z, 2, y.mr.remote(16), &[1; 16]);
    assert_eq!(z.wait().status, WcStatus::SUCCESS);
    assert_eq!([0, 1, 2, 3].map(|at| y.mr.memory().load(at)), [ONES; 4]);
}

/// Receives may be posted from INIT on, and ERR flushes them wherever it comes from.
#[test]
fn receives_posted_before_the_connection_are_flushed() {
    let Pair { x, mut y } = Pair::new();
    y.modify(Modify::Reset);
    y.modify(Modify::Init(Access::NONE));
    for wr_id in [1, 2] {
        y.qp.post_recv(&RecvWr { wr_id, local: &[] }).unwrap();
    }
    assert_eq!(y.poll(), None);
    y.modify(Modify::Err);
    for wr_id in [1, 2] {
        let done = y.wait();
        assert_eq!((done.wr_id, done.status), (wr_id, WcStatus::WR_FLUSH_ERR));
    }
    assert_eq!(y.poll(), None);
    drop(x);
}

/// A message that a RESET of its target cut in two does not go on when that one connects to the same peer again.
#[test]
fn a_message_does_not_go_on_in_the_next_connection() {
    let Pair { mut x, y } = in_mode(Placement::TornAtMtu);
    let chunk = Mtu::default().bytes();
    x.mr.memory().write_bytes(0, &vec![1; 3 * chunk]);
    x.write_region(1, y.mr.remote(0), 3 * chunk);
    assert_eq!(
        y.mr.memory().load(0),
        ONES,
        "the first chunk is placed by posting"
    );
    y.modify(Modify::Reset);
    y.modify(Modify::Init(Access::LOG));
    y.modify(Modify::Rtr(RtrAttr::new(x.qp.control().endpoint())));
    y.modify(Modify::Rts(RtsAttr::default()));
    assert_eq!(x.wait().status, WcStatus::RETRY_EXC_ERR);
    assert_eq!(y.mr.memory().load(chunk / 8), 0, "the old message went on");
}
