//! What a device can do, found out once when it is opened: by asking where there is a query, by trying where there is
//! none.

use std::sync::Arc;
use std::time::Duration;

use mu_sys::{ibv_atomic_cap, ibv_device_attr, ibv_port_attr, ibv_qp_cap};

use super::batch::MAX_SGE;
use super::control::SOFT_ROCE_DRAIN;
use super::device::mtu;
use super::raw_device::RawContext;
use super::raw_objects::{RawMr, RawMw, RawPd};
use super::raw_queues::{QpOwner, RawCq};
use super::sysfs::{SOFT_IWARP, SOFT_ROCE, Sysfs};
use super::verb_error;
use crate::{
    Access, Atomicity, BackendKind, Barrier, Capabilities, Error, Memory, Placement, RevokeCaps,
};

/// The largest inline payload that is tried.
const MAX_INLINE: u32 = 1024;
/// The smallest one; below it, a device counts as having none.
const MIN_INLINE: u32 = 16;

/// Capabilities, and what else a queue pair of the device has to heed.
pub(super) struct Probed {
    pub(super) caps: Capabilities,
    /// READs and atomics a queue pair may have in flight itself.
    pub(super) max_init_rd_atom: u8,
    /// READs and atomics of its peer that a queue pair serves at once.
    pub(super) max_dest_rd_atom: u8,
    /// How long a queue pair stays in ERR before RESET.
    pub(super) reset_drain: Duration,
}

pub(super) fn probe(
    context: &Arc<RawContext>,
    device: &str,
    sysfs: &Sysfs,
    port: &ibv_port_attr,
) -> Result<Probed, Error> {
    let failed = |verb| {
        move |error| {
            verb_error(
                verb,
                error,
                format!(" on {device}, while its abilities were tried"),
            )
        }
    };
    let attr = context.query_device().map_err(failed("ibv_query_device"))?;
    let pd = Arc::new(RawPd::alloc(context).map_err(failed("ibv_alloc_pd"))?);
    let cq = Arc::new(RawCq::create(context, 1).map_err(failed("ibv_create_cq"))?);
    let max_inline_data = inline_limit(&pd, &cq).map_err(failed("ibv_create_qp"))?;
    let rereg_mr = rereg_works(&pd, device)?;
    let memory_windows = RawMw::alloc(&pd).is_ok();
    let driver = sysfs.driver(Some(attr.vendor_id));
    let software = matches!(driver.as_str(), SOFT_ROCE | SOFT_IWARP);
    let reset_drain = if driver == SOFT_ROCE {
        SOFT_ROCE_DRAIN
    } else {
        Duration::ZERO
    };
    let caps = Capabilities {
        backend: BackendKind::Nic,
        device: device.into(),
        max_inline_data,
        max_qp_wr: count(attr.max_qp_wr),
        max_sge: count(attr.max_sge).min(MAX_SGE as u32),
        max_recv_sge: count(attr.max_sge).min(MAX_SGE as u32),
        max_cqe: count(attr.max_cqe),
        max_qp_rd_atom: count(attr.max_qp_rd_atom),
        max_msg: u64::from(port.max_msg_sz),
        max_mtu: mtu(port.active_mtu.0),
        // See `NicControl::placement`: the answer belongs to a connection.
        placement: Placement::Unknown,
        atomicity: atomicity(&attr),
        qp_kinds: crate::QpKinds::RC,
        revoke: revoke_caps(&driver, memory_windows),
        rereg_mr,
        rereg_is_barrier: false,
        memory_windows,
        bounded_revoke: true,
        target_cpu_free: !software,
        tells_peer_ended: false,
        // Soft-RoCE works a request off within the system call that posts it: measured on Linux 6.1, and by the lane
        // `rxe` on whatever kernel it gets.
        runs_when_posted: driver == SOFT_ROCE,
        hostile_safe: true,
        driver,
    };
    let depth = |n: i32| u8::try_from(count(n)).unwrap_or(u8::MAX);
    Ok(Probed {
        caps,
        max_init_rd_atom: depth(attr.max_qp_init_rd_atom),
        max_dest_rd_atom: depth(attr.max_qp_rd_atom),
        reset_drain,
    })
}

