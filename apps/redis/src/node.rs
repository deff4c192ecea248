//! One node: its replica, what its server is just now, and the threads beside the server's.
//!
//! ```text
//! redis-server's thread      hooks -> decide, prove (under the engine's lock)
//! mu-node                    polls the engine, pumps decided bytes into a follower's server
//! mu-feeder                  answers the local server's questions as its primary (feeder.rs)
//! mu-keeper                  makes the server a primary when this node leads (keeper.rs)
//! mu-sentinel                tells clients where the primary is (sentinel.rs)
//! ```
//!
//! The server begins as a replica of the feeder and becomes a primary at most once. A node that has led and does not
//! any more ends its process, at once and without a word to any client, since its server may have executed what is
//! not decided; whoever supervises it starts it again, empty, and it gets a dataset from the others.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mu::config::Config;
use mu::control::new_incarnation;
use mu::host::{Device, Direct, Handle, Options, Pacer, Rest, monotonic_ns, sleep_precisely};
use mu_verbs::Context;

use crate::effects::{Effects, Local};
use crate::engine::{Engine, Seat};
use crate::feed::{Base, Feed};
use crate::hooks_raw;
use crate::setup::{Fault, Setup};

/// The status of a process that ended since it could not go on safely; it is to be started again.
pub(crate) const ENDED: i32 = 75;

/// The status of a process whose settings are wrong; starting it again would not help.
pub(crate) const MISCONFIGURED: i32 = 78;

/// A node that leads so long while its server is no primary gives the leadership to another one.
const PATIENCE: Duration = Duration::from_secs(1);

/// A node whose server works by itself is polled so often: a follower then looks for decided bytes, and a primary's
/// turns poll the replica anyway. Whatever concerns the leadership wakes it.
const QUIET_NS: u64 = 1_000_000;

/// What the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A replica of the feeder.
    Follower,
    /// A primary, whose every turn is decided by the log.
    Leader,
}

/// What is counted.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) turns: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) proofs: AtomicU64,
}

/// See the module.
pub(crate) struct Node {
    pub(crate) setup: Setup,
    pub(crate) config: Config,
    engine: Mutex<Box<dyn Engine>>,
    pub(crate) handle: Handle,
    pub(crate) feed: Arc<Feed>,
    mode: AtomicU8,
    leads: AtomicBool,
    changed: (Mutex<()>, Condvar),
    pub(crate) counters: Counters,
}

static NODE: OnceLock<Node> = OnceLock::new();

/// The node, once it is started.
#[inline]
pub(crate) fn get() -> Option<&'static Node> {
    NODE.get()
}

/// Ends the process: it cannot go on safely.
pub(crate) fn end(why: &str) -> ! {
    eprintln!("mu: {why}; this process ends and is to be started again as a follower");
    hooks_raw::exit_now(ENDED);
}

/// Starts the node of this process.
///
/// # Errors
/// What the configuration or the device says, in words.
pub(crate) fn start(setup: Setup, local: Box<dyn Local>) -> anyhow::Result<&'static Node> {
    let config = Config::from_file(&setup.config)?;
    let options = Options::from_config(&config, setup.id, setup.form)?;
    let session = new_incarnation()?.max(1);
    let feed = Arc::new(Feed::new(session));
    if setup.form {
        feed.reset(Arc::new(Base::empty()), b"");
    }
    let effects = Effects::new(Arc::clone(&feed), local);
    let engine = match Device::open(&config, setup.id)? {
        Device::Shm(ctx) => seat(&ctx, &config, &setup, effects, session)?,
        Device::Nic(ctx) => seat(&ctx, &config, &setup, effects, session)?,
    };
    let node = Node {
        handle: engine.handle(),
        engine: Mutex::new(engine),
        feed,
        mode: AtomicU8::new(0),
        leads: AtomicBool::new(false),
        changed: Default::default(),
        counters: Counters::default(),
        setup,
        config,
    };
    anyhow::ensure!(NODE.set(node).is_ok(), "there is a node already");
    let node = get().expect("just set");
    let pacer = Pacer::new(options.replication.policy, monotonic_ns());
    let longest_ns = options.settings.stuck_ns / 4;
    spawn("mu-node", move || node.run(pacer, longest_ns))?;
    Ok(node)
}

fn seat<C: Context>(
    ctx: &C,
    config: &Config,
    setup: &Setup,
    effects: Effects,
    session: u64,
) -> anyhow::Result<Box<dyn Engine>>
where
    Direct<C, Effects>: Send,
{
    let direct = Direct::member(ctx, config, setup.id, setup.form, effects)?;
    Ok(Box::new(Seat::new(direct, session)))
}

