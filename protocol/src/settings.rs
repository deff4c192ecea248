//! Settings of one replica. All of a group must agree on the ring, the largest command, the sessions and the checksum;
//! connecting refuses others. They must agree on the members too, which the host has to compare. The rest may differ,
//! as far as the protocol goes; the facade compares more.

use mu_verbs::Placement;

use crate::ids::{Members, ReplicaId};
use crate::limits::{
    ENTRY_RESERVE_BYTES, MAX_ENTRY_BYTES, MAX_PENDING, MAX_RING_BYTES, MAX_SESSIONS, MAX_TIME_NS,
    MIN_RING_BYTES,
};

/// How entries are protected against torn placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// By a CRC32C of the payload, unless the device places a whole message in order.
    Auto,
    /// Always by a CRC32C.
    Always,
}

/// Settings of one replica. Times are in nanoseconds of the caller's monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This replica.
    pub id: ReplicaId,
    /// The group, this replica included.
    pub members: Members,
    /// Bytes of the ring: a power of two. Equal in the group.
    pub ring_bytes: usize,
    /// Largest command, in bytes. Equal in the group.
    pub max_command_bytes: usize,
    /// Sessions that are remembered. Equal in the group.
    pub sessions: usize,
    /// Commands submitted and not answered, at most.
    pub window: usize,
    /// Protection of entries. What it comes to on the device must be equal in the group.
    pub checksum: Checksum,
    /// Between two heartbeats and reads of the peers'.
    pub heartbeat_ns: u64,
    /// A peer whose heartbeat stands still for so long, by its pull-score, is taken for dead.
    pub detect_ns: u64,
    /// The replication engine counts as stuck when it made no progress for so long.
    pub stuck_ns: u64,
    /// A write or read that has not completed after so long has failed.
    pub completion_timeout_ns: u64,
    /// A leader that cannot reach a majority for so long steps down, and its commands end as unknown.
    pub step_down_ns: u64,
    /// A candidate that has not led after so long tries again with a higher epoch.
    pub election_ns: u64,
    /// After so long without a new entry an idle leader pushes its commit index.
    pub idle_flush_ns: u64,
    /// A follower that holds the recycling up for so long while the ring is full is cut off.
    pub cut_off_ns: u64,
    /// Entries between two digests that replicas compare.
    pub digest_interval: u64,
    /// Largest snapshot accepted from a peer, in bytes.
    pub max_snapshot_bytes: usize,
    /// Start as a founding member with empty memory. An operator's word: never set it for a restart.
    pub form: bool,
}

/// A setting that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} = {value}: expected {expected}")]
pub struct SettingsError {
    /// Which.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// What it must be.
    pub expected: String,
}

impl Settings {
    /// The defaults for replica `id` of `members`.
    pub fn new(id: ReplicaId, members: Members) -> Self {
        const US: u64 = 1_000;
        const MS: u64 = 1_000 * US;
        Self {
            id,
            members,
            ring_bytes: 64 << 20,
            max_command_bytes: 64 << 10,
            sessions: 4096,
            window: 4096,
            checksum: Checksum::Auto,
            heartbeat_ns: 50 * US,
            detect_ns: 600 * US,
            stuck_ns: 5 * MS,
            completion_timeout_ns: 50 * MS,
            step_down_ns: 100 * MS,
            election_ns: 2 * MS,
            idle_flush_ns: 50 * US,
            cut_off_ns: 50 * MS,
            digest_interval: 1024,
            max_snapshot_bytes: 1 << 30,
            form: false,
        }
    }

    /// Whether they can be.
    ///
    /// # Errors
    /// The first that cannot, with its value and what was expected.
    pub fn check(&self) -> Result<(), SettingsError> {
        let entry_max = (self.ring_bytes / 4).min(MAX_ENTRY_BYTES);
        let fail = |name, value: String, expected: String| {
            Err(SettingsError {
                name,
                value,
                expected,
            })
        };
        let range = |name, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(SettingsError {
                name,
                value: value.to_string(),
                expected: format!("{low} to {high}"),
            })
        };
        if !self.members.contains(self.id) {
            return fail("id", self.id.to_string(), "a member of the group".into());
        }
        range(
            "ring_bytes",
            self.ring_bytes as u64,
            MIN_RING_BYTES as u64,
            MAX_RING_BYTES as u64,
        )?;
        if !self.ring_bytes.is_power_of_two() {
            return fail(
                "ring_bytes",
                self.ring_bytes.to_string(),
                "a power of two".into(),
            );
        }
        range(
            "max_command_bytes",
            self.max_command_bytes as u64,
            1,
            (entry_max - ENTRY_RESERVE_BYTES) as u64,
        )?;
        range("sessions", self.sessions as u64, 1, MAX_SESSIONS as u64)?;
        range("window", self.window as u64, 1, MAX_PENDING as u64)?;
        for (name, value) in [
            ("heartbeat_ns", self.heartbeat_ns),
            ("stuck_ns", self.stuck_ns),
            ("completion_timeout_ns", self.completion_timeout_ns),
            ("step_down_ns", self.step_down_ns),
            ("election_ns", self.election_ns),
            ("idle_flush_ns", self.idle_flush_ns),
            ("cut_off_ns", self.cut_off_ns),
        ] {
            range(name, value, 1, MAX_TIME_NS)?;
        }
        range("digest_interval", self.digest_interval, 1, u64::MAX / 4)?;
        range(
            "detect_ns",
            self.detect_ns,
            2 * self.heartbeat_ns,
            MAX_TIME_NS,
        )
    }

    /// Whether entries carry a checksum on a device that places bytes like this.
    pub fn wants_checksum(&self, placement: Placement) -> bool {
        self.checksum == Checksum::Always || placement != Placement::WholeMessage
    }

    /// Largest entry, header and tail included.
    pub fn max_entry_bytes(&self) -> usize {
        (self.ring_bytes / 4).min(MAX_ENTRY_BYTES)
    }

    /// The other members.
    pub fn peers(&self) -> Members {
        self.members.without(self.id)
    }
}
