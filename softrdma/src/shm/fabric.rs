//! Attaching, announcing, watching and fencing: the control side of the shared-memory backend. None of it is on the
//! way of a request, except for the first one to memory that was announced after attaching.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool as StdBool;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, getsockopt, listen,
    socket, sockopt,
};

use super::Options;
use super::attach::{Attaching, Wanted};
use super::raw::{self, Received};
use super::raw_life::lifeline;
use super::raw_uffd::Uffd;
use super::segment::{self, Writers};
use super::wire::Message;
use crate::copy;
use crate::error::Error;
use crate::fault::Placement;
use crate::limits::MAX_MEMORIES;
use crate::map::Map;
use crate::memory::Memory;
use crate::node::{Fabric, Lane, Node, NodeShared, Stalled, View, lock, random};
use crate::sync::{Ordering, spin_hint, yield_now};
use crate::table::{CTL_BYTES, LANE_BYTES, LAYOUT, Mark, writer_row};

/// Connections that have not said who they are yet.
const MAX_GREETING: usize = 64;
/// Pure spinning before a revocation gives its core away: a chunk takes well under a microsecond.
const SPIN: Duration = Duration::from_micros(5);
/// How long what is left of a peer that died or closed its connection is kept: longer than a keeper lives
/// (`raw_keeper.rs`).
const LINGER: Duration = Duration::from_millis(50);

pub(super) fn open(options: &Options) -> Result<Node, Error> {
    if options.placement == Placement::Late {
        let what = "late visibility is for contexts of one process".into();
        return Err(Error::Invalid {
            verb: "ibv_open_device",
            what,
        });
    }
    let id = random()?;
    let (ctl_file, ctl) = segment::make(CTL_BYTES, Writers::Owner)?;
    let system = |call| {
        move |source| Error::System {
            verb: "ibv_open_device",
            call,
            source,
            hint: "",
        }
    };
    let kind = (AddressFamily::Unix, SockType::SeqPacket);
    let listener = socket(
        kind.0,
        kind.1,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )
    .map_err(system("socket"))?;
    bind(listener.as_raw_fd(), &address(id).map_err(system("bind"))?).map_err(system("bind"))?;
    listen(&listener, Backlog::MAXCONN).map_err(system("listen"))?;
    raw::register_barrier();
    let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(system("eventfd"))?;
    let shm = Arc::new(Shm {
        id,
        options: options.clone(),
        listener,
        wake,
        stop: StdBool::new(false),
        ctl_file,
        node: OnceLock::new(),
        this: OnceLock::new(),
        files: Mutex::default(),
        lane_files: Mutex::default(),
        greeting: Mutex::default(),
        inbound: Mutex::default(),
        outbound: Mutex::default(),
        attaching: Mutex::default(),
        wanted: Mutex::default(),
    });
    let node = Node::new(
        id,
        Memory::new(ctl, 0, 0),
        Arc::clone(&shm) as _,
        options.placement,
    );
    let _ = shm.node.set(Arc::downgrade(&node.0));
    let _ = shm.this.set(Arc::downgrade(&shm));
    std::thread::Builder::new()
        .name("mu-shm-watch".into())
        .spawn(move || shm.watch())
        .map_err(|e| Error::System {
            verb: "ibv_open_device",
            call: "clone",
            source: Errno::from_raw(e.raw_os_error().unwrap_or(0)),
            hint: " (too many threads: see ulimit -u)",
        })?;
    Ok(node)
}

/// The socket of a context, in the abstract name space of the network namespace.
pub(super) fn address(node: u64) -> Result<UnixAddr, Errno> {
    UnixAddr::new_abstract(format!("mu-shm-{node:016x}").as_bytes())
}

pub(super) struct Shm {
    id: u64,
    options: Options,
    listener: OwnedFd,
    wake: EventFd,
    stop: StdBool,
    ctl_file: OwnedFd,
    node: OnceLock<Weak<NodeShared>>,
    this: OnceLock<Weak<Self>>,
    /// Own memories: their files, by address until they have a number. Held while announcements are sent, so that a
    /// peer that connects meanwhile misses none and gets none twice.
    files: Mutex<Vec<File>>,
    /// Files of lanes that nobody has yet, by lane.
    lane_files: Mutex<HashMap<u64, OwnedFd>>,
    greeting: Mutex<Vec<Arc<OwnedFd>>>,
    inbound: Mutex<Vec<Arc<Inbound>>>,
    outbound: Mutex<Vec<Arc<Outbound>>>,
    /// Attachments that are being made or have failed, by target: one at a time, so that two queue pairs do not make
    /// two views.
    attaching: Mutex<HashMap<u64, Arc<Attaching>>>,
    /// Those that the watcher has to begin. It does, and not who asks, since a thread inherits where its maker may run.
    wanted: Mutex<Vec<Wanted>>,
}

