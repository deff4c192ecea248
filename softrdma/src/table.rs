//! Layout of the two segments that a pair of contexts shares, as words.
//!
//! The *control* segment belongs to the target and only it writes there: the permission word of each of its queue
//! pairs, its regions, its posted receives. Peers map it read-only. The *lane* is made by the target for one peer and
//! only that peer writes there: the sequence word of the gate, refusals, and completions of receives. Either side
//! treats what the other writes as input: every index and length taken from it is checked before use.

use crate::limits::{MAX_QPS, MAX_RECV_WR, MAX_REGIONS, WORD};
use crate::sync::{Ordering, Word};
use crate::types::{Access, QpState};

/// Words of one row: a cache line.
pub(crate) const ROW: usize = 8;
/// Words of one receive record.
pub(crate) const RECV: usize = 4;

/// Rows of a control segment: header, queue pairs, regions, then receives.
const QPS_AT: usize = ROW;
const REGIONS_AT: usize = QPS_AT + MAX_QPS * ROW;
const RECVS_AT: usize = REGIONS_AT + MAX_REGIONS * ROW;
/// Bytes of a control segment.
pub(crate) const CTL_BYTES: usize = (RECVS_AT + MAX_QPS * MAX_RECV_WR * RECV) * WORD;

/// Rows of a lane: queue pairs of the peer as writers, queue pairs of the target, then completions of their receives.
const LANE_QPS_AT: usize = MAX_QPS * ROW;
const INBOUND_AT: usize = LANE_QPS_AT + MAX_QPS * ROW;
/// Bytes of a lane.
pub(crate) const LANE_BYTES: usize = (INBOUND_AT + MAX_QPS * MAX_RECV_WR * RECV) * WORD;

/// Says that both sides mean the same layout: changes with it and with the limits.
pub(crate) const LAYOUT: u64 = 0x6d75_0002_0000_0000
    | (MAX_QPS as u64) << 20
    | (MAX_REGIONS as u64) << 10
    | (MAX_RECV_WR as u64);

/// The row of queue pair `slot` in a control segment.
#[inline]
pub(crate) fn qp_row(ctl: &[Word], slot: usize) -> QpRow<'_> {
    assert!(slot < MAX_QPS);
    QpRow(ctl[QPS_AT + slot * ROW..][..ROW].try_into().expect("a row"))
}

/// The row of region `slot` in a control segment.
#[inline]
pub(crate) fn region_row(ctl: &[Word], slot: usize) -> RegionRow<'_> {
    assert!(slot < MAX_REGIONS);
    RegionRow(
        ctl[REGIONS_AT + slot * ROW..][..ROW]
            .try_into()
            .expect("a row"),
    )
}

/// Receive number `index` of queue pair `slot` in a control segment.
#[inline]
pub(crate) fn recv_record(ctl: &[Word], slot: usize, index: u64) -> &[Word; RECV] {
    record(&ctl[RECVS_AT..], slot, index)
}

/// The row of the target's queue pair `slot` in a lane.
#[inline]
pub(crate) fn lane_row(lane: &[Word], slot: usize) -> LaneRow<'_> {
    assert!(slot < MAX_QPS);
    LaneRow(
        lane[LANE_QPS_AT + slot * ROW..][..ROW]
            .try_into()
            .expect("a row"),
    )
}

/// The row of the peer's own queue pair `slot` in a lane.
#[inline]
pub(crate) fn writer_row(lane: &[Word], slot: usize) -> WriterRow<'_> {
    assert!(slot < MAX_QPS);
    WriterRow(lane[slot * ROW..][..ROW].try_into().expect("a row"))
}

/// The completion of receive number `index` of the target's queue pair `slot` in a lane.
#[inline]
pub(crate) fn inbound_record(lane: &[Word], slot: usize, index: u64) -> &[Word; RECV] {
    record(&lane[INBOUND_AT..], slot, index)
}

#[inline]
fn record(records: &[Word], slot: usize, index: u64) -> &[Word; RECV] {
    assert!(slot < MAX_QPS);
    let at = (slot * MAX_RECV_WR + index as usize % MAX_RECV_WR) * RECV;
    records[at..at + RECV].try_into().expect("a record")
}

/// A queue pair's row in its owner's control segment.
#[derive(Clone, Copy)]
pub(crate) struct QpRow<'a>(&'a [Word; ROW]);

