//! Result codes, and what they say of a fault.

use std::cell::RefCell;
use std::ffi::{CStr, CString};

use smr::{ProposeError, StartError};

/// How a call ended. Only where a code says "decided" is a command in the log for good.
pub type MuResult = i32;

/// Decided and applied here; or done.
pub const MU_OK: MuResult = 0;
/// Another replica leads, or nobody does: the command was not and will not be decided. `mu_get_leader` has a hint.
pub const MU_NOT_LEADER: MuResult = 1;
/// The command may be decided, now or later: try again with the same client and sequence.
pub const MU_UNKNOWN: MuResult = 2;
/// The command is longer than the configuration allows. It was not decided.
pub const MU_TOO_LARGE: MuResult = 3;
/// Too much is in flight, or the log is full. It was not decided: wait a moment, and try again.
pub const MU_BUSY: MuResult = 4;
/// This replica has stopped. `mu_last_error` says why.
pub const MU_STOPPED: MuResult = 5;
/// An argument is NULL, out of its range, or names nothing. Nothing was done.
pub const MU_INVALID_ARGUMENT: MuResult = 6;
/// Called from inside a callback, in the wrong mode, or by two threads where one is allowed. Nothing was done.
pub const MU_MISUSE: MuResult = 7;
/// The handle was closed.
pub const MU_CLOSED: MuResult = 8;
/// There is no outcome within the time. A ticket is still good.
pub const MU_TIMED_OUT: MuResult = 9;
/// Decided and applied, or done; what was to be copied did not fit the buffer. The length says how much there was.
pub const MU_TRUNCATED: MuResult = 10;
/// Decided and applied by an earlier try of the same client and sequence, whose reply was too long to be kept.
pub const MU_REPLY_GONE: MuResult = 11;
/// The client has used a later sequence already: this command was not applied now.
pub const MU_SUPERSEDED: MuResult = 12;
/// The leadership was not handed over: this replica leads on.
pub const MU_NOT_HANDED_OVER: MuResult = 13;
/// The configuration is wrong, or what it names cannot be had. `mu_last_error` says what.
pub const MU_CONFIG: MuResult = 14;
/// The device, the control address or the operating system refused. `mu_last_error` says what.
pub const MU_SYSTEM: MuResult = 15;
/// A fault of this library. `mu_last_error` has its words; please report it.
pub const MU_INTERNAL: MuResult = 16;

/// What a code means, in a few words.
pub(crate) fn meaning(code: MuResult) -> &'static CStr {
    match code {
        MU_OK => c"done",
        MU_NOT_LEADER => c"this replica does not lead",
        MU_UNKNOWN => c"the outcome is not known: try again with the same client and sequence",
        MU_TOO_LARGE => c"the command is too large",
        MU_BUSY => c"too much is in flight, or the log is full: try again",
        MU_STOPPED => c"this replica has stopped",
        MU_INVALID_ARGUMENT => c"invalid argument",
        MU_MISUSE => c"a call that is not allowed here",
        MU_CLOSED => c"the handle was closed",
        MU_TIMED_OUT => c"no outcome within the time",
        MU_TRUNCATED => c"done, and the buffer is too small for what there is to copy",
        MU_REPLY_GONE => c"applied by an earlier try, whose reply was not kept",
        MU_SUPERSEDED => c"a later command of this client was applied already",
        MU_NOT_HANDED_OVER => c"the leadership was not handed over",
        MU_CONFIG => c"the configuration is wrong",
        MU_SYSTEM => c"the device or the operating system refused",
        MU_INTERNAL => c"a fault of this library",
        _ => c"no code of this library",
    }
}

/// A call that did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) code: MuResult,
    pub(crate) text: String,
}

impl Fault {
    pub(crate) fn new(code: MuResult, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { code, text }
    }

    pub(crate) fn argument(text: impl Into<String>) -> Self {
        Self::new(MU_INVALID_ARGUMENT, text)
    }

    pub(crate) fn misuse(text: impl Into<String>) -> Self {
        Self::new(MU_MISUSE, text)
    }

    pub(crate) fn truncated(bytes: usize, capacity: usize) -> Self {
        let text = format!("{bytes} bytes do not fit the buffer of {capacity}");
        Self::new(MU_TRUNCATED, text)
    }
}

impl From<ProposeError> for Fault {
    fn from(error: ProposeError) -> Self {
        let code = match error {
            ProposeError::NotLeader { .. } => MU_NOT_LEADER,
            ProposeError::Unknown => MU_UNKNOWN,
            ProposeError::Overloaded => MU_BUSY,
            ProposeError::TooLarge { .. } => MU_TOO_LARGE,
            ProposeError::Superseded => MU_SUPERSEDED,
            ProposeError::ReplyGone { .. } => MU_REPLY_GONE,
            ProposeError::NotHandedOver => MU_NOT_HANDED_OVER,
            ProposeError::Stopped(_) => MU_STOPPED,
            // The list may grow: whatever is not known here may have been decided.
            _ => MU_UNKNOWN,
        };
        Self::new(code, error.to_string())
    }
}

impl From<StartError> for Fault {
    fn from(error: StartError) -> Self {
        let code = match error {
            StartError::Config(_) | StartError::Settings(_) => MU_CONFIG,
            _ => MU_SYSTEM,
        };
        Self::new(code, error.to_string())
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Keeps a fault's text for `mu_last_error` of this thread. One that ends, and whose texts are gone, gets none.
pub(crate) fn keep(text: String) {
    let bytes: Vec<u8> = text.into_bytes().into_iter().filter(|b| *b != 0).collect();
    let text = CString::new(bytes).unwrap_or_default();
    let _ = LAST.try_with(|last| *last.borrow_mut() = text);
}

/// The text that was kept last; it stays where it is until the next one.
pub(crate) fn last() -> *const std::ffi::c_char {
    let last = LAST.try_with(|last| last.borrow().as_ptr());
    last.unwrap_or(c"".as_ptr())
}
