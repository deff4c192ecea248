//! The mesh as its application sees it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::crypto::Key;
use super::handshake::Identity;
use super::io::Io;
use super::limits::MESSAGE_BYTES_MAX;
use super::refusal::{Counters, Refusal};
use super::shared::{Sent, Shared, lock};
use crate::config::{Config, ConfigError, PROTOCOL_VERSION};

/// The control connections of one member to all others.
///
/// Everything takes `&self` and may be called from any thread; events are meant for one.
pub struct Mesh {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A peer is connected. If it was before, a [`Down`](Self::Down) came first.
    Up {
        /// Its id.
        peer: u8,
        /// Which process of that id it is.
        incarnation: u64,
        /// What it has to say first: its [`set_hello`](Mesh::set_hello).
        hello: Vec<u8>,
    },
    /// A peer is no longer connected.
    Down {
        /// Its id.
        peer: u8,
    },
    /// A message of a peer that is up.
    Message {
        /// Its id.
        peer: u8,
        /// The message.
        bytes: Vec<u8>,
    },
    /// A connection was refused or ended for a reason. Said once, until the reason changes or the peer was up.
    Refused {
        /// Who it was, where that is proved, or whom this side dialled.
        peer: u8,
        /// Why.
        refusal: Refusal,
        /// Whether it was the other side that refused.
        by_peer: bool,
    },
}

impl Event {
    pub(super) fn message_bytes(&self) -> usize {
        match self {
            Self::Up { hello, .. } => hello.len(),
            Self::Message { bytes, .. } => bytes.len(),
            Self::Down { .. } | Self::Refused { .. } => 0,
        }
    }
}

/// A mesh that cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The configuration has no such member.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration is for one process.
    #[error(
        "replica {id} has no control address or the cluster has no key: backend \"inproc\" needs no connections"
    )]
    InProcess {
        /// The member.
        id: u8,
    },
    /// Its address cannot be had.
    #[error(
        "replica {id} cannot listen on {address}: {source}; is another process running as this replica?"
    )]
    Listen {
        /// The member.
        id: u8,
        /// Its control address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The operating system has no more of something.
    #[error("cannot start the control connections: {0}")]
    System(#[from] io::Error),
}

/// A number for one start of a process, from the operating system's random source.
///
/// # Errors
/// There is no random source.
pub fn new_incarnation() -> Result<u64, ControlError> {
    getrandom::u64().map_err(|error| ControlError::System(error.into()))
}

impl Mesh {
    /// Listens on the member's control address and connects to the others, now and whenever a connection is lost.
    /// `hello` is what every peer is told first.
    ///
    /// # Errors
    /// The configuration is not for this, or the address is taken.
    ///
    /// # Panics
    /// If `hello` is longer than [`MESSAGE_BYTES_MAX`].
    pub fn start(
        config: &Config,
        own_id: u8,
        incarnation: u64,
        hello: &[u8],
    ) -> Result<Self, ControlError> {
        let control = config.member(own_id)?.control;
        let address = control.ok_or(ControlError::InProcess { id: own_id })?;
        let listener = TcpListener::bind(address).map_err(|source| ControlError::Listen {
            id: own_id,
            address,
            source,
        })?;
        Self::start_on(listener, config, own_id, incarnation, hello)
    }

    /// The same with a socket that listens already, for whoever has to know its port before there is a configuration.
    ///
    /// # Errors
    /// The configuration is not for this.
    ///
    /// # Panics
    /// If `hello` is longer than [`MESSAGE_BYTES_MAX`].
    pub fn start_on(
        listener: TcpListener,
        config: &Config,
        own_id: u8,
        incarnation: u64,
        hello: &[u8],
    ) -> Result<Self, ControlError> {
        assert!(
            hello.len() <= MESSAGE_BYTES_MAX,
            "a hello of {} bytes",
            hello.len()
        );
        config.member(own_id)?;
        let psk = config.psk().ok_or(ControlError::InProcess { id: own_id })?;
        let me = Identity {
            version: PROTOCOL_VERSION,
            id: own_id,
            incarnation,
            cluster: config.cluster().into(),
            layout: config.layout(),
            members: config.members().iter().map(|member| member.id).collect(),
            key: Key::new(psk.bytes()),
        };
        let addresses = config
            .members()
            .iter()
            .map(|member| (member.id, member.control));
        let others: Vec<_> = addresses.filter(|&(id, _)| id != own_id).collect();
        Self::run(listener, me, &others, hello)
    }

    pub(super) fn run(
        listener: TcpListener,
        me: Identity,
        others: &[(u8, Option<SocketAddr>)],
        hello: &[u8],
    ) -> Result<Self, ControlError> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(hello).map_err(io::Error::from)?);
        let io = Io::new(Arc::clone(&shared), listener, me, others);
        let thread = thread::Builder::new()
            .name("mu-control".into())
            .spawn(move || io.run())?;
        Ok(Self {
            shared,
            address,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a message to a peer, or queues it. `false` if it is not connected or too much is queued already; `true`
    /// promises nothing about its arrival. A peer may have become another incarnation since its last event was taken,
    /// so a message that is meant for one has to say so.
    ///
    /// # Panics
    /// If the message is longer than [`MESSAGE_BYTES_MAX`].
    pub fn send(&self, peer: u8, message: &[u8]) -> bool {
        assert!(
            message.len() <= MESSAGE_BYTES_MAX,
            "a message of {} bytes",
            message.len()
        );
        let Some(mut slot) = self.shared.link(peer) else {
            return false;
        };
        let Some(link) = slot.as_mut() else {
            return false;
        };
        let sent = link.send(message);
        drop(slot);
        match sent {
            Sent::Whole => {}
            Sent::Partly => self.shared.wake_io(),
            Sent::Full => self.shared.counts.queue_full.add(),
            Sent::Broken => return false,
        }
        if sent != Sent::Full {
            self.shared.counts.messages_out.add();
        }
        sent != Sent::Full
    }

    /// The next event, if there is one.
    #[must_use]
    pub fn poll(&self) -> Option<Event> {
        self.shared.pop()
    }

    /// Waits until there is an event, somebody calls [`wake`](Self::wake), or the time is over; whether there is one.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.shared.wait(timeout)
    }

    /// Ends a [`wait`](Self::wait), the next one if there is none.
    pub fn wake(&self) {
        self.shared.wake();
    }

    /// What peers are told first, from the next connection on.
    ///
    /// # Panics
    /// If it is longer than [`MESSAGE_BYTES_MAX`].
    pub fn set_hello(&self, hello: &[u8]) {
        assert!(
            hello.len() <= MESSAGE_BYTES_MAX,
            "a hello of {} bytes",
            hello.len()
        );
        *lock(&self.shared.hello) = hello.to_vec();
    }

    /// What status clients are answered.
    ///
    /// # Panics
    /// If it is longer than [`MESSAGE_BYTES_MAX`].
    pub fn set_status(&self, status: &[u8]) {
        assert!(
            status.len() <= MESSAGE_BYTES_MAX,
            "a status of {} bytes",
            status.len()
        );
        *lock(&self.shared.status) = status.to_vec();
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.counts.read()
    }
}

impl Drop for Mesh {
    /// Ends the thread and all connections. What the kernel has not taken yet is not sent.
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
