//! Rights whose own requests do not complete in time, over memory: what is queued runs later, and what it leaves must
//! be reckoned with.

#![cfg(feature = "soft")]

use mu_softrdma::Fabric;
use mu_verbs::rights::{Grant, Local, PeerRight, RightAttr, RightError, RightState, Through};
use mu_verbs::soft::Soft;
use mu_verbs::{
    Access, Barrier, Completion, Context, Error, Memory, Modify, Payload, QpCap, RecvWr,
    RemoteAddr, RevokeMethod, RtrAttr, RtsAttr, SendFlags, SendOp, SendWr, Sge, WcStatus,
    next_rkey,
};

const BYTES: usize = 4096;
/// The upper half of the own requests' numbers.
const OWN: u64 = 7 << 32;

const WINDOW: RightAttr = RightAttr {
    through: Through::Window,
    ..RightAttr::LOG
};

/// One end of a connection.
struct End {
    ctx: Soft,
    pd: <Soft as Context>::Pd,
    cq: <Soft as Context>::Cq,
    qp: <Soft as Context>::Qp,
    memory: Memory,
}

impl End {
    fn new(fabric: &Fabric) -> Self {
        let ctx = Soft::inproc(fabric).unwrap();
        let pd = ctx.alloc_pd().unwrap();
        let cq = ctx.create_cq(64).unwrap();
        let qp = ctx.create_qp(&pd, &cq, &cq, &QpCap::default()).unwrap();
        let memory = ctx.alloc_memory(BYTES).unwrap();
        Self {
            ctx,
            pd,
            cq,
            qp,
            memory,
        }
    }

    fn right(&self, attr: RightAttr) -> Result<PeerRight<Soft>, Error> {
        let control = self.qp.control();
        PeerRight::new(&self.ctx, &self.pd, control, &self.memory, 0..BYTES, attr)
    }

