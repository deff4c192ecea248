//! Queue pairs: states, rights, connection.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mu_sys::{
    ibv_ah_attr, ibv_gid, ibv_global_route, ibv_mtu, ibv_qp_attr, ibv_qp_attr_mask as mask,
    ibv_qp_state,
};

use super::device::mtu;
use super::raw_queues::RawQp;
use super::{LinkLayer, Nic, invalid, verb_error};
use crate::{Access, Endpoint, Error, Modify, Placement, QpControl, QpState, RtrAttr, RtsAttr};

/// How long a queue pair of Soft-RoCE stays in ERR before RESET. Its responder may sit in a packet for as long as its
/// CPU is held up: up to 14 ms were seen in a virtual machine.
pub const SOFT_ROCE_DRAIN: Duration = Duration::from_millis(20);

/// Largest value of the 24-bit numbers of queue pairs and packets.
const MAX_24_BITS: u32 = (1 << 24) - 1;
/// Routers a packet may pass (time to live).
const HOP_LIMIT: u8 = 64;
/// In `ibv_port_attr.flags`: every packet needs a global route header (`IBV_QPF_GRH_REQUIRED`).
const GRH_REQUIRED: u8 = 1;
/// Value for `ibv_query_qp_data_in_order` of younger libraries: answer with a bit set. Older ones ignore it or say no.
const RETURN_CAPS: u32 = 1;
/// In that set: ascending within aligned blocks of 128 bytes.
const CAP_ALIGNED_128_BYTES: i32 = 2;

/// The control side of a queue pair: clonable, usable from any thread. It outlives the queue pair; all it does then is
/// to say that.
///
/// What a change asks for beyond the device or the path is lowered to what there is: the MTU to the port's active one,
/// READs and atomics in flight to the device's limits.
#[derive(Clone)]
pub struct NicControl {
    shared: Arc<Shared>,
}

struct Shared {
    qp: Arc<RawQp>,
    nic: Nic,
    /// The state as far as known: as last set or queried.
    state: AtomicU8,
    /// Held during every change.
    local: Mutex<Local>,
}

struct Local {
    psn: u32,
    lid: u16,
    /// When it went to ERR by a change made here.
    err_since: Option<Instant>,
}

const STATES: [QpState; 5] = [
    QpState::Reset,
    QpState::Init,
    QpState::Rtr,
    QpState::Rts,
    QpState::Err,
];

impl NicControl {
    pub(super) fn new(nic: &Nic, qp: &Arc<RawQp>) -> Self {
        let local = Mutex::new(Local {
            psn: 0,
            lid: 0,
            err_since: None,
        });
        let state = AtomicU8::new(QpState::Reset as u8);
        Self {
            shared: Arc::new(Shared {
                qp: qp.clone(),
                nic: nic.clone(),
                state,
                local,
            }),
        }
    }

    pub(super) fn number(&self) -> u32 {
        self.shared.qp.qp_num()
    }

    /// The state as last set or queried here. A queue pair that failed by itself is still in its old state for this.
    #[inline]
    pub(super) fn last_state(&self) -> QpState {
        STATES[usize::from(self.shared.state.load(Ordering::Relaxed)) % STATES.len()]
    }

