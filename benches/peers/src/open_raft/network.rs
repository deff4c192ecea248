//! The network between openraft replicas of one process: a remote call is a call.

use std::sync::{Arc, OnceLock};

use openraft::EmptyNode;
use openraft::Raft;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, RemoteError};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};

use super::Types;

type Answer<T, E = RaftError<u64>> = Result<T, RPCError<u64, EmptyNode, E>>;

/// All replicas, known once all of them are there; the id of a replica is its position plus one.
#[derive(Clone, Default)]
pub struct Network(Arc<OnceLock<Vec<Raft<Types>>>>);

impl Network {
    /// Makes the replicas known. To be called once, before the first of them sends anything.
    pub fn connect(&self, replicas: Vec<Raft<Types>>) {
        assert!(self.0.set(replicas).is_ok(), "connected twice");
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Connection {
        let replicas = self
            .0
            .get()
            .expect("replicas are connected before they are initialised");
        Connection {
            target,
            peer: replicas[target as usize - 1].clone(),
        }
    }
}

/// The way to one replica.
pub struct Connection {
    target: u64,
    peer: Raft<Types>,
}

impl RaftNetwork<Types> for Connection {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Answer<AppendEntriesResponse<u64>> {
        let answer = self.peer.append_entries(request).await;
        answer.map_err(|e| RemoteError::new(self.target, e).into())
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        _option: RPCOption,
    ) -> Answer<InstallSnapshotResponse<u64>, RaftError<u64, InstallSnapshotError>> {
        let answer = self.peer.install_snapshot(request).await;
        answer.map_err(|e| RemoteError::new(self.target, e).into())
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Answer<VoteResponse<u64>> {
        let answer = self.peer.vote(request).await;
        answer.map_err(|e| RemoteError::new(self.target, e).into())
    }
}
