//! Rights: granted, used, taken away by each method, under no load and under a storm of writes. The contract is that
//! once a barrier has returned, no byte from that peer lands until the right is granted again.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use mu_verbs::rights::{Grant, PeerRight, Revoked, RightAttr, RightError, RightState, Through};
use mu_verbs::{
    Access, Barrier, Context, MemoryRegion, Modify, Mtu, QpControl, QpState, QueuePair, RemoteAddr,
    RevokeMethod, WORD, WcStatus,
};

use crate::harness::{AT, Cfg, End, Idle, Link, SIGNALED, Setup, UNSIGNALED, pause, skip, until};

super::table!(revoke:
    grant_gives_the_range,
    grant_needs_a_connection,
    nothing_before_the_grant,
    right_that_would_stay,
    right_that_is_none,
    methods_need_a_queue_pair,
    window_method_on_a_region,
    idle_by_qp_flags,
    idle_by_window,
    idle_by_reregister,
    idle_by_qp_cycle,
    idle_fully,
    idle_fully_without_a_queue_pair,
    again_after_qp_flags,
    again_after_window,
    again_after_reregister,
    again_after_qp_cycle,
    again_after_fully,
    regrant_without_a_write_keeps_the_connection,
    revoking_twice,
    read_is_kept,
    one_peer_of_two,
    falls_back_when_the_queue_pair_failed,
    windows_work_after_a_cycle,
    closed_right,
    storm_by_qp_flags,
    storm_by_window,
    storm_by_reregister,
    storm_by_qp_cycle,
    storm_fully,
    storm_fully_through_a_window,
    storm_of_many_packets,
    storm_ended_by_deregistration,
    storm_ended_by_destroying_the_queue_pair,
    storm_control_without_revocation,
    storm_of_another_peer_goes_on,
    handover_under_a_storm,
    cut_write_leaves_a_prefix,
);

/// The range under test: the words after [`AT`].
const LEN: usize = 16 << 10;

fn attr(method: RevokeMethod) -> RightAttr {
    let through = if method == RevokeMethod::Window {
        Through::Window
    } else {
        Through::Region
    };
    RightAttr {
        through,
        ..RightAttr::LOG
    }
}

fn right_of<C: Context>(end: &End<C>, attr: RightAttr) -> Result<PeerRight<C>> {
    Ok(PeerRight::new(
        &end.ctx,
        &end.pd,
        end.qp.control(),
        &end.memory,
        AT..AT + LEN,
        attr,
    )?)
}

/// A connected link whose answering end gives no right but by grant, and the right.
fn prepared<C: Context>(s: &Setup<C>, attr: RightAttr) -> Result<(Link<C>, PeerRight<C>)> {
    // A queue pair that was taken away does not answer; that should show soon.
    let l = s.link_with(Cfg::impatient)?;
    l.b.modify(&Modify::Access(Access::NONE))?;
    let right = right_of(&l.b, attr)?;
    Ok((l, right))
}

fn grant<C: Context>(right: &mut PeerRight<C>, end: &mut End<C>) -> Result<Grant> {
    Ok(end.lend(|local| right.grant(Some(local)))?)
}

fn revoke<C: Context>(
    right: &mut PeerRight<C>,
    end: &mut End<C>,
    method: RevokeMethod,
) -> Result<Revoked> {
    Ok(end.lend(|local| right.revoke(method, Some(local)))?)
}

fn revoke_fully<C: Context>(right: &mut PeerRight<C>, end: &mut End<C>) -> Result<Revoked> {
    Ok(end.lend(|local| right.revoke_fully(Some(local)))?)
}

fn offered<C: Context>(s: &Setup<C>, method: RevokeMethod) -> Result<Barrier> {
    match s.caps().revoke.of(method) {
        Barrier::Unsupported => skip(format!("no revocation by {method}")),
        worth => Ok(worth),
    }
}

/// A WRITE must work.
fn can_write<C: Context>(end: &mut End<C>, place: RemoteAddr) -> Result<()> {
    end.write(1, AT, 64, place, SIGNALED)?;
    end.done(1).map(drop)
}

