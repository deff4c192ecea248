//! A group of replicas for a measurement: the leader at the near end, every follower at a far end of its own (a thread
//! or a process). The far ends find each other through the near one, in lockstep, before anything is measured.
//!
//! A follower's two engines share one thread. The leader's background engine has a thread of its own, which sleeps
//! between two heartbeats, as in a replica that serves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mu_protocol::background::Background;
use mu_protocol::ids::{Members, ReplicaId};
use mu_protocol::layout::public;
use mu_protocol::limits::MAX_REPLICAS;
use mu_protocol::machine::{Command, RestoreError, StateMachine};
use mu_protocol::replica::{Life, Replica, assemble};
use mu_protocol::replication::{Event, Replication};
use mu_protocol::settings::{Checksum, Settings};
use mu_protocol::zoo::Sound;
use mu_verbs::Context;
use serde::{Deserialize, Serialize};

use crate::bench::backend::Pair;
use crate::bench::host;
use crate::bench::peer::{FREE, LINE, Link, Peer, Role, with_peer};
use crate::bench::raw;
use crate::bench::spin::is_alone;

/// The replica of the near end, which is to lead.
const NEAR: usize = 0;
/// Set by the near end when followers are to say how far they came.
const DONE: usize = FREE;
/// Set by the near end for the follower that is to fall silent for good.
const DEAD: usize = FREE + LINE;
/// How long a group may take to form or to come to rest.
const LIMIT: Duration = Duration::from_secs(20);
/// Between two looks whether a dead follower has been given up.
const LOOK_AT_DEAD: Duration = Duration::from_millis(1);
/// How long a member works on what it was told before it answers, while the group forms.
const EXCHANGE: Duration = Duration::from_micros(300);
/// Between two looks of a follower into its log. Each look takes a line away from the leader that writes it, and how
/// soon a follower applies an entry makes no difference to anybody but a next leader.
const LOOK_NS: u64 = 5_000;
/// Empty polls of a follower before it gives its processor away.
const QUIET: u32 = 8;

/// The application of a measurement: it only counts.
#[derive(Debug, Default)]
pub(crate) struct Count(u64);

impl StateMachine for Count {
    #[inline]
    fn apply(&mut self, command: &Command<'_>, _: &mut Vec<u8>) {
        self.0 = self.0.wrapping_add(command.bytes.len() as u64);
    }
    fn digest(&self) -> u64 {
        self.0
    }
    fn snapshot(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0.to_le_bytes());
    }
    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let bytes = bytes
            .try_into()
            .map_err(|_| RestoreError("not eight bytes".into()))?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}

/// What a group is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) replicas: usize,
    pub(crate) ring_bytes: usize,
    pub(crate) max_command_bytes: usize,
    pub(crate) window: usize,
    pub(crate) always_checksum: bool,
    /// Between two polls of a background engine, in microseconds.
    pub(crate) heartbeat_us: u64,
}

impl Plan {
    fn heartbeat(&self) -> Duration {
        Duration::from_micros(self.heartbeat_us)
    }

    fn settings(&self, id: usize) -> Result<Settings> {
        let ids = (0..self.replicas as u8).filter_map(ReplicaId::new);
        let members: Members = ids.collect();
        let mut settings = Settings::new(replica_id(id)?, members);
        settings.ring_bytes = self.ring_bytes;
        settings.max_command_bytes = self.max_command_bytes;
        settings.window = self.window;
        settings.checksum = if self.always_checksum {
            Checksum::Always
        } else {
            Checksum::Auto
        };
        settings.form = true;
        // A measurement of the steady state: a scheduler's whim must not turn it into one of a leader change.
        settings.detect_ns = 2_000_000_000;
        settings.stuck_ns = 2_000_000_000;
        settings.election_ns = 500_000_000;
        settings.completion_timeout_ns = 5_000_000_000;
        settings.cut_off_ns = 5_000_000_000;
        settings.heartbeat_ns = self.heartbeat().as_nanos() as u64;
        Ok(settings)
    }
}

fn replica_id(id: usize) -> Result<ReplicaId> {
    u8::try_from(id)
        .ok()
        .and_then(ReplicaId::new)
        .with_context(|| format!("at most {MAX_REPLICAS} replicas"))
}

/// A far end's part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Follower {
    pub(crate) plan: Plan,
    pub(crate) id: usize,
}

