//! `mu redis`: one node of a replicated redis-server.
//!
//! Starts the server with the shared object and watches it. A server that ends, for it lost its leadership or was
//! killed, is started again, empty and as a follower; it gets its dataset from the others.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mu::config::Config;
use mu::host::{die_with, end_signals, has_history};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use super::{Configured, Status, misuse, print, print_json};
use crate::redis::check;
use crate::redis::node::{Node, Plan, sentinel_of};

/// Looks at the server at least so often.
const LOOK_MS: u16 = 50;
/// A server that ends before it is ready is started again after a pause, which doubles.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MOST: Duration = Duration::from_secs(2);
/// A server that ended so often before it was ready will not be.
const TRIES: u32 = 5;
/// The status with which the shared object says that the configuration is at fault.
const MISCONFIGURED: i32 = 78;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The cluster's configuration; the client address of a replica is its server's
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Which replica this is
    #[arg(long)]
    id: u8,
    /// Founds a new group without any data. An operator's word, for the first start of each node and for no other
    #[arg(long)]
    form: bool,
    /// The folder of the server's files, of which none is needed again [default: one that is removed at the end]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Prints a JSON object when ready, and one whenever the role changes
    #[arg(long)]
    json: bool,
    /// Process to die with
    #[arg(long, hide = true)]
    parent: Option<i32>,
    /// A seeded bug: early-answer, unproved-read or primary-unasked
    #[arg(long, hide = true)]
    fault: Option<String>,
    /// The server and what it is told: redis-server [FILE] [--NAME VALUE]...
    #[arg(last = true, value_name = "SERVER")]
    server: Vec<String>,
}

/// A line of the shared object.
#[derive(Deserialize)]
struct Told {
    role: String,
}

#[derive(Serialize)]
struct Ready<'a> {
    ready: bool,
    id: u8,
    pid: u32,
    role: &'a str,
    host: String,
    port: u16,
    sentinel_port: u16,
}

#[derive(Serialize)]
struct Changed<'a> {
    role: &'a str,
    id: u8,
    pid: u32,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    if let Some(parent) = args.parent {
        die_with(parent)?;
    }
    let filter = EnvFilter::try_from_env("MU_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    log.with_writer(std::io::stderr).with_target(false).init();
    let config = Config::from_file(&args.config).configured("--config")?;
    let member = config.member(args.id).configured("--id")?;
    let Some(client) = member.client else {
        return Err(misuse(format!(
            "{}: replica {} has no client address: give its entry in replicas client = \"ADDRESS:PORT\", the address \
             of its redis-server",
            args.config.display(),
            args.id
        )));
    };
    let mut command = args.server.clone();
    if command.is_empty() {
        command.push("redis-server".into());
    }
    check::server(&command[0]).map_err(|error| misuse(error.to_string()))?;
    let named = check::arguments(&command[1..]).map_err(|error| misuse(error.to_string()))?;
    let object = check::object().map_err(|error| misuse(error.to_string()))?;
    let signals = end_signals().context("taking signals as a descriptor")?;
    let form = args.form && !has_history(&config, args.id)?;
    // The folder lasts as long as this process.
    let (dir, _temporary) = match &args.dir {
        Some(dir) => {
            let dir = &std::path::absolute(dir)?;
            check::folder(dir).map_err(|error| misuse(error.to_string()))?;
            std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
            (dir.clone(), None)
        }
        None => {
            let dir = tempfile::Builder::new().prefix("mu-redis-").tempdir();
            let dir = dir.context("a temporary folder")?;
            check::folder(dir.path()).map_err(|error| misuse(error.to_string()))?;
            (dir.path().to_owned(), Some(dir))
        }
    };
    let plan = Plan {
        config: std::path::absolute(&args.config)?,
        id: args.id,
        client,
        sentinel: sentinel_of(client),
        dir: std::path::absolute(dir)?,
        object,
        named,
        command,
        fault: args.fault.clone(),
    };
    Supervisor {
        args,
        plan,
        signals,
        ready: false,
        told: false,
    }
    .watch(form)
}

struct Supervisor<'a> {
    args: &'a Args,
    plan: Plan,
    signals: SignalFd,
    /// It was ready at least once.
    ready: bool,
    /// The server that runs has told a role.
    told: bool,
}

/// Why a server is not watched any more.
enum Over {
    Signal,
    Ended(ExitStatus),
}

impl Supervisor<'_> {
    fn watch(&mut self, mut form: bool) -> Result<Status> {
        let (mut pause, mut tries) = (PAUSE, 0);
        loop {
            let mut node = self.plan.start(form)?;
            match self.follow(&mut node)? {
                Over::Signal => {
                    node.stop()?;
                    return Ok(Status::Holds);
                }
                Over::Ended(status) => {
                    if status.code() == Some(MISCONFIGURED) {
                        return Err(misuse(format!(
                            "the server of replica {} cannot be used: see above",
                            self.plan.id
                        )));
                    }
                    tracing::warn!(%status, "the server has ended; it is started again as a follower");
                }
            }
            // What was ready and was killed is not what ends at once.
            if std::mem::take(&mut self.told) {
                (pause, tries) = (PAUSE, 0);
            }
            tries += 1;
            if !self.ready && tries == TRIES {
                bail!(
                    "the server of replica {} ends before it is ready: see above",
                    self.plan.id
                );
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MOST);
            form = false;
        }
    }

    /// Until it ends, or a signal comes.
    fn follow(&mut self, node: &mut Node) -> Result<Over> {
        let mut lines = Vec::new();
        let mut open = true;
        loop {
            let mut polled = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            if open {
                polled.push(PollFd::new(node.report.as_fd(), PollFlags::POLLIN));
            }
            // Interrupted, it looks once more.
            let _ = poll(&mut polled, PollTimeout::from(LOOK_MS));
            let said = |n: usize| polled.get(n).and_then(PollFd::any).unwrap_or(false);
            let (signal, report) = (said(0), said(1));
            if signal {
                return Ok(Over::Signal);
            }
            if report {
                let mut buffer = [0; 512];
                let n = node
                    .report
                    .read(&mut buffer)
                    .context("reading what the server says")?;
                open = n > 0;
                lines.extend_from_slice(&buffer[..n]);
                while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = lines.drain(..=end).collect();
                    let told: Told =
                        serde_json::from_slice(&line).context("what the server says")?;
                    self.tell(node.pid(), &told.role)?;
                }
            }
            if let Some(status) = node.ended()? {
                return Ok(Over::Ended(status));
            }
        }
    }

    fn tell(&mut self, pid: u32, role: &str) -> Result<()> {
        let plan = &self.plan;
        self.told = true;
        let first = !std::mem::replace(&mut self.ready, true);
        match (self.args.json, first) {
            (true, true) => print_json(&Ready {
                ready: true,
                id: plan.id,
                pid,
                role,
                host: plan.client.ip().to_string(),
                port: plan.client.port(),
                sentinel_port: plan.sentinel.port(),
            }),
            (true, false) => print_json(&Changed {
                role,
                id: plan.id,
                pid,
            }),
            (false, true) => print(&format!(
                "node {} ready: pid {pid}, {role}, clients {}, Sentinel's questions {}\n",
                plan.id, plan.client, plan.sentinel
            )),
            (false, false) => print(&format!("node {}: {role}, pid {pid}\n", plan.id)),
        }
    }
}
