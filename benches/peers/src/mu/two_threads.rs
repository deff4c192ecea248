//! The leader on one thread, both followers on another, as in `../two_threads.rs`.
//!
//! The followers' thread has no part in a decision: it looks into its logs now and then and applies. Every look takes
//! lines of memory from the leader that writes there, and that is on the clock. Between slices the thread sleeps.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mu_protocol::layout::public;
use mu_softrdma::Fabric;
use quanta::Clock;

use super::{Group, Proposer, Replica, id, is_everywhere};
use crate::contestant::{Applied, Command, Core, REPLICAS};
use crate::host;
use crate::node::LEADER;

/// Between two looks of a follower into its log, unless it is behind: as in `mu bench`.
const LOOK: Duration = Duration::from_micros(5);
/// How long anything that is waited for may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Followers on the other thread.
const FOLLOWERS: usize = REPLICAS - 1;

/// What the followers' thread does, or is asked to do.
const ASLEEP: u8 = 0;
const AWAKE: u8 = 1;
const TO_SLEEP: u8 = 2;
const TO_END: u8 = 3;

/// Between the threads.
struct Shared {
    state: AtomicU8,
    /// What the followers had applied when they went to sleep.
    applied: Mutex<[Applied; FOLLOWERS]>,
}

/// The contestant.
pub struct TwoThreads {
    leader: Replica,
    proposer: Proposer,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
    applied: [Applied; FOLLOWERS],
    time: Time,
    /// As last read: off the clock for single commands.
    now_ns: u64,
    _fabric: Fabric,
}

/// The engines' clock, which goes on where the forming of the group left it.
#[derive(Clone, Copy)]
struct Time {
    since: Instant,
    from_ns: u64,
}

impl Time {
    #[inline]
    fn now_ns(self) -> u64 {
        self.from_ns + self.since.elapsed().as_nanos() as u64
    }
}

/// The followers' thread.
fn follow(mut replicas: [Replica; FOLLOWERS], shared: &Shared, time: Time) {
    let mut looked_ns = 0;
    loop {
        match shared.state.load(Ordering::Acquire) {
            AWAKE => {}
            TO_END => return,
            TO_SLEEP => {
                let mut applied = shared
                    .applied
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                *applied = [0, 1].map(|at: usize| replicas[at].replication.app().clone());
                drop(applied);
                shared.state.store(ASLEEP, Ordering::Release);
                continue;
            }
            _ => {
                thread::park();
                continue;
            }
        }
        let now_ns = time.now_ns();
        if now_ns - looked_ns < LOOK.as_nanos() as u64 {
            std::hint::spin_loop();
            continue;
        }
        looked_ns = now_ns;
        for replica in &mut replicas {
            replica.replication.poll(now_ns, |_| {});
            replica.background.poll(now_ns);
            if replica.replication.is_behind() {
                looked_ns = 0;
            }
        }
    }
}

impl TwoThreads {
    pub const NAME: &'static str = "mu-2-threads";

    /// A group that has elected its leader; the followers' thread runs on the second of `pins`, if there is one.
    pub fn new(pins: &[usize]) -> Result<Self> {
        let Group {
            replicas: [leader, near, far],
            now_ns,
            fabric,
        } = Group::new()?;
        let time = Time {
            since: Instant::now(),
            from_ns: now_ns,
        };
        let shared = Arc::new(Shared {
            state: AtomicU8::new(ASLEEP),
            applied: Mutex::default(),
        });
        let (theirs, cpu) = (Arc::clone(&shared), pins.get(1).copied());
        let thread = thread::Builder::new()
            .name("followers".into())
            .spawn(move || {
                if let Some(cpu) = cpu {
                    host::pin(cpu)?;
                }
                follow([near, far], &theirs, time);
                Ok(())
            })?;
        Ok(Self {
            leader,
            proposer: Proposer::NEW,
            shared,
            thread: Some(thread),
            applied: Default::default(),
            time,
            now_ns,
            _fabric: fabric,
        })
    }