/// A WRITE must be refused and leave the memory as it is.
fn cannot_write<C: Context>(l: &mut Link<C>, place: RemoteAddr) -> Result<()> {
    let before = l.b.image();
    l.a.scribble(77);
    l.a.write(2, AT, 64, place, SIGNALED)?;
    let c = l.a.sent(1)?[0];
    ensure!(
        !c.status.is_success(),
        "a WRITE succeeded after the revocation"
    );
    ensure!(
        c.status.may_be_lost_right(),
        "the loss of the right shows as {}",
        c.status
    );
    l.b.holds(&before).context("a refused WRITE changed memory")
}

/// Reconnects after a refusal, the answering queue pair with no rights until the grant.
fn reconnect<C: Context>(l: &mut Link<C>) -> Result<()> {
    l.a.reset()?;
    l.b.reset()?;
    l.connect_with(Access::NONE)
}

fn grant_gives_the_range<C: Context>(s: &Setup<C>) -> Result<()> {
    let (mut l, mut right) = prepared(s, RightAttr::LOG)?;
    let g = grant(&mut right, &mut l.b)?;
    ensure!((g.remote.addr, g.len) == (l.b.at(AT).addr, LEN), "{g:?}");
    ensure!(
        g.remote.rkey != l.b.mr.rkey(),
        "the right has not its own key"
    );
    ensure!(right.state() == RightState::Granted, "{:?}", right.state());
    can_write(&mut l.a, g.remote)?;
    l.a.read(3, 0, LEN, g.remote)?;
    l.a.done(3)?;
    let beyond = RemoteAddr {
        addr: g.remote.addr + LEN as u64,
        ..g.remote
    };
    cannot_write(&mut l, beyond)
}

fn grant_needs_a_connection<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut end = s.end(&s.b, &s.cfg())?;
    let mut right = right_of(&end, RightAttr::LOG)?;
    for state in [QpState::Reset, QpState::Init, QpState::Err] {
        match state {
            QpState::Init => end.init(Access::NONE)?,
            QpState::Err => end.modify(&Modify::Err)?,
            _ => {}
        }
        match end.lend(|local| right.grant(Some(local))) {
            Err(RightError::NotConnected { state: said, .. }) if said == state => {}
            other => bail!("a grant in {state:?}: {other:?}"),
        }
        ensure!(
            right.state() == RightState::Fenced,
            "{:?} after a refused grant",
            right.state()
        );
    }
    Ok(())
}

fn nothing_before_the_grant<C: Context>(s: &Setup<C>) -> Result<()> {
    let (mut l, right) = prepared(s, RightAttr::LOG)?;
    ensure!(right.state() == RightState::Fenced, "{:?}", right.state());
    let place = l.b.at(AT);
    cannot_write(&mut l, place)
}

fn right_that_would_stay<C: Context>(s: &Setup<C>) -> Result<()> {
    let end = s.end(&s.b, &s.cfg())?;
    for kept in [
        Access::REMOTE_WRITE,
        Access::REMOTE_ATOMIC,
        Access::REMOTE_READ | Access::REMOTE_WRITE,
    ] {
        let attr = RightAttr {
            qp_kept: kept,
            ..RightAttr::LOG
        };
        ensure!(
            right_of(&end, attr).is_err(),
            "{kept:?} may stay after a revocation"
        );
    }
    Ok(())
}

fn right_that_is_none<C: Context>(s: &Setup<C>) -> Result<()> {
    let end = s.end(&s.b, &s.cfg())?;
    let attr = RightAttr {
        access: Access::LOCAL_WRITE,
        ..RightAttr::LOG
    };
    ensure!(right_of(&end, attr).is_err(), "a right to nothing was made");
    Ok(())
}

