//! An opened device.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mu_sys::{Lib, ibv_port_attr, ibv_qp_cap};

use super::device::{self, GidInfo, LinkLayer, PortInfo, PortState, port_attr};
use super::probe::{Probed, probe};
use super::raw_device::RawContext;
use super::raw_objects::RawPd;
use super::raw_post::CqOwner;
use super::raw_queues::{QpOwner, RawCq};
use super::sysfs::Sysfs;
use super::{NicControl, NicCq, NicMr, NicMw, NicQp, invalid, verb_error};
use crate::{Access, AsyncEvent, Capabilities, Context, Error, Memory, QpCap};

/// Which port and address of a device to use, and how its packets are marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicOptions {
    /// The port, from 1.
    pub port: u8,
    /// Place of the address in the port's GID table; `None` takes the best: RoCE v2 over IPv4, else RoCE v2, else the
    /// first.
    pub gid_index: Option<u32>,
    /// Place of the partition key in the port's table.
    pub pkey_index: u16,
    /// Service level, 0 to 15; on RoCE the Ethernet priority.
    pub service_level: u8,
    /// Traffic class; on RoCE v2 the IP type of service, whose upper six bits are the DSCP.
    pub traffic_class: u8,
}

impl Default for NicOptions {
    fn default() -> Self {
        Self {
            port: 1,
            gid_index: None,
            pkey_index: 0,
            service_level: 0,
            traffic_class: 0,
        }
    }
}

/// An opened ibverbs device (`struct ibv_context`), with one port and one address of it.
#[derive(Clone)]
pub struct Nic {
    inner: Arc<Inner>,
}

struct Inner {
    context: Arc<RawContext>,
    id: u64,
    options: NicOptions,
    link_layer: LinkLayer,
    gid: Option<GidInfo>,
    probed: Probed,
}

/// A protection domain (`struct ibv_pd`).
#[derive(Clone)]
pub struct NicPd {
    pub(super) raw: Arc<RawPd>,
}

impl NicPd {
    pub(super) fn check(&self, nic: &Nic, verb: &'static str) -> Result<(), Error> {
        if Arc::ptr_eq(self.raw.context(), nic.context()) {
            return Ok(());
        }
        Err(invalid(
            verb,
            format!(
                "the protection domain is not of this context ({})",
                nic.caps().device
            ),
        ))
    }
}

impl Nic {
    /// Opens the device `name` through the libibverbs of this machine.
    ///
    /// # Errors
    /// No libibverbs; no such device (the message lists what there is); no permission on its character device; a port
    /// that does not exist or is down; no address; or a verb that failed while the device's abilities were tried.
    pub fn open(name: &str, options: &NicOptions) -> Result<Self, Error> {
        Self::open_with(Lib::load()?, name, options)
    }

