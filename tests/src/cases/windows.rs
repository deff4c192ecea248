//! Type-2 memory windows: a key that requests on one queue pair bind and invalidate.

use anyhow::{Context as _, Result, bail, ensure};
use mu_verbs::{
    Access, Context, Error, MemoryRegion, MemoryWindow, RemoteAddr, SendOp, WORD, WcOpcode,
    WcStatus, next_rkey,
};

use crate::harness::{AT, End, Link, REMOTE, SIGNALED, Setup, UNSIGNALED, kind, skip};

super::table!(windows:
    write_through,
    read_and_atomics_through,
    bounds,
    rights_of_the_window,
    window_narrows_the_region,
    wrong_key,
    invalidated_key,
    invalidated_and_bound_again,
    bound_twice_without_invalidation,
    region_without_bind_right,
    region_without_local_write,
    outside_the_region,
    region_of_another_domain,
    of_another_queue_pair,
    invalidation_of_a_wrong_key,
    failed_bind_fails_the_queue_pair,
    deallocation_ends_it,
    region_in_use,
    two_on_one_region,
    bind_is_ordered_with_sends,
    unsupported,
);

/// What a region needs to carry any window.
fn bindable<C: Context>(l: &Link<C>) -> Access {
    l.cfg.mr | Access::MW_BIND
}

/// Posts a bind and returns how it ended.
fn bind<C: Context>(
    end: &mut End<C>,
    mw: &C::Mw,
    mr: &C::Mr,
    (offset, len): (usize, usize),
    access: Access,
) -> Result<WcStatus> {
    let op = SendOp::BindMw {
        mw,
        rkey: next_rkey(mw.rkey()),
        mr,
        offset,
        len,
        access,
    };
    end.post(900, op, SIGNALED)?;
    let c = end.sent(1)?[0];
    ensure!(c.wr_id == 900, "{c:?}");
    if c.status.is_success() {
        kind(&c, WcOpcode::BIND_MW)?;
    }
    Ok(c.status)
}

/// Posts an invalidation and returns how it ended.
fn invalidate<C: Context>(end: &mut End<C>, rkey: u32) -> Result<WcStatus> {
    end.post(901, SendOp::LocalInv { rkey }, SIGNALED)?;
    let c = end.sent(1)?[0];
    ensure!(c.wr_id == 901, "{c:?}");
    if c.status.is_success() {
        kind(&c, WcOpcode::LOCAL_INV)?;
    }
    Ok(c.status)
}

/// A window bound to 4 KiB at [`AT`] of `b`'s memory, and the place of its first byte.
fn bound<C: Context>(l: &mut Link<C>, access: Access) -> Result<(C::Mw, C::Mr, RemoteAddr)> {
    let mr = l.b.register(bindable(l))?;
    let mw = l.b.ctx.alloc_mw(&l.b.pd)?;
    let status = bind(&mut l.b, &mw, &mr, (AT, 4096), access)?;
    ensure!(status.is_success(), "a correct bind ended with {status}");
    let place = RemoteAddr {
        addr: mr.addr() + AT as u64,
        rkey: mw.rkey(),
    };
    Ok((mw, mr, place))
}

fn off(place: RemoteAddr, by: i64) -> RemoteAddr {
    RemoteAddr {
        addr: place.addr.wrapping_add_signed(by),
        ..place
    }
}

/// A link between devices with windows.
fn link<C: Context>(s: &Setup<C>) -> Result<Link<C>> {
    s.needs_windows()?;
    s.link()
}

fn write_through<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let (_mw, _mr, place) = bound(&mut l, Access::REMOTE_WRITE)?;
    let source = l.a.scribble(1);
    let mut want = l.b.scribble(2);
    for (at, len) in [(0, 8), (64, 1000), (3, 7), (0, 4096)] {
        want[AT + at..AT + at + len].copy_from_slice(&source[AT..AT + len]);
        l.a.write(1, AT, len, off(place, at as i64), SIGNALED)?;
        l.a.done(1)
            .with_context(|| format!("{len} bytes at {at}"))?;
    }
    l.b.comes_to_hold(&want)
}

