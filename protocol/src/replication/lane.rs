//! The requests of the replication engine on the log links: what is posted, and what its completion says.
//!
//! Every request carries in its number which peer, what, and for which connection it was; a completion of an earlier
//! connection is told by that and dropped. So is one that comes twice: requests on one connection are counted, and
//! their completions come in order. No request goes out over a later connection than the one that it was meant for,
//! since the link is held while something may be posted (`shared.rs`). What is read from a peer goes into a scratch
//! area of that peer's.
//!
//! Bytes go out inline or from the registered log. A device takes the latter when they leave, which may be long after
//! the post, and takes them again for every packet that it has to send again. Were the place used again meanwhile, a
//! follower would get something else under the name of what was posted, over what it has acknowledged, or a mix of
//! both. So the lowest place that a write under way may be taken from is kept for each link ([`Lane::sends_from`]).

use std::ops::Range;

use mu_verbs::{
    Access, Completion, CompletionQueue, Context, Error, Memory, MemoryRegion, Payload, PostError,
    QueuePair, RemoteAddr, SendFlags, SendOp, SendWr, Sge, WORD, WcStatus,
};

use crate::ids::{Members, ReplicaId};
use crate::layout::header;
use crate::limits::{LOG_HEADER_BYTES, LOG_QP_DEPTH, MAX_INLINE_ENTRY, MAX_REPLICAS, MAX_TRANSFER};
use crate::log::{Log, Window};
use crate::shared::Shared;

/// One value a peer.
pub type PerPeer<T> = [Option<T>; MAX_REPLICAS];

/// What a request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Op {
    /// A piece that another one follows.
    Part = 0,
    /// Entries up to an index.
    Entries = 1,
    /// The commit word; the value is the round of a proof, 0 if none.
    Commit = 2,
    /// The header was read.
    Header = 3,
    /// minProposal was written.
    MinProposal = 4,
    /// A stretch of the log was read into the scratch area.
    Scan = 5,
    /// A stretch of the log that is adopted was read into the scratch area.
    Adopt = 6,
}

/// Bits of a request's number: four for the peer, four for what it does, then these.
const COUNT_BITS: u32 = 12;
const VALUE_BITS: u32 = 32;
const COUNT: u16 = (1 << COUNT_BITS) - 1;
const VALUE: u64 = (1 << VALUE_BITS) - 1;

/// A request's number, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) peer: ReplicaId,
    pub(super) op: Op,
    /// The low 12 bits of the connection's generation.
    generation: u16,
    /// Counts the requests on it.
    sequence: u16,
    /// The low 32 bits of an index or a round.
    pub(super) value: u64,
}

impl Tag {
    fn to_id(self) -> u64 {
        (self.peer.get() as u64) << 60
            | (self.op as u64) << 56
            | u64::from(self.generation & COUNT) << (VALUE_BITS + COUNT_BITS)
            | u64::from(self.sequence & COUNT) << VALUE_BITS
            | self.value & VALUE
    }

    fn from_id(id: u64) -> Option<Self> {
        const OPS: [Op; 7] = [
            Op::Part,
            Op::Entries,
            Op::Commit,
            Op::Header,
            Op::MinProposal,
            Op::Scan,
            Op::Adopt,
        ];
        Some(Self {
            peer: ReplicaId::new((id >> 60) as u8)?,
            op: *OPS.get((id >> 56 & 15) as usize)?,
            generation: (id >> (VALUE_BITS + COUNT_BITS)) as u16 & COUNT,
            sequence: (id >> VALUE_BITS) as u16 & COUNT,
            value: id & VALUE,
        })
    }

    /// Whether it is of this connection.
    #[inline]
    pub(super) fn is_of(self, generation: u32) -> bool {
        self.generation == generation as u16 & COUNT
    }

    /// Whether its value is `value`, as far as there are bits of it.
    pub(super) fn says(self, value: u64) -> bool {
        self.value == value & VALUE
    }