/// One exchange while a group forms.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Exchange {
    /// Greetings: from whom, the bytes.
    hellos: Vec<(usize, Vec<u8>)>,
    /// Messages: the other one, the bytes.
    messages: Vec<(usize, Vec<u8>)>,
    /// Nothing more will come: run.
    go: bool,
}

/// How far a follower came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rest {
    pub(crate) applied: u64,
    pub(crate) digest: u64,
}

/// One replica with a clock.
pub(crate) struct Member<C: Context> {
    id: usize,
    pub(crate) replica: Replica<C, Count, Sound>,
    since: Instant,
}

impl<C: Context> Member<C> {
    fn new(ctx: &C, plan: &Plan, id: usize) -> Result<Self> {
        let incarnation =
            getrandom::u64().map_err(|e| anyhow::anyhow!("the system's random source: {e}"))?;
        let life = Life {
            incarnation: incarnation | 1,
            wall_offset_ns: 0,
            now_ns: 0,
        };
        let replica = assemble(ctx, plan.settings(id)?, life, Count::default(), Sound)?;
        Ok(Self {
            id,
            replica,
            since: Instant::now(),
        })
    }

    fn now_ns(&self) -> u64 {
        self.since.elapsed().as_nanos() as u64
    }

    fn poll(&mut self) {
        let now_ns = self.now_ns();
        self.replica.background.poll(now_ns);
        self.replica.replication.poll(now_ns, |_| {});
    }

    fn hello(&self, to: usize) -> Result<Vec<u8>> {
        Ok(self.replica.background.hello(replica_id(to)?).to_vec())
    }

    /// Takes an exchange in and gives what this member has to say.
    fn exchange(&mut self, exchange: &Exchange) -> Result<Vec<(usize, Vec<u8>)>> {
        let now_ns = self.now_ns();
        for (from, hello) in &exchange.hellos {
            self.replica
                .background
                .control_up(replica_id(*from)?, hello, now_ns)?;
        }
        for (from, message) in &exchange.messages {
            self.replica
                .background
                .control_in(replica_id(*from)?, message, now_ns)?;
        }
        let mut said = Vec::new();
        let since = Instant::now();
        while since.elapsed() < EXCHANGE {
            self.poll();
            self.leave_the_lead_to_the_near_end();
            while let Some((to, message)) = self.replica.background.control_out() {
                said.push((to.index(), message.to_vec()));
            }
        }
        Ok(said)
    }

    /// A far end that saw the others before the near end did may have been elected. Where it may not hand over yet, it
    /// is asked again with the next look.
    fn leave_the_lead_to_the_near_end(&mut self) {
        let engine = &mut self.replica.replication;
        if self.id != NEAR && engine.leads().is_some() {
            let near = ReplicaId::new(NEAR as u8);
            let _not_yet = engine.transfer(near, self.since.elapsed().as_nanos() as u64);
        }
    }
}

impl Follower {
    /// The far end: forms the group, then follows until it is told to stop.
    pub(crate) fn play<C: Context>(
        &self,
        ctx: &C,
        link: &mut Link,
        words: &crate::bench::map_raw::Words,
    ) -> Result<()> {
        let _raw = raw::Target::open(ctx, self.plan.ring_bytes, link)?;
        let mut member = Member::new(ctx, &self.plan, self.id)?;
        let others: Vec<usize> = (0..self.plan.replicas)
            .filter(|id| *id != self.id)
            .collect();
        let hellos = others
            .iter()
            .map(|to| Ok((*to, member.hello(*to)?)))
            .collect::<Result<_>>()?;
        link.send(&Exchange {
            hellos,
            ..Exchange::default()
        })?;
        loop {
            let exchange: Exchange = link.recv()?;
            if exchange.go {
                break;
            }
            let messages = member.exchange(&exchange)?;
            link.send(&Exchange {
                messages,
                ..Exchange::default()
            })?;
        }
        let mut quiet = 0u32;
        let (mut heard, mut looked) = (0, 0);
        while words[DONE].load(Ordering::Acquire) == 0 && words[DEAD].load(Ordering::Acquire) == 0 {
            let now_ns = member.now_ns();
            if now_ns - looked < LOOK_NS {
                std::hint::spin_loop();
                continue;
            }
            let worked = member.replica.replication.poll(now_ns, |_| {}).worked;
            quiet = if worked { 0 } else { quiet + 1 };
            // One that is behind goes on at once.
            looked = if member.replica.replication.is_behind() {
                0
            } else {
                now_ns
            };
            if now_ns - heard > self.plan.heartbeat_us * 1_000 {
                heard = now_ns;
                member.replica.background.poll(now_ns);
            }
            if quiet > QUIET || is_alone() {
                thread::yield_now();
            }
        }
        let engine = &member.replica.replication;
        link.send(&Rest {
            applied: engine.applied().index,
            digest: engine.digest(),
        })
    }
}

