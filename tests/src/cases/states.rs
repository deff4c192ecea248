//! The states of a queue pair: which changes are allowed, what may be posted where, what each change does.

use anyhow::{Context as _, Result, bail, ensure};
use mu_verbs::{
    Access, Context, Endpoint, Modify, PostError, QpControl, QpState, QueuePair, RtrAttr, RtsAttr,
    WcStatus,
};

use crate::harness::{AT, End, Link, SIGNALED, Setup, UNSIGNALED, flushed, pause, until};

super::table!(states:
    new_is_reset,
    each_step_is_reported,
    forbidden_changes,
    refused_change_changes_nothing,
    err_from_each_state,
    reset_from_each_state,
    no_send_before_rts,
    no_recv_in_reset,
    sends_in_err_are_flushed,
    receives_in_err_are_flushed,
    err_flushes_receives_in_order,
    err_flushes_sends_in_order,
    err_ends_every_request_once,
    reset_forgets_receives,
    reset_forgets_completions,
    reset_queue_is_empty_again,
    psn_is_drawn_anew,
    reconnects_after_an_error,
    reconnects_many_times,
    reconnects_to_another_peer,
    old_peer_is_not_heard,
    access_set_in_init,
    access_changed_in_init,
    access_changed_in_rtr,
    access_changed_in_rts,
    access_off_and_on_keeps_the_connection,
    access_is_per_operation,
    rights_of_rtr_are_enough_to_answer,
    unknown_peer,
    control_from_another_thread,
    endpoint_survives_encoding,
    close_with_requests_outstanding,
);

fn errno(e: &anyhow::Error) -> i32 {
    e.downcast_ref::<mu_verbs::Error>()
        .map_or(0, mu_verbs::Error::errno)
}

/// An end that was taken to `state`; its peer is itself.
fn in_state<C: Context>(s: &Setup<C>, state: QpState) -> Result<End<C>> {
    let cfg = s.cfg();
    let end = s.end(&s.a, &cfg)?;
    if state == QpState::Reset {
        return Ok(end);
    }
    end.init(cfg.qp)?;
    match state {
        QpState::Rtr => end.rtr(&end, &cfg)?,
        QpState::Rts => {
            end.rtr(&end, &cfg)?;
            end.rts(&cfg)?;
        }
        QpState::Err => end.modify(&Modify::Err)?,
        QpState::Init | QpState::Reset => {}
    }
    Ok(end)
}

fn new_is_reset<C: Context>(s: &Setup<C>) -> Result<()> {
    let end = s.end(&s.a, &s.cfg())?;
    ensure!(
        end.state()? == QpState::Reset,
        "a new queue pair is in {:?}",
        end.state()?
    );
    Ok(())
}

fn each_step_is_reported<C: Context>(s: &Setup<C>) -> Result<()> {
    for state in [QpState::Init, QpState::Rtr, QpState::Rts, QpState::Err] {
        let end = in_state(s, state)?;
        ensure!(
            end.state()? == state,
            "taken to {state:?}, it is in {:?}",
            end.state()?
        );
        end.modify(&Modify::Reset)?;
        ensure!(
            end.state()? == QpState::Reset,
            "reset from {state:?}, it is in {:?}",
            end.state()?
        );
    }
    Ok(())
}

/// What `ibv_modify_qp(3)` does not allow from each state.
fn forbidden<C: Context>(s: &Setup<C>, end: &End<C>) -> Vec<(QpState, Vec<Modify>)> {
    let (init, rts) = (Modify::Init(s.cfg().qp), Modify::Rts(RtsAttr::default()));
    let rtr = Modify::Rtr(RtrAttr::new(end.qp.control().endpoint()));
    let access = Modify::Access(Access::REMOTE_WRITE);
    vec![
        (QpState::Reset, vec![rtr, rts, access]),
        (QpState::Init, vec![rts]),
        (QpState::Rtr, vec![init, rtr]),
        (QpState::Rts, vec![init, rtr]),
        (QpState::Err, vec![init, rtr, rts, access]),
    ]
}

