//! Queues: signalling, lists, depths, limits, completion queues.

use anyhow::{Context as _, Result, bail, ensure};
use mu_verbs::{
    AsyncEvent, Completion, CompletionQueue, Context, MemoryRegion, Payload, PostError, QpCap,
    QpControl, QueuePair, RecvWr, SendOp, SendWr, Sge, WORD, WcOpcode, WcStatus,
};

use crate::harness::{AT, SIGNALED, Setup, UNSIGNALED, expect, pause, skip, take, until};

super::table!(queues:
    unsignalled_then_signalled,
    unsignalled_alone_is_silent,
    list_is_posted_in_order,
    list_of_none,
    list_fails_in_the_middle,
    list_longer_than_the_queue,
    queue_full_until_polled,
    unsignalled_keep_their_slots,
    depth_is_usable,
    queue_full_of_waiting_requests,
    recv_queue_full,
    recv_slots_come_back,
    too_many_pieces,
    too_many_pieces_of_a_receive,
    inline_limit_exact,
    inline_limit_exceeded,
    message_too_long,
    capacities_are_at_least_those_asked,
    capacities_beyond_the_device,
    cq_of_no_entries,
    cq_beyond_the_device,
    cq_goes_round,
    cq_overrun_is_not_silent,
    poll_takes_what_fits,
    one_cq_for_both_directions,
    two_cqs_do_not_mix,
    one_cq_for_many_queue_pairs,
    wr_ids_come_back,
    opcodes_name_the_operation,
    byte_len_of_read,
    completions_come_in_order,
    qp_numbers_differ,
);

fn small(cap: &mut QpCap) {
    (cap.max_send_wr, cap.max_recv_wr) = (8, 8);
}

fn unsignalled_then_signalled<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    for round in 0..3 {
        for i in 0..10 {
            l.a.write(i, AT, 8, l.b.at(AT), UNSIGNALED)?;
        }
        l.a.write(100 + round, AT, 8, l.b.at(AT), SIGNALED)?;
        l.a.done(100 + round)?;
    }
    l.a.quiet()
}

fn unsignalled_alone_is_silent<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let source = l.a.scribble(1);
    let mut want = l.b.scribble(2);
    want[AT..AT + 8].copy_from_slice(&source[AT..AT + 8]);
    l.a.write(1, AT, 8, l.b.at(AT), UNSIGNALED)?;
    l.b.comes_to_hold(&want)?;
    l.a.quiet()
}

fn list_is_posted_in_order<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let source = l.a.scribble(1);
    let mut want = l.b.scribble(2);
    let pieces: Vec<_> = (0..16)
        .map(|i| [Sge::new(&l.a.mr, AT + 32 * i, 24)])
        .collect();
    let wrs: Vec<_> = (0..16)
        .map(|i| SendWr {
            wr_id: i as u64,
            op: SendOp::Write {
                payload: Payload::Regions(&pieces[i]),
                remote: l.b.at(AT + 40 * i),
                imm: None,
            },
            flags: SIGNALED,
        })
        .collect();
    for i in 0..16 {
        want[AT + 40 * i..AT + 40 * i + 24].copy_from_slice(&source[AT + 32 * i..AT + 32 * i + 24]);
    }
    l.a.qp
        .post_send_list(&wrs)
        .map_err(|(n, e)| anyhow::anyhow!("{n} posted, then {e}"))?;
    for i in 0..16 {
        l.a.done(i)?;
    }
    l.b.comes_to_hold(&want)
}

fn list_of_none<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    ensure!(
        l.a.qp.post_send_list(&[]).is_ok(),
        "a list of no requests is refused"
    );
    l.a.quiet()?;
    l.works()
}

