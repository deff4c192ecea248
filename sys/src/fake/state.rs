//! The fabric's tables: what a NIC and the kernel know about the objects that programs made.
//!
//! The C structs that programs hold carry a handle and a context; everything else is here, behind one mutex.

use core::ffi::{c_int, c_void};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::FakeOptions;
use super::memory::{MAX_SGE, Segment, Segments};
use crate::bindings::{
    ibv_access_flags as access, ibv_async_event, ibv_async_event__bindgen_ty_1, ibv_comp_channel,
    ibv_context, ibv_cq, ibv_device, ibv_event_type, ibv_qp, ibv_qp_attr, ibv_qp_cap, ibv_qp_state,
    ibv_sge, ibv_wc,
};

/// Devices of a fabric.
pub(super) const DEVICES: usize = 2;

/// One fabric: its devices and all that was made on them.
pub(super) struct World {
    pub(super) options: FakeOptions,
    pub(super) devices: [*mut ibv_device; DEVICES],
    state: Mutex<State>,
}

// SAFETY: the device structs are never written after they were made; the rest is plain data or behind the mutex.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}

impl World {
    pub(super) fn leak(options: FakeOptions) -> &'static Self {
        let world = Self {
            options,
            devices: [core::ptr::null_mut(); DEVICES],
            state: Mutex::new(State::default()),
        };
        let world = Box::into_raw(Box::new(world));
        // SAFETY: just leaked and known to nobody else, so it can be written until it is shared by this return.
        unsafe {
            for index in 0..DEVICES {
                (*world).devices[index] = super::device::make(world, index);
            }
            &*world
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a C context points to; the C part comes first.
#[repr(C)]
pub(super) struct FakeContext {
    pub(super) ibv: ibv_context,
    pub(super) world: &'static World,
    pub(super) handle: u32,
    pub(super) device: usize,
}

/// # Safety
/// `context` is live and was made by the fake.
pub(super) unsafe fn fake_context<'a>(context: *mut ibv_context) -> &'a FakeContext {
    // SAFETY: the caller's promise; nobody writes a context after it was made.
    unsafe { &*context.cast() }
}

/// # Safety
/// As for [`fake_context`].
pub(super) unsafe fn world(context: *mut ibv_context) -> &'static World {
    // SAFETY: the caller's promise.
    unsafe { fake_context(context) }.world
}

#[derive(Default)]
pub(super) struct State {
    random: u64,
    last_handle: u32,
    pub(super) contexts: BTreeMap<u32, Context>,
    pub(super) pds: BTreeMap<u32, Pd>,
    pub(super) mrs: BTreeMap<u32, Mr>,
    pub(super) mws: BTreeMap<u32, Mw>,
    pub(super) lkeys: BTreeMap<u32, u32>,
    pub(super) rkeys: BTreeMap<u32, RemoteKey>,
    pub(super) channels: BTreeMap<u32, Channel>,
    pub(super) cqs: BTreeMap<u32, Cq>,
    pub(super) qps: BTreeMap<u32, Qp>,
    pub(super) qpns: BTreeMap<u32, u32>,
}

// SAFETY: the pointers in the tables are only handed back to their owners, or used under the rules of `memory`.
unsafe impl Send for State {}

/// A file descriptor that is readable while there is something to fetch.
pub(super) struct Bell(pub(super) c_int);

impl Bell {
    pub(super) fn new() -> Self {
        // SAFETY: no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        assert!(fd >= 0, "eventfd: {}", std::io::Error::last_os_error());
        Self(fd)
    }

    pub(super) fn ring(&self) {
        let one = 1_u64;
        // SAFETY: eight readable bytes. It cannot fail before 2^64 - 2 events wait.
        unsafe { libc::write(self.0, (&raw const one).cast::<c_void>(), 8) };
    }