    fn set_last_state(&self, state: QpState) {
        self.shared.state.store(state as u8, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Local> {
        self.shared
            .local
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn destroyed(&self, verb: &'static str) -> Error {
        invalid(verb, format!("QP {} is destroyed", self.number()))
    }

    /// The order in which the words of one WRITE of the peer become visible here (`ibv_query_qp_data_in_order(3)`). Ask
    /// once the queue pair is in RTR or RTS, and on the side that is written to.
    ///
    /// [`Capabilities::placement`](crate::Capabilities) is `Unknown` for every NIC, since the answer belongs to the
    /// connection: a device may keep the order on one path and not on another (adaptive routing), and a trial
    /// connection of a device with itself would promise too much. A destroyed queue pair, a library without the verb
    /// and a device that promises nothing all give `Unknown`.
    pub fn placement(&self) -> Placement {
        let qp = &self.shared.qp;
        if qp.data_in_order(0) == Some(1) {
            return Placement::WholeMessage;
        }
        match qp.data_in_order(RETURN_CAPS) {
            Some(caps) if caps > 0 && caps & CAP_ALIGNED_128_BYTES != 0 => {
                Placement::Aligned128Bytes
            }
            _ => Placement::Unknown,
        }
    }

    /// The state that the device reports; `ibv_query_qp` under the lock of the caller.
    fn query_state(&self) -> Result<QpState, Error> {
        const VERB: &str = "ibv_query_qp";
        let attr = self
            .shared
            .qp
            .query(mask::IBV_QP_STATE)
            .ok_or_else(|| self.destroyed(VERB))?
            .map_err(|e| verb_error(VERB, e, format!(" on QP {}", self.number())))?;
        let state = match attr.qp_state {
            ibv_qp_state::IBV_QPS_RESET => QpState::Reset,
            ibv_qp_state::IBV_QPS_INIT => QpState::Init,
            ibv_qp_state::IBV_QPS_RTR => QpState::Rtr,
            // Draining sends: nothing here asks for it, and it answers its peer as in RTS.
            ibv_qp_state::IBV_QPS_RTS | ibv_qp_state::IBV_QPS_SQD => QpState::Rts,
            _ => QpState::Err,
        };
        self.set_last_state(state);
        Ok(state)
    }

    fn forbidden(&self, from: QpState, change: &str) -> Error {
        invalid(
            "ibv_modify_qp",
            format!("QP {}: no change from {from:?} by {change}", self.number()),
        )
    }

    /// Gives a change to the device.
    fn apply(
        &self,
        attr: &ibv_qp_attr,
        what: mask,
        change: &Modify,
        detail: &str,
    ) -> Result<(), Error> {
        const VERB: &str = "ibv_modify_qp";
        let result = self
            .shared
            .qp
            .modify(attr, what)
            .ok_or_else(|| self.destroyed(VERB))?;
        let Err(error) = result else { return Ok(()) };
        let name = change.name();
        // The device may have left the state that was set here: then that is the reason to give.
        match self.query_state() {
            Ok(from) if error.raw_os_error() == Some(libc::EINVAL) && !permits(from, change) => {
                Err(self.forbidden(from, name))
            }
            from => {
                let from = from.map_or_else(|_| "unknown".into(), |from| format!("{from:?}"));
                Err(verb_error(
                    VERB,
                    error,
                    format!(" on QP {} from {from} by {name}{detail}", self.number()),
                ))
            }
        }
    }

    fn to_init(&self, local: &mut Local, access: Access, change: &Modify) -> Result<(), Error> {
        let nic = &self.shared.nic;
        check_flags(access)?;
        let random = getrandom::u32().map_err(|error| {
            let code = error.raw_os_error().unwrap_or(libc::EIO);
            verb_error(
                "getrandom",
                std::io::Error::from_raw_os_error(code),
                ", for a packet sequence number".into(),
            )
        })?;
        let lid = nic.port_attr()?.lid;
        let attr = ibv_qp_attr {
            qp_state: ibv_qp_state::IBV_QPS_INIT,
            pkey_index: nic.options().pkey_index,
            port_num: nic.options().port,
            qp_access_flags: access.0,
            ..ibv_qp_attr::default()
        };
        let what = mask::IBV_QP_STATE
            | mask::IBV_QP_PKEY_INDEX
            | mask::IBV_QP_PORT
            | mask::IBV_QP_ACCESS_FLAGS;
        let detail = format!(
            ", port {} pkey index {} {access:?}",
            attr.port_num, attr.pkey_index
        );
        self.apply(&attr, what, change, &detail)?;
        local.psn = random & MAX_24_BITS;
        local.lid = lid;
        local.err_since = None;
        self.set_last_state(QpState::Init);
        Ok(())
    }

    fn to_rtr(&self, rtr: &RtrAttr, change: &Modify) -> Result<(), Error> {
        let nic = &self.shared.nic;
        let Endpoint { qp_num, psn, .. } = rtr.remote;
        if qp_num > MAX_24_BITS || psn > MAX_24_BITS {
            return Err(invalid(
                "ibv_modify_qp",
                format!("peer QP {qp_num:#x}, PSN {psn:#x}: both have 24 bits"),
            ));
        }
        check_bits("min_rnr_timer", rtr.min_rnr_timer, 31)?;
        let port = nic.port_attr()?;
        let path_mtu = rtr.path_mtu.min(mtu(port.active_mtu.0));
        let ah_attr = self.path(&rtr.remote, port.lid, port.flags & GRH_REQUIRED != 0)?;
        let attr = ibv_qp_attr {
            qp_state: ibv_qp_state::IBV_QPS_RTR,
            ah_attr,
            path_mtu: ibv_mtu(path_mtu as u32),
            dest_qp_num: qp_num,
            rq_psn: psn,
            max_dest_rd_atomic: rtr.max_dest_rd_atomic.min(nic.probed().max_dest_rd_atom),
            min_rnr_timer: rtr.min_rnr_timer,
            ..ibv_qp_attr::default()
        };
        let what = mask::IBV_QP_STATE
            | mask::IBV_QP_AV
            | mask::IBV_QP_PATH_MTU
            | mask::IBV_QP_DEST_QPN
            | mask::IBV_QP_RQ_PSN
            | mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | mask::IBV_QP_MIN_RNR_TIMER;
        let gid = std::net::Ipv6Addr::from(rtr.remote.gid);
        let detail = format!(
            ", peer QP {qp_num} at GID {gid} LID {}, MTU {}, from GID index {}",
            rtr.remote.lid,
            path_mtu.bytes(),
            ah_attr.grh.sgid_index
        );
        self.apply(&attr, what, change, &detail)?;
        self.set_last_state(QpState::Rtr);
        Ok(())
    }

    /// The way to a peer (`struct ibv_ah_attr`): by GID on Ethernet; by LID on InfiniBand, with a global route only if
    /// the peer is in another subnet or the port demands it.
    fn path(&self, remote: &Endpoint, lid: u16, grh_required: bool) -> Result<ibv_ah_attr, Error> {
        let nic = &self.shared.nic;
        let own = nic.gid();
        let ethernet = nic.link_layer() == LinkLayer::ETHERNET;
        let same_subnet = own.is_none_or(|own| own.gid[..8] == remote.gid[..8]);
        let has_gid = remote.gid != [0; 16];
        let is_global = ethernet || grh_required || remote.lid == 0 || (has_gid && !same_subnet);
        if is_global && !has_gid {
            return Err(invalid(
                "ibv_modify_qp",
                format!("peer QP {} has no GID to be reached at", remote.qp_num),
            ));
        }
        if is_global && own.is_none() {
            return Err(invalid(
                "ibv_modify_qp",
                "this port has no GID to send from".into(),
            ));
        }
        let grh = ibv_global_route {
            dgid: ibv_gid { raw: remote.gid },
            flow_label: 0,
            sgid_index: own.map_or(0, |own| own.index as u8),
            hop_limit: HOP_LIMIT,
            traffic_class: nic.options().traffic_class,
        };
        debug_assert!(ethernet || is_global || lid != 0 || remote.lid != 0);
        Ok(ibv_ah_attr {
            grh: if is_global {
                grh
            } else {
                ibv_global_route::default()
            },
            dlid: if ethernet { 0 } else { remote.lid },
            sl: nic.options().service_level,
            is_global: u8::from(is_global),
            port_num: nic.options().port,
            ..ibv_ah_attr::default()
        })
    }

    fn to_rts(&self, local: &Local, rts: &RtsAttr, change: &Modify) -> Result<(), Error> {
        check_bits("timeout", rts.timeout, 31)?;
        check_bits("retry_cnt", rts.retry_cnt, 7)?;
        check_bits("rnr_retry", rts.rnr_retry, 7)?;
        let attr = ibv_qp_attr {
            qp_state: ibv_qp_state::IBV_QPS_RTS,
            sq_psn: local.psn,
            timeout: rts.timeout,
            retry_cnt: rts.retry_cnt,
            rnr_retry: rts.rnr_retry,
            max_rd_atomic: rts
                .max_rd_atomic
                .min(self.shared.nic.probed().max_init_rd_atom),
            ..ibv_qp_attr::default()
        };
        let what = mask::IBV_QP_STATE
            | mask::IBV_QP_SQ_PSN
            | mask::IBV_QP_TIMEOUT
            | mask::IBV_QP_RETRY_CNT
            | mask::IBV_QP_RNR_RETRY
            | mask::IBV_QP_MAX_QP_RD_ATOMIC;
        let detail = format!(
            ", timeout {} retry_cnt {} rnr_retry {} max_rd_atomic {}",
            attr.timeout, attr.retry_cnt, attr.rnr_retry, attr.max_rd_atomic
        );
        self.apply(&attr, what, change, &detail)?;
        self.set_last_state(QpState::Rts);
        Ok(())
    }

    fn set_access(&self, access: Access, change: &Modify) -> Result<(), Error> {
        check_flags(access)?;
        let attr = ibv_qp_attr {
            qp_access_flags: access.0,
            ..ibv_qp_attr::default()
        };
        // The state tables of kernels have no way from RTR to RTR.
        let hint = match self.last_state() {
            QpState::Rtr => "; in RTR devices do not take it: go to RTS first",
            _ => "",
        };
        self.apply(
            &attr,
            mask::IBV_QP_ACCESS_FLAGS,
            change,
            &format!(" to {access:?}{hint}"),
        )
    }

    fn to_err(&self, local: &mut Local, change: &Modify) -> Result<(), Error> {
        if self.last_state() == QpState::Reset {
            // The state tables of kernels have no way from RESET to ERR.
            self.to_init(local, Access::NONE, change)?;
        }
        self.set_state(ibv_qp_state::IBV_QPS_ERR, change)?;
        local.err_since = Some(Instant::now());
        self.set_last_state(QpState::Err);
        Ok(())
    }

    fn to_reset(&self, local: &mut Local, change: &Modify) -> Result<(), Error> {
        if matches!(self.last_state(), QpState::Rtr | QpState::Rts) {
            self.to_err(local, change)?;
        }
        if self.last_state() == QpState::Err {
            let drain = self.shared.nic.probed().reset_drain;
            let since = local.err_since.map_or(Duration::ZERO, |at| at.elapsed());
            thread::sleep(drain.saturating_sub(since));
        }
        self.set_state(ibv_qp_state::IBV_QPS_RESET, change)?;
        local.err_since = None;
        self.set_last_state(QpState::Reset);
        Ok(())
    }

    fn set_state(&self, qp_state: ibv_qp_state, change: &Modify) -> Result<(), Error> {
        self.apply(
            &ibv_qp_attr {
                qp_state,
                ..ibv_qp_attr::default()
            },
            mask::IBV_QP_STATE,
            change,
            "",
        )
    }
}

/// The state table of `ibv_modify_qp(3)`, for the changes that there are here.
fn permits(from: QpState, change: &Modify) -> bool {
    match change {
        Modify::Init(_) => from == QpState::Reset,
        Modify::Rtr(_) => from == QpState::Init,
        Modify::Rts(_) => from == QpState::Rtr,
        Modify::Access(_) => matches!(from, QpState::Init | QpState::Rtr | QpState::Rts),
        Modify::Err | Modify::Reset => true,
    }
}

fn check_flags(access: Access) -> Result<(), Error> {
    if access.without(Access::ALL) == Access::NONE {
        return Ok(());
    }
    Err(invalid(
        "ibv_modify_qp",
        format!(
            "access flags {:#x}: only those of {:?} are known",
            access.0,
            Access::ALL
        ),
    ))
}

fn check_bits(what: &str, value: u8, most: u8) -> Result<(), Error> {
    if value <= most {
        return Ok(());
    }
    Err(invalid(
        "ibv_modify_qp",
        format!("{what} {value}, the largest is {most}"),
    ))
}

impl QpControl for NicControl {
    fn qp_num(&self) -> u32 {
        self.number()
    }

    fn endpoint(&self) -> Endpoint {
        let local = self.lock();
        let gid = self.shared.nic.gid().map_or([0; 16], |gid| gid.gid);
        Endpoint {
            node: 0,
            qp_num: self.number(),
            psn: local.psn,
            gid,
            lid: local.lid,
        }
    }

    fn state(&self) -> Result<QpState, Error> {
        let _changing = self.lock();
        self.query_state()
    }

    /// As the trait has it. ERR from RESET goes through INIT without rights. RESET from RTR or RTS goes through ERR; on
    /// Soft-RoCE it takes [`SOFT_ROCE_DRAIN`] from there on, and completions that ERR flushed may still be polled.
    fn modify(&self, change: &Modify) -> Result<(), Error> {
        let mut local = self.lock();
        if !permits(self.last_state(), change) {
            // A queue pair leaves a state by itself for ERR only, from which no change is possible that is not from
            // here.
            let from = self.query_state()?;
            return Err(self.forbidden(from, change.name()));
        }
        match change {
            Modify::Init(access) => self.to_init(&mut local, *access, change),
            Modify::Rtr(attr) => self.to_rtr(attr, change),
            Modify::Rts(attr) => self.to_rts(&local, attr, change),
            Modify::Access(access) => self.set_access(*access, change),
            Modify::Err => self.to_err(&mut local, change),
            Modify::Reset => self.to_reset(&mut local, change),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_numbered_as_they_are_listed() {
        for (number, state) in STATES.into_iter().enumerate() {
            assert_eq!(state as usize, number);
        }
    }
}