    /// The whole number whose low bits are the value, given one that is not far away. It may be lower: a completion can
    /// come twice, or late.
    pub(super) fn widened(self, near: u64) -> u64 {
        let half = 1 << (VALUE_BITS - 1);
        let ahead = self.value.wrapping_sub(near).wrapping_add(half) & VALUE;
        near.wrapping_add(ahead).saturating_sub(half)
    }
}

/// A completion, told apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) tag: Tag,
    pub(super) ok: bool,
}

/// Where a follower's log is, and by which connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Target {
    pub(super) generation: u32,
    pub(super) addr: u64,
    pub(super) rkey: u32,
}

impl Target {
    fn remote(self, offset: usize) -> RemoteAddr {
        RemoteAddr {
            addr: self.addr.wrapping_add(offset as u64),
            rkey: self.rkey,
        }
    }
}

/// Requests on one connection.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    generation: u16,
    posted: u16,
    /// The lowest number that has not been completed, nor any above it.
    next: u16,
}

impl Counted {
    /// The number of the next request.
    #[inline]
    fn number(&mut self, generation: u16) -> u16 {
        if self.generation != generation {
            *self = Self {
                generation,
                ..Self::default()
            };
        }
        self.posted & COUNT
    }

    /// Whether the request with this number can still be under way.
    fn has_under_way(&self, number: u16) -> bool {
        number.wrapping_sub(self.next) & COUNT < self.posted.wrapping_sub(self.next) & COUNT
    }

    /// Whether nothing that was posted on this connection can still be under way.
    fn is_quiet(&self, generation: u16) -> bool {
        self.generation != generation || self.next == self.posted & COUNT
    }

    /// Whether a completion is the next, or one after others that were lost or not asked for: not one that came before.
    /// Those of another connection are not judged here.
    #[inline]
    fn is_next(&mut self, tag: Tag) -> bool {
        if tag.generation != self.generation {
            return true;
        }
        let ahead = tag.sequence.wrapping_sub(self.next) & COUNT;
        let is_next = ahead < self.posted.wrapping_sub(self.next) & COUNT;
        if is_next {
            self.next = tag.sequence.wrapping_add(1) & COUNT;
        }
        is_next
    }
}

const _: () = assert!(
    LOG_QP_DEPTH < COUNT as u32,
    "requests under way have different numbers"
);

/// Writes from the log, posted one after the other.
#[derive(Clone, Copy, Debug)]
struct Writes {
    /// The lowest position.
    from: u64,
    /// The number of the last one.
    last: u16,
}

/// The writes from the log on one connection that may be under way. Exact bounds would take a queue; two groups are
/// enough: new ones join the younger, which takes the place of the older as soon as that is through.
#[derive(Clone, Copy, Debug, Default)]
struct Sending {
    /// Of which connection.
    generation: u32,
    older: Option<Writes>,
    younger: Option<Writes>,
}

impl Sending {
    /// One more, with number `last`.
    fn add(&mut self, generation: u32, from: u64, last: u16) {
        if self.generation != generation {
            // The queue pair was reset in between.
            *self = Self {
                generation,
                ..Self::default()
            };
        }
        if self.older.is_none() {
            self.older = self.younger.take();
        }
        let from = self.younger.map_or(from, |writes| writes.from.min(from));
        self.younger = Some(Writes { from, last });
    }

    /// Forgets those that are through, before their numbers are given to others.
    #[inline]
    fn forget(&mut self, counted: &Counted) {
        // Short entries go inline, and then there are none.
        if self.older.is_some() || self.younger.is_some() {
            self.forget_some(counted);
        }
    }

    #[inline(never)]
    fn forget_some(&mut self, counted: &Counted) {
        for writes in [&mut self.older, &mut self.younger] {
            *writes = writes.filter(|writes| counted.has_under_way(writes.last));
        }
    }

