//! What a request does at the target: cut into pieces, each of which takes effect at once and at a time of its own.

use mu_verbs::{Placement, WORD, WcStatus};

use crate::exec::Step;
use crate::faults::Fault;
use crate::flow::{Action, Chunk, Flow};
use crate::state::{Placed, State};

/// Bytes of a cache line.
const LINE: usize = 64;
/// Bytes of a block when the order is by blocks.
const BLOCK: usize = 128;
/// Once in so many messages a piece takes much longer.
const LONG_GAP_ONE_IN: u64 = 64;
/// And up to this many times the usual.
const LONG_GAP: u64 = 100;

/// How fine a message is torn.
#[derive(Clone, Copy)]
enum Grain {
    Words,
    Lines,
    /// At two random words.
    Twice,
}

impl State {
    /// Cuts a message into the pieces that take effect at once, in the order they do.
    pub(crate) fn plan(&mut self, flow: &mut Flow) {
        let mtu = flow.mtu;
        let mut chunks = self.chunks.pop().unwrap_or_default();
        let request = flow.current().expect("asked before");
        let (len, place) = (request.len, request.remote.addr as usize);
        let torn = len > 8 && self.rng.chance(self.profile.torn);
        let grain = *self
            .rng
            .pick(&[Grain::Words, Grain::Lines, Grain::Twice, Grain::Twice]);
        let mut at = 0;
        loop {
            let n = (len - at).min(mtu);
            let first = chunks.len();
            if torn {
                self.tear(&mut chunks, place, at, n, grain);
            } else {
                chunks.push(Chunk {
                    offset: at as u32,
                    len: n as u32,
                    first: false,
                });
            }
            chunks[first].first = true;
            at += n;
            if at >= len {
                break;
            }
        }
        if torn && chunks.len() > 1 {
            self.hit(Fault::Torn);
        }
        flow.current().expect("asked before").chunks = chunks;
    }

    /// Tears one packet.
    fn tear(&mut self, chunks: &mut Vec<Chunk>, place: usize, at: usize, n: usize, grain: Grain) {
        let first = chunks.len();
        let mut cut = || (place + at + self.rng.below(n as u64) as usize) & !(WORD - 1);
        let cuts = [cut(), cut()];
        let blocks = self.profile.placement == Placement::Aligned128Bytes;
        let next_multiple = |here: usize, of: usize| (here / of + 1) * of;
        let mut from = at;
        while from < at + n {
            let here = place + from;
            let mut end = match grain {
                Grain::Words => next_multiple(here, WORD),
                Grain::Lines => next_multiple(here, LINE),
                Grain::Twice => cuts
                    .into_iter()
                    .filter(|cut| *cut > here)
                    .min()
                    .unwrap_or(usize::MAX),
            };
            if blocks {
                end = end.min(next_multiple(here, BLOCK));
            }
            let len = (end - here).min(at + n - from);
            chunks.push(Chunk {
                offset: from as u32,
                len: len as u32,
                first: false,
            });
            from += len;
        }
        match self.profile.placement {
            Placement::WholeMessage => {}
            Placement::Unknown => self.disorder(&mut chunks[first..]),
            Placement::Aligned128Bytes => self.disorder_blocks(&mut chunks[first..], place),
        }
    }

    fn disorder(&mut self, chunks: &mut [Chunk]) {
        if chunks.len() > 1 {
            self.hit(Fault::OutOfOrder);
            self.rng.shuffle(chunks);
        }
    }

    /// Random order of blocks; inside a block they stay ascending.
    fn disorder_blocks(&mut self, chunks: &mut [Chunk], place: usize) {
        let block = |chunk: &Chunk| (place + chunk.offset as usize) / BLOCK;
        let (Some(first), Some(last)) = (chunks.first().map(block), chunks.last().map(block))
        else {
            return;
        };
        if first == last {
            return;
        }
        self.hit(Fault::OutOfOrder);
        let mut order: Vec<usize> = (first..=last).collect();
        self.rng.shuffle(&mut order);
        chunks.sort_by_key(|chunk| order[block(chunk) - first]);
    }

