//! Revocations in a write storm: is there a word that lands after the revocation returned?
//!
//! In each round the far end storms, the near end waits until a write has landed and then a random while, takes the
//! right away, and copies the region at once. The writer goes on until it is refused; when it says that nothing of
//! its is under way any more, the region must still be what was copied. On a device the packets themselves may be
//! late, so there the region is watched for a while longer. A difference is a word that landed after the revocation
//! had returned; stores between the return and the copy are missed, so a count of 0 is evidence and not proof.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use mu_verbs::rights::{Local, PeerRight, RightAttr, Through};
use mu_verbs::{
    Access, BackendKind, Barrier, Capabilities, Context, Memory, QueuePair, RevokeMethod, RtsAttr,
    WORD, WcStatus,
};
use nix::unistd::Pid;
use serde::Serialize;

use crate::bench::backend::Pair;
use crate::bench::end::{End, connect, restart};
use crate::bench::host;
use crate::bench::peer::{Peer, Role, with_peer};
use crate::bench::spin::{self, Spin};
use crate::bench::stats::{Clock, Percentiles, Random, Recorder, fresh_seed};
use crate::bench::stop::StoppedProcess;
use crate::bench::storm::{Mailbox, SLOTS, Storm};
use crate::cmd::misuse;

/// Number of the requests that a revocation posts itself.
const OWN_REQUEST: u64 = u64::MAX;
/// Connections made for one revocation before it counts as failed.
const ATTEMPTS: u32 = 10;
/// How much longer to wait before each further attempt.
const PAUSE: Duration = Duration::from_millis(1);
/// Bytes of a write unless the caller says otherwise.
pub(crate) const SIZE: usize = 1024;
/// How long to look for late packets of a device: the latest that was seen, on Soft-RoCE, came after 14 ms.
const WATCH_DEVICE: Duration = Duration::from_millis(20);
/// How long the negative control lets the writer go on.
const BROKEN_FOR: Duration = Duration::from_micros(20);

/// What to do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Revocations.
    pub(crate) rounds: u64,
    /// How.
    pub(crate) method: RevokeMethod,
    /// Bytes of a write, a multiple of 8.
    pub(crate) size: usize,
    /// Seed of the random moments.
    pub(crate) seed: u64,
    /// Longest random while, in nanoseconds.
    pub(crate) delay_ns_max: u64,
    /// How long the region is watched after the writer was refused.
    pub(crate) watch: Duration,
    /// Writes outstanding, and the code of their timeout.
    pub(crate) window: u32,
    pub(crate) timeout: u8,
    /// Negative control: take nothing away.
    pub(crate) broken: bool,
    /// Whether the writer's process is stopped while its right is taken away.
    pub(crate) stop: bool,
    /// Processors of the two ends.
    pub(crate) pins: Vec<usize>,
}

impl Plan {
    /// `rounds` revocations by `method` in the way that suits the device, from a fresh seed.
    pub(crate) fn new(caps: &Capabilities, method: RevokeMethod, rounds: u64) -> Result<Self> {
        // On a device writes take microseconds and packets may be late by milliseconds, on Soft-RoCE at least. The
        // timeout (code 14 is 67 ms) matters only where a queue pair that was taken away does not answer.
        let is_device = caps.backend == BackendKind::Nic;
        Ok(Self {
            rounds,
            method,
            size: SIZE,
            seed: fresh_seed()?,
            delay_ns_max: if is_device { 500_000 } else { 2_000 },
            watch: if is_device {
                WATCH_DEVICE
            } else {
                Duration::ZERO
            },
            window: if is_device { 8 } else { 1 },
            timeout: if is_device { 14 } else { 1 },
            broken: false,
            stop: false,
            pins: Vec::new(),
        })
    }
}

