//! The bare write of a group: the same bytes to the same number of peers on the same backend, with nothing around it.

use std::ops::Range;

use anyhow::{Context as _, Result, bail};
use mu_verbs::{
    Access, Completion, CompletionQueue, Context, Endpoint, MemoryRegion, Modify, Payload,
    PostError, QpCap, QpControl, QueuePair, RemoteAddr, RtsAttr, SendFlags, SendOp, SendWr, Sge,
    WcStatus,
};
use serde::{Deserialize, Serialize};

use crate::bench::end::{DEPTH, End, connect, decode};
use crate::bench::peer::{Link, Peer};
use crate::bench::spin::Spin;

/// Inline payload of the bare writes, in bytes, where the device takes so much.
const INLINE: u32 = 512;

/// Where one end is.
#[derive(Serialize, Deserialize)]
struct Place {
    endpoint: Vec<u8>,
    addr: u64,
    rkey: u32,
}

/// The memory that is written to.
pub(crate) struct Target<C: Context>(End<C>);

impl<C: Context> Target<C> {
    /// Opens it and connects to the writer at the other end of `link`.
    pub(crate) fn open(ctx: &C, bytes: usize, link: &mut Link) -> Result<Self> {
        let end = End::open(ctx, bytes, Access::REMOTE_WRITE, 0)?;
        let endpoint = end.qp.control().endpoint().to_bytes().to_vec();
        link.send(&Place {
            endpoint,
            addr: end.mr.addr(),
            rkey: end.mr.rkey(),
        })?;
        let theirs: Place = link.recv()?;
        end.connect(decode(&theirs.endpoint)?, RtsAttr::default())?;
        Ok(Self(end))
    }
}

/// What is posted before the completions of a majority are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Posted {
    /// All that there is to post.
    AllFirst,
    /// As many as a majority needs; the others behind it.
    MajorityFirst,
}

/// The writer's end.
pub(crate) struct Lane<C: Context> {
    qps: Vec<(C::Qp, RemoteAddr)>,
    cq: C::Cq,
    mr: C::Mr,
    span: usize,
    at: usize,
    /// Completions that make a majority with the writer itself.
    others: usize,
    inline: usize,
}

