//! Memory regions and windows.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::raw_device::memlock_limit;
use super::raw_objects::{RawMr, RawMw, RawPd, RawReregError};
use super::{Nic, NicPd, invalid, verb_error};
use crate::{Access, Context, Error, Memory, MemoryRegion, MemoryWindow};

/// A registration of memory (`struct ibv_mr`).
pub struct NicMr {
    raw: RawMr,
    nic: Nic,
    pd: Arc<RawPd>,
    memory: Memory,
    range: Range<usize>,
    /// Address of its first byte.
    start: u64,
    device_id: u64,
    lkey: u32,
    rkey: u32,
    access: Access,
}

impl NicMr {
    pub(super) fn register(
        nic: &Nic,
        pd: &NicPd,
        memory: &Memory,
        range: Range<usize>,
        access: Access,
    ) -> Result<Self, Error> {
        const VERB: &str = "ibv_reg_mr";
        let Range { start, end } = range;
        if start >= end || end > memory.len() {
            return Err(invalid(
                VERB,
                format!("bytes {start}..{end} of a memory of {} bytes", memory.len()),
            ));
        }
        check_access(VERB, access)?;
        pd.check(nic, VERB)?;
        let raw = RawMr::register(&pd.raw, memory, start, end - start, access)
            .map_err(|error| register_error(error, end - start, access, &nic.caps().device))?;
        let (lkey, rkey) = raw.keys();
        Ok(Self {
            raw,
            nic: nic.clone(),
            pd: pd.raw.clone(),
            memory: memory.clone(),
            range: start..end,
            start: memory.addr() + start as u64,
            device_id: nic.id(),
            lkey,
            rkey,
            access,
        })
    }

    pub(super) fn raw(&self) -> &RawMr {
        &self.raw
    }

    /// The device it is registered with, by its number in this process.
    #[inline]
    pub(super) fn device_id(&self) -> u64 {
        self.device_id
    }

    /// Address of a byte of it, which may lie outside: the device checks.
    #[inline]
    pub(super) fn addr_of(&self, offset: usize) -> u64 {
        self.start.wrapping_add(offset as u64)
    }

    pub(super) fn is_of_pd(&self, pd: &Arc<RawPd>) -> bool {
        Arc::ptr_eq(&self.pd, pd)
    }

    fn detail(&self) -> String {
        format!(
            " on {}: rkey {:#x}, {} bytes",
            self.nic.caps().device,
            self.rkey,
            self.range.len()
        )
    }
}

fn check_access(verb: &'static str, access: Access) -> Result<(), Error> {
    if access.is_registrable() {
        return Ok(());
    }
    let why = if access.without(Access::ALL) == Access::NONE {
        "remote writes and atomics need the local write right too"
    } else {
        "flags that are not known here; relaxed ordering above all is refused, for peers' words are polled"
    };
    Err(invalid(
        verb,
        format!("{access:?} ({:#x}): {why}", access.0),
    ))
}

pub(super) fn register_error(error: io::Error, len: usize, access: Access, device: &str) -> Error {
    let mut detail = format!(" on {device} for {len} bytes, {access:?}");
    if matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EAGAIN)) {
        detail += &match memlock_limit() {
            Some(limit) => format!(
                "; this process may lock {limit} bytes (RLIMIT_MEMLOCK): raise it (ulimit -l, LimitMEMLOCK=, \
                 or the capability CAP_IPC_LOCK)"
            ),
            None => "; RLIMIT_MEMLOCK is not the reason, there is no limit".into(),
        };
    }
    verb_error("ibv_reg_mr", error, detail)
}

impl MemoryRegion for NicMr {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    fn addr(&self) -> u64 {
        self.start
    }

    #[inline]
    fn lkey(&self) -> u32 {
        self.lkey
    }

    fn rkey(&self) -> u32 {
        self.rkey
    }

    fn access(&self) -> Access {
        self.access
    }

    /// As the trait has it. If the device fails in the middle, the man page calls the registration unusable: it is
    /// deregistered at once then, so that no right survives; its keys are dead, and the error says so.
    fn reregister(&mut self, access: Access) -> Result<(), Error> {
        const VERB: &str = "ibv_rereg_mr";
        check_access(VERB, access)?;
        let unsupported = || Error::Unsupported {
            verb: VERB,
            device: self.nic.caps().device.clone(),
            what: "a change of a registration's rights; deregister and register anew",
        };
        if self.raw.live().is_none() {
            return Err(invalid(
                VERB,
                "an earlier re-registration failed and ended this registration".into(),
            ));
        }
        match self.raw.reregister(access) {
            None => Err(unsupported()),
            Some(Ok(())) => {
                (self.lkey, self.rkey) = self.raw.keys();
                self.access = access;
                Ok(())
            }
            Some(Err(RawReregError::Unchanged(error))) => match error.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::ENOSYS) => Err(unsupported()),
                _ => Err(verb_error(
                    VERB,
                    error,
                    format!("{}; it is unchanged", self.detail()),
                )),
            },
            Some(Err(RawReregError::Broken(error))) => {
                self.access = Access::NONE;
                let end = match self.raw.end() {
                    Ok(()) => {
                        "it could be neither kept nor changed and was deregistered: register anew"
                            .into()
                    }
                    Err(error) => format!(
                        "it must not be used any more, and deregistering failed too: {error}"
                    ),
                };
                Err(verb_error(VERB, error, format!("{}; {end}", self.detail())))
            }
        }
    }

    fn close(mut self) -> Result<(), Error> {
        let detail = self.detail();
        self.raw.end().map_err(|error| {
            let bound = matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINVAL));
            let why = if bound {
                "; is a memory window still bound to it?"
            } else {
                ""
            };
            verb_error("ibv_dereg_mr", error, detail + why)
        })
    }
}

/// A type-2 memory window (`struct ibv_mw`). After a bind that failed, what key the device holds is not known: close
/// it.
pub struct NicMw {
    raw: RawMw,
    pd: Arc<RawPd>,
}

impl NicMw {
    pub(super) fn alloc(nic: &Nic, pd: &NicPd) -> Result<Self, Error> {
        const VERB: &str = "ibv_alloc_mw";
        pd.check(nic, VERB)?;
        let raw = RawMw::alloc(&pd.raw).map_err(|error| match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => Error::Unsupported {
                verb: VERB,
                device: nic.caps().device.clone(),
                what: "memory windows of type 2",
            },
            _ => verb_error(VERB, error, format!(" on {}", nic.caps().device)),
        })?;
        Ok(Self {
            raw,
            pd: pd.raw.clone(),
        })
    }

    pub(super) fn raw(&self) -> &RawMw {
        &self.raw
    }

    pub(super) fn is_of(&self, pd: &Arc<RawPd>) -> bool {
        Arc::ptr_eq(&self.pd, pd)
    }
}

impl MemoryWindow for NicMw {
    fn rkey(&self) -> u32 {
        self.raw.rkey()
    }

    fn close(mut self) -> Result<(), Error> {
        let rkey = self.raw.rkey();
        self.raw
            .end()
            .map_err(|error| verb_error("ibv_dealloc_mw", error, format!(": rkey {rkey:#x}")))
    }
}
