//! `mu cluster`: three nodes of an application on this host, supervised.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mu::config::write_local;
use mu::host::end_signals;
use nix::sys::signal::Signal;
use serde::Serialize;

use super::{Configured, Status, misuse, print, print_json, sibling};
use crate::cluster::{Address, Happened, Laggard, Plan, Supervisor};

const NODES: u8 = 3;
/// Between two looks for a signal.
const LOOK: Duration = Duration::from_millis(50);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    app: App,
}

#[derive(clap::Subcommand)]
enum App {
    /// The matching engine: FIX 4.4 order entry, ITCH 5.0 market data
    Exchange(Exchange),
    /// Three redis-servers with one content
    Redis(Redis),
}

#[derive(clap::Args)]
struct Common {
    /// Where configuration, logs and the nodes' folders go: one without a cluster.toml [default: a temporary folder,
    /// which is removed at the end]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Clients' address of the first node; the next ports are the others', then come the control addresses [default:
    /// free ports of a loopback address]
    #[arg(long, value_name = "ADDRESS:PORT")]
    first: Option<SocketAddr>,
    /// A line of cluster.toml, such as "detect_us = 1000"
    #[arg(long, value_name = "LINE")]
    set: Vec<String>,
    /// Kills the leader every so many seconds, for a show
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    kill_leader_every: Option<u64>,
    /// Prints one JSON object when all is ready; what happens later goes to standard error
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Exchange {
    #[command(flatten)]
    common: Common,
    /// Further options of mu-exchange serve, after --
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<String>,
}

#[derive(clap::Args)]
struct Redis {
    #[command(flatten)]
    common: Common,
    /// The server and its options, after -- [default: redis-server]
    #[arg(last = true, value_name = "SERVER")]
    server: Vec<String>,
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    nodes: Vec<Address>,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    match &args.app {
        App::Exchange(exchange) => {
            let program = sibling("mu-exchange")?;
            supervise(&exchange.common, program, "serve", exchange.options.clone())
        }
        App::Redis(redis) => {
            let program = std::env::current_exe().context("the path of this program")?;
            // A folder inside of the node's own, so that one that is killed leaves nothing elsewhere.
            let mut after = ["--dir", "server", "--"].map(str::to_owned).to_vec();
            match redis.server.is_empty() {
                true => after.push("redis-server".into()),
                false => after.extend_from_slice(&redis.server),
            }
            supervise(&redis.common, program, "redis", after)
        }
    }
}

fn supervise(common: &Common, program: PathBuf, verb: &str, after: Vec<String>) -> Result<Status> {
    // Before any thread starts, so that all of them leave signals to the descriptor.
    let signals = end_signals().context("taking signals as a descriptor")?;
    let temporary = match common.dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("mu-cluster-").tempdir()?),
    };
    let dir = common
        .dir
        .as_deref()
        .or(temporary.as_ref().map(|dir| dir.path()));
    let dir = folder(dir.context("one of the two")?)?;
    let settings: String = common.set.iter().map(|line| format!("{line}\n")).collect();
    let config =
        write_local(&dir, NODES, &settings, common.first).configured("--dir and --first")?;
    if let Err(error) = mu::config::Config::from_file(&config) {
        // They would be in the way of the next attempt.
        let _ = fs::remove_file(&config);
        let _ = fs::remove_file(config.with_extension("key"));
        return Err(error).configured("--set");
    }
    let plan = Plan {
        program,
        before: vec![verb.into()],
        after,
        dir: dir.clone(),
        config,
        ids: (0..NODES).collect(),
    };
    let mut supervisor = Supervisor::start(plan)?;
    let mut show = Show::new(common, &dir);
    let asked = || matches!(signals.read_signal(), Ok(Some(_)));
    while !asked() {
        let happened = match supervisor.turn(LOOK) {
            Ok(happened) => happened,
            // Ctrl-C goes to the nodes too, which may be quicker than this look.
            Err(_) if asked() => break,
            Err(error) => return Err(error),
        };
        for happened in happened {
            show.happened(&happened)?;
        }
        show.kill(&mut supervisor)?;
    }
    let ends = supervisor.stop()?;
    let failed = ends.iter().filter(|(_, how)| !ended_as_asked(*how));
    let failed: Vec<_> = failed.collect();
    for (id, how) in &failed {
        show.say(&format!("node {id} did not end cleanly: {how}"));
    }
    show.say("all nodes have ended");
    Ok(match failed.is_empty() {
        true => Status::Holds,
        false => Status::DoesNotHold,
    })
}

