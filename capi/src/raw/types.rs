//! What passes the border besides numbers.

use std::ffi::{c_char, c_int, c_void};

use crate::code::MuResult;

/// A replica of this process. 0 is none. Handles are checked: one that was closed is answered with MU_CLOSED.
pub type MuHandle = u64;
/// A command or barrier that was submitted.
pub type MuTicket = u64;
/// Where a callback writes to. Good until it returns, on its thread.
pub type MuSink = u64;
/// Where a callback reads from. Good until it returns, on its thread.
pub type MuSource = u64;

/// The version of this interface. `mu_abi_version` says what the library has. It is raised by every change that a
/// program would have to be compiled anew for, such as a further member of a structure: there is none without it.
pub const MU_ABI_VERSION: u32 = 1;
/// The leader is not known.
pub const MU_NO_LEADER: u8 = 255;

/// The replica has threads of its own; calls come from any thread. The default.
pub const MU_MODE_THREADED: u32 = 0;
/// The program's own thread replicates, inside of `mu_step` and of the calls that wait.
pub const MU_MODE_STEP: u32 = 1;

/// It has stopped.
pub const MU_ROLE_STOPPED: u32 = 0;
/// It has no state yet, and looks for one.
pub const MU_ROLE_RECOVERING: u32 = 1;
/// It has a state, and is not admitted yet.
pub const MU_ROLE_LEARNER: u32 = 2;
/// It applies what a leader writes.
pub const MU_ROLE_FOLLOWER: u32 = 3;
/// It asks for the right to lead.
pub const MU_ROLE_CANDIDATE: u32 = 4;
/// It leads.
pub const MU_ROLE_LEADER: u32 = 5;

/// In `mu_command.flags`: this replica leads. What the application tells the world is this replica's to tell.
pub const MU_APPLY_LEADER: u32 = 1;
/// In `mu_command.flags`: this replica is catching up on what was decided without it.
pub const MU_APPLY_REPLAY: u32 = 2;

/// How a replica is opened. `mu_options_init` fills in the defaults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MuOptions {
    /// Bytes of this structure, as the program knows it.
    pub size: usize,
    /// MU_MODE_THREADED or MU_MODE_STEP.
    pub mode: u32,
    /// Which member of the configuration this is.
    pub id: u8,
    /// 1: founds the group, with empty memory. An operator's word, for the first start and no other. Where a peer has a
    /// history already it is not founded but recovered from.
    pub form: u8,
}

/// A decided command.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MuCommand {
    /// Index of its entry: the total order, together with `place`.
    pub index: u64,
    /// Leader time in nanoseconds since 1970: the same on every replica, and never going back.
    pub time_ns: u64,
    /// The client; 0 without a session.
    pub client: u64,
    /// The client's number of it; 0 without a session.
    pub sequence: u64,
    /// Its bytes, good until the callback returns.
    pub data: *const u8,
    /// How many.
    pub len: usize,
    /// Its place among the commands of the entry.
    pub place: u32,
    /// MU_APPLY_LEADER, MU_APPLY_REPLAY or 0. They differ from replica to replica: the state must not depend on them.
    pub flags: u32,
}

/// What a replica is, as far as it knows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MuRole {
    /// The epoch (term) in which it leads or wants to; 0 else.
    pub epoch: u64,
    /// One of MU_ROLE_...
    pub role: u32,
    /// Whether its votes count: 1 or 0.
    pub voter: u8,
    /// Which member leads, or MU_NO_LEADER.
    pub leader: u8,
}

/// The picture of a replica.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MuStatus {
    /// The epoch (term) in which it leads; else the one it has promised not to go below.
    pub epoch: u64,
    /// The last entry it knows to be decided.
    pub commit: u64,
    /// The last entry it applied.
    pub applied: u64,
    /// Commands without an outcome.
    pub in_flight: u64,
    /// One of MU_ROLE_...
    pub role: u32,
    /// Whether its votes count: 1 or 0.
    pub voter: u8,
    /// Its id.
    pub id: u8,
    /// Which member leads, or MU_NO_LEADER.
    pub leader: u8,
}

/// The program's functions. They are called one at a time: in threaded mode on the replica's thread, in step mode
/// inside of the calls of this library. They must not call back, apart from what is said in docs/capi.md; nothing may
/// be thrown out of them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MuCallbacks {
    /// Bytes of this structure, as the program knows it.
    pub size: usize,
    /// Handed to every function.
    pub user: *mut c_void,
    /// Applies a command and writes the reply, if there is one. Every replica applies every command, the leader too,
    /// and must come to the same state and reply. Anything but 0 ends this replica.
    pub apply: Option<unsafe extern "C" fn(*mut c_void, *const MuCommand, MuSink) -> c_int>,
    /// Writes the whole state. Anything but 0 ends this replica.
    pub save: Option<unsafe extern "C" fn(*mut c_void, MuSink) -> c_int>,
    /// Replaces the state by one that `save` wrote. Anything but 0: it is no such state; the replica takes another one.
    pub load: Option<unsafe extern "C" fn(*mut c_void, MuSource) -> c_int>,
    /// A number that differs when states differ; cheap. May be NULL: then only commands and replies are compared.
    pub digest: Option<unsafe extern "C" fn(*mut c_void) -> u64>,
    /// What the replica is has changed. May be NULL.
    pub role: Option<unsafe extern "C" fn(*mut c_void, *const MuRole)>,
    /// The replica has stopped and nobody asked it to: a code and the reason. May be NULL.
    pub fatal: Option<unsafe extern "C" fn(*mut c_void, MuResult, *const c_char)>,
}
