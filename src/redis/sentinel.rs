//! A client that finds the primary as stock clients do: it asks the Sentinels in turn, connects to what they say, and
//! asks again when that one is gone or says that it is no primary.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use mu::host::monotonic_ns;

use super::client::{Client, Reply};
use super::node::sentinel_of;
use crate::local::caller::{Ask, Called, Told};
use crate::local::load::Calls;

/// Longest wait for a Sentinel.
const SENTINEL: Duration = Duration::from_millis(50);
/// Longest wait for a server: one that is stopped keeps its connections.
const SERVER: Duration = Duration::from_millis(500);
/// Between two rounds of questions.
const PAUSE: Duration = Duration::from_micros(500);

/// The name by which the clusters of this program are known.
pub(crate) const NAME: &str = "local";

/// See the module.
pub(crate) struct Caller {
    /// Servers by id.
    servers: Vec<SocketAddr>,
    sentinels: HashMap<SocketAddr, Client>,
    primary: Option<(u8, Client)>,
}

/// What came of one try.
enum Tried {
    Answer(Told, u8),
    /// It was not carried out.
    NotDone,
    /// Nobody knows.
    Unknown,
}

impl Caller {
    /// For the servers with these addresses, by id. It connects when it is called.
    pub(crate) fn new(servers: &[SocketAddr]) -> Self {
        Self {
            servers: servers.to_vec(),
            sentinels: HashMap::new(),
            primary: None,
        }
    }

    /// Asks one Sentinel.
    fn ask(&mut self, server: SocketAddr) -> Option<SocketAddr> {
        let at = sentinel_of(server);
        let mut client = match self.sentinels.remove(&at) {
            Some(client) => client,
            None => Client::connect(at, SENTINEL).ok()?,
        };
        let reply = client.call(&[b"SENTINEL", b"get-master-addr-by-name", NAME.as_bytes()]);
        let reply = reply.ok()?;
        self.sentinels.insert(at, client);
        let Reply::Array(parts) = reply else {
            return None;
        };
        let [host, port] = parts.as_slice() else {
            return None;
        };
        let (host, port) = (host.text()?.parse().ok()?, port.text()?.parse().ok()?);
        Some(SocketAddr::new(host, port))
    }

    /// Connects to the primary that a Sentinel names, if it answers as one.
    fn find(&mut self) -> bool {
        for server in self.servers.clone() {
            let Some(primary) = self.ask(server) else {
                continue;
            };
            let Some(id) = self.servers.iter().position(|server| *server == primary) else {
                continue;
            };
            let Ok(mut client) = Client::connect(primary, SERVER) else {
                continue;
            };
            let role = match client.call(&[b"ROLE"]) {
                Ok(Reply::Array(parts)) => parts.first().and_then(Reply::text),
                _ => None,
            };
            if role.as_deref() == Some("master") {
                self.primary = Some((id as u8, client));
                return true;
            }
        }
        false
    }

    fn carry_out(&mut self, ask: Ask) -> Tried {
        let Some((id, client)) = &mut self.primary else {
            return Tried::NotDone;
        };
        let id = *id;
        let (Ask::Put { key, .. } | Ask::Add { key, .. } | Ask::Get { key }) = ask;
        let key = format!("key:{key}").into_bytes();
        let reply = match ask {
            Ask::Put { value, .. } => client.call(&[b"SET", &key, value.to_string().as_bytes()]),
            Ask::Add { delta, .. } => client.call(&[b"INCRBY", &key, delta.to_string().as_bytes()]),
            Ask::Get { .. } => client.call(&[b"GET", &key]),
        };
        match reply {
            Ok(Reply::Text(_)) if ask.is_command() => Tried::Answer(Told::Done, id),
            Ok(Reply::Integer(sum)) => Tried::Answer(Told::Sum(sum as u64), id),
            Ok(Reply::Nothing) => Tried::Answer(Told::Value(None), id),
            Ok(Reply::Text(text)) => {
                let value = str::from_utf8(&text)
                    .ok()
                    .and_then(|text| text.parse().ok());
                Tried::Answer(Told::Value(value), id)
            }
            // A refusal says that nothing was done: it is no primary any more, or not yet.
            Ok(_) => {
                self.primary = None;
                Tried::NotDone
            }
            Err(_) => {
                self.primary = None;
                Tried::Unknown
            }
        }
    }
}

impl Calls for Caller {
    fn call(&mut self, ask: Ask, patience: Duration) -> Called {
        let invoked_ns = monotonic_ns();
        let begin = Instant::now();
        while begin.elapsed() < patience {
            if self.primary.is_none() && !self.find() {
                thread::sleep(PAUSE);
                continue;
            }
            match self.carry_out(ask) {
                Tried::Answer(told, by) => {
                    return Called {
                        invoked_ns,
                        answer: Some((told, by, monotonic_ns())),
                    };
                }
                Tried::NotDone => thread::sleep(PAUSE),
                // A read can be asked again; a write may have been carried out.
                Tried::Unknown if !ask.is_command() => {}
                Tried::Unknown => break,
            }
        }
        Called {
            invoked_ns,
            answer: None,
        }
    }

    fn reconnect(&mut self) {}
}

/// The digest of a server's dataset, and how much of the stream is in it.
pub(crate) fn digest(server: SocketAddr, patience: Duration) -> Result<(u64, String)> {
    let mut client = Client::connect(server, patience)?;
    let place = |client: &mut Client| client.info("mu", "mu_stream_position");
    let before = place(&mut client)?
        .and_then(|place| place.parse().ok())
        .unwrap_or(0);
    let digest = client.must(&[b"DEBUG", b"DIGEST"])?;
    Ok((before, digest.text().unwrap_or_default()))
}
