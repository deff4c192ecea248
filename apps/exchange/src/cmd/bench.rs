//! `mu-exchange bench`: what mu adds to the engine, and what goes through three processes.
//!
//! This process leads, as an engine that hosts mu on its own thread does; two more processes of this program follow.
//! For the latency each order goes to an exchange without mu and to the one on mu in turn, so both see the same books
//! and the same disturbances. For the rate many orders share an entry, and the clock stops when the last of the three
//! has applied the last order.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hdrhistogram::Histogram;
use mu::config::{Config, write_local};
use mu::host::{Device, Direct, sleep_precisely};
use mu::protocol::replication::{Event, Outcome};
use mu_exchange::engine::OrderBookRs;
use mu_exchange::exchange::{Exchange, SYMBOLS};
use mu_exchange::flow::{Flow, Mix};
use mu_exchange::server::{books_hash, picture};
use mu_verbs::Context;
use serde::Serialize;

use super::print_json;

const REPLICAS: u8 = 3;
/// Nobody is to take over because the machine is busy, and followers that look into their logs all the time are in the
/// way of the leader where processors are few.
const SETTINGS: &str = "\
window = 4096
heartbeat_us = 1000
detect_us = 2000000
replication_poll = \"event\"
background_poll = \"event\"
";
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);
/// Orders before anything is recorded.
const WARM_UP: u64 = 5_000;
/// Orders that share an entry, at most, when the rate is measured, and orders in flight.
const BATCH: u64 = 64;
const IN_FLIGHT: u64 = 1024;
/// Between two questions.
const LOOK: Duration = Duration::from_millis(2);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Orders for the latency
    #[arg(long, value_name = "N", default_value = "100000", value_parser = clap::value_parser!(u64).range(1000..))]
    orders: u64,
    /// Orders for the rate
    #[arg(long, value_name = "N", default_value = "400000", value_parser = clap::value_parser!(u64).range(1000..))]
    rate_orders: u64,
    /// Seed of the flow of orders
    #[arg(long)]
    seed: Option<u32>,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

/// Nanoseconds.
#[derive(Debug, Serialize)]
struct Percentiles {
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
    count: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    /// One order at an exchange without mu.
    engine: Percentiles,
    /// One order at the exchange on mu: decided, applied, answered.
    mu: Percentiles,
    /// What mu adds at the median, in nanoseconds.
    over_ns: i64,
    /// Until the last of three processes has applied the last order.
    orders_per_s: u64,
    /// Until the last order is decided and applied by the leader.
    decided_per_s: u64,
    orders: u64,
    trades: u64,
    resting: usize,
    /// Whether the exchange without mu made the same trades.
    trades_equal: bool,
    /// Whether all three have the same trades, and every order in the same place of its queue.
    books_equal: bool,
    seed: u32,
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    let seed = match args.seed {
        Some(seed) => seed,
        None => getrandom::u32().context("the system's random source")?,
    };
    eprintln!("seed {seed}: again with --seed {seed}");
    let dir = tempfile::Builder::new().prefix("mu-exchange-").tempdir()?;
    let path = write_local(dir.path(), REPLICAS, SETTINGS, None)?;
    let config = Config::from_file(&path)?;
    sleep_precisely();
    let exchange = Exchange::<OrderBookRs>::new(SYMBOLS)?;
    let Device::Shm(ctx) = Device::open(&config, 0)? else {
        bail!("the configuration is for shared memory");
    };
    let direct = Direct::member(&ctx, &config, 0, true, exchange)?;
    let mut followers: Vec<Follower> = (1..REPLICAS)
        .map(|id| Follower::start(&path, &config, id))
        .collect::<Result<_>>()?;
    let report = measure(direct, &mut followers, args, seed)?;
    if args.json {
        print_json(&report)?;
    } else {
        print_text(&report);
    }
    Ok(report.books_equal && report.trades_equal)
}