/// Starts a thread of the node. A panic in one ends the process: the others rely on it.
pub(crate) fn spawn(
    name: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> anyhow::Result<()> {
    let guarded = move || {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err() {
            end(&format!("the thread {name} panicked"));
        }
    };
    thread::Builder::new().name(name.into()).spawn(guarded)?;
    Ok(())
}

impl Node {
    /// What the server is.
    #[inline]
    pub(crate) fn mode(&self) -> Mode {
        match self.mode.load(Ordering::SeqCst) {
            0 => Mode::Follower,
            _ => Mode::Leader,
        }
    }

    /// The server, which has applied the stream up to `position`, becomes a primary. Called while it stands still, so
    /// this node decides nothing meanwhile. False, and nothing changes, if the stream has gone on: another one leads.
    ///
    /// The office may be lost at any point in here. Before the feed's answer another leader's bytes are seen by it;
    /// after it either this sees that this node does not lead any more, or [`note`](Self::note) sees the primary.
    pub(crate) fn lead(&self, position: u64) -> bool {
        if !self.feed.lead(position) {
            return false;
        }
        self.mode.store(1, Ordering::SeqCst);
        if !self.leads() || self.position() != position {
            end("another replica leads since the server was about to become a primary");
        }
        true
    }

    /// How long the stream is here.
    pub(crate) fn position(&self) -> u64 {
        self.feed.end()
    }

    /// Whether the replica leads.
    pub(crate) fn leads(&self) -> bool {
        self.leads.load(Ordering::SeqCst)
    }

    /// Waits until something changed, for a while at most.
    pub(crate) fn wait(&self, most: Duration) {
        let guard = self
            .changed
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !self.leads() || self.mode() == Mode::Leader {
            drop(self.changed.1.wait_timeout(guard, most));
        }
    }

    /// The replica, under its lock.
    pub(crate) fn engine(&self) -> MutexGuard<'_, Box<dyn Engine>> {
        // A panic of a thread that has it ends the process.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides a turn of the server, or ends the process.
    pub(crate) fn decide(&'static self, turn: &mut [u8]) {
        self.counters.turns.fetch_add(1, Ordering::Relaxed);
        self.counters
            .bytes
            .fetch_add(turn.len() as u64 - 1, Ordering::Relaxed);
        if self.setup.fault == Some(Fault::EarlyAnswer) {
            return self.decide_later(turn.to_vec());
        }
        let mut engine = self.engine();
        if let Err(error) = engine.decide(turn) {
            end(&format!("what was written cannot be decided: {error}"));
        }
    }

    /// The seeded bug: the answer leaves, and what it tells of is decided some time later.
    fn decide_later(&'static self, mut turn: Vec<u8>) {
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            if let Err(error) = self.engine().decide(&mut turn) {
                end(&format!("what was written cannot be decided: {error}"));
            }
        });
    }

    /// Proves that this node leads, or ends the process.
    pub(crate) fn prove(&self) {
        if self.setup.fault == Some(Fault::UnprovedRead) {
            return;
        }
        self.counters.proofs.fetch_add(1, Ordering::Relaxed);
        loop {
            match self.engine().prove() {
                Ok(_) => return,
                Err(mu::ProposeError::Overloaded) => thread::yield_now(),
                Err(error) => end(&format!(
                    "what was read cannot be proved to be fresh: {error}"
                )),
            }
        }
    }

    /// The thread that polls.
    fn run(&self, mut pacer: Pacer, longest_ns: u64) {
        sleep_precisely();
        let mut waits_since = None;
        loop {
            let (pace, leads, follows, stopped) = {
                let mut engine = self.engine();
                (
                    engine.poll(),
                    engine.leads(),
                    engine.follows(),
                    engine.stopped(),
                )
            };
            if let Some(why) = stopped {
                end(&format!("the replica has stopped: {why}"));
            }
            self.note(leads);
            self.give_up(leads, &mut waits_since);
            let pumped = self.feed.pump();
            let now_ns = monotonic_ns();
            let worked = pace.worked || pumped;
            let is_primary = leads && self.mode() == Mode::Leader;
            if is_primary || follows && !worked {
                // One wake-up for many turns of the leader, which has better use for the processors.
                self.handle.sleep(QUIET_NS.min(longest_ns), || false);
                continue;
            }
            match pacer.rest(now_ns, worked, pace.waiting, now_ns + longest_ns) {
                Rest::Spin => std::hint::spin_loop(),
                Rest::Yield => thread::yield_now(),
                Rest::Sleep { ns } => self.handle.sleep(ns, || false),
            }
        }
    }

    /// Hands the leadership over if the server does not become a primary. This is no business of the keeper, which may
    /// be waiting for a server that stands still.
    fn give_up(&self, leads: bool, since: &mut Option<Instant>) {
        if !leads || self.mode() == Mode::Leader {
            *since = None;
            return;
        }
        let begin = since.get_or_insert_with(Instant::now);
        if begin.elapsed() < PATIENCE {
            return;
        }
        *begin = Instant::now();
        match self.engine().hand_over() {
            Ok(()) => {
                tracing::warn!("the server does not become a primary: another one is to lead")
            }
            Err(error) => {
                tracing::warn!(%error, "the server does not become a primary, and no other can lead");
            }
        }
    }

    /// Takes in whether the replica leads. A primary without its office ends, whenever it became one.
    fn note(&self, leads: bool) {
        let before = self.leads.swap(leads, Ordering::SeqCst);
        if !leads && self.mode() == Mode::Leader && self.setup.fault != Some(Fault::UnprovedRead) {
            end("another replica leads");
        }
        if before == leads {
            return;
        }
        let _guard = self
            .changed
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.changed.1.notify_all();
    }
}
