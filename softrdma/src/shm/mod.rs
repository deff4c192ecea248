//! Contexts of different processes of one host.
//!
//! Every segment is a sealed memory file. A context listens on an abstract SEQPACKET socket whose name is its number; a
//! queue pair that connects to an [`Endpoint`](crate::types::Endpoint) of it attaches there once and is handed the
//! descriptors: the control segment (which it can map for reading only), a lane of its own, and all memories. From
//! then on requests are plain stores by the initiator's thread; the target's process does nothing for them.
//!
//! # When a process dies or stops
//!
//! Both ends hold a pidfd of the other, and a line that ends as soon as the other begins to die (`raw_life.rs`). A
//! dying target makes its views `gone`: requests end with `RETRY_EXC_ERR`. A dead initiator may leave a sequence word
//! odd for ever; its pidfd says that nothing is stored any more. Its address space outlives it for a moment
//! (`raw_keeper.rs`), so that giving it back is in nobody's way.
//!
//! An initiator that is *stopped* in mid-copy would hold a revocation up for as long as it likes. So every initiator
//! hands the target a userfaultfd over its mappings of the target's memory. A revocation spins, then looks whether
//! the process is stopped; if so, or else after yielding for [`Options::stall_us`], it write-protects the pages of
//! the copy under way **in the initiator's mapping**: when that process goes on, its next store there blocks in the
//! kernel instead of landing. Its watcher then finds the message that it was fenced, marks the view `gone`, puts
//! private pages in the place of the whole mapping, and wakes the blocked store, which lands there, in nobody's
//! memory. A request reports success only if its view is not `gone` after its last store, and the flag is set before
//! the pages are exchanged (which stops every thread of the process on its way), so none of the stores that went
//! nowhere is ever reported as done. A fenced lane is never granted anything again; the peer connects anew and gets
//! another.
//!
//! # Trust
//!
//! Processes of one user that keep to this code. A peer that has a memory file can always store into it past the
//! gate; the checks catch mistakes and races, not attackers. What a peer writes is nevertheless checked before it is
//! used as an index or a length, files are sealed against shrinking, and control segments against writing by peers.

mod attach;
mod fabric;
mod raw;
#[cfg(not(mu_sanitize))]
mod raw_keeper;
mod raw_life;
mod raw_uffd;
mod segment;
mod wire;

use std::time::Duration;

use crate::error::Error;
use crate::fault::Placement;
use crate::node::Node;

/// How a context of the shared-memory backend is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// After how many microseconds a writer that sits in mid-copy, and whose process is not stopped, is fenced. Shorter
    /// makes revocation faster when a writer is preempted, at the price that it has to connect anew.
    pub stall_us: u32,
    /// After how many milliseconds a revocation gives up if the writer can be neither fenced nor is dead (its process
    /// could not make a userfaultfd): [`Error::WriterStalled`].
    pub give_up_ms: u32,
    /// How long connecting waits for the peer's answer, in milliseconds.
    pub attach_ms: u32,
    /// Whether a queue pair's way to RTR waits until its peer is attached: until that one's process has answered and
    /// all its memory is mapped. Without, it fails with [`Error::NoPeer`] until then and is to be tried again, which
    /// suits a thread that has other things to do. Either way another thread does the work.
    pub waits_attached: bool,
    /// Whether this context hands out a userfaultfd when it attaches to others. Without one its peers cannot fence it:
    /// their revocations wait for it or give up.
    pub offer_fence: bool,
    /// In which order its writes become visible; [`Placement::Late`] is not offered across processes.
    pub placement: Placement,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stall_us: 100,
            give_up_ms: 1000,
            attach_ms: 2000,
            waits_attached: true,
            offer_fence: true,
            placement: Placement::Ascending,
        }
    }
}

impl Options {
    fn stall(&self) -> Duration {
        Duration::from_micros(self.stall_us.into())
    }
    fn give_up(&self) -> Duration {
        Duration::from_millis(self.give_up_ms.into())
    }
}

/// Opens a context that processes of this host can connect to.
///
/// # Errors
/// No memory, no descriptor, a socket or thread that cannot be made; or late visibility was asked for.
pub fn open(options: &Options) -> Result<Node, Error> {
    fabric::open(options)
}

/// Whether this process may make a userfaultfd, which is what bounds the revocation of its rights by others.
///
/// # Errors
/// What the system said: `EPERM` under some container profiles, `ENOSYS` or `EINVAL` on kernels before 5.19.
pub fn can_fence() -> Result<(), nix::errno::Errno> {
    raw_uffd::Uffd::new().map(drop)
}