impl<C: Context> Lane<C> {
    /// Connects to a target at each peer. `others` completions make a majority.
    pub(crate) fn open(
        ctx: &C,
        span: usize,
        others: usize,
        peers: &mut [Peer<'_>],
    ) -> Result<Self> {
        let pd = ctx.alloc_pd()?;
        let memory = ctx.alloc_memory(span)?;
        let mr = ctx.reg_mr(&pd, &memory, 0..memory.len(), Access::LOCAL_WRITE)?;
        let cq = ctx.create_cq(4 * DEPTH)?;
        let inline = INLINE.min(ctx.caps().max_inline_data);
        let cap = QpCap {
            max_send_wr: DEPTH,
            max_recv_wr: 1,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: inline,
        };
        let mut qps = Vec::new();
        for peer in peers {
            let qp = ctx.create_qp(&pd, &cq, &cq, &cap)?;
            qp.control().modify(&Modify::Init(Access::NONE))?;
            let theirs: Place = peer.link.recv()?;
            let endpoint: Endpoint = qp.control().endpoint();
            peer.link.send(&Place {
                endpoint: endpoint.to_bytes().to_vec(),
                addr: 0,
                rkey: 0,
            })?;
            connect::<C>(
                qp.control(),
                ctx,
                decode(&theirs.endpoint)?,
                RtsAttr::default(),
            )?;
            qps.push((
                qp,
                RemoteAddr {
                    addr: theirs.addr,
                    rkey: theirs.rkey,
                },
            ));
        }
        Ok(Self {
            qps,
            cq,
            mr,
            span,
            at: 0,
            others,
            inline: inline as usize,
        })
    }

    /// Stops writing to the last peer.
    pub(crate) fn drop_one(&mut self) {
        self.qps.pop();
    }

    /// Moves on by `stride` bytes, as a log of such entries does, and gives the place of the next write.
    fn next(&mut self, len: usize, stride: usize) -> usize {
        if self.at + len.max(stride) > self.span {
            self.at = 0;
        }
        let at = self.at;
        self.at += stride;
        at
    }

    /// Writes `bytes` to all peers and waits for a majority; `reached` is called then, and the rest is reaped after.
    #[inline]
    pub(crate) fn write(
        &mut self,
        bytes: &[u8],
        stride: usize,
        posted: Posted,
        reached: impl FnOnce(),
    ) -> Result<()> {
        let at = self.next(bytes.len(), stride);
        let all = self.qps.len();
        let first = match posted {
            Posted::AllFirst => all,
            Posted::MajorityFirst => self.others,
        };
        self.post(0..first, at, bytes)?;
        self.reap(self.others)?;
        reached();
        self.post(first..all, at, bytes)?;
        self.reap(all - self.others)
    }

    /// Posts a write of `bytes` to these peers.
    #[inline]
    fn post(&mut self, peers: Range<usize>, at: usize, bytes: &[u8]) -> Result<()> {
        for (qp, remote) in &mut self.qps[peers] {
            let remote = RemoteAddr {
                addr: remote.addr + at as u64,
                ..*remote
            };
            let local = [Sge::new(&self.mr, at, bytes.len())];
            let payload = match bytes.len() <= self.inline {
                true => Payload::Inline(bytes),
                false => Payload::Regions(&local),
            };
            let op = SendOp::Write {
                payload,
                remote,
                imm: None,
            };
            qp.post_send(&SendWr {
                wr_id: 0,
                op,
                flags: SendFlags::SIGNALED,
            })?;
        }
        Ok(())
    }

    /// Writes `bytes` of the region to all peers, again and again, at most `window` at once, `count` times; every one
    /// of them is waited for.
    pub(crate) fn stream(&mut self, bytes: usize, window: usize, count: u64) -> Result<()> {
        let mut outstanding = 0;
        let per_round = self.qps.len();
        for _ in 0..count {
            while outstanding + per_round > window * per_round {
                outstanding -= self.some(outstanding)?;
            }
            let at = self.next(bytes, bytes);
            for n in 0..per_round {
                loop {
                    let (qp, remote) = &mut self.qps[n];
                    let remote = RemoteAddr {
                        addr: remote.addr + at as u64,
                        ..*remote
                    };
                    let local = [Sge::new(&self.mr, at, bytes)];
                    let op = SendOp::Write {
                        payload: Payload::Regions(&local),
                        remote,
                        imm: None,
                    };
                    match qp.post_send(&SendWr {
                        wr_id: 0,
                        op,
                        flags: SendFlags::SIGNALED,
                    }) {
                        Ok(()) => break,
                        Err(PostError::QueueFull { .. }) => {
                            outstanding -= self.some(outstanding)?
                        }
                        Err(e) => return Err(e.into()),
                    }
                }
                outstanding += 1;
            }
        }
        self.reap(outstanding)
    }

    /// Waits for `n` completions, all successes.
    #[inline]
    fn reap(&mut self, n: usize) -> Result<()> {
        let mut left = n;
        while left > 0 {
            left -= self.some(left)?;
        }
        Ok(())
    }

    /// Waits for at least one completion and at most `limit`.
    #[inline]
    fn some(&mut self, limit: usize) -> Result<usize> {
        let mut polled = [Completion::EMPTY; 16];
        let room = limit.min(polled.len());
        let mut n = self.cq.poll(&mut polled[..room]);
        if n == 0 {
            let mut spin = Spin::new();
            while n == 0 {
                spin.step().context("waiting for a completion")?;
                n = self.cq.poll(&mut polled[..room]);
            }
        }
        match polled[..n].iter().find(|c| c.status != WcStatus::SUCCESS) {
            Some(bad) => bail!("a bare write ended with {}", bad.status),
            None => Ok(n),
        }
    }
}