struct File {
    addr: u64,
    bytes: u64,
    page_bytes: u64,
    id: Option<u32>,
    fd: OwnedFd,
}

/// A peer that may write to this context.
struct Inbound {
    socket: OwnedFd,
    /// Its process; the number is good as long as the pidfd says that it has not ended.
    pid: i32,
    pidfd: OwnedFd,
    lane: Arc<Lane>,
    state: Mutex<InboundState>,
}

#[derive(Default)]
struct InboundState {
    uffd: Option<Uffd>,
    /// Where it mapped which memory: number, address, bytes (0 if it cannot be protected).
    mapped: Vec<(u32, u64, u64)>,
    closed: bool,
    told_fenced: bool,
    /// Since when nothing of it can be stored any more.
    over: Option<Instant>,
}

/// A peer that this context may write to.
pub(super) struct Outbound {
    pub(super) view: Arc<View>,
    pub(super) socket: OwnedFd,
    pub(super) pidfd: OwnedFd,
    /// Ends when its process begins to die, which is earlier.
    pub(super) life: Option<OwnedFd>,
    pub(super) uffd: Option<Uffd>,
    /// Held while messages are taken in.
    pub(super) input: Mutex<()>,
    /// Since when its process has been dying, or its end of the connection closed. Nothing is requested of it any more;
    /// its memory is given back after a while.
    pub(super) ending: Mutex<Option<Instant>>,
}

impl Fabric for Shm {
    fn alloc(&self, bytes: usize) -> Result<Map, Error> {
        let (fd, map) = segment::make(bytes, Writers::Peers)?;
        lock(&self.files).push(File {
            addr: map.words().as_ptr().addr() as u64,
            bytes: size_of_val(map.words()) as u64,
            page_bytes: map.info().page_bytes as u64,
            id: None,
            fd,
        });
        Ok(map)
    }

    fn check_exchange(&self) -> Result<(), Error> {
        Ok(())
    }

    fn exchange(&self, memory: &Memory) -> Result<(), Error> {
        let mut files = lock(&self.files);
        let id = memory.id();
        let file = files
            .iter_mut()
            .find(|file| file.id == Some(id))
            .ok_or_else(|| Error::Invalid {
                verb: "orphan",
                what: format!("memory {id} has no file"),
            })?;
        let (fd, copy) = segment::make_like(memory.len(), memory.pages().page_bytes)?;
        copy::words_to_words(copy.words(), 0, memory.words(), 0, memory.len());
        let hint = "";
        memory.exchange(&fd).map_err(|source| Error::System {
            verb: "orphan",
            call: "mmap",
            source,
            hint,
        })?;
        (file.fd, file.id) = (fd, None);
        Ok(())
    }

    fn announce(&self, _: &NodeShared, memory: &Memory) {
        let mut files = lock(&self.files);
        let addr = memory.words().as_ptr().addr() as u64;
        let Some(file) = files
            .iter_mut()
            .find(|file| file.addr == addr && file.id.is_none())
        else {
            return;
        };
        file.id = Some(memory.id());
        for peer in lock(&self.inbound).iter() {
            peer.announce(file);
        }
    }

    fn attach(&self, me: &Arc<NodeShared>, target: u64) -> Result<Arc<View>, Error> {
        let mut all = lock(&self.attaching);
        if let Some(view) = self.working_view(me, target) {
            // An attempt that made it is over, whoever asked for it.
            all.remove(&target);
            return Ok(view);
        }
        let attaching = Arc::clone(all.entry(target).or_insert_with(|| {
            let attaching = Arc::default();
            lock(&self.wanted).push(Wanted {
                target,
                shm: self.this.get().cloned().unwrap_or_default(),
                node: Arc::downgrade(me),
                attaching: Arc::clone(&attaching),
            });
            self.wake_watcher();
            attaching
        }));
        drop(all);
        let Some(ended) = attaching.end(self.options.waits_attached) else {
            return Err(unreachable(target, "it is being connected; try again"));
        };
        // The next one who asks begins anew, unless there is another attempt already.
        let mut all = lock(&self.attaching);
        if all.get(&target).is_some_and(|a| Arc::ptr_eq(a, &attaching)) {
            all.remove(&target);
        }
        ended.map_err(|why| unreachable(target, why))?;
        self.working_view(me, target)
            .ok_or_else(|| unreachable(target, "it has gone again"))
    }

