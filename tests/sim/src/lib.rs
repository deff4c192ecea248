//! The simulator: the unchanged protocol over verbs that are simulated in one thread, in virtual time, from one seed.
//!
//! # Mechanism
//!
//! A [`World`] holds virtual time, one generator of random numbers, a queue of events and all objects of all nodes.
//! Posting puts a request into a flow; events carry it over the link, place its bytes piece by piece at the target,
//! and bring the answer back. Nothing happens between two events, and nothing but the seed decides, so a run repeats
//! exactly: [`World::trace_hash`] covers every event, post and completion.
//!
//! A node has separate fault domains. Its NIC answers peers as long as it is up, whatever its CPU does; its CPU is not
//! here at all: whoever drives the world runs a node's code or does not. Its memory and its clock fail on their own.
//!
//! - [`Profile`]: what the devices of a run are like: placement, which revocations are barriers, how long things take.
//! - [`Rates`]: how often a node's device does wrong by itself. What is broken at a moment is set on the [`World`].
//! - [`SimContext`]: a node's device, as the traits of `mu-verbs` have it.
#![forbid(unsafe_code)]

mod answer;
mod context;
mod exec;
mod faults;
mod flow;
pub mod group;
mod hook;
mod modify;
mod objects;
mod place;
mod profile;
mod qp;
mod queue;
mod rng;
mod state;
mod trace;
mod world;

pub use context::{SimContext, SimCq, SimMr, SimMw, SimPd};
pub use faults::{Coverage, Fault, Nic, Rates};
pub use hook::{Hooked, Verb, before_verbs};
pub use profile::{Leak, Profile};
pub use qp::{SimControl, SimQp};
pub use rng::Rng;
pub use state::Placed;
pub use world::{NodeId, Wake, World};
