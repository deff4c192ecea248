//! The traits every backend implements. Static dispatch throughout: a program is generic over one [`Context`] and
//! reaches its objects as associated types, so that posting and polling compile to direct calls.
//!
//! # Ownership and ordering
//!
//! - One owner posts on a queue pair (`&mut`), one owner polls a completion queue (`&mut`). Rights and states are
//!   changed
//!   through the [`Control`](Context::Control) handle, from any thread.
//! - Memory a peer can write is [`Memory`]: 64-bit words, never a byte slice.
//! - A request borrows its regions only while it is posted. Deregistration (and dropping a region) is what ends the
//!   device's access, so no safe program lets the device touch freed memory; a request that is still queued then ends
//!   with [`LOC_PROT_ERR`](crate::WcStatus::LOC_PROT_ERR).
//! - Requests of one queue pair take effect at the peer in the order posted. A READ or atomic sees every WRITE posted
//!   before it on the same queue pair. Nothing is promised between queue pairs.
//! - Progress: a request that cannot run yet (the peer has no receive posted, or is not connected) goes on by itself on
//!   a NIC. In software it goes on when its queue pair posts or its completion queue is polled.
//! - A successful completion of a WRITE means the peer's device has it. On a NIC the peer's CPU may see it later; the
//!   words of one WRITE become visible in the order that [`Capabilities::placement`](crate::Capabilities) states.

use std::ops::Range;

use mu_softrdma::Memory;

use crate::{
    Access, AsyncEvent, Capabilities, Completion, Endpoint, Error, Modify, PostError, QpCap,
    QpState, RecvWr, RemoteAddr, SendWr,
};

/// A send request for context `C`.
pub type Wr<'a, C> = SendWr<'a, <C as Context>::Mr, <C as Context>::Mw>;

/// A registration of memory (`struct ibv_mr`). Dropping it deregisters; [`close`](Self::close) also reports.
pub trait MemoryRegion: Send + Sync + 'static {
    /// The memory it registers.
    fn memory(&self) -> &Memory;
    /// The part of the memory it covers, in bytes.
    fn range(&self) -> Range<usize>;
    /// Address of its first byte, as peers use it.
    fn addr(&self) -> u64;
    /// The key of local pieces.
    fn lkey(&self) -> u32;
    /// The key peers must show.
    fn rkey(&self) -> u32;
    /// The rights it carries.
    fn access(&self) -> Access;
    /// Changes the rights, keys kept (`ibv_rereg_mr(3)`). What comes later is held to the new rights; whether an access
    /// under way may still land is up to the device. Where [`Capabilities::rereg_is_barrier`] is set, nothing lands
    /// under a removed right once it returns; elsewhere only deregistration ([`close`](Self::close)) is a barrier.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the device cannot; the registration is unchanged then.
    fn reregister(&mut self, access: Access) -> Result<(), Error>;
    /// Deregisters (`ibv_dereg_mr(3)`). Once it returns, the device does not touch the memory through this
    /// registration.
    ///
    /// # Errors
    /// The verb's error; the registration is leaked then, its memory with it.
    fn close(self) -> Result<(), Error>;

    /// The place of byte `offset` of the registration, for a peer.
    fn remote(&self, offset: usize) -> RemoteAddr {
        RemoteAddr {
            addr: self.addr() + offset as u64,
            rkey: self.rkey(),
        }
    }
}

/// A type-2 memory window (`struct ibv_mw`): a key that can be bound and invalidated by requests on one queue pair.
pub trait MemoryWindow: Send + Sync + 'static {
    /// The window's current key. Bind with the next one ([`next_rkey`]).
    fn rkey(&self) -> u32;
    /// Deallocates (`ibv_dealloc_mw(3)`), invalidating it first if it is bound.
    ///
    /// # Errors
    /// The verb's error; the window is leaked then.
    fn close(self) -> Result<(), Error>;
}

/// The key a window is bound with next: its low byte is one up (`ibv_inc_rkey(3)`).
pub const fn next_rkey(rkey: u32) -> u32 {
    (rkey & 0xffff_ff00) | (rkey.wrapping_add(1) & 0xff)
}

/// A completion queue (`struct ibv_cq`).
pub trait CompletionQueue: Send + 'static {
    /// Moves completions into `out` and returns how many. 0 means none now; it does not block, allocate or enter the
    /// kernel. `out[..n]` are in completion order per queue pair.
    fn poll(&mut self, out: &mut [Completion]) -> usize;
    /// The errno with which polling failed, if it ever did: no completion will come any more then. A poll that fails
    /// returns what it had got, so whoever waits for a completion asks this too. `None` where polling cannot fail.
    fn error(&self) -> Option<i32> {
        None
    }
}