impl<'a> QpRow<'a> {
    /// The permission word of the gate: see [`Permission`].
    #[inline]
    pub(crate) fn permission(self) -> &'a Word {
        &self.0[0]
    }
    /// The context of the one peer that may use it.
    #[inline]
    pub(crate) fn peer_node(self) -> &'a Word {
        &self.0[1]
    }
    /// Own number (high half) and the peer's (low half).
    #[inline]
    pub(crate) fn numbers(self) -> &'a Word {
        &self.0[2]
    }
    /// Receives posted since the queue pair was made.
    #[inline]
    pub(crate) fn recv_posted(self) -> &'a Word {
        &self.0[3]
    }
    /// Receives forgotten by the last RESET: the first valid number.
    #[inline]
    pub(crate) fn recv_base(self) -> &'a Word {
        &self.0[4]
    }
    /// Protection domain (low half) and RNR timer code (high half).
    #[inline]
    pub(crate) fn domain(self) -> &'a Word {
        &self.0[5]
    }
    /// First packet sequence numbers of this end (high half) and of the peer (low half): they tell one connection
    /// between the same two queue pairs from the next.
    #[inline]
    pub(crate) fn psns(self) -> &'a Word {
        &self.0[7]
    }
    /// The lane whose sequence word gates it: a peer that holds another one is not let in.
    #[inline]
    pub(crate) fn lane(self) -> &'a Word {
        &self.0[6]
    }
}

/// A region's row in its owner's control segment.
#[derive(Clone, Copy)]
pub(crate) struct RegionRow<'a>(&'a [Word; ROW]);

impl<'a> RegionRow<'a> {
    /// Key, rights and validity: see [`RegionState`]. Stored last, so that whoever sees it sees the rest.
    #[inline]
    pub(crate) fn state(self) -> &'a Word {
        &self.0[0]
    }
    /// Address of the first byte.
    #[inline]
    pub(crate) fn addr(self) -> &'a Word {
        &self.0[1]
    }
    /// Length in bytes.
    #[inline]
    pub(crate) fn len(self) -> &'a Word {
        &self.0[2]
    }
    /// Number of the memory (high half) and the protection domain (low half).
    #[inline]
    pub(crate) fn memory(self) -> &'a Word {
        &self.0[3]
    }
    /// First byte in the memory.
    #[inline]
    pub(crate) fn start(self) -> &'a Word {
        &self.0[4]
    }
    /// For a window: one more than the number of the queue pair it is bound to. 0 for a region.
    #[inline]
    pub(crate) fn bound_to(self) -> &'a Word {
        &self.0[5]
    }
}

/// The peer's row in a lane for one of the target's queue pairs. Only the queue pair that is connected to that one
/// writes here, inside the gate.
#[derive(Clone, Copy)]
pub(crate) struct LaneRow<'a>(&'a [Word; ROW]);

impl<'a> LaneRow<'a> {
    /// Why the peer saw itself refused: generation of the permission (high half) and a [`Nak`] code; 0 for never.
    #[inline]
    pub(crate) fn nak(self) -> &'a Word {
        &self.0[0]
    }
    /// Receives completed: the number of the next one.
    #[inline]
    pub(crate) fn recv_done(self) -> &'a Word {
        &self.0[1]
    }
}

/// What one queue pair of the peer says of itself in a lane. It is the queue pair's own row and not the target's: a
/// former peer of a queue pair may still be trying, and the sequence word must have one writer.
#[derive(Clone, Copy)]
pub(crate) struct WriterRow<'a>(&'a [Word; ROW]);

impl<'a> WriterRow<'a> {
    /// The sequence word of the gate.
    #[inline]
    pub(crate) fn seq(self) -> &'a Word {
        &self.0[0]
    }

    /// Says which bytes the copy under way touches, so that a writer that stops in the middle can be fenced by
    /// protecting just those pages. Called inside the gate, before the first store of the copy.
    #[inline]
    pub(crate) fn mark(self, memory: u32, at: usize, len: usize, stores: bool) {
        self.0[2].store(
            u64::from(memory) << 32 | (len as u64) << 1 | u64::from(stores),
            Ordering::Relaxed,
        );
        self.0[3].store(at as u64, Ordering::Relaxed);
        self.0[1].store(self.seq().load(Ordering::Relaxed), Ordering::Release);
    }

    /// What the copy under way touches, if the writer has said so for this value of its sequence word.
    #[cfg(not(any(loom, miri)))]
    pub(crate) fn marked(self) -> Option<Mark> {
        let seq = self.seq().load(Ordering::Acquire);
        let tag = self.0[1].load(Ordering::Acquire);
        let (what, at) = (
            self.0[2].load(Ordering::Relaxed),
            self.0[3].load(Ordering::Relaxed),
        );
        (tag == seq && seq & 1 == 1).then_some(Mark {
            memory: (what >> 32) as u32,
            at: at as usize,
            len: (what as u32 >> 1) as usize,
            stores: what & 1 == 1,
        })
    }
}

