//! What the threads of the application and the mesh's own thread have in common.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::conn::Outgoing;
use super::limits::{FRAME_OVERHEAD_BYTES, INBOX_BYTES_MAX, INBOX_EVENTS_MAX, OUT_BYTES_MAX};
use super::mesh::Event;
use super::refusal::Counts;
use super::session::{Kind, Sealer};
use crate::config::MEMBERS_MAX;

pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    /// Events in the inbox, so that a poll that finds none takes no lock.
    events: AtomicUsize,
    arrived: Condvar,
    links: [Mutex<Option<Link>>; MEMBERS_MAX],
    pub(super) hello: Mutex<Vec<u8>>,
    pub(super) status: Mutex<Vec<u8>>,
    pub(super) counts: Counts,
    stop: AtomicBool,
    waker: EventFd,
}

#[derive(Default)]
struct Inbox {
    events: VecDeque<Event>,
    message_bytes: usize,
    /// The mesh's thread reads nothing until somebody has made room.
    paused: bool,
    woken: bool,
}

impl Inbox {
    fn is_above(&self, part: usize) -> bool {
        self.events.len() >= INBOX_EVENTS_MAX / part || self.message_bytes >= INBOX_BYTES_MAX / part
    }
}

/// Nothing that is done under these locks panics half-way, so a poisoned one is as good as any.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(hello: &[u8]) -> nix::Result<Self> {
        Ok(Self {
            inbox: Mutex::default(),
            events: AtomicUsize::new(0),
            arrived: Condvar::new(),
            links: Default::default(),
            hello: Mutex::new(hello.to_vec()),
            status: Mutex::default(),
            counts: Counts::default(),
            stop: AtomicBool::new(false),
            waker: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
        })
    }

    pub(super) fn push(&self, event: Event) {
        let mut inbox = lock(&self.inbox);
        inbox.message_bytes += event.message_bytes();
        inbox.events.push_back(event);
        self.events.store(inbox.events.len(), Ordering::Release);
        drop(inbox);
        self.arrived.notify_all();
    }

    pub(super) fn pop(&self) -> Option<Event> {
        if self.events.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut inbox = lock(&self.inbox);
        let event = inbox.events.pop_front()?;
        inbox.message_bytes -= event.message_bytes();
        self.events.store(inbox.events.len(), Ordering::Release);
        let resume = inbox.paused && !inbox.is_above(2);
        inbox.paused &= !resume;
        drop(inbox);
        if resume {
            self.wake_io();
        }
        Some(event)
    }

    /// Waits for an event or for `wake`; whether there is an event.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let inbox = lock(&self.inbox);
        let nothing = |inbox: &mut Inbox| inbox.events.is_empty() && !inbox.woken;
        let waited = self.arrived.wait_timeout_while(inbox, timeout, nothing);
        let (mut inbox, _) = waited.unwrap_or_else(PoisonError::into_inner);
        inbox.woken = false;
        !inbox.events.is_empty()
    }

    pub(super) fn wake(&self) {
        lock(&self.inbox).woken = true;
        self.arrived.notify_all();
    }

    /// Whether the inbox is full; if so, `pop` wakes the mesh's thread once it is half empty.
    pub(super) fn pause_if_full(&self) -> bool {
        let mut inbox = lock(&self.inbox);
        inbox.paused = inbox.is_above(1) || inbox.paused && inbox.is_above(2);
        inbox.paused
    }

    pub(super) fn link(&self, peer: u8) -> Option<MutexGuard<'_, Option<Link>>> {
        self.links.get(usize::from(peer)).map(lock)
    }

    pub(super) fn waker(&self) -> &EventFd {
        &self.waker
    }

    pub(super) fn wake_io(&self) {
        // It fails only when the number is at its end, and then the thread is woken already.
        let _ = self.waker.write(1);
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake_io();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// The sending direction of a connection that is up.
pub(super) struct Link {
    stream: Arc<TcpStream>,
    sealer: Sealer,
    out: Outgoing,
}

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sent {
    /// The kernel has it.
    Whole,
    /// The rest waits until the socket takes it.
    Partly,
    /// Too much is waiting.
    Full,
    /// The connection is gone.
    Broken,
}

impl Link {
    pub(super) fn new(stream: Arc<TcpStream>, sealer: Sealer, out: Outgoing) -> Self {
        Self {
            stream,
            sealer,
            out,
        }
    }

    pub(super) fn send(&mut self, message: &[u8]) -> Sent {
        let frame_bytes = 4 + FRAME_OVERHEAD_BYTES + message.len();
        if self.out.waiting_bytes() + frame_bytes > OUT_BYTES_MAX {
            return Sent::Full;
        }
        self.sealer.seal(Kind::Message, message, self.out.tail());
        match self.flush() {
            false => Sent::Broken,
            true if self.has_waiting() => Sent::Partly,
            true => Sent::Whole,
        }
    }

    pub(super) fn has_waiting(&self) -> bool {
        self.out.waiting_bytes() > 0
    }

    /// Whether the connection is still good. If not, the mesh's thread finds its end when it reads.
    pub(super) fn flush(&mut self) -> bool {
        let flushed = self.out.flush(&self.stream).is_ok();
        if !flushed {
            self.out = Outgoing::default();
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        flushed
    }
}
