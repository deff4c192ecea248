//! The devices of this machine, their ports and addresses.

use std::fmt;
use std::io;
use std::net::Ipv6Addr;
use std::ops::Deref;

use mu_sys::{
    IBV_LINK_LAYER_ETHERNET, IBV_LINK_LAYER_INFINIBAND, Lib, ibv_gid_type, ibv_port_attr,
    ibv_port_state,
};

use super::raw_device::{RawContext, RawDeviceInfo, RawDevices};
use super::sysfs::Sysfs;
use super::verb_error;
use crate::{Error, Mtu};

/// The device list, and why it is empty if it is.
#[derive(Clone, Debug, Default)]
pub struct DeviceList {
    /// The devices.
    pub devices: Vec<DeviceInfo>,
    /// Why there are none, with the remedy.
    pub reason: Option<String>,
}

impl Deref for DeviceList {
    type Target = [DeviceInfo];
    fn deref(&self) -> &[DeviceInfo] {
        &self.devices
    }
}

impl IntoIterator for DeviceList {
    type Item = DeviceInfo;
    type IntoIter = std::vec::IntoIter<DeviceInfo>;
    fn into_iter(self) -> Self::IntoIter {
        self.devices.into_iter()
    }
}

/// A device (`struct ibv_device`) and what could be learnt of it.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Its name, such as `mlx5_0` or `rxe0`.
    pub name: String,
    /// Its globally unique identifier (EUI-64).
    pub guid: u64,
    /// The kernel driver, such as `mlx5_core` or `rdma_rxe`; `unknown` if there is no telling.
    pub driver: String,
    /// Its character device.
    pub node: String,
    /// Its ports; empty if it could not be opened.
    pub ports: Vec<PortInfo>,
    /// Why it could not be opened, with the remedy.
    pub problem: Option<String>,
}

/// State of a port (`enum ibv_port_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortState(pub u32);

impl PortState {
    /// Packets flow.
    pub const ACTIVE: Self = Self(ibv_port_state::IBV_PORT_ACTIVE.0);
    /// No link.
    pub const DOWN: Self = Self(ibv_port_state::IBV_PORT_DOWN.0);
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match ibv_port_state(self.0) {
            ibv_port_state::IBV_PORT_NOP => "NOP",
            ibv_port_state::IBV_PORT_DOWN => "DOWN",
            ibv_port_state::IBV_PORT_INIT => "INIT",
            ibv_port_state::IBV_PORT_ARMED => "ARMED",
            ibv_port_state::IBV_PORT_ACTIVE => "ACTIVE",
            ibv_port_state::IBV_PORT_ACTIVE_DEFER => "ACTIVE_DEFER",
            ibv_port_state(number) => return write!(f, "state {number}"),
        };
        f.pad(name)
    }
}

/// Link layer of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkLayer(pub u8);

impl LinkLayer {
    /// InfiniBand: packets are routed by LID.
    pub const INFINIBAND: Self = Self(IBV_LINK_LAYER_INFINIBAND as u8);
    /// Ethernet: RoCE, packets are routed by GID.
    pub const ETHERNET: Self = Self(IBV_LINK_LAYER_ETHERNET as u8);
}

impl fmt::Display for LinkLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match *self {
            Self::INFINIBAND => "InfiniBand",
            Self::ETHERNET => "Ethernet",
            _ => "unspecified",
        })
    }
}

/// A port (`struct ibv_port_attr`).
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// Its number, from 1.
    pub port: u8,
    /// Its state.
    pub state: PortState,
    /// Its link layer.
    pub link_layer: LinkLayer,
    /// Its local identifier; 0 on Ethernet.
    pub lid: u16,
    /// MTU in use.
    pub active_mtu: Mtu,
    /// Largest MTU.
    pub max_mtu: Mtu,
    /// Its addresses, empty entries left out.
    pub gids: Vec<GidInfo>,
}

/// What an address means on the wire (`enum ibv_gid_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GidKind {
    /// InfiniBand.
    Infiniband,
    /// RoCE version 1: an Ethernet frame, not routed.
    RoceV1,
    /// RoCE version 2: UDP over IP.
    RoceV2,
    /// Neither library nor kernel says.
    Unknown,
}

impl fmt::Display for GidKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Infiniband => "IB",
            Self::RoceV1 => "RoCE v1",
            Self::RoceV2 => "RoCE v2",
            Self::Unknown => "unknown",
        })
    }
}