    fn lane(&self, me: &NodeShared, peer: u64) -> Result<Arc<Lane>, Error> {
        me.lane(peer, || self.make_lane())
    }

    fn catch_up(&self, view: &View) {
        let found = lock(&self.outbound)
            .iter()
            .find(|o| std::ptr::eq(Arc::as_ptr(&o.view), view))
            .cloned();
        if let Some(outbound) = found {
            outbound.drain();
        }
    }

    fn stalled(&self, lane: &Lane, slot: usize, waited: Duration) -> Stalled {
        if lane.peer_gone.load(Ordering::Acquire) || lane.is_fenced(slot) {
            return Stalled::Over;
        }
        if waited < SPIN {
            spin_hint();
            return Stalled::Wait;
        }
        let found = lock(&self.inbound)
            .iter()
            .find(|i| std::ptr::eq(Arc::as_ptr(&i.lane), lane))
            .cloned();
        // Waiting helps against a writer that is only preempted: it may need this very core. A stopped one it does not
        // help against, and giving the core away can cost a whole time slice.
        let stopped = found
            .as_ref()
            .is_some_and(|writer| raw::is_stopped(writer.pid));
        if !stopped {
            yield_now();
            if waited < self.options.stall() {
                return Stalled::Wait;
            }
        }
        match found {
            Some(inbound) => match self.fence(&inbound, slot) {
                Stalled::Wait if waited >= self.options.give_up() => Stalled::GiveUp,
                other => other,
            },
            // The watcher takes a dead peer off the list long after it has marked its lane. Otherwise nobody has this
            // lane, so nobody writes under it, and the word is odd by mistake or malice.
            None if lane.peer_gone.load(Ordering::Acquire) => Stalled::Over,
            None => Stalled::GiveUp,
        }
    }

    fn settle(&self, _: u64, _: u32) {
        // Late visibility is not offered across processes.
    }

    fn close(&self, _: &NodeShared) {
        self.stop.store(true, Ordering::Release);
        for outbound in lock(&self.outbound).drain(..) {
            // All queue pairs are gone, so nothing is under way. If it cannot be said, the pidfd will say it later.
            let _ = raw::send(outbound.socket.as_fd(), Message::Bye, &[]);
        }
        self.wake_watcher();
    }
}

/// What attaching needs to say when it fails.
pub(super) fn unreachable(node: u64, why: impl Into<String>) -> Error {
    Error::NoPeer {
        node,
        why: why.into(),
    }
}

impl Shm {
    /// The view of a target that works.
    fn working_view(&self, me: &NodeShared, target: u64) -> Option<Arc<View>> {
        let known = lock(&me.views).get(&target).cloned()?;
        // What the target has already said counts, even if the watcher has not come to it: it may have fenced us.
        self.catch_up(&known);
        (!known.gone.load(Ordering::Acquire)).then_some(known)
    }

    /// Begins to attach to those that somebody wants.
    fn begin_attaching(&self) {
        let all = std::mem::take(&mut *lock(&self.wanted));
        for wanted in all {
            let (id, options) = (self.id, self.options.clone());
            let attaching = Arc::clone(&wanted.attaching);
            let target = wanted.target;
            let begun = std::thread::Builder::new()
                .name("mu-shm-attach".into())
                .spawn(move || wanted.serve(id, &options));
            if let Err(error) = begun {
                attaching.has_ended(Err(unreachable(target, format!("a thread: {error}"))));
            }
        }
    }

    /// Takes a new attachment in. False if this context is being closed.
    pub(super) fn keep(&self, me: &NodeShared, outbound: &Arc<Outbound>) -> bool {
        let view = Arc::clone(&outbound.view);
        {
            // Closing says so before it takes this lock.
            let mut all = lock(&self.outbound);
            if self.stop.load(Ordering::Acquire) {
                return false;
            }
            all.push(Arc::clone(outbound));
        }
        lock(&me.views).insert(view.target, view);
        self.wake_watcher();
        true
    }

