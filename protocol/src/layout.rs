//! Where things lie in memory that peers read or write. Everything is 64-bit words. Whoever changes anything here
//! raises [`message::VERSION`](crate::message::VERSION), which is in the hash that two members compare.
//!
//! The *log* memory: a header, then the ring. Only the replica that holds the permission writes it. The *board* memory:
//! the public line, which every peer reads, then one mailbox row per replica, which that peer writes. The *outbox* is
//! private: row i is what this replica wants to stand in its row of replica i's board.

use mu_verbs::WORD;

use crate::check::mix;
use crate::ids::{Epoch, Members, ReplicaId};
use crate::limits::{LOG_HEADER_BYTES, MAX_POSITION, MAX_REPLICAS, PUBLIC_WORDS, ROW_WORDS};

/// Words of the log's header.
pub mod header {
    /// Highest epoch in which a leader prepared here (the paper's minProposal).
    pub const MIN_PROPOSAL: usize = 0;
    /// The leader's commit index when it was last idle or proved its leadership.
    pub const COMMIT: usize = 1;
    /// Words that a prepare reads.
    pub const READ_WORDS: usize = 2;
}

/// Words of the public line.
pub mod public {
    /// Counts up while this replica's engines make progress. Background engine.
    pub const HEARTBEAT: usize = 0;
    /// Random number of this life of the replica. Replication engine.
    pub const INCARNATION: usize = 1;
    /// [`Standing`](super::Standing). Replication engine.
    pub const STANDING: usize = 2;
    /// Epoch in which it leads or wants to, 0 if not. Replication engine.
    pub const LEADS: usize = 3;
    /// Its promise: the highest epoch it granted. Background engine.
    pub const PROMISED: usize = 4;
    /// Bit set of the peers it sees alive, itself included. Background engine.
    pub const ALIVE: usize = 5;
    /// Index of the last entry it applied. Replication engine.
    pub const APPLIED: usize = 6;
    /// Position in the log after that entry. Written before APPLIED, so it is at least as new as an APPLIED read before
    /// it. Replication engine.
    pub const APPLIED_AT: usize = 7;
    /// The commit index it knows. Replication engine.
    pub const COMMIT: usize = 8;
    /// Position of the oldest byte that its ring still holds. Replication engine.
    pub const HORIZON: usize = 9;
    /// The last two digest points: index, digest of the state there, and a check of both. Replication engine.
    pub const DIGEST: usize = 10;
    /// Words of one digest point.
    pub const DIGEST_WORDS: usize = 3;
    /// First of the words that are free.
    pub const FREE: usize = 16;
}

/// Words of one mailbox row.
pub mod row {
    /// Epoch for which the peer asks for the permission to write this log. Its background engine.
    pub const REQUEST: usize = 0;
    /// Epoch of the peer, a leader that asks this replica to take over from it; 0 if not. Its background engine.
    pub const HANDOVER: usize = 1;
    /// The peer's [`Ack`](super::Ack) to this replica's request. Its background engine.
    pub const ACK: usize = 4;
    /// Number of a request of the peer for a snapshot; 0 if none. Its replication engine.
    pub const SNAPSHOT_REQUEST: usize = 16;
    /// The peer's [`SnapshotAnswer`](super::SnapshotAnswer). Its replication engine.
    pub const SNAPSHOT_ANSWER: usize = 17;
    /// First of the words that are free.
    pub const FREE: usize = 27;
}

const _: () = {
    assert!(public::FREE <= PUBLIC_WORDS);
    assert!(row::FREE <= ROW_WORDS && row::ACK + Ack::WORDS <= row::SNAPSHOT_REQUEST);
    assert!(row::SNAPSHOT_ANSWER + SnapshotAnswer::WORDS <= row::FREE);
    assert!(header::READ_WORDS * WORD <= LOG_HEADER_BYTES);
};

/// Bytes of the board.
pub const BOARD_BYTES: usize = (PUBLIC_WORDS + MAX_REPLICAS * ROW_WORDS) * WORD;
/// Bytes of the outbox.
pub const OUTBOX_BYTES: usize = MAX_REPLICAS * ROW_WORDS * WORD;