/// The control side of a queue pair: clonable, usable from any thread while another one posts.
pub trait QpControl: Clone + Send + Sync + 'static {
    /// The queue pair's number.
    fn qp_num(&self) -> u32;
    /// What the peer needs to connect. Its packet sequence number is drawn anew by every change to INIT, so ask after
    /// it.
    fn endpoint(&self) -> Endpoint;
    /// The state, with what the peer's errors did to it (`ibv_query_qp(3)`).
    ///
    /// # Errors
    /// The verb's error.
    fn state(&self) -> Result<QpState, Error>;
    /// Changes state or rights (`ibv_modify_qp(3)`). Whether a change that removes rights is a barrier says
    /// [`Capabilities::revoke`](crate::Capabilities).
    ///
    /// # Errors
    /// A change that the state table forbids, a peer that cannot be reached, or the verb's error.
    fn modify(&self, change: &Modify) -> Result<(), Error>;
}

/// A queue pair (`struct ibv_qp`), reliably connected.
pub trait QueuePair<C: Context>: Send + 'static {
    /// Its control side.
    fn control(&self) -> &C::Control;
    /// The sizes it really has; at least those asked for.
    fn cap(&self) -> QpCap;
    /// Posts one send request (`ibv_post_send(3)`).
    ///
    /// # Errors
    /// [`PostError`]; nothing was queued then.
    fn post_send(&mut self, wr: &Wr<'_, C>) -> Result<(), PostError>;
    /// Posts several send requests with one doorbell.
    ///
    /// # Errors
    /// How many were queued before the one that was refused, and why it was.
    fn post_send_list(&mut self, wrs: &[Wr<'_, C>]) -> Result<(), (usize, PostError)>;
    /// Posts one receive request (`ibv_post_recv(3)`).
    ///
    /// # Errors
    /// [`PostError`]; nothing was queued then.
    fn post_recv(&mut self, wr: &RecvWr<'_, C::Mr>) -> Result<(), PostError>;
    /// Destroys it (`ibv_destroy_qp(3)`). Once it returns, nothing lands through it.
    ///
    /// # Errors
    /// The verb's error; the queue pair is leaked then.
    fn close(self) -> Result<(), Error>;
}

/// An opened device (`struct ibv_context`). Cheap to clone; objects keep it open.
pub trait Context: Clone + Send + Sync + 'static {
    /// A protection domain.
    type Pd: Clone + Send + Sync + 'static;
    /// A memory region.
    type Mr: MemoryRegion;
    /// A memory window.
    type Mw: MemoryWindow;
    /// A completion queue.
    type Cq: CompletionQueue;
    /// A queue pair.
    type Qp: QueuePair<Self>;
    /// A queue pair's control side.
    type Control: QpControl;

    /// What the device can do.
    fn caps(&self) -> &Capabilities;
    /// Memory that this context can register: zeroed words on huge pages where there are any, locked if allowed,
    /// touched. `bytes` is rounded up to whole pages.
    ///
    /// # Errors
    /// No memory, or a limit.
    fn alloc_memory(&self, bytes: usize) -> Result<Memory, Error>;
    /// A protection domain (`ibv_alloc_pd(3)`): regions and queue pairs of different domains cannot be used together.
    ///
    /// # Errors
    /// The verb's error.
    fn alloc_pd(&self) -> Result<Self::Pd, Error>;
    /// Registers the bytes `range` of `memory` (`ibv_reg_mr(3)`). The same memory may be registered many times: one
    /// registration a peer, each with its own key, is how a peer's right is taken away alone.
    ///
    /// # Errors
    /// Wrong range or rights, memory of another context, a limit, or the verb's error.
    fn reg_mr(
        &self,
        pd: &Self::Pd,
        memory: &Memory,
        range: Range<usize>,
        access: Access,
    ) -> Result<Self::Mr, Error>;
    /// A type-2 window (`ibv_alloc_mw(3)`).
    ///
    /// # Errors
    /// [`Error::Unsupported`], a limit, or the verb's error.
    fn alloc_mw(&self, pd: &Self::Pd) -> Result<Self::Mw, Error>;
    /// A completion queue with room for `depth` completions (`ibv_create_cq(3)`).
    ///
    /// # Errors
    /// A limit, or the verb's error.
    fn create_cq(&self, depth: u32) -> Result<Self::Cq, Error>;
    /// A reliably connected queue pair in RESET (`ibv_create_qp(3)`). Requests make completions only if they ask for
    /// it.
    ///
    /// # Errors
    /// A limit, or the verb's error.
    fn create_qp(
        &self,
        pd: &Self::Pd,
        send_cq: &Self::Cq,
        recv_cq: &Self::Cq,
        cap: &QpCap,
    ) -> Result<Self::Qp, Error>;
    /// The next asynchronous event (`ibv_get_async_event(3)`), without blocking.
    ///
    /// # Errors
    /// The verb's error.
    fn poll_async_event(&self) -> Result<Option<AsyncEvent>, Error>;
}