fn methods_need_a_queue_pair<C: Context>(s: &Setup<C>) -> Result<()> {
    offered(s, RevokeMethod::QpCycle)?;
    let (mut l, mut right) = prepared(s, RightAttr::LOG)?;
    let g = grant(&mut right, &mut l.b)?;
    match right.revoke(RevokeMethod::QpCycle, None) {
        Err(RightError::NeedsQueuePair { .. }) => {}
        other => bail!("a cycle without a queue pair: {other:?}"),
    }
    ensure!(right.state() == RightState::Unknown, "{:?}", right.state());
    revoke_fully(&mut right, &mut l.b)?;
    cannot_write(&mut l, g.remote)
}

fn window_method_on_a_region<C: Context>(s: &Setup<C>) -> Result<()> {
    let (mut l, mut right) = prepared(s, RightAttr::LOG)?;
    grant(&mut right, &mut l.b)?;
    match l
        .b
        .lend(|local| right.revoke(RevokeMethod::Window, Some(local)))
    {
        Err(RightError::Unsupported {
            method: RevokeMethod::Window,
            ..
        }) => Ok(()),
        other => bail!("a window's invalidation of a right without one: {other:?}"),
    }
}

/// Revoked while nothing is under way: refused, and memory as it was.
fn idle<C: Context>(s: &Setup<C>, method: RevokeMethod) -> Result<()> {
    let worth = offered(s, method)?;
    let (mut l, mut right) = prepared(s, attr(method))?;
    let g = grant(&mut right, &mut l.b)?;
    can_write(&mut l.a, g.remote)?;
    let done = revoke(&mut right, &mut l.b, method)?;
    ensure!((done.method, done.barrier) == (method, worth), "{done:?}");
    let state = if worth == Barrier::Yes {
        RightState::Fenced
    } else {
        RightState::Leaking
    };
    ensure!(
        right.state() == state,
        "{:?}, should be {state:?}",
        right.state()
    );
    pause(s.traits.quiet);
    cannot_write(&mut l, g.remote)
}

fn idle_by_qp_flags<C: Context>(s: &Setup<C>) -> Result<()> {
    idle(s, RevokeMethod::QpFlags)
}

fn idle_by_window<C: Context>(s: &Setup<C>) -> Result<()> {
    idle(s, RevokeMethod::Window)
}

fn idle_by_reregister<C: Context>(s: &Setup<C>) -> Result<()> {
    idle(s, RevokeMethod::Reregister)
}

fn idle_by_qp_cycle<C: Context>(s: &Setup<C>) -> Result<()> {
    idle(s, RevokeMethod::QpCycle)
}

fn idle_fully<C: Context>(s: &Setup<C>) -> Result<()> {
    let (mut l, mut right) = prepared(s, RightAttr::LOG)?;
    let g = grant(&mut right, &mut l.b)?;
    can_write(&mut l.a, g.remote)?;
    let done = revoke_fully(&mut right, &mut l.b)?;
    ensure!(
        done.barrier == Barrier::Yes && right.state() == RightState::Fenced,
        "{done:?}"
    );
    cannot_write(&mut l, g.remote)
}

fn idle_fully_without_a_queue_pair<C: Context>(s: &Setup<C>) -> Result<()> {
    let (mut l, mut right) = prepared(s, RightAttr::LOG)?;
    let g = right.grant(None)?;
    can_write(&mut l.a, g.remote)?;
    let done = right.revoke_fully(None)?;
    ensure!(
        done.barrier == Barrier::Yes && right.state() == RightState::Fenced,
        "{done:?}"
    );
    cannot_write(&mut l, g.remote)
}

/// Granted, revoked and granted again, with refused writes between.
fn again<C: Context>(s: &Setup<C>, attr: RightAttr, method: Option<RevokeMethod>) -> Result<()> {
    let (mut l, mut right) = prepared(s, attr)?;
    for round in 0..5 {
        let g = grant(&mut right, &mut l.b).with_context(|| format!("grant {round}"))?;
        can_write(&mut l.a, g.remote).with_context(|| format!("after grant {round}"))?;
        match method {
            Some(method) => revoke(&mut right, &mut l.b, method)?,
            None => revoke_fully(&mut right, &mut l.b)?,
        };
        if l.b.state()? == QpState::Rts {
            cannot_write(&mut l, g.remote).with_context(|| format!("after revocation {round}"))?;
        }
        reconnect(&mut l)?;
    }
    Ok(())
}