/// First word of `peer`'s row in the board.
pub const fn board_row(peer: ReplicaId) -> usize {
    PUBLIC_WORDS + peer.index() * ROW_WORDS
}

/// First word of the row for `peer` in the outbox.
pub const fn outbox_row(peer: ReplicaId) -> usize {
    peer.index() * ROW_WORDS
}

/// What a replica is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Role {
    /// Halted for good: its state diverged, an entry was corrupt, or it was stopped.
    #[default]
    Stopped = 0,
    /// Without state; grants nothing.
    Recovering = 1,
    /// With state, not admitted: grants the right to write, and its grants do not count.
    Learner = 2,
    /// Applies what a leader writes.
    Follower = 3,
    /// Has asked for permissions.
    Candidate = 4,
    /// Leads.
    Leader = 5,
}

impl Role {
    const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Recovering,
            2 => Self::Learner,
            3 => Self::Follower,
            4 => Self::Candidate,
            5 => Self::Leader,
            _ => Self::Stopped,
        }
    }
}

/// Role and vote of a replica, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Standing {
    /// Its role.
    pub role: Role,
    /// Whether its grants count.
    pub voter: bool,
}

impl Standing {
    /// As a word.
    pub const fn to_word(self) -> u64 {
        self.role as u64 | (self.voter as u64) << 8
    }
    /// From a word; what is not known is [`Role::Stopped`].
    pub const fn from_word(word: u64) -> Self {
        if word >> 9 != 0 {
            return Self {
                role: Role::Stopped,
                voter: false,
            };
        }
        Self {
            role: Role::from_code(word as u8),
            voter: word >> 8 & 1 == 1,
        }
    }
}

/// An answer to a permission request, as the granter writes it into the requester's mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ack {
    /// The request's epoch.
    pub epoch: Epoch,
    /// The granter's life. A grant of an earlier life counts for nothing.
    pub incarnation: u64,
    /// The granter's promise: `epoch` if granted, else what stands in the way.
    pub promised: Epoch,
    /// Whether the right is granted.
    pub granted: bool,
    /// Whether the granter is a voter.
    pub voter: bool,
    /// The connection for which it holds: generation of the log link, as the requester numbers it.
    pub generation: u32,
    /// Address of the granter's log header.
    pub addr: u64,
    /// The key to it.
    pub rkey: u32,
    /// The last entry the granter had applied, when the right was granted.
    pub applied: u64,
    /// Position after that entry.
    pub applied_at: u64,
}

impl Ack {
    /// Words of the encoded form.
    pub const WORDS: usize = 9;

    /// The encoded form, its last word a check.
    pub fn to_words(&self) -> [u64; Self::WORDS] {
        let [a, b, c, d, e, f, g, h] = [
            self.epoch.0,
            self.promised.0,
            u64::from(self.granted) | u64::from(self.voter) << 1 | u64::from(self.generation) << 32,
            self.addr,
            self.rkey.into(),
            self.applied,
            self.applied_at,
            self.incarnation,
        ];
        [a, b, c, d, e, f, g, h, mix([a, b, c, d, e, f, g, h])]
    }

    /// Decodes; `None` for a torn, stale or empty record.
    pub fn from_words(words: [u64; Self::WORDS]) -> Option<Self> {
        let [
            epoch,
            promised,
            flags,
            addr,
            rkey,
            applied,
            applied_at,
            incarnation,
            check,
        ] = words;
        let sealed = [
            epoch,
            promised,
            flags,
            addr,
            rkey,
            applied,
            applied_at,
            incarnation,
        ];
        (epoch != 0 && mix(sealed) == check && is_place(applied, applied_at)).then_some(Self {
            incarnation,
            epoch: Epoch(epoch),
            promised: Epoch(promised),
            granted: flags & 1 == 1,
            voter: flags >> 1 & 1 == 1,
            generation: (flags >> 32) as u32,
            addr,
            rkey: rkey as u32,
            applied,
            applied_at,
        })
    }
}

