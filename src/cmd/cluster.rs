//! `mu cluster`: three nodes of an application on this host, supervised.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mu::config::write_local;
use mu::host::end_signals;
use serde::Serialize;

use super::{Configured, Status, misuse, print, print_json, sibling};
use crate::cluster::{Address, Happened, Plan, Supervisor};

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
            let mut after = vec!["--".to_owned()];
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
    mu::config::Config::from_file(&config).configured("--set")?;
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
    loop {
        if let Ok(Some(_)) = signals.read_signal() {
            break;
        }
        for happened in supervisor.turn(LOOK)? {
            show.happened(&happened)?;
        }
        show.kill(&mut supervisor)?;
    }
    let ends = supervisor.stop()?;
    for (id, how) in ends.iter().filter(|(_, how)| !how.success()) {
        show.say(&format!("node {id} did not end cleanly: {how}"))?;
    }
    show.say("all nodes have ended")?;
    Ok(match ends.iter().all(|(_, how)| how.success()) {
        true => Status::Holds,
        false => Status::DoesNotHold,
    })
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

    fn say(&self, what: &str) -> Result<()> {
        let line = format!("{:8.3}  {what}\n", self.begin.elapsed().as_secs_f64());
        if self.json {
            eprint!("{line}");
            return Ok(());
        }
        print(&line)
    }

    fn happened(&mut self, happened: &Happened) -> Result<()> {
        match happened {
            Happened::Whole(nodes) => {
                self.whole = Instant::now();
                if self.announced {
                    return self.say("all nodes serve again");
                }
                self.announced = true;
                self.ready(nodes)
            }
            Happened::Leads { id, gap: Some(gap) } => {
                let ms = gap.as_secs_f64() * 1000.0;
                self.say(&format!("node {id} leads, {ms:.3} ms after the kill"))
            }
            Happened::Leads { id, gap: None } => self.say(&format!("node {id} leads")),
            Happened::Ended { id, how } => {
                self.say(&format!("node {id} ended ({how}); it is started again"))
            }
            Happened::Back { id, pid } => self.say(&format!("node {id} is back as process {pid}")),
        }
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
            ))?;
        }
        self.say(&format!(
            "ready; logs in {}; Ctrl-C stops all",
            self.dir.display()
        ))
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
            ))?;
        }
        Ok(())
    }
}
