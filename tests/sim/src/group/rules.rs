//! Rules for what an engine has just done, of which the log alone would tell much later or not at all: how a leadership
//! begins (I6, I8), what is written over (I14), who gets the right (I15), and when the heart beats (I20).

use std::ops::Range;

use mu_protocol::ids::{Epoch, ReplicaId};
use mu_protocol::layout::{header, public};
use mu_protocol::limits::LOG_HEADER_BYTES;
use mu_protocol::log::look;
use mu_protocol::zoo::Sound;

use super::oracle::holds;
use super::replica::{Process, Rep};
use super::{Engine, Group};

/// A background engine that is polled after so many heartbeats was paused, and may beat once more.
const PAUSED_BEATS: u64 = 4;
/// Beats beyond those of the time after which an engine is stuck: between a poll of the other engine and when this one
/// learns of it, and at both ends.
const SPARE_BEATS: u64 = 4;

/// Bits of a request's number that have the index of the last entry it writes.
const INDEX_BITS: u64 = (1 << 32) - 1;

/// Since the replication engine's last poll.
#[derive(Clone, Copy, Default)]
pub(crate) struct PulseSeen {
    polled_ns: u64,
    beats: u64,
}

/// After the last poll of the background engine.
#[derive(Clone, Copy, Default)]
pub(crate) struct RightsSeen {
    promised: Epoch,
    holder: Option<ReplicaId>,
}

impl Process {
    pub(crate) fn heartbeat(&self) -> u64 {
        self.board.load(public::HEARTBEAT)
    }

    /// The replication engine is polled, or has been.
    pub(crate) fn progressed(&self) {
        let seen = self.pulse.get();
        self.pulse.set(PulseSeen { beats: 0, ..seen });
    }
}

impl Group {
    /// I20: the counter that peers read stands still soon after the replication engine does. One that was paused itself
    /// cannot tell, and one that takes a state may take long.
    pub(crate) fn pulse_rule(&self, slot: usize, process: &Process, now_ns: u64, before: u64) {
        let heartbeat_ns = self.settings.heartbeat_ns;
        let PulseSeen { polled_ns, beats } = process.pulse.get();
        let paused = now_ns.saturating_sub(polled_ns) > PAUSED_BEATS * heartbeat_ns;
        let counts = process.heartbeat() != before && !paused && !process.shared.is_busy();
        let beats = beats + u64::from(counts);
        process.pulse.set(PulseSeen {
            polled_ns: now_ns,
            beats,
        });
        if beats > self.settings.stuck_ns / heartbeat_ns + SPARE_BEATS {
            self.fail(format!(
                "I20: the heart of replica {slot} has beaten {beats} times since its replication engine was polled"
            ));
        }
    }

    /// I15: promises go up, and the right goes to whom the last one was made.
    pub(crate) fn rights_rule(&self, slot: usize, process: &Process) {
        let (promised, holder) = (process.shared.promised(), process.shared.holder());
        let seen = process.rights.replace(RightsSeen { promised, holder });
        if promised < seen.promised {
            self.fail(format!(
                "I15: the promise of replica {slot} fell from {} to {promised}",
                seen.promised
            ));
        }
        // It may have stood up itself meanwhile, and revokes that one first.
        let due = [promised.owner(), Some(self.slots[slot].id)];
        let is_new = holder.is_some() && holder != seen.holder;
        if is_new && holder != due[0] && due[0] != due[1] {
            self.fail(format!(
                "I15: replica {slot} gave the right to {holder:?}, and has promised it for {promised}"
            ));
        }
    }

    /// A leadership begins: a majority has promised, and says so to later leaders (I8), and whatever was decided before
    /// is in the leader's log (I6).
    pub(crate) fn leader_rules(&self, slot: usize, process: &Process, rep: &Rep, epoch: Epoch) {
        if self.core.borrow().oracle.excused > 0 {
            return;
        }
        let prepared = |id: &ReplicaId| {
            if id.index() == slot {
                return process.shared.promised() >= epoch;
            }
            let here = |log: &mu_protocol::log::Log| log.header(header::MIN_PROPOSAL) >= epoch.0;
            let graves = &self.core.borrow().graves;
            self.reachable()
                .any(|(place, process)| place.id == *id && here(&process.log))
                || graves.iter().any(|(of, _, log)| of == id && here(log))
        };
        let count = || self.members.iter().filter(prepared).count();
        let quorum = self.members.quorum();
        if count() < quorum {
            // Devices may have acknowledged what is not visible yet.
            self.world.reveal();
        }
        if count() < quorum {
            self.fail(format!(
                "I8: replica {slot} leads in {epoch}, and {} of its majority were prepared",
                count()
            ));
        }
        let core = self.core.borrow();
        let oracle = &core.oracle;
        // Of what a later leader has decided it knows nothing.
        if oracle.is_overtaken(epoch) {
            return;
        }
        let lacks = |index: &u64| {
            let entry = oracle.entry(*index).expect("below the last");
            !holds(rep.log(), entry.at, &entry.header)
        };
        let missing = (rep.applied().index + 1..=oracle.last()).find(lacks);
        if let Some(index) = missing {
            drop(core);
            self.fail(format!(
                "I6: replica {slot} leads in {epoch} without entry {index}, which is decided"
            ));
        }
    }

    /// I14: nobody writes further than one ring beyond what a replica has applied, where it has entries that it needs.
    /// Bytes do not say for which lap they are. Those for a later one are in the writer's own log, at the same place,
    /// and the number of a request that writes entries has the index of the last of them.
    pub(crate) fn lapping_rule(
        &self,
        slot: usize,
        process: &Process,
        (from, wr_id): (usize, u64),
        placed: Range<u64>,
    ) {
        let Some(writer) = self.process(from) else {
            return;
        };
        let (ring, applied) = (process.log.ring(), process.applied.get());
        if writer.applied.get().at <= applied.at {
            return;
        }
        let core = self.core.borrow();
        let in_mid_poll = core.running.contains(&(slot, Engine::Replication));
        if in_mid_poll || core.oracle.excused > 0 {
            return;
        }
        drop(core);
        let at = applied.at + (placed.start + ring - applied.at % ring) % ring;
        let mut end = writer.applied.get();
        while end.at <= at + ring {
            let next = look(&writer.log, end, self.settings.max_entry_bytes(), Sound);
            let Some(header) = next else {
                return;
            };
            end = end.after(&header);
        }
        // The last entry is the one of the later lap that has this place.
        let goes_there = wr_id & INDEX_BITS >= end.index & INDEX_BITS;
        let words = LOG_HEADER_BYTES as u64 + placed.start..LOG_HEADER_BYTES as u64 + placed.end;
        let same = |byte: u64| {
            let word = byte as usize / 8;
            process.log.memory().load(word) == writer.log.memory().load(word)
        };
        if goes_there && words.step_by(8).all(same) {
            self.fail(format!(
                "I14: replica {from} wrote at {} of the log of {slot}, which has applied up to {}",
                at + ring,
                applied.at
            ));
        }
    }
}
