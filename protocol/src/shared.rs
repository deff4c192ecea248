//! What the two engines of one replica tell each other: words, each written by one side.
//!
//! # Ordering
//!
//! Safety rests on two orderings between the engines. The first is between the promise and the leader's own log. A
//! leader counts its own log towards a majority, so it has to be sure that its background engine has not granted
//! another epoch meanwhile:
//!
//! ```text
//! leader (replication engine)              granter (background engine of the same replica)
//! L1  write the entry into the own log     G1  promised := other epoch   (Release)
//! L2  fence                   (SeqCst)     G2  fence                     (SeqCst)
//! L3  load promised           (Acquire)    G3  acknowledge; the new leader reads this log
//! L4  count, if it is the own epoch
//! ```
//!
//! The fences are totally ordered. If L2 is first, the entry is visible to whatever is read after G3, so the new leader
//! finds it. If G2 is first, L3 sees G1 and the leader does not count. [`Shared::promise`] is G1 and G2,
//! [`Shared::own_log_written`] is L2, [`Shared::still_promised`] L3. Between L2 and L3 there may be anything: the
//! leader passes L2 as soon as the entry is written, when there is little to wait for, and L3 when it counts.
//!
//! The second is between a log link and the requests on it. A queue pair gets one connection after the other, and
//! an engine that was stopped in the middle must not come back and post for a connection that is over on the one that
//! has followed it: what went before may be lost, so what lands now says nothing of the log that it lands in.
//!
//! ```text
//! poster (replication engine)              connector (background engine of the same replica)
//! P1  held := the connection  (Release)    C1  generation := 0       (Release)
//! P2  fence                   (SeqCst)     C2  fence                 (SeqCst)
//! P3  load generation         (Acquire)    C3  load held             (Acquire)
//! P4  post, if it is that one              C4  RESET, INIT, connect, if it is 0
//! P5  held := 0               (Release)
//! ```
//!
//! The fences are totally ordered. If P2 is first, C3 sees P1, and the connector waits for P5, behind which there are
//! no posts. If C2 is first, P3 sees C1, and nothing is posted. [`Shared::hold_link`] is P1 to P3,
//! [`Shared::let_link_go`] P5, [`Shared::is_link_free`] C2 and C3.
//!
//! A write from the log takes its bytes when they leave, and again whenever a packet is sent again. So they have to
//! stand still until its completion, or until C4 has reset the queue pair: then [`Shared::link_over`] says so
//! (Release), and the replication engine asks [`Shared::is_link_over`] (Acquire) before it, or anybody whom it lets,
//! stores there.
//!
//! `left`, `holder` and the standing have orders of their own, which stand beside them. All other words are hints whose
//! staleness costs time, not safety.

use mu_verbs::Memory;
use mu_verbs::sync::{Ordering, Word, fence};

use crate::ids::{Epoch, ReplicaId};
use crate::layout::{Role, Standing, board_row, outbox_row, public};
use crate::limits::{MAX_REPLICAS, PUBLIC_WORDS};

/// The words. One for each replica, in an `Arc` that both engines hold.
#[derive(Debug)]
pub struct Shared {
    /// Background: the highest epoch granted to anybody, this replica included.
    promised: Word,
    /// Background: the epoch in which this replica is to lead; 0 if it is not.
    candidate: Word,
    /// Replication: the last epoch that it gave up by itself.
    resigned: Word,
    /// Replication: a promise under which it does not write its own log as a leader any more.
    left: Word,
    /// Replication: 1 while it does something that takes long and ends, such as a snapshot.
    busy: Word,
    /// Replication: counts its polls.
    progress: Word,
    /// Replication: the replica (plus one) that is to take over, 0 if none.
    handover: Word,
    /// Background: who (plus one) may write this log, this replica itself included; 0 if nobody.
    holder: Word,
    /// Background: why this replica has to halt; a code of [`Halt`].
    halt: Word,
    peers: [Peer; MAX_REPLICAS],
}