fn again_after<C: Context>(s: &Setup<C>, method: RevokeMethod) -> Result<()> {
    offered(s, method)?;
    again(s, attr(method), Some(method))
}

fn again_after_qp_flags<C: Context>(s: &Setup<C>) -> Result<()> {
    again_after(s, RevokeMethod::QpFlags)
}

fn again_after_window<C: Context>(s: &Setup<C>) -> Result<()> {
    again_after(s, RevokeMethod::Window)
}

fn again_after_reregister<C: Context>(s: &Setup<C>) -> Result<()> {
    again_after(s, RevokeMethod::Reregister)
}

fn again_after_qp_cycle<C: Context>(s: &Setup<C>) -> Result<()> {
    again_after(s, RevokeMethod::QpCycle)
}

fn again_after_fully<C: Context>(s: &Setup<C>) -> Result<()> {
    again(s, RightAttr::LOG, None)
}

fn regrant_without_a_write_keeps_the_connection<C: Context>(s: &Setup<C>) -> Result<()> {
    let (mut l, mut right) = prepared(s, RightAttr::LOG)?;
    for _ in 0..10 {
        let g = grant(&mut right, &mut l.b)?;
        can_write(&mut l.a, g.remote)?;
        revoke_fully(&mut right, &mut l.b)?;
    }
    ensure!(
        l.a.state()? == QpState::Rts && l.b.state()? == QpState::Rts,
        "the connection is gone"
    );
    Ok(())
}

fn revoking_twice<C: Context>(s: &Setup<C>) -> Result<()> {
    let (mut l, mut right) = prepared(s, RightAttr::LOG)?;
    let g = grant(&mut right, &mut l.b)?;
    for _ in 0..3 {
        revoke_fully(&mut right, &mut l.b)?;
        ensure!(right.state() == RightState::Fenced, "{:?}", right.state());
    }
    cannot_write(&mut l, g.remote)?;
    // The queue pair has failed now; what was taken away stays away.
    revoke_fully(&mut right, &mut l.b)?;
    ensure!(right.state() == RightState::Fenced, "{:?}", right.state());
    Ok(())
}

fn read_is_kept<C: Context>(s: &Setup<C>) -> Result<()> {
    let (mut l, mut right) = prepared(
        s,
        RightAttr {
            qp_kept: Access::REMOTE_READ,
            ..RightAttr::LOG
        },
    )?;
    let own = l.b.register(Access::REMOTE_READ)?;
    let g = grant(&mut right, &mut l.b)?;
    revoke_fully(&mut right, &mut l.b)?;
    l.a.read(1, 0, 64, own.remote(AT))?;
    l.a.done(1)?;
    cannot_write(&mut l, g.remote)
}

/// Two peers with a right to the same memory: taking one's away leaves the other's.
fn one_peer_of_two<C: Context>(s: &Setup<C>) -> Result<()> {
    let (mut one, mut first) = prepared(s, RightAttr::LOG)?;
    let (mut two, _) = prepared(s, RightAttr::LOG)?;
    let range = AT..AT + LEN;
    let mut second = PeerRight::new(
        &s.b,
        &two.b.pd,
        two.b.qp.control(),
        &one.b.memory,
        range,
        RightAttr::LOG,
    )?;
    let (g, h) = (
        grant(&mut first, &mut one.b)?,
        grant(&mut second, &mut two.b)?,
    );
    can_write(&mut one.a, g.remote)?;
    can_write(&mut two.a, h.remote)?;
    revoke_fully(&mut first, &mut one.b)?;
    can_write(&mut two.a, h.remote)?;
    cannot_write(&mut one, g.remote)?;
    can_write(&mut two.a, h.remote)?;
    // Nor does the one's key open anything for the other.
    two.a.write(5, AT, 8, g.remote, SIGNALED)?;
    two.a.ends(5, WcStatus::REM_ACCESS_ERR).map(drop)
}

