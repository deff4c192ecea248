//! What a cluster is and how a replica of it runs: from code through [`Builder`], or from a file, `cluster.toml`.
//!
//! A [`Config`] is always valid: both ways end in the same checks (`check.rs`), of single values against their ranges
//! (`keys.rs`) and of values against each other. From a file every error names the file, the line, the key, the value
//! and what was expected. Every member reads the same file; which member a process is, and whether it forms a new
//! group, is said when it is started and not in the file.
//!
//! What all members must have alike is condensed into the [`Layout`], which the control connection compares.

mod check;
mod error;
mod file;
mod keys;
mod layout;
mod psk;
mod table;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::Path;

pub use error::{ConfigError, KeyError, Place};
pub use layout::{Layout, PROTOCOL_VERSION};
pub use psk::Psk;

/// Most members of a cluster.
pub const MEMBERS_MAX: usize = 9;
/// Largest id of a member; ids start at 0.
pub const ID_MAX: u8 = MEMBERS_MAX as u8 - 1;
/// Longest name of a cluster, in characters.
pub const CLUSTER_CHARS_MAX: usize = 64;

/// A valid configuration of one cluster.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    cluster: String,
    members: Vec<Member>,
    psk: Option<Psk>,
    settings: Settings,
}

impl Config {
    /// Starts a configuration with every default; members and, between processes, a key have to follow.
    pub fn builder(cluster: impl Into<String>) -> Builder {
        Builder(Self {
            cluster: cluster.into(),
            members: Vec::new(),
            psk: None,
            settings: Settings::default(),
        })
    }

    /// Reads a `cluster.toml`. A relative `psk_file` is looked for beside it.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, or holds something wrong; or it has the key in it, or names a file with
    /// the key, that other users can read.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        file::read(path.as_ref())
    }

    /// Reads the text of a `cluster.toml`, which is called `name` in errors. A relative `psk_file` is looked for in
    /// the current folder.
    ///
    /// # Errors
    /// The text is no TOML or holds something wrong.
    pub fn from_toml(text: &str, name: &str) -> Result<Self, ConfigError> {
        Self::from_toml_in(text, name, "")
    }

    /// The same, with the folder in which a relative `psk_file` is looked for.
    ///
    /// # Errors
    /// The text is no TOML or holds something wrong.
    pub fn from_toml_in(
        text: &str,
        name: &str,
        folder: impl AsRef<Path>,
    ) -> Result<Self, ConfigError> {
        file::parse(text, name, folder.as_ref())
    }

    /// The cluster's name.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The members, by ascending id.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member with an id.
    ///
    /// # Errors
    /// No member has it.
    pub fn member(&self, id: u8) -> Result<&Member, ConfigError> {
        let found = self.members.iter().find(|member| member.id == id);
        found.ok_or_else(|| check::no_such_member(&self.members, id).into())
    }

    /// The key that all members share; there is always one unless the backend is [`Backend::Inproc`].
    #[must_use]
    pub fn psk(&self) -> Option<&Psk> {
        self.psk.as_ref()
    }

    /// The device that a member uses, where the backend is [`Backend::Nic`]: its own entry before the cluster's.
    ///
    /// # Errors
    /// No member has this id.
    pub fn nic(&self, id: u8) -> Result<NicPort, ConfigError> {
        let own = &self.member(id)?.nic;
        let all = &self.settings.nic;
        Ok(NicPort {
            device: own.device.clone().or_else(|| all.device.clone()),
            gid_index: own.gid_index.or(all.gid_index),
        })
    }

    /// What all members must have alike.
    #[must_use]
    pub fn layout(&self) -> Layout {
        Layout::of(self)
    }

    /// The whole [`Layout`] in one number.
    #[must_use]
    pub fn layout_hash(&self) -> u64 {
        self.layout().hash()
    }

    /// Whether heartbeat and detection have their default times. A host with fewer processors than polling threads
    /// stretches these, and no others.
    #[must_use]
    pub fn has_default_times(&self) -> bool {
        let default = Settings::default();
        let times = |s: &Settings| (s.heartbeat_us, s.detect_us);
        times(&self.settings) == times(&default)
    }

    /// [`cut_off`](Self::cut_off) in bytes of this log.
    #[must_use]
    pub fn cut_off_bytes(&self) -> u64 {
        self.settings.cut_off.bytes_of(self.settings.log_bytes)
    }
}

/// A member of a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its number, 0 to [`ID_MAX`].
    pub id: u8,
    /// Where it listens for the other members; not needed in process.
    pub control: Option<SocketAddr>,
    /// Where it serves clients, if it does.
    pub client: Option<SocketAddr>,
    /// The CPU for its replication thread; not pinned if `None`.
    pub replication_cpu: Option<u16>,
    /// The CPU for its background thread; not pinned if `None`.
    pub background_cpu: Option<u16>,
    /// What of [`NicPort`] is different on its host.
    pub nic: NicPort,
}

impl Member {
    /// A member without addresses, as it is enough in process.
    #[must_use]
    pub fn new(id: u8) -> Self {
        Self {
            id,
            control: None,
            client: None,
            replication_cpu: None,
            background_cpu: None,
            nic: NicPort::default(),
        }
    }

