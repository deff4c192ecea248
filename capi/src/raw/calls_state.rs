//! What a replica says of itself. These calls are allowed everywhere, also in callbacks.

use std::ffi::c_char;

use smr::ReplicaId;

use super::pointers::{Buffer, Out, border};
use super::types::{MU_NO_LEADER, MuHandle, MuStatus};
use crate::code::{Fault, MU_INTERNAL, MuResult};
use crate::table;

/// By number, as in MU_ROLE_...
const ROLES: [&str; 6] = [
    "stopped",
    "recovering",
    "learner",
    "follower",
    "candidate",
    "leader",
];

/// Which member leads, as far as this replica knows, or MU_NO_LEADER.
///
/// # Safety
/// `leader` is NULL or points to memory for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_get_leader(handle: MuHandle, leader: *mut u8) -> MuResult {
    border(|| {
        // SAFETY: as promised.
        let leader = unsafe { Out::new(leader, "leader") }?;
        let known = table::get(handle)?.handle.leader();
        leader.set(known.map_or(MU_NO_LEADER, ReplicaId::get));
        Ok(())
    })
}

/// Copies the client address of a member, as the configuration has it: what a client is told to try. Empty if it has
/// none.
///
/// # Safety
/// `text` is NULL or points to memory for `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_get_address(
    handle: MuHandle,
    member: u8,
    text: *mut c_char,
    capacity: usize,
) -> MuResult {
    border(|| {
        // SAFETY: as promised.
        let text = unsafe { Buffer::new(text.cast(), capacity, "text") }?;
        let instance = table::get(handle)?;
        let member = instance.config.member(member);
        let member = member.map_err(|error| Fault::argument(error.to_string()))?;
        text.put_text(&member.client.map_or(String::new(), |a| a.to_string()))
    })
}

/// The picture of a replica.
///
/// # Safety
/// `status` is NULL or points to memory for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_get_status(handle: MuHandle, status: *mut MuStatus) -> MuResult {
    border(|| {
        // SAFETY: as promised.
        let out = unsafe { Out::new(status, "status") }?;
        let instance = table::get(handle)?;
        let status = instance.status();
        let role = ROLES.iter().position(|role| *role == status.role);
        out.set(MuStatus {
            epoch: status.epoch,
            commit: status.commit,
            applied: status.applied,
            in_flight: status.in_flight,
            role: role.unwrap_or_default() as u32,
            voter: status.voter.into(),
            id: instance.id,
            leader: status.leader.unwrap_or(MU_NO_LEADER),
        });
        Ok(())
    })
}

/// Copies everything that a replica says of itself and its peers, in the Prometheus text format. `len` gets the bytes
/// of the text without the 0 at its end, also when it does not fit; it may be NULL.
///
/// # Safety
/// `text` is NULL or points to memory for `capacity` bytes, `len` is NULL or points to memory for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_get_metrics(
    handle: MuHandle,
    text: *mut c_char,
    capacity: usize,
    len: *mut usize,
) -> MuResult {
    // SAFETY: as promised.
    border(|| unsafe {
        give(text, capacity, len, || {
            Ok(table::get(handle)?.status().prometheus())
        })
    })
}

/// The same as one JSON object.
///
/// # Safety
/// As for `mu_get_metrics`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_get_json(
    handle: MuHandle,
    text: *mut c_char,
    capacity: usize,
    len: *mut usize,
) -> MuResult {
    let json = || {
        let status = table::get(handle)?.status();
        serde_json::to_string(&status).map_err(|e| Fault::new(MU_INTERNAL, e.to_string()))
    };
    // SAFETY: as promised.
    border(|| unsafe { give(text, capacity, len, json) })
}

/// # Safety
/// As for `mu_get_metrics`.
unsafe fn give(
    text: *mut c_char,
    capacity: usize,
    len: *mut usize,
    said: impl FnOnce() -> Result<String, Fault>,
) -> Result<(), Fault> {
    // SAFETY: as promised.
    let buffer = unsafe { Buffer::new(text.cast(), capacity, "text") }?;
    let len = match len.is_null() {
        true => None,
        // SAFETY: as promised.
        false => Some(unsafe { Out::new(len, "len") }?),
    };
    let said = said()?;
    if let Some(len) = len {
        len.set(said.len());
    }
    buffer.put_text(&said)
}

/// Ends a rest in `mu_step`, from any thread.
#[unsafe(no_mangle)]
pub extern "C" fn mu_wake(handle: MuHandle) -> MuResult {
    border(|| {
        table::get(handle)?.handle.wake();
        Ok(())
    })
}
