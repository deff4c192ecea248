//! The last changes of a replica's part in the group, with times that processes of one host can compare.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::clock::monotonic_ns;

/// How many are kept.
const KEPT: usize = 32;

/// A change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleEvent {
    /// When, by the host's monotonic clock.
    pub at_ns: u64,
    /// The role it took; or `stands`, when it began to ask for the right to write the others' logs.
    pub role: String,
    /// The epoch of its leadership, if that is what it is about.
    pub epoch: u64,
}

/// The last of them, in order.
#[derive(Debug, Default)]
pub(crate) struct RoleEvents(VecDeque<RoleEvent>);

impl RoleEvents {
    /// One happens now.
    pub(crate) fn push(&mut self, role: &str, epoch: u64) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(RoleEvent {
            at_ns: monotonic_ns(),
            role: role.to_owned(),
            epoch,
        });
    }

    pub(crate) fn all(&self) -> Vec<RoleEvent> {
        self.0.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_in_order() {
        let mut events = RoleEvents::default();
        for epoch in 0..100 {
            events.push("leader", epoch);
        }
        let all = events.all();
        assert_eq!(all.len(), KEPT);
        assert!(all.windows(2).all(|pair| pair[0].epoch + 1 == pair[1].epoch));
        assert!(all.windows(2).all(|pair| pair[0].at_ns <= pair[1].at_ns));
        assert_eq!(all.last().map(|event| event.epoch), Some(99));
    }
}