    /// One piece takes effect; then the next one, after a while.
    pub(crate) fn take_effect(&mut self, flow: &mut Flow, chunk: Chunk) -> Step {
        match flow.current().expect("asked before").action {
            Action::Write => self.place(flow, chunk),
            Action::Read => self.fetch(flow, chunk),
            action => self.atomic(flow, action),
        }
        let to = flow.to;
        let request = flow.current().expect("asked before");
        request.next_chunk += 1;
        if request.next_chunk == request.chunks.len() {
            if request.hidden {
                self.nodes[to].hidden -= 1;
            }
            return Step::Done {
                status: WcStatus::SUCCESS,
                known: false,
            };
        }
        // A message takes about as long however fine it is torn.
        let (usual, pieces) = (self.profile.gap_ns, request.chunks.len() as u64);
        let gap = if self.rng.one_in(LONG_GAP_ONE_IN * pieces) {
            self.rng.spread(usual, usual * LONG_GAP)
        } else if self.profile.synchronous {
            0
        } else {
            self.rng.below(1 + 4 * usual / pieces)
        };
        Step::Again(self.now + gap)
    }

    fn place(&mut self, flow: &mut Flow, chunk: Chunk) {
        let (from, live, own_qp_num, to) = (flow.from, flow.live, flow.own_qp_num, flow.to);
        let request = flow.current().expect("asked before");
        let (offset, len) = (chunk.offset as usize, chunk.len as usize);
        if len == 0 {
            return;
        }
        let (mem, at) = request.target;
        let bytes = &request.data[offset..offset + len];
        self.mems[mem as usize]
            .memory
            .write_bytes(at + offset, bytes);
        let (addr, rkey) = (request.remote.addr + offset as u64, request.remote.rkey);
        let words = [
            1,
            addr,
            (from as u64) << 32 | len as u64,
            u64::from(own_qp_num),
        ];
        self.trace.bytes(bytes);
        self.trace.event(self.now, words, || {
            format!(
                "place {from}->{to} {own_qp_num:#x} {addr:#x} +{len} wr {:#x}",
                request.wr_id
            )
        });
        if let Some(placed) = &mut self.placed {
            let to = self.ctxs[self.mems[mem as usize].ctx as usize].id;
            placed.push(Placed {
                at_ns: self.now,
                from,
                qp_num: own_qp_num,
                to,
                addr,
                len,
                rkey,
                wr_id: request.wr_id,
                live,
            });
        }
        if !live {
            self.hit(Fault::GhostLands);
        }
    }

    /// A READ also makes visible what the target's device has acknowledged.
    fn fetch(&mut self, flow: &mut Flow, chunk: Chunk) {
        self.reveal(flow.to);
        let request = flow.current().expect("asked before");
        let (mem, at) = request.target;
        let (offset, len) = (chunk.offset as usize, chunk.len as usize);
        request.data.resize(request.len, 0);
        let place = &mut request.data[offset..offset + len];
        self.mems[mem as usize]
            .memory
            .read_bytes(at + offset, place);
        self.trace.bytes(place);
    }

    fn atomic(&mut self, flow: &mut Flow, action: Action) {
        self.reveal(flow.to);
        let request = flow.current().expect("asked before");
        let (mem, at) = request.target;
        let memory = &self.mems[mem as usize].memory;
        let mut old = [0; 8];
        memory.read_bytes(at, &mut old);
        let value = u64::from_le_bytes(old);
        let new = match action {
            Action::FetchAdd(add) => value.wrapping_add(add),
            Action::CompareSwap { compare, swap } if value == compare => swap,
            _ => value,
        };
        memory.write_bytes(at, &new.to_le_bytes());
        request.data.clear();
        request.data.extend_from_slice(&old);
        self.trace.word(value);
        self.trace.word(new);
    }

    /// Everything that a node's device has acknowledged becomes visible.
    pub(crate) fn reveal(&mut self, node: usize) {
        if self.nodes[node].hidden == 0 {
            return;
        }
        for at in 0..self.flows.len() {
            let hidden = |flow: &mut Flow| {
                flow.in_use && flow.to == node && flow.current().is_some_and(|r| r.hidden)
            };
            if !hidden(&mut self.flows[at]) {
                continue;
            }
            let mut flow = std::mem::take(&mut self.flows[at]);
            while let Some(chunk) = flow
                .current()
                .and_then(|r| r.chunks.get(r.next_chunk))
                .copied()
            {
                self.take_effect(&mut flow, chunk);
            }
            self.flows[at] = flow;
        }
    }
}