/// An address of a port: an entry of its GID table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GidInfo {
    /// Its place in the table.
    pub index: u32,
    /// The address; IPv4 addresses are mapped (`::ffff:a.b.c.d`).
    pub gid: [u8; 16],
    /// Its type.
    pub kind: GidKind,
    /// The network device it belongs to, if any.
    pub netdev: Option<String>,
}

impl fmt::Display for GidInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} ({})",
            self.index,
            Ipv6Addr::from(self.gid),
            self.kind
        )
    }
}

/// Lists the devices, with ports and addresses of those that can be opened. A kernel without RDMA is an empty list that
/// says so, not an error.
///
/// # Errors
/// `ibv_get_device_list` failed for any other reason.
pub fn devices(lib: &'static Lib) -> Result<DeviceList, Error> {
    let raw = match list(lib)? {
        Ok(raw) => raw,
        Err(reason) => {
            return Ok(DeviceList {
                devices: Vec::new(),
                reason: Some(reason.into()),
            });
        }
    };
    let devices = (0..raw.len())
        .map(|index| inspect(&raw, index))
        .collect::<Vec<_>>();
    let reason = devices.is_empty().then(|| NO_DEVICES.into());
    Ok(DeviceList { devices, reason })
}

const NO_RDMA: &str =
    "the kernel has no RDMA support loaded (modprobe ib_uverbs, then the device's driver)";
pub(super) const NO_DEVICES: &str = "the kernel knows no RDMA device (load its driver, or make a software one: \
                          modprobe rdma_rxe && rdma link add rxe0 type rxe netdev eth0)";

/// The raw list, or why the kernel has none.
pub(super) fn list(lib: &'static Lib) -> Result<Result<RawDevices, &'static str>, Error> {
    match RawDevices::get(lib) {
        Ok(list) => Ok(Ok(list)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::ENOENT)) => {
            Ok(Err(NO_RDMA))
        }
        Err(error) => Err(verb_error("ibv_get_device_list", error, String::new())),
    }
}

fn inspect(list: &RawDevices, index: usize) -> DeviceInfo {
    let RawDeviceInfo {
        name,
        node,
        sysfs,
        guid,
    } = list.info(index);
    let sysfs = Sysfs(sysfs);
    let opened = open(list, index, &name, &node).and_then(|context| {
        let attr = context
            .query_device()
            .map_err(|e| verb_error("ibv_query_device", e, format!(" on {name}")))?;
        let ports =
            (1..=attr.phys_port_cnt).map(|port| PortInfo::query(&context, &sysfs, &name, port));
        Ok((attr, ports.collect::<Result<Vec<_>, Error>>()?))
    });
    let node = format!("/dev/infiniband/{node}");
    match opened {
        Ok((attr, ports)) => {
            let driver = sysfs.driver(Some(attr.vendor_id));
            let guid = guid.unwrap_or(u64::from_be(attr.node_guid));
            DeviceInfo {
                name,
                guid,
                driver,
                node,
                ports,
                problem: None,
            }
        }
        Err(error) => {
            let driver = sysfs.driver(None);
            let guid = guid.unwrap_or(0);
            DeviceInfo {
                name,
                guid,
                driver,
                node,
                ports: Vec::new(),
                problem: Some(error.to_string()),
            }
        }
    }
}

/// Opens a device of the list.
pub(super) fn open(
    list: &RawDevices,
    index: usize,
    name: &str,
    node: &str,
) -> Result<RawContext, Error> {
    list.open(index).map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "; this user needs read and write permission on it: join the group that owns it (often `rdma`), or add \
                 a udev rule"
            }
            io::ErrorKind::NotFound => "; it is not there: modprobe ib_uverbs, or give the container the device",
            _ => "",
        };
        verb_error("ibv_open_device", error, format!(" on {name}, /dev/infiniband/{node}{remedy}"))
    })
}

impl PortInfo {
    pub(super) fn query(
        context: &RawContext,
        sysfs: &Sysfs,
        name: &str,
        port: u8,
    ) -> Result<Self, Error> {
        let attr = port_attr(context, name, port)?;
        let entries = u32::try_from(attr.gid_tbl_len).unwrap_or(0);
        let gids = (0..entries)
            .filter_map(|index| GidInfo::query(context, sysfs, name, port, index).transpose());
        Ok(Self {
            port,
            state: PortState(attr.state.0),
            link_layer: link_layer(&attr),
            lid: attr.lid,
            active_mtu: mtu(attr.active_mtu.0),
            max_mtu: mtu(attr.max_mtu.0),
            gids: gids.collect::<Result<_, _>>()?,
        })
    }
}