/// `ibv_post_send(3)`: it stops at the first failure; what is before it is posted, what is after it is not.
fn list_fails_in_the_middle<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let source = l.a.scribble(1);
    let mut want = l.b.scribble(2);
    let long = vec![0; l.a.qp.cap().max_inline_data as usize + 1];
    let good: Vec<_> = (0..5)
        .map(|i| [Sge::new(&l.a.mr, AT + 16 * i, 16)])
        .collect();
    let wrs: Vec<_> = (0..5)
        .map(|i| {
            let payload = if i == 3 {
                Payload::Inline(&long)
            } else {
                Payload::Regions(&good[i])
            };
            SendWr {
                wr_id: i as u64,
                op: SendOp::Write {
                    payload,
                    remote: l.b.at(AT + 16 * i),
                    imm: None,
                },
                flags: SIGNALED,
            }
        })
        .collect();
    match l.a.qp.post_send_list(&wrs) {
        Err((3, PostError::InlineTooLong { .. })) => {}
        other => bail!("request 3 of the list is too long inline; the result was {other:?}"),
    }
    for i in 0..3 {
        l.a.done(i)?;
    }
    want[AT..AT + 48].copy_from_slice(&source[AT..AT + 48]);
    l.b.comes_to_hold(&want)?;
    l.a.quiet().context("of a request after the refused one")?;
    l.b.holds(&want)?;
    l.works()
}

fn list_longer_than_the_queue<C: Context>(s: &Setup<C>) -> Result<()> {
    needs_exact_queues(s)?;
    let mut l = s.link_with(|cfg| small(&mut cfg.cap))?;
    let depth = l.a.qp.cap().max_send_wr as usize;
    let piece = [Sge::new(&l.a.mr, AT, 8)];
    let op = SendOp::Write {
        payload: Payload::Regions(&piece),
        remote: l.b.at(AT),
        imm: None,
    };
    let wrs: Vec<_> = (0..depth + 3)
        .map(|i| SendWr {
            wr_id: i as u64,
            op,
            flags: SIGNALED,
        })
        .collect();
    match l.a.qp.post_send_list(&wrs) {
        Err((n, e @ PostError::QueueFull { .. })) if n == depth => {
            ensure!(e.errno() == 12, "errno {}", e.errno())
        }
        other => bail!("a list of {} on a queue of {depth}: {other:?}", depth + 3),
    }
    for i in 0..depth {
        l.a.done(i as u64)?;
    }
    l.a.quiet()?;
    l.works()
}

/// Posts until the queue is full and returns how many it took: all it says it has room for, and no more where it is
/// exact; a device may have somewhat more room.
fn fill(cap: u32, exact: bool, mut post: impl FnMut(u64) -> Result<(), PostError>) -> Result<u64> {
    let cap = u64::from(cap);
    let most = if exact { cap } else { 4 * cap + 64 };
    for i in 0..=most {
        match post(i) {
            Ok(()) => {}
            Err(e @ PostError::QueueFull { .. }) if i >= cap => {
                ensure!(e.errno() == 12, "a full queue gives errno {}", e.errno());
                return Ok(i);
            }
            Err(e) => bail!("request {i} of {cap}: {e}"),
        }
    }
    bail!("a queue of {cap} took {most} requests and one more");
}

fn needs_exact_queues<C: Context>(s: &Setup<C>) -> Result<()> {
    if s.traits.exact_queues {
        Ok(())
    } else {
        skip("the device may free a slot before its completion is polled")
    }
}

/// A request holds its slot until its completion was polled, so that no completion queue can run over.
fn queue_full_until_polled<C: Context>(s: &Setup<C>) -> Result<()> {
    needs_exact_queues(s)?;
    let mut l = s.link_with(|cfg| small(&mut cfg.cap))?;
    for _ in 0..5 {
        let (cap, place) = (l.a.qp.cap().max_send_wr, l.b.at(AT));
        let depth = fill(cap, true, |i| l.a.write(i, AT, 8, place, SIGNALED))?;
        (0..depth).try_for_each(|i| l.a.done(i).map(drop))?;
    }
    l.a.quiet()?;
    l.works()
}

fn unsignalled_keep_their_slots<C: Context>(s: &Setup<C>) -> Result<()> {
    needs_exact_queues(s)?;
    let mut l = s.link_with(|cfg| small(&mut cfg.cap))?;
    for _ in 0..5 {
        let (cap, place) = (l.a.qp.cap().max_send_wr, l.b.at(AT));
        let last = u64::from(cap) - 1;
        fill(cap, true, |i| {
            l.a.write(
                i,
                AT,
                8,
                place,
                if i == last { SIGNALED } else { UNSIGNALED },
            )
        })?;
        l.a.done(last)?;
    }
    l.a.quiet()?;
    l.works()
}

