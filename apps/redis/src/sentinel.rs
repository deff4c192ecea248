//! Tells clients where the primary is, in the words of Redis Sentinel, so that stock clients find it and follow it.
//!
//! Every node answers for the whole group: who leads is mu's word and not a poll of these. Nothing can be changed here.
//! One thread serves all connections; nothing that a client sends makes it hold more than its bound.

mod answers;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::node::{Mode, Node};
use crate::resp::{self, Next};
use answers::{Answer, Group, Peer};

/// Connections at the same time; more are turned away.
const CONNECTIONS_MAX: usize = 512;
/// Bytes of a request, and of answers that a client does not read.
const BYTES_MAX: usize = 64 << 10;
/// Looks for another primary so often while somebody wants to hear of it.
const LOOK_MS: u16 = 5;
const IDLE: Duration = Duration::from_secs(1);

struct Client {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    session: answers::Session,
}

/// Listens once it has an answer: until then a client is refused, and asks another node at once.
fn listen(node: &Node) -> TcpListener {
    let mut told = false;
    loop {
        if picture(node).primary.is_some() {
            let bound = TcpListener::bind(node.setup.sentinel);
            match bound.and_then(|listener| listener.set_nonblocking(true).map(|()| listener)) {
                Ok(listener) => return listener,
                Err(error) if !told => {
                    told = true;
                    let at = node.setup.sentinel;
                    tracing::error!(%at, %error, "Sentinel's questions cannot be answered yet");
                }
                Err(_) => {}
            }
        }
        std::thread::sleep(Duration::from_millis(LOOK_MS.into()));
    }
}

/// Serves for ever.
pub(crate) fn run(node: &'static Node) {
    let listener = listen(node);
    let mut clients: Vec<Client> = Vec::new();
    let mut primary = None;
    loop {
        wait(&listener, &clients);
        let group = picture(node);
        if let Some(now) = group.primary
            && primary.replace(now) != Some(now)
        {
            for client in &mut clients {
                client.session.switched(&group, now, &mut client.output);
            }
        }
        while let Ok((stream, _)) = listener.accept() {
            let usable = stream.set_nonblocking(true).is_ok() && stream.set_nodelay(true).is_ok();
            if usable && clients.len() < CONNECTIONS_MAX {
                clients.push(Client {
                    stream,
                    input: Vec::new(),
                    output: Vec::new(),
                    session: answers::Session::new(group.primary),
                });
            }
        }
        clients.retain_mut(|client| client.turn(&group));
    }
}

fn wait(listener: &TcpListener, clients: &[Client]) {
    let mut polled = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    polled.extend(clients.iter().map(|client| {
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, !client.output.is_empty());
        PollFd::new(client.stream.as_fd(), flags)
    }));
    let listened_to = clients.iter().any(|client| client.session.listens());
    let timeout = match listened_to {
        true => PollTimeout::from(LOOK_MS),
        false => PollTimeout::try_from(IDLE).unwrap_or(PollTimeout::NONE),
    };
    // Interrupted, it looks once more.
    let _ = poll(&mut polled, timeout);
}

impl Client {
    /// Takes what it has sent and sends what it gets. False when it is over.
    fn turn(&mut self, group: &Group) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(n) => self.input.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
            if self.input.len() > BYTES_MAX {
                return false;
            }
        }
        let mut at = 0;
        let mut goes_on = true;
        while goes_on && at < self.input.len() {
            match resp::next(&self.input[at..]) {
                Next::Command(command, len) => {
                    goes_on =
                        self.session.answer(group, &command, &mut self.output) == Answer::GoOn;
                    at += len;
                }
                Next::Part => break,
                Next::Bad => {
                    self.output.extend_from_slice(b"-ERR Protocol error\r\n");
                    goes_on = false;
                }
            }
        }
        self.input.drain(..at);
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return false,
                Ok(n) => drop(self.output.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        goes_on && self.output.len() <= BYTES_MAX
    }
}

/// The port of a node's Sentinel answers, beside its clients' port; `mu redis` counts alike.
pub(crate) fn port_beside(client: u16) -> u16 {
    const ABOVE: u16 = 20_000;
    const BELOW: u16 = 10_000;
    /// From here on the kernel gives ports to connections.
    const GIVEN_AWAY: u16 = 32_768;
    match client < GIVEN_AWAY - ABOVE {
        true => client + ABOVE,
        false => client - BELOW,
    }
}

/// The group as this node sees it.
fn picture(node: &Node) -> Group {
    let own = node.setup.id;
    let status = node.handle.status();
    // Of itself a node knows whether its server is a primary by now; of another one only that it leads.
    let leader = match node.mode() {
        Mode::Leader => Some(own),
        Mode::Follower => status.leader.filter(|id| *id != own),
    };
    let alive = |id| id == own || status.peers.iter().any(|peer| peer.id == id && peer.alive);
    let members = node.config.members().iter();
    let peers: Vec<Peer> = members
        .filter_map(|member| {
            let client = member.client?;
            Some(Peer {
                id: member.id,
                client,
                sentinel: SocketAddr::new(client.ip(), port_beside(client.port())),
                alive: alive(member.id),
            })
        })
        .collect();
    let primary = leader.and_then(|id| peers.iter().find(|peer| peer.id == id));
    Group {
        name: node.config.cluster().to_owned(),
        own,
        epoch: status.epoch,
        primary: primary.map(|peer| peer.client),
        peers,
    }
}