    /// Runs `work` with the queue pair lent; a completion is waited for over `polls` polls.
    fn lend<T>(&mut self, polls: usize, work: impl FnOnce(&mut Local<'_, Soft>) -> T) -> T {
        let mut left = polls;
        work(&mut Local {
            qp: &mut self.qp,
            send_cq: &mut self.cq,
            recv_cq: None,
            wr_id: OWN,
            other: &mut |_| (),
            keep_waiting: &mut || {
                left = left.saturating_sub(1);
                left > 0
            },
        })
    }

    fn send(&mut self) {
        let op = SendOp::Send {
            payload: Payload::Inline(b"message"),
            imm: None,
        };
        let wr = SendWr {
            wr_id: 1,
            op,
            flags: SendFlags::NONE,
        };
        self.qp.post_send(&wr).unwrap();
    }

    /// Writes 8 bytes and says how that ended.
    fn write(&mut self, remote: RemoteAddr) -> WcStatus {
        let op = SendOp::Write {
            payload: Payload::Inline(b"anything"),
            remote,
            imm: None,
        };
        let flags = SendFlags::SIGNALED;
        let wr = SendWr {
            wr_id: 2,
            op,
            flags,
        };
        self.qp.post_send(&wr).unwrap();
        let mut polled = [Completion::EMPTY];
        while self.cq.poll(&mut polled) == 0 || polled[0].wr_id != 2 {
            std::thread::yield_now();
        }
        polled[0].status
    }
}

/// Two connected ends. The peer is first; its messages wait for receives as long as it takes, and so do those to it.
fn pair(init: Access) -> (End, End) {
    let fabric = Fabric::new();
    let ends = (End::new(&fabric), End::new(&fabric));
    for end in [&ends.0, &ends.1] {
        end.qp.control().modify(&Modify::Init(init)).unwrap();
    }
    for (end, other) in [(&ends.0, &ends.1), (&ends.1, &ends.0)] {
        let control = end.qp.control();
        let rtr = RtrAttr::new(other.qp.control().endpoint());
        control.modify(&Modify::Rtr(rtr)).unwrap();
        let rts = RtsAttr {
            timeout: 8,
            rnr_retry: 7,
            ..RtsAttr::default()
        };
        control.modify(&Modify::Rts(rts)).unwrap();
    }
    ends
}

/// A right through a window that was used once and taken away by an invalidation: the flags are still on.
fn invalidated() -> (End, End, PeerRight<Soft>, Grant) {
    let (mut peer, mut own) = pair(Access::NONE);
    let mut right = own.right(WINDOW).unwrap();
    let grant = own.lend(100, |local| right.grant(Some(local))).unwrap();
    assert_eq!(peer.write(grant.remote), WcStatus::SUCCESS);
    let done = own
        .lend(100, |local| right.revoke(RevokeMethod::Window, Some(local)))
        .unwrap();
    assert_eq!(done.barrier, Barrier::Yes);
    (peer, own, right, grant)
}

/// Lets the message that waits at `own` and the request behind it go, and leaves their completions where they are.
fn release(peer: &mut End, own: &mut End) {
    let memory = peer.ctx.alloc_memory(64).unwrap();
    let mr = peer
        .ctx
        .reg_mr(&peer.pd, &memory, 0..64, Access::LOCAL_WRITE)
        .unwrap();
    let wr = RecvWr {
        wr_id: 3,
        local: &[Sge::new(&mr, 0, 64)],
    };
    peer.qp.post_recv(&wr).unwrap();
    let mut polled = [Completion::EMPTY];
    while peer.cq.poll(&mut polled) == 0 {
        own.cq.poll(&mut []);
        std::thread::yield_now();
    }
    assert_eq!(polled[0].status, WcStatus::SUCCESS);
    own.cq.poll(&mut []);
}

#[test]
fn a_bind_that_was_given_up_gives_nothing_after_a_revocation() {
    let (mut peer, mut own, mut right, old) = invalidated();
    own.memory.store(0, 0);
    // A message that nobody has asked for yet holds up the bind behind it.
    own.send();
    let given_up = own.lend(1, |local| right.grant(Some(local)));
    assert!(
        matches!(given_up, Err(RightError::NoCompletion { .. })),
        "{given_up:?}"
    );
    assert_eq!(right.state(), RightState::Unknown);
    let done = own.lend(1, |local| right.revoke(RevokeMethod::Window, Some(local)));
    // Now what is queued runs.
    release(&mut peer, &mut own);
    let remote = RemoteAddr {
        rkey: next_rkey(old.remote.rkey),
        ..old.remote
    };
    let written = peer.write(remote);
    assert_eq!(done.unwrap().barrier, Barrier::Yes);
    assert_eq!(right.state(), RightState::Fenced);
    assert!(
        !written.is_success() && own.memory.load(0) == 0,
        "written after a revocation that was a barrier: {written}"
    );
    right.close().unwrap();
}

#[test]
fn a_completion_that_comes_late_is_not_taken_for_the_next_requests() {
    let (mut peer, mut own) = pair(Access::NONE);
    let mut right = own.right(WINDOW).unwrap();
    own.lend(100, |local| right.grant(Some(local))).unwrap();
    own.send();
    let given_up = own.lend(1, |local| right.revoke(RevokeMethod::Window, Some(local)));
    assert!(
        matches!(given_up, Err(RightError::NoCompletion { .. })),
        "{given_up:?}"
    );
    // The first message goes, the invalidation completes unseen, and the second message holds up what follows.
    release(&mut peer, &mut own);
    own.send();
    let second = own.lend(1, |local| right.grant(Some(local)));
    assert!(
        matches!(second, Err(RightError::NoCompletion { .. })),
        "the bind has not run: {second:?}"
    );
    assert_eq!(right.state(), RightState::Unknown);
    own.lend(1, |local| right.revoke_fully(Some(local)))
        .unwrap();
}

#[test]
fn waiting_ends_although_completions_of_others_keep_coming() {
    let (_peer, mut own) = pair(Access::NONE);
    let mut right = own.right(WINDOW).unwrap();
    let failing = own.qp.control().clone();
    own.send();
    // Each poll finds up to sixteen flushed receives of another queue pair on the same queue.
    let mut other = own
        .ctx
        .create_qp(&own.pd, &own.cq, &own.cq, &QpCap::default())
        .unwrap();
    other.control().modify(&Modify::Init(Access::NONE)).unwrap();
    let posted = other.cap().max_recv_wr.min(48);
    for _ in 0..posted {
        let wr = RecvWr {
            wr_id: 4,
            local: &[],
        };
        other.post_recv(&wr).unwrap();
    }
    other.control().modify(&Modify::Err).unwrap();
    let (mut seen, mut asked) = (0, 0);
    let result = right.grant(Some(&mut Local {
        qp: &mut own.qp,
        send_cq: &mut own.cq,
        recv_cq: None,
        wr_id: OWN,
        other: &mut |_| seen += 1,
        keep_waiting: &mut || {
            asked += 1;
            false
        },
    }));
    assert!(
        matches!(result, Err(RightError::NoCompletion { .. })),
        "{result:?}"
    );
    assert_eq!((seen, asked), (posted.min(16), 1));
    failing.modify(&Modify::Err).unwrap();
}

#[test]
fn a_right_outside_its_memory_is_not_made() {
    let (_peer, own) = pair(Access::NONE);
    let control = own.qp.control();
    for range in [
        0..0,
        8..8,
        0..BYTES + 8,
        own.memory.len()..own.memory.len() + 8,
    ] {
        let made = PeerRight::new(
            &own.ctx,
            &own.pd,
            control,
            &own.memory,
            range.clone(),
            RightAttr::LOG,
        );
        let error = made.map(drop).unwrap_err();
        assert!(
            matches!(error, Error::Invalid { .. }) && error.to_string().contains("bytes"),
            "{range:?}: {error}"
        );
    }
}

#[test]
fn a_grant_before_rts_changes_nothing() {
    let fabric = Fabric::new();
    let (one, two) = (End::new(&fabric), End::new(&fabric));
    let mut right = one.right(RightAttr::LOG).unwrap();
    for end in [&one, &two] {
        let access = right.init_access();
        assert_eq!(access, Access::NONE);
        end.qp.control().modify(&Modify::Init(access)).unwrap();
    }
    let rtr = RtrAttr::new(two.qp.control().endpoint());
    one.qp.control().modify(&Modify::Rtr(rtr)).unwrap();
    let result = right.grant(None);
    assert!(
        matches!(result, Err(RightError::NotConnected { .. })),
        "{result:?}"
    );
    assert_eq!(right.state(), RightState::Fenced);
}