/// What is said to fit does fit, round after round, with the completions polled between.
fn depth_is_usable<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link_with(|cfg| small(&mut cfg.cap))?;
    let depth = u64::from(l.a.qp.cap().max_send_wr);
    for round in 0..10 {
        for i in 0..depth {
            let flags = if round % 2 == 0 || i + 1 == depth {
                SIGNALED
            } else {
                UNSIGNALED
            };
            l.a.write(i, AT, 8, l.b.at(AT), flags)?;
        }
        if round % 2 == 0 {
            (0..depth).try_for_each(|i| l.a.done(i).map(drop))?;
        } else {
            l.a.done(depth - 1)?;
        }
    }
    l.a.quiet()
}

/// Requests that wait for a receive of the peer fill the queue; the one too many is refused and changes nothing.
fn queue_full_of_waiting_requests<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_waiting()?;
    let mut l = s.link_with(|cfg| {
        small(&mut cfg.cap);
        cfg.rts.rnr_retry = 7;
    })?;
    let cap = l.a.qp.cap().max_send_wr;
    let depth = fill(cap, s.traits.exact_queues, |i| {
        l.a.send(i, AT, 8, None, SIGNALED)
    })?;
    for i in 0..depth {
        l.b.recv(i, AT, 8)?;
        // In this order: software goes on with a request that waits when its sender polls.
        l.a.done(i)?;
        l.b.receives(i, WcStatus::SUCCESS)?;
    }
    l.a.quiet()?;
    l.works()
}

fn recv_queue_full<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link_with(|cfg| small(&mut cfg.cap))?;
    let cap = l.b.qp.cap().max_recv_wr;
    let depth = fill(cap, s.traits.exact_queues, |i| l.b.recv(i, AT, 8))?;
    for i in 0..depth {
        l.a.send(1, AT, 8, None, SIGNALED)?;
        l.a.done(1)?;
        l.b.receives(i, WcStatus::SUCCESS)?;
    }
    l.b.quiet()
}

fn recv_slots_come_back<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link_with(|cfg| small(&mut cfg.cap))?;
    let depth = l.b.qp.cap().max_recv_wr as u64;
    for i in 0..5 * depth {
        l.b.recv(i, AT, 8)?;
        l.a.send(i, AT, 8, None, SIGNALED)?;
        l.a.done(i)?;
        l.b.receives(i, WcStatus::SUCCESS)?;
    }
    Ok(())
}

fn too_many_pieces<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let want = l.b.scribble(1);
    let limit = l.a.qp.cap().max_send_sge as usize;
    let pieces = vec![Sge::new(&l.a.mr, 0, 1); limit + 1];
    for op in [
        SendOp::Write {
            payload: Payload::Regions(&pieces),
            remote: l.b.at(AT),
            imm: None,
        },
        SendOp::Send {
            payload: Payload::Regions(&pieces),
            imm: None,
        },
        SendOp::Read {
            local: &pieces,
            remote: l.b.at(AT),
        },
    ] {
        match l.a.qp.post_send(&SendWr {
            wr_id: 1,
            op,
            flags: SIGNALED,
        }) {
            Err(e @ PostError::TooManySges { .. }) => {
                ensure!(e.errno() == 22, "errno {}", e.errno())
            }
            other => bail!("{} pieces, the limit is {limit}: {other:?}", limit + 1),
        }
    }
    l.a.quiet()?;
    l.b.holds(&want)?;
    l.works()
}

fn too_many_pieces_of_a_receive<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let limit = l.b.qp.cap().max_recv_sge as usize;
    let pieces = vec![Sge::new(&l.b.mr, 0, 1); limit + 1];
    match l.b.qp.post_recv(&RecvWr {
        wr_id: 1,
        local: &pieces,
    }) {
        Err(e @ PostError::TooManySges { .. }) => ensure!(e.errno() == 22, "errno {}", e.errno()),
        other => bail!("{} pieces, the limit is {limit}: {other:?}", limit + 1),
    }
    l.b.quiet()?;
    l.works()
}

fn inline_limit_exact<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let bytes = crate::harness::pattern(5, l.a.qp.cap().max_inline_data as usize);
    let mut want = l.b.scribble(1);
    want[AT..AT + bytes.len()].copy_from_slice(&bytes);
    l.a.write_inline(1, &bytes, l.b.at(AT), SIGNALED)?;
    l.a.done(1)?;
    l.b.comes_to_hold(&want)
}

