//! Replica processes of this host: this very program, with a configuration in a temporary folder.
//!
//! They listen on a loopback address that is made from this process's number, so that two groups at the same time do
//! not meet. Each child dies with this process (`PR_SET_PDEATHSIG`), and is killed and reaped when the group is
//! dropped, in whatever way that comes about.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use mu::config::{Config, write_local};
use mu::control::query_status;
use mu::host::{RoleEvent, Status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cmd::told;

/// Longest wait for anything that a replica is to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Between two questions.
const LOOK: Duration = Duration::from_millis(5);
/// Of what a child said, how much is told when it failed.
const LAST_WORDS: usize = 2000;

/// What the replicas are like.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    /// How many.
    pub(crate) replicas: u8,
    /// Further lines of the configuration.
    pub(crate) settings: String,
    /// The command that each one is: `serve`, with whatever stands before its own options.
    pub(crate) command: Vec<String>,
    /// What stands behind its own options.
    pub(crate) arguments: Vec<String>,
}

/// How a replica became leader, in nanoseconds of the host's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Takeover {
    /// Which one.
    pub(crate) leader: u8,
    /// When the first one stood.
    pub(crate) stood_ns: u64,
    /// When it led.
    pub(crate) led_ns: u64,
}

/// The group.
pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    config: Config,
    kind: Kind,
    children: Vec<Option<Child>>,
}

