//! The far end of a measurement: a thread or a process, and the two pipes and the shared words that lead to it.
//!
//! A far process is this very program, started through `/proc/self/exe`. It dies with the process that started it
//! (`PR_SET_PDEATHSIG`), and is killed and reaped when the measurement ends in any way.

use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail};
use mu_verbs::Context;
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bench::backend::{Far, Pair};
use crate::bench::map_raw::{Kind, Words};
use crate::bench::{host, spin};
use crate::bench::{ping_pong, storm, write};

/// Words shared by the two ends; each user of them has its own places.
pub(crate) const WORDS: usize = 1024;
/// Words between two places that must not share a cache line, neighbours fetched along included.
pub(crate) const LINE: usize = 16;
/// Becomes 1 when the near end has given up.
pub(crate) const OVER: usize = 0;
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
}

#[derive(Serialize, Deserialize)]
struct Start {
    role: Role,
    cpu: Option<usize>,
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
            .context("telling the other end")
    }

    pub(crate) fn recv<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        if self
            .rx
            .read_line(&mut line)
            .context("hearing from the other end")?
            == 0
        {
            bail!("the other end is gone");
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
            (Err(mine), Err(theirs)) => {
                Err(mine.context(format!("the far end failed: {theirs:#}")))
            }
            (mine, theirs) => theirs.context("the far end failed").and(mine),
        }
    })
}

/// Killed and reaped when dropped.
struct Reaped(Child);

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
    match mine {
        // It prints what ails it on standard error; how it ended is what is left to say.
        Err(error) => match child.0.try_wait() {
            Ok(Some(status)) => Err(error.context(format!("the far process ended: {status}"))),
            _ => Err(error),
        },
        done => done,
    }
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
    }
}