fn falls_back_when_the_queue_pair_failed<C: Context>(s: &Setup<C>) -> Result<()> {
    let (mut l, mut right) = prepared(s, RightAttr::LOG)?;
    let g = grant(&mut right, &mut l.b)?;
    l.b.modify(&Modify::Err)?;
    let done = revoke_fully(&mut right, &mut l.b)?;
    ensure!(
        done.barrier == Barrier::Yes && done.method != RevokeMethod::QpFlags,
        "{done:?}"
    );
    ensure!(
        done.steps.first().is_some_and(|step| step.outcome.is_err()),
        "flags changed in ERR: {done:?}"
    );
    reconnect(&mut l)?;
    l.b.modify(&Modify::Access(Access::REMOTE_WRITE))?;
    match done.method {
        // The old key is dead even with the flags on.
        RevokeMethod::Reregister => cannot_write(&mut l, g.remote),
        _ => Ok(()),
    }
}

fn windows_work_after_a_cycle<C: Context>(s: &Setup<C>) -> Result<()> {
    offered(s, RevokeMethod::Window)?;
    offered(s, RevokeMethod::QpCycle)?;
    again(s, attr(RevokeMethod::Window), Some(RevokeMethod::QpCycle))
}

fn closed_right<C: Context>(s: &Setup<C>) -> Result<()> {
    let (mut l, mut right) = prepared(s, RightAttr::LOG)?;
    let g = grant(&mut right, &mut l.b)?;
    right.close()?;
    cannot_write(&mut l, g.remote)
}

/// Writes without a pause until a completion says no, or until told to stop; then one more, so that the status
/// returned, the last, is that of a WRITE posted after whatever happened. Every write has another value in all its
/// words.
fn storm<C: Context>(
    end: &mut End<C>,
    place: RemoteAddr,
    len: usize,
    stop: &AtomicBool,
) -> Result<WcStatus> {
    const IN_FLIGHT: u64 = 8;
    let mut value = 0_u64;
    let mut idle = Idle::default();
    loop {
        let last = stop.load(Ordering::Acquire);
        value += 1;
        // Each request in flight has its own source.
        let from = AT + (value % IN_FLIGHT) as usize * len;
        (0..len / WORD).for_each(|i| end.set_word(from + i * WORD, value));
        end.write(value, from, len, place, SIGNALED)?;
        if last {
            return end_of(end, value);
        }
        if value >= IN_FLIGHT {
            let c = end.sent(1)?[0];
            if !c.status.is_success() {
                return Ok(c.status);
            }
        }
        idle.wait();
    }
}

/// How request `wr_id`, or one before it, ends.
fn end_of<C: Context>(end: &mut End<C>, wr_id: u64) -> Result<WcStatus> {
    loop {
        let c = end.sent(1)?[0];
        if !c.status.is_success() || c.wr_id == wr_id {
            return Ok(c.status);
        }
    }
}

/// What one storm saw.
struct Seen {
    /// Words that changed after the revocation had returned.
    late: usize,
    /// How the writer ended.
    status: WcStatus,
}

/// One round: `a` writes, `b` calls `end_it` at a random moment and watches.
fn one_storm<C: Context, T>(
    s: &Setup<C>,
    l: &mut Link<C>,
    place: RemoteAddr,
    len: usize,
    end_it: impl FnOnce(&mut End<C>) -> Result<T>,
) -> Result<(Seen, T)> {
    let stop = AtomicBool::new(false);
    let Link { a, b, .. } = l;
    (0..len / WORD).for_each(|i| b.set_word(AT + i * WORD, 0));
    let memory = b.memory.clone();
    let words = AT / WORD..(AT + len) / WORD;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| storm(a, place, len, &stop));
        let work = || -> Result<(usize, T)> {
            let began = until(s.traits.limit, || {
                (memory.load(words.start) > 3).then_some(())
            });
            ensure!(
                began.is_some(),
                "the storm does not begin: word {}",
                memory.load(words.start)
            );
            pause(Duration::from_nanos(s.random() % 300_000));
            let done = end_it(b)?;
            let snapshot: Vec<u64> = words.clone().map(|i| memory.load(i)).collect();
            let changed = || {
                words
                    .clone()
                    .zip(&snapshot)
                    .filter(|(i, was)| memory.load(*i) != **was)
                    .count()
            };
            let mut late = 0;
            until::<()>(s.traits.watch, || {
                late = late.max(changed());
                None
            });
            Ok((late, done))
        };
        let result = work();
        stop.store(true, Ordering::Release);
        let status = writer.join().expect("the writer does not panic")?;
        let (late, done) = result?;
        Ok((Seen { late, status }, done))
    })
}