/// The leader of a formed group, its engine in the caller's hands.
pub(crate) struct Leading<'a, 'b, C: Context> {
    pub(crate) engine: &'a mut Replication<C, Count, Sound>,
    pub(crate) raw: &'a mut raw::Lane<C>,
    pub(crate) since: Instant,
    peers: &'a mut Vec<Peer<'b>>,
    dead: Vec<usize>,
}

impl<C: Context> Leading<'_, '_, C> {
    /// Nanoseconds of the engine's clock.
    #[inline]
    pub(crate) fn now_ns(&self) -> u64 {
        self.since.elapsed().as_nanos() as u64
    }

    /// Waits until every live follower has applied what this leader has.
    pub(crate) fn wait_applied(&mut self) -> Result<()> {
        let target = self.engine.applied().index;
        let live = self.peers.len() - self.dead.len();
        let since = Instant::now();
        loop {
            self.engine
                .poll(self.since.elapsed().as_nanos() as u64, |_| {});
            let applied = (1..=live).filter(|id| {
                replica_id(*id)
                    .is_ok_and(|id| self.engine.peer_public(id, public::APPLIED) >= target)
            });
            if applied.count() == live {
                return Ok(());
            }
            ensure!(
                since.elapsed() < LIMIT,
                "a follower did not keep up within {} s",
                LIMIT.as_secs()
            );
            thread::yield_now();
        }
    }

    /// Makes the last follower fall silent for good: it neither applies, nor answers anything. Returns when the leader
    /// has given it up. A write to one that is gone may take seconds to fail, and there has to be one: `command` is
    /// replicated now and then meanwhile.
    pub(crate) fn silence_one(&mut self, command: &[u8]) -> Result<()> {
        let last = self.peers.len() - 1;
        let peer = &mut self.peers[last];
        peer.words[DEAD].store(1, Ordering::Release);
        let _: Rest = peer.link.recv()?;
        self.dead.push(last);
        let since = Instant::now();
        let mut in_flight = 0u64;
        loop {
            let given_up = self.ensure_only_live_followers();
            if given_up.is_ok() && in_flight == 0 {
                return Ok(());
            }
            ensure!(
                since.elapsed() < LIMIT,
                "{} s after a follower died: {in_flight} commands in flight, {}",
                LIMIT.as_secs(),
                given_up.map_or_else(|why| why.to_string(), |()| "it is given up".into())
            );
            // A refusal is as good: a ring that stays full has the follower cut off.
            if given_up.is_err() && self.engine.submit(0, 0, command).is_ok() {
                in_flight += 1;
            }
            self.engine
                .poll(self.since.elapsed().as_nanos() as u64, |event| {
                    in_flight -= u64::from(matches!(event, Event::Command { .. }));
                });
            thread::sleep(LOOK_AT_DEAD);
        }
    }

    /// An error if the leader writes to others than the followers that live.
    pub(crate) fn ensure_only_live_followers(&self) -> Result<()> {
        let (written, live) = (
            self.engine.followers().count(),
            self.peers.len() - self.dead.len(),
        );
        ensure!(
            written == live,
            "the leader writes to {written} followers, and {live} live"
        );
        Ok(())
    }

    /// Lets the followers come to rest and gives how far each live one came.
    pub(crate) fn rest(&mut self) -> Result<Vec<Rest>> {
        self.wait_applied()?;
        let mut rests = Vec::new();
        for (n, peer) in self.peers.iter_mut().enumerate() {
            if !self.dead.contains(&n) {
                peer.words[DONE].store(1, Ordering::Release);
                rests.push(peer.link.recv()?);
            }
        }
        Ok(rests)
    }
}

/// Forms a group over `pairs`, one for each follower, all with the same near end, and runs `work` at its leader.
/// Processors: the leader's, then one for each follower; missing ones are not pinned.
pub(crate) fn with_group<C: Context, T>(
    pairs: &[Pair<C>],
    plan: &Plan,
    pins: &[usize],
    work: impl FnOnce(&mut Leading<'_, '_, C>) -> Result<T>,
) -> Result<T> {
    ensure!(
        pairs.len() + 1 == plan.replicas,
        "one pair for each follower"
    );
    let mut work = Some(work);
    gather(pairs, plan, pins, Vec::new(), &mut |peers| {
        let work = work.take().context("a group runs once")?;
        lead(&pairs[0].near, plan, pins, peers, work)
    })
}

