//! What one request sees of those before it, and what two queue pairs see of each other.

use anyhow::{Context as _, Result, ensure};
use mu_verbs::{Context, Payload, QueuePair, SendFlags, SendOp, WORD, WcStatus};

use crate::harness::{AT, End, SIGNALED, Setup, UNSIGNALED, until};

super::table!(order:
    read_sees_the_write_before_it,
    read_sees_a_long_write_before_it,
    write_does_not_overtake_a_read,
    atomic_sees_the_write_before_it,
    read_sees_the_atomic_before_it,
    later_write_wins,
    send_tells_of_the_writes_before_it,
    imm_tells_of_the_writes_before_it,
    fence_waits_for_the_read,
    opposite_direction,
    both_directions_at_once,
    bidirectional_threads,
    two_queue_pairs_to_one_memory,
    loopback_in_one_context,
    loopback_to_itself,
    atomics_of_two_threads_add_up,
    compare_swap_locks,
);

fn read_sees_the_write_before_it<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    for round in 1..200_u64 {
        l.a.set_word(AT, round);
        l.a.write(1, AT, WORD, l.b.at(AT), UNSIGNALED)?;
        l.a.read(2, 64, WORD, l.b.at(AT))?;
        l.a.done(2)?;
        ensure!(
            l.a.word(64) == round,
            "round {round}: the READ got {}",
            l.a.word(64)
        );
    }
    Ok(())
}

fn read_sees_a_long_write_before_it<C: Context>(s: &Setup<C>) -> Result<()> {
    const LEN: usize = 20_000;
    let mut l = s.link()?;
    for round in 0..10 {
        let source = l.a.scribble(round);
        let mut want = source.clone();
        want[LEN + 1000..2 * LEN + 1000].copy_from_slice(&source[8..LEN + 8]);
        l.b.scribble(!round);
        l.a.write(1, 8, LEN, l.b.at(AT), UNSIGNALED)?;
        l.a.read(2, LEN + 1000, LEN, l.b.at(AT))?;
        l.a.done(2)?;
        l.a.holds(&want)?;
    }
    Ok(())
}

/// A READ returns what was there before a WRITE that is posted after it, with the fence between them.
fn write_does_not_overtake_a_read<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    for round in 1..100_u64 {
        l.b.set_word(AT, round);
        l.a.read(1, 64, WORD, l.b.at(AT))?;
        let new = (!round).to_le_bytes();
        l.a.write_inline(2, &new, l.b.at(AT), SIGNALED | SendFlags::FENCE)?;
        l.a.done(1)?;
        l.a.done(2)?;
        ensure!(
            l.a.word(64) == round,
            "round {round}: the READ got {:#x}",
            l.a.word(64)
        );
        let there = until(s.traits.limit, || (l.b.word(AT) == !round).then_some(()));
        ensure!(there.is_some(), "round {round}: the WRITE is not there");
    }
    Ok(())
}

fn atomic_sees_the_write_before_it<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_atomics()?;
    let mut l = s.link()?;
    for round in 1..200_u64 {
        l.a.write_inline(1, &(round << 32).to_le_bytes(), l.b.at(AT), UNSIGNALED)?;
        l.a.fetch_add(2, 64, l.b.at(AT), 1)?;
        l.a.done(2)?;
        ensure!(
            l.a.word(64) == round << 32,
            "round {round}: the atomic got {:#x}",
            l.a.word(64)
        );
    }
    Ok(())
}

fn read_sees_the_atomic_before_it<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_atomics()?;
    let mut l = s.link()?;
    l.b.set_word(AT, 0);
    for round in 1..200_u64 {
        l.a.fetch_add(1, 128, l.b.at(AT), 1)?;
        l.a.read(2, 64, WORD, l.b.at(AT))?;
        l.a.done(1)?;
        l.a.done(2)?;
        ensure!(
            l.a.word(64) == round,
            "round {round}: the READ got {}",
            l.a.word(64)
        );
    }
    Ok(())
}

fn later_write_wins<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    for round in 0..20_u64 {
        let last = u64::from(l.a.qp.cap().max_send_wr) - 1;
        for i in 0..=last {
            let value = (round << 32 | i).to_le_bytes();
            l.a.write_inline(
                i,
                &value,
                l.b.at(AT),
                if i == last { SIGNALED } else { UNSIGNALED },
            )?;
        }
        l.a.done(last)?;
        let there = until(s.traits.limit, || {
            (l.b.word(AT) == round << 32 | last).then_some(())
        });
        ensure!(
            there.is_some(),
            "the word is {:#x}, the last write was number {last}",
            l.b.word(AT)
        );
    }
    Ok(())
}