/// Many rounds of one way to revoke; how many of them leaked. Sizes go from one word to many packets.
fn rounds<C: Context>(
    s: &Setup<C>,
    attr: RightAttr,
    len: Option<usize>,
    how: impl Fn(&mut PeerRight<C>, &mut End<C>) -> Result<Revoked>,
) -> Result<u32> {
    let (mut l, mut right) = prepared(s, attr)?;
    reconnect(&mut l)?;
    let mut leaked = 0;
    for round in 0..s.traits.rounds {
        let len = len.unwrap_or([WORD, 64, 1024, 4096][round as usize % 4]);
        let g = grant(&mut right, &mut l.b)?;
        let (seen, _) = one_storm(s, &mut l, g.remote, len, |b| how(&mut right, b))
            .with_context(|| format!("round {round}, writes of {len} bytes"))?;
        ensure!(
            seen.status.may_be_lost_right(),
            "the writer ended with {} in round {round}",
            seen.status
        );
        leaked += u32::from(seen.late > 0);
        reconnect(&mut l)?;
    }
    Ok(leaked)
}

/// A method that is called a barrier must not leak. One that is not may, and may fail when a write that it has just
/// made impossible fails the queue pair under it; the report says how often.
fn storm_by<C: Context>(s: &Setup<C>, method: RevokeMethod) -> Result<()> {
    let worth = offered(s, method)?;
    if worth == Barrier::Yes {
        let leaked = rounds(s, attr(method), None, |right, end| {
            revoke(right, end, method)
        })?;
        ensure!(
            leaked == 0,
            "{method} is called a barrier and leaked in {leaked} of {} rounds",
            s.traits.rounds
        );
        return Ok(());
    }
    let failed = Cell::new(0);
    // Whole pages show best what lands late.
    let leaked = rounds(s, attr(method), Some(4096), |right, end| {
        revoke(right, end, method).or_else(|e| {
            ensure!(
                right.state() == RightState::Unknown,
                "{:?} after {e:#}",
                right.state()
            );
            failed.set(failed.get() + 1);
            revoke_fully(right, end)
        })
    })?;
    let failed = failed.get();
    s.note(format!(
        "{method} (barrier: {worth:?}) leaked {leaked} of {}, failed {failed}",
        s.traits.rounds
    ));
    Ok(())
}

fn storm_by_qp_flags<C: Context>(s: &Setup<C>) -> Result<()> {
    storm_by(s, RevokeMethod::QpFlags)
}

fn storm_by_window<C: Context>(s: &Setup<C>) -> Result<()> {
    storm_by(s, RevokeMethod::Window)
}

fn storm_by_reregister<C: Context>(s: &Setup<C>) -> Result<()> {
    storm_by(s, RevokeMethod::Reregister)
}

fn storm_by_qp_cycle<C: Context>(s: &Setup<C>) -> Result<()> {
    storm_by(s, RevokeMethod::QpCycle)
}

fn storm_fully<C: Context>(s: &Setup<C>) -> Result<()> {
    let leaked = rounds(s, RightAttr::LOG, None, revoke_fully)?;
    ensure!(
        leaked == 0,
        "leaked in {leaked} of {} rounds",
        s.traits.rounds
    );
    Ok(())
}

