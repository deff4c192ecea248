//! The errors of this layer.

pub use mu_softrdma::error::PostError;

/// A verb that failed. The message names the verb, the errno and the numbers, and the remedy where one is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The software backend failed.
    #[error(transparent)]
    Soft(#[from] mu_softrdma::error::Error),
    /// libibverbs could not be loaded.
    #[cfg(feature = "nic")]
    #[error(transparent)]
    Load(#[from] mu_sys::LoadError),
    /// A verb of libibverbs returned an error.
    #[error("{verb} failed: {source} (errno {}){detail}", .source.raw_os_error().unwrap_or(0))]
    Verb {
        /// Its name.
        verb: &'static str,
        /// The errno it gave.
        source: std::io::Error,
        /// The numbers it was called with, and the remedy; empty or starting with a separator.
        detail: String,
    },
    /// There is no such device.
    #[error("no RDMA device named '{wanted}'; there are: {present}")]
    NoDevice {
        /// The name asked for.
        wanted: String,
        /// What there is.
        present: String,
    },
    /// The device does not offer it (`EOPNOTSUPP`). See [`Capabilities`](crate::Capabilities).
    #[error("{verb}: {device} does not offer {what}")]
    Unsupported {
        /// The verb.
        verb: &'static str,
        /// The device.
        device: String,
        /// What is missing.
        what: &'static str,
    },
    /// A named limit would be exceeded.
    #[error("{verb}: {what}: asked {asked}, the limit is {limit}")]
    Limit {
        /// The verb.
        verb: &'static str,
        /// What there is too much of.
        what: &'static str,
        /// The number asked for.
        asked: u64,
        /// The limit.
        limit: u64,
    },
    /// An argument is wrong (`EINVAL`).
    #[error("{verb}: {what}")]
    Invalid {
        /// The verb.
        verb: &'static str,
        /// What is wrong, with the numbers.
        what: String,
    },
    /// A request that a verb posts on its own (window bind or invalidation) was refused or failed.
    #[error("{verb}: the request ended with {status}")]
    Request {
        /// The verb.
        verb: &'static str,
        /// The status of its completion.
        status: crate::WcStatus,
    },
    /// A request could not be posted.
    #[error(transparent)]
    Post(#[from] PostError),
}

impl Error {
    /// The errno of the failure, as libibverbs gives it; 0 where there is none.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Soft(e) => e.errno(),
            #[cfg(feature = "nic")]
            Self::Load(_) => ENOENT,
            Self::Verb { source, .. } => source.raw_os_error().unwrap_or(0),
            Self::NoDevice { .. } => ENODEV,
            Self::Unsupported { .. } => EOPNOTSUPP,
            Self::Limit { .. } => ENOMEM,
            Self::Invalid { .. } => EINVAL,
            Self::Request { .. } => 0,
            Self::Post(e) => e.errno(),
        }
    }
}

// The numbers of Linux, the one system this runs on; spelt out so that the traits alone need no libc.
#[cfg(feature = "nic")]
const ENOENT: i32 = 2;
const ENOMEM: i32 = 12;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;
