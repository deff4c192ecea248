//! Commands a second of fifty clients, each with sixteen commands on their way.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{KEYS, VALUE_BYTES};
use crate::bench::stats::Random;
use crate::local::cluster::{Cluster, PATIENCE};
use crate::redis::client::{Client, Reply};

const CLIENTS: usize = 50;
const DEPTH: usize = 16;
/// Between two looks at a follower.
const LOOK: Duration = Duration::from_millis(1);

/// One stretch. A client's next commands leave when its last ones are answered.
pub(super) fn run(server: SocketAddr, time: Duration, random: &mut Random) -> Result<u64> {
    let connect = |_| Client::connect(server, PATIENCE);
    let clients: std::io::Result<Vec<Client>> = (0..CLIENTS).map(connect).collect();
    let mut clients = clients.with_context(|| format!("connecting to {server}"))?;
    let value = [b'v'; VALUE_BYTES];
    let mut send = |client: &mut Client| {
        for _ in 0..DEPTH {
            let key = format!("key:{}", random.below(KEYS));
            client.push(&[b"SET", key.as_bytes(), &value]);
        }
        client.flush()
    };
    for client in &mut clients {
        send(client)?;
    }
    let begin = Instant::now();
    let mut done = 0_u64;
    while begin.elapsed() < time {
        for client in &mut clients {
            answered(client)?;
            done += DEPTH as u64;
            send(client)?;
        }
    }
    let elapsed = begin.elapsed();
    for client in &mut clients {
        answered(client)?;
    }
    Ok((done as f64 / elapsed.as_secs_f64()) as u64)
}

fn answered(client: &mut Client) -> Result<()> {
    for _ in 0..DEPTH {
        let reply = client.reply()?;
        ensure!(matches!(reply, Reply::Text(_)), "SET: {reply:?}");
    }
    Ok(())
}

/// Waits until all followers' servers have what the leader's has; how long that took.
pub(super) fn catch_up(cluster: &Cluster) -> Result<u64> {
    let begin = Instant::now();
    let servers = cluster.clients();
    let (_, leader) = super::primary(cluster)?;
    let mut client = Client::connect(leader, PATIENCE)?;
    let wanted: u64 = client
        .info("mu", "mu_stream_position")?
        .context("a place")?
        .parse()?;
    for server in servers.into_iter().filter(|server| *server != leader) {
        let mut client = Client::connect(server, PATIENCE)?;
        loop {
            let has = client.info("replication", "slave_repl_offset")?;
            if has
                .and_then(|has| has.parse::<u64>().ok())
                .is_some_and(|has| has >= wanted)
            {
                break;
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "the server {server} does not catch up"
            );
            std::thread::sleep(LOOK);
        }
    }
    Ok(begin.elapsed().as_nanos() as u64)
}
