//! `mu serve`: one replica of the key-value service.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use mu::config::{Backend, Config};
use mu::host::{
    Device, Direct, die_with, end_signals, has_history, pin, raise_descriptors, sleep_precisely,
};
use mu::kv::{Ended, Server, Store};
use mu::protocol::layout::Role;
use mu_verbs::Context;
use nix::sys::signalfd::SignalFd;
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use super::{Configured, Status, misuse, print, print_json};

/// The variable that says how much is logged.
const LOG: &str = "MU_LOG";
/// Between two words about a replica that cannot recover.
const COMPLAIN: Duration = Duration::from_secs(3);
/// A leader that is to stop waits so long for its successor.
const HAND_OVER: Duration = Duration::from_secs(1);
/// Turns of the server between two looks at the clock.
const TURNS: u32 = 256;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The cluster's configuration; examples/cluster.toml explains every key
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Which replica this is
    #[arg(long)]
    id: u8,
    /// Founds a new group with empty memory. An operator's word, for the first start of each replica and for no other:
    /// one that comes back recovers from the others
    #[arg(long)]
    form: bool,
    /// Prints one JSON object when ready
    #[arg(long)]
    json: bool,
    /// Process to die with
    #[arg(long, hide = true)]
    parent: Option<i32>,
}

impl Args {
    /// Which replica it is.
    pub(super) fn id(&self) -> u8 {
        self.id
    }
}

/// What stands around a replica: nothing, or what a measurement does to it.
pub(crate) trait Around {
    /// The device that the replica sees.
    type Over<C: Context>: Context;
    /// Puts something before the device.
    fn over<C: Context>(&self, ctx: C) -> Self::Over<C>;
    /// Between two turns of the server.
    fn between<C: Context>(&mut self, server: &mut Server<C>);
}

/// Nothing.
struct Plain;

impl Around for Plain {
    type Over<C: Context> = C;

    fn over<C: Context>(&self, ctx: C) -> C {
        ctx
    }

    #[inline]
    fn between<C: Context>(&mut self, _: &mut Server<C>) {}
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    id: u8,
    pid: u32,
    backend: &'static str,
    control: SocketAddr,
    client: SocketAddr,
    /// Whether it founds the group; false if it was told to and found one.
    form: bool,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    run_in(args, Plain)
}

pub(super) fn run_in(args: &Args, around: impl Around) -> Result<Status> {
    if let Some(parent) = args.parent {
        die_with(parent).context("--parent")?;
    }
    let filter = EnvFilter::try_from_env(LOG).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    log.with_writer(std::io::stderr).with_target(false).init();
    let config = Config::from_file(&args.config).configured("--config")?;
    let member = config.member(args.id).configured("--id")?;
    let (Some(control), Some(client)) = (member.control, member.client) else {
        return Err(misuse(format!(
            "{}: replica {} has no client address: give its entry in replicas client = \"ADDRESS:PORT\"",
            args.config.display(),
            args.id
        )));
    };
    raise_descriptors();
    // Before any thread starts, so that all of them leave signals to the descriptor.
    let signals = end_signals().context("taking signals as a descriptor")?;
    let listener = TcpListener::bind(client)
        .with_context(|| format!("replica {} cannot listen for clients on {client}", args.id))?;
    let form = args.form && !has_history(&config, args.id).context("--form")?;
    let device = Device::open(&config, args.id)?;
    let start = Start {
        config: &config,
        id: args.id,
        form,
        json: args.json,
        cpu: member.replication_cpu,
        control,
        listener,
        signals,
    };
    match device {
        Device::Shm(ctx) => start.serve(&around.over(ctx), around),
        Device::Nic(ctx) => start.serve(&around.over(ctx), around),
    }
}

struct Start<'a> {
    config: &'a Config,
    id: u8,
    form: bool,
    json: bool,
    cpu: Option<u16>,
    control: SocketAddr,
    listener: TcpListener,
    signals: SignalFd,
}

impl Start<'_> {
    fn serve<C: Context>(self, ctx: &C, mut around: impl Around) -> Result<Status> {
        sleep_precisely();
        let direct = Direct::member(ctx, self.config, self.id, self.form, Store::new())?;
        // Here and not before, since threads inherit it.
        pin(self.cpu).configured("replication_cpu")?;
        let mut server = Server::new(direct, self.listener, Some(self.signals))?;
        let ready = Ready {
            ready: true,
            id: self.id,
            pid: std::process::id(),
            backend: match self.config.backend() {
                Backend::Inproc => "inproc",
                Backend::Shm => "shm",
                Backend::Nic => "nic",
            },
            control: self.control,
            client: server.address()?,
            form: self.form,
        };
        if self.json {
            print_json(&ready)?;
        } else {
            let how = if ready.form {
                "founds the group"
            } else {
                "recovers"
            };
            print(&format!(
                "replica {} ready: pid {}, {how}, control {}, clients {}\n",
                ready.id, ready.pid, ready.control, ready.client
            ))?;
        }
        let mut complaint = Complaint::new();
        loop {
            for _ in 0..TURNS {
                around.between(&mut server);
                match server.turn() {
                    None => {}
                    Some(Ended::Signal) => {
                        tracing::info!("asked to stop");
                        hand_over(&mut server);
                        server.stop();
                        return Ok(Status::Holds);
                    }
                    Some(Ended::Replica(why)) => {
                        return Err(anyhow!("replica {} has stopped: {why}", self.id));
                    }
                }
            }
            complaint.look(server.direct());
        }
    }
}

/// A leader that is asked to stop hands over first: its clients wait for a handover instead of for the detection of a
/// failure. It stops all the same if nothing comes of it, or if it is asked again.
fn hand_over<C: Context>(server: &mut Server<C>) {
    if !server.direct().leads() {
        return;
    }
    let to = match server.transfer(None) {
        Ok(to) => to,
        Err(error) => return tracing::warn!("stops without a handover: {error}"),
    };
    let begin = Instant::now();
    // It leads until another one has the right to write its log, and follows that one then.
    while server.direct().standing().role == Role::Leader && !server.direct().leads() {
        if begin.elapsed() > HAND_OVER {
            return tracing::warn!("replica {to} did not take over within {HAND_OVER:?}");
        }
        if server.turn().is_some() {
            return;
        }
    }
    match server.direct().leads() {
        true => tracing::warn!("replica {to} did not take over"),
        false => tracing::info!("handed over to replica {to}"),
    }
}

/// Says loudly that a replica without memory finds nobody to recover from.
struct Complaint {
    since: Instant,
}

impl Complaint {
    fn new() -> Self {
        Self {
            since: Instant::now(),
        }
    }

    fn look<C: Context>(&mut self, direct: &Direct<C, Store>) {
        if direct.standing().role != Role::Recovering || direct.leader().is_some() {
            self.since = Instant::now();
            return;
        }
        if self.since.elapsed() < COMPLAIN {
            return;
        }
        self.since = Instant::now();
        let peers = direct.status().peers;
        let alive = peers.iter().filter(|peer| peer.alive).count();
        tracing::error!(
            "this replica has no memory and finds no leader to recover from ({alive} of {} peers are alive). If a \
             majority of the group has lost its memory, what was decided is lost: only an operator can form a new, \
             empty group, by stopping every replica and starting each with --form",
            peers.len()
        );
    }
}
