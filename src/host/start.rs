//! Starting a replica of a configuration: the device it names, the connections between processes.

use mu_protocol::machine::StateMachine;
use mu_verbs::Context;
use mu_verbs::nic::{self, DeviceInfo, GidInfo, Lib, Nic, NicOptions, PortState};
use mu_verbs::soft::Soft;

use super::direct::Direct;
use super::error::StartError;
use super::mesh::MeshPlane;
use super::options::Options;
use super::replica::Replica;
use super::watch::Watch;
use crate::config::{Backend, Config, NicPort};
use crate::control::{ControlError, new_incarnation};

/// The opened device of a member.
pub enum Device {
    /// Shared memory.
    Shm(Soft),
    /// An RDMA device.
    Nic(Nic),
}

impl Device {
    /// Opens what the configuration says.
    ///
    /// # Errors
    /// There is no such device, it cannot be opened, or the configuration is for one process.
    pub fn open(config: &Config, id: u8) -> Result<Self, StartError> {
        match config.backend() {
            Backend::Inproc => Err(ControlError::InProcess { id }.into()),
            // The thread that connects also beats and grants.
            Backend::Shm => Ok(Self::Shm(Soft::shm(&mu_softrdma::shm::Options {
                waits_attached: false,
                ..Default::default()
            })?)),
            Backend::Nic => Ok(Self::Nic(open_nic(&config.nic(id)?)?)),
        }
    }
}

/// Whether a device can carry traffic.
#[must_use]
pub fn is_usable(device: &DeviceInfo) -> bool {
    device.problem.is_none()
        && device
            .ports
            .iter()
            .any(|port| port.state == PortState::ACTIVE && GidInfo::choose(&port.gids).is_some())
}

fn open_nic(port: &NicPort) -> Result<Nic, StartError> {
    let options = NicOptions {
        gid_index: port.gid_index.map(u32::from),
        ..NicOptions::default()
    };
    let name = match &port.device {
        Some(name) => name.clone(),
        None => first_usable()?,
    };
    Ok(Nic::open(&name, &options)?)
}

fn first_usable() -> Result<String, StartError> {
    let lib = Lib::load().map_err(|error| StartError::NoDevice {
        reason: error.to_string(),
    })?;
    let list = nic::devices(lib)?;
    let usable = list.devices.into_iter().find(is_usable);
    usable
        .map(|device| device.name)
        .ok_or_else(|| StartError::NoDevice {
            reason: list
                .reason
                .unwrap_or_else(|| "none has an active port with an address".into()),
        })
}

impl<C: Context, S: StateMachine> Direct<C, S> {
    /// Starts member `id` of a configuration on the caller's thread. `form` says that it founds the group with empty
    /// memory; it is an operator's word and wrong for a restart.
    ///
    /// # Errors
    /// The configuration, the device, the control address, or the operating system.
    pub fn member(
        ctx: &C,
        config: &Config,
        id: u8,
        form: bool,
        app: S,
    ) -> Result<Self, StartError> {
        let options = Options::from_config(config, id, form)?;
        let plane = |incarnation| MeshPlane::start(config, id, incarnation);
        Self::start_as(ctx, options, new_incarnation()?, plane, app)
    }
}

impl<S: StateMachine> Replica<S> {
    /// Starts member `id` of a configuration. `form` says that it founds the group with empty memory; it is an
    /// operator's word and wrong for a restart.
    ///
    /// # Errors
    /// The configuration, the device, the control address, or the operating system.
    pub fn start(config: &Config, id: u8, form: bool, app: S) -> Result<Self, StartError> {
        Self::start_watched(config, id, form, app, None)
    }

    /// The same, with somebody who is told of every change.
    ///
    /// # Errors
    /// The configuration, the device, the control address, or the operating system.
    pub fn start_watched(
        config: &Config,
        id: u8,
        form: bool,
        app: S,
        watch: Option<Watch>,
    ) -> Result<Self, StartError> {
        match Device::open(config, id)? {
            Device::Shm(ctx) => Self::member(&ctx, config, id, form, app, watch),
            Device::Nic(ctx) => Self::member(&ctx, config, id, form, app, watch),
        }
    }

    fn member<C: Context>(
        ctx: &C,
        config: &Config,
        id: u8,
        form: bool,
        app: S,
        watch: Option<Watch>,
    ) -> Result<Self, StartError> {
        let Options {
            replication,
            settings,
            ..
        } = Options::from_config(config, id, form)?;
        let direct = Direct::member(ctx, config, id, form, app)?;
        Self::around(
            direct,
            replication.cpu,
            settings.window,
            settings.max_command_bytes,
            watch,
        )
    }
}
