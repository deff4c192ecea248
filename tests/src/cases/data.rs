//! Every operation moves exactly its bytes to exactly its place.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mu_verbs::{
    Context, Mtu, Payload, Placement, QueuePair, RecvWr, SendOp, SendWr, Sge, WORD, WcOpcode,
    WcStatus,
};

use crate::harness::{AT, Link, SIGNALED, Setup, UNSIGNALED, kind, pattern, skip, until};

super::table!(data:
    write_sizes,
    write_inline_sizes,
    write_imm_sizes,
    read_sizes,
    send_sizes,
    send_inline_sizes,
    send_imm_sizes,
    write_unaligned,
    read_unaligned,
    send_unaligned,
    write_gathers,
    send_gathers,
    read_scatters,
    recv_scatters,
    empty_pieces_are_skipped,
    write_every_mtu,
    read_every_mtu,
    send_every_mtu,
    imm_extremes,
    imm_without_bytes,
    zero_length_needs_no_key,
    inline_bytes_are_free_at_once,
    inline_unaligned,
    compare_swap_succeeds,
    compare_swap_fails,
    fetch_add_returns_the_old,
    fetch_add_wraps,
    atomics_keep_their_neighbours,
    words_are_never_torn,
    placement_is_as_stated,
);

/// Memory that the largest size fits in.
const BIG: usize = (1 << 20) + (64 << 10);

/// One WRITE checked to the byte.
fn write_one<C: Context>(l: &mut Link<C>, from: usize, to: usize, len: usize) -> Result<()> {
    let source = l.a.scribble(len as u64);
    let mut want = l.b.scribble(!(len as u64));
    want[to..to + len].copy_from_slice(&source[from..from + len]);
    l.a.write(1, from, len, l.b.at(to), SIGNALED)?;
    kind(&l.a.done(1)?, WcOpcode::RDMA_WRITE)?;
    l.b.comes_to_hold(&want)?;
    l.a.holds(&source).context("the source changed")
}

/// One READ checked to the byte.
fn read_one<C: Context>(l: &mut Link<C>, from: usize, to: usize, len: usize) -> Result<()> {
    let source = l.b.scribble(len as u64);
    let mut want = l.a.scribble(!(len as u64));
    want[to..to + len].copy_from_slice(&source[from..from + len]);
    l.a.read(1, to, len, l.b.at(from))?;
    let c = l.a.done(1)?;
    kind(&c, WcOpcode::RDMA_READ)?;
    l.a.holds(&want)?;
    l.b.holds(&source).context("the source changed")
}

/// One SEND into a receive with room to spare, checked to the byte.
fn send_one<C: Context>(
    l: &mut Link<C>,
    from: usize,
    to: usize,
    len: usize,
    imm: Option<u32>,
) -> Result<()> {
    let source = l.a.scribble(len as u64);
    let mut want = l.b.scribble(!(len as u64));
    want[to..to + len].copy_from_slice(&source[from..from + len]);
    l.b.recv(2, to, len + 24)?;
    l.a.send(1, from, len, imm, SIGNALED)?;
    kind(&l.a.done(1)?, WcOpcode::SEND)?;
    let c = l.b.receives(2, WcStatus::SUCCESS)?;
    kind(&c, WcOpcode::RECV)?;
    ensure!(c.byte_len as usize == len, "byte_len {}", c.byte_len);
    ensure!(
        c.imm_data == imm,
        "immediate data {:?} instead of {imm:?}",
        c.imm_data
    );
    l.b.holds(&want)
}

fn each_size<C: Context>(
    s: &Setup<C>,
    one: impl Fn(&mut Link<C>, usize) -> Result<()>,
) -> Result<()> {
    let mut l = s.link_with(|cfg| cfg.bytes = BIG)?;
    for len in s.sizes() {
        one(&mut l, len).with_context(|| format!("{len} bytes"))?;
    }
    Ok(())
}

fn write_sizes<C: Context>(s: &Setup<C>) -> Result<()> {
    each_size(s, |l, len| write_one(l, AT, AT, len))
}

fn read_sizes<C: Context>(s: &Setup<C>) -> Result<()> {
    each_size(s, |l, len| read_one(l, AT, AT, len))
}

