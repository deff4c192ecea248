//! Waiting for sockets, for the waker, and for what is due.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::super::shared::Link;
use super::Io;

/// What `ppoll` found.
pub(super) struct Ready {
    pub(super) listener: bool,
    pub(super) pending: Vec<bool>,
    pub(super) peers: Vec<Readiness>,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Readiness {
    pub(super) read: bool,
    pub(super) write: bool,
}

impl Io {
    /// Sleeps until there is something to do.
    pub(super) fn wait(&self, paused: bool) -> Option<Ready> {
        let read = if paused {
            PollFlags::empty()
        } else {
            PollFlags::POLLIN
        };
        let mut fds = vec![PollFd::new(self.shared.waker().as_fd(), PollFlags::POLLIN)];
        let accepts = !paused && self.accept_from <= Instant::now();
        if accepts {
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        let first_peer = fds.len();
        let mut polled = Vec::with_capacity(self.peers.len());
        for (at, peer) in self.peers.iter().enumerate() {
            let Some(up) = &peer.up else { continue };
            let link = self.shared.link(peer.id);
            let waiting = link.is_some_and(|l| l.as_ref().is_some_and(Link::has_waiting));
            let mut events = read;
            events.set(PollFlags::POLLOUT, waiting);
            // The end of a connection cannot be left out of what is asked for; the connection can.
            if !events.is_empty() {
                fds.push(PollFd::new(up.stream.as_fd(), events));
                polled.push(at);
            }
        }
        let first_pending = fds.len();
        if !paused {
            for pending in &self.pending {
                let mut events = PollFlags::empty();
                events.set(PollFlags::POLLIN, pending.wants_to_read());
                events.set(PollFlags::POLLOUT, pending.wants_to_write());
                fds.push(PollFd::new(pending.stream.as_fd(), events));
            }
        }
        let timeout = self.next_due(paused).map(TimeSpec::from_duration);
        // An interruption by a signal, or no memory for the moment: look again.
        ppoll(&mut fds, timeout, None).ok()?;

        let flags: Vec<PollFlags> = fds
            .iter()
            .map(|fd| fd.revents().unwrap_or(PollFlags::empty()))
            .collect();
        if !flags[0].is_empty() {
            // It may have been read empty already; then there is nothing to do.
            let _ = self.shared.waker().read();
        }
        let mut peers = vec![Readiness::default(); self.peers.len()];
        for (&at, flags) in polled.iter().zip(&flags[first_peer..first_pending]) {
            let ended = PollFlags::POLLHUP | PollFlags::POLLERR;
            peers[at] = Readiness {
                read: flags.intersects(PollFlags::POLLIN | ended),
                write: flags.intersects(PollFlags::POLLOUT | ended),
            };
        }
        Some(Ready {
            listener: accepts && !flags[1].is_empty(),
            pending: flags[first_pending..]
                .iter()
                .map(|f| !f.is_empty())
                .collect(),
            peers,
        })
    }

    /// The time to the next thing that does not come from a socket.
    fn next_due(&self, paused: bool) -> Option<Duration> {
        let now = Instant::now();
        let deadlines = self.pending.iter().map(|pending| pending.deadline);
        let dials = self
            .peers
            .iter()
            .filter_map(|peer| peer.dial.as_ref()?.next);
        let rest = [self.accept_from].into_iter().filter(|&at| at > now);
        let due = match paused {
            true => deadlines.min(),
            false => deadlines.chain(dials).chain(rest).min(),
        };
        due.map(|at| at.saturating_duration_since(now))
    }
}
