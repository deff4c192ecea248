//! Receives: matching, order, and what happens when there is none or it does not fit.

use anyhow::{Result, ensure};
use mu_verbs::{Access, Context, QpState, QueuePair, WcStatus};

use crate::harness::{AT, SIGNALED, Setup, flushed, until};

super::table!(receive:
    are_used_in_order,
    posted_in_init_are_used,
    posted_in_rtr_are_used,
    plain_write_uses_none,
    read_uses_none,
    longer_than_the_message,
    exactly_the_message,
    too_short,
    too_short_by_packets,
    none_for_a_send,
    none_for_an_immediate,
    posted_late,
    posted_late_for_an_immediate,
    not_ready_flushes_the_rest,
    into_read_only_memory,
    outside_the_region,
    of_another_domain,
    solicited_is_like_any,
);

fn are_used_in_order<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    for i in 0..10 {
        l.b.recv(i, AT + 64 * i as usize, 64)?;
    }
    for i in 0..10 {
        l.a.set_word(64, i);
        l.a.send(i, 64, 8, None, SIGNALED)?;
        l.a.done(i)?;
    }
    for i in 0..10 {
        l.b.receives(i, WcStatus::SUCCESS)?;
        ensure!(
            l.b.word(AT + 64 * i as usize) == i,
            "receive {i} got message {}",
            l.b.word(AT + 64 * i as usize)
        );
    }
    l.b.quiet()
}

/// Connects by hand, with a receive posted while the answering end is in `state`.
fn posted_in<C: Context>(s: &Setup<C>, state: QpState) -> Result<()> {
    let cfg = s.cfg();
    let (mut a, mut b) = (s.end(&s.a, &cfg)?, s.end(&s.b, &cfg)?);
    a.init(cfg.qp)?;
    b.init(cfg.qp)?;
    if state == QpState::Init {
        b.recv(1, AT, 8)?;
    }
    a.rtr(&b, &cfg)?;
    b.rtr(&a, &cfg)?;
    if state == QpState::Rtr {
        b.recv(1, AT, 8)?;
    }
    a.rts(&cfg)?;
    // The answering end may stay in RTR: it does not send.
    a.set_word(64, 5);
    a.send(2, 64, 8, None, SIGNALED)?;
    a.done(2)?;
    b.receives(1, WcStatus::SUCCESS)?;
    ensure!(b.word(AT) == 5, "the message is {}", b.word(AT));
    Ok(())
}

fn posted_in_init_are_used<C: Context>(s: &Setup<C>) -> Result<()> {
    posted_in(s, QpState::Init)
}

fn posted_in_rtr_are_used<C: Context>(s: &Setup<C>) -> Result<()> {
    posted_in(s, QpState::Rtr)
}

fn plain_write_uses_none<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    l.b.recv(1, AT, 8)?;
    l.works()?;
    l.b.quiet()?;
    l.a.send(2, AT, 8, None, SIGNALED)?;
    l.a.done(2)?;
    l.b.receives(1, WcStatus::SUCCESS)?;
    Ok(())
}

fn read_uses_none<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    l.b.recv(1, AT, 8)?;
    l.a.read(2, AT, 100, l.b.at(AT))?;
    l.a.done(2)?;
    l.b.quiet()
}

fn longer_than_the_message<C: Context>(s: &Setup<C>) -> Result<()> {
    fits(s, 1000, 4000)
}

fn exactly_the_message<C: Context>(s: &Setup<C>) -> Result<()> {
    fits(s, 5000, 5000)
}

fn fits<C: Context>(s: &Setup<C>, len: usize, room: usize) -> Result<()> {
    let mut l = s.link()?;
    let source = l.a.scribble(1);
    let mut want = l.b.scribble(2);
    want[AT..AT + len].copy_from_slice(&source[AT..AT + len]);
    l.b.recv(1, AT, room)?;
    l.a.send(2, AT, len, None, SIGNALED)?;
    l.a.done(2)?;
    let c = l.b.receives(1, WcStatus::SUCCESS)?;
    ensure!(c.byte_len as usize == len, "byte_len {}", c.byte_len);
    l.b.holds(&want)
}

fn too_short<C: Context>(s: &Setup<C>) -> Result<()> {
    short(s, 65, 64)
}

fn too_short_by_packets<C: Context>(s: &Setup<C>) -> Result<()> {
    let mtu = s.traits.mtu.bytes();
    short(s, 3 * mtu, mtu + 1)
}

/// The sender gets an invalid request, the receiver a length error, and nothing beyond the buffer is touched.
fn short<C: Context>(s: &Setup<C>, len: usize, room: usize) -> Result<()> {
    let mut l = s.link()?;
    l.a.scribble(1);
    let before = l.b.scribble(2);
    l.b.recv(1, AT, room)?;
    l.a.send(2, AT, len, None, SIGNALED)?;
    l.a.ends(2, WcStatus::REM_INV_REQ_ERR)?;
    l.b.receives(1, WcStatus::LOC_LEN_ERR)?;
    let after = l.b.image();
    ensure!(
        after[..AT] == before[..AT],
        "bytes before the buffer changed"
    );
    ensure!(
        after[AT + room..] == before[AT + room..],
        "bytes after the buffer changed"
    );
    l.both_failed()
}