/// Where a snapshot lies, as its donor answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SnapshotAnswer {
    /// The request's number.
    pub request: u64,
    /// Address of its first byte.
    pub addr: u64,
    /// The key to it.
    pub rkey: u32,
    /// CRC32C of its bytes.
    pub crc: u32,
    /// Bytes. 0 says that the donor could not make one.
    pub len: u64,
    /// The last entry it contains.
    pub index: u64,
    /// Position after that entry.
    pub at: u64,
    /// Epoch of that entry.
    pub epoch: Epoch,
}

impl SnapshotAnswer {
    /// Words of the encoded form.
    pub const WORDS: usize = 8;

    /// The encoded form, its last word a check.
    pub fn to_words(&self) -> [u64; Self::WORDS] {
        sealed([
            self.request,
            self.addr,
            u64::from(self.rkey) << 32 | u64::from(self.crc),
            self.len,
            self.index,
            self.at,
            self.epoch.0,
        ])
    }

    /// Decodes; `None` for a torn, stale or empty record.
    pub fn from_words(words: [u64; Self::WORDS]) -> Option<Self> {
        let [request, addr, keys, len, index, at, epoch] = opened(words)?;
        (request != 0 && is_place(index, at)).then_some(Self {
            request,
            addr,
            rkey: (keys >> 32) as u32,
            crc: keys as u32,
            len,
            index,
            at,
            epoch: Epoch(epoch),
        })
    }
}

/// Whether there can be an entry with this index, and an end of it at this position.
fn is_place(index: u64, at: u64) -> bool {
    index <= MAX_POSITION && at <= MAX_POSITION && at.is_multiple_of(WORD as u64)
}

/// Appends the check word.
fn sealed(words: [u64; 7]) -> [u64; 8] {
    let [a, b, c, d, e, f, g] = words;
    [a, b, c, d, e, f, g, mix(words)]
}

/// Takes the check word off if it fits.
fn opened(words: [u64; 8]) -> Option<[u64; 7]> {
    let [a, b, c, d, e, f, g, check] = words;
    let words = [a, b, c, d, e, f, g];
    (mix(words) == check).then_some(words)
}

/// Who is alive in a peer's eyes ([`public::ALIVE`]).
pub const fn alive(word: u64) -> Members {
    Members::from_bits(word as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip_and_a_torn_one_is_refused() {
        let ack = Ack {
            incarnation: 11,
            epoch: Epoch(0x21),
            promised: Epoch(0x21),
            granted: true,
            voter: true,
            generation: 7,
            addr: 0xdead_0000,
            rkey: 9,
            applied: 100,
            applied_at: 16_000,
        };
        assert_eq!(Ack::from_words(ack.to_words()), Some(ack));
        let other = Ack {
            incarnation: 12,
            epoch: Epoch(0x31),
            granted: false,
            ..ack
        };
        for torn in 1..Ack::WORDS {
            let mut words = ack.to_words();
            words[..torn].copy_from_slice(&other.to_words()[..torn]);
            assert_eq!(Ack::from_words(words), None, "torn after word {torn}");
        }
        assert_eq!(Ack::from_words([0; Ack::WORDS]), None);
        let answer = SnapshotAnswer {
            request: 3,
            len: 1 << 20,
            crc: 5,
            rkey: 6,
            ..Default::default()
        };
        assert_eq!(SnapshotAnswer::from_words(answer.to_words()), Some(answer));
        assert_eq!(SnapshotAnswer::from_words([0; 8]), None);
    }

    #[test]
    fn standings_round_trip_and_nonsense_is_stopped() {
        for role in [
            Role::Stopped,
            Role::Recovering,
            Role::Learner,
            Role::Follower,
            Role::Candidate,
            Role::Leader,
        ] {
            for voter in [false, true] {
                let standing = Standing { role, voter };
                assert_eq!(Standing::from_word(standing.to_word()), standing);
            }
        }
        for nonsense in [6, 255, 1 << 9, u64::MAX] {
            assert_eq!(Standing::from_word(nonsense), Standing::default());
        }
    }
}
