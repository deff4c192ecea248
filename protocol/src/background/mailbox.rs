//! What is to stand in this replica's row at one peer, and what is on its way there.
//!
//! The row is a level, not a stream: what counts is the last state of the outbox row, which is written whole, over and
//! over, whenever it changed and whenever the link to the peer is new. One write is under way at a time; its bytes are
//! a copy that nobody changes meanwhile.

/// One peer's row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outgoing {
    dirty: bool,
    /// The replication engine's count of changes that the last copy has seen.
    changes: u64,
    /// Since when a write is under way.
    under_way: Option<u64>,
}

impl Outgoing {
    /// The row changed, or the peer may not have it.
    pub(crate) fn touch(&mut self) {
        self.dirty = true;
    }

    /// Whether the row is to be copied and written now, given the replication engine's count of changes. Ask before the
    /// row is copied: a change during the copy then makes another write.
    pub(crate) fn begin(&mut self, changes: u64, now_ns: u64) -> bool {
        if self.under_way.is_some() || !(self.dirty || self.changes != changes) {
            return false;
        }
        (self.dirty, self.changes, self.under_way) = (false, changes, Some(now_ns));
        true
    }

    /// The write has ended, well or not; one that did not is followed by a new connection.
    pub(crate) fn end(&mut self) {
        self.under_way = None;
    }

    /// How long the write that is under way has been.
    pub(crate) fn age_ns(&self, now_ns: u64) -> Option<u64> {
        self.under_way.map(|since| now_ns.saturating_sub(since))
    }

    /// The connection is new: nothing is under way, and the peer may have nothing.
    pub(crate) fn reconnect(&mut self) {
        (self.dirty, self.under_way) = (true, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_write_at_a_time_and_none_is_forgotten() {
        let mut row = Outgoing::default();
        assert!(!row.begin(0, 5), "nothing changed");
        row.touch();
        assert!(row.begin(0, 5));
        row.touch();
        assert!(!row.begin(1, 5), "one is under way");
        assert_eq!(
            (row.age_ns(12), Outgoing::default().age_ns(12)),
            (Some(7), None)
        );
        row.end();
        assert!(row.begin(1, 5));
        row.end();
        assert!(!row.begin(1, 5));
        assert!(row.begin(2, 5), "the other engine changed its half");
        row.reconnect();
        assert!(row.begin(2, 5), "a new connection, whatever was under way");
    }
}