/// The fastest method that the device calls a barrier.
pub(crate) fn default_method(caps: &Capabilities) -> Result<RevokeMethod> {
    caps.revoke.fastest_barrier().ok_or_else(|| {
        misuse(format!(
            "{} calls no method a barrier: name one with --method to see whether it leaks",
            caps.device
        ))
    })
}

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) method: String,
    /// What the device says the method is worth: `yes`, `no`, `unknown`.
    pub(crate) barrier: &'static str,
    pub(crate) revocations: u64,
    /// Words that changed after a revocation had returned.
    pub(crate) late_words: u64,
    /// Revocations after which any did.
    pub(crate) late_revocations: u64,
    /// Time of the revoking call.
    pub(crate) revoke: Percentiles,
    /// Writes that landed in all.
    pub(crate) writes: u64,
    /// What the writer saw of the revocations, by status.
    pub(crate) refusals: BTreeMap<String, u64>,
    /// Connections that were lost before anything was written, by status.
    pub(crate) lost_connections: BTreeMap<String, u64>,
    pub(crate) seed: u64,
    pub(crate) watch_us: u64,
    /// Whether nothing was revoked at all (negative control).
    pub(crate) broken: bool,
    #[serde(flatten)]
    pub(crate) stopped: Option<Stopped>,
}

/// What was found with a writer that is stopped.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Stopped {
    pub(crate) stopped_rounds: u64,
    /// Rounds in which the writer was certainly stopped in mid-copy: the copy shows a packet that landed in part.
    pub(crate) in_mid_copy: u64,
    /// Revocations that took longer than a millisecond.
    pub(crate) over_1ms: u64,
}

impl Report {
    /// Late words refute a barrier, and only that. Without a writer in mid-copy nothing was tried.
    pub(crate) fn holds(&self) -> bool {
        let is_refuted = self.late_words > 0 && (self.barrier == "yes" || self.broken);
        !is_refuted && !self.tested_nothing()
    }

    /// Whether writers were stopped, and none of them in the middle of a copy.
    pub(crate) fn tested_nothing(&self) -> bool {
        self.stopped.as_ref().is_some_and(|s| s.in_mid_copy == 0)
    }
}

/// Words for [`Barrier`].
pub(crate) fn worth(barrier: Barrier) -> &'static str {
    match barrier {
        Barrier::Yes => "yes",
        Barrier::No => "no",
        Barrier::Unknown => "unknown",
        Barrier::Unsupported => "unsupported",
    }
}

/// Runs the revocations, with a progress bar if standard error is a terminal.
pub(crate) fn run<C: Context>(pair: &Pair<C>, plan: &Plan) -> Result<Report> {
    let role = Role::Storm(Storm {
        size: plan.size,
        window: plan.window,
        timeout: plan.timeout,
        prefilled: plan.stop,
    });
    with_peer(pair, role, plan.pins.get(1).copied(), |peer| {
        host::pin(plan.pins.first().copied())?;
        peer.link
            .recv::<String>()
            .context("the writer does not start")?;
        let mut revoker = Revoker::new(&pair.near, peer, plan)?;
        let bar = progress_bar(plan.rounds);
        for round in 1..=plan.rounds {
            revoker.round().with_context(|| {
                format!("revocation {round} of {}, seed {}", plan.rounds, plan.seed)
            })?;
            if round % 256 == 0 {
                bar.set_position(round);
            }
        }
        bar.finish_and_clear();
        Mailbox(peer.words).end();
        Ok(revoker.report())
    })
}

fn progress_bar(rounds: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{elapsed_precise} {wide_bar} {pos}/{len} revocations, {eta} left",
    );
    ProgressBar::new(rounds).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// The right under test.
pub(crate) fn right_over<C: Context>(
    end: &End<C>,
    memory: &Memory,
    method: RevokeMethod,
) -> Result<PeerRight<C>> {
    let through = if method == RevokeMethod::Window {
        Through::Window
    } else {
        Through::Region
    };
    let attr = RightAttr {
        through,
        ..RightAttr::LOG
    };
    Ok(PeerRight::new(
        &end.ctx,
        &end.pd,
        end.qp.control(),
        memory,
        0..memory.len(),
        attr,
    )?)
}

/// Runs `f` with the queue pair lent to the right.
pub(crate) fn lend<C: Context, T>(end: &mut End<C>, f: impl FnOnce(&mut Local<'_, C>) -> T) -> T {
    let mut spin = Spin::new();
    let mut local = Local {
        qp: &mut end.qp,
        send_cq: &mut end.cq,
        recv_cq: None,
        wr_id: OWN_REQUEST,
        other: &mut |_| {},
        keep_waiting: &mut || spin.step().is_ok(),
    };
    f(&mut local)
}

struct Revoker<'a, C: Context> {
    right: PeerRight<C>,
    end: End<C>,
    memory: Memory,
    mailbox: Mailbox<'a>,
    plan: &'a Plan,
    clock: Clock,
    random: Random,
    /// The region as it was when the revocation returned.
    copy: Vec<u64>,
    revoke: Recorder,
    late_words: u64,
    late_revocations: u64,
    writes: u64,
    refusals: BTreeMap<u32, u64>,
    lost_connections: BTreeMap<u32, u64>,
    /// Connections made; what the two ends keep step by.
    attempt: u64,
    writer: Option<Pid>,
    stopped: Stopped,
}

