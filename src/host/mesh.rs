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
        loop {
            let (peer, event): (u8, fn(ReplicaId, Vec<u8>) -> ControlEvent) = match self.0.poll()? {
                Event::Up { peer, .. } => (peer, |peer, _| ControlEvent::Up { peer }),
                Event::Down { peer } => (peer, |peer, _| ControlEvent::Down { peer }),
                Event::Message { peer, bytes } => {
                    let Some(peer) = ReplicaId::new(peer) else {
                        continue;
                    };
                    return Some(ControlEvent::Message { peer, bytes });
                }
                Event::Refused {
                    peer,
                    refusal,
                    by_peer,
                } => {
                    let whose = if by_peer { "the peer" } else { "this side" };
                    tracing::warn!(peer, %refusal, "{whose} refused the control connection");
                    if by_peer && refusal.kind() == RefusalKind::Superseded {
                        return Some(ControlEvent::Superseded);
                    }
                    continue;
                }
            };
            if let Some(peer) = ReplicaId::new(peer) {
                return Some(event(peer, Vec::new()));
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
