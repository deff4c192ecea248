//! What the answering side refuses: keys, bounds, domains, rights. Each refusal leaves its memory as it is, has the
//! status that says why, and fails both ends.

use anyhow::{Context as _, Result, ensure};
use mu_verbs::{
    Access, AsyncEvent, BackendKind, Completion, CompletionQueue, Context, MemoryRegion, QpControl,
    QpState, QueuePair, RemoteAddr, WORD, WcStatus,
};

use crate::harness::{AT, Link, REMOTE, SIGNALED, Setup, UNSIGNALED, expect, flushed, pause, skip};

super::table!(refusals:
    wrong_key_for_a_write,
    wrong_key_for_a_read,
    wrong_key_for_an_atomic,
    wrong_key_for_an_immediate,
    every_wrong_bit_of_a_key,
    stale_key,
    stale_key_after_registering_again,
    key_of_the_wrong_side,
    starts_below,
    ends_above,
    one_byte_above,
    wraps_around,
    far_away,
    bounds_of_reads,
    bounds_of_atomics,
    long_write_over_the_end,
    last_bytes_of_a_region,
    another_domain,
    region_without_write,
    region_without_read,
    region_without_atomic,
    region_without_any,
    flags_without_write,
    flags_without_write_for_an_immediate,
    flags_without_read,
    flags_without_atomic,
    flags_come_before_the_key,
    misaligned_atomics,
    event_of_a_wrong_key,
    event_of_forbidden_flags,
    silent_for_the_answering_program,
    flushes_the_rest_in_order,
    flushes_unsignalled_too,
    flushes_the_answering_receives,
    unsignalled_failure_completes,
    nothing_after_it_lands,
    before_it_all_landed,
    leaves_other_queue_pairs_alone,
    leaves_the_region_alone,
);

fn with_key(place: RemoteAddr, flip: u32) -> RemoteAddr {
    RemoteAddr {
        rkey: place.rkey ^ flip,
        ..place
    }
}

fn wrong_key_for_a_write<C: Context>(s: &Setup<C>) -> Result<()> {
    for len in [1, 8, 5000] {
        s.link()?.refused(WcStatus::REM_ACCESS_ERR, |a, b| {
            a.write(1, AT, len, with_key(b.at(AT), 1 << 16), SIGNALED)
        })?;
    }
    Ok(())
}

fn wrong_key_for_a_read<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let before = l.a.scribble(1);
    l.refused(WcStatus::REM_ACCESS_ERR, |a, b| {
        a.read(1, AT, 5000, with_key(b.at(AT), 1 << 16))
    })?;
    l.a.holds(&before).context("a refused READ brought bytes")
}

fn wrong_key_for_an_atomic<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_atomics()?;
    let mut l = s.link()?;
    let before = l.a.scribble(1);
    l.refused(WcStatus::REM_ACCESS_ERR, |a, b| {
        a.fetch_add(1, 64, with_key(b.at(AT), 1 << 16), 1)
    })?;
    l.a.holds(&before)
        .context("a refused atomic brought a value")
}

fn wrong_key_for_an_immediate<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    l.b.recv(5, AT, 8)?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, b| {
        a.write_imm(1, AT, 8, with_key(b.at(AT), 1 << 16), 1)
    })?;
    ensure!(
        !l.b.received(1)?[0].status.is_success(),
        "the receive was used"
    );
    Ok(())
}

fn every_wrong_bit_of_a_key<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    for bit in 0..32 {
        l.refused(WcStatus::REM_ACCESS_ERR, |a, b| {
            a.write(1, AT, 8, with_key(b.at(AT), 1 << bit), SIGNALED)
        })
        .with_context(|| format!("bit {bit} of the key"))?;
        l.reconnect()?;
    }
    l.works()
}

fn stale_key<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let mr = l.b.register(l.cfg.mr)?;
    let place = mr.remote(AT);
    l.a.write(1, AT, 8, place, SIGNALED)?;
    l.a.done(1)?;
    mr.close()?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(2, AT, 8, place, SIGNALED)
    })
}

