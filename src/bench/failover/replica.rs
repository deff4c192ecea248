//! The replica's end: the strings that the measurement pulls.
//!
//! Every replica has a few words of the shared memory. Between two turns of its server, that is on the replication
//! thread, it looks whether it is to hang, to hand the leadership over, or to tell its state. At every verb it looks
//! whether that is the step at which it is to die or to stop, and on the thread of the heartbeats whether that is to
//! hang.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mu::ReplicaId;
use mu::kv::Server;
use mu_verbs::Context;
use mu_verbs::sync::{Ordering, Word};

use super::steps::{Step, Trapped};
use crate::bench::map_raw::{Kind, Words};
use crate::cmd::Around;
use crate::local::cluster::PATIENCE;

/// Words of one replica: two cache lines, so that nobody slows another one down.
const STRIDE: usize = 16;
const WORDS: usize = STRIDE * 16;

/// Which thread hangs; a [`Hang`].
const HANG: usize = 0;
/// The replica (plus one) to hand over to.
const HAND_OVER: usize = 1;
/// The step at which it dies or stops, 0 for none; written last when armed.
const STEP: usize = 2;
/// How many times the step has still to come.
const LEFT: usize = 3;
/// Not 0 if it is to stop and not to die.
const STOPS: usize = 4;
/// When it came to the step.
const SPRUNG: usize = 5;
/// Not 0 if it is to tell its state; 0 again when both words below are told.
const TELL: usize = 6;
const APPLIED: usize = 7;
const DIGEST: usize = 8;

/// While it hangs it looks this often whether it is to go on.
const HANGS: Duration = Duration::from_micros(100);

/// A handover may be refused, since the successor is not up to date yet: it is asked for again after so long.
pub(crate) const AGAIN: Duration = Duration::from_millis(100);

/// What hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hang {
    /// Nothing.
    Nothing,
    /// The thread that replicates.
    Replication,
    /// The thread that keeps heartbeats and permissions.
    Background,
}

/// The state of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// The last entry that it applied.
    pub(crate) applied: u64,
    /// Of its state after that.
    pub(crate) digest: u64,
}

/// All the strings, in the hands of the measurement.
pub(crate) struct Strings(Words);

impl Strings {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Words::new(Kind::File, WORDS)?))
    }

    /// How a replica finds them.
    pub(crate) fn inherit(&self) -> Result<i32> {
        self.0.inherit()
    }

    /// Makes a thread of a replica hang, or go on.
    pub(crate) fn hang(&self, id: u8, what: Hang) {
        word(&self.0, id, HANG).store(what as u64, Ordering::SeqCst);
    }

    /// Sets the trap of a replica.
    pub(crate) fn arm(&self, id: u8, step: Step, stops: bool) {
        let set = |which, value| word(&self.0, id, which).store(value, Ordering::SeqCst);
        set(SPRUNG, 0);
        set(LEFT, step.nth.into());
        set(STOPS, stops.into());
        set(STEP, step.to_word());
    }

    /// When the replica came to its step, if it has.
    pub(crate) fn sprung(&self, id: u8) -> Option<u64> {
        let at_ns = word(&self.0, id, SPRUNG).load(Ordering::SeqCst);
        (at_ns != 0).then_some(at_ns)
    }

    /// Takes the trap away.
    pub(crate) fn disarm(&self, id: u8) {
        word(&self.0, id, STEP).store(0, Ordering::SeqCst);
    }

    /// Makes a replica hand its leadership over.
    pub(crate) fn hand_over(&self, id: u8, to: u8) {
        word(&self.0, id, HAND_OVER).store(u64::from(to) + 1, Ordering::SeqCst);
    }

    /// Has a replica tell its state.
    pub(crate) fn state(&self, id: u8) -> Result<State> {
        let told = |which| word(&self.0, id, which).load(Ordering::SeqCst);
        word(&self.0, id, TELL).store(1, Ordering::SeqCst);
        let begin = Instant::now();
        while told(TELL) != 0 {
            ensure!(
                begin.elapsed() < PATIENCE,
                "replica {id} does not tell its state"
            );
            thread::sleep(HANGS);
        }
        Ok(State {
            applied: told(APPLIED),
            digest: told(DIGEST),
        })
    }
}

fn word(words: &Words, id: u8, which: usize) -> &Word {
    &words[usize::from(id) * STRIDE + which]
}

/// The replica's end of its strings.
pub(crate) struct Marionette(Arc<Trap>);

/// The words of one replica, as it sees them.
pub(crate) struct Trap {
    words: Words,
    id: u8,
}

impl Marionette {
    /// Of replica `id`, from the descriptor it inherited.
    pub(crate) fn inherited(words: i32, id: u8) -> Result<Self> {
        ReplicaId::new(id).context("--id")?;
        let words = Words::inherited(words, WORDS)?;
        Ok(Self(Arc::new(Trap { words, id })))
    }
}

impl Trap {
    fn word(&self, which: usize) -> &Word {
        word(&self.words, self.id, which)
    }

    /// Does not return while the calling thread, which is the one named, is to hang.
    #[inline]
    pub(super) fn hold(&self, thread: Hang) {
        while self.word(HANG).load(Ordering::Relaxed) == thread as u64 {
            thread::sleep(HANGS);
        }
    }

    pub(super) fn step(&self) -> &Word {
        self.word(STEP)
    }

    pub(super) fn left(&self) -> &Word {
        self.word(LEFT)
    }

    pub(super) fn stops(&self) -> &Word {
        self.word(STOPS)
    }

    pub(super) fn sprung(&self) -> &Word {
        self.word(SPRUNG)
    }
}

impl Around for Marionette {
    type Over<C: Context> = Trapped<C>;

    fn over<C: Context>(&self, ctx: C) -> Trapped<C> {
        Trapped::new(ctx, Arc::clone(&self.0))
    }

    fn between<C: Context>(&mut self, server: &mut Server<C>) {
        let trap = &self.0;
        trap.hold(Hang::Replication);
        if trap.word(TELL).load(Ordering::Relaxed) != 0 {
            let engine = server.direct().engine();
            let tell = |which, value| trap.word(which).store(value, Ordering::SeqCst);
            tell(APPLIED, engine.applied().index);
            tell(DIGEST, engine.digest());
            tell(TELL, 0);
        }
        if trap.word(HAND_OVER).load(Ordering::Relaxed) == 0 {
            return;
        }
        let to = trap.word(HAND_OVER).swap(0, Ordering::AcqRel);
        let to = to.checked_sub(1).and_then(|to| u8::try_from(to).ok());
        if let Err(error) = server.transfer(to.and_then(ReplicaId::new)) {
            tracing::warn!(%error, "not handed over");
        }
    }
}