    /// The lowest position of those that may be under way, by their completions.
    fn lowest(&self) -> Option<u64> {
        let both = [self.older, self.younger].into_iter().flatten();
        both.map(|writes| writes.from).min()
    }
}

/// The log link to one peer.
struct Link<C: Context> {
    qp: C::Qp,
    counted: Counted,
    sending: Sending,
}

impl<C: Context> Link<C> {
    /// Posts a request, whose number is `tag` with the next sequence number.
    #[inline]
    fn post(
        &mut self,
        tag: Tag,
        op: SendOp<'_, C::Mr, C::Mw>,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        let sequence = self.counted.number(tag.generation);
        self.qp.post_send(&SendWr {
            wr_id: Tag { sequence, ..tag }.to_id(),
            op,
            flags,
        })?;
        self.counted.posted = self.counted.posted.wrapping_add(1) & COUNT;
        Ok(())
    }
}

/// The log links of this replica.
pub(super) struct Lane<C: Context> {
    links: PerPeer<Link<C>>,
    cq: C::Cq,
    /// What the last poll brought. Kept, so that a poll need not clear it.
    polled: [Completion; POLLED],
    /// The whole log, for sending from and reading into.
    log_mr: C::Mr,
    /// Scratch: a slot a peer, header words first.
    scan_mr: C::Mr,
    slot_bytes: usize,
    inline_max: usize,
    /// A write takes the caller's time ([`Capabilities::runs_when_posted`](mu_verbs::Capabilities)).
    runs_when_posted: bool,
}

/// The last piece of several is signalled.
fn only(last: bool) -> SendFlags {
    if last {
        SendFlags::SIGNALED
    } else {
        SendFlags::NONE
    }
}

/// Completions of one poll, at most.
pub(super) const POLLED: usize = 16;
/// Where in a slot the stretch of the log begins.
const SLOT_LOG: usize = 64;

impl<C: Context> Lane<C> {
    pub(super) fn new(
        ctx: &C,
        pd: &C::Pd,
        log: &Memory,
        qps: PerPeer<C::Qp>,
        cq: C::Cq,
        max_entry: usize,
    ) -> Result<Self, Error> {
        let slot_bytes = SLOT_LOG + max_entry.max(16 << 10).next_multiple_of(64);
        let scan =
            ctx.alloc_memory(slot_bytes * MAX_REPLICAS.min(qps.iter().flatten().count() + 1))?;
        let inline = qps
            .iter()
            .flatten()
            .map(|qp| qp.cap().max_inline_data as usize)
            .min();
        Ok(Self {
            log_mr: ctx.reg_mr(pd, log, 0..log.len(), Access::LOCAL_WRITE)?,
            scan_mr: ctx.reg_mr(pd, &scan, 0..scan.len(), Access::LOCAL_WRITE)?,
            links: qps.map(|qp| {
                qp.map(|qp| Link {
                    qp,
                    counted: Counted::default(),
                    sending: Sending::default(),
                })
            }),
            cq,
            polled: [Completion::EMPTY; POLLED],
            slot_bytes,
            inline_max: inline.unwrap_or(0).min(MAX_INLINE_ENTRY),
            runs_when_posted: ctx.caps().runs_when_posted,
        })
    }

    /// Whether nothing that this engine posted to `peer` on the connection `generation` can still be under way.
    pub(super) fn is_quiet(&self, peer: ReplicaId, generation: u32) -> bool {
        self.links[peer.index()]
            .as_ref()
            .is_none_or(|link| link.counted.is_quiet(generation as u16 & COUNT))
    }

    /// The lowest position of the own log that a write to `peer` may still take its bytes from, and the connection of
    /// that write.
    pub(super) fn sends_from(&self, peer: ReplicaId, shared: &Shared) -> Option<(u64, u32)> {
        let link = self.links[peer.index()].as_ref()?;
        let lowest = link.sending.lowest()?;
        let generation = link.sending.generation;
        (!shared.is_link_over(peer, generation.into())).then_some((lowest, generation))
    }