fn stale_key_after_registering_again<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let mr = l.b.register(l.cfg.mr)?;
    let place = mr.remote(AT);
    mr.close()?;
    let again = l.b.register(l.cfg.mr)?;
    ensure!(
        again.rkey() != place.rkey,
        "the key {:#x} was given again at once",
        place.rkey
    );
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(2, AT, 8, place, SIGNALED)
    })
}

/// A key of the asking side's own region opens nothing at the answering side.
fn key_of_the_wrong_side<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    if l.a.mr.rkey() == l.b.mr.rkey() {
        return skip("both sides happen to have the same key");
    }
    l.refused(WcStatus::REM_ACCESS_ERR, |a, b| {
        let place = RemoteAddr {
            rkey: a.mr.rkey(),
            ..b.at(AT)
        };
        a.write(1, AT, 8, place, SIGNALED)
    })
}

/// A registration of the middle of `b`'s memory.
fn middle<C: Context>(l: &Link<C>) -> Result<C::Mr> {
    l.b.register_range(8192..16384, l.cfg.mr)
}

/// A WRITE of `len` bytes, `offset` bytes from the start of a region of 8 KiB, must be refused.
fn outside<C: Context>(s: &Setup<C>, offset: i64, len: usize) -> Result<()> {
    let mut l = s.link()?;
    let mr = middle(&l)?;
    let place = RemoteAddr {
        addr: mr.addr().wrapping_add_signed(offset),
        rkey: mr.rkey(),
    };
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(1, AT, len, place, SIGNALED)
    })
    .with_context(|| format!("{len} bytes at {offset} of 8192"))
}

fn starts_below<C: Context>(s: &Setup<C>) -> Result<()> {
    outside(s, -8, 16)?;
    outside(s, -1, 1)?;
    outside(s, -64, 64)
}

fn ends_above<C: Context>(s: &Setup<C>) -> Result<()> {
    outside(s, 8184, 16)?;
    outside(s, 8192, 8)?;
    outside(s, 9000, 64)
}

fn one_byte_above<C: Context>(s: &Setup<C>) -> Result<()> {
    outside(s, 8192, 1)?;
    outside(s, 8191, 2)?;
    outside(s, 0, 8193)
}

/// The end of the range is beyond the last address there is.
fn wraps_around<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let mr = middle(&l)?;
    for (addr, len) in [
        (u64::MAX, 1),
        (u64::MAX - 7, 8),
        (u64::MAX - 7, 16),
        (u64::MAX - 63, 4096),
    ] {
        let place = RemoteAddr {
            addr,
            rkey: mr.rkey(),
        };
        l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
            a.write(1, AT, len, place, SIGNALED)
        })
        .with_context(|| format!("{len} bytes at {addr:#x}"))?;
        l.reconnect()?;
    }
    Ok(())
}

fn far_away<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let mr = middle(&l)?;
    for addr in [0, 8, 1 << 62, 1 << 63, mr.addr() ^ (1 << 40)] {
        let place = RemoteAddr {
            addr,
            rkey: mr.rkey(),
        };
        l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
            a.write(1, AT, 8, place, SIGNALED)
        })
        .with_context(|| format!("address {addr:#x}"))?;
        l.reconnect()?;
    }
    Ok(())
}

fn bounds_of_reads<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let mr = middle(&l)?;
    for (offset, len) in [(-8_i64, 16), (-1, 1), (8184, 16), (8192, 1), (0, 8193)] {
        let before = l.a.scribble(1);
        let place = RemoteAddr {
            addr: mr.addr().wrapping_add_signed(offset),
            rkey: mr.rkey(),
        };
        l.refused(WcStatus::REM_ACCESS_ERR, |a, _| a.read(1, AT, len, place))
            .with_context(|| format!("{len} bytes at {offset} of 8192"))?;
        l.a.holds(&before)?;
        l.reconnect()?;
    }
    Ok(())
}

fn bounds_of_atomics<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_atomics()?;
    let mut l = s.link()?;
    let mr = middle(&l)?;
    for offset in [-8_i64, 8192, 1 << 40] {
        let place = RemoteAddr {
            addr: mr.addr().wrapping_add_signed(offset),
            rkey: mr.rkey(),
        };
        l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
            a.fetch_add(1, 64, place, 1)
        })
        .with_context(|| format!("at {offset} of 8192"))?;
        l.reconnect()?;
    }
    Ok(())
}

