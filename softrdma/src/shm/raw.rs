//! System calls that neither `std` nor `nix` offers as safe functions: descriptors out of control messages, pidfds.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::wire::{BYTES, MAX_FDS, Message};

/// Descriptors that one message can carry (`unix(7)`).
const SCM_MAX_FD: usize = 253;

/// A message as received.
pub(super) struct Received {
    pub(super) message: Message,
    pub(super) fds: Vec<OwnedFd>,
}

/// Sends a message without ever raising SIGPIPE. A full socket gives `EAGAIN` at once.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    message: Message,
    fds: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    let bytes = message.encode();
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(&bytes)],
        control,
        flags,
        None,
    )
    .map(drop)
}

/// Receives a message. `None` is the end: the peer closed, or it sent what nobody of this version sends.
pub(super) fn receive(socket: BorrowedFd<'_>, wait: bool) -> Result<Option<Received>, Errno> {
    let mut bytes = [0; BYTES + 1];
    // Room for all that the kernel can deliver: what does not fit would be dropped, and what came before it leak.
    let mut control = nix::cmsg_space!([RawFd; SCM_MAX_FD]);
    let mut flags = MsgFlags::MSG_CMSG_CLOEXEC;
    if !wait {
        flags |= MsgFlags::MSG_DONTWAIT;
    }
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let (len, fds) = {
        let got = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        let mut fds = Vec::new();
        for item in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = item {
                // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows them.
                fds.extend(
                    raw.into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        (got.bytes, fds)
    };
    if fds.len() > MAX_FDS {
        return Ok(None);
    }
    Ok(Message::decode(&bytes[..len]).map(|message| Received { message, fds }))
}

/// A pidfd of the process at the other end of `socket`.
pub(super) fn peer_pidfd(socket: BorrowedFd<'_>, pid: i32) -> Result<OwnedFd, Errno> {
    /// `SO_PEERPIDFD`, Linux 6.5.
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut fd: RawFd = -1;
    let mut len = size_of::<RawFd>() as libc::socklen_t;
    // SAFETY: `fd` and `len` are a buffer of the stated size and its length, alive during the call.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut len,
        )
    };
    if done == 0 && fd >= 0 {
        // SAFETY: the kernel has just made it for this process.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    // An older kernel: by number, which may have been given to another process if this one died meanwhile. Then its
    // end of the socket is closed, which the caller sees when it next reads, before it trusts the pidfd with
    // anything. SAFETY: a system call on two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd)? as RawFd;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the process of a pidfd has ended, all its threads included.
pub(super) fn has_ended(pidfd: impl AsFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
}

/// A descriptor that `accept4` has just given.
pub(super) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the one caller passes what `accept4` returned, which nobody else knows.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Whether a process is stopped (by SIGSTOP, a terminal or a debugger), which stops all its threads. `false` if that
/// cannot be found out.
pub(super) fn is_stopped(pid: i32) -> bool {
    // The state is the field after the command's name, which is in parentheses and may hold anything
    // (proc_pid_stat(5)).
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat.rsplit(')').next().map(str::trim_start);
        state.is_some_and(|state| state.starts_with(['T', 't']))
    })
}

/// `membarrier(2)` commands of Linux 4.14.
const MEMBARRIER_PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const MEMBARRIER_REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

/// Announces that this process will use [`barrier_in_all_threads`].
pub(super) fn register_barrier() {
    membarrier(MEMBARRIER_REGISTER_PRIVATE_EXPEDITED);
}

/// A full memory barrier in every running thread of this process.
pub(super) fn barrier_in_all_threads() {
    membarrier(MEMBARRIER_PRIVATE_EXPEDITED);
}

/// Kernels before 4.14 refuse; they lack the write protection whose use this serves as well.
fn membarrier(command: libc::c_int) {
    // SAFETY: a system call on numbers.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
}