/// The receiver's completion is behind the writes that came before the message.
fn told_of_the_writes<C: Context>(s: &Setup<C>, imm: bool) -> Result<()> {
    const LEN: usize = 9000;
    let mut l = s.link()?;
    for round in 0..20_u64 {
        let source = l.a.scribble(round);
        let mut want = l.b.scribble(!round);
        want[AT..AT + LEN].copy_from_slice(&source[AT..AT + LEN]);
        l.b.recv(3, 0, 0)?;
        l.a.write(1, AT, LEN, l.b.at(AT), UNSIGNALED)?;
        if imm {
            l.a.write_imm(2, 0, 0, l.b.at(AT), 1)?;
        } else {
            l.a.send(2, 0, 0, None, SIGNALED)?;
        }
        l.b.receives(3, WcStatus::SUCCESS)?;
        l.b.holds(&want).with_context(|| format!("round {round}"))?;
        l.a.done(2)?;
    }
    Ok(())
}

fn send_tells_of_the_writes_before_it<C: Context>(s: &Setup<C>) -> Result<()> {
    told_of_the_writes(s, false)
}

fn imm_tells_of_the_writes_before_it<C: Context>(s: &Setup<C>) -> Result<()> {
    told_of_the_writes(s, true)
}

/// What a fenced WRITE sends is what the READ before it fetched.
fn fence_waits_for_the_read<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    for round in 1..100_u64 {
        l.b.set_word(AT, round);
        l.a.set_word(64, 0);
        l.a.read(1, 64, WORD, l.b.at(AT))?;
        l.a.write(2, 64, WORD, l.b.at(AT + 64), SIGNALED | SendFlags::FENCE)?;
        l.a.done(1)?;
        l.a.done(2)?;
        let there = until(s.traits.limit, || {
            (l.b.word(AT + 64) == round).then_some(())
        });
        ensure!(
            there.is_some(),
            "round {round}: the WRITE carried {}",
            l.b.word(AT + 64)
        );
    }
    Ok(())
}

fn opposite_direction<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    let source = l.b.scribble(1);
    let mut want = l.a.scribble(2);
    want[AT..AT + 5000].copy_from_slice(&source[AT..AT + 5000]);
    l.b.write(1, AT, 5000, l.a.at(AT), SIGNALED)?;
    l.b.done(1)?;
    l.a.comes_to_hold(&want)?;
    l.b.read(2, 0, 64, l.a.at(AT))?;
    l.b.done(2)?;
    ensure!(
        l.b.image()[..64] == want[AT..AT + 64],
        "the READ got something else"
    );
    Ok(())
}

fn both_directions_at_once<C: Context>(s: &Setup<C>) -> Result<()> {
    let mut l = s.link()?;
    for i in 0..200 {
        l.a.write(i, AT, 2000, l.b.at(AT), SIGNALED)?;
        l.b.write(i, AT + 8000, 2000, l.a.at(AT + 8000), SIGNALED)?;
        if i >= 8 {
            l.a.done(i - 8)?;
            l.b.done(i - 8)?;
        }
    }
    for i in 192..200 {
        l.a.done(i)?;
        l.b.done(i)?;
    }
    Ok(())
}

/// `count` rounds of writing a word that counts, reading the peer's back.
fn count_up<C: Context>(end: &mut End<C>, remote: mu_verbs::RemoteAddr, count: u64) -> Result<()> {
    for i in 1..=count {
        end.write_inline(i, &i.to_le_bytes(), remote, SIGNALED)?;
        end.done(i)?;
    }
    Ok(())
}

fn bidirectional_threads<C: Context>(s: &Setup<C>) -> Result<()> {
    const ROUNDS: u64 = 2000;
    let mut l = s.link()?;
    let (to_a, to_b) = (l.a.at(AT), l.b.at(AT));
    l.a.set_word(AT, 0);
    l.b.set_word(AT, 0);
    let (a, b) = (&mut l.a, &mut l.b);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| count_up(b, to_a, ROUNDS));
        count_up(a, to_b, ROUNDS)?;
        other.join().expect("the other thread does not panic")
    })?;
    let there = until(s.traits.limit, || {
        (l.a.word(AT) == ROUNDS && l.b.word(AT) == ROUNDS).then_some(())
    });
    ensure!(
        there.is_some(),
        "the words are {} and {}",
        l.a.word(AT),
        l.b.word(AT)
    );
    Ok(())
}

fn two_queue_pairs_to_one_memory<C: Context>(s: &Setup<C>) -> Result<()> {
    const ROUNDS: u64 = 1000;
    let mut one = s.link()?;
    let mut two = s.link()?;
    // The second writes to the first one's memory: another registration, in the second's domain.
    let shared =
        s.b.reg_mr(&two.b.pd, &one.b.memory, 0..one.b.memory.len(), one.cfg.mr)?;
    let (first, second) = (
        one.b.at(AT),
        mu_verbs::MemoryRegion::remote(&shared, AT + 8),
    );
    let (a, b) = (&mut one.a, &mut two.a);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| count_up(b, second, ROUNDS));
        count_up(a, first, ROUNDS)?;
        other.join().expect("the other thread does not panic")
    })?;
    let words = || (one.b.word(AT), one.b.word(AT + 8));
    ensure!(
        until(s.traits.limit, || (words() == (ROUNDS, ROUNDS))
            .then_some(()))
        .is_some(),
        "{:?}",
        words()
    );
    Ok(())
}