    fn wake_watcher(&self) {
        // Fails only if the counter is full, in which case the watcher is awake anyway.
        let _ = self.wake.write(1);
    }

    fn make_lane(&self) -> Result<Lane, Error> {
        let (fd, map) = segment::make(LANE_BYTES, Writers::Peers)?;
        let lane = Lane::new(Memory::new(map, 0, 0), Arc::new(StdBool::new(false)));
        lock(&self.lane_files).insert(lane.id, fd);
        Ok(lane)
    }

    // ------------------------------------------------------------------ target

    /// Protects what the writer behind writer row `slot` is storing into, in that writer's own mapping.
    ///
    /// The peer is told first, and what it says is read afterwards. It reads its socket empty after it has announced
    /// a new mapping and before it uses it, so either it finds out that it was fenced, or this side knows of the
    /// mapping.
    fn fence(&self, peer: &Inbound, slot: usize) -> Stalled {
        if raw::has_ended(&peer.pidfd) {
            peer.lane.peer_gone.store(true, Ordering::Release);
        }
        if peer.lane.peer_gone.load(Ordering::Acquire) {
            return Stalled::Over;
        }
        let Some(node) = self.node.get().and_then(Weak::upgrade) else {
            return Stalled::Wait;
        };
        let seq = peer.lane.seq(slot).load(Ordering::Acquire);
        let mark = writer_row(peer.lane.memory.words(), slot).marked();
        if let Some(mark) = mark {
            let orphaned = node
                .memories
                .get(mark.memory)
                .is_some_and(|m| m.id() != mark.memory);
            if !mark.stores || orphaned {
                // It reads, or stores into pages that are nobody's any more. Nothing lands.
                return Stalled::Over;
            }
        }
        if !peer.tell_fenced() {
            return Stalled::Wait;
        }
        peer.drain();
        let done = protect(&node, &lock(&peer.state), mark);
        match done {
            Ok(()) if peer.lane.seq(slot).load(Ordering::Acquire) == seq => {
                peer.lane.fenced_at[slot].store(seq, Ordering::Release);
                Stalled::Over
            }
            // It has gone on meanwhile, which the caller sees.
            Ok(()) => Stalled::Wait,
            // Its address space is gone, hence all its threads.
            Err(Errno::ESRCH) => {
                peer.lane.peer_gone.store(true, Ordering::Release);
                Stalled::Over
            }
            // Its mappings are just being changed, or cannot be protected: try again until giving up.
            Err(_) => Stalled::Wait,
        }
    }

    /// Hands a context of another process what it needs.
    fn welcome(&self, socket: &Arc<OwnedFd>, layout: u64, peer: u64) -> Option<()> {
        let node = self.node.get()?.upgrade()?;
        if layout != LAYOUT {
            let _ = raw::send(socket.as_fd(), Message::Refused { layout: LAYOUT }, &[]);
            return None;
        }
        let (pid, pidfd) = trusted_peer(socket).ok()?;
        let lane = node.fresh_lane(peer, || self.make_lane()).ok()?;
        let lane_file = lock(&self.lane_files).remove(&lane.id)?;
        let socket = socket.try_clone().ok()?;
        let files = lock(&self.files);
        let memories = files.iter().filter(|file| file.id.is_some());
        let welcome = Message::Welcome {
            node: self.id,
            lane: lane.id,
            memories: memories.clone().count() as u64,
        };
        let mut fds = vec![self.ctl_file.as_fd(), lane_file.as_fd()];
        fds.extend(lifeline().map(AsFd::as_fd));
        raw::send(socket.as_fd(), welcome, &fds).ok()?;
        let inbound = Arc::new(Inbound {
            socket,
            pid,
            pidfd,
            lane,
            state: Mutex::default(),
        });
        memories.for_each(|file| inbound.announce(file));
        lock(&self.inbound).push(inbound);
        Some(())
    }

    // ------------------------------------------------------------------ watcher

