//! What the mesh's thread knows of one other member.

use std::collections::VecDeque;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::frame::Reader;
use super::limits::{BACKOFF_MAX, BACKOFF_MIN, SUPERSEDED_MAX};
use super::session::Opener;

pub(super) struct Peer {
    pub(super) id: u8,
    pub(super) up: Option<Established>,
    /// Where it is to be dialled, if that is this side's part.
    pub(super) dial: Option<Dial>,
    incarnations: Incarnations,
}

/// The receiving direction of a connection that is up.
pub(super) struct Established {
    pub(super) stream: Arc<TcpStream>,
    pub(super) reader: Reader,
    pub(super) opener: Opener,
    pub(super) since: Instant,
}

impl Drop for Established {
    fn drop(&mut self) {
        // A thread that sends may hold the stream a moment longer.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Peer {
    pub(super) fn new(id: u8, dial: Option<SocketAddr>, now: Instant) -> Self {
        Self {
            id,
            up: None,
            dial: dial.map(|address| Dial {
                address,
                next: Some(now),
                backoff: BACKOFF_MIN,
            }),
            incarnations: Incarnations::default(),
        }
    }

    pub(super) fn is_superseded(&self, incarnation: u64) -> bool {
        self.incarnations.former.contains(&incarnation)
    }

    /// It came up.
    pub(super) fn establish(&mut self, up: Established, incarnation: u64) {
        self.up = Some(up);
        self.incarnations.replace(incarnation);
    }
}

/// The incarnation that was up last, and those before it. The oldest are forgotten: they would have to come back after
/// many restarts.
#[derive(Default)]
struct Incarnations {
    last: Option<u64>,
    former: VecDeque<u64>,
}

impl Incarnations {
    fn replace(&mut self, incarnation: u64) {
        let Some(last) = self.last.replace(incarnation) else {
            return;
        };
        if last != incarnation {
            if self.former.len() == SUPERSEDED_MAX {
                self.former.pop_front();
            }
            self.former.push_back(last);
        }
    }
}

/// When to connect next.
pub(super) struct Dial {
    pub(super) address: SocketAddr,
    /// `None` while it is being dialled or is up.
    pub(super) next: Option<Instant>,
    backoff: Duration,
}

impl Dial {
    /// An attempt failed.
    pub(super) fn retry(&mut self, now: Instant) {
        self.next = Some(now + self.backoff);
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }

    /// A connection was lost that had come up at `since`. One that hardly lasted is like a failed attempt.
    pub(super) fn lost(&mut self, since: Instant, now: Instant) {
        if now.duration_since(since) > BACKOFF_MAX {
            self.backoff = BACKOFF_MIN;
        }
        self.retry(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_grows_to_its_cap_and_starts_again_after_a_lasting_connection() {
        let now = Instant::now();
        let mut peer = Peer::new(1, Some(([127, 0, 0, 1], 1).into()), now);
        let dial = peer.dial.as_mut().unwrap();
        let mut waits = Vec::new();
        for _ in 0..8 {
            dial.retry(now);
            waits.push(dial.next.unwrap().duration_since(now).as_millis());
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 200, 200]);
        dial.lost(now, now + BACKOFF_MAX);
        assert_eq!(dial.next, Some(now + BACKOFF_MAX * 2), "it hardly lasted");
        let later = now + BACKOFF_MAX * 3;
        dial.lost(now, later);
        assert_eq!(dial.next, Some(later + BACKOFF_MIN));
    }

    #[test]
    fn a_former_incarnation_is_remembered_for_a_while() {
        let mut seen = Incarnations::default();
        for incarnation in [7, 7, 8] {
            seen.replace(incarnation);
        }
        assert_eq!(seen.former, [7]);
        for incarnation in 100..200 {
            seen.replace(incarnation);
        }
        assert_eq!(seen.former.len(), SUPERSEDED_MAX);
        assert_eq!(seen.former.back(), Some(&198));
    }
}