/// The bytes that a copy under way touches.
#[cfg(not(any(loom, miri)))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mark {
    pub(crate) memory: u32,
    pub(crate) at: usize,
    pub(crate) len: usize,
    /// Whether it stores into them; a READ does not.
    pub(crate) stores: bool,
}

/// The permission word of a queue pair, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Permission {
    /// Counts the changes to INIT: tells one connection from the next.
    pub(crate) generation: u32,
    /// State as peers see it.
    pub(crate) state: QpState,
    /// What the peer may do.
    pub(crate) access: Access,
}

impl Permission {
    #[inline]
    pub(crate) fn to_word(self) -> u64 {
        let state = match self.state {
            QpState::Reset => 0,
            QpState::Init => 1,
            QpState::Rtr => 2,
            QpState::Rts => 3,
            QpState::Err => 4,
        };
        u64::from(self.generation) << 32 | state << 8 | u64::from(self.access.0 & 0xff)
    }

    /// An unknown state reads as ERR: nothing is allowed.
    #[inline]
    pub(crate) fn from_word(word: u64) -> Self {
        let state = match word >> 8 & 0xff {
            0 => QpState::Reset,
            1 => QpState::Init,
            2 => QpState::Rtr,
            3 => QpState::Rts,
            _ => QpState::Err,
        };
        Self {
            generation: (word >> 32) as u32,
            state,
            access: Access((word & 0xff) as u32),
        }
    }

    #[inline]
    pub(crate) fn load(word: &Word) -> Self {
        Self::from_word(word.load(Ordering::Acquire))
    }
}

/// The state word of a region, taken apart. 0 is "no region".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RegionState {
    pub(crate) key: u32,
    pub(crate) access: Access,
}

impl RegionState {
    const VALID: u64 = 1;

    #[inline]
    pub(crate) fn to_word(self) -> u64 {
        u64::from(self.key) << 32 | u64::from(self.access.0 & 0xff) << 8 | Self::VALID
    }

    #[inline]
    pub(crate) fn from_word(word: u64) -> Option<Self> {
        (word & Self::VALID != 0).then_some(Self {
            key: (word >> 32) as u32,
            access: Access((word >> 8 & 0xff) as u32),
        })
    }
}

/// Slot of the region that a key names: bits 8 to 15. The low byte belongs to windows' owners (`ibv_inc_rkey(3)`), the
/// high half is random.
#[inline]
pub(crate) const fn key_slot(key: u32) -> usize {
    (key >> 8 & 0xff) as usize
}

/// Slot of the queue pair that a number names: its low bits; the others are random.
#[inline]
pub(crate) const fn qp_slot(qp_num: u32) -> usize {
    qp_num as usize % MAX_QPS
}

const _: () = assert!(MAX_QPS.is_power_of_two() && MAX_REGIONS <= 256);

/// How the responder refuses (AETH syndromes 0x61 to 0x63).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Nak {
    InvalidRequest = 1,
    Access = 2,
    Operation = 3,
}

impl Nak {
    #[inline]
    pub(crate) fn to_word(self, generation: u32) -> u64 {
        u64::from(generation) << 32 | self as u64
    }

    /// Whether a word says that the peer was refused in this generation.
    #[inline]
    pub(crate) fn is_of(word: u64, generation: u32) -> bool {
        Self::from_word(word).is_some_and(|(of, _)| of == generation)
    }

    #[inline]
    pub(crate) fn from_word(word: u64) -> Option<(u32, Self)> {
        let code = match word as u32 {
            1 => Self::InvalidRequest,
            2 => Self::Access,
            3 => Self::Operation,
            _ => return None,
        };
        Some(((word >> 32) as u32, code))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for state in [
            QpState::Reset,
            QpState::Init,
            QpState::Rtr,
            QpState::Rts,
            QpState::Err,
        ] {
            let p = Permission {
                generation: 77,
                state,
                access: Access::LOG,
            };
            assert_eq!(Permission::from_word(p.to_word()), p);
        }
        assert_eq!(Permission::from_word(9 << 8).state, QpState::Err);
        let r = RegionState {
            key: 0xdead_beef,
            access: Access::ALL,
        };
        assert_eq!(RegionState::from_word(r.to_word()), Some(r));
        assert_eq!(RegionState::from_word(0), None);
        assert_eq!(
            Nak::from_word(Nak::Access.to_word(3)),
            Some((3, Nak::Access))
        );
        assert_eq!(Nak::from_word(0), None);
        assert_eq!(Nak::from_word(4), None);
    }
}