fn read_and_atomics_through<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let access = REMOTE & l.cfg.qp;
    let (_mw, _mr, place) = bound(&mut l, access)?;
    l.b.set_word(AT, 40);
    l.a.read(1, 64, WORD, place)?;
    l.a.done(1)?;
    ensure!(l.a.word(64) == 40, "read {}", l.a.word(64));
    if s.needs_atomics().is_ok() {
        l.a.fetch_add(2, 64, place, 2)?;
        l.a.done(2)?;
        l.a.read(3, 128, WORD, place)?;
        l.a.done(3)?;
        ensure!(
            (l.a.word(64), l.a.word(128)) == (40, 42),
            "{} then {}",
            l.a.word(64),
            l.a.word(128)
        );
    }
    Ok(())
}

fn bounds<C: Context>(s: &Setup<C>) -> Result<()> {
    for (by, len) in [(-8_i64, 16), (-1, 1), (4096, 1), (4090, 8), (0, 4097)] {
        let mut l = link(s)?;
        let (_mw, _mr, place) = bound(&mut l, Access::REMOTE_WRITE)?;
        l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
            a.write(1, AT, len, off(place, by), SIGNALED)
        })
        .with_context(|| format!("{len} bytes at {by} of 4096"))?;
    }
    Ok(())
}

fn rights_of_the_window<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let (_mw, _mr, place) = bound(&mut l, Access::REMOTE_READ)?;
    l.a.read(1, 64, WORD, place)?;
    l.a.done(1)?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(2, AT, 8, place, SIGNALED)
    })?;
    let mut l = link(s)?;
    let (_mw, _mr, place) = bound(&mut l, Access::REMOTE_WRITE)?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| a.read(3, AT, 8, place))
}

/// A window gives a right that the region's own key does not: the region stays closed.
fn window_narrows_the_region<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let mr = l.b.register(Access::LOCAL_WRITE | Access::MW_BIND)?;
    let mw = s.b.alloc_mw(&l.b.pd)?;
    let status = bind(&mut l.b, &mw, &mr, (AT, 64), Access::REMOTE_WRITE)?;
    ensure!(status.is_success(), "the bind ended with {status}");
    let place = RemoteAddr {
        addr: mr.addr() + AT as u64,
        rkey: mw.rkey(),
    };
    l.a.write(1, AT, 64, place, SIGNALED)?;
    l.a.done(1)?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(2, AT, 8, mr.remote(AT), SIGNALED)
    })
}

fn wrong_key<C: Context>(s: &Setup<C>) -> Result<()> {
    for flip in [1, 0x80, 1 << 8, 1 << 31] {
        let mut l = link(s)?;
        let (_mw, _mr, place) = bound(&mut l, Access::REMOTE_WRITE)?;
        let wrong = RemoteAddr {
            rkey: place.rkey ^ flip,
            ..place
        };
        l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
            a.write(1, AT, 8, wrong, SIGNALED)
        })
        .with_context(|| format!("key changed by {flip:#x}"))?;
    }
    Ok(())
}

fn invalidated_key<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let (_mw, _mr, place) = bound(&mut l, Access::REMOTE_WRITE)?;
    l.a.write(1, AT, 8, place, SIGNALED)?;
    l.a.done(1)?;
    let status = invalidate(&mut l.b, place.rkey)?;
    ensure!(status.is_success(), "the invalidation ended with {status}");
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(2, AT, 8, place, SIGNALED)
    })
}

fn invalidated_and_bound_again<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let (mw, mr, mut old) = bound(&mut l, Access::REMOTE_WRITE)?;
    for _ in 0..10 {
        let status = invalidate(&mut l.b, old.rkey)?;
        ensure!(status.is_success(), "the invalidation ended with {status}");
        let status = bind(&mut l.b, &mw, &mr, (AT, 4096), Access::REMOTE_WRITE)?;
        ensure!(status.is_success(), "binding again ended with {status}");
        ensure!(
            mw.rkey() != old.rkey && mw.rkey() >> 8 == old.rkey >> 8,
            "{:#x} after {:#x}",
            mw.rkey(),
            old.rkey
        );
        old.rkey = mw.rkey();
        l.a.write(1, AT, 8, old, SIGNALED)?;
        l.a.done(1)?;
    }
    let before = RemoteAddr {
        rkey: (old.rkey & !0xff) | (old.rkey.wrapping_sub(1) & 0xff),
        ..old
    };
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(2, AT, 8, before, SIGNALED)
    })
}