fn send_sizes<C: Context>(s: &Setup<C>) -> Result<()> {
    each_size(s, |l, len| send_one(l, AT, AT, len, None))
}

fn send_imm_sizes<C: Context>(s: &Setup<C>) -> Result<()> {
    each_size(s, |l, len| {
        send_one(l, AT, AT, len, Some(0x1234_0000 | len as u32))
    })
}

fn write_imm_sizes<C: Context>(s: &Setup<C>) -> Result<()> {
    each_size(s, |l, len| {
        let source = l.a.scribble(len as u64);
        let mut want = l.b.scribble(!(len as u64));
        want[AT..AT + len].copy_from_slice(&source[AT..AT + len]);
        // The receive has a buffer that must not be touched.
        l.b.recv(2, 0, 64)?;
        l.a.write_imm(1, AT, len, l.b.at(AT), 0xfeed_0000 | len as u32)?;
        kind(&l.a.done(1)?, WcOpcode::RDMA_WRITE)?;
        let c = l.b.receives(2, WcStatus::SUCCESS)?;
        kind(&c, WcOpcode::RECV_RDMA_WITH_IMM)?;
        ensure!(
            c.imm_data == Some(0xfeed_0000 | len as u32),
            "immediate data {:?}",
            c.imm_data
        );
        ensure!(c.byte_len as usize == len, "byte_len {}", c.byte_len);
        l.b.holds(&want)
    })
}

/// A link whose inline limit is raised to 64 where the device has more.
fn inline_sizes(limit: usize) -> impl Iterator<Item = usize> {
    [0, 1, 3, 7, 8, 9, 63, 64, 65, 127, 256, limit]
        .into_iter()
        .filter(move |len| *len <= limit)
}

fn write_inline_sizes<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link_with(|cfg| cfg.cap.max_inline_data = s.caps().max_inline_data)?;
    for len in inline_sizes(l.a.qp.cap().max_inline_data as usize) {
        let data = pattern(len as u64, len);
        let mut want = l.b.scribble(!(len as u64));
        want[AT..AT + len].copy_from_slice(&data);
        l.a.write_inline(1, &data, l.b.at(AT), SIGNALED)?;
        l.a.done(1)?;
        l.b.comes_to_hold(&want)
            .with_context(|| format!("{len} bytes"))?;
    }
    Ok(())
}

fn send_inline_sizes<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link_with(|cfg| cfg.cap.max_inline_data = s.caps().max_inline_data)?;
    for len in inline_sizes(l.a.qp.cap().max_inline_data as usize) {
        let data = pattern(len as u64, len);
        let mut want = l.b.scribble(!(len as u64));
        want[AT..AT + len].copy_from_slice(&data);
        l.b.recv(2, AT, len + 8)?;
        l.a.post(
            1,
            SendOp::Send {
                payload: Payload::Inline(&data),
                imm: None,
            },
            SIGNALED,
        )?;
        l.a.done(1)?;
        let c = l.b.receives(2, WcStatus::SUCCESS)?;
        ensure!(
            c.byte_len as usize == len,
            "byte_len {} for {len} bytes",
            c.byte_len
        );
        l.b.holds(&want).with_context(|| format!("{len} bytes"))?;
    }
    Ok(())
}

/// Every combination of the low three bits of both addresses, with lengths around words.
fn each_alignment(one: impl FnMut(usize, usize, usize) -> Result<()>) -> Result<()> {
    let mut one = one;
    for from in 0..WORD {
        for to in 0..WORD {
            for len in [1, 7, 8, 9, 24, 61] {
                one(AT + from, AT + 512 + to, len)
                    .with_context(|| format!("{len} bytes, {from} to {to} off the word"))?;
            }
        }
    }
    Ok(())
}

fn write_unaligned<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link_with(|cfg| cfg.bytes = 8192)?;
    each_alignment(|from, to, len| write_one(&mut l, from, to, len))
}

fn read_unaligned<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link_with(|cfg| cfg.bytes = 8192)?;
    each_alignment(|from, to, len| read_one(&mut l, from, to, len))
}

fn send_unaligned<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link_with(|cfg| cfg.bytes = 8192)?;
    each_alignment(|from, to, len| send_one(&mut l, from, to, len, None))
}

