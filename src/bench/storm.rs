//! The writer of the revocation test: writes without pause until it is refused, reconnects, and writes again.
//!
//! A million rounds must not cost a million system calls for talking, so the two ends keep step through shared
//! words: each has one word that only it stores, the round times four plus what it has reached, and beside it what
//! it tells the other one. The word is stored with Release after those, and loaded with Acquire before them.

use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, bail};
use mu_verbs::{
    Access, Completion, CompletionQueue, Context, Endpoint, Memory, Payload, QueuePair, RemoteAddr,
    RtsAttr, SendFlags, Sge, WORD, WcStatus,
};
use serde::{Deserialize, Serialize};

use crate::bench::end::{self, End, connect, restart};
use crate::bench::map_raw::Words;
use crate::bench::peer::{FREE, LINE, Link, Lost, OVER};
use crate::bench::spin::Spin;

/// Places of the region that are written in turn.
pub(crate) const SLOTS: usize = 8;
/// Payloads that are sent in turn: not a divisor of [`SLOTS`], so that a place never gets the same one twice running.
const SOURCES: usize = 7;

/// What an end has reached in a round. The near end's:
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// Near: its queue pair waits for a connection. Far: it is connected.
    Connect = 0,
    /// Near: the right is granted.
    Storm = 1,
    /// Near: no revocation will come, stop (negative control). Far: it was refused, or stopped, and nothing of its
    /// is under way any more.
    Stop = 2,
}

/// Last value of the near end's word: the test is over.
const END: u64 = u64::MAX;

/// The words by which the ends keep step.
#[derive(Clone, Copy)]
pub(crate) struct Mailbox<'a>(pub(crate) &'a Words);

impl Mailbox<'_> {
    const NEAR: usize = FREE;
    const FAR: usize = FREE + 2 * LINE;
    /// After an end's word: its endpoint, then two words more.
    const ENDPOINT: usize = 1;
    const MORE: usize = Self::ENDPOINT + Endpoint::BYTES / WORD;

    fn put(&self, at: usize, value: u64) {
        self.0[at].store(value, Ordering::Relaxed);
    }

    fn get(&self, at: usize) -> u64 {
        self.0[at].load(Ordering::Relaxed)
    }

    fn put_endpoint(&self, base: usize, endpoint: &Endpoint) {
        for (i, bytes) in endpoint.to_bytes().chunks_exact(WORD).enumerate() {
            self.put(
                base + Self::ENDPOINT + i,
                u64::from_le_bytes(bytes.try_into().expect("a word's bytes")),
            );
        }
    }

    fn endpoint(&self, base: usize) -> Result<Endpoint> {
        let words = (0..Endpoint::BYTES / WORD).map(|i| self.get(base + Self::ENDPOINT + i));
        end::decode(&words.flat_map(u64::to_le_bytes).collect::<Vec<_>>())
    }

    fn reach(&self, base: usize, round: u64, reached: Reached) {
        self.0[base].store(round << 2 | reached as u64, Ordering::Release);
    }

    fn has_reached(&self, base: usize, round: u64, reached: Reached) -> bool {
        self.0[base].load(Ordering::Acquire) >= round << 2 | reached as u64
    }

    /// Waits until the other end reached something. `false` if the test is over.
    fn wait(&self, base: usize, round: u64, reached: Reached) -> Result<bool> {
        let mut spin = Spin::new();
        while !self.has_reached(base, round, reached) {
            // An end that is done with everything says so before it ends all.
            if self.0[OVER].load(Ordering::Acquire) != 0 && !self.has_reached(base, round, reached)
            {
                bail!(Lost("the other end has given up".into()));
            }
            spin.step()?;
        }
        Ok(self.0[base].load(Ordering::Acquire) != END)
    }

    /// Near: offers a connection and waits for the other end's.
    pub(crate) fn offer(&self, round: u64, endpoint: &Endpoint) -> Result<Endpoint> {
        self.put_endpoint(Self::NEAR, endpoint);
        self.reach(Self::NEAR, round, Reached::Connect);
        self.wait(Self::FAR, round, Reached::Connect)?;
        self.endpoint(Self::FAR)
    }

    /// Near: lets the storm begin.
    pub(crate) fn begin(&self, round: u64, remote: RemoteAddr) {
        self.put(Self::NEAR + Self::MORE, remote.addr);
        self.put(Self::NEAR + Self::MORE + 1, u64::from(remote.rkey));
        self.reach(Self::NEAR, round, Reached::Storm);
    }

    /// Near: tells the writer to stop without having been refused.
    pub(crate) fn stop(&self, round: u64) {
        self.reach(Self::NEAR, round, Reached::Stop);
    }

    /// Near: whether the writer is through with this round.
    pub(crate) fn is_refused(&self, round: u64) -> bool {
        self.has_reached(Self::FAR, round, Reached::Stop)
    }

    /// Near: waits for that; gives the status it was refused with (success if it was stopped) and its writes so far.
    pub(crate) fn refused(&self, round: u64) -> Result<(WcStatus, u64)> {
        self.wait(Self::FAR, round, Reached::Stop)
            .context("waiting for the writer to be refused")?;
        Ok((
            WcStatus(self.get(Self::FAR + Self::MORE) as u32),
            self.get(Self::FAR + Self::MORE + 1),
        ))
    }

    /// Near: there are no more rounds.
    pub(crate) fn end(&self) {
        self.0[Self::NEAR].store(END, Ordering::Release);
    }
}

