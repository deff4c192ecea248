//! Registrations: rights, ranges, keys, many of one memory, ended one by one.

use anyhow::{Context as _, Result, bail, ensure};
use mu_verbs::{Access, Context, Error, MemoryRegion, WORD, WcStatus};

use crate::harness::{AT, SIGNALED, Setup, skip};

super::table!(regions:
    memory_is_zeroed_whole_pages,
    memory_of_any_size,
    accessors_say_what_was_asked,
    bad_rights,
    bad_ranges,
    ranges_of_words,
    ranges_of_bytes,
    two_with_different_rights,
    keys_differ,
    many_of_one_memory,
    ending_one_leaves_the_others,
    dropping_ends_it,
    reregister_keeps_the_key,
    reregister_takes_rights_away,
    reregister_unsupported,
    reregister_bad_rights,
    of_another_context,
    ends_under_a_queue_pair,
);

fn memory_is_zeroed_whole_pages<C: Context>(s: &Setup<C>) -> Result<()> {
    for bytes in [1, 4096, 4097, 1 << 20] {
        let memory = s.a.alloc_memory(bytes)?;
        ensure!(
            memory.len() >= bytes && memory.len().is_multiple_of(4096),
            "{} for {bytes} bytes",
            memory.len()
        );
        ensure!(
            memory.addr().is_multiple_of(4096),
            "it starts at {:#x}",
            memory.addr()
        );
        ensure!(
            (0..memory.len() / WORD).all(|i| memory.load(i) == 0),
            "it is not zeroed"
        );
    }
    Ok(())
}

fn memory_of_any_size<C: Context>(s: &Setup<C>) -> Result<()> {
    for bytes in [0, usize::MAX, usize::MAX - 4095, 1 << 60] {
        if let Ok(memory) = s.a.alloc_memory(bytes) {
            ensure!(
                bytes == 0 && !memory.is_empty(),
                "{} bytes were had of {bytes}",
                memory.len()
            );
        }
    }
    Ok(())
}

fn accessors_say_what_was_asked<C: Context>(s: &Setup<C>) -> Result<()> {
    let end = s.end(&s.a, &s.cfg())?;
    let access = Access::LOCAL_WRITE | Access::REMOTE_READ;
    let mr = end.register_range(4096..12288, access)?;
    ensure!(mr.range() == (4096..12288), "{:?}", mr.range());
    ensure!(mr.access() == access, "{:?}", mr.access());
    ensure!(mr.memory().addr() == end.memory.addr(), "another memory");
    ensure!(
        mr.remote(16).addr == mr.addr() + 16 && mr.remote(16).rkey == mr.rkey(),
        "{:?}",
        mr.remote(16)
    );
    ensure!(
        mr.addr() == end.mr.addr() + 4096,
        "it starts at {:#x}, the whole at {:#x}",
        mr.addr(),
        end.mr.addr()
    );
    Ok(())
}

/// `ibv_reg_mr(3)`: remote writes and atomics need the local right.
fn bad_rights<C: Context>(s: &Setup<C>) -> Result<()> {
    let end = s.end(&s.a, &s.cfg())?;
    for access in [
        Access::REMOTE_WRITE,
        Access::REMOTE_ATOMIC,
        Access::REMOTE_WRITE | Access::REMOTE_READ,
        // Relaxed ordering, and a bit that means nothing yet.
        Access::LOCAL_WRITE | Access(1 << 20),
        Access::LOCAL_WRITE | Access(1 << 31),
    ] {
        match s.a.reg_mr(&end.pd, &end.memory, 0..4096, access) {
            Ok(_) => bail!("{access:?} was registered"),
            Err(e) => ensure!(e.errno() == 22, "{access:?}: errno {}: {e}", e.errno()),
        }
    }
    Ok(())
}

fn bad_ranges<C: Context>(s: &Setup<C>) -> Result<()> {
    let end = s.end(&s.a, &s.cfg())?;
    let len = end.memory.len();
    #[allow(
        clippy::reversed_empty_ranges,
        reason = "a reversed range is one of the things to refuse"
    )]
    let bad = [
        0..len + 1,
        len..len + 1,
        len + 4096..len + 8192,
        4096..0,
        0..usize::MAX,
        usize::MAX - 1..usize::MAX,
    ];
    for range in bad {
        match s
            .a
            .reg_mr(&end.pd, &end.memory, range.clone(), Access::LOCAL_WRITE)
        {
            Ok(_) => bail!("{range:?} of {len} bytes was registered"),
            Err(e) => ensure!(e.errno() == 22, "{range:?}: errno {}: {e}", e.errno()),
        }
    }
    Ok(())
}

