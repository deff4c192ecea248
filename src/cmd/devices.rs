//! `mu devices`: the software backends and the RDMA devices, with what they can do.

use std::net::Ipv6Addr;

use anyhow::Result;
use mu_verbs::nic::{DeviceInfo, GidInfo, Nic, NicOptions, PortInfo};
use mu_verbs::{Atomicity, Capabilities, Context, Placement, RevokeMethod};
use serde::{Serialize, Serializer};

use super::{Status, print, print_json, told};
use crate::bench::backend;
use crate::bench::revoke::worth;
use crate::rdma::{Problem, Survey};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    devices: Vec<Device>,
    rdma: Rdma,
}

/// The state of RDMA on this machine.
#[derive(Serialize)]
struct Rdma {
    /// Whether libibverbs could be loaded.
    library: bool,
    /// Devices that it lists.
    devices: usize,
    /// What is missing, with the remedy.
    problems: Vec<Problem>,
}

#[derive(Serialize)]
struct Device {
    name: String,
    backend: &'static str,
    driver: String,
    /// Why it cannot be used, with the remedy.
    problem: Option<String>,
    capabilities: Option<Abilities>,
    /// What only RDMA devices have.
    #[serde(flatten)]
    adapter: Option<Adapter>,
}

#[derive(Serialize)]
struct Adapter {
    node: String,
    guid: String,
    ports: Vec<Port>,
}

#[derive(Serialize)]
struct Port {
    port: u8,
    state: String,
    link_layer: String,
    lid: u16,
    active_mtu: usize,
    max_mtu: usize,
    gids: Vec<Gid>,
}

#[derive(Serialize)]
struct Gid {
    index: u32,
    gid: String,
    kind: String,
    netdev: Option<String>,
    /// Whether it is the one that is used unless another is asked for.
    chosen: bool,
}