    /// The same with the address for the other members.
    #[must_use]
    pub fn control(self, control: SocketAddr) -> Self {
        Self {
            control: Some(control),
            ..self
        }
    }

    /// The same with the address for clients.
    #[must_use]
    pub fn client(self, client: SocketAddr) -> Self {
        Self {
            client: Some(client),
            ..self
        }
    }
}

/// Which RDMA device and which of its addresses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NicPort {
    /// The name of the device; the first with an active port if `None`.
    pub device: Option<String>,
    /// The index of its GID; the best one if `None`.
    pub gid_index: Option<u8>,
}

/// What replicates memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// Threads of one process. Not in a file: a file is for processes.
    Inproc,
    /// Processes of one host over shared memory.
    Shm,
    /// Any ibverbs device.
    Nic,
}

/// How a thread waits for work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Poll {
    /// It never sleeps: fastest, and costs a core.
    Spin,
    /// It spins for a while after work, then yields, then sleeps.
    Adaptive,
    /// It sleeps until it is woken.
    Event,
}

/// When an entry of the log has its checksum looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    /// Always, except where the device guarantees that a message is placed whole.
    Auto,
    /// Always.
    Always,
}

/// How far behind a follower may be before the log is recycled without it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum CutOff {
    /// This part of the log, between 0 and 1.
    Fraction(f64),
    /// So many bytes.
    Bytes(u64),
}

impl CutOff {
    fn bytes_of(self, log_bytes: u64) -> u64 {
        match self {
            // A product of a log's size and a number below 1: exact enough, and it fits.
            Self::Fraction(part) => (log_bytes as f64 * part) as u64,
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// Defines the settings with a default once, as a field, a getter of [`Config`] and a setter of [`Builder`].
macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:expr;)+) => {
        /// Everything that has a default.
        #[derive(Clone, PartialEq, Debug)]
        struct Settings {
            nic: NicPort,
            $($name: $type,)+
        }

        impl Default for Settings {
            fn default() -> Self {
                Self { nic: NicPort::default(), $($name: $default,)+ }
            }
        }

        impl Config {
            $($(#[doc = $doc])+ #[must_use]
            pub fn $name(&self) -> $type { self.settings.$name })+
        }

        impl Builder {
            $($(#[doc = $doc])+ #[must_use]
            pub fn $name(mut self, $name: $type) -> Self {
                self.0.settings.$name = $name;
                self
            })+
        }
    };
}

settings! {
    /// What replicates memory.
    backend: Backend = Backend::Shm;
    /// Bytes of the log of each member.
    log_bytes: u64 = keys::LOG_BYTES.default;
    /// The longest command, in bytes.
    max_command_bytes: u64 = keys::MAX_COMMAND_BYTES.default;
    /// How many commands may be in flight.
    window: u64 = keys::WINDOW.default;
    /// A member's counter advances at least so often.
    heartbeat_us: u64 = keys::HEARTBEAT_US.default;
    /// A member whose counter stood still for so long is taken for failed.
    detect_us: u64 = keys::DETECT_US.default;
    /// A request to a device that is not completed after so long has failed.
    completion_timeout_us: u64 = keys::COMPLETION_TIMEOUT_US.default;
    /// An idle leader tells followers what is committed after so long.
    idle_flush_us: u64 = keys::IDLE_FLUSH_US.default;
    /// How far behind a follower may be before the log is recycled without it.
    cut_off: CutOff = CutOff::Fraction(0.5);
    /// Members compare a digest of their state every so many entries; 0: never.
    digest_interval: u64 = keys::DIGEST_INTERVAL.default;
    /// How many clients' sessions are remembered.
    sessions: u64 = keys::SESSIONS.default;
    /// The largest snapshot that a member takes or accepts, in bytes.
    snapshot_max_bytes: u64 = keys::SNAPSHOT_MAX_BYTES.default;
    /// When an entry has its checksum looked at.
    checksum: Checksum = Checksum::Auto;
    /// How the replication thread waits.
    replication_poll: Poll = Poll::Adaptive;
    /// How the background thread waits.
    background_poll: Poll = Poll::Adaptive;
}

/// A configuration in the making.
#[derive(Clone, Debug)]
pub struct Builder(Config);

impl Builder {
    /// Adds a member.
    #[must_use]
    pub fn replica(mut self, member: Member) -> Self {
        self.0.members.push(member);
        self
    }

    /// Sets the key that all members share.
    #[must_use]
    pub fn psk(mut self, psk: Psk) -> Self {
        self.0.psk = Some(psk);
        self
    }

    /// Sets the device that members use which do not name one of their own.
    #[must_use]
    pub fn nic(mut self, nic: NicPort) -> Self {
        self.0.settings.nic = nic;
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    /// The first value that is out of its range or does not go with another one.
    pub fn build(self) -> Result<Config, ConfigError> {
        Ok(self.checked()?)
    }

    fn checked(mut self) -> Result<Config, KeyError> {
        check::check(&self.0)?;
        self.0.members.sort_by_key(|member| member.id);
        Ok(self.0)
    }
}
