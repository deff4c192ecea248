//! The replica's end: the strings that the measurement pulls.
//!
//! Every replica has a few words of the shared memory. Between two turns of its server, that is on the replication
//! thread, it looks whether it is to hang or to hand the leadership over.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mu::ReplicaId;
use mu::kv::Server;
use mu_verbs::Context;
use mu_verbs::sync::{Ordering, Word};

use crate::bench::map_raw::{Kind, Words};
use crate::cmd::Around;

/// Words of one replica: two cache lines, so that nobody slows another one down.
const STRIDE: usize = 16;
const WORDS: usize = STRIDE * 16;

/// While it is not 0 the replication thread hangs.
const HANG: usize = 0;
/// The replica (plus one) to hand over to.
const HAND_OVER: usize = 1;

/// While it hangs it looks this often whether it is to go on.
const HANGS: Duration = Duration::from_micros(100);

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

    /// Makes a replica's replication thread hang, or go on.
    pub(crate) fn hang(&self, id: u8, hangs: bool) {
        word(&self.0, id, HANG).store(hangs.into(), Ordering::SeqCst);
    }

    /// Makes a replica hand its leadership over.
    pub(crate) fn hand_over(&self, id: u8, to: u8) {
        word(&self.0, id, HAND_OVER).store(u64::from(to) + 1, Ordering::SeqCst);
    }
}

fn word(words: &Words, id: u8, which: usize) -> &Word {
    &words[usize::from(id) * STRIDE + which]
}

/// The replica's end of its strings.
pub(crate) struct Marionette {
    words: Words,
    id: u8,
}

impl Marionette {
    /// Of replica `id`, from the descriptor it inherited.
    pub(crate) fn inherited(words: i32, id: u8) -> Result<Self> {
        ReplicaId::new(id).context("--id")?;
        let words = Words::inherited(words, WORDS)?;
        Ok(Self { words, id })
    }

    fn word(&self, which: usize) -> &Word {
        word(&self.words, self.id, which)
    }
}

impl Around for Marionette {
    type Over<C: Context> = C;

    fn over<C: Context>(&self, ctx: C) -> C {
        ctx
    }

    fn between<C: Context>(&mut self, server: &mut Server<C>) {
        while self.word(HANG).load(Ordering::Relaxed) != 0 {
            thread::sleep(HANGS);
        }
        if self.word(HAND_OVER).load(Ordering::Relaxed) == 0 {
            return;
        }
        let to = self.word(HAND_OVER).swap(0, Ordering::AcqRel);
        let to = u8::try_from(to - 1).ok().and_then(ReplicaId::new);
        if let Err(error) = server.transfer(to) {
            tracing::warn!(%error, "not handed over");
        }
    }
}