impl<'a, C: Context> Revoker<'a, C> {
    fn new(ctx: &C, peer: &Peer<'a>, plan: &'a Plan) -> Result<Self> {
        let end = End::open(ctx, WORD, Access::NONE, 0)?;
        let memory = ctx.alloc_memory(SLOTS * plan.size)?;
        Ok(Self {
            right: right_over(&end, &memory, plan.method)?,
            copy: vec![0; SLOTS * plan.size / WORD],
            end,
            memory,
            mailbox: Mailbox(peer.words),
            plan,
            clock: Clock::new(),
            random: Random::new(plan.seed),
            revoke: Recorder::new()?,
            late_words: 0,
            late_revocations: 0,
            writes: 0,
            refusals: BTreeMap::new(),
            lost_connections: BTreeMap::new(),
            attempt: 0,
            writer: peer.pid.filter(|_| plan.stop),
            stopped: Stopped::default(),
        })
    }

    fn round(&mut self) -> Result<()> {
        self.start_storm()?;
        let delay_ns = self.random.below(self.plan.delay_ns_max.max(1));
        let start = self.clock.now();
        while self.clock.since(start) < delay_ns {
            std::hint::spin_loop();
        }
        match self.writer {
            None => self.revoke_and_copy()?,
            Some(writer) => {
                let stopped = StoppedProcess::new(writer)?;
                self.revoke_and_copy()?;
                self.count_stopped();
                stopped.resume()?;
            }
        }
        if self.plan.broken {
            let start = Instant::now();
            spin::until(|| start.elapsed() > BROKEN_FOR)?;
            self.mailbox.stop(self.attempt);
        }
        let (status, writes) = self.mailbox.refused(self.attempt)?;
        self.writes = writes;
        *self.refusals.entry(status.0).or_default() += 1;
        let late = self.watch();
        self.late_words += late;
        self.late_revocations += u64::from(late > 0);
        Ok(())
    }

    /// Connects and grants until something has landed. A connection made while the far end has not heard yet that
    /// its old one was fenced for good is lost with that; then the next one is made.
    fn start_storm(&mut self) -> Result<()> {
        let mut last = WcStatus::SUCCESS;
        for pause in 0..ATTEMPTS {
            let since = Instant::now();
            spin::until(|| since.elapsed() >= pause * PAUSE)?;
            self.attempt += 1;
            self.connect_and_grant()?;
            if self.has_begun()? {
                return Ok(());
            }
            let (status, _) = self.mailbox.refused(self.attempt)?;
            *self.lost_connections.entry(status.0).or_default() += 1;
            last = status;
        }
        bail!(
            "the writer was refused {ATTEMPTS} times running, at last with {last}, although it had the right"
        )
    }

    /// Both queue pairs were failed by the refusal, so each round has a connection of its own.
    fn connect_and_grant(&mut self) -> Result<()> {
        let control = self.end.qp.control();
        let endpoint = restart::<C>(control, Access::NONE)?;
        let theirs = self.mailbox.offer(self.attempt, &endpoint)?;
        connect::<C>(control, &self.end.ctx, theirs, RtsAttr::default())?;
        if self.plan.stop {
            self.memory
                .words()
                .iter()
                .for_each(|word| word.store(0, Ordering::Relaxed));
        }
        let right = &mut self.right;
        let grant = lend(&mut self.end, |local| right.grant(Some(local)))?;
        self.read();
        self.mailbox.begin(self.attempt, grant.remote);
        Ok(())
    }

    /// Waits until something has landed (true) or the writer was refused before.
    fn has_begun(&self) -> Result<bool> {
        let (memory, old) = (self.memory.words(), &self.copy);
        let first_words = (0..SLOTS).map(|slot| slot * self.plan.size / WORD);
        let has_landed = || {
            first_words
                .clone()
                .any(|at| memory[at].load(Ordering::Acquire) != old[at])
        };
        let is_refused = || self.mailbox.is_refused(self.attempt);
        spin::until(|| has_landed() || is_refused()).context("waiting for the first write")?;
        Ok(has_landed())
    }

