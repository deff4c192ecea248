//! The keys of `cluster.toml`, and the range and default of every number among them.

/// A whole number with its key and its limits.
pub(super) struct Int {
    pub(super) key: &'static str,
    pub(super) min: u64,
    pub(super) max: u64,
    /// It has to be a multiple of this.
    pub(super) step: u64,
    pub(super) default: u64,
    unit: &'static str,
}

impl Int {
    pub(super) const fn holds(&self, value: u64) -> bool {
        self.min <= value && value <= self.max && value.is_multiple_of(self.step)
    }

    /// What was expected, as the end of a sentence.
    pub(super) fn expected(&self) -> String {
        let step = match self.step {
            1 => String::new(),
            step => format!(", a multiple of {step}"),
        };
        format!(
            "expected a whole number from {} to {}{step} ({})",
            self.min, self.max, self.unit
        )
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
const SECOND_US: u64 = 1_000_000;

macro_rules! int {
    ($const:ident, $key:literal, $min:expr, $max:expr, step $step:expr, default $default:expr, $unit:literal) => {
        pub(super) const $const: Int = Int {
            key: $key,
            min: $min,
            max: $max,
            step: $step,
            default: $default,
            unit: $unit,
        };
        const _: () = assert!($const.holds($default), "a default outside of its own range");
    };
}

int!(LOG_BYTES, "log_bytes", 64 * KIB, TIB, step 4096, default 64 * MIB, "bytes");
int!(MAX_COMMAND_BYTES, "max_command_bytes", 8, 64 * MIB, step 1, default 8 * KIB, "bytes");
int!(WINDOW, "window", 1, 65_536, step 1, default 256, "commands in flight");
int!(HEARTBEAT_US, "heartbeat_us", 1, SECOND_US, step 1, default 50, "microseconds");
int!(DETECT_US, "detect_us", 2, 60 * SECOND_US, step 1, default 500, "microseconds");
int!(COMPLETION_TIMEOUT_US, "completion_timeout_us", 100, 60 * SECOND_US, step 1, default 100_000,
    "microseconds");
int!(IDLE_FLUSH_US, "idle_flush_us", 1, SECOND_US, step 1, default 100, "microseconds");
int!(DIGEST_INTERVAL, "digest_interval", 0, 1 << 32, step 1, default 1024, "entries; 0: never");
int!(SESSIONS, "sessions", 1, 1 << 20, step 1, default 1024, "clients");
int!(SNAPSHOT_MAX_BYTES, "snapshot_max_bytes", 64 * KIB, TIB, step 1, default 64 * MIB, "bytes");
int!(ID, "id", 0, super::ID_MAX as u64, step 1, default 0, "ids are unique");
int!(GID_INDEX, "gid_index", 0, 255, step 1, default 0, "index of a GID");
int!(CPU, "replication_cpu", 0, 4095, step 1, default 0, "number of a CPU");

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
    "cut_off",
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
