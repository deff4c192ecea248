//! Authenticated control connections between the members of a cluster: who is there, and messages that are not urgent.
//!
//! Replication itself is one-sided writes. What has to be said before them and beside them (addresses, rights, a
//! snapshot's place) goes over TCP, one connection between every two members. The lower id dials, the higher one
//! listens. A member is taken for the one it says it is because it has the cluster's key; the handshake
//! (`handshake.rs`) also compares cluster, version and layout, and every frame after it carries a number and a tag
//! (`session.rs`). What is sent is authenticated and not hidden.
//!
//! - One connection per peer: a newer authenticated one replaces it, which is what a restarted peer needs. An
//!   incarnation that another one of the same id has replaced is not let in again, so that two processes with one id do
//!   not replace each other for ever: the older one gets [`Refusal::Superseded`] and has to stop.
//! - A closed connection is an event, [`Event::Down`], and the only sign of life here: whether a peer is alive is the
//!   protocol's business. The dialer tries again after [`BACKOFF_MIN`] and then twice as long each time, up to
//!   [`BACKOFF_MAX`].
//! - Everything that a peer or a stranger can make us hold or do has a bound (`limits.rs`), and everything refused is
//!   counted by its reason ([`Counters`]).
//! - One thread per mesh does the reading and the connecting (`io.rs`), with sockets that never block. A message is
//!   written by the thread that sends it.
//!
//! A status client ([`query_status`]) goes through the same handshake with the same key, gets one answer and is no
//! member.

mod conn;
mod crypto;
mod frame;
mod handshake;
mod io;
mod limits;
mod mesh;
mod peer;
mod pending;
mod refusal;
mod session;
mod shared;
mod status;
#[cfg(test)]
mod tests;
mod wire;

pub use limits::{
    BACKOFF_MAX, BACKOFF_MIN, FRAME_BYTES_MAX, HANDSHAKE_LIMIT, HANDSHAKES_MAX, MESSAGE_BYTES_MAX,
    OUT_BYTES_MAX,
};
pub use mesh::{ControlError, Event, Mesh, new_incarnation};
pub use refusal::{Counters, Refusal, RefusalKind};
pub use status::{QueryError, query_status};