/// Starts the far ends one inside of the other, since each lives as long as its closure.
fn gather<'b, C: Context, T>(
    pairs: &[Pair<C>],
    plan: &Plan,
    pins: &[usize],
    peers: Vec<Peer<'b>>,
    work: &mut dyn FnMut(&mut Vec<Peer<'_>>) -> Result<T>,
) -> Result<T> {
    let id = peers.len() + 1;
    let mut peers = peers;
    let Some(pair) = pairs.get(id - 1) else {
        return work(&mut peers);
    };
    let role = Role::Follower(Follower {
        plan: plan.clone(),
        id,
    });
    let cpu = pins
        .get(id.min(pins.len().saturating_sub(1)))
        .copied()
        .filter(|_| pins.len() > 1);
    with_peer(pair, role, cpu, |peer| {
        let inner: Vec<Peer<'_>> = peers.into_iter().chain([peer.take()]).collect();
        gather(pairs, plan, pins, inner, work)
    })
}

fn lead<C: Context, T>(
    ctx: &C,
    plan: &Plan,
    pins: &[usize],
    peers: &mut Vec<Peer<'_>>,
    work: impl FnOnce(&mut Leading<'_, '_, C>) -> Result<T>,
) -> Result<T> {
    host::pin(pins.first().copied())?;
    let mut raw = raw::Lane::open(ctx, plan.ring_bytes, plan.replicas / 2, peers)?;
    let mut member = Member::new(ctx, plan, NEAR)?;
    form(&mut member, plan, peers)?;
    let Member { replica, since, .. } = member;
    let Replica {
        mut replication,
        mut background,
    } = replica;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let heart = scope.spawn(|| beat(&mut background, since, plan.heartbeat(), &over));
        let mut leading = Leading {
            engine: &mut replication,
            raw: &mut raw,
            since,
            peers,
            dead: Vec::new(),
        };
        let done = work(&mut leading);
        over.store(true, Ordering::Release);
        heart
            .join()
            .map_err(|_| anyhow::anyhow!("the background engine panicked"))?;
        done
    })
}

/// The leader's background engine.
fn beat<C: Context>(
    background: &mut Background<C, Sound>,
    since: Instant,
    every: Duration,
    over: &AtomicBool,
) {
    while !over.load(Ordering::Acquire) {
        background.poll(since.elapsed().as_nanos() as u64);
        thread::sleep(every);
    }
}

/// Carries messages between the members until the near one leads them all.
fn form<C: Context>(member: &mut Member<C>, plan: &Plan, peers: &mut [Peer<'_>]) -> Result<()> {
    let mut next: Vec<Exchange> = (0..plan.replicas).map(|_| Exchange::default()).collect();
    for (to, next) in next.iter_mut().enumerate().skip(1) {
        next.hellos.push((NEAR, member.hello(to)?));
    }
    for (n, peer) in peers.iter_mut().enumerate() {
        let said: Exchange = peer.link.recv()?;
        for (to, hello) in said.hellos {
            next[to].hellos.push((n + 1, hello));
        }
    }
    let since = Instant::now();
    loop {
        let mut now: Vec<Exchange> = std::mem::take(&mut next);
        next = (0..plan.replicas).map(|_| Exchange::default()).collect();
        let formed = member.replica.replication.leads().is_some()
            && member.replica.replication.followers().count() + 1 == plan.replicas;
        for (n, peer) in peers.iter_mut().enumerate() {
            now[n + 1].go = formed;
            peer.link.send(&now[n + 1])?;
        }
        if formed {
            return Ok(());
        }
        ensure!(
            since.elapsed() < LIMIT,
            "the group did not form within {} s",
            LIMIT.as_secs()
        );
        for (to, message) in member.exchange(&now[NEAR])? {
            next[to].messages.push((member.id, message));
        }
        for (n, peer) in peers.iter_mut().enumerate() {
            let said: Exchange = peer.link.recv()?;
            for (to, message) in said.messages {
                let Some(exchange) = next.get_mut(to) else {
                    bail!("a message to replica {to}, which is none")
                };
                exchange.messages.push((n + 1, message));
            }
        }
    }
}
