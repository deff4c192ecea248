//! Mu itself: replication by one-sided writes under exclusive permissions. Knows only the verbs traits.
//!
//! A replica is two engines. The [`background`] engine keeps connections, heartbeats and permissions; the
//! [`replication`] engine proposes as a leader, applies as a follower and catches up as a newcomer. Both are generic
//! over a verbs context, take the time as an argument, and have no clock, thread, socket, file or random number of
//! their own, so that hardware, memory and the simulator run the same code. The host polls them, each from one thread,
//! and carries the messages of [`message`] between replicas. `docs/protocol.md` has the protocol and why it is safe.
#![forbid(unsafe_code)]

pub mod background;
pub mod check;
pub mod entry;
pub mod ids;
pub mod layout;
pub mod limits;
pub mod log;
pub mod machine;
pub mod message;
pub mod replica;
pub mod replication;
pub mod session;
pub mod settings;
pub mod shared;
pub mod zoo;
