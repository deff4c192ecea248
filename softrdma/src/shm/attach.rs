//! Attaching to another context: its socket, its control segment, its lane and its memories, mapped one after another.
//!
//! Mapping and populating a large memory takes milliseconds, and a process that is stopped does not answer at all, so
//! each attachment is made by a thread of its own. The one that asked for it waits, or comes again
//! ([`Options::waits_attached`]).

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::AtomicBool as StdBool;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::Options;
use super::fabric::{Outbound, Shm, address, trusted_peer, unreachable};
use super::raw::{self, Received};
use super::raw_uffd::Uffd;
use super::segment::{self, Writers};
use super::wire::Message;
use crate::error::Error;
use crate::map::PAGE;
use crate::memory::Memory;
use crate::node::{Fabric, MemoryTable, NodeShared, View, lock};
use crate::table::{CTL_BYTES, LANE_BYTES, LAYOUT};

/// One attachment on its way, for whoever waits for it.
#[derive(Default)]
pub(super) struct Attaching {
    /// Whether, or why not; `None` while it is being made.
    ended: Mutex<Option<Result<(), String>>>,
    over: Condvar,
}

/// An attachment that somebody asked for.
pub(super) struct Wanted {
    pub(super) target: u64,
    pub(super) shm: Weak<Shm>,
    pub(super) node: Weak<NodeShared>,
    pub(super) attaching: Arc<Attaching>,
}

impl Attaching {
    /// How it ended; `None` if it has not, and is not to be waited for.
    pub(super) fn end(&self, waits: bool) -> Option<Result<(), String>> {
        let mut ended = lock(&self.ended);
        // It does end: whatever it waits for has a time-out.
        while waits && ended.is_none() {
            ended = self
                .over
                .wait(ended)
                .unwrap_or_else(PoisonError::into_inner);
        }
        ended.clone()
    }

    pub(super) fn has_ended(&self, how: Result<(), Error>) {
        let why = |error| match error {
            Error::NoPeer { why, .. } => why,
            error => error.to_string(),
        };
        *lock(&self.ended) = Some(how.map_err(why));
        self.over.notify_all();
    }
}

impl Wanted {
    pub(super) fn serve(self, id: u64, options: &Options) {
        let closed = || unreachable(self.target, "this context is closed");
        let fabric = self.node.upgrade().map(|me| Arc::downgrade(&me.fabric));
        // Nothing of this context is held meanwhile, so it can be closed.
        let attached = fabric
            .ok_or_else(closed)
            .and_then(|fabric| attach(id, options, self.target, fabric).map(Arc::new));
        self.attaching.has_ended(attached.and_then(|outbound| {
            if let (Some(shm), Some(me)) = (self.shm.upgrade(), self.node.upgrade())
                && shm.keep(&me, &outbound)
            {
                return Ok(());
            }
            say_bye(&outbound);
            Err(closed())
        }));
    }
}

/// Whoever waits hears of it, even if the thread panicked or was never there.
impl Drop for Wanted {
    fn drop(&mut self) {
        if self.attaching.end(false).is_none() {
            let why = "the thread that connects has ended";
            self.attaching.has_ended(Err(unreachable(self.target, why)));
        }
    }
}

