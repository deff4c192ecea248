//! Completion queues and the channels that tell about them.

use core::ffi::{c_int, c_uint, c_void};
use std::collections::VecDeque;

use super::device::{MAX_CQE, count_user, fail, free, leak};
use super::state::{Armed, Bell, Channel, Completion, Cq, State, fake_context, world};
use crate::bindings::{
    ibv_async_event, ibv_async_event__bindgen_ty_1, ibv_comp_channel, ibv_context, ibv_cq,
    ibv_event_type, ibv_wc, ibv_wc_status,
};
use crate::inline::set_errno;

pub(super) unsafe extern "C" fn create_comp_channel(
    context: *mut ibv_context,
) -> *mut ibv_comp_channel {
    // SAFETY: the caller gives a live context.
    let fake = unsafe { fake_context(context) };
    let mut state = fake.world.lock();
    let bell = Bell::new();
    let fd = bell.0;
    let ibv = leak(ibv_comp_channel {
        context,
        fd,
        refcnt: 0,
    });
    state.channels.insert(
        fd as u32,
        Channel {
            events: VecDeque::new(),
            bell,
            users: 0,
            ibv,
        },
    );
    count_user(&mut state, fake.handle, 1);
    ibv
}

pub(super) unsafe extern "C" fn destroy_comp_channel(channel: *mut ibv_comp_channel) -> c_int {
    // SAFETY: the caller gives a live channel, and with it a live context.
    let (fake, fd) = unsafe { (fake_context((*channel).context), (*channel).fd as u32) };
    let mut state = fake.world.lock();
    if state.channels[&fd].users > 0 {
        return libc::EBUSY;
    }
    let channel = state.channels.remove(&fd).expect("a live channel");
    count_user(&mut state, fake.handle, -1);
    // SAFETY: made by `create_comp_channel`, and the caller gives it up.
    unsafe { free(channel.ibv) };
    0
}

pub(super) unsafe extern "C" fn create_cq(
    context: *mut ibv_context,
    entries: c_int,
    cq_context: *mut c_void,
    channel: *mut ibv_comp_channel,
    vector: c_int,
) -> *mut ibv_cq {
    if !(1..=MAX_CQE as c_int).contains(&entries) || vector != 0 {
        return fail(libc::EINVAL);
    }
    // SAFETY: the caller gives a live context and a null or live channel.
    let (fake, channel_handle) = unsafe {
        (
            fake_context(context),
            channel.as_ref().map(|channel| channel.fd as u32),
        )
    };
    let depth = (entries as usize).next_power_of_two();
    let mut state = fake.world.lock();
    let handle = state.new_handle();
    let ibv = leak(ibv_cq {
        context,
        channel,
        cq_context,
        handle,
        cqe: depth as c_int,
        ..Default::default()
    });
    state.cqs.insert(
        handle,
        Cq {
            ibv,
            context: fake.handle,
            channel: channel_handle,
            depth,
            queue: VecDeque::with_capacity(depth),
            armed: Armed::No,
            users: 0,
            unacked: 0,
            overrun: false,
        },
    );
    if let Some(channel) = channel_handle {
        state
            .channels
            .get_mut(&channel)
            .expect("a live channel")
            .users += 1;
    }
    count_user(&mut state, fake.handle, 1);
    ibv
}

pub(super) unsafe extern "C" fn destroy_cq(cq: *mut ibv_cq) -> c_int {
    // SAFETY: the caller gives a live queue, and with it a live context.
    let (fake, handle) = unsafe { (fake_context((*cq).context), (*cq).handle) };
    let mut state = fake.world.lock();
    let entry = &state.cqs[&handle];
    if entry.users > 0 || entry.unacked > 0 {
        return libc::EBUSY;
    }
    if let Some(channel) = entry.channel {
        let channel = state
            .channels
            .get_mut(&channel)
            .expect("a channel outlives its queues");
        channel.users -= 1;
        channel.events.retain(|event| *event != cq);
        if channel.events.is_empty() {
            channel.bell.silence();
        }
    }
    state.forget_events(fake.handle, |event| {
        // SAFETY: the type says which member of the union is set.
        event.event_type == ibv_event_type::IBV_EVENT_CQ_ERR && unsafe { event.element.cq } == cq
    });
    state.cqs.remove(&handle);
    count_user(&mut state, fake.handle, -1);
    // SAFETY: made by `create_cq`, and the caller gives it up.
    unsafe { free(cq) };
    0
}

