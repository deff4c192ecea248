//! The errors of this layer: what failed, with which numbers, and what to do about it.

use crate::types::QpState;

/// A work request that was refused before it was queued (`ibv_post_send(3)`, `ibv_post_recv(3)`). `Copy`, so that the
/// posting path never allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// Too many requests are outstanding (`ENOMEM`): poll the completion queue first. Requests without
    /// [`SIGNALED`](crate::types::SendFlags::SIGNALED) count until a later signalled one was polled. A NIC's provider
    /// may take more than the depth, since it rounds up.
    #[error(
        "post on QP {qp_num}: queue full, {depth} requests outstanding; poll completions first"
    )]
    QueueFull {
        /// The queue pair.
        qp_num: u32,
        /// Its depth.
        depth: u32,
    },
    /// The state does not allow posting (`EINVAL`).
    #[error("post on QP {qp_num}: not allowed in state {state:?}")]
    WrongState {
        /// The queue pair.
        qp_num: u32,
        /// Its state.
        state: QpState,
    },
    /// The inline payload is longer than the queue pair's limit (`EINVAL`).
    #[error("post: inline payload of {len} bytes, the queue pair takes {limit}")]
    InlineTooLong {
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Too many pieces (`EINVAL`).
    #[error("post: {count} scatter/gather elements, the queue pair takes {limit}")]
    TooManySges {
        /// Pieces given.
        count: usize,
        /// Pieces allowed.
        limit: usize,
    },
    /// The message is longer than the device allows (`EINVAL`).
    #[error("post: message of {len} bytes, the device takes {limit}")]
    TooLong {
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// An object belongs to another context, or the operation is not offered (`EINVAL`, `EOPNOTSUPP`).
    #[error("post: {what} (errno {errno})")]
    Invalid {
        /// What is wrong.
        what: &'static str,
        /// The libibverbs errno of it.
        errno: i32,
    },
    /// The provider refused (NIC only).
    #[error("post on QP {qp_num}: the provider refused with errno {errno}")]
    Device {
        /// The queue pair.
        qp_num: u32,
        /// What the provider returned.
        errno: i32,
    },
}

impl PostError {
    /// The errno libibverbs would return.
    pub const fn errno(&self) -> i32 {
        match *self {
            Self::QueueFull { .. } => libc::ENOMEM,
            Self::Device { errno, .. } | Self::Invalid { errno, .. } => errno,
            _ => libc::EINVAL,
        }
    }
}

/// A control operation of the software backend that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("{verb}: {call} failed: {source}{hint}")]
    System {
        /// The verb, by its libibverbs name.
        verb: &'static str,
        /// The system call.
        call: &'static str,
        /// Its errno.
        source: nix::errno::Errno,
        /// What to do about it; empty if nothing is known.
        hint: &'static str,
    },
    /// A named limit would be exceeded.
    #[error("{verb}: {what}: asked {asked}, the limit is {limit}")]
    Limit {
        /// The verb, by its libibverbs name.
        verb: &'static str,
        /// What there is too much of.
        what: &'static str,
        /// The number asked for.
        asked: usize,
        /// The limit.
        limit: usize,
    },
    /// An argument is wrong (`EINVAL`).
    #[error("{verb}: {what}")]
    Invalid {
        /// The verb, by its libibverbs name.
        verb: &'static str,
        /// What is wrong, with the numbers.
        what: String,
    },
    /// The state table of `ibv_modify_qp(3)` forbids the change (`EINVAL`).
    #[error("ibv_modify_qp on QP {qp_num}: no change from {from:?} by {change}")]
    Transition {
        /// The queue pair.
        qp_num: u32,
        /// Its state.
        from: QpState,
        /// The change asked for.
        change: &'static str,
    },
    /// The peer named by an endpoint cannot be reached.
    #[error("ibv_modify_qp to RTR: peer {node:#018x} cannot be reached: {why}")]
    NoPeer {
        /// The peer's context number.
        node: u64,
        /// Why.
        why: String,
    },
    /// A writer sits in the middle of a copy and could not be fenced within the bound: whether more words land is
    /// unknown, so the right counts as still held. Nothing was granted.
    #[error(
        "{verb} on QP {qp_num}: its writer stalled in mid-copy and is not fenced after {waited_us} µs"
    )]
    WriterStalled {
        /// The verb, by its libibverbs name.
        verb: &'static str,
        /// The queue pair.
        qp_num: u32,
        /// How long it was waited for.
        waited_us: u64,
    },
    /// The queue pair's writer was fenced in mid-copy: nothing is granted over this connection again.
    #[error(
        "{verb} on QP {qp_num}: its writer was fenced in mid-copy; reset both ends and connect anew"
    )]
    Fenced {
        /// The verb, by its libibverbs name.
        verb: &'static str,
        /// The queue pair.
        qp_num: u32,
    },
    /// An object is still in use (`EBUSY`).
    #[error("{verb}: {what} is still in use by {users}")]
    Busy {
        /// The verb, by its libibverbs name.
        verb: &'static str,
        /// The object.
        what: &'static str,
        /// Who uses it.
        users: &'static str,
    },
}

impl Error {
    /// The errno libibverbs would give for this.
    pub fn errno(&self) -> i32 {
        match self {
            Self::System { source, .. } => *source as i32,
            Self::Limit { .. } => libc::ENOMEM,
            Self::Invalid { .. } | Self::Transition { .. } => libc::EINVAL,
            Self::NoPeer { .. } => libc::EHOSTUNREACH,
            Self::WriterStalled { .. } => libc::ETIMEDOUT,
            Self::Fenced { .. } => libc::ENOTCONN,
            Self::Busy { .. } => libc::EBUSY,
        }
    }
}