fn measure<C: Context>(
    mut direct: Direct<C, Exchange<OrderBookRs>>,
    followers: &mut [Follower],
    args: &Args,
    seed: u32,
) -> Result<Report> {
    lead(&mut direct, followers)?;
    let mut flow = Flow::new(seed.into(), SYMBOLS.len() as u16, Mix::ALL);
    let mut plain = Exchange::<OrderBookRs>::new(SYMBOLS)?;
    let (engine, mu) = latency(&mut direct, &mut plain, &mut flow, args.orders)?;
    let trades_equal = plain.totals() == direct.app().totals();
    let (decided_per_s, orders_per_s) = rate(&mut direct, followers, &mut flow, args.rate_orders)?;
    let own = picture(&direct);
    let mut books_equal = true;
    for follower in followers {
        let theirs = follower.status()?;
        books_equal &= follower.ask("hash")?.trim() == books_hash(direct.app());
        books_equal &= theirs["trade_hash"].as_str() == Some(&own.trade_hash);
        books_equal &= theirs["index"].as_u64() == Some(own.index);
    }
    Ok(Report {
        over_ns: mu.p50 as i64 - engine.p50 as i64,
        engine,
        mu,
        orders_per_s,
        decided_per_s,
        orders: own.orders,
        trades: own.trades,
        resting: own.resting,
        trades_equal,
        books_equal,
        seed,
    })
}

/// Polls until this process leads and both others follow. One of them that was elected first is started anew.
fn lead<C: Context>(
    direct: &mut Direct<C, Exchange<OrderBookRs>>,
    followers: &mut [Follower],
) -> Result<()> {
    let begin = Instant::now();
    loop {
        let pace = direct.poll(|_| {});
        let status = direct.status();
        let matched = status
            .peers
            .iter()
            .filter(|peer| peer.matched.is_some())
            .count();
        if direct.leads() && matched == followers.len() {
            return Ok(());
        }
        if let Some(other) = followers
            .iter_mut()
            .find(|other| status.leader == Some(other.id))
        {
            other.start_anew()?;
        }
        ensure!(
            begin.elapsed() < PATIENCE,
            "the three processes do not become a group that this one leads: {status:?}"
        );
        direct.rest(pace, None);
    }
}

fn latency<C: Context>(
    direct: &mut Direct<C, Exchange<OrderBookRs>>,
    plain: &mut Exchange<OrderBookRs>,
    flow: &mut Flow,
    orders: u64,
) -> Result<(Percentiles, Percentiles)> {
    let clock = quanta::Clock::new();
    let new = || Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3);
    let (mut engine, mut mu) = (new()?, new()?);
    for round in 0..WARM_UP + orders {
        let order = flow.next_order();
        let (index, time_ns) = (1 + round, round);
        // Whoever comes first finds the flow's and its own memory colder, so they take turns.
        for turn in [round % 2, 1 - round % 2] {
            let start = clock.raw();
            if turn == 0 {
                std::hint::black_box(plain.order(index, 0, time_ns, &order));
            } else {
                one(direct, &order.encode())?;
            }
            let ns = clock.delta_as_nanos(start, clock.raw());
            if round >= WARM_UP {
                let histogram = if turn == 0 { &mut engine } else { &mut mu };
                histogram.saturating_record(ns.max(1));
            }
        }
    }
    Ok((percentiles(&engine), percentiles(&mu)))
}

fn percentiles(histogram: &Histogram<u64>) -> Percentiles {
    let at = |q| histogram.value_at_quantile(q).min(histogram.max());
    Percentiles {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: histogram.max(),
        count: histogram.len(),
    }
}

/// One command, from its bytes to its reply.
#[inline]
fn one<C: Context>(direct: &mut Direct<C, Exchange<OrderBookRs>>, command: &[u8]) -> Result<()> {
    direct.submit(0, 0, command)?;
    let mut ended = None;
    while ended.is_none() {
        direct.poll(|event| {
            if let Event::Command { outcome, .. } = event {
                ended = Some(matches!(outcome, Outcome::Decided { .. }));
            }
        });
    }
    ensure!(
        ended == Some(true),
        "this process lost its leadership in the measurement"
    );
    Ok(())
}