    /// One turn of the leader; `decided` is called with each command that was decided.
    #[inline]
    fn lead(&mut self, decided: impl FnMut()) -> Result<()> {
        let engine = &mut self.leader.replication;
        self.proposer.poll(engine, self.now_ns, decided)
    }

    /// One turn of both of the leader's engines, at the time that it is now.
    fn turn(&mut self) -> Result<()> {
        self.now_ns = self.time.now_ns();
        self.lead(|| ())?;
        self.leader.background.poll(self.now_ns);
        Ok(())
    }

    /// Turns until `done`.
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let since = Instant::now();
        while !done(self) {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            ensure!(!ended, "the followers' thread ended early");
            ensure!(since.elapsed() < LIMIT, "{what} did not come about");
            self.turn()?;
        }
        Ok(())
    }

    /// Asks the followers' thread for something.
    fn ask(&self, state: u8) {
        self.shared.state.store(state, Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// Hands a command over and takes turns until it is decided; `decided` is called if the first one does.
    #[inline]
    fn lead_with(&mut self, command: &Command, decided: impl FnMut()) -> Result<()> {
        let taken = self
            .proposer
            .submit(&mut self.leader.replication, command)?;
        ensure!(taken, "a command was not taken");
        self.lead(decided)?;
        if self.proposer.decided < self.proposer.submitted {
            // The ring is full: the followers have to apply first.
            self.until("a decision", |group| {
                group.proposer.decided == group.proposer.submitted
            })?;
        }
        Ok(())
    }
}

impl Drop for TwoThreads {
    fn drop(&mut self) {
        self.ask(TO_END);
        if let Some(thread) = self.thread.take() {
            // If it panicked, that has been said.
            let _ = thread.join();
        }
    }
}

impl Core for TwoThreads {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn setup(&self) -> String {
        format!(
            "2 threads: leader / followers, which look every {} us; quorum first; the leader's applying on the clock",
            LOOK.as_micros()
        )
    }

    fn wake(&mut self) -> Result<()> {
        self.ask(AWAKE);
        self.turn()
    }

    fn decide(&mut self, command: &Command) -> Result<()> {
        self.lead_with(command, || ())
    }

    /// The clock stops at the engine's answer, and not where its turn ends.
    #[inline]
    fn one(&mut self, command: &Command, clock: &Clock) -> Result<u64> {
        let mut knew = None;
        self.lead_with(command, || knew = Some(clock.raw()))?;
        Ok(knew.unwrap_or_else(|| clock.raw()))
    }

    fn settle(&mut self) -> Result<()> {
        self.turn()
    }

    fn pipelined(&mut self, in_flight: usize, numbers: Range<u64>) -> Result<Duration> {
        let clock = Clock::new();
        let start = clock.raw();
        let mut next = numbers.start;
        while next < numbers.end || self.proposer.decided < self.proposer.submitted {
            let free = in_flight as u64 - (self.proposer.submitted - self.proposer.decided);
            let end = numbers.end.min(next + free);
            while next < end
                && self
                    .proposer
                    .submit(&mut self.leader.replication, &Command::new(next))?
            {
                next += 1;
            }
            self.turn()?;
        }
        self.until("the followers' logs", |group| {
            is_everywhere(&group.leader.replication)
        })?;
        Ok(clock.delta(start, clock.raw()))
    }

    fn rest(&mut self) -> Result<()> {
        let followers = [id(LEADER + 1)?, id(LEADER + 2)?];
        self.until("that all have applied everything", |group| {
            let leader = &group.leader.replication;
            let all = leader.applied().index;
            followers
                .iter()
                .all(|id| leader.peer_public(*id, public::APPLIED) == all)
        })?;
        self.ask(TO_SLEEP);
        self.until("that the followers sleep", |group| {
            group.shared.state.load(Ordering::Acquire) == ASLEEP
        })?;
        let applied = self.shared.applied.lock();
        self.applied = applied.unwrap_or_else(PoisonError::into_inner).clone();
        Ok(())
    }

    fn decided(&self) -> u64 {
        self.proposer.decided
    }

    fn applied(&self) -> [Applied; REPLICAS] {
        let [near, far] = self.applied.clone();
        [self.leader.replication.app().clone(), near, far]
    }
}