/// Pieces of odd lengths at odd places, as many as the queue pair takes; together more than a packet.
fn pieces(count: usize, mtu: usize) -> Vec<(usize, usize)> {
    let lens = [5, mtu - 3, 64, 131];
    (0..count)
        .map(|i| (AT + 3 * i + i * 2 * mtu, lens[i % lens.len()]))
        .collect()
}

fn write_gathers<C: Context>(s: &Setup<C>) -> Result<()> {
    gathers(s, false)
}

fn send_gathers<C: Context>(s: &Setup<C>) -> Result<()> {
    gathers(s, true)
}

fn gathers<C: Context>(s: &Setup<C>, send: bool) -> Result<()> {
    let count = s.caps().max_sge.min(4);
    if count < 2 {
        return skip("one piece a request");
    }
    let mut l = s.link_with(|cfg| cfg.cap.max_send_sge = count)?;
    for used in 2..=count as usize {
        let source = l.a.scribble(used as u64);
        let mut want = l.b.scribble(!(used as u64));
        let mut to = AT + 1;
        let parts = pieces(used, s.traits.mtu.bytes());
        for (from, len) in &parts {
            want[to..to + len].copy_from_slice(&source[*from..from + len]);
            to += len;
        }
        let local: Vec<_> = parts
            .iter()
            .map(|(from, len)| Sge::new(&l.a.mr, *from, *len))
            .collect();
        let payload = Payload::Regions(&local);
        let op = if send {
            l.b.recv(2, AT + 1, to - AT)?;
            SendOp::Send { payload, imm: None }
        } else {
            SendOp::Write {
                payload,
                remote: l.b.at(AT + 1),
                imm: None,
            }
        };
        l.a.qp.post_send(&SendWr {
            wr_id: 1,
            op,
            flags: SIGNALED,
        })?;
        l.a.done(1)?;
        if send {
            l.b.receives(2, WcStatus::SUCCESS)?;
        }
        l.b.comes_to_hold(&want)
            .with_context(|| format!("{used} pieces"))?;
    }
    Ok(())
}

fn read_scatters<C: Context>(s: &Setup<C>) -> Result<()> {
    let count = s.caps().max_sge.min(4);
    if count < 2 {
        return skip("one piece a request");
    }
    let mut l = s.link_with(|cfg| cfg.cap.max_send_sge = count)?;
    for used in 2..=count as usize {
        let source = l.b.scribble(used as u64);
        let mut want = l.a.scribble(!(used as u64));
        let mut from = AT + 1;
        let parts = pieces(used, s.traits.mtu.bytes());
        for (to, len) in &parts {
            want[*to..to + len].copy_from_slice(&source[from..from + len]);
            from += len;
        }
        let local: Vec<_> = parts
            .iter()
            .map(|(to, len)| Sge::new(&l.a.mr, *to, *len))
            .collect();
        let op = SendOp::Read {
            local: &local,
            remote: l.b.at(AT + 1),
        };
        l.a.qp.post_send(&SendWr {
            wr_id: 1,
            op,
            flags: SIGNALED,
        })?;
        l.a.done(1)?;
        l.a.holds(&want).with_context(|| format!("{used} pieces"))?;
    }
    Ok(())
}

fn recv_scatters<C: Context>(s: &Setup<C>) -> Result<()> {
    let count = s.caps().max_recv_sge.min(4);
    if count < 2 {
        return skip("one piece a receive");
    }
    let mut l = s.link_with(|cfg| cfg.cap.max_recv_sge = count)?;
    let source = l.a.scribble(1);
    let mut want = l.b.scribble(2);
    let parts = pieces(count as usize, s.traits.mtu.bytes());
    let mut from = AT;
    for (to, len) in &parts {
        want[*to..to + len].copy_from_slice(&source[from..from + len]);
        from += len;
    }
    let local: Vec<_> = parts
        .iter()
        .map(|(to, len)| Sge::new(&l.b.mr, *to, *len))
        .collect();
    l.b.qp.post_recv(&RecvWr {
        wr_id: 2,
        local: &local,
    })?;
    l.a.send(1, AT, from - AT, None, SIGNALED)?;
    l.a.done(1)?;
    l.b.receives(2, WcStatus::SUCCESS)?;
    l.b.holds(&want)
}

