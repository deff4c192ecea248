//! The control plane of replicas in one process: queues.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mu_protocol::ids::ReplicaId;
use mu_protocol::limits::MAX_REPLICAS;

use super::control::{ControlEvent, ControlPlane};

type Inbox = VecDeque<ControlEvent>;

/// Connects the replicas of one process with each other. Clones are the same hub.
#[derive(Clone, Debug, Default)]
pub struct Hub(Arc<Mutex<[Option<Inbox>; MAX_REPLICAS]>>);

impl Hub {
    /// Nobody is connected.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Connects replica `id` with all that are there, until the port is dropped.
    ///
    /// # Panics
    /// If it is connected already.
    #[must_use]
    pub fn join(&self, id: ReplicaId) -> Port {
        let mut inboxes = self.inboxes();
        assert!(
            inboxes[id.index()].is_none(),
            "replica {id} is there already"
        );
        let mut own = Inbox::new();
        for peer in (0..MAX_REPLICAS as u8).filter_map(ReplicaId::new) {
            if let Some(inbox) = &mut inboxes[peer.index()] {
                inbox.push_back(ControlEvent::Up { peer: id });
                own.push_back(ControlEvent::Up { peer });
            }
        }
        inboxes[id.index()] = Some(own);
        Port {
            hub: self.clone(),
            id,
        }
    }

    /// Nothing panics half-way under this lock.
    fn inboxes(&self) -> MutexGuard<'_, [Option<Inbox>; MAX_REPLICAS]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One replica's connection to the others.
#[derive(Debug)]
pub struct Port {
    hub: Hub,
    id: ReplicaId,
}

impl ControlPlane for Port {
    fn send(&mut self, peer: ReplicaId, message: &[u8]) -> bool {
        let mut inboxes = self.hub.inboxes();
        let Some(inbox) = &mut inboxes[peer.index()] else {
            return false;
        };
        inbox.push_back(ControlEvent::Message {
            peer: self.id,
            bytes: message.to_vec(),
        });
        true
    }

    fn poll(&mut self) -> Option<ControlEvent> {
        self.hub.inboxes()[self.id.index()].as_mut()?.pop_front()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let mut inboxes = self.hub.inboxes();
        inboxes[self.id.index()] = None;
        for inbox in inboxes.iter_mut().flatten() {
            inbox.push_back(ControlEvent::Down { peer: self.id });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_see_each_other_come_speak_and_go() {
        let id = |n| ReplicaId::new(n).expect("an id");
        let hub = Hub::new();
        let mut a = hub.join(id(0));
        assert!(!a.send(id(1), b"x"), "nobody is there");
        let mut b = hub.join(id(1));
        assert_eq!(a.poll(), Some(ControlEvent::Up { peer: id(1) }));
        assert_eq!(b.poll(), Some(ControlEvent::Up { peer: id(0) }));
        assert!(a.send(id(1), b"x"));
        let (peer, bytes) = (id(0), b"x".to_vec());
        assert_eq!(b.poll(), Some(ControlEvent::Message { peer, bytes }));
        drop(b);
        assert_eq!(a.poll(), Some(ControlEvent::Down { peer: id(1) }));
        let _again = hub.join(id(1));
        assert_eq!(a.poll(), Some(ControlEvent::Up { peer: id(1) }));
        assert_eq!(a.poll(), None);
    }
}