    /// As [`open`](Self::open), through this library.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(lib: &'static Lib, name: &str, options: &NicOptions) -> Result<Self, Error> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let (context, sysfs) = find(lib, name)?;
        context.set_nonblocking().map_err(|e| {
            verb_error(
                "ibv_open_device",
                e,
                format!(" on {name}: fcntl of its event descriptor"),
            )
        })?;
        let port = checked_port(&context, name, options)?;
        let info = PortInfo::query(&context, &sysfs, name, options.port)?;
        let gid = choose_gid(&info, name, options)?;
        let probed = probe(&context, name, &sysfs, &port)?;
        let inner = Inner {
            context,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            options: *options,
            link_layer: info.link_layer,
            gid,
            probed,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The address it is reached at; `None` on InfiniBand without one.
    pub fn gid(&self) -> Option<&GidInfo> {
        self.inner.gid.as_ref()
    }

    /// The options it was opened with.
    pub fn options(&self) -> &NicOptions {
        &self.inner.options
    }

    /// Link layer of its port.
    pub fn link_layer(&self) -> LinkLayer {
        self.inner.link_layer
    }

    pub(super) fn context(&self) -> &Arc<RawContext> {
        &self.inner.context
    }

    /// A number that no other opened device of this process has.
    pub(super) fn id(&self) -> u64 {
        self.inner.id
    }

    pub(super) fn probed(&self) -> &Probed {
        &self.inner.probed
    }

    /// The port as it is now.
    pub(super) fn port_attr(&self) -> Result<ibv_port_attr, Error> {
        port_attr(
            &self.inner.context,
            &self.caps().device,
            self.inner.options.port,
        )
    }
}

fn find(lib: &'static Lib, name: &str) -> Result<(Arc<RawContext>, Sysfs), Error> {
    let no_device = |present: String| Error::NoDevice {
        wanted: name.into(),
        present,
    };
    let list = device::list(lib)?.map_err(|reason| no_device(format!("none, {reason}")))?;
    let infos: Vec<_> = (0..list.len()).map(|index| list.info(index)).collect();
    let Some(index) = infos.iter().position(|info| info.name == name) else {
        let names: Vec<_> = infos.iter().map(|info| info.name.as_str()).collect();
        return Err(no_device(if names.is_empty() {
            device::NO_DEVICES.into()
        } else {
            names.join(", ")
        }));
    };
    let context = device::open(&list, index, name, &infos[index].node)?;
    Ok((Arc::new(context), Sysfs(infos[index].sysfs.clone())))
}

fn checked_port(
    context: &RawContext,
    name: &str,
    options: &NicOptions,
) -> Result<ibv_port_attr, Error> {
    let device = context
        .query_device()
        .map_err(|e| verb_error("ibv_query_device", e, format!(" on {name}")))?;
    if options.port == 0 || options.port > device.phys_port_cnt {
        let ports = device.phys_port_cnt;
        return Err(invalid(
            "ibv_query_port",
            format!("{name} has ports 1 to {ports}, not {}", options.port),
        ));
    }
    if options.service_level > 15 {
        return Err(invalid(
            "ibv_open_device",
            format!("service level {}, the largest is 15", options.service_level),
        ));
    }
    let port = port_attr(context, name, options.port)?;
    let state = PortState(port.state.0);
    if state == PortState::ACTIVE {
        return Ok(port);
    }
    let remedy = if device::link_layer(&port) == LinkLayer::INFINIBAND {
        "check the cable, and that a subnet manager runs"
    } else {
        "check the cable, and set its network device up (ip link set dev <netdev> up)"
    };
    let detail = format!(
        ": {name} port {} is in state {state}; {remedy}",
        options.port
    );
    Err(verb_error(
        "ibv_query_port",
        io::Error::from_raw_os_error(libc::ENETDOWN),
        detail,
    ))
}

fn choose_gid(port: &PortInfo, name: &str, options: &NicOptions) -> Result<Option<GidInfo>, Error> {
    const VERB: &str = "ibv_query_gid";
    let listed = || {
        let all: Vec<_> = port.gids.iter().map(ToString::to_string).collect();
        if all.is_empty() {
            "none".into()
        } else {
            all.join("; ")
        }
    };
    let chosen = match options.gid_index {
        None => GidInfo::choose(&port.gids),
        Some(index) => {
            let found = port.gids.iter().find(|gid| gid.index == index);
            if found.is_none() {
                let what = format!(
                    "{name} port {} has no GID at index {index}; there are: {}",
                    port.port,
                    listed()
                );
                return Err(invalid(VERB, what));
            }
            found
        }
    };
    match chosen {
        // The address vector holds the index in eight bits.
        Some(gid) if gid.index > u32::from(u8::MAX) => Err(invalid(
            VERB,
            format!("GID index {} of {name} is above 255", gid.index),
        )),
        None if port.link_layer == LinkLayer::ETHERNET => {
            let what = format!(
                "{name} port {} has no GID: give its network device an address and set it up",
                port.port
            );
            Err(invalid(VERB, what))
        }
        chosen => Ok(chosen.cloned()),
    }
}

impl Context for Nic {
    type Pd = NicPd;
    type Mr = NicMr;
    type Mw = NicMw;
    type Cq = NicCq;
    type Qp = NicQp;
    type Control = NicControl;

