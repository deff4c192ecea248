//! `mu serve`: one replica of the key-value service.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use mu::config::{Backend, Config, Member};
use mu::control::QueryError;
use mu::host::{Device, Direct, pin, sleep_precisely};
use mu::kv::{Ended, Server, Store};
use mu::protocol::layout::Role;
use mu_verbs::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use super::{Configured, Status, die_with, misuse, print, print_json};

/// The variable that says how much is logged.
const LOG: &str = "MU_LOG";
/// Between two words about a replica that cannot recover.
const COMPLAIN: Duration = Duration::from_secs(3);
/// A peer that is there is asked for its history for so long ...
const ASK: Duration = Duration::from_secs(10);
/// ... with such pauses.
const ASK_PAUSE: Duration = Duration::from_millis(50);
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
        die_with(parent)?;
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
    // Before any thread starts, so that all of them leave signals to the descriptor.
    let signals = signals().context("taking signals as a descriptor")?;
    let listener = TcpListener::bind(client)
        .with_context(|| format!("replica {} cannot listen for clients on {client}", args.id))?;
    let form = args.form && !has_history(&config, args.id)?;
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

/// SIGINT and SIGTERM as something to poll.
pub(super) fn signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Whether there is a group already, so that nothing is to be founded: a peer has decided something. Asked before the
/// own control address is taken.
///
/// # Errors
/// A peer's process is there and does not say. To found a group beside one that exists would make this replica vote
/// without the memory that the others believe it has.
pub(super) fn has_history(config: &Config, id: u8) -> Result<bool> {
    let others = config.members().iter().filter(|member| member.id != id);
    let asked: Vec<Result<Option<u64>>> = std::thread::scope(|scope| {
        let asks: Vec<_> = others
            .map(|member| scope.spawn(move || history_of(config, member)))
            .collect();
        let joined = asks.into_iter().map(|asked| asked.join());
        joined
            .map(|asked| asked.unwrap_or_else(|_| Err(anyhow!("the question panicked"))))
            .collect()
    });
    let mut commit = 0;
    let mut silent = None;
    for answer in asked {
        match answer {
            Ok(known) => commit = commit.max(known.unwrap_or(0)),
            Err(error) => silent = Some(error),
        }
    }
    if commit > 0 {
        tracing::warn!(
            commit,
            "--form ignored: the group has a history already; this replica recovers from it"
        );
        return Ok(true);
    }
    match silent {
        Some(error) => Err(error),
        None => Ok(false),
    }
}

/// The last entry that a peer knows; `None` if no process is there.
fn history_of(config: &Config, member: &Member) -> Result<Option<u64>> {
    let begin = Instant::now();
    loop {
        let error = match super::status::ask(config, member) {
            Ok(status) => return Ok(Some(status.commit.max(status.applied))),
            Err(error) => error,
        };
        if let Some(QueryError::Unreachable { .. }) = error.downcast_ref() {
            return Ok(None);
        }
        if begin.elapsed() > ASK {
            return Err(error.context(format!(
                "--form: replica {} is there and does not say whether the group has a history; stop it, or start this \
                 one without --form",
                member.id
            )));
        }
        std::thread::sleep(ASK_PAUSE);
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