    fn revoke_and_copy(&mut self) -> Result<()> {
        if !self.plan.broken {
            let (right, method) = (&mut self.right, self.plan.method);
            let start = self.clock.now();
            let done = lend(&mut self.end, |local| right.revoke(method, Some(local)));
            let end = self.clock.now();
            self.read();
            done?;
            let took_ns = self.clock.ns(start, end);
            self.revoke.record(took_ns);
            self.stopped.over_1ms += u64::from(took_ns > 1_000_000);
            return Ok(());
        }
        self.read();
        Ok(())
    }

    /// A packet is placed by one copy, so one that landed in part was being copied when the writer was stopped. The
    /// region was cleared before, and every packet of a write has one value in all its words.
    fn count_stopped(&mut self) {
        let packet = self.end.ctx.caps().max_mtu.bytes() / WORD;
        let slots = self.copy.chunks(self.plan.size / WORD);
        let in_mid_copy = slots
            .flat_map(|slot| slot.chunks(packet))
            .any(|p| p.iter().any(|word| *word != p[0]));
        self.stopped.stopped_rounds += 1;
        self.stopped.in_mid_copy += u64::from(in_mid_copy);
    }

    #[inline]
    fn read(&mut self) {
        for (copied, word) in self.copy.iter_mut().zip(self.memory.words()) {
            *copied = word.load(Ordering::Acquire);
        }
    }

    /// Words that differ from the copy, now or within the time that the region is watched.
    fn watch(&self) -> u64 {
        let since = Instant::now();
        loop {
            let late = late_words(&self.memory, &self.copy);
            if since.elapsed() >= self.plan.watch {
                return late;
            }
            std::thread::yield_now();
        }
    }

    fn report(self) -> Report {
        Report {
            method: self.plan.method.to_string(),
            barrier: worth(self.end.ctx.caps().revoke.of(self.plan.method)),
            revocations: self.plan.rounds,
            late_words: self.late_words,
            late_revocations: self.late_revocations,
            revoke: self.revoke.percentiles(),
            writes: self.writes,
            refusals: by_name(self.refusals),
            lost_connections: by_name(self.lost_connections),
            seed: self.plan.seed,
            watch_us: self.plan.watch.as_micros() as u64,
            broken: self.plan.broken,
            stopped: self.plan.stop.then_some(self.stopped),
        }
    }
}

/// Counts by the names of statuses; success is that of a writer that was never refused.
fn by_name(counts: BTreeMap<u32, u64>) -> BTreeMap<String, u64> {
    let name = |status| match WcStatus(status) {
        WcStatus::SUCCESS => "never refused".into(),
        bad => bad.to_string(),
    };
    counts
        .into_iter()
        .map(|(status, n)| (name(status), n))
        .collect()
}

/// Words that are not what they were when the copy was made.
pub(crate) fn late_words(memory: &Memory, copy: &[u64]) -> u64 {
    memory
        .words()
        .iter()
        .zip(copy)
        .filter(|(word, copied)| word.load(Ordering::Acquire) != **copied)
        .count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_holds_only_if_something_was_tested_and_nothing_came_late() {
        let report = |late_words, barrier, broken, in_mid_copy: Option<u64>| Report {
            method: "qp-flags".into(),
            barrier,
            revocations: 3,
            late_words,
            late_revocations: late_words,
            revoke: Recorder::new().unwrap().percentiles(),
            writes: 3,
            refusals: BTreeMap::new(),
            lost_connections: BTreeMap::new(),
            seed: 1,
            watch_us: 0,
            broken,
            stopped: in_mid_copy.map(|in_mid_copy| Stopped {
                stopped_rounds: 3,
                in_mid_copy,
                over_1ms: 0,
            }),
        };
        assert!(report(0, "yes", false, None).holds());
        assert!(!report(1, "yes", false, None).holds());
        assert!(report(1, "no", false, None).holds());
        assert!(!report(1, "no", true, None).holds());
        assert!(report(0, "yes", false, Some(1)).holds());
        assert!(!report(1, "yes", false, Some(1)).holds());
        let idle = report(0, "yes", false, Some(0));
        assert!(!idle.holds() && idle.tested_nothing());
    }
}
