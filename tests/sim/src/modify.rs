//! States and rights: what `ibv_modify_qp`, `ibv_rereg_mr`, `ibv_dereg_mr` and the end of a process do.

use std::io;

use mu_verbs::{Access, Endpoint, Error, Modify, QpState, RtrAttr, RtsAttr};

use crate::faults::Fault;
use crate::flow::Flow;
use crate::state::State;

const MODIFY: &str = "ibv_modify_qp";
/// What a device answers that fails for no reason of the caller's.
const EIO: i32 = 5;

fn device_error(verb: &'static str) -> Error {
    Error::Verb {
        verb,
        source: io::Error::from_raw_os_error(EIO),
        detail: ", the simulated device fails as it was told to".into(),
    }
}

impl State {
    /// `ibv_modify_qp(3)`, with the faults that can strike it.
    pub(crate) fn modify(&mut self, qp: u32, change: &Modify) -> Result<(), Error> {
        let table = &self.qps[qp as usize];
        let (node, qp_num) = (table.node, table.qp_num);
        if self.ctxs[table.ctx as usize].frozen {
            return Ok(());
        }
        let rates = self.nodes[node].rates;
        let way = self.way(qp);
        self.trace.event(
            self.now,
            [3, u64::from(qp_num), change.name().len() as u64, 0],
            || match change {
                Modify::Init(access) | Modify::Access(access) => {
                    format!("modify {way} {qp_num:#x} {} {access:?}", change.name())
                }
                _ => format!("modify {way} {qp_num:#x} {}", change.name()),
            },
        );
        let slow = self.rng.chance(rates.modify_slow);
        let (before, after) = if slow {
            self.hit(Fault::ModifySlow);
            (
                self.rng.spread(1_000, 500_000),
                self.rng.spread(1_000, 500_000),
            )
        } else {
            (0, 0)
        };
        self.stall(before);
        let (fault, rate) = match change {
            Modify::Access(_) => (Fault::FlagsFail, rates.flags_fail),
            // To ERR and RESET is the way out of everything else, and is done by the driver's software.
            Modify::Err | Modify::Reset => (Fault::ModifyFails, 0),
            _ => (Fault::ModifyFails, rates.modify_fails),
        };
        let fails = self.rng.chance(rate);
        // A call that fails may have done its work or not.
        if !fails || self.rng.one_in(2) {
            self.change(qp, change)?;
        }
        let breaks = matches!(change, Modify::Access(_)) && self.rng.chance(rates.flags_break_qp);
        if breaks && self.qps[qp as usize].state == QpState::Rts {
            self.hit(Fault::FlagsBreakQp);
            self.fail(qp);
        }
        self.stall(after);
        if fails {
            self.hit(fault);
            return Err(device_error(MODIFY));
        }
        Ok(())
    }

    fn change(&mut self, qp: u32, change: &Modify) -> Result<(), Error> {
        use QpState::{Err as Failed, Init, Reset, Rtr, Rts};
        let state = self.qps[qp as usize].state;
        if !self.qps[qp as usize].alive {
            return Err(device_error(MODIFY));
        }
        match (state, *change) {
            (Reset, Modify::Init(access)) => self.init(qp, access),
            (Init, Modify::Rtr(attr)) => self.ready_to_receive(qp, &attr),
            (Rtr, Modify::Rts(attr)) => self.ready_to_send(qp, attr),
            // In RTR a NIC has no other flags.
            (Init | Rts, Modify::Access(access)) => self.set_access(qp, access),
            (_, Modify::Err) => {
                self.barrier(qp, self.profile.leak.cycle);
                self.fail(qp);
                Ok(())
            }
            (_, Modify::Reset) => {
                self.barrier(qp, self.profile.leak.cycle);
                self.reset(qp);
                Ok(())
            }
            (Failed | Reset | Init | Rtr | Rts, _) => {
                let qp_num = self.qps[qp as usize].qp_num;
                let what = format!(
                    "no change of QP {qp_num:#x} from {state:?} by {}",
                    change.name()
                );
                Err(Error::Invalid { verb: MODIFY, what })
            }
        }
    }

    /// What was acknowledged over it and is not yet visible lands before the change that is a barrier is done.
    fn barrier(&mut self, qp: u32, leaks: bool) {
        if !leaks {
            self.reveal(self.qps[qp as usize].node);
        }
    }

    fn init(&mut self, qp: u32, access: Access) -> Result<(), Error> {
        check(access)?;
        let psn = self.rng.next_u64() as u32 & 0xff_ffff;
        let table = &mut self.qps[qp as usize];
        table.psn = psn;
        table.access = access;
        table.state = QpState::Init;
        Ok(())
    }

    fn ready_to_receive(&mut self, qp: u32, attr: &RtrAttr) -> Result<(), Error> {
        let table = &mut self.qps[qp as usize];
        table.remote = attr.remote;
        table.mtu = attr.path_mtu.bytes();
        table.state = QpState::Rtr;
        Ok(())
    }