/// A WRITE of many packets that goes over the end is refused before its first byte.
fn long_write_over_the_end<C: Context>(s: &Setup<C>) -> Result<()> {
    outside(s, 4096, 4096 + 1)?;
    outside(s, 0, 20_000)
}

fn last_bytes_of_a_region<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let mr = middle(&l)?;
    let source = l.a.scribble(1);
    let mut want = l.b.scribble(2);
    for (offset, len) in [(8191, 1), (8184, 8), (8000, 192), (0, 8192)] {
        want[8192 + offset..8192 + offset + len].copy_from_slice(&source[AT..AT + len]);
        l.a.write(1, AT, len, mr.remote(offset), SIGNALED)?;
        l.a.done(1)
            .with_context(|| format!("{len} bytes at {offset} of 8192"))?;
    }
    l.b.comes_to_hold(&want)
}

fn another_domain<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let other = s.b.alloc_pd()?;
    let mr =
        s.b.reg_mr(&other, &l.b.memory, 0..l.b.memory.len(), l.cfg.mr)?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(1, AT, 8, mr.remote(AT), SIGNALED)
    })?;
    l.reconnect()?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.read(1, AT, 8, mr.remote(AT))
    })
}

/// A link whose answering region has all rights but one.
fn region_lacks<C: Context>(s: &Setup<C>, lacks: Access) -> Result<Link<C>> {
    let mut l = s.link()?;
    l.b.mr = l.b.register(l.cfg.mr.without(lacks))?;
    Ok(l)
}

fn region_without_write<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = region_lacks(s, Access::REMOTE_WRITE)?;
    l.a.read(1, AT, 8, l.b.at(AT))?;
    l.a.done(1)?;
    for len in [1, 64, 5000] {
        l.refused(WcStatus::REM_ACCESS_ERR, |a, b| {
            a.write(1, AT, len, b.at(AT), SIGNALED)
        })?;
        l.reconnect()?;
    }
    Ok(())
}

fn region_without_read<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = region_lacks(s, Access::REMOTE_READ)?;
    l.a.write(1, AT, 8, l.b.at(AT), SIGNALED)?;
    l.a.done(1)?;
    let before = l.a.scribble(1);
    l.refused(WcStatus::REM_ACCESS_ERR, |a, b| a.read(1, AT, 64, b.at(AT)))?;
    l.a.holds(&before)
}

fn region_without_atomic<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_atomics()?;
    let mut l = region_lacks(s, Access::REMOTE_ATOMIC)?;
    l.a.write(1, AT, 8, l.b.at(AT), SIGNALED)?;
    l.a.done(1)?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, b| {
        a.fetch_add(1, 64, b.at(AT), 1)
    })?;
    l.reconnect()?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, b| {
        a.compare_swap(1, 64, b.at(AT), 0, 1)
    })
}

fn region_without_any<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = region_lacks(s, REMOTE)?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, b| {
        a.write(1, AT, 8, b.at(AT), SIGNALED)
    })?;
    l.reconnect()?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, b| a.read(1, AT, 8, b.at(AT)))
}

/// A link whose answering queue pair has all rights but one.
fn flags_lack<C: Context>(s: &Setup<C>, lacks: Access) -> Result<Link<C>> {
    let mut l = s.link()?;
    l.a.reset()?;
    l.b.reset()?;
    l.connect_with(l.cfg.qp.without(lacks))?;
    Ok(l)
}

fn flags_without_write<C: Context>(s: &Setup<C>) -> Result<()> {
    for len in [1, 64, 5000] {
        let mut l = flags_lack(s, Access::REMOTE_WRITE)?;
        l.a.read(1, AT, 8, l.b.at(AT))?;
        l.a.done(1)?;
        l.refused(WcStatus::REM_INV_REQ_ERR, |a, b| {
            a.write(1, AT, len, b.at(AT), SIGNALED)
        })?;
    }
    Ok(())
}

