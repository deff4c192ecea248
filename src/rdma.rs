//! What this machine has of RDMA, and what is missing for it, with the remedy.

use std::fs;
use std::path::Path;

use anyhow::Result;
pub(crate) use mu::host::is_usable;
use mu_verbs::nic::{self, DeviceInfo, Lib};
use nix::unistd::{AccessFlags, access};
use serde::Serialize;

use crate::cmd::misuse;

/// Where the kernel lists RDMA devices.
const SYSFS: &str = "/sys/class/infiniband";
/// Where the character devices of user verbs are.
const NODES: &str = "/dev/infiniband";

/// Something that is missing.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Problem {
    pub(crate) what: String,
    pub(crate) remedy: String,
}

/// What there is.
pub(crate) struct Survey {
    /// The devices that libibverbs lists.
    pub(crate) devices: Vec<DeviceInfo>,
    /// libibverbs could not be loaded.
    pub(crate) library: Option<Problem>,
    /// The kernel has no RDMA, or no device.
    pub(crate) kernel: Option<Problem>,
    /// A character device is missing, or this user may not use it.
    pub(crate) nodes: Option<Problem>,
}

impl Survey {
    pub(crate) fn new() -> Self {
        let (devices, library, listed) = match Lib::load() {
            Err(error) => (Vec::new(), Some(split(&error.to_string())), None),
            Ok(lib) => match nic::devices(lib) {
                Ok(list) => (list.devices, None, list.reason.map(|reason| split(&reason))),
                Err(error) => (Vec::new(), None, Some(split(&error.to_string()))),
            },
        };
        Self {
            devices,
            library,
            kernel: listed.or_else(kernel_problem),
            nodes: node_problem(),
        }
    }

    /// All that is missing.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &Problem> {
        [&self.library, &self.kernel, &self.nodes]
            .into_iter()
            .flatten()
    }
}

/// A message as its cause and the remedy that follows it.
fn split(message: &str) -> Problem {
    let in_parentheses = || {
        let (what, remedy) = message.split_once(" (")?;
        Some((what, remedy.strip_suffix(')').unwrap_or(remedy)))
    };
    let (what, remedy) = message
        .rsplit_once("; ")
        .or_else(in_parentheses)
        .unwrap_or((message, ""));
    Problem {
        what: what.into(),
        remedy: remedy.into(),
    }
}

fn kernel_problem() -> Option<Problem> {
    let has_device = fs::read_dir(SYSFS).is_ok_and(|mut entries| entries.next().is_some());
    (!has_device).then(|| Problem {
        what: format!(
            "the kernel has no RDMA device: {SYSFS} is {}",
            if Path::new(SYSFS).exists() {
                "empty"
            } else {
                "not there"
            }
        ),
        remedy: "load the driver of the adapter, or make a software device: modprobe rdma_rxe && \
                 rdma link add rxe0 type rxe netdev eth0"
            .into(),
    })
}

fn node_problem() -> Option<Problem> {
    let nodes: Vec<String> = fs::read_dir(NODES)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("uverbs"))
        .collect();
    if nodes.is_empty() {
        return Some(Problem {
            what: format!("there is no {NODES}/uverbs*"),
            remedy: "modprobe ib_uverbs; in a container, also pass the devices in (--device=/dev/infiniband)".into(),
        });
    }
    let closed: Vec<String> = nodes
        .iter()
        .map(|name| format!("{NODES}/{name}"))
        .filter(|path| access(path.as_str(), AccessFlags::R_OK | AccessFlags::W_OK).is_err())
        .collect();
    (!closed.is_empty()).then(|| Problem {
        what: format!("this user may not read and write {}", closed.join(", ")),
        remedy: "join the group that owns it (often rdma), or add a udev rule with MODE=\"0666\""
            .into(),
    })
}

/// The name of the first device with an active port and an address.
pub(crate) fn first_usable() -> Result<String> {
    let survey = Survey::new();
    if let Some(device) = survey.devices.iter().find(|device| is_usable(device)) {
        return Ok(device.name.clone());
    }
    let missing: Vec<String> = survey
        .problems()
        .map(|p| format!("{} ({})", p.what, p.remedy))
        .collect();
    let names: Vec<&str> = survey
        .devices
        .iter()
        .map(|device| device.name.as_str())
        .collect();
    Err(misuse(match (names.is_empty(), missing.is_empty()) {
        (false, _) => format!(
            "no RDMA device with an active port and an address among: {}",
            names.join(", ")
        ),
        (true, false) => format!("no RDMA device: {}", missing.join("; ")),
        (true, true) => "no RDMA device".into(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_into_cause_and_remedy() {
        let p = split("cannot open libibverbs.so.1: no such file; install libibverbs");
        assert_eq!(
            (p.what.as_str(), p.remedy.as_str()),
            (
                "cannot open libibverbs.so.1: no such file",
                "install libibverbs"
            )
        );
        let p = split("the kernel has no RDMA (modprobe ib_uverbs)");
        assert_eq!(
            (p.what.as_str(), p.remedy.as_str()),
            ("the kernel has no RDMA", "modprobe ib_uverbs")
        );
        // A remedy keeps the parentheses that are its own.
        let p = split("no library; install libibverbs (package libibverbs1 or rdma-core)");
        assert_eq!(
            p.remedy,
            "install libibverbs (package libibverbs1 or rdma-core)"
        );
        let p = split("no library (install libibverbs (package rdma-core))");
        assert_eq!(
            (p.what.as_str(), p.remedy.as_str()),
            ("no library", "install libibverbs (package rdma-core)")
        );
        assert_eq!(split("odd").what, "odd");
    }
}
