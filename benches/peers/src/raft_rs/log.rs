//! The log of one raft-rs replica, in memory.
//!
//! Like the crate's own `MemStorage`, without its lock, and it takes entries over instead of copying them: what a user
//! in a hurry would write. The driver and the `RawNode` share it.

use std::cell::RefCell;
use std::rc::Rc;

use raft::prelude::{ConfState, Entry, HardState, Snapshot};
use raft::storage::{GetEntriesContext, RaftState, Storage};
use raft::{Error, StorageError};

#[derive(Default)]
struct Inner {
    state: RaftState,
    /// Index and term of the entry before the first that is kept.
    before: (u64, u64),
    entries: Vec<Entry>,
}

impl Inner {
    fn last_index(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }

    /// Position of an index among the entries that are kept.
    fn position(&self, index: u64) -> Result<usize, Error> {
        if index <= self.before.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        Ok((index - self.before.0) as usize - 1)
    }
}

/// A handle to the log.
#[derive(Clone, Default)]
pub struct Log(Rc<RefCell<Inner>>);

impl Log {
    /// An empty log of a group with these voters.
    pub fn new(voters: Vec<u64>) -> Self {
        let log = Self::default();
        log.0.borrow_mut().state.conf_state = ConfState::from((voters, vec![]));
        log
    }

    /// Appends entries that follow the last one: nothing is ever truncated, since the leader never changes here.
    pub fn append(&self, mut entries: Vec<Entry>) {
        let mut inner = self.0.borrow_mut();
        if let Some(first) = entries.first() {
            assert_eq!(first.index, inner.last_index() + 1, "entries out of line");
        }
        inner.entries.append(&mut entries);
    }

    pub fn set_hard_state(&self, state: HardState) {
        self.0.borrow_mut().state.hard_state = state;
    }

    pub fn set_commit(&self, commit: u64) {
        self.0.borrow_mut().state.hard_state.commit = commit;
    }

    /// Lets go of all entries up to `index`.
    pub fn compact(&self, index: u64) -> Result<(), Error> {
        let mut inner = self.0.borrow_mut();
        if index > inner.before.0 {
            let at = inner.position(index)?;
            inner.before = (index, inner.entries[at].term);
            inner.entries.drain(..=at);
        }
        Ok(())
    }
}

impl Storage for Log {
    fn initial_state(&self) -> Result<RaftState, Error> {
        Ok(self.0.borrow().state.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>, Error> {
        let inner = self.0.borrow();
        let mut entries = inner.entries[inner.position(low)?..inner.position(high)?].to_vec();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64, Error> {
        let inner = self.0.borrow();
        if index == inner.before.0 {
            return Ok(inner.before.1);
        }
        let entry = inner.entries.get(inner.position(index)?);
        entry
            .map(|entry| entry.term)
            .ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64, Error> {
        Ok(self.0.borrow().before.0 + 1)
    }

    fn last_index(&self) -> Result<u64, Error> {
        Ok(self.0.borrow().last_index())
    }

    /// No follower is ever so far behind that it would be asked for.
    fn snapshot(&self, _request_index: u64, _to: u64) -> Result<Snapshot, Error> {
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
