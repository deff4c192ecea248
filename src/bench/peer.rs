//! The far end of a measurement: a thread or a process, and the two pipes and the shared words that lead to it.
//!
//! A far process is this very program, started through `/proc/self/exe`. It dies with the process that started it
//! (`PR_SET_PDEATHSIG`), and is killed and reaped when the measurement ends in any way.

use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use std::{fmt, thread};

use anyhow::{Context as _, Result, anyhow, bail};
use mu_verbs::Context;
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bench::backend::{Far, Pair};
use crate::bench::map_raw::{Kind, Words};
use crate::bench::{group, host, ping_pong, spin, storm, write};
use crate::cmd::told;

/// Words shared by the two ends; each user of them has its own places.
pub(crate) const WORDS: usize = 1024;
/// Words between two places that must not share a cache line, neighbours fetched along included.
pub(crate) const LINE: usize = 16;
/// Becomes 1 when the near end has given up.
pub(crate) const OVER: usize = 0;
/// How long a far process has to say why it failed.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// First word that is for the measurement.
pub(crate) const FREE: usize = LINE;

/// What the far end is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Memory to be written to.
    Target(write::Target),
    /// Answers writes by writes.
    Echo(ping_pong::Echo),
    /// Writes without pause until it is refused, again and again.
    Storm(storm::Storm),
    /// A replica that follows.
    Follower(group::Follower),
}

#[derive(Serialize, Deserialize)]
struct Start {
    role: Role,
    cpu: Option<usize>,
}

/// What an end says when the other one is gone or silent: a consequence, which explains nothing if the other end has
/// a reason of its own.
#[derive(Debug)]
pub(crate) struct Lost(pub(crate) String);

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Lost {}

/// The error to report of two ends that both failed: whichever is not the consequence of the other.
fn reason(mine: anyhow::Error, theirs: anyhow::Error) -> anyhow::Error {
    match (mine.is::<Lost>(), theirs.is::<Lost>()) {
        (true, false) => theirs.context("the far end failed"),
        (_, true) => mine,
        (false, false) => mine.context(format!("the far end failed: {}", told(&theirs))),
    }
}

/// A pair of pipes that carries lines of JSON.
pub(crate) struct Link {
    rx: BufReader<Box<dyn Read + Send>>,
    tx: Box<dyn Write + Send>,
}

impl Link {
    pub(crate) fn new(rx: impl Read + Send + 'static, tx: impl Write + Send + 'static) -> Self {
        Self {
            rx: BufReader::new(Box::new(rx)),
            tx: Box::new(tx),
        }
    }

    fn pair() -> Result<(Self, Self)> {
        let pipe = || -> Result<(PipeReader, PipeWriter)> { std::io::pipe().context("a pipe") };
        let (near_rx, far_tx) = pipe()?;
        let (far_rx, near_tx) = pipe()?;
        Ok((Self::new(near_rx, near_tx), Self::new(far_rx, far_tx)))
    }

    pub(crate) fn send(&mut self, message: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.tx
            .write_all(&line)
            .and_then(|()| self.tx.flush())
            .map_err(|e| Lost(format!("telling the other end: {e}")).into())
    }

    pub(crate) fn recv<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        if self
            .rx
            .read_line(&mut line)
            .context("hearing from the other end")?
            == 0
        {
            bail!(Lost("the other end is gone".into()));
        }
        serde_json::from_str(&line).context("the other end sent something unexpected")
    }

    /// Waits until the other end closes the link.
    pub(crate) fn closed(&mut self) -> Result<()> {
        let mut line = String::new();
        match self
            .rx
            .read_line(&mut line)
            .context("hearing from the other end")?
        {
            0 => Ok(()),
            _ => bail!("the other end sent something unexpected"),
        }
    }
}

/// The far end as the near one sees it.
pub(crate) struct Peer<'a> {
    pub(crate) link: Link,
    pub(crate) words: &'a Words,
    /// Its process, if it has one of its own.
    pub(crate) pid: Option<Pid>,
}

impl<'a> Peer<'a> {
    /// The far end, for somebody else to talk to. What stays here is silent.
    pub(crate) fn take(&mut self) -> Self {
        let silent = Link::new(std::io::empty(), std::io::sink());
        Peer {
            link: std::mem::replace(&mut self.link, silent),
            words: self.words,
            pid: self.pid,
        }
    }
}