    /// Whether no write under way takes its bytes from the own log, so that it may be written anywhere.
    pub(super) fn is_still(&self, peers: Members, shared: &Shared) -> bool {
        peers
            .iter()
            .all(|peer| self.sends_from(peer, shared).is_none())
    }

    /// Bytes of log that one scan reads: at least the largest entry.
    pub(super) fn scan_bytes(&self) -> u64 {
        (self.slot_bytes - SLOT_LOG) as u64
    }

    /// Whether `bytes` can go out inline.
    #[inline]
    pub(super) fn takes_inline(&self, bytes: usize) -> bool {
        bytes <= self.inline_max
    }

    /// Whether a write takes the caller's time.
    #[inline]
    pub(super) fn runs_when_posted(&self) -> bool {
        self.runs_when_posted
    }

    /// The slot of a peer: peers are numbered in the order of their queue pairs.
    fn slot(&self, peer: ReplicaId) -> usize {
        self.links[..peer.index()].iter().flatten().count() * self.slot_bytes
    }

    /// The header of `peer` that was read last.
    pub(super) fn header(&self, peer: ReplicaId) -> [u64; header::READ_WORDS] {
        let first = self.slot(peer) / WORD;
        std::array::from_fn(|i| self.scan_mr.memory().load(first + i))
    }