fn forbidden_changes<C: Context>(s: &Setup<C>) -> Result<()> {
    let probe = s.end(&s.a, &s.cfg())?;
    for (state, changes) in forbidden(s, &probe) {
        for change in changes {
            let end = in_state(s, state)?;
            match end.modify(&change) {
                Ok(()) => bail!("{} was accepted in {state:?}", change.name()),
                Err(e) => ensure!(
                    errno(&e) == 22,
                    "{} in {state:?}: errno {}: {e:#}",
                    change.name(),
                    errno(&e)
                ),
            }
        }
    }
    Ok(())
}

fn refused_change_changes_nothing<C: Context>(s: &Setup<C>) -> Result<()> {
    let probe = s.end(&s.a, &s.cfg())?;
    for (state, changes) in forbidden(s, &probe) {
        let end = in_state(s, state)?;
        for change in changes {
            ensure!(
                end.modify(&change).is_err(),
                "{} was accepted in {state:?}",
                change.name()
            );
            ensure!(
                end.state()? == state,
                "{} in {state:?} led to {:?}",
                change.name(),
                end.state()?
            );
        }
    }
    // A connection goes on after a refused change.
    let mut l = s.link()?;
    ensure!(
        l.a.init(Access::NONE).is_err() && l.b.init(Access::NONE).is_err(),
        "INIT was accepted in RTS"
    );
    l.works()
}

fn err_from_each_state<C: Context>(s: &Setup<C>) -> Result<()> {
    for state in [QpState::Init, QpState::Rtr, QpState::Rts, QpState::Err] {
        let end = in_state(s, state)?;
        end.modify(&Modify::Err)
            .with_context(|| format!("from {state:?}"))?;
        ensure!(
            end.state()? == QpState::Err,
            "from {state:?} to {:?}",
            end.state()?
        );
    }
    Ok(())
}

fn reset_from_each_state<C: Context>(s: &Setup<C>) -> Result<()> {
    for state in [
        QpState::Reset,
        QpState::Init,
        QpState::Rtr,
        QpState::Rts,
        QpState::Err,
    ] {
        let end = in_state(s, state)?;
        end.modify(&Modify::Reset)
            .with_context(|| format!("from {state:?}"))?;
        end.init(s.cfg().qp)
            .with_context(|| format!("INIT after a reset from {state:?}"))?;
    }
    Ok(())
}

fn no_send_before_rts<C: Context>(s: &Setup<C>) -> Result<()> {
    for state in [QpState::Reset, QpState::Init, QpState::Rtr] {
        let mut end = in_state(s, state)?;
        match end.write(1, AT, 8, end.at(0), SIGNALED) {
            Err(e @ PostError::WrongState { .. }) => {
                ensure!(e.errno() == 22, "errno {} in {state:?}", e.errno())
            }
            other => bail!("a WRITE posted in {state:?}: {other:?}"),
        }
        end.quiet().with_context(|| format!("in {state:?}"))?;
    }
    Ok(())
}

fn no_recv_in_reset<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut end = in_state(s, QpState::Reset)?;
    match end.recv(1, AT, 8) {
        Err(e @ PostError::WrongState { .. }) => ensure!(e.errno() == 22, "errno {}", e.errno()),
        other => bail!("a receive posted in RESET: {other:?}"),
    }
    end.quiet()
}

fn sends_in_err_are_flushed<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let before = l.b.scribble(1);
    l.a.modify(&Modify::Err)?;
    for i in 0..5 {
        l.a.write(
            i,
            AT,
            8,
            l.b.at(AT),
            if i % 2 == 0 { SIGNALED } else { UNSIGNALED },
        )?;
    }
    flushed(&l.a.sent(5)?, 0..5)?;
    l.a.quiet()?;
    l.b.holds(&before)
}

fn receives_in_err_are_flushed<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    l.a.modify(&Modify::Err)?;
    (0..5).try_for_each(|i| l.a.recv(i, AT, 8))?;
    flushed(&l.a.received(5)?, 0..5)?;
    l.a.quiet()
}

fn err_flushes_receives_in_order<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    (0..20).try_for_each(|i| l.b.recv(i, AT, 8))?;
    l.b.modify(&Modify::Err)?;
    flushed(&l.b.received(20)?, 0..20)?;
    l.b.quiet()
}

