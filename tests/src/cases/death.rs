//! Peers that are not there, go away, or go away in the middle.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use mu_verbs::rights::{PeerRight, RightAttr};
use mu_verbs::{
    Access, Barrier, Context, Modify, QpControl, QpState, QueuePair, RtsAttr, WcStatus,
};

use crate::harness::{AT, Cfg, End, Link, SIGNALED, Setup, UNSIGNALED, flushed, pause};

super::table!(death:
    peer_not_ready_yet,
    peer_ready_late,
    peer_in_init_is_silent,
    peer_in_err_is_silent,
    peer_reset_is_silent,
    peer_queue_pair_closed,
    peer_queue_pair_dropped,
    peer_context_gone,
    peer_gone_with_requests_outstanding,
    silence_flushes_the_rest,
    silence_for_reads,
    silence_for_sends,
    silence_ends_within_its_bound,
    writer_gone_in_mid_storm,
    writer_gone_leaves_its_target_usable,
    target_gone_in_mid_storm,
    objects_dropped_in_any_order,
    queue_pairs_come_and_go,
);

/// A link that gives up soon.
fn link<C: Context>(s: &Setup<C>) -> Result<Link<C>> {
    s.link_with(Cfg::impatient)
}

/// The peer does not answer: RETRY_EXC_ERR, and the own end in ERR.
fn silent<C: Context>(a: &mut End<C>, place: mu_verbs::RemoteAddr) -> Result<()> {
    a.write(1, AT, 8, place, SIGNALED)?;
    a.ends(1, WcStatus::RETRY_EXC_ERR)?;
    a.reaches(QpState::Err)
}

/// The asking end in RTS, the answering one in INIT.
fn half_open<C: Context>(s: &Setup<C>, rts: RtsAttr) -> Result<Link<C>> {
    let mut cfg = s.cfg();
    cfg.rts = rts;
    let l = Link {
        a: s.end(&s.a, &cfg)?,
        b: s.end(&s.b, &cfg)?,
        cfg,
    };
    l.a.init(cfg.qp)?;
    l.b.init(cfg.qp)?;
    l.a.rtr(&l.b, &cfg)?;
    l.a.rts(&cfg)?;
    Ok(l)
}

fn impatient<C: Context>(s: &Setup<C>) -> RtsAttr {
    s.traits.impatient
}

fn peer_not_ready_yet<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = half_open(s, impatient(s))?;
    let place = l.b.at(AT);
    silent(&mut l.a, place)
}

/// A peer that gets ready before the time is over hears the request after all.
fn peer_ready_late<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_waiting()?;
    let mut l = half_open(
        s,
        RtsAttr {
            timeout: 14,
            retry_cnt: 6,
            ..RtsAttr::default()
        },
    )?;
    let source = l.a.scribble(1);
    let mut want = l.b.scribble(2);
    want[AT..AT + 3000].copy_from_slice(&source[AT..AT + 3000]);
    l.a.write(1, AT, 3000, l.b.at(AT), SIGNALED)?;
    pause(s.traits.quiet);
    l.b.rtr(&l.a, &l.cfg)?;
    l.a.done(1)?;
    l.b.comes_to_hold(&want)
}

fn peer_in_init_is_silent<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    l.b.reset()?;
    l.b.init(l.cfg.qp)?;
    let before = l.b.scribble(1);
    let place = l.b.at(AT);
    silent(&mut l.a, place)?;
    l.b.holds(&before)
}

fn peer_in_err_is_silent<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    l.b.modify(&Modify::Err)?;
    let before = l.b.scribble(1);
    let place = l.b.at(AT);
    silent(&mut l.a, place)?;
    l.b.holds(&before)
}

fn peer_reset_is_silent<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    l.b.reset()?;
    let before = l.b.scribble(1);
    let place = l.b.at(AT);
    silent(&mut l.a, place)?;
    l.b.holds(&before)
}

