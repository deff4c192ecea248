//! The state machine of one openraft replica. Its snapshots are empty: they are taken only so that old log may go.

use std::io::Cursor;
use std::sync::{Arc, Mutex};

use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use openraft::{
    Entry, EntryPayload, LogId, OptionalSend, Snapshot, SnapshotMeta, StorageError,
    StoredMembership,
};

use super::Types;
use crate::contestant::Applied;

type Answer<T> = Result<T, StorageError<u64>>;

/// What a snapshot is of.
#[derive(Clone, Default)]
pub struct Position {
    last: Option<LogId<u64>>,
    membership: StoredMembership<u64, openraft::EmptyNode>,
}

impl Position {
    fn snapshot(&self) -> Snapshot<Types> {
        let meta = SnapshotMeta {
            last_log_id: self.last,
            last_membership: self.membership.clone(),
            snapshot_id: self.last.map(|id| id.to_string()).unwrap_or_default(),
        };
        Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(Vec::new())),
        }
    }
}

impl RaftSnapshotBuilder<Types> for Position {
    async fn build_snapshot(&mut self) -> Answer<Snapshot<Types>> {
        Ok(self.snapshot())
    }
}

/// The state machine; the harness looks at `applied`.
#[derive(Clone, Default)]
pub struct Machine {
    applied: Arc<Mutex<Applied>>,
    position: Position,
}

impl Machine {
    pub fn applied(&self) -> Applied {
        self.applied.lock().expect("no holder panics").clone()
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Position;

    async fn applied_state(
        &mut self,
    ) -> Answer<(
        Option<LogId<u64>>,
        StoredMembership<u64, openraft::EmptyNode>,
    )> {
        Ok((self.position.last, self.position.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Answer<Vec<()>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut applied = self.applied.lock().expect("no holder panics");
        let mut replies = Vec::new();
        for entry in entries {
            self.position.last = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Normal(command) => applied.apply(command.bytes()),
                EntryPayload::Membership(members) => {
                    self.position.membership = StoredMembership::new(Some(entry.log_id), members);
                }
                EntryPayload::Blank => {}
            }
            replies.push(());
        }
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> Position {
        self.position.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Answer<Box<Cursor<Vec<u8>>>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, openraft::EmptyNode>,
        _snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Answer<()> {
        // No follower falls that far behind. If one did, its count would be short, and the check would say so.
        self.position = Position {
            last: meta.last_log_id,
            membership: meta.last_membership.clone(),
        };
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Answer<Option<Snapshot<Types>>> {
        Ok(Some(self.position.snapshot()))
    }
}
