//! Real devices: the verbs traits over libibverbs, for any ibverbs device, kernel Soft-RoCE included.
//!
//! libibverbs is opened at run time; a machine without it, or without a device, gives a typed error that names the
//! remedy. [`devices`] lists what there is, [`Nic::open`] opens one.
//!
//! # Mechanism
//!
//! - Objects own their parts: a queue pair holds its queues and domain, a region its domain and memory, all of them
//!   the context. So every order of dropping tears down in the order that the verbs ask for. `Drop` never panics; what
//!   could not be destroyed is leaked with all that it stands on and counted in [`leaked`], since the device may still
//!   use it.
//! - Regions are registered plainly (`ibv_reg_mr`): the address a peer uses is the address in this process. Optional
//!   access flags are never asked for, so no region has relaxed ordering, and words of one WRITE are not reordered on
//!   the bus at this crate's wish.
//! - Posting and polling use the calls that every provider has (`ibv_post_send`, `ibv_post_recv`, `ibv_poll_cq`).
//!   Requests are built on the stack. A list is posted with one doorbell for each 32 requests; a window bind ends such
//!   a batch.
//! - The state of a queue pair as last set by this process is kept beside it, so that a post in a state that does not
//!   allow it is refused alike on every provider (some do not look). A queue pair that failed by itself takes posts
//!   and flushes them, as the specification has it.
//! - RESET of a queue pair that receives goes through ERR first. Soft-RoCE runs its responder twice at once otherwise
//!   and breaks the queue pair; there the change also waits until [`SOFT_ROCE_DRAIN`] has gone by since ERR, time for
//!   a packet in hand to be finished. On other devices nothing is waited for.
//! - Asynchronous events are fetched without blocking and acknowledged at once.
//!
//! # Memory ordering
//!
//! The device writes memory behind the compiler's back. That a completion was polled means, by the provider's own
//! barrier, that the data of the request (READ, RECV, atomic) is visible to loads after the poll. A reader that polls
//! on words themselves loads them with Acquire ([`Memory`](crate::Memory)); which order of words it may rely on says
//! [`NicControl::placement`].

mod batch;
mod context;
mod control;
mod cq;
mod device;
mod mr;
mod probe;
mod qp;
mod raw_device;
mod raw_objects;
mod raw_post;
mod raw_queues;
#[cfg(all(test, feature = "fake"))]
mod raw_tests;
mod sysfs;

use std::io;

pub use context::{Nic, NicOptions, NicPd};
pub use control::{NicControl, SOFT_ROCE_DRAIN};
pub use cq::NicCq;
pub use device::{
    DeviceInfo, DeviceList, GidInfo, GidKind, LinkLayer, PortInfo, PortState, devices,
};
pub use mr::{NicMr, NicMw};
#[cfg(feature = "fake")]
pub use mu_sys::fake;
pub use mu_sys::{Lib, LoadError};
pub use qp::NicQp;
pub use raw_device::leaked;

use crate::Error;

/// A verb's failure with the numbers it was called with.
fn verb_error(verb: &'static str, source: io::Error, detail: String) -> Error {
    Error::Verb {
        verb,
        source,
        detail,
    }
}

/// An argument that is wrong.
fn invalid(verb: &'static str, what: String) -> Error {
    Error::Invalid { verb, what }
}