    fn caps(&self) -> &Capabilities {
        &self.inner.probed.caps
    }

    fn alloc_memory(&self, bytes: usize) -> Result<Memory, Error> {
        Ok(Memory::anonymous(bytes)?)
    }

    fn alloc_pd(&self) -> Result<NicPd, Error> {
        let raw = RawPd::alloc(self.context())
            .map_err(|e| verb_error("ibv_alloc_pd", e, format!(" on {}", self.caps().device)))?;
        Ok(NicPd { raw: Arc::new(raw) })
    }

    fn reg_mr(
        &self,
        pd: &NicPd,
        memory: &Memory,
        range: Range<usize>,
        access: Access,
    ) -> Result<NicMr, Error> {
        NicMr::register(self, pd, memory, range, access)
    }

    fn alloc_mw(&self, pd: &NicPd) -> Result<NicMw, Error> {
        NicMw::alloc(self, pd)
    }

    fn create_cq(&self, depth: u32) -> Result<NicCq, Error> {
        const VERB: &str = "ibv_create_cq";
        if depth == 0 {
            return Err(invalid(VERB, "a completion queue of depth 0".into()));
        }
        check_limit(VERB, "completions", depth, self.caps().max_cqe)?;
        let raw = RawCq::create(self.context(), depth as i32).map_err(|e| {
            verb_error(
                VERB,
                e,
                format!(" on {} with depth {depth}", self.caps().device),
            )
        })?;
        Ok(NicCq::new(CqOwner::new(raw), depth))
    }

    fn create_qp(
        &self,
        pd: &NicPd,
        send_cq: &NicCq,
        recv_cq: &NicCq,
        cap: &QpCap,
    ) -> Result<NicQp, Error> {
        const VERB: &str = "ibv_create_qp";
        pd.check(self, VERB)?;
        for cq in [send_cq, recv_cq] {
            if !Arc::ptr_eq(cq.owner.shared().context(), self.context()) {
                return Err(invalid(
                    VERB,
                    "a completion queue of another context".into(),
                ));
            }
        }
        let caps = self.caps();
        check_limit(
            VERB,
            "outstanding send requests",
            cap.max_send_wr,
            caps.max_qp_wr,
        )?;
        check_limit(
            VERB,
            "outstanding receive requests",
            cap.max_recv_wr,
            caps.max_qp_wr,
        )?;
        check_limit(
            VERB,
            "pieces of a send request",
            cap.max_send_sge,
            caps.max_sge,
        )?;
        check_limit(
            VERB,
            "pieces of a receive request",
            cap.max_recv_sge,
            caps.max_recv_sge,
        )?;
        check_limit(
            VERB,
            "bytes of inline data",
            cap.max_inline_data,
            caps.max_inline_data,
        )?;
        let asked = ibv_qp_cap {
            max_send_wr: cap.max_send_wr,
            max_recv_wr: cap.max_recv_wr,
            max_send_sge: cap.max_send_sge,
            max_recv_sge: cap.max_recv_sge,
            max_inline_data: cap.max_inline_data,
        };
        let (owner, got) = QpOwner::create(
            &pd.raw,
            send_cq.owner.shared(),
            recv_cq.owner.shared(),
            asked,
        )
        .map_err(|e| verb_error(VERB, e, format!(" on {} with {cap:?}", caps.device)))?;
        check_limit(
            VERB,
            "bytes of inline data",
            cap.max_inline_data,
            got.max_inline_data,
        )?;
        Ok(NicQp::new(self, owner, &got))
    }

    fn poll_async_event(&self) -> Result<Option<AsyncEvent>, Error> {
        self.context().next_event().map_err(|e| {
            verb_error(
                "ibv_get_async_event",
                e,
                format!(" on {}", self.caps().device),
            )
        })
    }
}

fn check_limit(
    verb: &'static str,
    what: &'static str,
    asked: u32,
    limit: u32,
) -> Result<(), Error> {
    if asked <= limit {
        return Ok(());
    }
    Err(Error::Limit {
        verb,
        what,
        asked: asked.into(),
        limit: limit.into(),
    })
}
