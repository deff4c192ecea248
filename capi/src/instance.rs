//! What a handle stands for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smr::ReplicaId;
use smr::config::Config;
use smr::host::{Device, Handle, Replica, Status, has_history};

use crate::app::{App, Situation};
use crate::code::{Fault, MU_STOPPED, MU_TIMED_OUT, MU_UNKNOWN};
use crate::raw::{Callbacks, MU_MODE_STEP, MU_MODE_THREADED};
use crate::step::Step;
use crate::threaded::Threaded;

/// Until when a call waits; for ever if `None`.
pub(crate) type Deadline = Option<Instant>;

/// The deadline of a C caller's time: negative for ever, 0 not at all.
pub(crate) fn deadline(timeout_us: i64) -> Deadline {
    let us = u64::try_from(timeout_us).ok()?;
    // One that no clock can reach is no deadline.
    Instant::now().checked_add(Duration::from_micros(us))
}

/// Gets a command's index and reply.
pub(crate) type Take<'a> = dyn FnMut(u64, &[u8]) -> Result<(), Fault> + 'a;

/// How a command or barrier ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    /// Index of the entry, 0 for a barrier.
    pub(crate) index: u64,
    pub(crate) reply: Vec<u8>,
}

/// A replica of this process.
pub(crate) struct Instance {
    pub(crate) config: Config,
    pub(crate) id: u8,
    pub(crate) handle: Handle,
    pub(crate) mode: Mode,
}

/// Whose thread replicates.
pub(crate) enum Mode {
    Threaded(Threaded),
    Step(Step),
}

impl Instance {
    /// Starts the replica.
    pub(crate) fn open(
        config: Config,
        (mode, id, form): (u32, u8, bool),
        callbacks: Callbacks,
    ) -> Result<Self, Fault> {
        if mode != MU_MODE_THREADED && mode != MU_MODE_STEP {
            return Err(Fault::argument(format!("{mode} is no mode")));
        }
        let situation = Situation::new(callbacks);
        let app = App(Arc::clone(&situation));
        config.member(id).map_err(smr::StartError::from)?;
        let form = form && !has_history(&config, id)?;
        let (handle, mode) = if mode == MU_MODE_THREADED {
            let watch = Some(situation.watch());
            let replica = Replica::start_watched(&config, id, form, app, watch)?;
            (replica.handle(), Mode::Threaded(Threaded::new(replica)))
        } else {
            let start = match Device::open(&config, id)? {
                Device::Shm(ctx) => Step::start(&ctx, &config, id, form, app)?,
                Device::Nic(ctx) => Step::start(&ctx, &config, id, form, app)?,
            };
            (start.0, Mode::Step(start.1))
        };
        Ok(Self {
            config,
            id,
            handle,
            mode,
        })
    }

    pub(crate) fn submit(
        &self,
        (client, sequence): (u64, u64),
        command: &[u8],
    ) -> Result<u64, Fault> {
        match &self.mode {
            Mode::Threaded(threaded) => threaded.submit(client, sequence, command),
            Mode::Step(step) => step.submit(client, sequence, command),
        }
    }

    pub(crate) fn submit_barrier(&self) -> Result<u64, Fault> {
        match &self.mode {
            Mode::Threaded(threaded) => threaded.submit_barrier(),
            Mode::Step(step) => step.submit_barrier(),
        }
    }

    pub(crate) fn wait(&self, ticket: u64, deadline: Deadline) -> Result<Done, Fault> {
        match &self.mode {
            Mode::Threaded(threaded) => threaded.wait(ticket, deadline),
            Mode::Step(step) => step.wait(ticket, deadline),
        }
    }

    pub(crate) fn forget(&self, ticket: u64) -> Result<(), Fault> {
        match &self.mode {
            Mode::Threaded(threaded) => threaded.forget(ticket),
            Mode::Step(step) => step.forget(ticket),
        }
    }

    /// Submits and waits; `take` gets the index and the reply.
    pub(crate) fn propose(
        &self,
        session: (u64, u64),
        command: &[u8],
        deadline: Deadline,
        take: &mut Take<'_>,
    ) -> Result<(), Fault> {
        let ended = match &self.mode {
            Mode::Threaded(threaded) => match threaded.propose(session, command, deadline)? {
                Some(done) => Some(take(done.index, &done.reply)?),
                None => None,
            },
            Mode::Step(step) => step.propose(session, command, deadline, take)?,
        };
        ended.ok_or_else(|| Fault::new(MU_UNKNOWN, "no outcome within the time"))
    }

    /// Waits until the application has everything that was decided before.
    pub(crate) fn barrier(&self, deadline: Deadline) -> Result<(), Fault> {
        let ticket = self.submit_barrier()?;
        let ended = self.wait(ticket, deadline);
        if ended
            .as_ref()
            .is_err_and(|fault| fault.code == MU_TIMED_OUT)
        {
            self.forget(ticket)?;
        }
        ended.map(drop)
    }

    pub(crate) fn transfer(&self, to: Option<ReplicaId>) -> Result<ReplicaId, Fault> {
        match &self.mode {
            Mode::Threaded(threaded) => threaded.transfer(to),
            Mode::Step(step) => step.transfer(to),
        }
    }

    pub(crate) fn step(&self) -> Result<&Step, Fault> {
        match &self.mode {
            Mode::Step(step) => Ok(step),
            Mode::Threaded(_) => Err(Fault::misuse(
                "this replica has a thread of its own and is not stepped",
            )),
        }
    }

    pub(crate) fn status(&self) -> Status {
        self.handle.status()
    }

    /// Ends the replica: what is in flight gets its outcome.
    pub(crate) fn stop(&self) {
        self.handle.stop();
        match &self.mode {
            Mode::Threaded(threaded) => threaded.stop(),
            Mode::Step(step) => step.stop(),
        }
    }

    /// The same, and no callback runs any more when it returns.
    pub(crate) fn close(&self) {
        self.handle.stop();
        match &self.mode {
            Mode::Threaded(threaded) => threaded.stop(),
            Mode::Step(step) => step.close(),
        }
    }
}

pub(crate) fn stopped() -> Fault {
    Fault::new(MU_STOPPED, "this replica has stopped")
}

pub(crate) fn no_ticket(ticket: u64) -> Fault {
    Fault::argument(format!(
        "{ticket} is no ticket of this replica, or its outcome was taken, or another thread waits for it"
    ))
}