pub(super) fn port_attr(
    context: &RawContext,
    name: &str,
    port: u8,
) -> Result<ibv_port_attr, Error> {
    context
        .query_port(port)
        .map_err(|e| verb_error("ibv_query_port", e, format!(" on {name} port {port}")))
}

/// A device that leaves the link layer unspecified is InfiniBand, for the field is younger than that.
pub(super) fn link_layer(attr: &ibv_port_attr) -> LinkLayer {
    match LinkLayer(attr.link_layer) {
        LinkLayer(0) => LinkLayer::INFINIBAND,
        other => other,
    }
}

/// An MTU by its code. A code of a newer library is taken as the largest there is here.
pub(super) fn mtu(code: u32) -> Mtu {
    match code {
        0 => Mtu::B256,
        code => Mtu::from_code(code).unwrap_or(Mtu::B4096),
    }
}

impl GidInfo {
    fn query(
        context: &RawContext,
        sysfs: &Sysfs,
        name: &str,
        port: u8,
        index: u32,
    ) -> Result<Option<Self>, Error> {
        let raw = context.query_gid(port, index).map_err(|e| {
            verb_error(
                "ibv_query_gid",
                e,
                format!(" on {name} port {port} index {index}"),
            )
        })?;
        let Some(raw) = raw else { return Ok(None) };
        let kind = match raw.kind.map(ibv_gid_type) {
            Some(ibv_gid_type::IBV_GID_TYPE_IB) => GidKind::Infiniband,
            Some(ibv_gid_type::IBV_GID_TYPE_ROCE_V1) => GidKind::RoceV1,
            Some(ibv_gid_type::IBV_GID_TYPE_ROCE_V2) => GidKind::RoceV2,
            Some(_) => GidKind::Unknown,
            None => match sysfs.gid_type(port, index).as_deref() {
                Some("RoCE v2") => GidKind::RoceV2,
                Some("IB/RoCE v1") => GidKind::RoceV1,
                _ => GidKind::Unknown,
            },
        };
        Ok(Some(Self {
            index,
            gid: raw.gid,
            kind,
            netdev: sysfs.netdev(port, index),
        }))
    }

    /// The address is an IPv4 one.
    pub fn is_ipv4(&self) -> bool {
        Ipv6Addr::from(self.gid).to_ipv4_mapped().is_some()
    }

    /// The best address to be reached at: RoCE v2 over IPv4, else RoCE v2, else any; the first of equals.
    pub fn choose(gids: &[Self]) -> Option<&Self> {
        gids.iter()
            .filter(|gid| gid.gid != [0; 16])
            .min_by_key(|gid| match (gid.kind, gid.is_ipv4()) {
                (GidKind::RoceV2, true) => 0,
                (GidKind::RoceV2, false) => 1,
                _ => 2,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(index: u32, address: &str, kind: GidKind) -> GidInfo {
        GidInfo {
            index,
            gid: address.parse::<Ipv6Addr>().unwrap().octets(),
            kind,
            netdev: None,
        }
    }

    #[test]
    fn the_best_gid_is_roce_v2_over_ipv4() {
        let mut gids = vec![
            gid(0, "::", GidKind::RoceV2),
            gid(1, "fe80::1", GidKind::RoceV1),
            gid(2, "fe80::1", GidKind::RoceV2),
            gid(3, "::ffff:10.0.0.1", GidKind::RoceV1),
            gid(4, "::ffff:10.0.0.1", GidKind::RoceV2),
            gid(5, "::ffff:10.0.0.2", GidKind::RoceV2),
        ];
        for expected in [Some(4), Some(5), Some(2), Some(1), Some(3), None] {
            let chosen = GidInfo::choose(&gids).map(|g| g.index);
            assert_eq!(chosen, expected);
            gids.retain(|g| Some(g.index) != chosen);
        }
    }

    #[test]
    fn what_people_read() {
        assert_eq!(
            gid(4, "::ffff:10.0.0.1", GidKind::RoceV2).to_string(),
            "4: ::ffff:10.0.0.1 (RoCE v2)"
        );
        assert_eq!(PortState::ACTIVE.to_string(), "ACTIVE");
        assert_eq!(PortState(77).to_string(), "state 77");
        assert_eq!(
            (mtu(0), mtu(5), mtu(6)),
            (Mtu::B256, Mtu::B4096, Mtu::B4096)
        );
    }
}