fn inline_limit_exceeded<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let want = l.b.scribble(1);
    let limit = l.a.qp.cap().max_inline_data as usize;
    let bytes = vec![7; limit + 1];
    match l.a.write_inline(1, &bytes, l.b.at(AT), SIGNALED) {
        Err(e @ PostError::InlineTooLong { len, limit: said }) => {
            ensure!(
                (len, said, e.errno()) == (limit + 1, limit, 22),
                "{e}, errno {}",
                e.errno()
            );
        }
        other => bail!(
            "{} bytes inline, the limit is {limit}: {other:?}",
            limit + 1
        ),
    }
    l.a.quiet()?;
    l.b.holds(&want)?;
    l.works()
}

fn message_too_long<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let len = usize::try_from(s.caps().max_msg)?.saturating_add(1);
    let want = l.b.scribble(1);
    // Either it is refused at once, or it is outside the local region in any case.
    match l.a.write(1, 0, len, l.b.at(0), SIGNALED) {
        Err(e) => {
            ensure!(e.errno() == 22, "errno {} for {len} bytes: {e}", e.errno());
            l.a.quiet()?;
        }
        Ok(()) => ensure!(
            !l.a.sent(1)?[0].status.is_success(),
            "{len} bytes were sent from a region of 64 KiB"
        ),
    }
    l.b.holds(&want)
}

fn capacities_are_at_least_those_asked<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut cfg = s.cfg();
    cfg.cap = QpCap {
        max_send_wr: 33,
        max_recv_wr: 17,
        max_send_sge: s.caps().max_sge.min(2),
        max_recv_sge: 1,
        max_inline_data: s.caps().max_inline_data.min(50),
    };
    let cap = s.end(&s.a, &cfg)?.qp.cap();
    let pairs = [
        (cap.max_send_wr, cfg.cap.max_send_wr),
        (cap.max_recv_wr, cfg.cap.max_recv_wr),
        (cap.max_send_sge, cfg.cap.max_send_sge),
        (cap.max_recv_sge, cfg.cap.max_recv_sge),
        (cap.max_inline_data, cfg.cap.max_inline_data),
    ];
    ensure!(
        pairs.iter().all(|(has, asked)| has >= asked),
        "asked for {:?}, got {cap:?}",
        cfg.cap
    );
    Ok(())
}

fn capacities_beyond_the_device<C: Context>(s: &Setup<C>) -> Result<()> {
    let usual = s.cfg().cap;
    let caps = s.a.caps();
    let beyond = [
        QpCap {
            max_send_wr: caps.max_qp_wr.saturating_add(1),
            ..usual
        },
        QpCap {
            max_send_sge: caps.max_sge + 1,
            ..usual
        },
        QpCap {
            max_recv_sge: caps.max_recv_sge.max(caps.max_sge) + 1,
            ..usual
        },
        QpCap {
            max_inline_data: 1 << 20,
            ..usual
        },
    ];
    for cap in beyond {
        let mut cfg = s.cfg();
        cfg.cap = cap;
        let Err(e) = s.end(&s.a, &cfg) else {
            bail!("a queue pair was made with {cap:?}")
        };
        let errno = e
            .downcast_ref::<mu_verbs::Error>()
            .map(mu_verbs::Error::errno);
        ensure!(
            matches!(errno, Some(12 | 22)),
            "errno {errno:?} for {cap:?}: {e}"
        );
    }
    s.link()?.works()
}

fn cq_of_no_entries<C: Context>(s: &Setup<C>) -> Result<()> {
    match s.a.create_cq(0) {
        Err(e) => ensure!(matches!(e.errno(), 12 | 22), "errno {}: {e}", e.errno()),
        Ok(_) => bail!("a completion queue of no entries was made"),
    }
    Ok(())
}

fn cq_beyond_the_device<C: Context>(s: &Setup<C>) -> Result<()> {
    match s.a.create_cq(s.a.caps().max_cqe.saturating_add(1)) {
        Err(e) => ensure!(matches!(e.errno(), 12 | 22), "errno {}: {e}", e.errno()),
        Ok(_) => bail!(
            "a completion queue of more than {} entries was made",
            s.a.caps().max_cqe
        ),
    }
    Ok(())
}

