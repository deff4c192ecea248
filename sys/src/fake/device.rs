//! Devices, contexts, what can be queried of them, and asynchronous events.

use core::ffi::{c_char, c_int, c_void};
use core::ptr;
use std::collections::VecDeque;

use super::state::{Bell, Context, DEVICES, FakeContext, World, fake_context};
use crate::bindings::{
    __be16, __be64, _compat_ibv_port_attr, IBV_LINK_LAYER_ETHERNET, ibv_async_event,
    ibv_atomic_cap, ibv_context, ibv_device, ibv_device_attr, ibv_device_cap_flags as cap,
    ibv_event_type, ibv_gid, ibv_gid_entry, ibv_gid_type, ibv_mtu, ibv_node_type, ibv_port_attr,
    ibv_port_state, ibv_transport_type,
};
use crate::inline::set_errno;

/// The only port of a device.
pub(super) const PORT: u8 = 1;
/// Entries of the GID table: the link-local address (RoCE v1) and an IPv4 address (RoCE v2).
pub(super) const GIDS: u32 = 2;
pub(super) const MAX_QP_WR: u32 = 1 << 14;
pub(super) const MAX_CQE: u32 = 1 << 16;
pub(super) const MAX_RD_ATOMIC: u8 = 16;
/// Largest message, in bytes.
pub(super) const MAX_MESSAGE: u32 = 1 << 30;
const DEFAULT_PKEY: u16 = 0xffff;
const NO_EVENTS: c_int = libc::EAGAIN;

/// What a C device points to; the C part comes first.
#[repr(C)]
struct FakeDevice {
    ibv: ibv_device,
    world: *const World,
    index: usize,
}

/// Makes a device that lives for ever.
pub(super) fn make(world: *const World, index: usize) -> *mut ibv_device {
    let mut ibv = ibv_device {
        node_type: ibv_node_type::IBV_NODE_CA,
        transport_type: ibv_transport_type::IBV_TRANSPORT_IB,
        ..Default::default()
    };
    write_text(&mut ibv.name, &format!("fake{index}"));
    write_text(&mut ibv.dev_name, &format!("uverbs-fake{index}"));
    Box::into_raw(Box::new(FakeDevice { ibv, world, index })).cast()
}

/// # Safety
/// `device` came from a fake device list.
unsafe fn fake_device<'a>(device: *mut ibv_device) -> &'a FakeDevice {
    // SAFETY: the caller's promise; devices live for ever and are never written.
    unsafe { &*device.cast() }
}

/// # Safety
/// `count` is null or can be written.
pub(super) unsafe fn list(world: &World, count: *mut c_int) -> *mut *mut ibv_device {
    if !count.is_null() {
        // SAFETY: the caller's promise.
        unsafe { *count = DEVICES as c_int };
    }
    let mut list = [ptr::null_mut(); DEVICES + 1];
    list[..DEVICES].copy_from_slice(&world.devices);
    Box::into_raw(Box::new(list)).cast()
}

pub(super) unsafe extern "C" fn free_device_list(list: *mut *mut ibv_device) {
    // SAFETY: `ibv_free_device_list` is given what `list` made, once.
    drop(unsafe { Box::from_raw(list.cast::<[*mut ibv_device; DEVICES + 1]>()) });
}

pub(super) unsafe extern "C" fn get_device_name(device: *mut ibv_device) -> *const c_char {
    // SAFETY: the caller gives a live device.
    unsafe { (*device).name.as_ptr() }
}

pub(super) unsafe extern "C" fn get_device_guid(device: *mut ibv_device) -> __be64 {
    // SAFETY: the caller gives a live device.
    guid(unsafe { fake_device(device) }.index).to_be()
}

pub(super) unsafe extern "C" fn fork_init() -> c_int {
    0
}

pub(super) unsafe extern "C" fn open_device(device: *mut ibv_device) -> *mut ibv_context {
    // SAFETY: the caller gives a live device, and its fabric lives for ever.
    let (world, index) = unsafe { (&*fake_device(device).world, fake_device(device).index) };
    let bell = Bell::new();
    let mut ibv = ibv_context {
        device,
        async_fd: bell.0,
        cmd_fd: -1,
        num_comp_vectors: 1,
        ..Default::default()
    };
    ibv.ops.poll_cq = Some(super::cq::poll_cq);
    ibv.ops.req_notify_cq = Some(super::cq::req_notify_cq);
    ibv.ops.post_send = Some(super::post::post_send);
    ibv.ops.post_recv = Some(super::post::post_recv);
    if world.options.memory_windows {
        ibv.ops.alloc_mw = Some(super::mr::alloc_mw);
        ibv.ops.dealloc_mw = Some(super::mr::dealloc_mw);
    }
    let mut state = world.lock();
    let handle = state.new_handle();
    state.contexts.insert(
        handle,
        Context {
            events: VecDeque::new(),
            bell,
            users: 0,
        },
    );
    Box::into_raw(Box::new(FakeContext {
        ibv,
        world,
        handle,
        device: index,
    }))
    .cast()
}