fn peer_queue_pair_closed<C: Context>(s: &Setup<C>) -> Result<()> {
    let Link { mut a, b, .. } = link(s)?;
    let place = b.at(AT);
    let before = b.scribble(1);
    let End { qp, memory, .. } = b;
    qp.close()?;
    silent(&mut a, place)?;
    let mut after = vec![0; memory.len()];
    memory.read_bytes(0, &mut after);
    ensure!(
        before == after,
        "a WRITE to a closed queue pair changed memory"
    );
    Ok(())
}

fn peer_queue_pair_dropped<C: Context>(s: &Setup<C>) -> Result<()> {
    let Link { mut a, b, .. } = link(s)?;
    let place = b.at(AT);
    drop(b);
    silent(&mut a, place)?;
    s.link()?.works()
}

fn peer_context_gone<C: Context>(s: &Setup<C>) -> Result<()> {
    let (x, y) = s.open()?;
    let mut cfg = s.cfg();
    cfg.impatient();
    let mut l = Link {
        a: s.end(&x, &cfg)?,
        b: s.end(&y, &cfg)?,
        cfg,
    };
    l.connect()?;
    l.works()?;
    let Link { mut a, b, .. } = l;
    let place = b.at(AT);
    drop((b, y));
    silent(&mut a, place)
}

fn peer_gone_with_requests_outstanding<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_waiting()?;
    // The answering side has no receive for the first request, so all of them wait.
    let Link { mut a, b, .. } = s.link_with(|cfg| {
        cfg.impatient();
        cfg.rts.rnr_retry = 7;
    })?;
    a.send(0, AT, 8, None, SIGNALED)?;
    (1..6).try_for_each(|i| a.write(i, AT, 8, b.at(AT), UNSIGNALED))?;
    a.quiet()?;
    drop(b);
    a.ends(0, WcStatus::RETRY_EXC_ERR)?;
    flushed(&a.sent(5)?, 1..6)
}

fn silence_flushes_the_rest<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = half_open(s, impatient(s))?;
    for i in 0..10 {
        l.a.write(
            i,
            AT,
            8,
            l.b.at(AT),
            if i % 2 == 0 { SIGNALED } else { UNSIGNALED },
        )?;
    }
    (20..25).try_for_each(|i| l.a.recv(i, AT, 8))?;
    l.a.ends(0, WcStatus::RETRY_EXC_ERR)?;
    flushed(&l.a.sent(9)?, 1..10)?;
    flushed(&l.a.received(5)?, 20..25)?;
    l.a.quiet()
}

fn silence_for_reads<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = half_open(s, impatient(s))?;
    let before = l.a.scribble(1);
    l.a.read(1, AT, 100, l.b.at(AT))?;
    l.a.ends(1, WcStatus::RETRY_EXC_ERR)?;
    l.a.holds(&before)
}

fn silence_for_sends<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = half_open(s, impatient(s))?;
    l.b.recv(2, AT, 8)?;
    l.a.send(1, AT, 8, None, SIGNALED)?;
    l.a.ends(1, WcStatus::RETRY_EXC_ERR)?;
    l.b.quiet()
}

/// The time-out of a request is 4.096 µs · 2^timeout for each try; a peer's death shows within a few times of all
/// tries.
fn silence_ends_within_its_bound<C: Context>(s: &Setup<C>) -> Result<()> {
    let rts = RtsAttr {
        timeout: 10,
        retry_cnt: 3,
        ..RtsAttr::default()
    };
    let mut l = half_open(s, rts)?;
    let place = l.b.at(AT);
    let began = Instant::now();
    silent(&mut l.a, place)?;
    let took = began.elapsed();
    // Devices round the time up to their own, and the machine may be busy.
    ensure!(
        took < s.traits.limit / 2,
        "it took {took:?} to notice, at 4 tries of 4.2 ms"
    );
    Ok(())
}

