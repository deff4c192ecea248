//! The keys of `cluster.toml`, and the range and default of every number among them. What the engines bound has their
//! bounds, so that a configuration that is taken is one that they can run.

use mu_protocol::limits;

/// A whole number with its key and its limits.
pub(super) struct Int {
    pub(super) key: &'static str,
    pub(super) min: u64,
    pub(super) max: u64,
    /// Which of the numbers in between.
    pub(super) shape: Shape,
    pub(super) default: u64,
    unit: &'static str,
}

/// Which numbers of a range are meant.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    /// All.
    Any,
    /// Powers of two.
    PowerOfTwo,
}

impl Int {
    pub(super) const fn holds(&self, value: u64) -> bool {
        let shaped = match self.shape {
            Shape::Any => true,
            Shape::PowerOfTwo => value.is_power_of_two(),
        };
        self.min <= value && value <= self.max && shaped
    }

    /// What was expected, as the end of a sentence.
    pub(super) fn expected(&self) -> String {
        let shape = match self.shape {
            Shape::Any => "",
            Shape::PowerOfTwo => ", a power of two",
        };
        format!(
            "expected a whole number from {} to {}{shape} ({})",
            self.min, self.max, self.unit
        )
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SECOND_US: u64 = 1_000_000;

macro_rules! int {
    ($const:ident, $key:literal, $min:expr, $max:expr, $shape:ident, default $default:expr, $unit:literal) => {
        pub(super) const $const: Int = Int {
            key: $key,
            min: $min,
            max: $max,
            shape: Shape::$shape,
            default: $default,
            unit: $unit,
        };
        const _: () = assert!($const.holds($default), "a default outside of its own range");
    };
}

int!(LOG_BYTES, "log_bytes", 64 * KIB, limits::MAX_RING_BYTES as u64, PowerOfTwo, default 64 * MIB, "bytes");
int!(MAX_COMMAND_BYTES, "max_command_bytes", 8, limits::MAX_COMMAND_BYTES as u64, Any, default 8 * KIB, "bytes");
int!(WINDOW, "window", 1, 65_536, Any, default 256, "commands in flight");
int!(HEARTBEAT_US, "heartbeat_us", 1, SECOND_US, Any, default 50, "microseconds");
int!(DETECT_US, "detect_us", 2, 60 * SECOND_US, Any, default 500, "microseconds");
int!(COMPLETION_TIMEOUT_US, "completion_timeout_us", 100, 60 * SECOND_US, Any, default 100_000,
    "microseconds");
int!(IDLE_FLUSH_US, "idle_flush_us", 1, SECOND_US, Any, default 100, "microseconds");
int!(CUT_OFF_US, "cut_off_us", 1_000, 60 * SECOND_US, Any, default 50_000, "microseconds");
int!(DIGEST_INTERVAL, "digest_interval", 0, 1 << 32, Any, default 1024, "entries; 0: never");
int!(SESSIONS, "sessions", 1, 1 << 20, Any, default 1024, "clients");
int!(SNAPSHOT_MAX_BYTES, "snapshot_max_bytes", 64 * KIB, limits::MAX_SNAPSHOT_BYTES as u64, Any,
    default 64 * MIB, "bytes");
int!(ID, "id", 0, super::ID_MAX as u64, Any, default 0, "ids are unique");
int!(GID_INDEX, "gid_index", 0, 255, Any, default 0, "index of a GID");
int!(CPU, "replication_cpu", 0, 4095, Any, default 0, "number of a CPU");

/// A command takes at most this part of the log, so that there is always room to recycle.
pub(super) const LOG_PER_COMMAND: u64 = 8;
/// A failure takes at least so many heartbeats to be seen, or every late one is a failure.
pub(super) const HEARTBEATS_PER_DETECT: u64 = 2;

const _: () = assert!(MAX_COMMAND_BYTES.default * LOG_PER_COMMAND <= LOG_BYTES.min);
const _: () = assert!(HEARTBEAT_US.default * HEARTBEATS_PER_DETECT <= DETECT_US.default);

/// The keys of the file.
pub(super) const TOP: &[&str] = &[
    "cluster",
    "backend",
    "device",
    "gid_index",
    "psk",
    "psk_file",
    "replicas",
    "log_bytes",
    "max_command_bytes",
    "window",
    "heartbeat_us",
    "detect_us",
    "completion_timeout_us",
    "idle_flush_us",
    "cut_off_us",
    "digest_interval",
    "sessions",
    "snapshot_max_bytes",
    "checksum",
    "replication_poll",
    "background_poll",
];

/// The keys of a member.
pub(super) const REPLICA: &[&str] = &[
    "id",
    "control",
    "client",
    "replication_cpu",
    "background_cpu",
    "device",
    "gid_index",
];