/// What the background engine knows of a peer, and what the replication engine asks of it.
#[derive(Debug)]
pub struct Peer {
    /// Background: generation of the connected log link, 0 while there is none.
    pub log_generation: Word,
    /// Replication: the generation of the log link on which it posts, 0 if it does not.
    log_held: Word,
    /// Background: the last generation of the log link whose queue pair has been reset since, 0 before the first.
    log_over: Word,
    /// Background: the same of the pull link.
    pub pull_generation: Word,
    /// Replication: the generation of the log link that failed.
    pub log_fault: Word,
    /// Replication: the generation of the pull link that failed.
    pub pull_fault: Word,
    /// Background: 1 while the pull-score says that it lives.
    pub alive: Word,
    /// Background: address and key of its log for pulls, from its hello.
    pub pull_addr: Word,
    /// See `pull_addr`.
    pub pull_rkey: Word,
    /// Replication: counts the changes of its half of the outbox row for this peer.
    pub outbox_changes: Word,
    /// Background: the peer's public line as last read; zeroes before.
    pub public: [Word; PUBLIC_WORDS],
}

/// Why the background engine halts the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// A majority has another digest of the state at the same index.
    Diverged,
}

impl Shared {
    /// All zero.
    pub fn new() -> Self {
        let word = || Word::new(0);
        Self {
            promised: word(),
            candidate: word(),
            resigned: word(),
            left: word(),
            busy: word(),
            progress: word(),
            handover: word(),
            holder: word(),
            halt: word(),
            peers: std::array::from_fn(|_| Peer {
                log_generation: word(),
                log_held: word(),
                log_over: word(),
                pull_generation: word(),
                log_fault: word(),
                pull_fault: word(),
                alive: word(),
                pull_addr: word(),
                pull_rkey: word(),
                outbox_changes: word(),
                public: std::array::from_fn(|_| word()),
            }),
        }
    }