    /// Lets peers in, takes their messages, and sees them die. Ends when the context is closed.
    fn watch(&self) {
        while !self.stop.load(Ordering::Acquire) {
            let greeting = lock(&self.greeting).clone();
            let inbound = lock(&self.inbound).clone();
            let outbound = lock(&self.outbound).clone();
            let mut fds = vec![self.wake.as_fd(), self.listener.as_fd()];
            fds.extend(greeting.iter().map(|socket| socket.as_fd()));
            for peer in inbound.iter().filter(|peer| !peer.is_over()) {
                fds.push(peer.pidfd.as_fd());
                if !lock(&peer.state).closed {
                    fds.push(peer.socket.as_fd());
                }
            }
            for peer in &outbound {
                // Of one that is dying nothing more is heard, but for the kernel's word that it has ended, which may
                // come after the end of its socket.
                if !peer.is_ending() {
                    fds.push(peer.socket.as_fd());
                }
                if !peer.is_ended() {
                    fds.push(peer.pidfd.as_fd());
                    fds.extend(peer.life.as_ref().map(AsFd::as_fd));
                }
            }
            let lingers = outbound.iter().any(|peer| peer.is_ending())
                || inbound.iter().any(|peer| peer.is_over());
            wait_for_any(&fds, lingers.then_some(LINGER));
            // A clear of the eventfd that fails found it clear.
            let _ = self.wake.read();
            self.begin_attaching();
            self.accept();
            self.greet();
            lock(&self.inbound).retain(|peer| peer.is_alive());
            lock(&self.outbound).retain(|peer| peer.is_alive());
        }
    }

    fn accept(&self) {
        loop {
            match accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                Ok(fd) => {
                    let socket = raw::own(fd);
                    // Others of this host may find the socket; they get nothing and take nobody's place.
                    if is_same_user(&socket).is_ok() {
                        let mut greeting = lock(&self.greeting);
                        if greeting.len() == MAX_GREETING {
                            greeting.remove(0);
                        }
                        greeting.push(Arc::new(socket));
                    }
                }
                // No descriptors left: the listener stays readable, so look again only after a while.
                Err(Errno::EMFILE | Errno::ENFILE) => {
                    return std::thread::sleep(Duration::from_millis(10));
                }
                Err(_) => return,
            }
        }
    }

    /// Answers those that have said who they are; drops those that said anything else or went away.
    fn greet(&self) {
        let waiting = lock(&self.greeting).clone();
        for socket in waiting {
            let hello = match raw::receive(socket.as_fd(), false) {
                Err(Errno::EAGAIN) => continue,
                Ok(Some(Received {
                    message: Message::Hello { layout, node },
                    ..
                })) => Some((layout, node)),
                _ => None,
            };
            lock(&self.greeting).retain(|other| !Arc::ptr_eq(other, &socket));
            // If it is refused or gone, closing the socket is the answer.
            let _ = hello.and_then(|(layout, node)| self.welcome(&socket, layout, node));
        }
    }
}

/// Write-protects what a writer is storing into, in its own mappings: the pages of the copy it has marked, or, if it
/// has not said yet what it copies, all that it mapped.
fn protect(node: &NodeShared, state: &InboundState, mark: Option<Mark>) -> Result<(), Errno> {
    let uffd = state.uffd.as_ref().ok_or(Errno::ENOTSUP)?;
    let at_risk = |id: u32| mark.is_none_or(|mark| mark.memory == id);
    let mut protected = 0;
    for &(id, base, bytes) in state.mapped.iter().filter(|(id, ..)| at_risk(*id)) {
        let memory = node.memories.get(id).ok_or(Errno::EINVAL)?;
        // 0 says that it cannot be protected; anything else but its length is a lie.
        if bytes != memory.len() as u64 {
            return Err(Errno::EINVAL);
        }
        let page = memory.pages().page_bytes as u64;
        let (from, to) = match mark {
            Some(mark) => {
                let end = (mark.at as u64).saturating_add(mark.len as u64).min(bytes);
                (
                    (mark.at as u64).min(bytes) / page * page,
                    end.next_multiple_of(page),
                )
            }
            None => (0, bytes),
        };
        uffd.write_protect(base + from, (to - from) as usize)?;
        protected += 1;
    }
    if protected == 0 {
        Err(Errno::EINVAL)
    } else {
        Ok(())
    }
}

/// The process at the other end, by number and pidfd, if it runs under the same user.
pub(super) fn trusted_peer(socket: &impl AsFd) -> Result<(i32, OwnedFd), String> {
    let pid = is_same_user(socket)?;
    raw::peer_pidfd(socket.as_fd(), pid)
        .map(|pidfd| (pid, pidfd))
        .map_err(|e| format!("pidfd of process {pid}: {e}"))
}

