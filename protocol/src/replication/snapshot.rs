//! Snapshots for others: a replica that has state lays a copy out for whoever asked in its mailbox.

use mu_verbs::{Access, Context, Error, Memory, MemoryRegion};

use super::Replication;
use crate::ids::ReplicaId;
use crate::layout::{Role, SnapshotAnswer, row};
use crate::limits::MAX_REPLICAS;
use crate::machine::StateMachine;
use crate::zoo::Zoo;
use mu_verbs::sync::Ordering;

/// The copy and who was served.
pub(super) struct Donor<C: Context> {
    ctx: C,
    pd: C::Pd,
    served: [u64; MAX_REPLICAS],
    bytes: Vec<u8>,
    region: Option<C::Mr>,
}

impl<C: Context> Donor<C> {
    pub(super) fn new(ctx: C, pd: C::Pd) -> Self {
        Self {
            ctx,
            pd,
            served: [0; MAX_REPLICAS],
            bytes: Vec::new(),
            region: None,
        }
    }

    /// Puts `bytes` into registered memory, which grows by doubling and is used again.
    fn lay_out(&mut self) -> Result<(u64, u32), Error> {
        let len = self.bytes.len();
        let held = self.region.as_ref().map_or(0, |mr| mr.memory().len());
        if held < len {
            // The old registration goes first, so that two copies are never held.
            self.region = None;
            let memory: Memory = self
                .ctx
                .alloc_memory(len.next_power_of_two().max(1 << 16))?;
            self.region =
                Some(
                    self.ctx
                        .reg_mr(&self.pd, &memory, 0..memory.len(), Access::REMOTE_READ)?,
                );
        }
        let region = self.region.as_ref().expect("just made");
        region.memory().write_bytes(0, &self.bytes);
        Ok((region.addr(), region.rkey()))
    }
}

impl<C: Context, S: StateMachine, Z: Zoo> Replication<C, S, Z> {
    /// Answers requests for snapshots, one at a time.
    pub(super) fn give_snapshots(&mut self) -> bool {
        for id in self.settings.peers().iter() {
            let request = self.board.mail(id, row::SNAPSHOT_REQUEST);
            if request != self.donor.served[id.index()] {
                self.donor.served[id.index()] = request;
                if request != 0 {
                    self.give_snapshot(id, request);
                    return true;
                }
            }
        }
        false
    }

    #[inline(never)]
    fn give_snapshot(&mut self, to: ReplicaId, request: u64) {
        let able =
            matches!(self.standing.role, Role::Follower | Role::Leader) && self.standing.voter;
        let mut answer = SnapshotAnswer {
            request,
            ..SnapshotAnswer::default()
        };
        self.donor.bytes.clear();
        if able {
            // The application may take long for it, and that is no reason to replace this replica.
            self.shared.set_busy(true);
            self.bytes_of_admissions();
            self.machine.snapshot(&mut self.donor.bytes, self.zoo);
            if let Ok((addr, rkey)) = self.donor.lay_out() {
                let applied = self.machine.applied();
                answer = SnapshotAnswer {
                    request,
                    addr,
                    rkey,
                    crc: crc32c::crc32c(&self.donor.bytes),
                    len: self.donor.bytes.len() as u64,
                    index: applied.index,
                    at: applied.at,
                    epoch: applied.epoch,
                };
                self.counters.snapshots += 1;
            }
        }
        self.shared.set_busy(false);
        // The private copy is not needed any more, and a state can be large.
        self.donor.bytes = Vec::new();
        self.board
            .set_out_record(to, row::SNAPSHOT_ANSWER, answer.to_words());
        self.changed(to);
    }

    /// A snapshot begins with the incarnations that the log has admitted.
    fn bytes_of_admissions(&mut self) {
        for incarnation in self.follow.admitted {
            self.donor
                .bytes
                .extend_from_slice(&incarnation.to_le_bytes());
        }
    }

    /// Takes the admissions off the front of a snapshot.
    pub(super) fn take_admissions<'b>(&mut self, bytes: &'b [u8]) -> Option<&'b [u8]> {
        let (head, rest) = bytes.split_at_checked(MAX_REPLICAS * 8)?;
        for (place, word) in self.follow.admitted.iter_mut().zip(head.as_chunks::<8>().0) {
            *place = u64::from_le_bytes(*word);
        }
        Some(rest)
    }

    /// The own half of the outbox row for `peer` has changed.
    pub(super) fn changed(&self, peer: ReplicaId) {
        let changes = &self.shared.peer(peer).outbox_changes;
        changes.store(
            changes.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Release,
        );
    }
}
