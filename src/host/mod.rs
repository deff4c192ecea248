//! What hosts a replica's two engines: threads and their waiting, the control connections, the callers, the figures.
//!
//! ```text
//! callers --queue--> replication thread (mu-repl-N)    background thread (mu-bg-N) <--> control plane
//!                    Replica's, or the caller's own     connections, heartbeats,        TCP mesh, or
//!                    in direct mode (Direct)            permissions, election           Hub in one process
//! ```
//!
//! - [`Replica`]: handover mode, for callers on many threads. [`Direct`]: the caller's thread replicates.
//! - [`Policy`]: how threads wait; [`Waker`]: what ends their sleep.
//! - [`Inproc`] and [`Group`]: a whole group in one process.
//! - A thread that panics ends its replica, with a status that says so, and never the process.

mod background;
mod call;
mod clock;
mod common;
mod control;
mod direct;
mod error;
mod events;
mod found;
mod group;
#[cfg(test)]
mod group_test;
mod hub;
mod mesh;
mod options;
mod pace;
mod process;
mod replica;
mod stages;
mod start;
mod status;
mod timed;
mod wake;
mod watch;

pub use call::Pending;
pub use clock::{Clock, monotonic_ns};
pub use control::{ControlEvent, ControlPlane};
pub use direct::{Direct, Handle, ReplyRef};
pub use error::{Halted, ProposeError, StartError};
pub use events::RoleEvent;
pub use found::has_history;
pub use group::{Group, Inproc};
pub use hub::{Hub, Port};
pub use mesh::MeshPlane;
pub use options::{Options, ThreadOptions, pin};
pub use pace::{Pacer, Policy, Rest};
pub use process::{die_with, end_signals, raise_descriptors};
pub use replica::{Replica, Reply};
pub use stages::{Percentiles, SAMPLE, Stage};
pub use start::{Device, is_usable};
pub use status::{PeerStatus, Status};
pub use wake::{Waker, sleep_precisely};
pub use watch::{Part, Watch};
