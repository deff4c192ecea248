//! What `mu redis` tells the shared object: one JSON object in an environment variable.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The variable.
pub(crate) const VARIABLE: &str = "MU_REDIS_NODE";

/// What a node is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Setup {
    /// The cluster's configuration.
    pub(crate) config: PathBuf,
    /// Which replica.
    pub(crate) id: u8,
    /// It founds the group.
    pub(crate) form: bool,
    /// The listener that the local server is a replica of.
    pub(crate) feeder_fd: i32,
    /// What the local server says to prove itself there.
    pub(crate) secret: String,
    /// Where Sentinel's questions are answered.
    pub(crate) sentinel: SocketAddr,
    /// Where changes of the role are told, one JSON object a line.
    pub(crate) report_fd: i32,
    /// A seeded bug, for tests.
    #[serde(default)]
    pub(crate) fault: Option<Fault>,
}

/// Seeded bugs, which the tests must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    /// Replies leave before what they tell of is decided.
    EarlyAnswer,
    /// Reads are answered without a proof of leadership.
    UnprovedRead,
    /// A follower's server becomes a primary without the leadership.
    PrimaryUnasked,
}