/// Connects to a context and maps what it hands over.
fn attach(
    id: u64,
    options: &Options,
    target: u64,
    fabric: Weak<dyn Fabric>,
) -> Result<Outbound, Error> {
    let failed = |what: &'static str| move |e: Errno| unreachable(target, format!("{what}: {e}"));
    let kind = (AddressFamily::Unix, SockType::SeqPacket);
    let socket = socket(kind.0, kind.1, SockFlag::SOCK_CLOEXEC, None).map_err(failed("socket"))?;
    let wait = TimeVal::milliseconds(options.attach_ms.into());
    setsockopt(&socket, sockopt::ReceiveTimeout, &wait).map_err(failed("setsockopt"))?;
    setsockopt(&socket, sockopt::SendTimeout, &wait).map_err(failed("setsockopt"))?;
    connect(
        socket.as_raw_fd(),
        &address(target).map_err(failed("address"))?,
    )
    .map_err(failed(
        "no process of this host (and network namespace) has it open",
    ))?;
    let (_, pidfd) = trusted_peer(&socket).map_err(|why| unreachable(target, why))?;
    raw::send(
        socket.as_fd(),
        Message::Hello {
            layout: LAYOUT,
            node: id,
        },
        &[],
    )
    .map_err(failed("send"))?;

    let (lane_id, memories, ctl, lane, life) = match next(&socket, target)? {
        Received {
            message:
                Message::Welcome {
                    node,
                    lane,
                    memories,
                },
            fds,
        } if node == target && fds.len() >= 2 => {
            let mut fds = fds.into_iter();
            let ctl_file = fds.next().expect("two files");
            let lane_file = fds.next().expect("two files");
            (lane, memories, ctl_file, lane_file, fds.next())
        }
        Received {
            message: Message::Refused { layout },
            ..
        } => {
            let why = format!(
                "it has layout {layout:#x}, this process {LAYOUT:#x}: run the same version in both"
            );
            return Err(unreachable(target, why));
        }
        _ => {
            return Err(unreachable(
                target,
                "it answered with something else than a welcome",
            ));
        }
    };
    let round = |bytes: usize| bytes.next_multiple_of(PAGE);
    let ctl = segment::map(ctl, round(CTL_BYTES), PAGE, Writers::Owner)
        .map_err(failed("control segment"))?;
    let lane =
        segment::map(lane, round(LANE_BYTES), PAGE, Writers::Peers).map_err(failed("lane"))?;
    let ctl = Memory::new(ctl, 0, 0);
    if (ctl.load(0), ctl.load(1)) != (LAYOUT, target) {
        return Err(unreachable(
            target,
            "its control segment is another context's",
        ));
    }
    let view = Arc::new(View {
        target,
        ctl,
        lane: Memory::new(lane, 0, 0),
        lane_id,
        memories: Arc::new(MemoryTable::new()),
        gone: Arc::new(StdBool::new(false)),
        ended: Arc::new(StdBool::new(false)),
        fabric,
    });
    // Without one the target cannot fence this process; it then waits for it or gives up, and says so.
    let uffd = if options.offer_fence {
        Uffd::new().ok()
    } else {
        None
    };
    let outbound = Outbound {
        view,
        socket,
        pidfd,
        life,
        uffd,
        input: Mutex::default(),
        ending: Mutex::default(),
    };
    // Whoever is told nothing keeps a place for this process until it ends.
    take_all(&outbound, memories).inspect_err(|_| say_bye(&outbound))?;
    Ok(outbound)
}

/// Lets the target fence this process, and maps what it has.
fn take_all(outbound: &Outbound, memories: u64) -> Result<(), Error> {
    let target = outbound.view.target;
    let failed = |what: &'static str| move |e: Errno| unreachable(target, format!("{what}: {e}"));
    if let Some(uffd) = &outbound.uffd {
        raw::send(outbound.socket.as_fd(), Message::Fence, &[uffd.as_fd()])
            .map_err(failed("send"))?;
    }
    for _ in 0..memories {
        let received = next(&outbound.socket, target)?;
        let memory = outbound.take(received).map_err(failed("memory"))?;
        outbound.offer(memory).map_err(failed("memory"))?;
    }
    Ok(())
}

/// Nothing was written over this connection, and nothing will be.
fn say_bye(outbound: &Outbound) {
    // If it cannot be said, the end of this process says it.
    let _ = raw::send(outbound.socket.as_fd(), Message::Bye, &[]);
}

fn next(socket: &OwnedFd, target: u64) -> Result<Received, Error> {
    match raw::receive(socket.as_fd(), true) {
        Ok(Some(received)) => Ok(received),
        Ok(None) => Err(unreachable(
            target,
            "it closed the connection, or speaks another version",
        )),
        Err(Errno::EAGAIN) => Err(unreachable(
            target,
            "no answer in time; is the process stopped?",
        )),
        Err(e) => Err(unreachable(target, format!("receive: {e}"))),
    }
}