/// A bound type-2 window cannot be bound again before it is invalidated.
fn bound_twice_without_invalidation<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let (mw, mr, _) = bound(&mut l, Access::REMOTE_WRITE)?;
    let status = bind(&mut l.b, &mw, &mr, (AT + 4096, 4096), Access::REMOTE_WRITE)?;
    ensure!(
        status == WcStatus::MW_BIND_ERR,
        "a second bind ended with {status}"
    );
    Ok(())
}

/// A bind that must fail, and whose key must open nothing.
fn unbindable<C: Context>(
    l: &mut Link<C>,
    mr: &C::Mr,
    range: (usize, usize),
    access: Access,
) -> Result<()> {
    let mw = l.b.ctx.alloc_mw(&l.b.pd)?;
    let key = next_rkey(mw.rkey());
    let status = bind(&mut l.b, &mw, mr, range, access)?;
    ensure!(
        status == WcStatus::MW_BIND_ERR,
        "the bind ended with {status}"
    );
    l.reconnect()?;
    let place = RemoteAddr {
        addr: mr.addr() + range.0 as u64,
        rkey: key,
    };
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(1, AT, 8, place, SIGNALED)
    })
}

fn region_without_bind_right<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let mr = l.b.register(l.cfg.mr)?;
    unbindable(&mut l, &mr, (AT, 64), Access::REMOTE_WRITE)
}

fn region_without_local_write<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let mr = l.b.register(Access::REMOTE_READ | Access::MW_BIND)?;
    unbindable(&mut l, &mr, (AT, 64), Access::REMOTE_WRITE)
}

fn outside_the_region<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let mr = l.b.register_range(8192..16384, bindable(&l))?;
    for range in [(8192, 8), (8000, 193), (0, 8193), (1 << 20, 64)] {
        unbindable(&mut l, &mr, range, Access::REMOTE_WRITE)
            .with_context(|| format!("{range:?} of 8192 bytes"))?;
        l.reconnect()?;
    }
    Ok(())
}

fn region_of_another_domain<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let other = s.b.alloc_pd()?;
    let mr =
        s.b.reg_mr(&other, &l.b.memory, 0..l.b.memory.len(), bindable(&l))?;
    // A provider that can tell while posting may refuse there.
    let mw = s.b.alloc_mw(&l.b.pd)?;
    let (rkey, access) = (next_rkey(mw.rkey()), Access::REMOTE_WRITE);
    let refused = l.b.post(
        1,
        SendOp::BindMw {
            mw: &mw,
            rkey,
            mr: &mr,
            offset: AT,
            len: 64,
            access,
        },
        SIGNALED,
    );
    match refused {
        Err(e) => ensure!(matches!(e.errno(), 1 | 22), "errno {}: {e}", e.errno()),
        Ok(()) => return unbindable_posted(&mut l),
    }
    l.b.quiet()?;
    let place = RemoteAddr {
        addr: mr.addr() + AT as u64,
        rkey,
    };
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(1, AT, 8, place, SIGNALED)
    })
}

/// The bind that was posted must fail.
fn unbindable_posted<C: Context>(l: &mut Link<C>) -> Result<()> {
    l.b.ends(1, WcStatus::MW_BIND_ERR)?;
    l.b.reaches(mu_verbs::QpState::Err)
}

fn of_another_queue_pair<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let (_mw, _mr, place) = bound(&mut l, Access::REMOTE_WRITE)?;
    // Another connection between the same domains.
    let (a, b) = (
        s.end_in(&s.a, &l.a.pd, &l.a.memory, &l.cfg)?,
        s.end_in(&s.b, &l.b.pd, &l.b.memory, &l.cfg)?,
    );
    let mut other = Link { a, b, cfg: l.cfg };
    other.connect()?;
    other.works()?;
    other.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(1, AT, 8, place, SIGNALED)
    })?;
    l.a.write(2, AT, 8, place, SIGNALED)?;
    l.a.done(2)
        .context("through the window's own queue pair")
        .map(drop)
}

