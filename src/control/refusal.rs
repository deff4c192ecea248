//! Why a connection is refused, and how often it was.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a connection was refused or ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The other side does not have the same key. Nothing else that it said counts.
    #[error("authentication failed: do both have the same key?")]
    Authentication,
    /// It speaks another version.
    #[error("protocol version {ours} here and {theirs} there: run the same build of mu on both")]
    Version {
        /// The version of this side.
        ours: u32,
        /// The version of the other side.
        theirs: u32,
    },
    /// It belongs to another cluster.
    #[error(
        "cluster {ours:?} here and {theirs:?} there: one of them has the wrong cluster.toml or the wrong address"
    )]
    Cluster {
        /// The cluster of this side.
        ours: String,
        /// The cluster of the other side.
        theirs: String,
    },
    /// It has this replica's own id.
    #[error("both are replica {id}: give every process an id of its own")]
    SameId {
        /// The id.
        id: u8,
    },
    /// It has an id that no member has.
    #[error(
        "no member has id {id}: add it to replicas in cluster.toml, or start it with the right id"
    )]
    UnknownId {
        /// The id.
        id: u8,
    },
    /// Another replica answers at this address than the one that was meant.
    #[error(
        "replica {expected} was expected and replica {found} is there: look at the addresses in replicas"
    )]
    WrongReplica {
        /// Which one was meant.
        expected: u8,
        /// Which one it is.
        found: u8,
    },
    /// Its configuration differs in what all members must have alike.
    #[error("cluster.toml differs in {difference}: give all members the same file")]
    Layout {
        /// The parts that differ, with their keys.
        difference: String,
    },
    /// A newer process has taken the place of this one; two with the same id, or one that a restart replaced.
    #[error("another process with the same id took its place: stop one of them")]
    Superseded,
    /// A frame is longer than the limit.
    #[error("a frame is longer than the limit")]
    FrameTooBig,
    /// A frame is none that this protocol has at this place.
    #[error("a frame is malformed")]
    Malformed,
    /// A frame was changed on its way, or made by somebody without the key.
    #[error("a frame has a wrong tag")]
    BadMac,
    /// A frame came again, or one is missing before it.
    #[error("a frame is not the next one: it was replayed, or one before it was taken out")]
    Replayed,
    /// The handshake took too long.
    #[error("the handshake took longer than {} ms", super::limits::HANDSHAKE_LIMIT.as_millis())]
    TimeOut,
    /// Too many connections were not through their handshake, and this one was the oldest.
    #[error("too many connections in their handshake")]
    Crowded,
}

impl Refusal {
    /// Without the particulars.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Authentication => RefusalKind::Authentication,
            Self::Version { .. } => RefusalKind::Version,
            Self::Cluster { .. } => RefusalKind::Cluster,
            Self::SameId { .. } => RefusalKind::SameId,
            Self::UnknownId { .. } => RefusalKind::UnknownId,
            Self::WrongReplica { .. } => RefusalKind::WrongReplica,
            Self::Layout { .. } => RefusalKind::Layout,
            Self::Superseded => RefusalKind::Superseded,
            Self::FrameTooBig => RefusalKind::FrameTooBig,
            Self::Malformed => RefusalKind::Malformed,
            Self::BadMac => RefusalKind::BadMac,
            Self::Replayed => RefusalKind::Replayed,
            Self::TimeOut => RefusalKind::TimeOut,
            Self::Crowded => RefusalKind::Crowded,
        }
    }
}

macro_rules! kinds {
    ($($name:ident = $code:literal $word:literal,)+) => {
        /// The kinds of [`Refusal`]; the number is what says it on the wire.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum RefusalKind {
            $(#[doc = concat!("See [`Refusal::", stringify!($name), "`].")] $name = $code,)+
        }

        impl RefusalKind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Its name in metrics.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $word,)+ }
            }
        }
    };
}

kinds! {
    Authentication = 1 "authentication",
    Version = 2 "version",
    Cluster = 3 "cluster",
    SameId = 4 "same_id",
    UnknownId = 5 "unknown_id",
    WrongReplica = 6 "wrong_replica",
    Layout = 7 "layout",
    Superseded = 8 "superseded",
    FrameTooBig = 9 "frame_too_big",
    Malformed = 10 "malformed",
    BadMac = 11 "bad_mac",
    Replayed = 12 "replayed",
    TimeOut = 13 "time_out",
    Crowded = 14 "crowded",
}

impl RefusalKind {
    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| *kind as u8 == code)
    }

    fn index(self) -> usize {
        self as usize - 1
    }
}

const KINDS: usize = RefusalKind::ALL.len();

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What happened since the mesh was started.
        #[derive(Clone, PartialEq, Eq, Debug, Default)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)+
            refused: [u64; KINDS],
            refused_by_peer: [u64; KINDS],
        }

        #[derive(Default)]
        pub(super) struct Counts {
            $(pub(super) $name: Count,)+
            refused: [Count; KINDS],
            refused_by_peer: [Count; KINDS],
        }

        impl Counts {
            pub(super) fn read(&self) -> Counters {
                Counters {
                    $($name: self.$name.get(),)+
                    refused: std::array::from_fn(|at| self.refused[at].get()),
                    refused_by_peer: std::array::from_fn(|at| self.refused_by_peer[at].get()),
                }
            }
        }
    };
}

counters! {
    /// Connections that came up.
    up,
    /// Connections that went down.
    down,
    /// Attempts to connect.
    dials,
    /// Attempts that found nobody.
    dials_failed,
    /// Incoming connections.
    accepted,
    /// Times that no connection could be accepted, for want of descriptors or memory.
    accept_errors,
    /// Messages received.
    messages_in,
    /// Messages sent or queued.
    messages_out,
    /// Messages not taken since too much was queued for the peer.
    queue_full,
    /// Answers to status clients.
    status_answers,
}

impl Counters {
    /// How often this side refused a connection or ended one for this reason.
    #[must_use]
    pub fn refused(&self, kind: RefusalKind) -> u64 {
        self.refused[kind.index()]
    }

    /// How often the other side did and said so.
    #[must_use]
    pub fn refused_by_peer(&self, kind: RefusalKind) -> u64 {
        self.refused_by_peer[kind.index()]
    }
}

impl Counts {
    pub(super) fn count_refusal(&self, kind: RefusalKind, by_peer: bool) {
        let counts = if by_peer {
            &self.refused_by_peer
        } else {
            &self.refused
        };
        counts[kind.index()].add();
    }
}

/// A number that only grows; nothing is ordered by it.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