/// The writer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Storm {
    /// Bytes of a write, a multiple of 8.
    pub(crate) size: usize,
    /// Writes outstanding.
    pub(crate) window: u32,
    /// Code of the time until a packet that nobody answers is sent again, which is done once.
    pub(crate) timeout: u8,
    /// Whether the payloads are made beforehand, so that the writer does little but write. The values of a place
    /// then come again after [`SOURCES`] writes to it; else no two writes are alike.
    pub(crate) prefilled: bool,
}

impl Storm {
    pub(crate) fn play<C: Context>(&self, ctx: &C, link: &mut Link, words: &Words) -> Result<()> {
        let end = End::open(ctx, SOURCES * self.size, Access::NONE, 0)?;
        for source in 0..SOURCES {
            fill(
                &end.memory,
                source * self.size,
                self.size,
                source as u64 + 1,
            );
        }
        let mut writer = Writer {
            end,
            plan: self,
            posted: 0,
            done: 0,
        };
        let rts = RtsAttr {
            timeout: self.timeout,
            retry_cnt: 1,
            ..RtsAttr::default()
        };
        link.send(&"ready")?;
        let mailbox = Mailbox(words);
        for round in 1.. {
            if !mailbox.wait(Mailbox::NEAR, round, Reached::Connect)? {
                break;
            }
            let control = writer.end.qp.control();
            let endpoint = restart::<C>(control, Access::NONE)?;
            connect::<C>(control, ctx, mailbox.endpoint(Mailbox::NEAR)?, rts)?;
            mailbox.put_endpoint(Mailbox::FAR, &endpoint);
            mailbox.reach(Mailbox::FAR, round, Reached::Connect);

            mailbox.wait(Mailbox::NEAR, round, Reached::Storm)?;
            let addr = mailbox.get(Mailbox::NEAR + Mailbox::MORE);
            let rkey = mailbox.get(Mailbox::NEAR + Mailbox::MORE + 1) as u32;
            let is_over = || {
                mailbox.has_reached(Mailbox::NEAR, round, Reached::Stop)
                    || words[OVER].load(Ordering::Relaxed) != 0
            };
            let status = writer.storm(round, RemoteAddr { addr, rkey }, is_over)?;
            mailbox.put(Mailbox::FAR + Mailbox::MORE, u64::from(status.0));
            mailbox.put(Mailbox::FAR + Mailbox::MORE + 1, writer.done);
            mailbox.reach(Mailbox::FAR, round, Reached::Stop);
        }
        Ok(())
    }
}

/// Bytes of memory that a storm of writes of `size` bytes takes at both ends together: the payloads, the region, and
/// a copy of that.
pub(crate) fn memory(size: usize) -> usize {
    size.saturating_mul(SOURCES + 2 * SLOTS)
}

struct Writer<'a, C: Context> {
    end: End<C>,
    plan: &'a Storm,
    /// Writes posted, over all rounds: each write carries its number in every word, unless they are prefilled.
    posted: u64,
    /// Writes completed with success.
    done: u64,
}

impl<C: Context> Writer<'_, C> {
    /// Writes until a write fails or `is_over`; then until nothing is outstanding. The first bad status, or success.
    fn storm(
        &mut self,
        round: u64,
        remote: RemoteAddr,
        is_over: impl Fn() -> bool,
    ) -> Result<WcStatus> {
        let (mut outstanding, mut status) = (0, WcStatus::SUCCESS);
        let mut polled = [Completion::EMPTY; 16];
        let mut spin = Spin::new();
        loop {
            let goes_on = status == WcStatus::SUCCESS && !is_over();
            if !goes_on && outstanding == 0 {
                return Ok(status);
            }
            if goes_on && outstanding < self.plan.window {
                self.post(round, remote)?;
                outstanding += 1;
            }
            let n = self.end.cq.poll(&mut polled);
            for completion in polled[..n].iter().filter(|c| c.wr_id == round) {
                outstanding -= 1;
                match completion.status {
                    WcStatus::SUCCESS => self.done += 1,
                    bad if status == WcStatus::SUCCESS => status = bad,
                    _ => {}
                }
            }
            if n > 0 {
                spin = Spin::new();
            } else if outstanding == self.plan.window || !goes_on {
                spin.step()
                    .context("waiting for the completion of a write")?;
            }
        }
    }

    fn post(&mut self, round: u64, remote: RemoteAddr) -> Result<()> {
        let size = self.plan.size;
        let (slot, source) = (
            self.posted as usize % SLOTS * size,
            self.posted as usize % SOURCES * size,
        );
        self.posted += 1;
        if !self.plan.prefilled {
            fill(&self.end.memory, source, size, self.posted);
        }
        let sge = [Sge::new(&self.end.mr, source, size)];
        let remote = RemoteAddr {
            addr: remote.addr + slot as u64,
            rkey: remote.rkey,
        };
        end::write::<C>(
            &mut self.end.qp,
            round,
            Payload::Regions(&sge),
            remote,
            SendFlags::SIGNALED,
        )
    }
}

fn fill(memory: &Memory, at: usize, len: usize, value: u64) {
    for word in &memory.words()[at / WORD..(at + len) / WORD] {
        word.store(value, Ordering::Relaxed);
    }
}