    /// The stretch of `peer`'s log that was read last, from position `from`.
    pub(super) fn window(&self, peer: ReplicaId, from: u64, len: usize) -> Window<'_> {
        Window {
            memory: self.scan_mr.memory(),
            offset: self.slot(peer) + SLOT_LOG,
            from,
            len,
        }
    }

    /// The link to a peer, among all of them.
    #[inline]
    fn link(links: &mut PerPeer<Link<C>>, peer: ReplicaId) -> &mut Link<C> {
        links[peer.index()]
            .as_mut()
            .expect("a queue pair for every peer")
    }

    fn tag(peer: ReplicaId, to: Target, op: Op, value: u64) -> Tag {
        Tag {
            peer,
            op,
            generation: to.generation as u16 & COUNT,
            sequence: 0,
            value,
        }
    }

    /// Writes one word of the header.
    pub(super) fn write_word(
        &mut self,
        peer: ReplicaId,
        to: Target,
        (op, value): (Op, u64),
        (word, content): (usize, u64),
    ) -> Result<(), PostError> {
        let tag = Self::tag(peer, to, op, value);
        let bytes = content.to_le_bytes();
        let op = SendOp::Write {
            payload: Payload::Inline(&bytes),
            remote: to.remote(word * WORD),
            imm: None,
        };
        Self::link(&mut self.links, peer).post(tag, op, SendFlags::SIGNALED)
    }

    /// Reads the header into the peer's slot.
    pub(super) fn read_header(&mut self, peer: ReplicaId, to: Target) -> Result<(), PostError> {
        let tag = Self::tag(peer, to, Op::Header, 0);
        let local = [Sge::new(
            &self.scan_mr,
            self.slot(peer),
            header::READ_WORDS * WORD,
        )];
        let op = SendOp::Read {
            local: &local,
            remote: to.remote(0),
        };
        Self::link(&mut self.links, peer).post(tag, op, SendFlags::SIGNALED)
    }

    /// Reads a stretch of the peer's log into its slot, for `op` ([`Op::Scan`] or [`Op::Adopt`]). Never straight into
    /// the own ring: a read that is under way when somebody else gets the right to write here would land over what that
    /// one wrote.
    pub(super) fn read_stretch(
        &mut self,
        log: &Log,
        peer: ReplicaId,
        to: Target,
        op: Op,
        at: Range<u64>,
    ) -> Result<(), PostError> {
        let base = self.slot(peer) + SLOT_LOG;
        for (from, offset, len) in log.pieces(at.clone()) {
            let last = from + len as u64 == at.end;
            let tag = Self::tag(peer, to, if last { op } else { Op::Part }, 0);
            let place = base + (from - at.start) as usize;
            let local = [Sge::new(&self.scan_mr, place, len)];
            let op = SendOp::Read {
                local: &local,
                remote: to.remote(offset),
            };
            Self::link(&mut self.links, peer).post(tag, op, only(last))?;
        }
        Ok(())
    }

    /// Writes one whole entry from private memory to byte `offset` of the peer's log. It must take it inline.
    #[inline]
    pub(super) fn write_inline(
        &mut self,
        peer: ReplicaId,
        to: Target,
        (offset, index): (usize, u64),
        bytes: &[u8],
    ) -> Result<(), PostError> {
        let tag = Self::tag(peer, to, Op::Entries, index);
        let op = SendOp::Write {
            payload: Payload::Inline(bytes),
            remote: to.remote(offset),
            imm: None,
        };
        Self::link(&mut self.links, peer).post(tag, op, SendFlags::SIGNALED)
    }

    /// Writes the next piece of the own log in `at` to the peer; gives the position after it. The completion of the
    /// last piece says `index`.
    #[inline]
    pub(super) fn write_log(
        &mut self,
        log: &Log,
        peer: ReplicaId,
        to: Target,
        at: Range<u64>,
        index: u64,
    ) -> Result<u64, PostError> {
        let until = at.end.min(at.start + MAX_TRANSFER as u64);
        let Some((from, offset, len)) = log.pieces(at.start..until).next() else {
            return Ok(at.end);
        };
        let end = from + len as u64;
        let op = if end == at.end { Op::Entries } else { Op::Part };
        let tag = Self::tag(peer, to, op, index);
        let local = [Sge::new(&self.log_mr, offset, len)];
        let write = SendOp::Write {
            payload: Payload::Regions(&local),
            remote: to.remote(offset),
            imm: None,
        };
        let link = Self::link(&mut self.links, peer);
        let number = link.counted.number(tag.generation);
        link.post(tag, write, SendFlags::SIGNALED)?;
        link.sending.add(to.generation, at.start, number);
        Ok(end)
    }

    /// Takes completions in, at most `limit`, and says how many.
    #[inline]
    pub(super) fn poll(&mut self, limit: usize) -> usize {
        self.cq.poll(&mut self.polled[..limit])
    }

    /// Completion `n` of the last poll, if a request of this engine made it and it has not come before. To be asked
    /// once for each, in order.
    #[inline]
    pub(super) fn done(&mut self, n: usize) -> Option<Done> {
        let completion = &self.polled[n];
        let ok = completion.status == WcStatus::SUCCESS;
        let tag = Tag::from_id(completion.wr_id)?;
        let link = self.links[tag.peer.index()].as_mut()?;
        let is_next = link.counted.is_next(tag);
        link.sending.forget(&link.counted);
        is_next.then_some(Done { tag, ok })
    }
}