    fn ready_to_send(&mut self, qp: u32, attr: RtsAttr) -> Result<(), Error> {
        let table = &self.qps[qp as usize];
        let Endpoint {
            node: remote,
            qp_num,
            psn,
            ..
        } = table.remote;
        let target = self.ctxs.iter().find(|ctx| ctx.id == remote);
        let target = target.ok_or_else(|| Error::Invalid {
            verb: MODIFY,
            what: format!("there never was a device {remote:#x}"),
        })?;
        let flow = Flow {
            qp,
            from: table.node,
            to: target.node,
            target_qp: qp_num & QP_INDEX,
            target_qp_num: qp_num,
            target_psn: psn,
            own_qp_num: table.qp_num,
            own_psn: table.psn,
            own_ctx: self.ctxs[table.ctx as usize].id,
            mtu: table.mtu,
            rts: attr,
            ..Flow::default()
        };
        let flow = self.new_flow(flow);
        let table = &mut self.qps[qp as usize];
        table.rts = attr;
        table.flow = Some(flow);
        table.state = QpState::Rts;
        Ok(())
    }

    fn set_access(&mut self, qp: u32, access: Access) -> Result<(), Error> {
        check(access)?;
        if self.qps[qp as usize].access.without(access).any_remote() {
            self.barrier(qp, self.profile.leak.flags);
        }
        self.qps[qp as usize].access = access;
        Ok(())
    }

    /// RESET forgets: what is posted, what waits, and completions that were not polled.
    fn reset(&mut self, qp: u32) {
        let table = &mut self.qps[qp as usize];
        table.state = QpState::Reset;
        table.incarnation += 1;
        (table.posted, table.finished) = (0, 0);
        (table.received, table.receives_finished) = (0, 0);
        table.receives.clear();
        if let Some(flow) = table.flow.take() {
            self.orphan(flow);
        }
    }

    /// `ibv_destroy_qp(3)`. Nothing lands through it any more.
    pub(crate) fn destroy_qp(&mut self, qp: u32) {
        let table = &self.qps[qp as usize];
        let (alive, frozen) = (table.alive, self.ctxs[table.ctx as usize].frozen);
        // A frozen process destroys nothing; `kill` thaws it before it ends it.
        if alive && !frozen {
            self.reveal(self.qps[qp as usize].node);
            self.reset(qp);
            self.qps[qp as usize].alive = false;
        }
    }

    /// `ibv_rereg_mr(3)`.
    pub(crate) fn reregister(&mut self, region: u32, access: Access) -> Result<(), Error> {
        const VERB: &str = "ibv_rereg_mr";
        if !self.profile.rereg_mr {
            return Err(Error::Unsupported {
                verb: VERB,
                device: "sim".into(),
                what: "a change of a registration's rights",
            });
        }
        if !access.is_registrable() {
            return Err(Error::Invalid {
                verb: VERB,
                what: format!("{access:?} cannot be registered"),
            });
        }
        let ctx = &self.ctxs[self.regions[region as usize].ctx as usize];
        if ctx.frozen {
            return Ok(());
        }
        let node = ctx.node;
        if self.rng.chance(self.nodes[node].rates.reregister_fails) {
            self.hit(Fault::ReregisterFails);
            return Err(device_error(VERB));
        }
        if !self.profile.leak.reregister {
            self.reveal(node);
        }
        self.regions[region as usize].access = access;
        self.trace.event(
            self.now,
            [4, u64::from(region), u64::from(access.0), 0],
            || {
                format!(
                    "reregister key {:#x} {access:?}",
                    self.regions[region as usize].key
                )
            },
        );
        Ok(())
    }

    /// `ibv_dereg_mr(3)`: always a barrier.
    pub(crate) fn deregister(&mut self, region: u32) -> Result<(), Error> {
        let table = &self.regions[region as usize];
        let ctx = &self.ctxs[table.ctx as usize];
        let (key, node) = (table.key, ctx.node);
        if !table.alive || ctx.frozen {
            return Ok(());
        }
        if self.rng.chance(self.nodes[node].rates.deregister_fails) {
            self.hit(Fault::DeregisterFails);
            return Err(device_error("ibv_dereg_mr"));
        }
        self.reveal(node);
        self.regions[region as usize].alive = false;
        self.trace
            .event(self.now, [5, u64::from(region), 0, 0], || {
                format!("deregister key {key:#x}")
            });
        Ok(())
    }

    /// A process ends: the system takes its queue pairs and registrations away.
    pub(crate) fn close_ctx(&mut self, ctx: u32) {
        self.ctxs[ctx as usize].frozen = false;
        for qp in 0..self.qps.len() as u32 {
            if self.qps[qp as usize].ctx == ctx {
                self.destroy_qp(qp);
            }
        }
        self.regions
            .iter_mut()
            .filter(|region| region.ctx == ctx)
            .for_each(|r| r.alive = false);
        self.ctxs[ctx as usize].alive = false;
        self.ctxs[ctx as usize].frozen = true;
    }
}

/// The part of a queue pair's number that is its place in the table.
pub(crate) const QP_INDEX: u32 = 0xfff;

fn check(access: Access) -> Result<(), Error> {
    if access.without(Access::ALL) != Access::NONE {
        return Err(Error::Invalid {
            verb: MODIFY,
            what: format!("{access:?} has unknown flags"),
        });
    }
    Ok(())
}