fn none_for_a_send<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link_with(crate::harness::Cfg::impatient)?;
    l.a.send(1, AT, 8, None, SIGNALED)?;
    l.a.ends(1, WcStatus::RNR_RETRY_EXC_ERR)?;
    l.a.reaches(QpState::Err)?;
    ensure!(
        l.b.state()? == QpState::Rts,
        "the answering end is in {:?}",
        l.b.state()?
    );
    l.b.quiet()
}

fn none_for_an_immediate<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link_with(crate::harness::Cfg::impatient)?;
    l.a.write_imm(1, AT, 8, l.b.at(AT), 5)?;
    l.a.ends(1, WcStatus::RNR_RETRY_EXC_ERR)?;
    l.a.reaches(QpState::Err)
}

fn posted_late<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_waiting()?;
    // 7 asks for ever.
    let mut l = s.link_with(|cfg| cfg.rts.rnr_retry = 7)?;
    l.a.set_word(64, 9);
    l.a.send(1, 64, 8, None, SIGNALED)?;
    l.a.quiet()?;
    l.b.recv(2, AT, 8)?;
    l.a.done(1)?;
    l.b.receives(2, WcStatus::SUCCESS)?;
    ensure!(l.b.word(AT) == 9, "the message is {}", l.b.word(AT));
    Ok(())
}

fn posted_late_for_an_immediate<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_waiting()?;
    let mut l = s.link_with(|cfg| cfg.rts.rnr_retry = 7)?;
    l.a.set_word(64, 9);
    l.a.write_imm(1, 64, 8, l.b.at(AT), 4)?;
    l.a.write(3, 64, 8, l.b.at(AT + 64), SIGNALED)?;
    l.a.quiet()?;
    ensure!(
        l.b.word(AT + 64) != 9,
        "a later WRITE overtook one that waits for a receive"
    );
    l.b.recv(2, 0, 0)?;
    l.a.done(1)?;
    l.a.done(3)?;
    let c = l.b.receives(2, WcStatus::SUCCESS)?;
    ensure!(c.imm_data == Some(4), "got {c:?}");
    ensure!(
        until(s.traits.limit, || (l.b.word(AT + 64) == 9).then_some(())).is_some(),
        "the later WRITE is lost"
    );
    Ok(())
}

fn not_ready_flushes_the_rest<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link_with(crate::harness::Cfg::impatient)?;
    let before = l.b.scribble(1);
    l.a.send(0, AT, 8, None, SIGNALED)?;
    for i in 1..5 {
        l.a.write(i, AT, 8, l.b.at(AT), SIGNALED)?;
    }
    l.a.ends(0, WcStatus::RNR_RETRY_EXC_ERR)?;
    flushed(&l.a.sent(4)?, 1..5)?;
    l.b.holds(&before)
}

/// The receiver's own fault: a local protection error there, a remote operation error at the sender.
fn unusable<C: Context>(
    s: &Setup<C>,
    post: impl FnOnce(&mut crate::harness::Link<C>) -> Result<()>,
) -> Result<()> {
    let mut l = s.link()?;
    let before = l.b.scribble(1);
    post(&mut l)?;
    l.a.send(2, AT, 8, None, SIGNALED)?;
    l.a.ends(2, WcStatus::REM_OP_ERR)?;
    l.b.receives(1, WcStatus::LOC_PROT_ERR)?;
    l.b.holds(&before)?;
    l.both_failed()
}

fn into_read_only_memory<C: Context>(s: &Setup<C>) -> Result<()> {
    unusable(s, |l| {
        l.b.mr = l.b.register(Access::REMOTE_READ)?;
        Ok(l.b.recv(1, AT, 8)?)
    })
}

fn outside_the_region<C: Context>(s: &Setup<C>) -> Result<()> {
    unusable(s, |l| Ok(l.b.recv(1, l.b.memory.len() - 4, 8)?))
}

fn of_another_domain<C: Context>(s: &Setup<C>) -> Result<()> {
    unusable(s, |l| {
        let other = s.b.alloc_pd()?;
        l.b.mr =
            s.b.reg_mr(&other, &l.b.memory, 0..l.b.memory.len(), l.cfg.mr)?;
        Ok(l.b.recv(1, AT, 8)?)
    })
}

fn solicited_is_like_any<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    l.b.recv(1, AT, 8)?;
    l.a.send(2, AT, 8, None, SIGNALED | mu_verbs::SendFlags::SOLICITED)?;
    l.a.done(2)?;
    l.b.receives(1, WcStatus::SUCCESS)?;
    ensure!(l.b.qp.cap().max_recv_wr > 0, "the receive queue has room");
    Ok(())
}