pub(super) unsafe extern "C" fn poll_cq(cq: *mut ibv_cq, entries: c_int, wc: *mut ibv_wc) -> c_int {
    // SAFETY: the caller gives a live queue, and with it a live context.
    let (world, handle) = unsafe { (world((*cq).context), (*cq).handle) };
    let Ok(entries) = usize::try_from(entries) else {
        return -libc::EINVAL;
    };
    let mut state = world.lock();
    let mut polled = 0;
    while polled < entries {
        let Some(completion) = state
            .cqs
            .get_mut(&handle)
            .and_then(|cq| cq.queue.pop_front())
        else {
            break;
        };
        let qp = state.qp_mut(completion.qp);
        qp.send_used -= completion.send_slots;
        qp.recv_used -= completion.recv_slots;
        // SAFETY: the caller gives room for `entries` completions.
        unsafe { wc.add(polled).write(completion.wc) };
        polled += 1;
    }
    polled as c_int
}

pub(super) unsafe extern "C" fn req_notify_cq(cq: *mut ibv_cq, solicited_only: c_int) -> c_int {
    // SAFETY: the caller gives a live queue, and with it a live context.
    let (world, handle) = unsafe { (world((*cq).context), (*cq).handle) };
    let mut state = world.lock();
    let cq = state.cqs.get_mut(&handle).expect("a live queue");
    // Arming for any completion is never weakened by a later call for solicited ones.
    cq.armed = if solicited_only == 0 || cq.armed == Armed::Any {
        Armed::Any
    } else {
        Armed::Solicited
    };
    0
}

pub(super) unsafe extern "C" fn get_cq_event(
    channel: *mut ibv_comp_channel,
    cq: *mut *mut ibv_cq,
    cq_context: *mut *mut c_void,
) -> c_int {
    // SAFETY: the caller gives a live channel, and with it a live context.
    let (world, fd) = unsafe { (world((*channel).context), (*channel).fd as u32) };
    let mut state = world.lock();
    let channel = state.channels.get_mut(&fd).expect("a live channel");
    let Some(oldest) = channel.events.pop_front() else {
        set_errno(libc::EAGAIN);
        return -1;
    };
    if channel.events.is_empty() {
        channel.bell.silence();
    }
    // SAFETY: an event names a live queue, since destroying one forgets its events; the caller gives writable pointers.
    unsafe {
        state
            .cqs
            .get_mut(&(*oldest).handle)
            .expect("a live queue")
            .unacked += 1;
        *cq = oldest;
        *cq_context = (*oldest).cq_context;
    }
    0
}

pub(super) unsafe extern "C" fn ack_cq_events(cq: *mut ibv_cq, count: c_uint) {
    // SAFETY: the caller gives a live queue, and with it a live context.
    let (world, handle) = unsafe { (world((*cq).context), (*cq).handle) };
    world
        .lock()
        .cqs
        .get_mut(&handle)
        .expect("a live queue")
        .unacked -= count;
}

impl State {
    /// Adds a completion, and tells the channel if it was asked to.
    pub(super) fn complete(&mut self, cq: u32, completion: Completion) {
        let entry = self
            .cqs
            .get_mut(&cq)
            .expect("a queue outlives its queue pairs");
        if entry.queue.len() == entry.depth {
            if !entry.overrun {
                entry.overrun = true;
                let element = ibv_async_event__bindgen_ty_1 { cq: entry.ibv };
                let event = ibv_async_event {
                    element,
                    event_type: ibv_event_type::IBV_EVENT_CQ_ERR,
                };
                let context = entry.context;
                self.queue_event(context, event);
            }
            return;
        }
        entry.queue.push_back(completion);
        let urgent = completion.solicited || completion.wc.status != ibv_wc_status::IBV_WC_SUCCESS;
        let wanted = match entry.armed {
            Armed::No => false,
            Armed::Solicited => urgent,
            Armed::Any => true,
        };
        if wanted && let Some(channel) = entry.channel {
            entry.armed = Armed::No;
            let channel = self
                .channels
                .get_mut(&channel)
                .expect("a channel outlives its queues");
            channel.events.push_back(entry.ibv);
            channel.bell.ring();
        }
    }

    /// Removes the completions of a queue pair that is reset or destroyed.
    pub(super) fn forget_completions(&mut self, cq: u32, qp: u32) {
        let entry = self
            .cqs
            .get_mut(&cq)
            .expect("a queue outlives its queue pairs");
        entry.queue.retain(|completion| completion.qp != qp);
    }
}
