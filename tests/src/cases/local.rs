//! Mistakes of the asking side: it hears of them in its own completion, and its peer hears nothing.

use anyhow::{Context as _, Result, ensure};
use mu_verbs::{
    Access, Context, Payload, PostError, QpState, QueuePair, SendOp, SendWr, Sge, WORD, WcStatus,
};

use crate::harness::{AT, End, Link, SIGNALED, Setup, UNSIGNALED, flushed};

super::table!(local:
    piece_beyond_the_region,
    piece_partly_beyond_the_region,
    second_piece_beyond_the_region,
    piece_of_another_domain,
    read_into_read_only_memory,
    atomic_into_read_only_memory,
    read_beyond_the_region,
    write_from_read_only_memory,
    inline_needs_no_region,
    flushes_the_rest,
    foreign_region,
);

/// A request that fails at home: LOC_PROT_ERR, the own end in ERR, the peer's as it was.
fn fails_at_home<C: Context>(
    l: &mut Link<C>,
    post: impl FnOnce(&mut End<C>, &End<C>) -> Result<(), PostError>,
) -> Result<()> {
    let (here, there) = (l.a.image(), l.b.image());
    post(&mut l.a, &l.b)?;
    let c = l.a.sent(1)?[0];
    ensure!(
        c.status == WcStatus::LOC_PROT_ERR,
        "expected LOC_PROT_ERR, got {c:?}"
    );
    l.a.holds(&here).context("at home")?;
    l.b.holds(&there).context("at the peer")?;
    l.a.reaches(QpState::Err)?;
    ensure!(
        l.b.state()? == QpState::Rts,
        "the peer's end went to {:?}",
        l.b.state()?
    );
    Ok(())
}

fn piece_beyond_the_region<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let end = l.a.memory.len();
    fails_at_home(&mut l, |a, b| a.write(1, end + 4096, 8, b.at(AT), SIGNALED))
}

fn piece_partly_beyond_the_region<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let end = l.a.memory.len();
    fails_at_home(&mut l, |a, b| a.write(1, end - 4, 8, b.at(AT), SIGNALED))
}

fn second_piece_beyond_the_region<C: Context>(s: &Setup<C>) -> Result<()> {
    if s.caps().max_sge < 2 {
        return crate::harness::skip("one piece a request");
    }
    let mut l = s.link_with(|cfg| cfg.cap.max_send_sge = 2)?;
    let end = l.a.memory.len();
    fails_at_home(&mut l, |a, b| {
        let local = [Sge::new(&a.mr, AT, 8), Sge::new(&a.mr, end - 1, 8)];
        let op = SendOp::Write {
            payload: Payload::Regions(&local),
            remote: b.at(AT),
            imm: None,
        };
        a.qp.post_send(&SendWr {
            wr_id: 1,
            op,
            flags: SIGNALED,
        })
    })
}

fn piece_of_another_domain<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let other = s.a.alloc_pd()?;
    l.a.mr =
        s.a.reg_mr(&other, &l.a.memory, 0..l.a.memory.len(), l.cfg.mr)?;
    fails_at_home(&mut l, |a, b| a.write(1, AT, 8, b.at(AT), SIGNALED))
}

fn read_into_read_only_memory<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    l.a.mr = l.a.register(Access::REMOTE_READ)?;
    fails_at_home(&mut l, |a, b| a.read(1, AT, 64, b.at(AT)))
}

fn atomic_into_read_only_memory<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_atomics()?;
    let mut l = s.link()?;
    l.a.mr = l.a.register(Access::NONE)?;
    let here = l.a.image();
    // The responder may have done its part by the time the result cannot be stored.
    l.a.fetch_add(1, 64, l.b.at(AT), 1)?;
    l.a.ends(1, WcStatus::LOC_PROT_ERR)?;
    l.a.holds(&here)?;
    l.a.reaches(QpState::Err)
}

fn read_beyond_the_region<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    l.a.mr = l.a.register_range(0..8192, l.cfg.mr)?;
    fails_at_home(&mut l, |a, b| a.read(1, 8192 - 32, 64, b.at(AT)))
}

/// Reading local memory needs no right (`ibv_reg_mr(3)`: local read access is always enabled).
fn write_from_read_only_memory<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    l.a.mr = l.a.register(Access::NONE)?;
    l.a.set_word(AT, 0x1122);
    l.a.write(1, AT, WORD, l.b.at(AT), SIGNALED)?;
    l.a.done(1)?;
    l.b.recv(3, AT + 64, 8)?;
    l.a.send(2, AT, WORD, None, SIGNALED)?;
    l.a.done(2)?;
    l.b.receives(3, WcStatus::SUCCESS)?;
    ensure!(
        (l.b.word(AT), l.b.word(AT + 64)) == (0x1122, 0x1122),
        "{:#x}, {:#x}",
        l.b.word(AT),
        l.b.word(AT + 64)
    );
    Ok(())
}

fn inline_needs_no_region<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let mut want = l.b.scribble(1);
    let on_the_stack = [0x42_u8; 24];
    want[AT..AT + 24].copy_from_slice(&on_the_stack);
    l.a.write_inline(1, &on_the_stack, l.b.at(AT), SIGNALED)?;
    l.a.done(1)?;
    l.b.comes_to_hold(&want)
}

fn flushes_the_rest<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let before = l.b.scribble(1);
    let end = l.a.memory.len();
    l.a.write(0, end - 4, 8, l.b.at(AT), SIGNALED)?;
    (1..6).try_for_each(|i| {
        l.a.write(
            i,
            AT,
            8,
            l.b.at(AT),
            if i % 2 == 0 { SIGNALED } else { UNSIGNALED },
        )
    })?;
    l.a.ends(0, WcStatus::LOC_PROT_ERR)?;
    flushed(&l.a.sent(5)?, 1..6)?;
    l.b.holds(&before)
}

/// A region of another context is of no use here: refused when posted, or in the completion. Its bytes do not travel.
fn foreign_region<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let (third, _fourth) = s.open()?;
    let foreign = s.end(&third, &s.cfg())?;
    foreign.scribble(7);
    let before = l.b.scribble(1);
    let local = [Sge::new(&foreign.mr, AT, 8)];
    let op = SendOp::Write {
        payload: Payload::Regions(&local),
        remote: l.b.at(AT),
        imm: None,
    };
    match l.a.qp.post_send(&SendWr {
        wr_id: 1,
        op,
        flags: SIGNALED,
    }) {
        Err(e) => ensure!(e.errno() == 22, "errno {}: {e}", e.errno()),
        Ok(()) => l.a.ends(1, WcStatus::LOC_PROT_ERR).map(drop)?,
    }
    l.b.holds(&before)
}