fn cq_goes_round<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link_with(|cfg| {
        small(&mut cfg.cap);
        cfg.cq_depth = 8;
    })?;
    let depth = l.a.qp.cap().max_send_wr.min(8) as u64;
    for round in 0..50 {
        let batch = 1 + round % depth;
        for i in 0..batch {
            l.a.write(i, AT, 8, l.b.at(AT), SIGNALED)?;
        }
        for i in 0..batch {
            l.a.done(i)?;
        }
    }
    l.a.quiet()
}

/// `ibv_poll_cq(3)`: more completions than room raise an event; none may vanish without one.
fn cq_overrun_is_not_silent<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link_with(|cfg| cfg.cq_depth = 1)?;
    let posts = l.a.qp.cap().max_send_wr as u64;
    let posted = (0..posts)
        .take_while(|i| l.a.write(*i, AT, 8, l.b.at(AT), SIGNALED).is_ok())
        .count();
    pause(s.traits.quiet);
    let mut polled = vec![Completion::EMPTY; posted + 1];
    let mut got = 0;
    let all = until(s.traits.quiet, || {
        got += l.a.send_cq.poll(&mut polled);
        (got >= posted).then_some(())
    });
    if all.is_some() {
        return Ok(());
    }
    let event =
        l.a.event(|e| matches!(e, AsyncEvent::CqError | AsyncEvent::QpFatal { .. }))?;
    ensure!(
        event.is_some(),
        "{got} of {posted} completions came, and no event"
    );
    Ok(())
}

fn poll_takes_what_fits<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    for i in 0..10 {
        l.a.write(i, AT, 8, l.b.at(AT), SIGNALED)?;
    }
    l.a.write_inline(10, &[1], l.b.at(AT), SIGNALED)?;
    ensure!(
        l.a.send_cq.poll(&mut []) == 0,
        "a poll for nothing returned something"
    );
    let mut next = 0;
    let mut three = [Completion::EMPTY; 3];
    let all = until(s.traits.limit, || {
        let n = l.a.send_cq.poll(&mut three);
        for c in &three[..n] {
            if c.wr_id != next || !c.status.is_success() {
                return Some(Err(*c));
            }
            next += 1;
        }
        (next == 11).then_some(Ok(()))
    });
    ensure!(
        all == Some(Ok(())),
        "the completions after number {next}: {all:?}"
    );
    l.a.quiet()
}

fn one_cq_for_both_directions<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let cfg = l.cfg;
    let mut cq = s.b.create_cq(64)?;
    let mut qp = s.b.create_qp(&l.b.pd, &cq, &cq, &cfg.cap)?;
    l.a.reset()?;
    l.a.init(cfg.qp)?;
    qp.control().modify(&mu_verbs::Modify::Init(cfg.qp))?;
    std::mem::swap(&mut l.b.qp, &mut qp);
    l.a.rtr(&l.b, &cfg)?;
    l.b.rtr(&l.a, &cfg)?;
    l.a.rts(&cfg)?;
    l.b.rts(&cfg)?;
    l.b.recv(20, AT, 8)?;
    l.a.send(10, AT, 8, None, SIGNALED)?;
    l.a.done(10)?;
    expect(
        &take(&mut cq, l.b.qp.control(), 1, s.traits.limit)?[0],
        20,
        WcStatus::SUCCESS,
    )?;
    l.b.write(21, AT, 8, l.a.at(AT), SIGNALED)?;
    let c = take(&mut cq, l.b.qp.control(), 1, s.traits.limit)?[0];
    expect(&c, 21, WcStatus::SUCCESS)?;
    l.b.quiet()
        .context("on the queues that the pair does not use")
}

fn two_cqs_do_not_mix<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    l.b.recv(1, AT, 8)?;
    l.a.recv(2, AT, 8)?;
    l.a.send(3, AT, 8, None, SIGNALED)?;
    l.b.send(4, AT, 8, None, SIGNALED)?;
    l.a.done(3)?;
    l.b.done(4)?;
    l.b.receives(1, WcStatus::SUCCESS)?;
    l.a.receives(2, WcStatus::SUCCESS)?;
    l.a.quiet()?;
    l.b.quiet()
}

