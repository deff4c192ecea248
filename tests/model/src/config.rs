//! What a run explores: which modules take part and where the bounds are.

use crate::bugs::Bug;
use crate::state::{MAX_INDEX, REPLICAS};

/// When a replica applies what it knows to be decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Applying {
    /// At once. Nothing but recycling and the start of an update depends on it.
    AtOnce,
    /// A leader at once, a follower at any time.
    FollowersLag,
    /// Anybody at any time.
    AllLag,
}

/// One configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name.
    pub name: &'static str,
    /// How often each replica may stand.
    pub attempts: [u8; REPLICAS],
    /// The highest index.
    pub entries: u8,
    /// Entries that the ring holds.
    pub ring: u8,
    /// Whether a candidate may also take an epoch that is above its own promise only, as one that knows nothing of the
    /// others; else it takes one above all.
    pub any_epoch: bool,
    /// When entries are applied.
    pub applying: Applying,
    /// Whether a revocation may leave the write that it cuts half placed.
    pub torn: bool,
    /// Whether an idle leader pushes its commit index.
    pub push: bool,
    /// Growth of the confirmed set: late granters are prepared, updated and counted.
    pub growth: bool,
    /// Whether a leader loses connections and gets them back.
    pub reconnect: bool,
    /// Restart: how many crashes there may be, never beyond a minority at a time.
    pub crashes: u8,
    /// Whether the crashed may come back.
    pub restart: bool,
    /// Whether a replica that the log cannot bring on pulls a state, and keeps its vote.
    pub catch_up: bool,
    /// Whether, once, an entry that is known to be decided turns out to be damaged.
    pub damage: bool,
    /// The seeded defect.
    pub bug: Option<Bug>,
}

impl Config {
    /// Nothing but elections and entries: nobody crashes and the ring never wraps.
    pub const fn base(name: &'static str, attempts: [u8; REPLICAS], entries: u8) -> Self {
        assert!(entries as usize <= MAX_INDEX);
        Self {
            name,
            attempts,
            entries,
            ring: entries,
            any_epoch: false,
            applying: Applying::AtOnce,
            torn: false,
            push: false,
            growth: false,
            reconnect: false,
            crashes: 0,
            restart: false,
            catch_up: false,
            damage: false,
            bug: None,
        }
    }

    /// Whether this defect is seeded.
    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// The place of entry `index`.
    pub fn slot(&self, index: u8) -> usize {
        usize::from(index % self.ring)
    }
}