fn storm_fully_through_a_window<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_windows()?;
    let leaked = rounds(s, attr(RevokeMethod::Window), None, revoke_fully)?;
    ensure!(
        leaked == 0,
        "leaked in {leaked} of {} rounds",
        s.traits.rounds
    );
    Ok(())
}

fn storm_of_many_packets<C: Context>(s: &Setup<C>) -> Result<()> {
    let leaked = rounds(s, RightAttr::LOG, Some(LEN / 4), revoke_fully)?;
    ensure!(
        leaked == 0,
        "leaked in {leaked} of {} rounds",
        s.traits.rounds
    );
    Ok(())
}

/// Deregistering the region a storm goes to is a barrier on every device.
fn storm_ended_by_deregistration<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link_with(Cfg::impatient)?;
    for round in 0..s.traits.rounds {
        let mr = l.b.register(l.cfg.mr)?;
        let place = mr.remote(AT);
        let (seen, ()) = one_storm(s, &mut l, place, 1024, |_| Ok(mr.close()?))?;
        ensure!(
            seen.late == 0,
            "{} words landed late in round {round}",
            seen.late
        );
        ensure!(
            seen.status.may_be_lost_right(),
            "the writer ended with {}",
            seen.status
        );
        l.reconnect()?;
    }
    Ok(())
}

/// So is destroying the queue pair.
fn storm_ended_by_destroying_the_queue_pair<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link_with(Cfg::impatient)?;
    for round in 0..s.traits.rounds {
        let place = l.b.at(AT);
        let spare =
            s.b.create_qp(&l.b.pd, &l.b.send_cq, &l.b.recv_cq, &l.cfg.cap)?;
        let (seen, ()) = one_storm(s, &mut l, place, 1024, |b| {
            let old = std::mem::replace(&mut b.qp, spare);
            Ok(old.close()?)
        })?;
        ensure!(
            seen.late == 0,
            "{} words landed late in round {round}",
            seen.late
        );
        ensure!(
            seen.status.may_be_lost_right(),
            "the writer ended with {}",
            seen.status
        );
        l.reconnect()?;
    }
    Ok(())
}

/// Without a revocation words do change: the watch sees what it looks for.
fn storm_control_without_revocation<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let mut seen_late = 0;
    for _ in 0..5 {
        let place = l.b.at(AT);
        let (seen, ()) = one_storm(s, &mut l, place, 1024, |_| Ok(()))?;
        ensure!(
            seen.status.is_success(),
            "the writer ended with {}",
            seen.status
        );
        seen_late += usize::from(seen.late > 0);
        l.reconnect()?;
    }
    ensure!(
        seen_late > 0,
        "five storms that nobody stopped, and the watch saw no word change"
    );
    Ok(())
}

/// While one peer's right is taken away, another's storm goes on unharmed.
fn storm_of_another_peer_goes_on<C: Context>(s: &Setup<C>) -> Result<()> {
    let (mut other, mut others) = prepared(s, RightAttr::LOG)?;
    let (mut l, mut right) = prepared(s, RightAttr::LOG)?;
    let h = grant(&mut others, &mut other.b)?;
    let stop = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        let goes_on = scope.spawn(|| storm(&mut other.a, h.remote, 64, &stop));
        let mut work = || -> Result<()> {
            reconnect(&mut l)?;
            for _ in 0..10 {
                let g = grant(&mut right, &mut l.b)?;
                can_write(&mut l.a, g.remote)?;
                revoke_fully(&mut right, &mut l.b)?;
                cannot_write(&mut l, g.remote)?;
                reconnect(&mut l)?;
            }
            Ok(())
        };
        let result = work();
        stop.store(true, Ordering::Relaxed);
        result.and(goes_on.join().expect("the other peer does not panic"))
    })?;
    ensure!(
        result.is_success(),
        "the other peer's storm ended with {result}"
    );
    ensure!(other.b.word(AT) > 0, "the other peer wrote nothing");
    Ok(())
}

