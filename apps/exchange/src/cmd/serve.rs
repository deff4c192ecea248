//! `mu-exchange serve`: one replica of the exchange.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use mu::config::Config;
use mu::host::{Device, Direct, die_with, end_signals, has_history, pin, sleep_precisely};
use mu::protocol::layout::Role;
use mu_exchange::engine::OrderBookRs;
use mu_exchange::exchange::Exchange;
use mu_exchange::server::{Ended, Options, Server};
use mu_verbs::Context;
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use super::{Misuse, print_json, symbols};

/// The variable that says how much is logged.
const LOG: &str = "MU_LOG";
/// Turns of the server between two looks at the clock.
const TURNS: u32 = 256;
/// Between two words about a replica that cannot recover.
const COMPLAIN: Duration = Duration::from_secs(3);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The cluster's configuration; each entry in replicas needs a client address
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Which replica this is
    #[arg(long)]
    id: u8,
    /// Founds a new group with empty books: an operator's word, for the first start of each replica and for no other
    #[arg(long)]
    form: bool,
    /// Prints JSON, one object a line: first when ready, then at each change of the role
    #[arg(long)]
    json: bool,
    /// The symbols, the same for all replicas
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    symbols: Vec<String>,
    /// The exchange's name in FIX, which clients address
    #[arg(long, default_value = "MU")]
    comp: String,
    /// Writes market data to a file
    #[arg(long, value_name = "FILE")]
    itch: Option<PathBuf>,
    /// Sends market data in MoldUDP64 packets; requests are answered at the client address, over UDP
    #[arg(long, value_name = "ADDRESS:PORT")]
    feed: Option<SocketAddr>,
    /// Process to die with
    #[arg(long, hide = true)]
    parent: Option<i32>,
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    id: u8,
    pid: u32,
    role: String,
    host: String,
    port: u16,
}

#[derive(Serialize)]
struct NewRole {
    role: String,
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    if let Some(parent) = args.parent {
        die_with(parent).context("--parent")?;
    }
    let filter = EnvFilter::try_from_env(LOG).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    log.with_writer(std::io::stderr).with_target(false).init();
    let config = Config::from_file(&args.config).map_err(misuse("--config"))?;
    let member = config.member(args.id).map_err(misuse("--id"))?;
    let client = member.client.ok_or_else(|| {
        Misuse(format!(
            "{}: replica {} has no client address: give its entry in replicas client = \"ADDRESS:PORT\"",
            args.config.display(),
            args.id
        ))
    })?;
    let exchange =
        Exchange::<OrderBookRs>::new(symbols(&args.symbols)).map_err(misuse("--symbols"))?;
    // Before any thread starts, so that all of them leave signals to the descriptor.
    let signals = end_signals().context("taking signals as a descriptor")?;
    let listener = TcpListener::bind(client)
        .with_context(|| format!("replica {} cannot listen for clients on {client}", args.id))?;
    let form = args.form && !has_history(&config, args.id).context("--form")?;
    let options = Options {
        comp: args.comp.clone(),
        clients: config
            .members()
            .iter()
            .filter_map(|m| Some((m.id, m.client?)))
            .collect(),
        stream: config.cluster().into(),
        itch: args.itch.clone(),
        feed: args.feed,
    };
    let wants_news = args.itch.is_some() || args.feed.is_some();
    let exchange = if wants_news {
        exchange.with_news()
    } else {
        exchange
    };
    let device = Device::open(&config, args.id)?;
    let cpu = member.replication_cpu;
    let (id, json) = (args.id, args.json);
    sleep_precisely();
    match device {
        Device::Shm(ctx) => {
            let direct = Direct::member(&ctx, &config, id, form, exchange)?;
            pin(cpu)?;
            serve(
                Server::new(direct, listener, Some(signals), options)?,
                client,
                id,
                json,
            )
        }
        Device::Nic(ctx) => {
            let direct = Direct::member(&ctx, &config, id, form, exchange)?;
            pin(cpu)?;
            serve(
                Server::new(direct, listener, Some(signals), options)?,
                client,
                id,
                json,
            )
        }
    }
}

fn misuse<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> Misuse {
    move |error| Misuse(format!("{what}: {error}"))
}

fn serve<C: Context>(
    mut server: Server<C, OrderBookRs>,
    client: SocketAddr,
    id: u8,
    json: bool,
) -> Result<bool> {
    let ready = Ready {
        ready: true,
        id,
        pid: std::process::id(),
        role: server.direct().status().role,
        host: client.ip().to_string(),
        port: client.port(),
    };
    if json {
        print_json(&ready)?;
    } else {
        println!(
            "replica {id} ready: pid {}, {}, clients {client}",
            ready.pid, ready.role
        );
    }
    let mut alone_since = Instant::now();
    loop {
        for _ in 0..TURNS {
            match server.turn() {
                None => {}
                Some(Ended::Signal) => {
                    tracing::info!("asked to stop");
                    server.stop();
                    return Ok(true);
                }
                Some(Ended::Replica(why)) => {
                    return Err(anyhow!("replica {id} has stopped: {why}"));
                }
            }
            if let Some(role) = server.new_role()
                && json
            {
                print_json(&NewRole { role })?;
            }
        }
        let direct = server.direct();
        if direct.standing().role != Role::Recovering || direct.leader().is_some() {
            alone_since = Instant::now();
        } else if alone_since.elapsed() >= COMPLAIN {
            alone_since = Instant::now();
            tracing::error!(
                "this replica has no memory and finds no leader to recover from; if a majority has lost its memory, \
                 only an operator can form a new, empty group"
            );
        }
    }
}
