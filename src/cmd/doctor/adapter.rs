//! Checks of libibverbs, the kernel's RDMA, and the devices.

use mu_verbs::nic::{DeviceInfo, GidInfo, LinkLayer, Nic, NicOptions, PortState};
use mu_verbs::{Context, Mtu, Placement};

use super::{Check, Wanted};
use crate::rdma::{Problem, Survey};

pub(super) fn checks(wanted: &Wanted<'_>, survey: &Survey) -> Vec<Check> {
    let needed = wanted.adapter().is_some();
    let missing = |name, problem: &Option<Problem>, fine: &str| match problem {
        Some(p) => Check::fail_if(needed, name, p.what.clone(), p.remedy.clone()),
        None => Check::pass(name, fine),
    };
    let mut checks = vec![
        missing("libibverbs", &survey.library, "loaded"),
        missing("kernel RDMA", &survey.kernel, "it has devices"),
        missing("uverbs nodes", &survey.nodes, "may be read and written"),
    ];
    for device in &survey.devices {
        let needed = wanted.adapter() == Some(device.name.as_str());
        checks.extend(device_checks(device, needed));
    }
    if let Some(name) = wanted.adapter()
        && survey.devices.is_empty()
    {
        checks.push(Check::fail_if(
            true,
            "RDMA device",
            format!("no device '{name}'"),
            "see the lines above",
        ));
    }
    checks
}

fn device_checks(device: &DeviceInfo, needed: bool) -> Vec<Check> {
    let name = &device.name;
    if let Some(problem) = &device.problem {
        return vec![Check::fail_if(
            needed,
            "RDMA device",
            problem.clone(),
            format!("make {} usable", device.node),
        )];
    }
    let mut checks = Vec::new();
    for port in &device.ports {
        let at = format!("{name} port {}", port.port);
        if port.state != PortState::ACTIVE {
            let fix =
                "connect it and bring it up (ip link set dev <netdev> up, or a subnet manager)";
            // The port that is used unless another is asked for is the first.
            checks.push(Check::fail_if(
                needed && port.port == 1,
                "RDMA port",
                format!("{at} is {}", port.state),
                fix,
            ));
            continue;
        }
        checks.push(Check::pass(
            "RDMA port",
            format!("{at} is ACTIVE, {}", port.link_layer),
        ));
        checks.push(match GidInfo::choose(&port.gids) {
            Some(gid) => Check::pass("GID", format!("{at} is reached at {gid}")),
            None if port.link_layer == LinkLayer::ETHERNET => {
                let fix = "give its network device an IP address";
                Check::fail_if(
                    needed && port.port == 1,
                    "GID",
                    format!("{at} has none"),
                    fix,
                )
            }
            None => Check::pass(
                "GID",
                format!("{at} has none and is reached by LID {}", port.lid),
            ),
        });
        let mtu = format!(
            "{at}: {} B of {} B",
            port.active_mtu.bytes(),
            port.max_mtu.bytes()
        );
        checks.push(if port.active_mtu >= Mtu::B1024.min(port.max_mtu) {
            Check::pass("path MTU", mtu)
        } else {
            Check::warn(
                "path MTU",
                mtu,
                "raise the MTU of its network device (1500 gives 1024 B, 4200 gives 4096 B)",
            )
        });
    }
    checks.push(opened(device, needed));
    checks
}

/// What only an opened device tells.
fn opened(device: &DeviceInfo, needed: bool) -> Check {
    let name = &device.name;
    let nic = match Nic::open(name, &NicOptions::default()) {
        Ok(nic) => nic,
        Err(error) => {
            return Check::fail_if(needed, "RDMA device", error.to_string(), "see the message");
        }
    };
    let caps = nic.caps();
    let revoke = match caps.revoke.fastest_barrier() {
        Some(method) => format!("revocation by {method}"),
        None => "no revocation known to be a barrier, so queue pairs are destroyed".into(),
    };
    let found = format!(
        "{name} ({}): {revoke}, inline {} B",
        device.driver, caps.max_inline_data
    );
    // No device says so of itself, and nothing relies on it.
    let note = match caps.placement {
        Placement::Unknown => ", order within a write unknown (no matter: entries carry checksums)",
        Placement::WholeMessage | Placement::Aligned128Bytes => "",
    };
    Check::pass("RDMA device", found + note)
}