/// A range need not be whole pages.
fn ranges_of_words<C: Context>(s: &Setup<C>) -> Result<()> {
    ranges(
        s,
        &[(8, 8), (4096, 8), (4088, 16), (4104, 4096), (5000, 3000)],
    )
}

/// Nor need it be whole words.
fn ranges_of_bytes<C: Context>(s: &Setup<C>) -> Result<()> {
    if !s.traits.byte_ranges {
        return skip("the provider registers whole words only");
    }
    ranges(s, &[(4100, 3), (1, 4095), (4095, 2), (5001, 2999), (7, 1)])
}

/// Registered, filled to the last byte, and not one byte more.
fn ranges<C: Context>(s: &Setup<C>, ranges: &[(usize, usize)]) -> Result<()> {
    let mut l = s.link()?;
    for &(from, len) in ranges {
        let mr =
            l.b.register_range(from..from + len, l.cfg.mr)
                .with_context(|| format!("{len} bytes at {from}"))?;
        let source = l.a.scribble(len as u64);
        let mut want = l.b.scribble(from as u64);
        want[from..from + len].copy_from_slice(&source[AT..AT + len]);
        l.a.write(1, AT, len, mr.remote(0), SIGNALED)?;
        l.a.done(1)?;
        l.b.comes_to_hold(&want)
            .with_context(|| format!("{len} bytes at {from}"))?;
        l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
            a.write(2, AT, len + 1, mr.remote(0), SIGNALED)
        })?;
        l.reconnect()?;
    }
    Ok(())
}

fn two_with_different_rights<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let reader = l.b.register(Access::REMOTE_READ)?;
    let writer = l.b.register(Access::LOCAL_WRITE | Access::REMOTE_WRITE)?;
    l.a.set_word(64, 31);
    l.a.write(1, 64, WORD, writer.remote(AT), SIGNALED)?;
    l.a.done(1)?;
    l.a.read(2, 128, WORD, reader.remote(AT))?;
    l.a.done(2)?;
    ensure!(
        l.a.word(128) == 31,
        "read {} through the other registration",
        l.a.word(128)
    );
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(3, 64, WORD, reader.remote(AT), SIGNALED)
    })?;
    l.reconnect()?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.read(4, 64, WORD, writer.remote(AT))
    })
}

fn keys_differ<C: Context>(s: &Setup<C>) -> Result<()> {
    let end = s.end(&s.a, &s.cfg())?;
    let all: Vec<_> = (0..50)
        .map(|_| end.register(end.mr.access()))
        .collect::<Result<_>>()?;
    for keys in [
        all.iter().map(C::Mr::rkey).collect::<Vec<_>>(),
        all.iter().map(C::Mr::lkey).collect(),
    ] {
        let mut distinct = keys.clone();
        distinct.sort_unstable();
        distinct.dedup();
        ensure!(
            distinct.len() == keys.len(),
            "50 registrations have {} keys",
            distinct.len()
        );
    }
    Ok(())
}

fn many_of_one_memory<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let all: Vec<_> = (0..20)
        .map(|_| l.b.register(l.cfg.mr))
        .collect::<Result<_>>()?;
    for (i, mr) in all.iter().enumerate() {
        l.a.set_word(64, i as u64 + 1);
        l.a.write(1, 64, WORD, mr.remote(AT + WORD * i), SIGNALED)?;
        l.a.done(1)?;
    }
    ensure!(
        (0..20).all(|i| l.b.word(AT + WORD * i) == i as u64 + 1),
        "a word is missing"
    );
    Ok(())
}

fn ending_one_leaves_the_others<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let (one, two) = (l.b.register(l.cfg.mr)?, l.b.register(l.cfg.mr)?);
    let gone = one.remote(AT);
    one.close()?;
    l.a.write(1, AT, 8, two.remote(AT), SIGNALED)?;
    l.a.done(1)?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(2, AT, 8, gone, SIGNALED)
    })?;
    l.reconnect()?;
    l.a.write(3, AT, 8, two.remote(AT), SIGNALED)?;
    l.a.done(3)?;
    l.works()
}