pub(super) unsafe extern "C" fn close_device(context: *mut ibv_context) -> c_int {
    // SAFETY: the caller gives a live context.
    let fake = unsafe { fake_context(context) };
    let mut state = fake.world.lock();
    if state.contexts[&fake.handle].users > 0 {
        return libc::EBUSY;
    }
    state.contexts.remove(&fake.handle);
    drop(state);
    // SAFETY: made by `open_device`, and the caller gives it up.
    drop(unsafe { Box::from_raw(context.cast::<FakeContext>()) });
    0
}

pub(super) unsafe extern "C" fn query_device(
    context: *mut ibv_context,
    attr: *mut ibv_device_attr,
) -> c_int {
    // SAFETY: the caller gives a live context.
    let fake = unsafe { fake_context(context) };
    let mut flags = cap::IBV_DEVICE_SYS_IMAGE_GUID | cap::IBV_DEVICE_RC_RNR_NAK_GEN;
    if fake.world.options.memory_windows {
        flags = flags | cap::IBV_DEVICE_MEM_WINDOW | cap::IBV_DEVICE_MEM_WINDOW_TYPE_2B;
    }
    let mut filled = ibv_device_attr {
        node_guid: guid(fake.device).to_be(),
        sys_image_guid: guid(fake.device).to_be(),
        max_mr_size: u64::MAX,
        page_size_cap: 4096,
        max_qp: 1 << 16,
        max_qp_wr: MAX_QP_WR as c_int,
        device_cap_flags: flags.0,
        max_sge: super::memory::MAX_SGE as c_int,
        max_sge_rd: super::memory::MAX_SGE as c_int,
        max_cq: 1 << 16,
        max_cqe: MAX_CQE as c_int,
        max_mr: 1 << 16,
        max_pd: 1 << 16,
        max_qp_rd_atom: c_int::from(MAX_RD_ATOMIC),
        max_qp_init_rd_atom: c_int::from(MAX_RD_ATOMIC),
        max_res_rd_atom: c_int::from(MAX_RD_ATOMIC),
        atomic_cap: ibv_atomic_cap::IBV_ATOMIC_HCA,
        max_mw: if fake.world.options.memory_windows {
            1 << 16
        } else {
            0
        },
        max_ah: 1 << 16,
        max_pkeys: 1,
        local_ca_ack_delay: 15,
        phys_port_cnt: PORT,
        ..Default::default()
    };
    write_text(&mut filled.fw_ver, "fake");
    // SAFETY: the caller gives a writable struct.
    unsafe { *attr = filled };
    0
}

pub(super) unsafe extern "C" fn query_port(
    _context: *mut ibv_context,
    port: u8,
    attr: *mut _compat_ibv_port_attr,
) -> c_int {
    if port != PORT {
        return libc::EINVAL;
    }
    let attr: *mut ibv_port_attr = attr.cast();
    // SAFETY: the caller gives at least the struct up to `link_layer` and `flags`, as old programs do: so members are
    // written one by one, and none of the newer ones.
    unsafe {
        (*attr).state = ibv_port_state::IBV_PORT_ACTIVE;
        (*attr).max_mtu = ibv_mtu::IBV_MTU_4096;
        (*attr).active_mtu = ibv_mtu::IBV_MTU_4096;
        (*attr).gid_tbl_len = GIDS as c_int;
        (*attr).max_msg_sz = MAX_MESSAGE;
        (*attr).pkey_tbl_len = 1;
        (*attr).active_width = 2;
        (*attr).active_speed = 32;
        (*attr).phys_state = 5;
        (*attr).link_layer = IBV_LINK_LAYER_ETHERNET as u8;
    }
    0
}

pub(super) unsafe extern "C" fn query_gid(
    context: *mut ibv_context,
    port: u8,
    index: c_int,
    out: *mut ibv_gid,
) -> c_int {
    if port != PORT || !(0..GIDS as c_int).contains(&index) {
        set_errno(libc::EINVAL);
        return -1;
    }
    // SAFETY: the caller gives a live context and a writable GID.
    unsafe { (*out).raw = gid(fake_context(context).device, index as u32) };
    0
}

