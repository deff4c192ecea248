//! The log of one openraft replica, in memory.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};

use openraft::storage::{LogFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{Entry, LogId, OptionalSend, StorageError, Vote};

use super::Types;

type Answer<T> = Result<T, StorageError<u64>>;

#[derive(Default)]
struct Inner {
    vote: Option<Vote<u64>>,
    purged: Option<LogId<u64>>,
    entries: VecDeque<Entry<Types>>,
}

impl Inner {
    /// The index of the first entry that is kept.
    fn first_index(&self) -> u64 {
        self.purged.map_or(0, |id| id.index + 1)
    }

    /// How many of the kept entries are before `index`.
    fn before(&self, index: u64) -> usize {
        let distance = index.saturating_sub(self.first_index()) as usize;
        distance.min(self.entries.len())
    }
}

/// A handle to the log.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Inner>>);

impl Log {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder of the log panics")
    }

    /// How many entries are kept.
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R>(&mut self, range: R) -> Answer<Vec<Entry<Types>>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let inner = self.lock();
        let from = match range.start_bound() {
            Bound::Included(&index) => inner.before(index),
            Bound::Excluded(&index) => inner.before(index + 1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&index) => inner.before(index + 1),
            Bound::Excluded(&index) => inner.before(index),
            Bound::Unbounded => inner.entries.len(),
        };
        Ok(inner.entries.range(from..to.max(from)).cloned().collect())
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Answer<LogState<Types>> {
        let inner = self.lock();
        let last = inner.entries.back().map(|entry| entry.log_id);
        Ok(LogState {
            last_purged_log_id: inner.purged,
            last_log_id: last.or(inner.purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Answer<()> {
        self.lock().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Answer<Option<Vote<u64>>> {
        Ok(self.lock().vote)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Answer<()>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.lock().entries.extend(entries);
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, id: LogId<u64>) -> Answer<()> {
        let mut inner = self.lock();
        let kept = inner.before(id.index);
        inner.entries.truncate(kept);
        Ok(())
    }

    async fn purge(&mut self, id: LogId<u64>) -> Answer<()> {
        let mut inner = self.lock();
        let gone = inner.before(id.index + 1);
        inner.entries.drain(..gone);
        inner.purged = Some(id);
        Ok(())
    }
}
