//! Reading a log: from a known entry on, as far as index and chain hold.

use crate::bugs::Bug;
use crate::config::Config;
use crate::state::{Epoch, Replica};

/// What a reader found.
pub(crate) struct Parsed {
    /// Index of the last valid entry.
    pub(crate) end: u8,
    /// Its epoch.
    pub(crate) epoch: Epoch,
    /// The highest commit index that the entries state.
    pub(crate) commit: u8,
}

/// Reads the log of `from` behind entry `after`, which has the epoch `epoch`.
pub(crate) fn parse(c: &Config, from: &Replica, after: u8, epoch: Epoch) -> Parsed {
    let mut parsed = Parsed {
        end: after,
        epoch,
        commit: 0,
    };
    while parsed.end < after + c.ring {
        let index = parsed.end + 1;
        let entry = from.ring[c.slot(index)];
        let is_next = entry.index() == index || c.has(Bug::IgnoreIndex) && !entry.is_empty();
        let is_chained = entry.prev() == parsed.epoch || c.has(Bug::IgnoreChain);
        if !is_next || !is_chained {
            break;
        }
        parsed = Parsed {
            end: index,
            epoch: entry.epoch(),
            commit: parsed.commit.max(entry.commit()),
        };
    }
    parsed
}