    /// Makes `epoch` the promise (G1, G2). It must be above the old one; the caller revokes and acknowledges after.
    pub fn promise(&self, epoch: Epoch) {
        self.promised.store(epoch.0, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// The promise.
    pub fn promised(&self) -> Epoch {
        Epoch(self.promised.load(Ordering::Acquire))
    }

    /// Replication: what it wrote into the own log stands there before anything that it loads from now on (L2).
    #[inline]
    pub fn own_log_written(&self) {
        fence(Ordering::SeqCst);
    }

    /// Whether this replica's own promise is still `epoch` (L3). Entries of the own log count then that were written
    /// before the last [`own_log_written`](Self::own_log_written).
    #[inline]
    pub fn still_promised(&self, epoch: Epoch) -> bool {
        self.promised.load(Ordering::Acquire) == epoch.0
    }

    /// Background: says in which epoch this replica is to lead.
    pub fn set_candidate(&self, epoch: Epoch) {
        self.candidate.store(epoch.0, Ordering::Release);
    }

    /// The epoch in which this replica is to lead, [`Epoch::NONE`] if it is not.
    #[inline]
    pub fn candidate(&self) -> Epoch {
        Epoch(self.candidate.load(Ordering::Acquire))
    }

    /// Replication: gives `epoch` up.
    pub fn resign(&self, epoch: Epoch) {
        self.resigned.store(epoch.0, Ordering::Release);
    }

    /// The last epoch that the replication engine gave up by itself.
    pub fn resigned(&self) -> Epoch {
        Epoch(self.resigned.load(Ordering::Acquire))
    }

    /// Replication: from now on nothing is written into the own log under an epoch up to `promise`, nor sent from it.
    /// Called when it does not lead, with a promise read before it saw that it is no candidate. Everything it wrote
    /// before is visible (Release) to whoever sees this.
    #[inline]
    pub fn leave(&self, promise: Epoch) {
        if self.left.load(Ordering::Relaxed) != promise.0 {
            self.left.store(promise.0, Ordering::Release);
        }
    }

    /// The last promise under which the replication engine has stopped.
    pub fn left(&self) -> Epoch {
        Epoch(self.left.load(Ordering::Acquire))
    }

    /// Replication: begins or ends something that takes long.
    pub fn set_busy(&self, busy: bool) {
        self.busy.store(busy.into(), Ordering::Release);
    }

    /// Whether the replication engine said that it would be long.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire) != 0
    }

    /// Replication: one more poll.
    #[inline]
    pub fn advance(&self) {
        // One writer, so no read-modify-write is needed.
        self.progress.store(
            self.progress.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Release,
        );
    }

    /// How many polls there were.
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Acquire)
    }

    /// Replication: asks the background engine to hand the leadership to `to`, or to stop asking.
    pub fn hand_over(&self, to: Option<ReplicaId>) {
        self.handover.store(
            to.map_or(0, |id| u64::from(id.get()) + 1),
            Ordering::Release,
        );
    }

    /// Who is to take over.
    pub fn handover(&self) -> Option<ReplicaId> {
        named(self.handover.load(Ordering::Acquire))
    }

    /// Background: says who may write this log from now on. Called after the old holder was revoked, and before a new
    /// one is granted the right; the standing is looked at once more in between. So, by the fences, either this engine
    /// sees that the replica may grant nothing any more, or the other one sees the holder.
    pub fn set_holder(&self, holder: Option<ReplicaId>) {
        self.holder.store(number(holder), Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Who may write this log. `None` is certain once the own standing says that nothing is granted: whoever could
    /// write is revoked, and nobody comes.
    pub fn holder(&self) -> Option<ReplicaId> {
        fence(Ordering::SeqCst);
        named(self.holder.load(Ordering::Acquire))
    }

    /// Replication: from now on it posts on connection `generation` of the log link to `peer` (P1 to P3). False if that
    /// is over; then nothing may be posted.
    #[must_use]
    pub fn hold_link(&self, peer: ReplicaId, generation: u64) -> bool {
        let peer = self.peer(peer);
        peer.log_held.store(generation, Ordering::Release);
        fence(Ordering::SeqCst);
        peer.log_generation.load(Ordering::Acquire) == generation
    }

    /// Replication: posts nothing more on the log link to `peer` until it holds that again (P5).
    pub fn let_link_go(&self, peer: ReplicaId) {
        let held = &self.peer(peer).log_held;
        if held.load(Ordering::Relaxed) != 0 {
            held.store(0, Ordering::Release);
        }
    }

    /// Background, after it has said that the log link to `peer` is down: whether its queue pair may be connected anew
    /// (C2, C3).
    pub fn is_link_free(&self, peer: ReplicaId) -> bool {
        fence(Ordering::SeqCst);
        self.peer(peer).log_held.load(Ordering::Acquire) == 0
    }

    /// Background: the queue pair of the log link to `peer` was reset, and nothing that was posted on its connections
    /// up to `generation` is under way any more.
    pub fn link_over(&self, peer: ReplicaId, generation: u64) {
        self.peer(peer)
            .log_over
            .store(generation, Ordering::Release);
    }

    /// Whether nothing that was posted on connection `generation` of the log link to `peer` can be under way any more,
    /// whatever its completions say.
    pub fn is_link_over(&self, peer: ReplicaId, generation: u64) -> bool {
        self.peer(peer).log_over.load(Ordering::Acquire) >= generation
    }

    /// Background: halts the replica.
    pub fn halt(&self, why: Halt) {
        self.halt.store(why as u64 + 1, Ordering::Release);
    }

    /// Whether the replica has to halt.
    #[inline]
    pub fn halted(&self) -> Option<Halt> {
        (self.halt.load(Ordering::Acquire) != 0).then_some(Halt::Diverged)
    }

    /// The words about `id`.
    #[inline]
    pub fn peer(&self, id: ReplicaId) -> &Peer {
        &self.peers[id.index()]
    }

    /// The peer that leads, as far as replica `own` knows. A candidate does not: it may not come to it.
    pub fn leading_peer(&self, own: ReplicaId) -> Option<ReplicaId> {
        let promised = self.promised();
        let owner = promised.owner().filter(|owner| *owner != own)?;
        let peer = self.peer(owner);
        let leads =
            peer.standing().role == Role::Leader && peer.public(public::LEADS) == promised.0;
        (leads && peer.is_alive()).then_some(owner)
    }
}

/// A replica or nobody, in a word.
fn number(id: Option<ReplicaId>) -> u64 {
    id.map_or(0, |id| u64::from(id.get()) + 1)
}

fn named(word: u64) -> Option<ReplicaId> {
    u8::try_from(word)
        .ok()?
        .checked_sub(1)
        .and_then(ReplicaId::new)
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

impl Peer {
    /// Word `word` of the peer's public line, as last read.
    pub fn public(&self, word: usize) -> u64 {
        self.public[word].load(Ordering::Acquire)
    }

    /// The peer's standing, as last read.
    pub fn standing(&self) -> Standing {
        Standing::from_word(self.public(public::STANDING))
    }

    /// Whether the pull-score says that it lives.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire) != 0
    }
}

/// The board and the outbox of one replica, by the names of their words.
#[derive(Clone, Debug)]
pub struct Board {
    /// Public line and mailbox.
    pub memory: Memory,
    /// What is to stand in the peers' mailboxes.
    pub outbox: Memory,
}

impl Board {
    /// A word of the own public line.
    pub fn public(&self, word: usize) -> u64 {
        self.memory.load(word)
    }

    /// Sets a word of the own public line.
    #[inline]
    pub fn set_public(&self, word: usize, value: u64) {
        self.memory.store(word, value);
    }

    /// A word that `peer` wrote.
    #[inline]
    pub fn mail(&self, peer: ReplicaId, word: usize) -> u64 {
        self.memory.load(board_row(peer) + word)
    }

    /// A record that `peer` wrote, copied once.
    pub fn record<const N: usize>(&self, peer: ReplicaId, word: usize) -> [u64; N] {
        std::array::from_fn(|i| self.mail(peer, word + i))
    }

    /// What is to stand in word `word` of this replica's row at `peer`.
    pub fn out(&self, peer: ReplicaId, word: usize) -> u64 {
        self.outbox.load(outbox_row(peer) + word)
    }

    /// Sets it.
    pub fn set_out(&self, peer: ReplicaId, word: usize, value: u64) {
        self.outbox.store(outbox_row(peer) + word, value);
    }

    /// Sets a record.
    pub fn set_out_record<const N: usize>(&self, peer: ReplicaId, word: usize, record: [u64; N]) {
        for (i, value) in record.into_iter().enumerate() {
            self.set_out(peer, word + i, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A follower that took a candidate for a leader would wait anew for one that never shows a horizon.
    #[test]
    fn a_peer_leads_when_it_says_so_in_the_promised_epoch_and_lives() {
        let (own, peer) = (ReplicaId::new(0), ReplicaId::new(1));
        let (own, peer) = (own.expect("an id"), peer.expect("an id"));
        let epoch = Epoch::above(Epoch::NONE, peer).expect("an epoch");
        let shared = Shared::new();
        let words = shared.peer(peer);
        let is = |role| {
            let standing = Standing { role, voter: true };
            words.public[public::STANDING].store(standing.to_word(), Ordering::Release);
        };
        words.public[public::LEADS].store(epoch.0, Ordering::Release);
        words.alive.store(1, Ordering::Release);
        is(Role::Leader);
        assert_eq!(shared.leading_peer(own), None, "nothing is promised");
        shared.promise(epoch);
        assert_eq!(shared.leading_peer(own), Some(peer));
        assert_eq!(shared.leading_peer(peer), None, "no peer of itself");
        for role in [Role::Candidate, Role::Follower, Role::Recovering] {
            is(role);
            assert_eq!(shared.leading_peer(own), None, "{role:?}");
        }
        is(Role::Leader);
        words.alive.store(0, Ordering::Release);
        assert_eq!(shared.leading_peer(own), None, "it is dead");
        words.alive.store(1, Ordering::Release);
        shared.promise(Epoch::above(epoch, own).expect("an epoch"));
        assert_eq!(shared.leading_peer(own), None, "another one is promised");
    }
}