fn empty_pieces_are_skipped<C: Context>(s: &Setup<C>) -> Result<()> {
    if s.caps().max_sge < 3 {
        return skip("fewer than three pieces a request");
    }
    let mut l = s.link_with(|cfg| cfg.cap.max_send_sge = 3)?;
    let source = l.a.scribble(1);
    let mut want = l.b.scribble(2);
    want[AT..AT + 5].copy_from_slice(&source[AT..AT + 5]);
    want[AT + 5..AT + 8].copy_from_slice(&source[100..103]);
    let local = [
        Sge::new(&l.a.mr, AT, 5),
        Sge::new(&l.a.mr, 77, 0),
        Sge::new(&l.a.mr, 100, 3),
    ];
    let op = SendOp::Write {
        payload: Payload::Regions(&local),
        remote: l.b.at(AT),
        imm: None,
    };
    l.a.qp.post_send(&SendWr {
        wr_id: 1,
        op,
        flags: SIGNALED,
    })?;
    l.a.done(1)?;
    l.b.comes_to_hold(&want)?;
    // No piece at all is a message of no bytes.
    let op = SendOp::Write {
        payload: Payload::Regions(&[]),
        remote: l.b.at(AT),
        imm: None,
    };
    l.a.post(2, op, SIGNALED)?;
    l.a.done(2)?;
    l.b.holds(&want)
}

fn each_mtu<C: Context>(
    s: &Setup<C>,
    one: impl Fn(&mut Link<C>, usize) -> Result<()>,
) -> Result<()> {
    for mtu in [Mtu::B256, Mtu::B512, Mtu::B1024, Mtu::B2048, Mtu::B4096] {
        if mtu > s.caps().max_mtu || mtu > s.a.caps().max_mtu {
            continue;
        }
        let mut l = s.link_with(|cfg| cfg.mtu = mtu)?;
        let bytes = mtu.bytes();
        for len in [1, bytes - 1, bytes, bytes + 1, 3 * bytes + 5] {
            one(&mut l, len).with_context(|| format!("{len} bytes, path MTU {bytes}"))?;
        }
    }
    Ok(())
}

fn write_every_mtu<C: Context>(s: &Setup<C>) -> Result<()> {
    each_mtu(s, |l, len| write_one(l, AT, AT + 3, len))
}

fn read_every_mtu<C: Context>(s: &Setup<C>) -> Result<()> {
    each_mtu(s, |l, len| read_one(l, AT + 3, AT, len))
}

fn send_every_mtu<C: Context>(s: &Setup<C>) -> Result<()> {
    each_mtu(s, |l, len| send_one(l, AT, AT + 3, len, Some(7)))
}

fn imm_extremes<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    for imm in [0, 1, 0x0102_0304, 0x8000_0000, u32::MAX] {
        l.b.recv(2, 0, 0)?;
        l.a.write_imm(1, AT, 8, l.b.at(AT), imm)?;
        l.a.done(1)?;
        let c = l.b.receives(2, WcStatus::SUCCESS)?;
        ensure!(
            c.imm_data == Some(imm),
            "sent {imm:#x} with a WRITE, got {:?}",
            c.imm_data
        );
        l.b.recv(3, 0, 16)?;
        l.a.send(1, AT, 8, Some(imm), SIGNALED)?;
        l.a.done(1)?;
        let c = l.b.receives(3, WcStatus::SUCCESS)?;
        ensure!(
            c.imm_data == Some(imm),
            "sent {imm:#x} with a SEND, got {:?}",
            c.imm_data
        );
    }
    Ok(())
}

fn imm_without_bytes<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let want = l.b.scribble(3);
    l.b.recv(2, 0, 0)?;
    l.a.write_imm(1, 0, 0, l.b.at(AT), 99)?;
    l.a.done(1)?;
    let c = l.b.receives(2, WcStatus::SUCCESS)?;
    ensure!((c.imm_data, c.byte_len) == (Some(99), 0), "got {c:?}");
    l.b.holds(&want)
}

