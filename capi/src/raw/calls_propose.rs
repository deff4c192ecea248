//! Commands, barriers, turns.

use std::os::fd::BorrowedFd;

use smr::ReplicaId;

use super::pointers::{MuReply, Out, ReplyTo, bytes, outside};
use super::types::{MU_NO_LEADER, MuHandle, MuTicket};
use crate::code::{Fault, MuResult};
use crate::instance::deadline;
use crate::table;

/// Proposes a command and waits until it is decided and applied here, for at most `timeout_us` microseconds (negative:
/// for as long as it takes). `client` 0 has no session; else a retry with the same `client` and `sequence`, here or at
/// another replica, is applied once. `reply` may be NULL. Neither it nor its buffer may overlap `data`: that is
/// answered with MU_INVALID_ARGUMENT.
///
/// # Safety
/// `data` is NULL or points to `len` bytes, `reply` is NULL or points to the structure and that to its buffer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_propose(
    handle: MuHandle,
    client: u64,
    sequence: u64,
    data: *const u8,
    len: usize,
    timeout_us: i64,
    reply: *mut MuReply,
) -> MuResult {
    outside(|| {
        // SAFETY: as promised.
        let command = unsafe { bytes(data, len, "data") }?;
        // SAFETY: as promised.
        let reply = unsafe { ReplyTo::new(reply, command) }?;
        let instance = table::get(handle)?;
        let mut take = |index: u64, bytes: &[u8]| reply.put(index, bytes);
        let until = deadline(timeout_us);
        instance.propose((client, sequence), command, until, &mut take)
    })
}

/// Submits a command without waiting. Its outcome is there once, from `mu_poll`. Tickets end in the order in which
/// they were given.
///
/// # Safety
/// `data` is NULL or points to `len` bytes, `ticket` is NULL or points to memory for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_submit(
    handle: MuHandle,
    client: u64,
    sequence: u64,
    data: *const u8,
    len: usize,
    ticket: *mut MuTicket,
) -> MuResult {
    outside(|| {
        // SAFETY: as promised.
        let (command, ticket) = unsafe { (bytes(data, len, "data")?, Out::new(ticket, "ticket")?) };
        ticket.set(table::get(handle)?.submit((client, sequence), command)?);
        Ok(())
    })
}

/// Submits a barrier without waiting, as `mu_submit` does.
///
/// # Safety
/// `ticket` is NULL or points to memory for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_submit_barrier(handle: MuHandle, ticket: *mut MuTicket) -> MuResult {
    outside(|| {
        // SAFETY: as promised.
        let ticket = unsafe { Out::new(ticket, "ticket") }?;
        ticket.set(table::get(handle)?.submit_barrier()?);
        Ok(())
    })
}

/// The outcome of a ticket, waited for as in `mu_propose` (0: not at all). MU_TIMED_OUT: there is none yet, and the
/// ticket is still good. Every other code ends the ticket.
///
/// # Safety
/// `reply` is NULL or points to the structure, and that to its buffer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_poll(
    handle: MuHandle,
    ticket: MuTicket,
    timeout_us: i64,
    reply: *mut MuReply,
) -> MuResult {
    outside(|| {
        // SAFETY: as promised.
        let reply = unsafe { ReplyTo::new(reply, &[]) }?;
        let done = table::get(handle)?.wait(ticket, deadline(timeout_us))?;
        reply.put(done.index, &done.reply)
    })
}

/// Gives a ticket up: nobody wants its outcome.
#[unsafe(no_mangle)]
pub extern "C" fn mu_forget(handle: MuHandle, ticket: MuTicket) -> MuResult {
    outside(|| table::get(handle)?.forget(ticket))
}

/// Waits until everything that was decided before the call is applied here: what the program then reads of its state is
/// not stale. Only at the leader.
#[unsafe(no_mangle)]
pub extern "C" fn mu_barrier(handle: MuHandle, timeout_us: i64) -> MuResult {
    outside(|| table::get(handle)?.barrier(deadline(timeout_us)))
}

/// Step mode: one turn, and then, if there was nothing to do, a rest of at most `timeout_us` (0: none). The rest ends
/// early when there is something to do, when `fd` can be read (negative: none) and by `mu_wake`. A replica that is not
/// stepped for the detection time of its configuration, 5 ms at least, is taken for dead by the others.
///
/// # Safety
/// `fd` is negative or an open descriptor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_step(handle: MuHandle, timeout_us: i64, fd: i32) -> MuResult {
    outside(|| {
        // SAFETY: not negative, and open until this returns, as promised.
        let fd = (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) });
        table::get(handle)?.step()?.step(deadline(timeout_us), fd)
    })
}

/// Hands the leadership to member `to` (MU_NO_LEADER: to the most advanced follower) and waits until this replica does
/// not lead any more. `chosen` may be NULL.
///
/// # Safety
/// `chosen` is NULL or points to memory for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_transfer(handle: MuHandle, to: u8, chosen: *mut u8) -> MuResult {
    outside(|| {
        let to = match to {
            MU_NO_LEADER => None,
            to => Some(
                ReplicaId::new(to).ok_or_else(|| Fault::argument(format!("{to} is no member")))?,
            ),
        };
        let instance = table::get(handle)?;
        if let Some(to) = to {
            let member = instance.config.member(to.get());
            member.map_err(|error| Fault::argument(error.to_string()))?;
        }
        let successor = instance.transfer(to)?;
        if !chosen.is_null() {
            // SAFETY: as promised.
            unsafe { Out::new(chosen, "chosen") }?.set(successor.get());
        }
        Ok(())
    })
}