/// By itself, or by the signal if it was too young to take it.
fn ended_as_asked(how: ExitStatus) -> bool {
    let asked = [Signal::SIGINT, Signal::SIGTERM].map(|signal| signal as i32);
    how.success() || how.signal().is_some_and(|signal| asked.contains(&signal))
}

/// The folder, with its whole path, since nodes run in others.
fn folder(dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir).configured("--dir")?;
    if dir.join("cluster.toml").exists() {
        return Err(misuse(format!(
            "--dir {}: there is a cluster.toml already. A cluster that was stopped whole has lost its memory: take \
             another folder, or remove what is in this one",
            dir.display()
        )));
    }
    dir.canonicalize().configured("--dir")
}

/// What people are told, and when the leader is killed.
struct Show {
    begin: Instant,
    json: bool,
    announced: bool,
    dir: PathBuf,
    every: Option<Duration>,
    /// When the cluster was whole again.
    whole: Instant,
}

impl Show {
    fn new(common: &Common, dir: &Path) -> Self {
        Self {
            begin: Instant::now(),
            json: common.json,
            announced: false,
            dir: dir.into(),
            every: common.kill_leader_every.map(Duration::from_secs),
            whole: Instant::now(),
        }
    }

    /// Nobody has to listen: the cluster goes on.
    fn say(&self, what: &str) {
        let line = format!("{:8.3}  {what}\n", self.begin.elapsed().as_secs_f64());
        let _ = match self.json {
            true => std::io::stderr()
                .write_all(line.as_bytes())
                .map_err(anyhow::Error::from),
            false => print(&line),
        };
    }

    fn happened(&mut self, happened: &Happened) -> Result<()> {
        match happened {
            Happened::Whole(nodes) => {
                self.whole = Instant::now();
                if !std::mem::replace(&mut self.announced, true) {
                    return self.ready(nodes);
                }
                self.say("all nodes serve again");
            }
            Happened::Leads { id, gap: Some(gap) } => {
                let ms = gap.as_secs_f64() * 1000.0;
                self.say(&format!("node {id} leads, {ms:.3} ms after the kill"));
            }
            Happened::Leads { id, gap: None } => self.say(&format!("node {id} leads")),
            Happened::Ended { id, how } => {
                self.say(&format!("node {id} ended ({how}); it is started again"));
            }
            Happened::NotStarted { id, why } => self.say(&format!(
                "node {id} could not be started ({why}); it is tried again"
            )),
            Happened::Back { id, pid } => self.say(&format!("node {id} is back as process {pid}")),
            Happened::NotWhole { since, nodes } => {
                self.say(&format!("not ready after {} s:", since.as_secs()));
                for Laggard { id, role, log } in nodes {
                    self.say(&format!("node {id}: {role}; it logged last:"));
                    log.iter().for_each(|line| self.say(&format!("    {line}")));
                }
            }
        }
        Ok(())
    }

    fn ready(&self, nodes: &[Address]) -> Result<()> {
        if self.json {
            return print_json(&Ready {
                ready: true,
                nodes: nodes.to_vec(),
            });
        }
        for Address {
            id,
            pid,
            role,
            host,
            port,
        } in nodes
        {
            self.say(&format!(
                "node {id}, {role}: clients {host}:{port}, process {pid}"
            ));
        }
        self.say(&format!(
            "ready; logs in {}; Ctrl-C stops all",
            self.dir.display()
        ));
        Ok(())
    }

    fn kill(&mut self, supervisor: &mut Supervisor) -> Result<()> {
        let due = self
            .every
            .is_some_and(|every| self.whole.elapsed() >= every);
        if !due || !supervisor.is_whole() {
            return Ok(());
        }
        if let Some((id, pid)) = supervisor.kill_leader()? {
            self.whole = Instant::now();
            self.say(&format!(
                "kill -9 of node {id}, which leads (process {pid})"
            ));
        }
        Ok(())
    }
}