fn invalidation_of_a_wrong_key<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let (_mw, _mr, place) = bound(&mut l, Access::REMOTE_WRITE)?;
    let status = invalidate(&mut l.b, place.rkey ^ (1 << 16))?;
    ensure!(
        !status.is_success(),
        "a key that does not exist was invalidated"
    );
    Ok(())
}

fn failed_bind_fails_the_queue_pair<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let mr = l.b.register(l.cfg.mr)?;
    let mw = s.b.alloc_mw(&l.b.pd)?;
    let access = Access::REMOTE_WRITE;
    let op = SendOp::BindMw {
        mw: &mw,
        rkey: next_rkey(mw.rkey()),
        mr: &mr,
        offset: 0,
        len: 64,
        access,
    };
    l.b.post(1, op, SIGNALED)?;
    l.b.write(2, AT, 8, l.a.at(AT), SIGNALED)?;
    l.b.ends(1, WcStatus::MW_BIND_ERR)?;
    l.b.ends(2, WcStatus::WR_FLUSH_ERR)?;
    l.b.reaches(mu_verbs::QpState::Err)
}

fn deallocation_ends_it<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let (mw, mr, place) = bound(&mut l, Access::REMOTE_WRITE)?;
    mw.close()?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(1, AT, 8, place, SIGNALED)
    })?;
    mr.close().context("closing the region after its window")
}

/// `ibv_dereg_mr(3)` fails while a window is bound to the region; at any rate the window must not outlive it.
fn region_in_use<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let (mw, mr, place) = bound(&mut l, Access::REMOTE_WRITE)?;
    match mr.close() {
        Err(_) => {
            l.a.write(1, AT, 8, place, SIGNALED)?;
            l.a.done(1)
                .context("the region was not closed, so its window stays")?;
        }
        Ok(()) => bail!("a region was closed under its window"),
    }
    mw.close()?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(2, AT, 8, place, SIGNALED)
    })
}

fn two_on_one_region<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let (_one, mr, first) = bound(&mut l, Access::REMOTE_WRITE)?;
    let two = s.b.alloc_mw(&l.b.pd)?;
    let status = bind(&mut l.b, &two, &mr, (AT, 64), Access::REMOTE_WRITE)?;
    ensure!(
        status.is_success() && two.rkey() != first.rkey,
        "the second bind ended with {status}"
    );
    let second = RemoteAddr {
        rkey: two.rkey(),
        ..first
    };
    ensure!(
        invalidate(&mut l.b, first.rkey)?.is_success(),
        "the first cannot be invalidated"
    );
    l.a.write(1, AT, 8, second, SIGNALED)?;
    l.a.done(1)?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(2, AT, 8, first, SIGNALED)
    })
}

/// The key may be sent behind the bind without waiting for its completion (`ibv_bind_mw(3)`).
fn bind_is_ordered_with_sends<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = link(s)?;
    let mr = l.b.register(bindable(&l))?;
    let mw = s.b.alloc_mw(&l.b.pd)?;
    let (rkey, access) = (next_rkey(mw.rkey()), Access::REMOTE_WRITE);
    l.a.recv(1, 64, WORD)?;
    l.b.post(
        2,
        SendOp::BindMw {
            mw: &mw,
            rkey,
            mr: &mr,
            offset: AT,
            len: 64,
            access,
        },
        UNSIGNALED,
    )?;
    l.b.set_word(128, rkey.into());
    l.b.send(3, 128, WORD, None, SIGNALED)?;
    l.a.receives(1, WcStatus::SUCCESS)?;
    let place = RemoteAddr {
        addr: mr.addr() + AT as u64,
        rkey: u32::try_from(l.a.word(64))?,
    };
    l.a.write(4, AT, 64, place, SIGNALED)?;
    l.a.done(4)?;
    l.b.done(3).map(drop)
}

fn unsupported<C: Context>(s: &Setup<C>) -> Result<()> {
    if s.caps().memory_windows {
        return skip("there are windows");
    }
    let pd = s.b.alloc_pd()?;
    match s.b.alloc_mw(&pd) {
        Err(e @ Error::Unsupported { .. }) => ensure!(e.errno() == 95, "errno {}", e.errno()),
        Err(e) => bail!("a device without windows says {e}"),
        Ok(_) => bail!("a device without windows gave one"),
    }
    Ok(())
}