/// Requests that cannot run, since the peer never answers, are flushed in order: all of them, unsignalled too.
fn err_flushes_sends_in_order<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = waiting(s)?;
    for i in 0..10 {
        l.a.write(
            i,
            AT,
            8,
            l.b.at(AT),
            if i % 3 == 0 { SIGNALED } else { UNSIGNALED },
        )?;
    }
    l.a.modify(&Modify::Err)?;
    flushed(&l.a.sent(10)?, 0..10)?;
    l.a.quiet()
}

/// A link whose asking end is in RTS and whose answering end is not there yet, so that what is posted waits.
fn waiting<C: Context>(s: &Setup<C>) -> Result<Link<C>> {
    s.needs_waiting()?;
    let mut cfg = s.cfg();
    // About two seconds of silence before it gives up.
    cfg.rts = RtsAttr {
        timeout: 17,
        retry_cnt: 3,
        ..cfg.rts
    };
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

fn err_ends_every_request_once<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    (0..30).try_for_each(|i| l.a.write(i, AT, 4000, l.b.at(AT), SIGNALED))?;
    l.a.modify(&Modify::Err)?;
    let all = l.a.sent(30)?;
    let done = all.iter().take_while(|c| c.status.is_success()).count();
    ensure!(
        all[..done].iter().map(|c| c.wr_id).eq(0..done as u64),
        "completed {:?}",
        &all[..done]
    );
    flushed(&all[done..], done as u64..30)?;
    l.a.quiet()
}

fn reset_forgets_receives<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    (0..5).try_for_each(|i| l.b.recv(i, AT, 8))?;
    l.a.reset()?;
    l.b.reset()?;
    l.connect()?;
    l.b.recv(50, AT, 8)?;
    l.a.send(1, AT, 8, None, SIGNALED)?;
    l.a.done(1)?;
    l.b.receives(50, WcStatus::SUCCESS)?;
    l.b.quiet()
}

fn reset_forgets_completions<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let last = 7;
    for i in 0..=last {
        l.a.set_word(AT, i + 1);
        l.a.write(i, AT, 8, l.b.at(AT), SIGNALED)?;
    }
    // They are complete, and nobody has polled.
    ensure!(
        until(s.traits.limit, || (l.b.word(AT) != 0).then_some(())).is_some(),
        "no WRITE landed"
    );
    pause(s.traits.quiet);
    l.a.modify(&Modify::Err)?;
    l.a.modify(&Modify::Reset)?;
    l.a.quiet()?;
    l.b.reset()?;
    l.connect()?;
    l.works()
}

fn reset_queue_is_empty_again<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link_with(|cfg| (cfg.cap.max_send_wr, cfg.cap.max_recv_wr) = (8, 8))?;
    for _ in 0..3 {
        let (sends, recvs) = (
            u64::from(l.a.qp.cap().max_send_wr),
            u64::from(l.a.qp.cap().max_recv_wr),
        );
        (0..sends).try_for_each(|i| l.a.write(i, AT, 8, l.b.at(AT), UNSIGNALED))?;
        (0..recvs).try_for_each(|i| l.a.recv(i, AT, 8))?;
        l.a.modify(&Modify::Err)?;
        l.a.modify(&Modify::Reset)?;
        l.b.reset()?;
        l.connect()?;
    }
    l.a.reset()?;
    l.b.reset()?;
    l.connect()?;
    l.works()
}

fn psn_is_drawn_anew<C: Context>(s: &Setup<C>) -> Result<()> {
    let end = s.end(&s.a, &s.cfg())?;
    let mut drawn = Vec::new();
    for _ in 0..8 {
        end.init(s.cfg().qp)?;
        drawn.push(end.qp.control().endpoint().psn);
        end.modify(&Modify::Reset)?;
    }
    ensure!(drawn.iter().all(|p| *p < 1 << 24), "{drawn:?}");
    drawn.sort_unstable();
    drawn.dedup();
    ensure!(drawn.len() > 4, "8 times INIT gave only {drawn:?}");
    Ok(())
}

fn reconnects_after_an_error<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    for _ in 0..3 {
        l.refused(WcStatus::REM_ACCESS_ERR, |a, b| {
            let mut wrong = b.at(AT);
            wrong.rkey ^= 1 << 20;
            a.write(1, AT, 8, wrong, SIGNALED)
        })?;
        l.reconnect()?;
        l.works()?;
    }
    Ok(())
}