/// C gives limits as signed numbers.
fn count(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

fn atomicity(attr: &ibv_device_attr) -> Atomicity {
    match attr.atomic_cap {
        ibv_atomic_cap::IBV_ATOMIC_HCA => Atomicity::Hca,
        ibv_atomic_cap::IBV_ATOMIC_GLOB => Atomicity::Global,
        _ => Atomicity::None,
    }
}

/// There is no query for the inline limit: queue pairs are made until one is granted.
fn inline_limit(pd: &Arc<RawPd>, cq: &Arc<RawCq>) -> std::io::Result<u32> {
    let mut asked = MAX_INLINE;
    loop {
        let cap = ibv_qp_cap {
            max_send_wr: 1,
            max_recv_wr: 1,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: asked,
        };
        match QpOwner::create(pd, cq, cq, cap) {
            Ok((_, got)) => return Ok(asked.min(got.max_inline_data)),
            Err(error) if asked == 0 => return Err(error),
            Err(_) => asked = if asked > MIN_INLINE { asked / 2 } else { 0 },
        }
    }
}

/// There is no query for `ibv_rereg_mr` either. It counts only if the keys stay: peers have them.
fn rereg_works(pd: &Arc<RawPd>, device: &str) -> Result<bool, Error> {
    let memory = Memory::anonymous(1)?;
    let before = Access::LOG;
    let mut mr = RawMr::register(pd, &memory, 0, memory.len(), before)
        .map_err(|error| super::mr::register_error(error, memory.len(), before, device))?;
    let keys = mr.keys();
    let changed = matches!(
        mr.reregister(Access::LOCAL_WRITE | Access::REMOTE_READ),
        Some(Ok(()))
    );
    Ok(changed && mr.keys() == keys)
}

/// What each way of revoking is worth.
///
/// The question is whether a byte of the peer can land after the revoking verb has returned. Where the facts come from:
///
/// - Taking the registration away is a barrier by the contract of the verb, on every device: `ibv_dereg_mr(3)` gives
///   the memory back to its owner, who may free it. `ibv_rereg_mr(3)` promises no such thing, so no right is taken away
///   by it here.
/// - Kernel Soft-RoCE (Linux 6.1, two virtual CPUs) was measured with writes in flight and a copy of the target taken
///   when the verb returned. Later stores were seen after a change of the queue pair's flags (45 of 700 tries with 4
///   KiB writes, never more than one packet, up to 14 ms late), after ERR (16 of 300) and after the completion of a
///   window's invalidation (13 of 295); after RESET too, which moreover breaks a queue pair that is receiving. None
///   after `ibv_dereg_mr` (0 of 1,600 with and without a change of flags before). Its source agrees: the responder
///   tests the rights of a packet first and copies then, and only deregistration (and destroying the queue pair) waits
///   for a responder under way.
/// - For other devices nobody has measured it here, and no specification says it of a change of flags, of ERR or of an
///   invalidation: unknown. `mu doctor --revoke-stress` tries it.
fn revoke_caps(driver: &str, memory_windows: bool) -> RevokeCaps {
    let others = if driver == SOFT_ROCE {
        Barrier::No
    } else {
        Barrier::Unknown
    };
    RevokeCaps {
        qp_flags: others,
        qp_cycle: others,
        reregister: Barrier::Yes,
        window: if memory_windows {
            others
        } else {
            Barrier::Unsupported
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RevokeMethod;

    #[test]
    fn only_taking_the_registration_away_is_called_a_barrier() {
        for driver in [SOFT_ROCE, SOFT_IWARP, "mlx5_core", "unknown"] {
            for windows in [false, true] {
                let caps = revoke_caps(driver, windows);
                assert_eq!(
                    caps.fastest_barrier(),
                    Some(RevokeMethod::Reregister),
                    "{driver}"
                );
                assert_eq!(caps.window == Barrier::Unsupported, !windows, "{driver}");
            }
        }
        assert_eq!(revoke_caps(SOFT_ROCE, true).qp_flags, Barrier::No);
        assert_eq!(revoke_caps("mlx5_core", true).qp_flags, Barrier::Unknown);
    }
}