/// Orders a second: decided, and applied by all.
fn rate<C: Context>(
    direct: &mut Direct<C, Exchange<OrderBookRs>>,
    followers: &[Follower],
    flow: &mut Flow,
    orders: u64,
) -> Result<(u64, u64)> {
    // Made before, since whoever sends orders makes them elsewhere.
    let commands: Vec<_> = (0..orders).map(|_| flow.next_order().encode()).collect();
    let (mut sent, mut done, mut lost) = (0, 0, 0);
    let begin = Instant::now();
    while done < orders {
        let until = orders.min(sent + BATCH).min(done + IN_FLIGHT);
        while sent < until {
            if direct.submit(0, 0, &commands[sent as usize]).is_err() {
                ensure!(
                    direct.leads(),
                    "this process lost its leadership in the measurement"
                );
                break;
            }
            sent += 1;
        }
        direct.poll(|event| {
            if let Event::Command { outcome, .. } = event {
                done += 1;
                lost += u64::from(!matches!(outcome, Outcome::Decided { .. }));
            }
        });
    }
    let decided = begin.elapsed();
    ensure!(lost == 0, "{lost} orders without an outcome");
    let last = direct.applied();
    let mut all = begin.elapsed();
    for follower in followers {
        loop {
            // It is the leader that tells followers how far they may apply.
            let pace = direct.poll(|_| {});
            let theirs = follower.index()?;
            all = begin.elapsed();
            if theirs >= last {
                break;
            }
            ensure!(all < PATIENCE, "a follower is at {theirs} of {last}");
            direct.rest(pace, None);
            std::thread::sleep(LOOK);
        }
    }
    let per_s = |time: Duration| (orders as f64 / time.as_secs_f64()) as u64;
    Ok((per_s(decided), per_s(all)))
}

/// A process that follows. It dies with this one.
struct Follower {
    id: u8,
    path: PathBuf,
    child: Child,
    address: SocketAddr,
}

impl Follower {
    fn start(path: &Path, config: &Config, id: u8) -> Result<Self> {
        Ok(Self {
            id,
            path: path.into(),
            child: spawn(path, id, true)?,
            address: config.member(id)?.client.context("a client address")?,
        })
    }

    /// Ends the process and starts one that comes back.
    fn start_anew(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(&self.path, self.id, false)?;
        Ok(())
    }

    fn ask(&self, what: &str) -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        writeln!(stream, "{what}")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line)
    }

    fn status(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.ask("status")?).context("a follower's status")
    }

    fn index(&self) -> Result<u64> {
        self.ask("index")?
            .trim()
            .parse()
            .context("a follower's index")
    }
}

fn spawn(path: &Path, id: u8, form: bool) -> Result<Child> {
    let spawned = Command::new("/proc/self/exe")
        .args(["serve", "--json", "--id", &id.to_string(), "--config"])
        .arg(path)
        .args(["--parent", &std::process::id().to_string()])
        .args(form.then_some("--form"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .env("MU_LOG", "warn")
        .spawn();
    spawned.with_context(|| format!("starting replica {id}"))
}

impl Drop for Follower {
    fn drop(&mut self) {
        // One that is gone already is as wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn print_text(report: &Report) {
    let us = |ns: u64| ns as f64 / 1000.0;
    println!("one order, in process       p50 us   p99 us");
    for (name, p) in [
        ("  the engine alone", &report.engine),
        ("  on mu", &report.mu),
    ] {
        println!("{name:26}{:8.2}{:9.2}", us(p.p50), us(p.p99));
    }
    println!(
        "orders a second: {} decided, {} applied by three processes",
        report.decided_per_s, report.orders_per_s
    );
    println!(
        "{} orders, {} trades, {} rest; books {}",
        report.orders,
        report.trades,
        report.resting,
        if report.books_equal {
            "equal"
        } else {
            "DIFFER"
        }
    );
}
