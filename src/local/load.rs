//! Threads that call without end and keep what they saw.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use mu::host::{monotonic_ns, sleep_precisely};

use super::caller::{Ask, Called, Caller};
use crate::bench::stats::Random;

/// Patience of one call. A call that takes longer is unknown.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the threads do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Threads.
    pub(crate) clients: u64,
    /// Keys that they share.
    pub(crate) keys: u64,
    /// Between two calls of one.
    pub(crate) pause: Duration,
    /// What is random comes from here.
    pub(crate) seed: u64,
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// Whose.
    pub(crate) client: u64,
    /// What for.
    pub(crate) ask: Ask,
    /// What came of it.
    pub(crate) called: Called,
}

/// Whoever carries calls out for one thread.
pub(crate) trait Calls: Send {
    /// Carries one out.
    fn call(&mut self, ask: Ask, patience: Duration) -> Called;
    /// Between two calls: what is lost is connected again.
    fn reconnect(&mut self);
}

impl Calls for Caller {
    fn call(&mut self, ask: Ask, patience: Duration) -> Called {
        Self::call(self, ask, patience)
    }

    fn reconnect(&mut self) {
        Self::reconnect(self);
    }
}

/// What the threads and their owner tell each other.
#[derive(Debug)]
struct Shared {
    ends: AtomicBool,
    rests: AtomicBool,
    /// The replica that lost its office (plus one), and when; answers of others to commands after that end a takeover.
    lost: AtomicU64,
    lost_ns: AtomicU64,
    /// When the first such answer came, and whose it was.
    regained_ns: AtomicU64,
    acked: AtomicU64,
}

/// The running threads. They end when it is dropped.
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Vec<Record>>>,
}

impl Load {
    /// Starts them.
    pub(crate) fn start(addresses: &[SocketAddr], plan: Plan) -> Result<Self> {
        Self::start_with(|| Caller::new(addresses), plan)
    }

    /// The same with other callers, one for each thread.
    pub(crate) fn start_with<C: Calls + 'static>(
        make: impl Fn() -> Result<C>,
        plan: Plan,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            ends: AtomicBool::new(false),
            rests: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            lost_ns: AtomicU64::new(0),
            regained_ns: AtomicU64::new(0),
            acked: AtomicU64::new(0),
        });
        let mut load = Self {
            shared,
            threads: Vec::new(),
        };
        for client in 0..plan.clients {
            let caller = make()?;
            let shared = Arc::clone(&load.shared);
            let thread = thread::Builder::new().name(format!("client-{client}"));
            let thread = thread.spawn(move || {
                sleep_precisely();
                run(client, plan, caller, &shared)
            });
            load.threads.push(thread.context("starting a client")?);
        }
        Ok(load)
    }

    /// Commands acknowledged so far.
    pub(crate) fn acked(&self) -> u64 {
        self.shared.acked.load(Ordering::Relaxed)
    }

    /// Lets them rest, or go on.
    pub(crate) fn rest(&self, rests: bool) {
        self.shared.rests.store(rests, Ordering::Release);
    }

    /// From now on the answer to a command by another replica than `leader` ends a takeover. To be called just before
    /// the fault; gives the time.
    pub(crate) fn watch(&self, leader: u8) -> u64 {
        self.shared.regained_ns.store(0, Ordering::Release);
        self.shared
            .lost
            .store(u64::from(leader) + 1, Ordering::Release);
        let now_ns = monotonic_ns();
        self.shared.lost_ns.store(now_ns, Ordering::Release);
        now_ns
    }

    /// When the first command was decided by another leader, once it was.
    pub(crate) fn regained(&self, patience: Duration) -> Result<u64> {
        let begin_ns = monotonic_ns();
        loop {
            match self.shared.regained_ns.load(Ordering::Acquire) {
                0 if monotonic_ns() - begin_ns > patience.as_nanos() as u64 => {
                    return Err(anyhow!("no other leader decided anything in {patience:?}"));
                }
                0 => thread::sleep(Duration::from_millis(1)),
                at_ns => {
                    self.shared.lost.store(0, Ordering::Release);
                    return Ok(at_ns);
                }
            }
        }
    }

    /// Ends the threads; all that they saw.
    pub(crate) fn end(mut self) -> Result<Vec<Record>> {
        self.shared.ends.store(true, Ordering::Release);
        let mut records = Vec::new();
        for thread in self.threads.drain(..) {
            let saw = thread.join().map_err(|_| anyhow!("a client panicked"))?;
            records.extend(saw);
        }
        Ok(records)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A value that nobody else puts: the client above the count.
const CLIENT_SHIFT: u32 = 40;
/// Keys that are only added to lie above the others.
pub(crate) const SUMS: u64 = 1 << 32;

fn run(client: u64, plan: Plan, mut caller: impl Calls, shared: &Shared) -> Vec<Record> {
    let mut random = Random::new(plan.seed ^ (client << 32));
    let mut records = Vec::new();
    let mut count = 0;
    while !shared.ends.load(Ordering::Acquire) {
        if shared.rests.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(1));
            continue;
        }
        count += 1;
        let key = random.below(plan.keys);
        let ask = match random.below(10) {
            0..=2 => Ask::Get { key },
            3 => Ask::Add {
                key: SUMS + key,
                delta: 1,
            },
            4 => Ask::Get { key: SUMS + key },
            _ => Ask::Put {
                key,
                value: (client + 1) << CLIENT_SHIFT | count,
            },
        };
        let called = caller.call(ask, PATIENCE);
        if let (Some((_, by, at_ns)), true) = (called.answer, ask.is_command()) {
            shared.acked.fetch_add(1, Ordering::Relaxed);
            let lost = shared.lost.load(Ordering::Acquire);
            if lost != 0
                && lost != u64::from(by) + 1
                && at_ns > shared.lost_ns.load(Ordering::Acquire)
            {
                // The earliest of several counts; they come within microseconds.
                let _ =
                    shared
                        .regained_ns
                        .fetch_update(Ordering::AcqRel, Ordering::Acquire, |first| {
                            (first == 0 || at_ns < first).then_some(at_ns)
                        });
            }
        }
        records.push(Record {
            client,
            ask,
            called,
        });
        caller.reconnect();
        if !plan.pause.is_zero() {
            thread::sleep(plan.pause);
        }
    }
    records
}