impl Cluster {
    /// Writes the configuration; nothing runs yet.
    pub(crate) fn new(kind: Kind) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("mu-").tempdir();
        let dir = dir.context("a temporary folder")?;
        write_local(dir.path(), kind.replicas, &kind.settings, None)?;
        let config = Config::from_file(dir.path().join("cluster.toml"))?;
        Ok(Self {
            children: (0..kind.replicas).map(|_| None).collect(),
            dir,
            config,
            kind,
        })
    }

    /// The configuration's file.
    pub(crate) fn config_path(&self) -> PathBuf {
        self.dir.path().join("cluster.toml")
    }

    /// The ids.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u8> + use<> {
        0..self.kind.replicas
    }

    /// Bytes of each replica's log.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.config.log_bytes()
    }

    /// Client addresses by id.
    pub(crate) fn clients(&self) -> Vec<SocketAddr> {
        let members = self.config.members().iter();
        members.filter_map(|member| member.client).collect()
    }

    /// Starts a replica. `form`: it founds the group.
    pub(crate) fn start(&mut self, id: u8, form: bool) -> Result<()> {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.log_path(id))
            .with_context(|| format!("the log of replica {id}"))?;
        let mut command = Command::new("/proc/self/exe");
        command
            .args(&self.kind.command)
            .arg("--config")
            .arg(self.config_path())
            .args(["--id", &id.to_string()])
            .args(["--parent", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if form {
            command.arg("--form");
        }
        command.args(&self.kind.arguments);
        let child = command
            .spawn()
            .with_context(|| format!("starting replica {id}"))?;
        self.children[usize::from(id)] = Some(child);
        Ok(())
    }

    fn log_path(&self, id: u8) -> PathBuf {
        self.dir.path().join(format!("replica-{id}.log"))
    }

    /// The process of a replica.
    pub(crate) fn pid(&self, id: u8) -> Result<Pid> {
        let child = self.children[usize::from(id)].as_ref();
        let child = child.with_context(|| format!("replica {id} does not run"))?;
        Ok(Pid::from_raw(
            i32::try_from(child.id()).context("a process number")?,
        ))
    }

    /// Sends a signal to a replica.
    pub(crate) fn signal(&self, id: u8, signal: Signal) -> Result<()> {
        kill(self.pid(id)?, signal).with_context(|| format!("{signal} to replica {id}"))
    }

    /// Reaps a replica that was killed or ends by itself.
    pub(crate) fn reap(&mut self, id: u8) -> Result<()> {
        let begin = Instant::now();
        while let Some(child) = &mut self.children[usize::from(id)] {
            if child.try_wait().context("waiting for a replica")?.is_some() {
                self.children[usize::from(id)] = None;
            } else if begin.elapsed() > PATIENCE {
                bail!("replica {id} does not end");
            } else {
                thread::sleep(Duration::from_micros(200));
            }
        }
        Ok(())
    }

    /// Whether the process of a replica is there.
    pub(crate) fn runs(&mut self, id: u8) -> bool {
        let child = self.children[usize::from(id)].as_mut();
        child.is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// What a replica says of itself.
    pub(crate) fn status(&self, id: u8) -> Result<Status> {
        let member = self.config.member(id)?;
        let (control, psk) = member
            .control
            .zip(self.config.psk())
            .context("a control address and a key")?;
        let bytes = query_status(control, psk, self.config.cluster())?;
        serde_json::from_slice(&bytes).context("it has nothing to say yet")
    }

    /// Waits until a replica's status is as wanted.
    pub(crate) fn wait_for(
        &mut self,
        id: u8,
        what: &str,
        holds: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        let begin = Instant::now();
        loop {
            let last = match self.status(id) {
                Ok(status) if holds(&status) => return Ok(status),
                Ok(status) => format!("{status:?}"),
                Err(error) => told(&error),
            };
            if !self.runs(id) || begin.elapsed() > PATIENCE {
                bail!(
                    "waiting for replica {id} to be {what}; last: {last}\n{}",
                    self.last_words(id)
                );
            }
            thread::sleep(LOOK);
        }
    }

    /// Waits until every replica has a vote and one leads; gives the leader.
    pub(crate) fn wait_for_all(&mut self) -> Result<u8> {
        for id in self.ids() {
            self.wait_for(id, "a voter", |status| status.voter)?;
        }
        self.wait_for_leader(None)
    }

    /// Waits until a replica other than `not` leads; gives it.
    pub(crate) fn wait_for_leader(&mut self, not: Option<u8>) -> Result<u8> {
        let begin = Instant::now();
        loop {
            let others = self.ids().filter(|id| Some(*id) != not);
            let statuses = others.filter_map(|id| self.status(id).ok());
            let leaders = statuses.filter(|status| status.role == "leader");
            if let Some(leader) = leaders.max_by_key(|status| status.epoch) {
                return Ok(leader.id);
            }
            if begin.elapsed() > PATIENCE {
                let words: Vec<String> = self.ids().map(|id| self.last_words(id)).collect();
                bail!("no replica leads\n{}", words.join("\n"));
            }
            thread::sleep(LOOK);
        }
    }

    /// How another replica than `away` took over after a moment. A status tells it a little later. `None` if another
    /// one leads since before the moment, so that nothing was to be taken over.
    pub(crate) fn takeover(&mut self, away: u8, moment_ns: u64) -> Result<Option<Takeover>> {
        let begin = Instant::now();
        loop {
            let mut events: Vec<(u8, RoleEvent)> = Vec::new();
            for id in self.ids().filter(|id| *id != away) {
                let said = self.status(id)?.events.into_iter();
                events.extend(said.map(|event| (id, event)));
            }
            let before = events.iter().filter(|(_, event)| event.at_ns <= moment_ns);
            let before = before.max_by_key(|(_, event)| event.at_ns);
            let led_before = before.is_some_and(|(_, event)| event.role == "leader");
            events.retain(|(_, event)| event.at_ns > moment_ns);
            events.sort_by_key(|(_, event)| event.at_ns);
            let first = |role: &str| events.iter().find(|(_, event)| event.role == role);
            if let Some(((_, stood), (leader, led))) = first("stands").zip(first("leader")) {
                return Ok(Some(Takeover {
                    leader: *leader,
                    stood_ns: stood.at_ns,
                    led_ns: led.at_ns,
                }));
            }
            if led_before && begin.elapsed() > PATIENCE / 10 {
                return Ok(None);
            }
            if begin.elapsed() > PATIENCE {
                bail!("no replica says that it stood and led after {moment_ns} ns: {events:?}");
            }
            thread::sleep(LOOK);
        }
    }

    /// The end of what a replica logged.
    pub(crate) fn last_words(&self, id: u8) -> String {
        let text = fs::read_to_string(self.log_path(id)).unwrap_or_default();
        let from = text.len().saturating_sub(LAST_WORDS);
        let from = (from..text.len()).find(|at| text.is_char_boundary(*at));
        let text = from.map_or("", |from| &text[from..]);
        format!("replica {id} logged last:\n{text}")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            // One that is gone already is as wanted. A stopped one dies too.
            let _ = child.kill();
        }
        for child in self.children.iter_mut().flatten() {
            let _ = child.wait();
        }
    }
}
