//! The mode with a replication thread: calls from any thread, tickets in a table.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use smr::host::Pending;
use smr::{ProposeError, Replica, ReplicaId, Reply};

use crate::app::App;
use crate::code::{Fault, MU_BUSY, MU_TIMED_OUT};
use crate::instance::{Deadline, Done, no_ticket, stopped};

/// Most tickets whose outcome nobody has taken.
const TICKETS_MAX: usize = 1 << 20;

pub(crate) struct Threaded {
    /// Gone when it was stopped. Nobody waits under this lock, neither for an outcome nor for the threads' end: a
    /// program may hold a lock of its own around a call, and take the same one in a callback.
    replica: RwLock<Option<Replica<App>>>,
    /// Held by whoever waits for the threads' end, so that everybody who ends the replica waits for it.
    ending: Mutex<()>,
    tickets: Mutex<Tickets>,
}

#[derive(Default)]
struct Tickets {
    last: u64,
    waiting: BTreeMap<u64, Waiting>,
}

enum Waiting {
    Command(Pending<Reply>),
    Barrier(Pending<()>),
}

impl Waiting {
    /// The outcome, if it comes in time; else this again.
    fn wait(self, deadline: Deadline) -> Result<Result<Done, Fault>, Self> {
        fn until<T>(
            pending: Pending<T>,
            deadline: Deadline,
        ) -> Result<Result<T, ProposeError>, Pending<T>> {
            match deadline {
                Some(deadline) => pending.wait_until(deadline),
                None => Ok(pending.wait()),
            }
        }
        let ended = match self {
            Self::Command(pending) => match until(pending, deadline) {
                Ok(ended) => ended.map(|Reply { index, bytes }| Done {
                    index,
                    reply: bytes,
                }),
                Err(pending) => return Err(Self::Command(pending)),
            },
            Self::Barrier(pending) => match until(pending, deadline) {
                Ok(ended) => ended.map(|()| Done {
                    index: 0,
                    reply: Vec::new(),
                }),
                Err(pending) => return Err(Self::Barrier(pending)),
            },
        };
        Ok(ended.map_err(Fault::from))
    }
}

impl Threaded {
    pub(crate) fn new(replica: Replica<App>) -> Self {
        Self {
            replica: RwLock::new(Some(replica)),
            ending: Mutex::default(),
            tickets: Mutex::default(),
        }
    }

    fn ask<R>(
        &self,
        ask: impl FnOnce(&Replica<App>) -> Result<R, ProposeError>,
    ) -> Result<R, Fault> {
        let replica = self.replica.read().unwrap_or_else(PoisonError::into_inner);
        Ok(ask(replica.as_ref().ok_or_else(stopped)?)?)
    }

    fn tickets(&self) -> MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, start: impl FnOnce() -> Result<Waiting, Fault>) -> Result<u64, Fault> {
        let mut tickets = self.tickets();
        if tickets.waiting.len() >= TICKETS_MAX {
            let text = format!("{TICKETS_MAX} tickets were given and their outcomes not taken");
            return Err(Fault::new(MU_BUSY, text));
        }
        // Under the lock, so that one thread's tickets rise in the order of its commands.
        let waiting = start()?;
        tickets.last += 1;
        let ticket = tickets.last;
        tickets.waiting.insert(ticket, waiting);
        Ok(ticket)
    }

    pub(crate) fn submit(&self, client: u64, sequence: u64, command: &[u8]) -> Result<u64, Fault> {
        self.keep(|| {
            let pending = self.ask(|replica| replica.submit(client, sequence, command))?;
            Ok(Waiting::Command(pending))
        })
    }

    pub(crate) fn submit_barrier(&self) -> Result<u64, Fault> {
        self.keep(|| {
            let pending = self.ask(|replica| replica.submit_read(|_| ()))?;
            Ok(Waiting::Barrier(pending))
        })
    }

    pub(crate) fn wait(&self, ticket: u64, deadline: Deadline) -> Result<Done, Fault> {
        let waiting = self.tickets().waiting.remove(&ticket);
        let waiting = waiting.ok_or_else(|| no_ticket(ticket))?;
        match waiting.wait(deadline) {
            Ok(ended) => ended,
            Err(waiting) => {
                self.tickets().waiting.insert(ticket, waiting);
                let text = format!("ticket {ticket} has no outcome yet");
                Err(Fault::new(MU_TIMED_OUT, text))
            }
        }
    }

    /// Without a ticket: `None` if there is no outcome in time.
    pub(crate) fn propose(
        &self,
        (client, sequence): (u64, u64),
        command: &[u8],
        deadline: Deadline,
    ) -> Result<Option<Done>, Fault> {
        let pending = self.ask(|replica| replica.submit(client, sequence, command))?;
        Waiting::Command(pending)
            .wait(deadline)
            .map_or(Ok(None), |ended| ended.map(Some))
    }

    pub(crate) fn forget(&self, ticket: u64) -> Result<(), Fault> {
        let forgotten = self.tickets().waiting.remove(&ticket);
        forgotten.map(drop).ok_or_else(|| no_ticket(ticket))
    }

    pub(crate) fn transfer(&self, to: Option<ReplicaId>) -> Result<ReplicaId, Fault> {
        let pending = self.ask(|replica| replica.submit_transfer(to))?;
        Ok(pending.wait()?)
    }

    /// Ends the threads and waits for them.
    pub(crate) fn stop(&self) {
        let _ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        let replica = self.replica.write();
        let replica = replica.unwrap_or_else(PoisonError::into_inner).take();
        // The lock is free again by now.
        drop(replica);
    }
}