fn flags_without_write_for_an_immediate<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = flags_lack(s, Access::REMOTE_WRITE)?;
    l.b.recv(5, AT, 8)?;
    l.refused(WcStatus::REM_INV_REQ_ERR, |a, b| {
        a.write_imm(1, AT, 8, b.at(AT), 1)
    })?;
    ensure!(
        !l.b.received(1)?[0].status.is_success(),
        "the receive was used"
    );
    Ok(())
}

fn flags_without_read<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = flags_lack(s, Access::REMOTE_READ)?;
    l.a.write(1, AT, 8, l.b.at(AT), SIGNALED)?;
    l.a.done(1)?;
    let before = l.a.scribble(1);
    l.refused(WcStatus::REM_INV_REQ_ERR, |a, b| {
        a.read(1, AT, 64, b.at(AT))
    })?;
    l.a.holds(&before)
}

fn flags_without_atomic<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_atomics()?;
    for swap in [false, true] {
        let mut l = flags_lack(s, Access::REMOTE_ATOMIC)?;
        l.a.write(1, AT, 8, l.b.at(AT), SIGNALED)?;
        l.a.done(1)?;
        l.refused(WcStatus::REM_INV_REQ_ERR, |a, b| match swap {
            true => a.compare_swap(1, 64, b.at(AT), 0, 1),
            false => a.fetch_add(1, 64, b.at(AT), 1),
        })?;
    }
    Ok(())
}

/// A responder looks at the queue pair before it looks at the key.
fn flags_come_before_the_key<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = flags_lack(s, Access::REMOTE_WRITE)?;
    l.refused(WcStatus::REM_INV_REQ_ERR, |a, b| {
        a.write(1, AT, 8, with_key(b.at(AT), 1 << 16), SIGNALED)
    })
}

/// Refused by the responder, or by a provider that looks while posting; in no case carried out.
fn misaligned_atomics<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_atomics()?;
    let mut l = s.link()?;
    for off in 1..WORD {
        let before = l.b.scribble(off as u64);
        let (add, place) = (off % 2 == 0, l.b.at(AT + off));
        let posted = if add {
            l.a.fetch_add(1, 64, place, 1)
        } else {
            l.a.compare_swap(1, 64, place, 0, 1)
        };
        match posted {
            Err(e) => ensure!(e.errno() == 22, "errno {}: {e}", e.errno()),
            Ok(()) => {
                l.a.ends(1, WcStatus::REM_INV_REQ_ERR)
                    .with_context(|| format!("{off} bytes off the word"))?;
                l.both_failed()?;
            }
        }
        l.b.holds(&before)?;
        l.reconnect()?;
    }
    l.works()
}

/// The event of a refusal. Devices differ in whether they raise one; software must.
fn event<C: Context>(s: &Setup<C>, l: &Link<C>, wanted: impl Fn(AsyncEvent) -> bool) -> Result<()> {
    match l.b.event(wanted)? {
        Some(_) => Ok(()),
        None if s.caps().backend == BackendKind::Nic => skip("the device raises no event for it"),
        None => anyhow::bail!("no event at the answering side"),
    }
}

fn event_of_a_wrong_key<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, b| {
        a.write(1, AT, 8, with_key(b.at(AT), 1 << 16), SIGNALED)
    })?;
    let number = l.b.qp.control().qp_num();
    event(s, &l, |e| e == AsyncEvent::QpAccessError { qp_num: number })
}

fn event_of_forbidden_flags<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = flags_lack(s, Access::REMOTE_WRITE)?;
    l.refused(WcStatus::REM_INV_REQ_ERR, |a, b| {
        a.write(1, AT, 8, b.at(AT), SIGNALED)
    })?;
    let number = l.b.qp.control().qp_num();
    event(s, &l, |e| {
        e == AsyncEvent::QpRequestError { qp_num: number }
    })
}

fn silent_for_the_answering_program<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, b| {
        a.write(1, AT, 8, with_key(b.at(AT), 1 << 16), SIGNALED)
    })?;
    l.b.quiet()
}