fn reconnects_many_times<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    for _ in 0..20 {
        l.works()?;
        l.reconnect()?;
    }
    l.works()
}

fn reconnects_to_another_peer<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut one = s.link()?;
    let mut two = s.link()?;
    for end in [&mut one.a, &mut one.b, &mut two.a, &mut two.b] {
        end.reset()?;
    }
    std::mem::swap(&mut one.b, &mut two.b);
    one.connect()?;
    two.connect()?;
    one.works()?;
    two.works()
}

/// A queue pair that was reconnected to another peer hears nothing of the old one.
fn old_peer_is_not_heard<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut old = s.link_with(crate::harness::Cfg::impatient)?;
    let mut new = s.link()?;
    old.works()?;
    old.b.reset()?;
    new.a.reset()?;
    new.b.reset()?;
    std::mem::swap(&mut old.b, &mut new.b);
    new.connect()?;
    let before = new.b.scribble(1);
    old.a.write(1, AT, 8, new.b.at(AT), SIGNALED)?;
    let c = old.a.sent(1)?[0];
    ensure!(!c.status.is_success(), "the old peer's WRITE succeeded");
    new.b.holds(&before)?;
    new.works()
}

/// A WRITE to `b` must work or not.
fn writable<C: Context>(l: &mut Link<C>, can: bool) -> Result<()> {
    if can {
        l.a.write(1, AT, 8, l.b.at(AT), SIGNALED)?;
        l.a.done(1).map(drop)
    } else {
        l.refused(WcStatus::REM_INV_REQ_ERR, |a, b| {
            a.write(1, AT, 8, b.at(AT), SIGNALED)
        })
    }
}

fn access_set_in_init<C: Context>(s: &Setup<C>) -> Result<()> {
    for (access, can) in [
        (Access::REMOTE_WRITE, true),
        (Access::NONE, false),
        (Access::REMOTE_READ, false),
    ] {
        let mut l = s.link_with(|cfg| cfg.qp = access)?;
        writable(&mut l, can).with_context(|| format!("INIT with {access:?}"))?;
    }
    Ok(())
}

/// Connects by hand, with the answering end's rights changed in `state`.
fn access_changed<C: Context>(
    s: &Setup<C>,
    state: QpState,
    from: Access,
    to: Access,
) -> Result<Option<Link<C>>> {
    let cfg = s.cfg();
    let l = Link {
        a: s.end(&s.a, &cfg)?,
        b: s.end(&s.b, &cfg)?,
        cfg,
    };
    l.a.init(cfg.qp)?;
    l.b.init(from)?;
    let change = Modify::Access(to);
    if state == QpState::Init {
        l.b.modify(&change)?;
    }
    l.a.rtr(&l.b, &cfg)?;
    l.b.rtr(&l.a, &cfg)?;
    if state == QpState::Rtr {
        // Kernel drivers know no change from RTR to RTR; then it must be refused as such.
        match l.b.modify(&change) {
            Ok(()) => {}
            Err(e) if errno(&e) == 22 => return Ok(None),
            Err(e) => return Err(e),
        }
    }
    l.a.rts(&cfg)?;
    l.b.rts(&cfg)?;
    if state == QpState::Rts {
        l.b.modify(&change)?;
    }
    Ok(Some(l))
}

fn access_changed_both_ways<C: Context>(s: &Setup<C>, state: QpState) -> Result<()> {
    for (from, to, can) in [
        (Access::NONE, Access::REMOTE_WRITE, true),
        (Access::REMOTE_WRITE, Access::NONE, false),
    ] {
        match access_changed(s, state, from, to)? {
            Some(mut l) => {
                writable(&mut l, can).with_context(|| format!("{from:?} to {to:?} in {state:?}"))?
            }
            None => s.note(format!(
                "the device changes no rights in {state:?} (EINVAL)"
            )),
        }
    }
    Ok(())
}

fn access_changed_in_init<C: Context>(s: &Setup<C>) -> Result<()> {
    access_changed_both_ways(s, QpState::Init)
}

fn access_changed_in_rtr<C: Context>(s: &Setup<C>) -> Result<()> {
    access_changed_both_ways(s, QpState::Rtr)
}

