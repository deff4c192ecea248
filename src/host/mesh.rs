//! The control plane between processes: the mesh of TCP connections.

use mu_protocol::ids::ReplicaId;

use super::control::{ControlEvent, ControlPlane};
use super::error::StartError;
use crate::config::Config;
use crate::control::{Event, Mesh, RefusalKind};

/// A [`Mesh`] as a [`ControlPlane`].
pub struct MeshPlane(Mesh);

impl MeshPlane {
    /// Listens, and connects to the others.
    ///
    /// # Errors
    /// The configuration is not for this, or the address is taken.
    pub fn start(config: &Config, id: u8, incarnation: u64) -> Result<Self, StartError> {
        // Hellos differ from peer to peer, so they are messages and not the mesh's own.
        Ok(Self(Mesh::start(config, id, incarnation, &[])?))
    }
}

impl ControlPlane for MeshPlane {
    fn send(&mut self, peer: ReplicaId, message: &[u8]) -> bool {
        self.0.send(peer.get(), message)
    }

    fn poll(&mut self) -> Option<ControlEvent> {
        // What comes from an id that no replica can have is passed over.
        loop {
            if let Some(event) = translated(self.0.poll()?) {
                return Some(event);
            }
        }
    }

    fn set_status(&mut self, status: &[u8]) {
        self.0.set_status(status);
    }

    fn refused(&self) -> u64 {
        let counters = self.0.counters();
        RefusalKind::ALL
            .iter()
            .map(|kind| counters.refused(*kind))
            .sum()
    }
}

fn translated(event: Event) -> Option<ControlEvent> {
    match event {
        Event::Up { peer, .. } => ReplicaId::new(peer).map(|peer| ControlEvent::Up { peer }),
        Event::Down { peer } => ReplicaId::new(peer).map(|peer| ControlEvent::Down { peer }),
        Event::Message { peer, bytes } => {
            ReplicaId::new(peer).map(|peer| ControlEvent::Message { peer, bytes })
        }
        Event::Refused {
            peer,
            refusal,
            by_peer,
        } => {
            let whose = if by_peer { "the peer" } else { "this side" };
            tracing::warn!(peer, %refusal, "{whose} refused the control connection");
            let superseded = by_peer && refusal.kind() == RefusalKind::Superseded;
            superseded.then_some(ControlEvent::Superseded)
        }
    }
}