fn flushes_the_rest_in_order<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let before = l.b.scribble(1);
    // What can be posted before the failure shows is flushed; what is posted after it as well.
    l.a.write(0, AT, 8, with_key(l.b.at(AT), 1 << 16), SIGNALED)?;
    for i in 1..30 {
        match i % 3 {
            0 => l.a.write(i, AT, 8, l.b.at(AT), SIGNALED)?,
            1 => l.a.read(i, AT, 8, l.b.at(AT))?,
            _ => l.a.send(i, AT, 8, None, SIGNALED)?,
        }
    }
    l.a.ends(0, WcStatus::REM_ACCESS_ERR)?;
    flushed(&l.a.sent(29)?, 1..30)?;
    l.a.quiet()?;
    l.b.holds(&before)
}

fn flushes_unsignalled_too<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    l.a.write(0, AT, 8, with_key(l.b.at(AT), 1 << 16), SIGNALED)?;
    (1..10).try_for_each(|i| l.a.write(i, AT, 8, l.b.at(AT), UNSIGNALED))?;
    l.a.ends(0, WcStatus::REM_ACCESS_ERR)?;
    flushed(&l.a.sent(9)?, 1..10)?;
    l.a.quiet()
}

fn flushes_the_answering_receives<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    (0..10).try_for_each(|i| l.b.recv(i, AT, 8))?;
    (10..15).try_for_each(|i| l.a.recv(i, AT, 8))?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, b| {
        a.write(1, AT, 8, with_key(b.at(AT), 1 << 16), SIGNALED)
    })?;
    flushed(&l.b.received(10)?, 0..10)?;
    flushed(&l.a.received(5)?, 10..15)?;
    l.b.quiet()
}

fn unsignalled_failure_completes<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    (1..4).try_for_each(|i| l.a.write(i, AT, 8, l.b.at(AT), UNSIGNALED))?;
    l.a.write(7, AT, 8, with_key(l.b.at(AT), 1 << 16), UNSIGNALED)?;
    l.a.ends(7, WcStatus::REM_ACCESS_ERR)?;
    l.a.quiet()
}

fn nothing_after_it_lands<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let before = l.b.scribble(1);
    l.a.write(0, AT, 8, with_key(l.b.at(AT), 1 << 16), UNSIGNALED)?;
    (1..20).try_for_each(|i| l.a.write(i, AT, 4000, l.b.at(AT), SIGNALED))?;
    l.a.ends(0, WcStatus::REM_ACCESS_ERR)?;
    flushed(&l.a.sent(19)?, 1..20)?;
    pause(s.traits.quiet);
    l.b.holds(&before)
}

fn before_it_all_landed<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let source = l.a.scribble(1);
    let mut want = l.b.scribble(2);
    for i in 0..10 {
        let at = AT + 3000 * i;
        want[at..at + 3000].copy_from_slice(&source[at..at + 3000]);
        l.a.write(i as u64, at, 3000, l.b.at(at), UNSIGNALED)?;
    }
    l.a.write(10, AT, 8, with_key(l.b.at(AT), 1 << 16), SIGNALED)?;
    l.a.ends(10, WcStatus::REM_ACCESS_ERR)?;
    l.b.comes_to_hold(&want)
}

fn leaves_other_queue_pairs_alone<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut one = s.link()?;
    let mut two = s.link()?;
    one.refused(WcStatus::REM_ACCESS_ERR, |a, b| {
        a.write(1, AT, 8, with_key(b.at(AT), 1 << 16), SIGNALED)
    })?;
    two.works()?;
    ensure!(
        two.a.state()? == QpState::Rts && two.b.state()? == QpState::Rts,
        "the other pair's states changed"
    );
    let mut polled = [Completion::EMPTY; 4];
    ensure!(
        two.b.send_cq.poll(&mut polled) == 0,
        "a completion at the other pair"
    );
    Ok(())
}

/// The key still works, for the same peer after it has reconnected.
fn leaves_the_region_alone<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let mr = middle(&l)?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(1, AT, 16, mr.remote(8184), SIGNALED)
    })?;
    l.reconnect()?;
    l.a.write(2, AT, 16, mr.remote(8176), SIGNALED)?;
    expect(&l.a.sent(1)?[0], 2, WcStatus::SUCCESS)
}