pub(super) unsafe extern "C" fn query_gid_ex(
    context: *mut ibv_context,
    port: u32,
    index: u32,
    out: *mut ibv_gid_entry,
    flags: u32,
    size: usize,
) -> c_int {
    if port != u32::from(PORT) || index >= GIDS || flags != 0 || size < size_of::<ibv_gid_entry>() {
        return libc::EINVAL;
    }
    let gid_type = [
        ibv_gid_type::IBV_GID_TYPE_ROCE_V1,
        ibv_gid_type::IBV_GID_TYPE_ROCE_V2,
    ][index as usize];
    // SAFETY: the caller gives a live context and a writable entry.
    unsafe {
        *out = ibv_gid_entry {
            gid: ibv_gid {
                raw: gid(fake_context(context).device, index),
            },
            gid_index: index,
            port_num: port,
            gid_type: gid_type.0,
            ndev_ifindex: 0,
        };
    }
    0
}

pub(super) unsafe extern "C" fn query_pkey(
    _context: *mut ibv_context,
    port: u8,
    index: c_int,
    pkey: *mut __be16,
) -> c_int {
    if port != PORT || index != 0 {
        set_errno(libc::EINVAL);
        return -1;
    }
    // SAFETY: the caller gives a writable key.
    unsafe { *pkey = DEFAULT_PKEY };
    0
}

pub(super) unsafe extern "C" fn get_async_event(
    context: *mut ibv_context,
    event: *mut ibv_async_event,
) -> c_int {
    // SAFETY: the caller gives a live context.
    let fake = unsafe { fake_context(context) };
    let mut state = fake.world.lock();
    let Some(context) = state.contexts.get_mut(&fake.handle) else {
        return -1;
    };
    let Some(oldest) = context.events.pop_front() else {
        set_errno(NO_EVENTS);
        return -1;
    };
    if context.events.is_empty() {
        context.bell.silence();
    }
    // SAFETY: an event names a live object, since destroying one forgets its events; the caller gives a writable event.
    unsafe {
        if oldest.event_type == ibv_event_type::IBV_EVENT_CQ_ERR {
            let cq = (*oldest.element.cq).handle;
            state.cqs.get_mut(&cq).expect("live").unacked += 1;
        } else {
            let qp = (*oldest.element.qp).handle;
            state.qp_mut(qp).unacked += 1;
        }
        *event = oldest;
    }
    0
}

pub(super) unsafe extern "C" fn ack_async_event(event: *mut ibv_async_event) {
    // SAFETY: the caller gives an event that it got and did not acknowledge, so its object is live.
    unsafe {
        if (*event).event_type == ibv_event_type::IBV_EVENT_CQ_ERR {
            let cq = (*event).element.cq;
            let mut state = super::state::world((*cq).context).lock();
            state.cqs.get_mut(&(*cq).handle).expect("live").unacked -= 1;
        } else {
            let qp = (*event).element.qp;
            super::state::world((*qp).context)
                .lock()
                .qp_mut((*qp).handle)
                .unacked -= 1;
        }
    }
}

/// An entry of a device's GID table: `fe80::ff:fe00:N`, then `::ffff:10.0.0.N`.
fn gid(device: usize, index: u32) -> [u8; 16] {
    let host = device as u8 + 1;
    match index {
        0 => [
            0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, host,
        ],
        _ => [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, host],
    }
}

/// The device that has a GID.
pub(super) fn device_of(wanted: &[u8; 16]) -> Option<usize> {
    (0..DEVICES).find(|&device| (0..GIDS).any(|index| gid(device, index) == *wanted))
}

fn guid(device: usize) -> u64 {
    0x0200_00ff_fe00_0001 + device as u64
}

/// Writes a C string into a field of zeroes.
fn write_text(field: &mut [c_char], text: &str) {
    assert!(text.len() < field.len());
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from as c_char;
    }
}

/// Counts an object in or out of its context.
pub(super) fn count_user(state: &mut super::state::State, context: u32, change: i32) {
    let context = state
        .contexts
        .get_mut(&context)
        .expect("a context outlives its objects");
    context.users = context.users.checked_add_signed(change).expect("balanced");
}

/// Boxes a C struct, as the constructors of the fake return them.
pub(super) fn leak<T>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}

/// Frees what [`leak`] made.
///
/// # Safety
/// `object` came from [`leak`] and nobody uses it afterwards.
pub(super) unsafe fn free<T>(object: *mut T) {
    // SAFETY: the caller's promise.
    drop(unsafe { Box::from_raw(object) });
}

/// Null, with errno: how a constructor fails.
pub(super) fn fail<T>(errno: c_int) -> *mut T {
    set_errno(errno);
    ptr::null_mut::<c_void>().cast()
}