fn dropping_ends_it<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let mr = l.b.register(l.cfg.mr)?;
    let gone = mr.remote(AT);
    drop(mr);
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(1, AT, 8, gone, SIGNALED)
    })
}

fn needs_reregister<C: Context>(s: &Setup<C>) -> Result<()> {
    if s.caps().rereg_mr {
        Ok(())
    } else {
        skip("no ibv_rereg_mr")
    }
}

fn reregister_keeps_the_key<C: Context>(s: &Setup<C>) -> Result<()> {
    needs_reregister(s)?;
    let mut l = s.link()?;
    let mut mr = l.b.register(Access::REMOTE_READ)?;
    let keys = (mr.rkey(), mr.lkey(), mr.addr());
    for access in [l.cfg.mr, Access::REMOTE_READ, Access::LOCAL_WRITE, l.cfg.mr] {
        mr.reregister(access)?;
        ensure!(
            (mr.rkey(), mr.lkey(), mr.addr()) == keys,
            "the keys changed"
        );
        ensure!(
            mr.access() == access,
            "the rights are {:?}, not {access:?}",
            mr.access()
        );
    }
    l.a.write(1, AT, 8, mr.remote(AT), SIGNALED)?;
    l.a.done(1).map(drop)
}

fn reregister_takes_rights_away<C: Context>(s: &Setup<C>) -> Result<()> {
    needs_reregister(s)?;
    let mut l = s.link()?;
    let mut mr = l.b.register(l.cfg.mr)?;
    l.a.write(1, AT, 8, mr.remote(AT), SIGNALED)?;
    l.a.done(1)?;
    mr.reregister(Access::REMOTE_READ | Access::LOCAL_WRITE)?;
    l.a.read(2, AT, 8, mr.remote(AT))?;
    l.a.done(2)?;
    l.refused(WcStatus::REM_ACCESS_ERR, |a, _| {
        a.write(3, AT, 8, mr.remote(AT), SIGNALED)
    })?;
    l.reconnect()?;
    mr.reregister(l.cfg.mr)?;
    l.a.write(4, AT, 8, mr.remote(AT), SIGNALED)?;
    l.a.done(4).map(drop)
}

fn reregister_unsupported<C: Context>(s: &Setup<C>) -> Result<()> {
    if s.caps().rereg_mr {
        return skip("ibv_rereg_mr is there");
    }
    let mut l = s.link()?;
    let mut mr = l.b.register(l.cfg.mr)?;
    match mr.reregister(Access::LOCAL_WRITE) {
        Err(e @ Error::Unsupported { .. }) => ensure!(e.errno() == 95, "errno {}", e.errno()),
        other => bail!("a device without ibv_rereg_mr says {other:?}"),
    }
    ensure!(mr.access() == l.cfg.mr, "the rights are {:?}", mr.access());
    l.a.write(1, AT, 8, mr.remote(AT), SIGNALED)?;
    l.a.done(1).map(drop)
}

fn reregister_bad_rights<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let mut mr = l.b.register(l.cfg.mr)?;
    for access in [Access::REMOTE_WRITE, Access(1 << 31)] {
        ensure!(mr.reregister(access).is_err(), "{access:?} was accepted");
    }
    l.a.write(1, AT, 8, mr.remote(AT), SIGNALED)?;
    l.a.done(1).map(drop)
}

/// Memory belongs to the context that gave it, where that matters; nowhere may it lead to another's bytes.
fn of_another_context<C: Context>(s: &Setup<C>) -> Result<()> {
    let foreign = s.b.alloc_memory(4096)?;
    let pd = s.a.alloc_pd()?;
    match s.a.reg_mr(&pd, &foreign, 0..4096, Access::LOCAL_WRITE) {
        Err(e) => ensure!(e.errno() == 22, "errno {}: {e}", e.errno()),
        Ok(mr) => ensure!(
            mr.memory().addr() == foreign.addr(),
            "it registered something else"
        ),
    }
    Ok(())
}

/// A region may end while queue pairs of its domain live on.
fn ends_under_a_queue_pair<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    for _ in 0..30 {
        let mr = l.b.register(l.cfg.mr)?;
        l.a.write(1, AT, 8, mr.remote(AT), SIGNALED)?;
        l.a.done(1)?;
        mr.close()?;
    }
    l.works()
}