    pub(super) fn silence(&self) {
        let mut count = 0_u64;
        // SAFETY: eight writable bytes. That there was nothing to read is fine.
        unsafe { libc::read(self.0, (&raw mut count).cast::<c_void>(), 8) };
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        // SAFETY: our own descriptor, not used afterwards.
        unsafe { libc::close(self.0) };
    }
}

pub(super) struct Context {
    pub(super) events: VecDeque<ibv_async_event>,
    pub(super) bell: Bell,
    /// Objects made directly on the context.
    pub(super) users: u32,
}

pub(super) struct Pd {
    pub(super) users: u32,
}

#[derive(Clone, Copy)]
pub(super) struct Mr {
    pub(super) pd: u32,
    pub(super) base: *mut u8,
    pub(super) len: usize,
    pub(super) access: access,
    pub(super) lkey: u32,
    pub(super) rkey: u32,
}

impl Mr {
    /// The range as a segment, if it lies in the region.
    pub(super) fn segment(&self, addr: u64, len: usize) -> Option<Segment> {
        let offset = addr.checked_sub(self.base.addr() as u64)?;
        let end = offset.checked_add(len as u64)?;
        // SAFETY: in bounds of memory that its owner keeps live and shares as words until it deregisters the region.
        (end <= self.len as u64)
            .then(|| unsafe { Segment::registered(self.base.wrapping_add(offset as usize), len) })
    }
}

#[derive(Clone, Copy)]
pub(super) struct Mw {
    pub(super) pd: u32,
    pub(super) rkey: u32,
    pub(super) bound: Option<Binding>,
}

/// What a window gives access to.
#[derive(Clone, Copy)]
pub(super) struct Binding {
    pub(super) mr: u32,
    pub(super) qp: u32,
    pub(super) addr: u64,
    pub(super) len: u64,
    pub(super) access: access,
}

#[derive(Clone, Copy)]
pub(super) enum RemoteKey {
    Mr(u32),
    Mw(u32),
}

pub(super) struct Channel {
    pub(super) events: VecDeque<*mut ibv_cq>,
    pub(super) bell: Bell,
    pub(super) users: u32,
    pub(super) ibv: *mut ibv_comp_channel,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Armed {
    No,
    Solicited,
    Any,
}

pub(super) struct Cq {
    pub(super) ibv: *mut ibv_cq,
    pub(super) context: u32,
    pub(super) channel: Option<u32>,
    pub(super) depth: usize,
    pub(super) queue: VecDeque<Completion>,
    pub(super) armed: Armed,
    pub(super) users: u32,
    pub(super) unacked: u32,
    pub(super) overrun: bool,
}

/// A completion, and what polling it frees.
#[derive(Clone, Copy)]
pub(super) struct Completion {
    pub(super) wc: ibv_wc,
    pub(super) qp: u32,
    pub(super) send_slots: u32,
    pub(super) recv_slots: u32,
    pub(super) solicited: bool,
}

#[derive(Clone, Copy)]
pub(super) struct Receive {
    pub(super) wr_id: u64,
    pub(super) list: [ibv_sge; MAX_SGE],
    pub(super) count: usize,
}

pub(super) struct Qp {
    pub(super) ibv: *mut ibv_qp,
    pub(super) context: u32,
    pub(super) device: usize,
    pub(super) pd: u32,
    pub(super) send_cq: u32,
    pub(super) recv_cq: u32,
    pub(super) number: u32,
    pub(super) cap: ibv_qp_cap,
    pub(super) signal_all: bool,
    /// As `ibv_query_qp` reports them; the state included.
    pub(super) attr: ibv_qp_attr,
    pub(super) send_used: u32,
    /// Successful unsignalled requests since the last completion; their slots are freed by the next one.
    pub(super) send_silent: u32,
    pub(super) recv_used: u32,
    pub(super) receives: VecDeque<Receive>,
    /// PSN of the next request sent, and of the next one expected.
    pub(super) send_psn: u32,
    pub(super) recv_psn: u32,
    pub(super) unacked: u32,
}

impl Qp {
    pub(super) fn state(&self) -> ibv_qp_state {
        self.attr.qp_state
    }
}

impl State {
    pub(super) fn new_handle(&mut self) -> u32 {
        self.last_handle += 1;
        self.last_handle
    }

    /// The next number of a splitmix64 sequence: looks random, and is the same in every run.
    pub(super) fn new_random(&mut self) -> u32 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 32) as u32
    }

    pub(super) fn qp(&self, handle: u32) -> &Qp {
        &self.qps[&handle]
    }

    pub(super) fn qp_mut(&mut self, handle: u32) -> &mut Qp {
        self.qps
            .get_mut(&handle)
            .expect("a handle of a live queue pair")
    }

    /// Checks local buffers against the regions of a protection domain. `None`: a key, a bound, a domain or a right
    /// is wrong.
    pub(super) fn local(&self, pd: u32, list: &[ibv_sge], write: bool) -> Option<Segments> {
        let mut segments = Segments::new();
        for sge in list.iter().filter(|sge| sge.length > 0) {
            let mr = &self.mrs[self.lkeys.get(&sge.lkey)?];
            let allowed = !write || has(mr.access, access::IBV_ACCESS_LOCAL_WRITE);
            if mr.pd != pd || !allowed {
                return None;
            }
            segments.push(mr.segment(sge.addr, sge.length as usize)?);
        }
        Some(segments)
    }

    /// Checks a remote range as the responder `qp` does. `None`: a key, a bound, a domain or a right is wrong.
    pub(super) fn remote(
        &self,
        qp: u32,
        rkey: u32,
        addr: u64,
        len: usize,
        right: access,
    ) -> Option<Segment> {
        match *self.rkeys.get(&rkey)? {
            RemoteKey::Mr(handle) => {
                let mr = &self.mrs[&handle];
                (mr.pd == self.qp(qp).pd && has(mr.access, right)).then(|| mr.segment(addr, len))?
            }
            RemoteKey::Mw(handle) => {
                let bound = self.mws[&handle].bound?;
                let end = addr.checked_add(len as u64)?;
                let inside = addr >= bound.addr && end <= bound.addr + bound.len;
                (bound.qp == qp && inside && has(bound.access, right))
                    .then(|| self.mrs[&bound.mr].segment(addr, len))?
            }
        }
    }

    /// Queues an asynchronous event about a queue pair.
    pub(super) fn raise(&mut self, qp: u32, event_type: ibv_event_type) {
        let qp = self.qp(qp);
        let element = ibv_async_event__bindgen_ty_1 { qp: qp.ibv };
        self.queue_event(
            qp.context,
            ibv_async_event {
                element,
                event_type,
            },
        );
    }

    pub(super) fn queue_event(&mut self, context: u32, event: ibv_async_event) {
        let context = self
            .contexts
            .get_mut(&context)
            .expect("a context outlives its objects");
        context.events.push_back(event);
        context.bell.ring();
    }

    /// Removes what waits to be fetched and is about an object that goes away.
    pub(super) fn forget_events(&mut self, context: u32, about: impl Fn(&ibv_async_event) -> bool) {
        let context = self
            .contexts
            .get_mut(&context)
            .expect("a context outlives its objects");
        context.events.retain(|event| !about(event));
        if context.events.is_empty() {
            context.bell.silence();
        }
    }
}

/// All bits of `wanted` are set.
pub(super) fn has(set: access, wanted: access) -> bool {
    set & wanted == wanted
}