fn one_cq_for_many_queue_pairs<C: Context>(s: &Setup<C>) -> Result<()> {
    const QPS: usize = 4;
    let cfg = s.cfg();
    let mut cq = s.a.create_cq(256)?;
    let mut ends = Vec::new();
    for _ in 0..QPS {
        let mut link = s.link()?;
        link.a.reset()?;
        link.b.reset()?;
        link.a.qp = s.a.create_qp(&link.a.pd, &cq, &cq, &cfg.cap)?;
        link.connect()?;
        ends.push(link);
    }
    for i in 0..8 {
        for (n, link) in ends.iter_mut().enumerate() {
            link.a
                .write((n * 100 + i) as u64, AT, 8, link.b.at(AT), SIGNALED)?;
        }
    }
    let all = take(&mut cq, ends[0].a.qp.control(), 8 * QPS, s.traits.limit)?;
    for (n, link) in ends.iter().enumerate() {
        let number = link.a.qp.control().qp_num();
        let own: Vec<_> = all
            .iter()
            .filter(|c| c.qp_num == number)
            .map(|c| c.wr_id)
            .collect();
        let want: Vec<_> = (0..8).map(|i| (n * 100 + i) as u64).collect();
        ensure!(own == want, "queue pair {n} completed {own:?}");
    }
    Ok(())
}

fn wr_ids_come_back<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    for id in [0, 1, u64::from(u32::MAX), 1 << 63, u64::MAX] {
        l.a.write(id, AT, 8, l.b.at(AT), SIGNALED)?;
        l.a.done(id)?;
        l.b.recv(id, AT, 8)?;
        l.a.send(!id, AT, 8, None, SIGNALED)?;
        l.a.done(!id)?;
        l.b.receives(id, WcStatus::SUCCESS)?;
    }
    Ok(())
}

fn opcodes_name_the_operation<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    l.b.recv(1, AT, 8)?;
    l.b.recv(2, AT, 8)?;
    l.a.write(1, AT, 8, l.b.at(AT), SIGNALED)?;
    l.a.write_imm(2, AT, 8, l.b.at(AT), 3)?;
    l.a.read(3, AT, 8, l.b.at(AT))?;
    l.a.send(4, AT, 8, None, SIGNALED)?;
    let got: Vec<_> = l.a.sent(4)?.iter().map(|c| c.opcode).collect();
    let want = [
        WcOpcode::RDMA_WRITE,
        WcOpcode::RDMA_WRITE,
        WcOpcode::RDMA_READ,
        WcOpcode::SEND,
    ];
    ensure!(got == want, "got {got:?}");
    let got: Vec<_> = l.b.received(2)?.iter().map(|c| c.opcode).collect();
    ensure!(
        got == [WcOpcode::RECV_RDMA_WITH_IMM, WcOpcode::RECV],
        "got {got:?}"
    );
    Ok(())
}

fn byte_len_of_read<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    for len in [1, 8, 100, 5000] {
        l.a.read(1, AT, len, l.b.at(AT))?;
        let c = l.a.done(1)?;
        ensure!(
            c.byte_len as usize == len,
            "byte_len {} for a READ of {len}",
            c.byte_len
        );
    }
    Ok(())
}

fn completions_come_in_order<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let atomics = s.needs_atomics().is_ok();
    for i in 0..40 {
        match i % 4 {
            0 => l.a.write(i, AT, 3000, l.b.at(AT), SIGNALED)?,
            1 => l.a.read(i, AT, 3000, l.b.at(AT))?,
            2 => l.a.write_inline(i, &[1; WORD], l.b.at(AT), SIGNALED)?,
            _ if atomics => l.a.fetch_add(i, AT, l.b.at(AT), 1)?,
            _ => l.a.read(i, AT, 1, l.b.at(AT))?,
        }
    }
    for i in 0..40 {
        l.a.done(i)?;
    }
    Ok(())
}

fn qp_numbers_differ<C: Context>(s: &Setup<C>) -> Result<()> {
    let ends: Vec<_> = (0..8)
        .map(|_| s.end(&s.a, &s.cfg()))
        .collect::<Result<_>>()?;
    let mut numbers: Vec<_> = ends.iter().map(|e| e.qp.control().qp_num()).collect();
    let mut keys: Vec<_> = ends.iter().map(|e| e.mr.rkey()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    keys.sort_unstable();
    keys.dedup();
    ensure!(numbers.len() == 8, "numbers {numbers:?} of 8 queue pairs");
    ensure!(
        numbers.iter().all(|n| *n != 0 && *n < 1 << 24),
        "numbers {numbers:?}"
    );
    ensure!(keys.len() == 8, "keys {keys:?} of 8 regions");
    Ok(())
}
