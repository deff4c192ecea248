//! What must hold at every step, whatever happens: the oracles. Each looks at the replicas' memory and at what they
//! say, and knows of the protocol only what it promises. The numbers are those of the invariants I1 to I26 in
//! `docs/sim.md`, section 3, which also says what holds those that no oracle looks at.

use std::collections::{HashMap, HashSet};

use mu_history::{KvOutput, OpId, Place};
use mu_protocol::entry::{self, Header, Kind};
use mu_protocol::ids::{Epoch, ReplicaId};
use mu_protocol::log::{Log, Point, Source};

use super::app::Applied;

/// An entry that somebody claimed to be decided.
#[derive(Clone, Debug)]
pub(crate) struct Decided {
    pub(crate) header: Header,
    pub(crate) at: u64,
    /// The commands in it, once a replica has applied it.
    commands: Option<Vec<Applied>>,
}

/// What a client was told of one try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Nothing,
    /// It is decided.
    Decided,
    /// It is not, and never will be.
    Never,
}

/// One try of an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) op: OpId,
    pub(crate) told: Told,
    /// It stands in a decided entry.
    pub(crate) seen: bool,
}

/// Everything known so far, and the first thing that was wrong.
#[derive(Default)]
pub(crate) struct Oracle {
    /// Entry i at i - 1.
    log: Vec<Decided>,
    digests: HashMap<u64, (u64, ReplicaId)>,
    /// Which life of which replica leads in an epoch.
    leaders: HashMap<u64, (ReplicaId, u64)>,
    /// Lives that have a vote: the founders, and who was admitted.
    voters: HashSet<(ReplicaId, u64)>,
    pub(crate) attempts: Vec<Attempt>,
    /// Operations of which a try stands in a decided entry.
    standing: HashSet<OpId>,
    /// Where each operation took effect first.
    effects: HashMap<u32, (u64, KvOutput)>,
    /// Replicas whose memory failed: an entry there may be damaged and still have been held.
    pub(crate) excused: usize,
    violation: Option<String>,
}

/// Commands of one entry have places within its index.
const PLACES: u64 = 1 << 16;

/// The place of a command in the total order of commands.
pub(crate) fn position(index: u64, place: u16) -> u64 {
    index * PLACES + u64::from(place)
}

/// The place after the last command of an entry.
pub(crate) fn position_after(index: u64) -> u64 {
    index * PLACES + PLACES - 1
}

impl Oracle {
    /// Something is wrong. Only the first is kept: what follows may follow from it.
    pub(crate) fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(crate) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// The highest index that anybody claimed.
    pub(crate) fn last(&self) -> u64 {
        self.log.len() as u64
    }

    /// The point behind it.
    pub(crate) fn end(&self) -> Point {
        self.log.last().map_or(Point::default(), |last| {
            let from = Point {
                at: last.at,
                ..Point::default()
            };
            from.after(&last.header)
        })
    }

    pub(crate) fn entry(&self, index: u64) -> Option<&Decided> {
        self.log.get(index.checked_sub(1)? as usize)
    }

    pub(crate) fn founder(&mut self, id: ReplicaId, incarnation: u64) {
        self.voters.insert((id, incarnation));
    }

    pub(crate) fn is_voter(&self, id: ReplicaId, incarnation: u64) -> bool {
        self.voters.contains(&(id, incarnation))
    }

    /// Whether somebody has led in a later epoch.
    pub(crate) fn is_overtaken(&self, epoch: Epoch) -> bool {
        self.leaders.keys().any(|later| *later > epoch.0)
    }

    /// An epoch belongs to one life of one replica.
    pub(crate) fn leads(&mut self, id: ReplicaId, incarnation: u64, epoch: Epoch) {
        if epoch.owner() != Some(id) {
            return self.fail(format!(
                "epoch: replica {id} leads in epoch {epoch}, which is not its own"
            ));
        }
        let first = *self.leaders.entry(epoch.0).or_insert((id, incarnation));
        if first != (id, incarnation) {
            self.fail(format!(
                "epoch: {epoch} is used by two lives of replica {id}"
            ));
        }
    }

    /// A replica holds `header` at `at` and takes it for decided. `held` says how many replicas with a vote hold it;
    /// that counts only if nobody claimed it before.
    pub(crate) fn claim(
        &mut self,
        who: ReplicaId,
        header: &Header,
        at: u64,
        quorum: usize,
        held: usize,
    ) {
        let index = header.index;
        if let Some(known) = self.entry(index) {
            if (known.header, known.at) != (*header, at) {
                let (other, at_other) = (known.header, known.at);
                self.fail(format!(
                    "I1 agreement: entry {index} is {header:?} at {at} for replica {who}, and {other:?} at {at_other} \
                     for another"
                ));
            }
            return;
        }
        let end = self.end();
        let expected = (end.index + 1, end.at, end.epoch);
        if (index, at, header.previous) != expected {
            // What comes before could not be followed, since a bit of it flipped.
            if self.excused > 0 {
                return;
            }
            return self.fail(format!(
                "I3 prefix: replica {who} takes {header:?} at {at} for decided; expected index, position and previous \
                 epoch are {expected:?}"
            ));
        }
        if held + self.excused < quorum {
            self.fail(format!(
                "I2 quorum: replica {who} takes entry {index} of epoch {} for decided, and {held} voters hold it, not \
                 {quorum}",
                header.epoch
            ));
        }
        self.log.push(Decided {
            header: *header,
            at,
            commands: None,
        });
    }