/// C9-88: a request of no bytes touches no memory, so its key and address are not checked.
fn zero_length_needs_no_key<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let want = l.b.scribble(1);
    let mut nowhere = l.b.at(0);
    nowhere.addr = 1;
    nowhere.rkey ^= 0x5a5a_5a5a;
    l.a.write(1, 0, 0, nowhere, SIGNALED)?;
    l.a.done(1)?;
    l.a.read(2, 0, 0, nowhere)?;
    l.a.done(2)?;
    l.b.holds(&want)?;
    l.works()
}

fn inline_bytes_are_free_at_once<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let mut want = l.b.scribble(1);
    let mut bytes = [0_u8; 16];
    for i in 0..32_usize {
        bytes.fill(i as u8 + 1);
        let at = AT + 16 * i;
        want[at..at + 16].copy_from_slice(&bytes);
        let flags = if i == 31 { SIGNALED } else { UNSIGNALED };
        l.a.write_inline(i as u64, &bytes, l.b.at(at), flags)?;
        bytes.fill(0xee);
    }
    l.a.done(31)?;
    l.b.comes_to_hold(&want)
}

fn inline_unaligned<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link_with(|cfg| cfg.bytes = 8192)?;
    let data = pattern(9, 48);
    for from in 0..WORD {
        for to in 0..WORD {
            for len in [1, 7, 8, 9, 33] {
                let mut want = l.b.scribble((from * 64 + to) as u64);
                want[AT + to..AT + to + len].copy_from_slice(&data[from..from + len]);
                l.a.write_inline(1, &data[from..from + len], l.b.at(AT + to), SIGNALED)?;
                l.a.done(1)?;
                l.b.comes_to_hold(&want)
                    .with_context(|| format!("{len} bytes, {from} to {to} off the word"))?;
            }
        }
    }
    Ok(())
}

fn compare_swap_succeeds<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_atomics()?;
    let mut l = s.link()?;
    for (old, new) in [(0, u64::MAX), (u64::MAX, 0), (0x0123_4567_89ab_cdef, 1)] {
        l.b.set_word(AT, old);
        l.a.set_word(64, 0x7777);
        l.a.compare_swap(1, 64, l.b.at(AT), old, new)?;
        kind(&l.a.done(1)?, WcOpcode::COMP_SWAP)?;
        ensure!(
            l.a.word(64) == old,
            "returned {:#x}, the word was {old:#x}",
            l.a.word(64)
        );
        let there = until(s.traits.limit, || (l.b.word(AT) == new).then_some(()));
        ensure!(
            there.is_some(),
            "the word is {:#x}, not {new:#x}",
            l.b.word(AT)
        );
    }
    Ok(())
}

fn compare_swap_fails<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_atomics()?;
    let mut l = s.link()?;
    for (old, guess) in [
        (0, 1),
        (u64::MAX, u64::MAX - 1),
        (1 << 63, 0),
        (0x1_0000_0000, 0),
    ] {
        l.b.set_word(AT, old);
        l.a.compare_swap(1, 64, l.b.at(AT), guess, 42)?;
        l.a.done(1)?;
        ensure!(
            l.a.word(64) == old,
            "returned {:#x}, the word is {old:#x}",
            l.a.word(64)
        );
        ensure!(
            l.b.word(AT) == old,
            "a failed compare-and-swap changed the word to {:#x}",
            l.b.word(AT)
        );
    }
    Ok(())
}

fn fetch_add_returns_the_old<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_atomics()?;
    let mut l = s.link()?;
    l.b.set_word(AT, 5);
    let mut expected = 5_u64;
    for add in [1, 0, 1 << 32, 0xffff_ffff] {
        l.a.fetch_add(1, 64, l.b.at(AT), add)?;
        kind(&l.a.done(1)?, WcOpcode::FETCH_ADD)?;
        ensure!(
            l.a.word(64) == expected,
            "returned {:#x}, the word was {expected:#x}",
            l.a.word(64)
        );
        expected += add;
    }
    ensure!(
        until(s.traits.limit, || (l.b.word(AT) == expected).then_some(())).is_some(),
        "{:#x}",
        l.b.word(AT)
    );
    Ok(())
}