/// The number of the process at the other end, if it runs under the same user.
fn is_same_user(socket: &impl AsFd) -> Result<i32, String> {
    let who = getsockopt(&socket.as_fd(), sockopt::PeerCredentials)
        .map_err(|e| format!("SO_PEERCRED: {e}"))?;
    let me = nix::unistd::geteuid().as_raw();
    if who.uid() != me {
        return Err(format!(
            "it runs under user {}, this process under {me}; both must be the same",
            who.uid()
        ));
    }
    Ok(who.pid())
}

fn wait_for_any(fds: &[BorrowedFd<'_>], most: Option<Duration>) {
    let mut fds: Vec<PollFd<'_>> = fds
        .iter()
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    // An interruption or a failure only makes the watcher look at everybody once more.
    let most = most.and_then(|most| PollTimeout::try_from(most).ok());
    let _ = poll(&mut fds, most.unwrap_or(PollTimeout::NONE));
}

impl Inbound {
    fn announce(&self, file: &File) {
        let Some(id) = file.id else { return };
        let message = Message::Memory {
            id,
            bytes: file.bytes,
            page_bytes: file.page_bytes,
        };
        if raw::send(self.socket.as_fd(), message, &[file.fd.as_fd()]).is_err() {
            // It does not read what it is told: without this memory it could not be told apart from one that has it.
            self.hang_up();
        }
    }

    /// Tells it, once, that it was fenced; says whether it can be fenced at all. Nothing is granted over its lane
    /// again.
    fn tell_fenced(&self) -> bool {
        self.drain();
        let mut state = lock(&self.state);
        if state.uffd.is_none() {
            return false;
        }
        if !state.told_fenced {
            state.told_fenced = true;
            self.lane.fenced.store(true, Ordering::Release);
            if raw::send(self.socket.as_fd(), Message::Fenced, &[]).is_err() {
                // It does not read. The end of the connection tells it the same when it does.
                self.hang_up();
            }
        }
        true
    }

    fn hang_up(&self) {
        // Fails only if the peer has done it already.
        let both = nix::sys::socket::Shutdown::Both;
        let _ = nix::sys::socket::shutdown(self.socket.as_raw_fd(), both);
    }

    /// Takes in what it said.
    fn drain(&self) {
        let mut state = lock(&self.state);
        while !state.closed {
            match raw::receive(self.socket.as_fd(), false) {
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Ok(Some(Received {
                    message: Message::Fence,
                    mut fds,
                })) if state.uffd.is_none() && fds.len() == 1 => {
                    state.uffd = fds.pop().map(Uffd::from_peer);
                }
                Ok(Some(Received {
                    message: Message::Mapped { id, base, bytes },
                    ..
                })) if state.mapped.len() < MAX_MEMORIES && base.checked_add(bytes).is_some() => {
                    state.mapped.push((id, base, bytes));
                }
                Ok(Some(Received {
                    message: Message::Bye,
                    ..
                })) => {
                    self.lane.peer_gone.store(true, Ordering::Release);
                    state.closed = true;
                }
                // The end without a farewell, or nonsense: whether it still stores, its pidfd will say. It is told
                // that the conversation is over, so that it maps nothing more.
                _ => {
                    state.closed = true;
                    self.hang_up();
                }
            }
        }
    }

    /// Whether it may still write, or has only just ended. To close its userfaultfd the kernel goes through all that it
    /// had mapped, as long as that is still there (`raw_keeper.rs`), so that waits as in [`Outbound::end`].
    fn is_alive(&self) -> bool {
        self.drain();
        if raw::has_ended(&self.pidfd) {
            self.lane.peer_gone.store(true, Ordering::Release);
        }
        if !self.is_over() {
            return true;
        }
        let since = *lock(&self.state).over.get_or_insert_with(Instant::now);
        since.elapsed() < LINGER
    }

    /// Whether nothing of it can be stored any more.
    fn is_over(&self) -> bool {
        self.lane.peer_gone.load(Ordering::Acquire)
    }
}

impl Outbound {
    /// Maps an announced memory and lets the target fence that mapping. No request uses it yet.
    pub(super) fn take(&self, received: Received) -> Result<Memory, Errno> {
        let Received {
            message:
                Message::Memory {
                    id,
                    bytes,
                    page_bytes,
                },
            mut fds,
        } = received
        else {
            return Err(Errno::EPROTO);
        };
        let fd = fds.pop().ok_or(Errno::EPROTO)?;
        let bytes = usize::try_from(bytes).map_err(|_| Errno::EFBIG)?;
        let page_bytes = usize::try_from(page_bytes).map_err(|_| Errno::EINVAL)?;
        let map = segment::map(fd, bytes, page_bytes, Writers::Peers)?;
        let base = map.words().as_ptr().expose_provenance() as u64;
        if let Some(uffd) = &self.uffd {
            // Said before any request can use it: what the target does not know of is not written.
            let bytes = if uffd.register(base, bytes).is_ok() {
                bytes as u64
            } else {
                0
            };
            let message = Message::Mapped { id, base, bytes };
            raw::send(self.socket.as_fd(), message, &[])?;
        }
        Ok(Memory::new(map, self.view.target, id))
    }

    /// Lets requests use a memory.
    pub(super) fn offer(&self, memory: Memory) -> Result<(), Errno> {
        let id = memory.id();
        match self.view.memories.set(id, memory) {
            true => Ok(()),
            false => Err(Errno::EPROTO),
        }
    }

    /// Takes in what the target said; lets go of the view if it fenced this process, closed, or talks nonsense. New
    /// memory is for use once the socket is empty: a request that is stopped in the middle, and finds the memory only
    /// when it goes on, may have been fenced before the target knew of this mapping.
    fn drain(&self) {
        let _one = lock(&self.input);
        let mut taken = Vec::new();
        while !self.view.gone.load(Ordering::Acquire) {
            match raw::receive(self.socket.as_fd(), false) {
                Err(Errno::EAGAIN) => {
                    if taken.drain(..).any(|memory| self.offer(memory).is_err()) {
                        self.let_go();
                    }
                    break;
                }
                Err(Errno::EINTR) => {}
                Ok(Some(received)) if matches!(received.message, Message::Memory { .. }) => {
                    match self.take(received) {
                        Ok(memory) => taken.push(memory),
                        Err(_) => self.let_go(),
                    }
                }
                Ok(None) | Err(_) => self.end(),
                Ok(Some(_)) => self.let_go(),
            }
        }
    }

    /// Whether there is anything left to do with it.
    fn is_alive(&self) -> bool {
        self.drain();
        if self.has_ended() {
            self.end();
        }
        let ending = *lock(&self.ending);
        if ending.is_some_and(|since| since.elapsed() >= LINGER) {
            self.let_go();
            return false;
        }
        ending.is_some() || !self.view.gone.load(Ordering::Acquire)
    }

    /// Whether its process has ended, or is about to.
    fn has_ended(&self) -> bool {
        self.life.as_ref().is_some_and(raw::has_ended) || raw::has_ended(&self.pidfd)
    }

    /// All requests fail from now on. Giving the memory back takes milliseconds of a processor, which those need that
    /// have to replace the target, so it waits.
    fn end(&self) {
        if self.has_ended() {
            self.view.ended.store(true, Ordering::Release);
        }
        self.view.gone.store(true, Ordering::SeqCst);
        lock(&self.ending).get_or_insert_with(Instant::now);
    }

    /// Its process is known to have ended: the kernel has said so.
    fn is_ended(&self) -> bool {
        self.view.ended.load(Ordering::Acquire)
    }

    /// Its end is seen, but not over.
    fn is_ending(&self) -> bool {
        lock(&self.ending).is_some()
    }

    /// Ends the view. The flag comes first, then a barrier in every thread of the process, then the exchange: a store
    /// made before the barrier landed in the target's pages, and a request whose last store came after it finds the
    /// flag. So no request that stored into the private pages reports success. Stores blocked by a fence wake up into
    /// those pages.
    fn let_go(&self) {
        self.view.gone.store(true, Ordering::SeqCst);
        raw::barrier_in_all_threads();
        let mut detached = true;
        for memory in self.view.memories.iter() {
            if memory.detach().is_err() {
                // Without the exchange a fenced store must stay blocked: waking it would let it try again, which the
                // protection stops again, so it is left where it is.
                detached = false;
                continue;
            }
            if let Some(uffd) = &self.uffd {
                let _ = uffd.wake(memory.words().as_ptr().addr() as u64, memory.len());
            }
        }
        if detached {
            // The target may forget this connection: nothing of it lands any more. If it cannot be told, it waits for
            // the end of this process.
            let _ = raw::send(self.socket.as_fd(), Message::Bye, &[]);
        }
    }
}