fn access_changed_in_rts<C: Context>(s: &Setup<C>) -> Result<()> {
    access_changed_both_ways(s, QpState::Rts)
}

fn access_off_and_on_keeps_the_connection<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    for _ in 0..20 {
        l.b.modify(&Modify::Access(Access::NONE))?;
        l.b.modify(&Modify::Access(l.cfg.qp))?;
        l.works()?;
    }
    Ok(())
}

fn access_is_per_operation<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    l.b.modify(&Modify::Access(Access::REMOTE_READ))?;
    l.a.read(1, AT, 8, l.b.at(AT))?;
    l.a.done(1)?;
    l.b.recv(2, AT, 8)?;
    l.a.send(3, AT, 8, None, SIGNALED)?;
    l.a.done(3)?;
    l.b.receives(2, WcStatus::SUCCESS)?;
    writable(&mut l, false)
}

fn rights_of_rtr_are_enough_to_answer<C: Context>(s: &Setup<C>) -> Result<()> {
    let cfg = s.cfg();
    let mut l = Link {
        a: s.end(&s.a, &cfg)?,
        b: s.end(&s.b, &cfg)?,
        cfg,
    };
    l.a.init(cfg.qp)?;
    l.b.init(cfg.qp)?;
    l.a.rtr(&l.b, &cfg)?;
    l.b.rtr(&l.a, &cfg)?;
    l.a.rts(&cfg)?;
    writable(&mut l, true)?;
    l.a.read(2, AT, 64, l.b.at(AT))?;
    l.a.done(2)?;
    l.b.rts(&cfg)?;
    l.works()
}

/// A peer that does not exist is refused at RTR, or never answers.
fn unknown_peer<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut cfg = s.cfg();
    cfg.impatient();
    let (mut a, b) = (s.end(&s.a, &cfg)?, s.end(&s.b, &cfg)?);
    a.init(cfg.qp)?;
    b.init(cfg.qp)?;
    let remote = Endpoint {
        qp_num: b.qp.control().qp_num() ^ 0x3f_0000,
        ..b.qp.control().endpoint()
    };
    if a.modify(&Modify::Rtr(RtrAttr {
        path_mtu: cfg.mtu,
        ..RtrAttr::new(remote)
    }))
    .is_err()
    {
        return Ok(());
    }
    a.rts(&cfg)?;
    a.write(1, AT, 8, b.at(AT), SIGNALED)?;
    a.ends(1, WcStatus::RETRY_EXC_ERR).map(drop)
}

fn control_from_another_thread<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let control = l.b.qp.control().clone();
    let (on, rounds) = (l.cfg.qp, 200);
    std::thread::scope(|scope| {
        let other = scope.spawn(move || -> Result<()> {
            for _ in 0..rounds {
                control.modify(&Modify::Access(on | Access::REMOTE_WRITE))?;
                ensure!(
                    control.state()? == QpState::Rts,
                    "the queue pair is in {:?}",
                    control.state()?
                );
            }
            Ok(())
        });
        (0..rounds).try_for_each(|_| l.works())?;
        other.join().expect("the other thread does not panic")
    })
}

fn endpoint_survives_encoding<C: Context>(s: &Setup<C>) -> Result<()> {
    let end = in_state(s, QpState::Init)?;
    let endpoint = end.qp.control().endpoint();
    ensure!(
        endpoint.qp_num == end.qp.control().qp_num(),
        "{endpoint:?} names another queue pair"
    );
    ensure!(
        Endpoint::from_bytes(&endpoint.to_bytes()) == Some(endpoint),
        "{endpoint:?} is not what it was"
    );
    Ok(())
}

fn close_with_requests_outstanding<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = waiting(s)?;
    (0..10).try_for_each(|i| l.a.write(i, AT, 8, l.b.at(AT), SIGNALED))?;
    (0..10).try_for_each(|i| l.a.recv(i, AT, 8))?;
    let Link { a, b, .. } = l;
    let End { qp, mr, .. } = a;
    qp.close()
        .context("closing a queue pair with requests outstanding")?;
    mu_verbs::MemoryRegion::close(mr).context("closing the region of requests that are gone")?;
    drop(b);
    s.link()?.works()
}