fn fetch_add_wraps<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_atomics()?;
    let mut l = s.link()?;
    l.b.set_word(AT, u64::MAX - 1);
    l.a.fetch_add(1, 64, l.b.at(AT), 5)?;
    l.a.done(1)?;
    ensure!(l.a.word(64) == u64::MAX - 1, "returned {:#x}", l.a.word(64));
    ensure!(
        until(s.traits.limit, || (l.b.word(AT) == 3).then_some(())).is_some(),
        "{:#x}",
        l.b.word(AT)
    );
    Ok(())
}

fn atomics_keep_their_neighbours<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_atomics()?;
    let mut l = s.link()?;
    let mut want = l.b.scribble(1);
    let mut back = l.a.scribble(2);
    let old = l.b.word(AT);
    want[AT..AT + 8].copy_from_slice(&old.wrapping_add(1).to_le_bytes());
    back[64..72].copy_from_slice(&old.to_le_bytes());
    l.a.fetch_add(1, 64, l.b.at(AT), 1)?;
    l.a.done(1)?;
    l.b.comes_to_hold(&want)?;
    l.a.holds(&back)
}

/// An aligned WRITE of 8 bytes is one store to a reader.
fn words_are_never_torn<C: Context>(s: &Setup<C>) -> Result<()> {
    if s.caps().placement == Placement::Unknown {
        return skip("the device promises nothing about placement");
    }
    let mut l = s.link()?;
    let (zeros, ones) = (0_u64, u64::MAX);
    l.b.set_word(AT, zeros);
    let stop = AtomicBool::new(false);
    let remote = l.b.at(AT);
    let (memory, a) = (&l.b.memory, &mut l.a);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<u32> {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) || rounds < 1000 {
                let value = if rounds % 2 == 0 { ones } else { zeros };
                a.write_inline(1, &value.to_le_bytes(), remote, SIGNALED)?;
                a.done(1)?;
                rounds += 1;
            }
            Ok(rounds)
        });
        let torn = (0..200_000)
            .map(|_| memory.load(AT / WORD))
            .find(|w| *w != zeros && *w != ones);
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer does not panic")?;
        ensure!(
            torn.is_none(),
            "a reader saw half a word: {:#x}",
            torn.unwrap_or(0)
        );
        Ok(())
    })
}

/// Who sees the last word of a WRITE sees all before it, where the device says so.
fn placement_is_as_stated<C: Context>(s: &Setup<C>) -> Result<()> {
    if s.caps().placement != Placement::WholeMessage {
        return skip(format!("placement is {:?}", s.caps().placement));
    }
    // One packet, as long as can be: the time in which its middle is missing is a part of what one packet takes.
    let mtu = s.caps().max_mtu.min(s.a.caps().max_mtu);
    let mut l = s.link_with(|cfg| cfg.mtu = mtu)?;
    let words = mtu.bytes() / WORD;
    let remote = l.b.at(AT);
    let (memory, a) = (&l.b.memory, &mut l.a);
    let word = |i: usize| memory.load(AT / WORD + i);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<()> {
            // A gap shows in one of some ten thousand writes.
            let end = Instant::now() + Duration::from_millis(400);
            for round in 1.. {
                if Instant::now() > end {
                    break;
                }
                (0..words).for_each(|i| a.set_word(AT + WORD * i, round));
                a.write(round, AT, words * WORD, remote, SIGNALED)?;
                a.done(round)?;
            }
            Ok(())
        });
        // Looks from the end to the start, so that it meets what is placed last first; mostly at the nearest words
        // only, since looking at all of them takes as long as many writes. No pause: a gap lasts but a moment.
        let mut bad = None;
        let mut looks = 0_usize;
        while bad.is_none() && !writer.is_finished() {
            looks += 1;
            let far = if looks.is_multiple_of(16) { words } else { 32 };
            let last = word(words - 1);
            let gap = (words - far..words)
                .rev()
                .map(|i| (i, word(i)))
                .find(|(_, seen)| *seen < last);
            bad = gap.map(|gap| (last, gap));
        }
        writer.join().expect("the writer does not panic")?;
        if let Some((last, (i, seen))) = bad {
            bail!("the last word was of write {last}, word {i} of {words} still of write {seen}");
        }
        Ok(())
    })
}
