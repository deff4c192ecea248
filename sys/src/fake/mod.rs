//! A provider in Rust: a libibverbs without a library, a kernel or a NIC.
//!
//! [`lib`] gives a [`Lib`] with two devices, `fake0` and `fake1`, on one fabric: a reliable-connected (RC) queue pair
//! of either can be connected to one of the other, or to one of its own device. It is a test double: it exists so
//! that a layer above can be driven through every path, the refusals and error completions included, on any machine
//! and under Miri.
//!
//! How it works, and where it differs from a NIC:
//!
//! - One mutex per fabric. `post_send` executes its work requests before it returns, and their completions are in the
//!   queues by then. So every revocation is a barrier here, which no test may take for a property of real devices.
//! - Nothing is waited for. A peer that does not answer gives `RETRY_EXC_ERR` at once and an empty receive queue
//!   `RNR_RETRY_EXC_ERR` at once, whatever the retry counts (7, "for ever", included).
//! - Packet sequence numbers are kept: if `sq_psn` of one side is not what the other side expects, the peer does not
//!   answer.
//! - Memory is registered in whole, aligned 64-bit words, and is read and written as `AtomicU64`: whole words by
//!   acquire loads and release stores in ascending order, parts of words by compare-and-swap. So other threads may
//!   access the same memory as `AtomicU64` without a data race. Inline data is private memory of the caller, read as
//!   plain bytes.
//! - Registered memory is reached through the pointer given to `ibv_reg_mr`, which must stay good for it: under Miri,
//!   moving a `Box` that owns the memory ends that. The source of inline data is known by its address only, so its
//!   provenance must have been exposed; Miri wants `-Zmiri-permissive-provenance` to accept that silently.
//! - `ibv_get_async_event` and `ibv_get_cq_event` never block: they return -1 with `EAGAIN` when there is nothing.
//!   The file descriptors (`async_fd`, the channel's `fd`) are eventfds, readable while an event waits, and must not
//!   be read by the caller.
//! - What would hang or leak on a real device is an error: destroying an object whose events are not acknowledged, or
//!   closing a device whose objects are alive, gives `EBUSY`.
//! - `lkey` and `rkey` of a region differ, so that mixing them up fails.
//! - Its `unsafe extern "C"` functions have the safety contract of the verb whose name they bear, and no other: live
//!   objects of this provider, structures that the verb reads or writes, and no use after the destroying verb.
//! - Not there: queue pairs other than RC, shared receive queues, the SQD state, type 1 memory windows (the op is
//!   null), `SEND_WITH_INV`.

mod cq;
mod device;
mod execute;
mod memory;
mod modify;
mod mr;
mod post;
mod qp;
mod state;
mod text;

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bindings::ibv_device;
use crate::loader::Lib;
use state::World;

/// What the fake device is able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeOptions {
    /// `ibv_rereg_mr` works. If not, it returns `IBV_REREG_MR_ERR_INPUT` with `EOPNOTSUPP`, as libibverbs does for a
    /// provider without it.
    pub rereg_mr: bool,
    /// Memory windows of type 2 exist. If not, the ops are null and the capability flags absent.
    pub memory_windows: bool,
    /// What `ibv_query_qp_data_in_order` answers; `None` if the library is too old to have it.
    pub data_in_order: Option<bool>,
    /// The most inline data, in bytes, that a queue pair can be created with.
    pub max_inline: u32,
    /// The access flags of a queue pair in RTS can be changed. If not, `ibv_modify_qp` gives `EINVAL`.
    pub access_flags_in_rts: bool,
}

impl Default for FakeOptions {
    /// A device that can do everything.
    fn default() -> Self {
        Self {
            rereg_mr: true,
            memory_windows: true,
            data_in_order: Some(true),
            max_inline: 256,
            access_flags_in_rts: true,
        }
    }
}

/// Most different option sets in one process: `ibv_get_device_list` has no argument to tell fabrics apart, so each
/// has a function of its own.
pub const MAX_FABRICS: usize = 16;

/// The fabrics made so far, in the order of [`DEVICE_LISTS`].
static FABRICS: Mutex<Vec<Fabric>> = Mutex::new(Vec::new());