fn loopback_in_one_context<C: Context>(s: &Setup<C>) -> Result<()> {
    let cfg = s.cfg();
    let mut l = crate::harness::Link {
        a: s.end(&s.a, &cfg)?,
        b: s.end(&s.a, &cfg)?,
        cfg,
    };
    l.connect()?;
    l.works()?;
    l.b.recv(1, AT, 8)?;
    l.a.send(2, AT, 8, None, SIGNALED)?;
    l.a.done(2)?;
    l.b.receives(1, WcStatus::SUCCESS)?;
    Ok(())
}

/// A queue pair may be its own peer.
fn loopback_to_itself<C: Context>(s: &Setup<C>) -> Result<()> {
    let cfg = s.cfg();
    let mut end = s.end(&s.a, &cfg)?;
    end.init(cfg.qp)?;
    end.rtr(&end, &cfg)?;
    end.rts(&cfg)?;
    end.set_word(AT, 77);
    end.write(1, AT, WORD, end.at(AT + 64), SIGNALED)?;
    end.done(1)?;
    ensure!(
        until(s.traits.limit, || (end.word(AT + 64) == 77).then_some(())).is_some(),
        "the word did not come"
    );
    end.recv(2, AT + 128, 8)?;
    end.post(
        3,
        SendOp::Send {
            payload: Payload::Inline(&[9; 8]),
            imm: None,
        },
        SIGNALED,
    )?;
    end.done(3)?;
    end.receives(2, WcStatus::SUCCESS)?;
    ensure!(
        end.word(AT + 128) == 0x0909_0909_0909_0909,
        "the message did not come"
    );
    Ok(())
}

fn atomics_of_two_threads_add_up<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_atomics()?;
    const ROUNDS: u64 = 1000;
    let mut one = s.link()?;
    let mut two = s.link()?;
    let shared =
        s.b.reg_mr(&two.b.pd, &one.b.memory, 0..one.b.memory.len(), one.cfg.mr)?;
    one.b.set_word(AT, 0);
    let (first, second) = (one.b.at(AT), mu_verbs::MemoryRegion::remote(&shared, AT));
    let add = |end: &mut End<C>, remote, add: u64| -> Result<()> {
        for i in 0..ROUNDS {
            end.fetch_add(i, 64, remote, add)?;
            end.done(i)?;
        }
        Ok(())
    };
    let (a, b) = (&mut one.a, &mut two.a);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| add(b, second, 1 << 32));
        add(a, first, 1)?;
        other.join().expect("the other thread does not panic")
    })?;
    let want = ROUNDS | ROUNDS << 32;
    let there = until(s.traits.limit, || (one.b.word(AT) == want).then_some(()));
    ensure!(
        there.is_some(),
        "the sum is {:#x}, not {want:#x}",
        one.b.word(AT)
    );
    Ok(())
}

/// A lock taken by compare-and-swap guards a counter that is read and written.
fn compare_swap_locks<C: Context>(s: &Setup<C>) -> Result<()> {
    s.needs_atomics()?;
    const ROUNDS: u64 = 150;
    let mut one = s.link()?;
    let mut two = s.link()?;
    let shared =
        s.b.reg_mr(&two.b.pd, &one.b.memory, 0..one.b.memory.len(), one.cfg.mr)?;
    one.b.set_word(AT, 0);
    one.b.set_word(AT + 64, 0);
    let places = [one.b.at(AT), mu_verbs::MemoryRegion::remote(&shared, AT)];
    let limit = s.traits.limit;
    let bump = |end: &mut End<C>, lock: mu_verbs::RemoteAddr, me: u64| -> Result<()> {
        let counter = mu_verbs::RemoteAddr {
            addr: lock.addr + 64,
            ..lock
        };
        for _ in 0..ROUNDS {
            let mut failed = None;
            let locked = until(limit, || {
                let tried = end
                    .compare_swap(1, 64, lock, 0, me)
                    .map_err(Into::into)
                    .and_then(|()| end.done(1));
                match tried {
                    Ok(_) => (end.word(64) == 0).then_some(()),
                    Err(e) => {
                        failed = Some(e);
                        Some(())
                    }
                }
            });
            if let Some(e) = failed {
                return Err(e);
            }
            ensure!(locked.is_some(), "the lock does not come free");
            end.read(2, 128, WORD, counter)?;
            end.done(2)?;
            let next = end.word(128) + 1;
            end.write_inline(3, &next.to_le_bytes(), counter, UNSIGNALED)?;
            end.compare_swap(4, 64, lock, me, 0)?;
            end.done(4)?;
            ensure!(
                end.word(64) == me,
                "the lock was {} while {me} held it",
                end.word(64)
            );
        }
        Ok(())
    };
    let (a, b) = (&mut one.a, &mut two.a);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| bump(b, places[1], 2));
        bump(a, places[0], 1)?;
        other.join().expect("the other thread does not panic")
    })?;
    let there = until(limit, || (one.b.word(AT + 64) == 2 * ROUNDS).then_some(()));
    ensure!(
        there.is_some(),
        "the counter is {}, not {}",
        one.b.word(AT + 64),
        2 * ROUNDS
    );
    Ok(())
}
