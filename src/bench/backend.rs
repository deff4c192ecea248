//! Opens the two ends of a measurement.

use anyhow::Result;
use clap::ValueEnum;
use mu_softrdma::Fabric;
use mu_softrdma::shm::Options;
use mu_verbs::Context;
use mu_verbs::nic::{Nic, NicOptions};
use mu_verbs::soft::Soft;

use crate::bench::map_raw::Kind;
use crate::cmd::Configured;
use crate::rdma;

/// A backend by the name that people choose it with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Name {
    /// Threads of one process
    Inproc,
    /// Processes of one host over shared memory
    Shm,
    /// RDMA devices through libibverbs, Soft-RoCE included
    Nic,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Inproc => "inproc",
            Self::Shm => "shm",
            Self::Nic => "nic",
        })
    }
}

/// Where the far end lives.
pub(crate) enum Far<C> {
    /// In a thread, with this context.
    Thread(C),
    /// In a process of its own, which opens its context itself.
    Process,
}

/// The two ends.
pub(crate) struct Pair<C> {
    pub(crate) near: C,
    pub(crate) far: Far<C>,
}

impl<C: Context> Pair<C> {
    /// The far end's device, if it is another one.
    pub(crate) fn far_device(&self) -> Option<String> {
        match &self.far {
            Far::Thread(ctx) if ctx.caps().device != self.near.caps().device => {
                Some(ctx.caps().device.clone())
            }
            _ => None,
        }
    }

    /// The kind of memory that the backend uses, for comparisons with plain memory.
    pub(crate) fn memory_kind(&self) -> Kind {
        match self.far {
            Far::Thread(_) => Kind::Anonymous,
            Far::Process => Kind::File,
        }
    }
}

pub(crate) fn inproc() -> Result<Pair<Soft>> {
    let fabric = Fabric::new();
    let open = || Soft::inproc(&fabric).configured("opening backend inproc");
    Ok(Pair {
        near: open()?,
        far: Far::Thread(open()?),
    })
}

pub(crate) fn shm() -> Result<Pair<Soft>> {
    Ok(Pair {
        near: open_shm()?,
        far: Far::Process,
    })
}

/// A context for this process. Both the measuring process and the far one call it.
pub(crate) fn open_shm() -> Result<Soft> {
    Soft::shm(&Options::default()).configured("opening backend shm")
}

/// A pair for each of `followers`, all with the same near end.
pub(crate) fn inproc_group(followers: usize) -> Result<Vec<Pair<Soft>>> {
    let fabric = Fabric::new();
    let open = || Soft::inproc(&fabric).configured("opening backend inproc");
    let near = open()?;
    (0..followers)
        .map(|_| {
            Ok(Pair {
                near: near.clone(),
                far: Far::Thread(open()?),
            })
        })
        .collect()
}

/// The same, the followers in processes of their own.
pub(crate) fn shm_group(followers: usize) -> Result<Vec<Pair<Soft>>> {
    let near = open_shm()?;
    Ok((0..followers)
        .map(|_| Pair {
            near: near.clone(),
            far: Far::Process,
        })
        .collect())
}

/// The same on an RDMA device.
pub(crate) fn nic_group(device: Option<&str>, followers: usize) -> Result<Vec<Pair<Nic>>> {
    let first = nic(device, device)?;
    let name = first.near.caps().device.clone();
    let open = || {
        Nic::open(&name, &NicOptions::default())
            .configured(&format!("opening RDMA device '{name}'"))
    };
    let near = first.near;
    (0..followers)
        .map(|_| {
            Ok(Pair {
                near: near.clone(),
                far: Far::Thread(open()?),
            })
        })
        .collect()
}

/// Opens `device`, or the first usable one, and `peer`, or the same device again.
pub(crate) fn nic(device: Option<&str>, peer: Option<&str>) -> Result<Pair<Nic>> {
    let device = match device {
        Some(name) => name.to_owned(),
        None => rdma::first_usable()?,
    };
    let open = |name: &str| {
        Nic::open(name, &NicOptions::default()).configured(&format!("opening RDMA device '{name}'"))
    };
    Ok(Pair {
        near: open(&device)?,
        far: Far::Thread(open(peer.unwrap_or(&device))?),
    })
}