struct Fabric {
    options: FakeOptions,
    world: &'static World,
    lib: &'static Lib,
}

fn fabrics() -> MutexGuard<'static, Vec<Fabric>> {
    FABRICS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The library of the fabric with these options, made at the first call and never freed. The same options give the
/// same fabric, which independent tests can share as they would share a NIC.
///
/// # Panics
/// If more than [`MAX_FABRICS`] different option sets are asked for in one process.
#[must_use]
pub fn lib(options: FakeOptions) -> &'static Lib {
    let mut fabrics = fabrics();
    if let Some(fabric) = fabrics.iter().find(|fabric| fabric.options == options) {
        return fabric.lib;
    }
    let index = fabrics.len();
    assert!(
        index < MAX_FABRICS,
        "more than {MAX_FABRICS} different fake fabrics in one process"
    );
    let lib: &'static Lib = Box::leak(Box::new(table(options, DEVICE_LISTS[index])));
    fabrics.push(Fabric {
        options,
        world: World::leak(options),
        lib,
    });
    lib
}

/// The `INDEX`th fabric's `ibv_get_device_list`.
unsafe extern "C" fn get_device_list<const INDEX: usize>(count: *mut i32) -> *mut *mut ibv_device {
    let world = fabrics()[INDEX].world;
    // SAFETY: the caller gives null or a writable count.
    unsafe { device::list(world, count) }
}

type GetDeviceList = unsafe extern "C" fn(*mut i32) -> *mut *mut ibv_device;

static DEVICE_LISTS: [GetDeviceList; MAX_FABRICS] = [
    get_device_list::<0>,
    get_device_list::<1>,
    get_device_list::<2>,
    get_device_list::<3>,
    get_device_list::<4>,
    get_device_list::<5>,
    get_device_list::<6>,
    get_device_list::<7>,
    get_device_list::<8>,
    get_device_list::<9>,
    get_device_list::<10>,
    get_device_list::<11>,
    get_device_list::<12>,
    get_device_list::<13>,
    get_device_list::<14>,
    get_device_list::<15>,
];

fn table(options: FakeOptions, ibv_get_device_list: GetDeviceList) -> Lib {
    Lib {
        ibv_get_device_list,
        ibv_free_device_list: device::free_device_list,
        ibv_get_device_name: device::get_device_name,
        ibv_open_device: device::open_device,
        ibv_close_device: device::close_device,
        ibv_get_async_event: device::get_async_event,
        ibv_ack_async_event: device::ack_async_event,
        ibv_query_device: device::query_device,
        ibv_query_port: device::query_port,
        ibv_query_gid: device::query_gid,
        ibv_query_pkey: device::query_pkey,
        ibv_alloc_pd: mr::alloc_pd,
        ibv_dealloc_pd: mr::dealloc_pd,
        ibv_reg_mr: mr::reg_mr,
        ibv_dereg_mr: mr::dereg_mr,
        ibv_create_comp_channel: cq::create_comp_channel,
        ibv_destroy_comp_channel: cq::destroy_comp_channel,
        ibv_create_cq: cq::create_cq,
        ibv_destroy_cq: cq::destroy_cq,
        ibv_get_cq_event: cq::get_cq_event,
        ibv_ack_cq_events: cq::ack_cq_events,
        ibv_create_qp: qp::create_qp,
        ibv_modify_qp: modify::modify_qp,
        ibv_query_qp: qp::query_qp,
        ibv_destroy_qp: qp::destroy_qp,
        ibv_create_ah: mr::create_ah,
        ibv_destroy_ah: mr::destroy_ah,
        ibv_wc_status_str: text::wc_status_str,
        ibv_event_type_str: text::event_type_str,
        ibv_get_device_guid: Some(device::get_device_guid),
        ibv_fork_init: Some(device::fork_init),
        ibv_rereg_mr: Some(mr::rereg_mr),
        ibv_query_qp_data_in_order: options
            .data_in_order
            .map(|_| qp::query_qp_data_in_order as _),
        _ibv_query_gid_ex: Some(device::query_gid_ex),
    }
}