const _: () =
    assert!(LOG_HEADER_BYTES >= header::READ_WORDS * WORD && SLOT_LOG >= header::READ_WORDS * WORD);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_requests_come_apart_as_they_were_put_together() {
        let peer = ReplicaId::new(8).expect("an id");
        for op in [
            Op::Part,
            Op::Entries,
            Op::Commit,
            Op::Header,
            Op::MinProposal,
            Op::Scan,
            Op::Adopt,
        ] {
            let tag = Tag {
                peer,
                op,
                generation: 0xbcd,
                sequence: 0x789,
                value: VALUE - 1,
            };
            assert_eq!(Tag::from_id(tag.to_id()), Some(tag));
        }
        assert_eq!(Tag::from_id(u64::MAX), None);
    }

    #[test]
    fn an_index_is_widened_from_one_nearby() {
        let peer = ReplicaId::new(0).expect("an id");
        for index in [5, 1 << 31, (1 << 32) + 3, (7 << 32) - 1, u64::MAX >> 1] {
            let id = Tag {
                peer,
                op: Op::Entries,
                generation: 0,
                sequence: 0,
                value: index,
            }
            .to_id();
            let tag = Tag::from_id(id).expect("a tag");
            for back in [0, 1, 1000, (1 << 31) - 1] {
                assert_eq!(
                    tag.widened(index.saturating_sub(back)),
                    index,
                    "{index} from {back} before"
                );
                assert_eq!(
                    tag.widened(index + back),
                    index,
                    "{index} from {back} behind"
                );
            }
        }
    }

    /// Against a queue that knows exactly: the bound is never above, is none once all are through, and does not stay
    /// behind for ever while writes go on.
    #[test]
    fn no_place_is_free_before_the_write_from_it_is_through() {
        for seed in 1..=200u64 {
            let mut draw = seed;
            let mut below = |n: u64| {
                draw = crate::check::mix([draw, 1]);
                draw % n
            };
            let mut counted = Counted::default();
            let (mut sending, mut exact) = (Sending::default(), std::collections::VecDeque::new());
            let (mut at, mut lag) = (1_000, 0);
            // Half of them never run dry, so that a bound that does not move on stays behind.
            let least = [0, 16][seed as usize % 2];
            for _ in 0..10_000 {
                let room = exact.len() < LOG_QP_DEPTH as usize;
                if exact.len() < least + 3 || room && below(2) == 0 {
                    let number = counted.number(7);
                    counted.posted = (number + 1) & COUNT;
                    // Some requests are not from the log, and a leader that confirms somebody again goes back.
                    let from = (below(3) != 0).then_some(at);
                    if let Some(from) = from {
                        sending.add(7, from, number);
                    }
                    exact.push_back((number, from));
                    at = if below(500) == 0 { at / 2 } else { at + 8 };
                } else {
                    // Those in between were lost.
                    let through = (below(3) as usize + 1).min(exact.len());
                    let last = exact.drain(..through).next_back();
                    if let Some((sequence, _)) = last {
                        let tag = Tag {
                            peer: ReplicaId::new(0).expect("an id"),
                            op: Op::Entries,
                            generation: 7,
                            sequence,
                            value: 0,
                        };
                        assert!(counted.is_next(tag));
                        sending.forget(&counted);
                    }
                }
                let lowest = exact.iter().filter_map(|(_, from)| *from).min();
                let bound = sending.lowest();
                assert_eq!(bound.is_some(), lowest.is_some(), "seed {seed}");
                assert!(bound <= lowest, "seed {seed}: {bound:?} above {lowest:?}");
                lag = if bound == lowest { 0 } else { lag + 1 };
                assert!(lag < 4 * LOG_QP_DEPTH, "seed {seed}: {bound:?}, {lowest:?}");
            }
        }
    }

    #[test]
    fn a_completion_counts_once_and_gaps_are_passed_over() {
        let peer = ReplicaId::new(0).expect("an id");
        let tag = |generation, sequence| Tag {
            peer,
            op: Op::Entries,
            generation,
            sequence,
            value: 0,
        };
        let mut counted = Counted::default();
        for round in 0..3 * COUNT {
            let number = counted.number(7);
            counted.posted = (number + 1) & COUNT;
            assert!(
                !counted.is_next(tag(7, (number + 1) & COUNT)),
                "not posted yet"
            );
            if round % 5 != 0 {
                assert!(
                    counted.is_next(tag(7, number)),
                    "after a gap in round {round}"
                );
                assert!(!counted.is_next(tag(7, number)), "twice in round {round}");
                assert!(
                    !counted.is_next(tag(7, number.wrapping_sub(1) & COUNT)),
                    "late"
                );
            }
        }
        assert!(
            counted.is_next(tag(6, 0)),
            "another connection's is not judged"
        );
        assert_eq!(counted.number(8), 0, "a new connection counts anew");
        assert!(!counted.is_next(tag(8, 0)));
    }
}