/// What a leader change does: the old leader writes on while its right is taken away, then the new one gets the
/// range, and no word of the old one comes over the new one's.
fn handover_under_a_storm<C: Context>(s: &Setup<C>) -> Result<()> {
    const NEW: u64 = u64::MAX;
    let (mut old, mut olds) = prepared(s, RightAttr::LOG)?;
    reconnect(&mut old)?;
    let (mut new, _) = prepared(s, RightAttr::LOG)?;
    let range = AT..AT + LEN;
    let mut news = PeerRight::new(
        &s.b,
        &new.b.pd,
        new.b.qp.control(),
        &old.b.memory,
        range,
        RightAttr::LOG,
    )?;
    (0..1024 / WORD).for_each(|i| new.a.set_word(AT + i * WORD, NEW));
    for round in 0..s.traits.rounds {
        let g = grant(&mut olds, &mut old.b)?;
        let (seen, ()) = one_storm(s, &mut old, g.remote, 1024, |b| {
            revoke_fully(&mut olds, b)?;
            let h = grant(&mut news, &mut new.b)?;
            new.a.write(1, AT, 1024, h.remote, SIGNALED)?;
            new.a.done(1)?;
            // The write is complete; on a NIC its words may take a moment to show.
            let there = until(s.traits.limit, || {
                (b.word(AT + 1024 - WORD) == NEW).then_some(())
            });
            ensure!(there.is_some(), "the new leader's write is not there");
            Ok(())
        })
        .with_context(|| format!("round {round}"))?;
        ensure!(
            seen.late == 0,
            "{} words of the old leader over the new one's, in round {round}",
            seen.late
        );
        revoke_fully(&mut news, &mut new.b)?;
        reconnect(&mut old)?;
    }
    Ok(())
}

/// Rights are checked packet by packet in ascending order, so a WRITE that is cut leaves a prefix of whole packets.
fn cut_write_leaves_a_prefix<C: Context>(s: &Setup<C>) -> Result<()> {
    const BYTES: usize = 1 << 20;
    let mut cut = 0;
    for round in 0..s.traits.rounds {
        let mut l = s.link_with(|cfg| {
            (cfg.bytes, cfg.mtu) = (BYTES, Mtu::B256);
        })?;
        for i in 0..BYTES / WORD {
            l.a.set_word(i * WORD, 1);
        }
        let place = l.b.at(0);
        let control = l.b.qp.control().clone();
        let memory = l.b.memory.clone();
        let a = &mut l.a;
        let status = std::thread::scope(|scope| -> Result<WcStatus> {
            let writer = scope.spawn(|| -> Result<WcStatus> {
                a.write(1, 0, BYTES, place, SIGNALED)?;
                Ok(a.sent(1)?[0].status)
            });
            until(s.traits.limit, || (memory.load(0) == 1).then_some(()));
            control.modify(&Modify::Access(Access::NONE))?;
            writer.join().expect("the writer does not panic")
        })?;
        pause(s.traits.watch);
        let landed = (0..BYTES / WORD)
            .take_while(|i| memory.load(*i) == 1)
            .count()
            * WORD;
        let beyond = (landed / WORD..BYTES / WORD)
            .filter(|i| memory.load(*i) != 0)
            .count();
        ensure!(beyond == 0, "{beyond} words after a gap at byte {landed}");
        if status.is_success() {
            ensure!(
                landed == BYTES,
                "a WRITE succeeded with {landed} of {BYTES} bytes"
            );
        } else {
            ensure!(
                status == WcStatus::REM_INV_REQ_ERR,
                "a WRITE that lost its right ended with {status}"
            );
            ensure!(
                landed.is_multiple_of(l.cfg.mtu.bytes()),
                "cut in the middle of a packet, at byte {landed}"
            );
            cut += 1;
        }
        if cut >= 3 && round >= 3 {
            break;
        }
    }
    s.note(format!("{cut} writes were cut"));
    let mut l = s.link()?;
    l.a.write(1, AT, 8, l.b.at(AT), UNSIGNALED)?;
    l.works()
}