/// A [`Capabilities`] in words.
#[derive(Serialize)]
struct Abilities {
    max_inline_data: u32,
    max_qp_wr: u32,
    max_sge: u32,
    max_cqe: u32,
    max_qp_rd_atom: u32,
    max_msg: u64,
    max_mtu: usize,
    placement: &'static str,
    atomics: &'static str,
    qp_kinds: Vec<&'static str>,
    /// For each method whether it is a barrier: `yes`, `no`, `unknown` or `unsupported`.
    #[serde(serialize_with = "as_map")]
    revoke: Vec<(String, &'static str)>,
    /// The method that is used: the fastest barrier.
    revoke_with: Option<String>,
    rereg_mr: bool,
    memory_windows: bool,
    bounded_revoke: bool,
    target_cpu_free: bool,
    tells_peer_ended: bool,
    runs_when_posted: bool,
    hostile_safe: bool,
}

fn as_map<S: Serializer>(
    pairs: &[(String, &'static str)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(key, value)| (key, value)))
}

impl From<&Capabilities> for Abilities {
    fn from(caps: &Capabilities) -> Self {
        Self {
            max_inline_data: caps.max_inline_data,
            max_qp_wr: caps.max_qp_wr,
            max_sge: caps.max_sge,
            max_cqe: caps.max_cqe,
            max_qp_rd_atom: caps.max_qp_rd_atom,
            max_msg: caps.max_msg,
            max_mtu: caps.max_mtu.bytes(),
            placement: match caps.placement {
                Placement::WholeMessage => "whole message",
                Placement::Aligned128Bytes => "128 bytes",
                Placement::Unknown => "unknown",
            },
            qp_kinds: [
                (caps.qp_kinds.rc, "rc"),
                (caps.qp_kinds.uc, "uc"),
                (caps.qp_kinds.ud, "ud"),
            ]
            .into_iter()
            .filter_map(|(offered, kind)| offered.then_some(kind))
            .collect(),
            atomics: match caps.atomicity {
                Atomicity::None => "none",
                Atomicity::Hca => "device",
                Atomicity::Global => "global",
            },
            revoke: RevokeMethod::ALL
                .map(|m| (m.to_string(), worth(caps.revoke.of(m))))
                .to_vec(),
            revoke_with: caps.revoke.fastest_barrier().map(|m| m.to_string()),
            rereg_mr: caps.rereg_mr,
            memory_windows: caps.memory_windows,
            bounded_revoke: caps.bounded_revoke,
            target_cpu_free: caps.target_cpu_free,
            tells_peer_ended: caps.tells_peer_ended,
            runs_when_posted: caps.runs_when_posted,
            hostile_safe: caps.hostile_safe,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    let report = Report::new();
    if args.json {
        print_json(&report)?;
    } else {
        print(&report.text())?;
    }
    Ok(Status::Holds)
}

impl Report {
    fn new() -> Self {
        let survey = Survey::new();
        let mut devices = vec![
            Device::software(
                "inproc",
                backend::inproc().map(|pair| pair.near.caps().clone()),
            ),
            Device::software("shm", backend::open_shm().map(|soft| soft.caps().clone())),
        ];
        devices.extend(survey.devices.iter().map(Device::adapter));
        let rdma = Rdma {
            library: survey.library.is_none(),
            devices: survey.devices.len(),
            problems: survey.problems().cloned().collect(),
        };
        Self { devices, rdma }
    }

    fn text(&self) -> String {
        let mut out: String = self.devices.iter().map(Device::text).collect();
        if self.rdma.devices == 0 {
            out += "no RDMA device\n";
        }
        for problem in &self.rdma.problems {
            out += &format!(
                "  missing: {}\n  remedy:  {}\n",
                problem.what, problem.remedy
            );
        }
        out
    }
}

impl Device {
    fn software(name: &'static str, opened: Result<Capabilities>) -> Self {
        let (capabilities, problem) = match opened {
            Ok(caps) => (Some(Abilities::from(&caps)), None),
            Err(error) => (None, Some(told(&error))),
        };
        Self {
            name: name.into(),
            backend: name,
            driver: "mu-softrdma".into(),
            problem,
            capabilities,
            adapter: None,
        }
    }

    fn adapter(info: &DeviceInfo) -> Self {
        let opened = match &info.problem {
            Some(problem) => Err(problem.clone()),
            None => Nic::open(&info.name, &NicOptions::default()).map_err(|e| e.to_string()),
        };
        let (capabilities, problem) = match opened {
            Ok(nic) => (Some(Abilities::from(nic.caps())), None),
            Err(problem) => (None, Some(problem)),
        };
        let adapter = Adapter {
            node: info.node.clone(),
            guid: format!("{:016x}", info.guid),
            ports: info.ports.iter().map(Port::new).collect(),
        };
        Self {
            name: info.name.clone(),
            backend: "nic",
            driver: info.driver.clone(),
            problem,
            capabilities,
            adapter: Some(adapter),
        }
    }

    fn text(&self) -> String {
        let mut out = format!(
            "{}  (backend {}, driver {})\n",
            self.name, self.backend, self.driver
        );
        let mut line = |name: &str, text: String| out += &format!("  {name:<11}{text}\n");
        if let Some(problem) = &self.problem {
            line("unusable", problem.clone());
        }
        if let Some(adapter) = &self.adapter {
            line("node", format!("{}, GUID {}", adapter.node, adapter.guid));
            for port in &adapter.ports {
                line(&format!("port {}", port.port), port.text());
                for gid in &port.gids {
                    line("  GID", gid.text());
                }
            }
        }
        if let Some(a) = &self.capabilities {
            line(
                "limits",
                format!(
                    "inline {} B, message {} B, MTU {} B, {} requests and {} pieces a queue pair",
                    a.max_inline_data, a.max_msg, a.max_mtu, a.max_qp_wr, a.max_sge
                ),
            );
            line("placement", format!("order of one write: {}", a.placement));
            line("atomics", a.atomics.into());
            line("QP kinds", a.qp_kinds.join(", "));
            let methods: Vec<String> = a
                .revoke
                .iter()
                .map(|(method, worth)| format!("{method} {worth}"))
                .collect();
            line("revocation", format!("a barrier? {}", methods.join(", ")));
            line(
                "",
                match &a.revoke_with {
                    Some(method) => format!("used: {method}"),
                    None => "used: none is a barrier, so the queue pair is destroyed".into(),
                },
            );
            let yes_no = |yes| if yes { "yes" } else { "no" };
            line(
                "also",
                format!(
                    "re-registration {}, windows {}, bounded revocation {}, target CPU free {}, \
                     a peer's end is told {}, runs when posted {}, hostile peers safe {}",
                    yes_no(a.rereg_mr),
                    yes_no(a.memory_windows),
                    yes_no(a.bounded_revoke),
                    yes_no(a.target_cpu_free),
                    yes_no(a.tells_peer_ended),
                    yes_no(a.runs_when_posted),
                    yes_no(a.hostile_safe)
                ),
            );
        }
        out
    }
}

impl Port {
    fn new(port: &PortInfo) -> Self {
        let chosen = GidInfo::choose(&port.gids).map(|gid| gid.index);
        let gid = |gid: &GidInfo| Gid {
            index: gid.index,
            gid: Ipv6Addr::from(gid.gid).to_string(),
            kind: gid.kind.to_string(),
            netdev: gid.netdev.clone(),
            chosen: chosen == Some(gid.index),
        };
        Self {
            port: port.port,
            state: port.state.to_string(),
            link_layer: port.link_layer.to_string(),
            lid: port.lid,
            active_mtu: port.active_mtu.bytes(),
            max_mtu: port.max_mtu.bytes(),
            gids: port.gids.iter().map(gid).collect(),
        }
    }

    fn text(&self) -> String {
        format!(
            "{}, {}, MTU {} of {}",
            self.state, self.link_layer, self.active_mtu, self.max_mtu
        )
    }
}

impl Gid {
    fn text(&self) -> String {
        let netdev = self
            .netdev
            .as_deref()
            .map(|name| format!(" on {name}"))
            .unwrap_or_default();
        let chosen = if self.chosen { ", used" } else { "" };
        format!(
            "{} {} ({}){netdev}{chosen}",
            self.index, self.gid, self.kind
        )
    }
}