    /// The payload of an entry that was claimed just now.
    pub(crate) fn payload(&mut self, header: &Header, payload: &[u8]) {
        if header.kind == Kind::Admit {
            match entry::admitted(payload) {
                Some(life) => drop(self.voters.insert(life)),
                None => self.fail(format!("I2 validity: entry {} admits nobody", header.index)),
            }
        }
    }

    /// A replica applied these commands, in this order (I1, I2, I3, exactly once).
    pub(crate) fn applied(&mut self, who: ReplicaId, commands: &[Applied]) {
        for group in commands.chunk_by(|a, b| a.index == b.index) {
            let index = group[0].index;
            let Some(decided) = self.log.get_mut(index as usize - 1) else {
                if self.excused > 0 {
                    // Its place is known all the same, and a retry may be answered by it.
                    group.iter().for_each(|command| self.effect(who, command));
                    continue;
                }
                return self.fail(format!(
                    "I10: replica {who} applied entry {index}, which nobody holds decided"
                ));
            };
            if decided.header.kind != Kind::Commands {
                let kind = decided.header.kind;
                return self.fail(format!(
                    "I1 agreement: replica {who} applied {group:?} at {index}, which is {kind:?}"
                ));
            }
            match &decided.commands {
                Some(known) if known == group => continue,
                Some(known) => {
                    let known = known.clone();
                    return self.fail(format!(
                        "I1 agreement: replica {who} applied {group:?} at index {index}, another {known:?}"
                    ));
                }
                None => decided.commands = Some(group.to_vec()),
            }
            group.iter().for_each(|command| self.effect(who, command));
        }
    }

    /// A command is applied for the first time in the run.
    fn effect(&mut self, who: ReplicaId, command: &Applied) {
        let (Some(request), Some(output)) = (command.request, command.output) else {
            return self.fail(format!(
                "I2 validity: replica {who} applied bytes at index {} that no client sent",
                command.index
            ));
        };
        let place = position(command.index, command.place);
        match self.effects.get(&request.op) {
            // Applied before its entry could be followed, and alike.
            Some(known) if self.excused > 0 && *known == (place, output) => {}
            Some((first, _)) => {
                let (op, first, place) = (request.op, first / PLACES, place / PLACES);
                self.fail(format!(
                    "I21 exactly once: operation {op} was applied at entries {first} and {place}"
                ));
            }
            None => drop(self.effects.insert(request.op, (place, output))),
        }
    }

    /// Every try that stands in a decided entry, whether it is applied or found to be a retry: then this says so.
    pub(crate) fn stands(&mut self, index: u64, attempt: u32) -> bool {
        let Some(known) = self.attempts.get_mut(attempt as usize) else {
            self.fail(format!(
                "I2 validity: entry {index} holds try {attempt}, which nobody made"
            ));
            return false;
        };
        known.seen = true;
        let (op, told) = (known.op, known.told);
        if told == Told::Never {
            self.fail(format!(
                "outcome: try {attempt} stands in entry {index}, and its client was told never"
            ));
        }
        !self.standing.insert(op)
    }

    /// A client is told that a try is not in the log and never will be.
    pub(crate) fn never(&mut self, attempt: u32) {
        let known = &mut self.attempts[attempt as usize];
        known.told = Told::Never;
        if known.seen {
            self.fail(format!(
                "outcome: try {attempt} is decided, and its client is told never"
            ));
        }
    }

    /// A client is told that a try is decided in entry `index`, with this reply (I21).
    pub(crate) fn answered(&mut self, attempt: u32, index: u64, output: KvOutput) {
        let known = &mut self.attempts[attempt as usize];
        known.told = Told::Decided;
        let op = known.op as u32;
        if index > self.last() {
            // What it stands in could not be followed, since a bit of it flipped.
            if self.excused > 0 {
                return;
            }
            let last = self.last();
            return self.fail(format!(
                "outcome: try {attempt} is answered as decided in {index}, beyond {last}"
            ));
        }
        match self.effects.get(&op) {
            Some((_, by_the_log)) if *by_the_log == output => {}
            other => {
                let other = other.map(|(_, output)| *output);
                self.fail(format!(
                    "I21 reply: operation {op} was answered {output:?}, by the log it is {other:?}"
                ));
            }
        }
    }

    /// I23: the digest of a replica's state at an index.
    pub(crate) fn digest(&mut self, who: ReplicaId, index: u64, digest: u64) {
        let (first, by) = *self.digests.entry(index).or_insert((digest, who));
        if first != digest {
            self.fail(format!(
                "I23 determinism: replicas {by} and {who} differ after entry {index}"
            ));
        }
    }

    /// Where the operations took effect, for the check of the whole history.
    pub(crate) fn places(&self) -> Vec<(OpId, Place)> {
        let mut places: Vec<_> = self
            .effects
            .iter()
            .map(|(op, (place, _))| (*op as OpId, Place::Applied { index: *place }))
            .collect();
        places.sort_unstable_by_key(|(op, _)| *op);
        places
    }
}

/// Whether a log holds this very entry here. Its payload is not looked at: that is the reader's to check.
pub(crate) fn holds(log: &Log, at: u64, header: &Header) -> bool {
    let words = header.to_words();
    let end = at + (header.size() - entry::TAIL_BYTES) as u64;
    words
        .iter()
        .enumerate()
        .all(|(n, word)| log.load(at + n as u64 * 8) == *word)
        && log.load(end) == entry::tail(words[entry::HEADER_WORDS - 1], header.previous)
}
