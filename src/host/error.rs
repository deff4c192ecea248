//! What can go wrong with a replica, for whoever uses one.

use std::io;

use mu_protocol::ids::ReplicaId;
use mu_protocol::replication::{self, Refused, Stopped};
use mu_protocol::settings::SettingsError;

use crate::config::ConfigError;
use crate::control::ControlError;

/// A replica that could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A setting of the engines.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The device.
    #[error("the device: {0}")]
    Verbs(#[from] mu_verbs::Error),
    /// No RDMA device can be used.
    #[error("no RDMA device can be used: {reason}; see mu doctor")]
    NoDevice {
        /// Why not.
        reason: String,
    },
    /// The control connections.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// It was to found the group, and a peer does not say whether there is one.
    #[error(
        "replica {id} does not say whether the group has a history, and may be there ({reason}); see to it that its \
         host answers, or start this one without founding the group"
    )]
    Silent {
        /// The peer.
        id: u8,
        /// What it said instead.
        reason: String,
    },
    /// A thread could not be started or placed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

impl From<replication::StartError> for StartError {
    fn from(error: replication::StartError) -> Self {
        match error {
            replication::StartError::Settings(error) => Self::Settings(error),
            replication::StartError::Verb(error) => Self::Verbs(error),
        }
    }
}

/// How a command or read ended if not well.
///
/// **Retries** are the client's business. After [`NotLeader`](Self::NotLeader), [`Overloaded`](Self::Overloaded),
/// [`TooLarge`](Self::TooLarge) and [`Stopped`](Self::Stopped) *this try* was not and will not be decided.
/// After [`Unknown`](Self::Unknown) it may be, now or later: only a retry **with the same client and sequence number**
/// is applied once, and if that is refused, the outcome is as unknown as before. A client has one command in flight, or
/// numbers them upwards and sends a later one only when every earlier one was taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// Another replica leads, or nobody does.
    #[error("this replica does not lead; {}", known(.hint))]
    NotLeader {
        /// Who does, as far as this replica knows.
        hint: Option<ReplicaId>,
    },
    /// It may or may not be decided.
    #[error("the outcome is not known: try again with the same client and sequence number")]
    Unknown,
    /// Too much is in flight, the log is full, or what was submitted since the last poll fills an entry (64 KiB, or one
    /// longest command if that is more): poll, and try again.
    #[error(
        "overloaded: too much is in flight or waits for the next poll, or the log is full; try again"
    )]
    Overloaded,
    /// The command is too long.
    #[error("a command of {bytes} bytes; at most {limit} are allowed")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The client has gone on to a later sequence number; this command was not applied now.
    #[error("a later command of this client was applied already; this one was not applied now")]
    Superseded,
    /// It was applied by an earlier try, whose reply was too long to be kept.
    #[error("applied by an earlier try, whose reply was too long to be kept")]
    ReplyGone {
        /// Index of the entry that carried this try.
        index: u64,
    },
    /// The leader did not manage to hand over, and leads on.
    #[error("the handover did not come about; this replica leads on")]
    NotHandedOver,
    /// This replica has stopped.
    #[error("this replica has stopped: {0}")]
    Stopped(Halted),
}

fn known(hint: &Option<ReplicaId>) -> String {
    match hint {
        Some(id) => format!("replica {id} does, as far as known"),
        None => "no leader is known".into(),
    }
}

impl From<Refused> for ProposeError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotLeader(hint) => Self::NotLeader { hint },
            Refused::Overloaded { .. } => Self::Overloaded,
            Refused::TooLarge { bytes, limit } => Self::TooLarge { bytes, limit },
            Refused::Stopped(why) => Self::Stopped(why.into()),
        }
    }
}

/// Why a replica stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Halted {
    /// It was asked to.
    #[error("it was asked to")]
    Asked,
    /// Its state differs from the majority's.
    #[error(
        "its state differs from the majority's: the application is not deterministic, or memory failed"
    )]
    Diverged,
    /// A decided entry made no sense.
    #[error("a decided entry is no list of commands")]
    BadPayload,
    /// One of its threads panicked.
    #[error("one of its threads panicked")]
    Panicked,
    /// Another process with its id took its place.
    #[error("another process with its id took its place: stop one of them")]
    Superseded,
}

impl From<Stopped> for Halted {
    fn from(why: Stopped) -> Self {
        match why {
            Stopped::Diverged => Self::Diverged,
            Stopped::BadPayload => Self::BadPayload,
            Stopped::Asked => Self::Asked,
        }
    }
}