/// Its target sees a whole number of words, no more of them after the end, and can go on with another peer.
fn writer_gone_in_mid_storm<C: Context>(s: &Setup<C>) -> Result<()> {
    let (x, y) = s.open()?;
    let cfg = s.cfg();
    let mut l = Link {
        a: s.end(&x, &cfg)?,
        b: s.end(&y, &cfg)?,
        cfg,
    };
    l.connect()?;
    let Link { mut a, b, .. } = l;
    let place = b.at(AT);
    for i in 0..40_u64 {
        a.set_word(AT, i + 1);
        a.write(i, AT, 4096, place, UNSIGNALED)?;
    }
    drop((a, x));
    let settled = b.image();
    pause(s.traits.watch);
    ensure!(b.word(AT) <= 40, "the word is {:#x}", b.word(AT));
    // On a device requests that were already on their way may land until its queue pair was destroyed; then no more.
    b.holds(&settled)
        .context("words landed after their writer's end")?;
    let mut next = Link {
        a: s.end(&s.a, &cfg)?,
        b: s.end(&s.b, &cfg)?,
        cfg,
    };
    next.connect()?;
    next.works()
}

fn writer_gone_leaves_its_target_usable<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut b = s.end(&s.b, &s.cfg())?;
    for _ in 0..5 {
        let cfg = s.cfg();
        let a = s.end(&s.a, &cfg)?;
        let mut l = Link { a, b, cfg };
        l.connect_with(Access::NONE)?;
        let range = AT..AT + 4096;
        let mut right = PeerRight::new(
            &l.b.ctx,
            &l.b.pd,
            l.b.qp.control(),
            &l.b.memory,
            range,
            RightAttr::LOG,
        )?;
        let g = right.grant(None)?;
        (0..20).try_for_each(|i| l.a.write(i, AT, 1000, g.remote, UNSIGNALED))?;
        let Link { a, b: target, .. } = l;
        b = target;
        drop(a);
        let done = b.lend(|local| right.revoke_fully(Some(local)))?;
        ensure!(done.barrier == Barrier::Yes, "{done:?}");
        b.reset()?;
    }
    Ok(())
}

fn target_gone_in_mid_storm<C: Context>(s: &Setup<C>) -> Result<()> {
    let (x, y) = s.open()?;
    let mut cfg = s.cfg();
    cfg.impatient();
    let mut l = Link {
        a: s.end(&x, &cfg)?,
        b: s.end(&y, &cfg)?,
        cfg,
    };
    l.connect()?;
    let Link { mut a, b, .. } = l;
    let place = b.at(AT);
    let started = AtomicBool::new(false);
    let status = std::thread::scope(|scope| -> Result<WcStatus> {
        let writer = scope.spawn(|| -> Result<WcStatus> {
            loop {
                a.write(1, AT, 4096, place, SIGNALED)?;
                let c = a.sent(1)?[0];
                if !c.status.is_success() {
                    return Ok(c.status);
                }
                started.store(true, Ordering::Relaxed);
            }
        });
        crate::harness::until(s.traits.limit, || {
            started.load(Ordering::Relaxed).then_some(())
        });
        drop((b, y));
        writer.join().expect("the writer does not panic")
    })?;
    ensure!(status.may_be_lost_right(), "the writer ended with {status}");
    a.reaches(QpState::Err)
}

fn objects_dropped_in_any_order<C: Context>(s: &Setup<C>) -> Result<()> {
    for order in 0..6 {
        let Link { a, b, .. } = s.link()?;
        let End {
            qp,
            send_cq,
            recv_cq,
            mr,
            memory,
            pd,
            ..
        } = a;
        match order {
            0 => drop((pd, memory, mr, recv_cq, send_cq, qp)),
            1 => drop((mr, qp, memory, send_cq, pd, recv_cq)),
            2 => drop((send_cq, recv_cq, pd, qp, mr, memory)),
            3 => drop((memory, pd, qp, mr, send_cq, recv_cq)),
            4 => drop((recv_cq, mr, send_cq, memory, qp, pd)),
            _ => drop((qp, pd, send_cq, mr, recv_cq, memory)),
        }
        drop(b);
    }
    s.link()?.works()
}

fn queue_pairs_come_and_go<C: Context>(s: &Setup<C>) -> Result<()> {
    for _ in 0..100 {
        let mut l = s.link()?;
        l.works()?;
    }
    let l = s.link()?;
    ensure!(l.a.qp.control().qp_num() != 0, "no number");
    Ok(())
}