/// Starts the far end in its role, runs `work`, and ends the far end.
pub(crate) fn with_peer<C: Context, T>(
    pair: &Pair<C>,
    role: Role,
    cpu: Option<usize>,
    work: impl FnOnce(&mut Peer<'_>) -> Result<T>,
) -> Result<T> {
    let start = Start { role, cpu };
    match &pair.far {
        Far::Thread(ctx) => with_thread(ctx, &start, work),
        Far::Process => with_process(&start, work),
    }
}

fn with_thread<C: Context, T>(
    ctx: &C,
    start: &Start,
    work: impl FnOnce(&mut Peer<'_>) -> Result<T>,
) -> Result<T> {
    let words = Words::new(Kind::Anonymous, WORDS)?;
    let (near, far) = Link::pair()?;
    thread::scope(|scope| {
        // A failure on either side closes that side's pipes, so that the other one hears of it.
        let far = scope.spawn(|| {
            let mut link = far;
            serve(ctx, &mut link, &words)
        });
        let mut peer = Peer {
            link: near,
            words: &words,
            pid: None,
        };
        let mine = peer.link.send(start).and_then(|()| work(&mut peer));
        words[OVER].store(1, Ordering::Release);
        drop(peer);
        let theirs = far.join().unwrap_or_else(|_| Err(anyhow!("it panicked")));
        match (mine, theirs) {
            (Err(mine), Err(theirs)) => Err(reason(mine, theirs)),
            (mine, theirs) => theirs.context("the far end failed").and(mine),
        }
    })
}

/// Killed and reaped when dropped.
struct Reaped(Child);

impl Reaped {
    /// Why it failed, if it did by itself. It prints its reason, unless that is [`Lost`].
    fn reason(&mut self) -> Option<String> {
        let since = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && since.elapsed() < LAST_WORDS {
            thread::sleep(LAST_WORDS / 100);
        }
        // One that still runs is not the one that failed first; without it the pipe ends.
        let _ = self.0.kill();
        let mut said = String::new();
        let _ = self.0.stderr.take()?.read_to_string(&mut said);
        let said = said.trim();
        let said = said.strip_prefix("mu: ").unwrap_or(said);
        (!said.is_empty()).then(|| said.to_owned())
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        // It may be gone already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn with_process<T>(start: &Start, work: impl FnOnce(&mut Peer<'_>) -> Result<T>) -> Result<T> {
    let words = Words::new(Kind::File, WORDS)?;
    let child = Command::new("/proc/self/exe")
        .arg("bench-peer")
        .args(["--words", &words.inherit()?.to_string()])
        .args(["--parent", &std::process::id().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the far process")?;
    let mut child = Reaped(child);
    let (rx, tx) = child
        .0
        .stdout
        .take()
        .zip(child.0.stdin.take())
        .context("the pipes of the far process")?;
    let pid = Pid::from_raw(i32::try_from(child.0.id()).context("a process number")?);
    let mut peer = Peer {
        link: Link::new(rx, tx),
        words: &words,
        pid: Some(pid),
    };
    let mine = peer.link.send(start).and_then(|()| work(&mut peer));
    words[OVER].store(1, Ordering::Release);
    drop(peer);
    mine.map_err(|mine| match child.reason() {
        Some(theirs) => reason(mine, anyhow!(theirs)),
        None => mine,
    })
}

/// The far end: reads its role and plays it.
pub(crate) fn serve<C: Context>(ctx: &C, link: &mut Link, words: &Words) -> Result<()> {
    let Start { role, cpu } = link.recv()?;
    // A pinned thread would take itself to be alone.
    spin::is_alone();
    host::pin(cpu)?;
    match role {
        Role::Target(role) => role.play(ctx, link),
        Role::Echo(role) => role.play(ctx, link, words),
        Role::Storm(role) => role.play(ctx, link, words),
        Role::Follower(role) => role.play(ctx, link, words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_failures_the_cause_is_reported() {
        let lost = || anyhow::Error::new(Lost("gone".into())).context("hearing");
        let real = |what| anyhow!("no {what}");
        assert_eq!(
            told(&reason(lost(), real("memory"))),
            "the far end failed: no memory"
        );
        assert_eq!(told(&reason(real("device"), lost())), "no device");
        assert_eq!(told(&reason(lost(), lost())), "hearing: gone");
        assert_eq!(
            told(&reason(real("device"), real("memory"))),
            "the far end failed: no memory: no device"
        );
    }
}
