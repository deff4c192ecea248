//! A whole group in one process, for tests, examples and measurements.

use std::thread;
use std::time::{Duration, Instant};

use mu_protocol::ids::{Members, ReplicaId};
use mu_protocol::limits::MAX_REPLICAS;
use mu_protocol::machine::StateMachine;
use mu_protocol::settings::Settings;
use mu_softrdma::Fabric;
use mu_verbs::soft::Soft;

use super::direct::Direct;
use super::error::{ProposeError, StartError};
use super::hub::Hub;
use super::options::Options;
use super::replica::{Replica, Reply};

/// Where replicas of one process meet: a fabric of memory and a hub for control messages.
#[derive(Clone)]
pub struct Inproc {
    fabric: Fabric,
    hub: Hub,
    members: Members,
}

impl Inproc {
    /// For replicas 0 to `replicas - 1`.
    ///
    /// # Panics
    /// If that is not 1 to 9.
    #[must_use]
    pub fn new(replicas: u8) -> Self {
        assert!(
            (1..=MAX_REPLICAS as u8).contains(&replicas),
            "a group of {replicas}"
        );
        Self {
            fabric: Fabric::new(),
            hub: Hub::new(),
            members: (0..replicas).filter_map(ReplicaId::new).collect(),
        }
    }

    /// The members.
    #[must_use]
    pub fn members(&self) -> Members {
        self.members
    }

    /// Options for a founding replica with a small log, and times that a machine with few processors keeps. Change
    /// what you like before you start it; `form` to false for one that comes back.
    ///
    /// # Panics
    /// If `id` is no member.
    #[must_use]
    pub fn options(&self, id: u8) -> Options {
        const MS: u64 = 1_000_000;
        let id = ReplicaId::new(id).filter(|id| self.members.contains(*id));
        let id = id.expect("a member");
        Options::new(Settings {
            ring_bytes: 4 << 20,
            heartbeat_ns: MS / 2,
            detect_ns: 20 * MS,
            stuck_ns: 100 * MS,
            election_ns: 100 * MS,
            step_down_ns: 500 * MS,
            completion_timeout_ns: 200 * MS,
            form: true,
            ..Settings::new(id, self.members)
        })
    }

    /// Starts a replica with threads of its own.
    ///
    /// # Errors
    /// A setting, memory, or the operating system.
    pub fn replica<S: StateMachine>(
        &self,
        options: Options,
        app: S,
    ) -> Result<Replica<S>, StartError> {
        let port = self.hub.join(options.settings.id);
        Replica::start_on(&Soft::inproc(&self.fabric)?, options, port, app)
    }

    /// Starts a replica on the caller's thread.
    ///
    /// # Errors
    /// A setting, memory, or the operating system.
    pub fn direct<S: StateMachine>(
        &self,
        options: Options,
        app: S,
    ) -> Result<Direct<Soft, S>, StartError> {
        let port = self.hub.join(options.settings.id);
        Direct::start(&Soft::inproc(&self.fabric)?, options, port, app)
    }
}

/// Replicas in one process that are found, stopped and started again by their number.
pub struct Group<S: StateMachine> {
    net: Inproc,
    replicas: Vec<Option<Replica<S>>>,
}

/// Between two looks for a leader.
const LOOK: Duration = Duration::from_micros(200);

impl<S: StateMachine> Group<S> {
    /// Starts `replicas` replicas, each with an application of its own.
    ///
    /// # Errors
    /// A setting, memory, or the operating system.
    pub fn start(replicas: u8, mut app: impl FnMut() -> S) -> Result<Self, StartError> {
        Self::start_with(Inproc::new(replicas), |_| app(), |_| {})
    }

    /// The same with a word to every replica's options.
    ///
    /// # Errors
    /// A setting, memory, or the operating system.
    pub fn start_with(
        net: Inproc,
        mut app: impl FnMut(ReplicaId) -> S,
        change: impl Fn(&mut Options),
    ) -> Result<Self, StartError> {
        let replicas = net.members.iter().map(|id| {
            let mut options = net.options(id.get());
            change(&mut options);
            net.replica(options, app(id)).map(Some)
        });
        let replicas = replicas.collect::<Result<_, _>>()?;
        Ok(Self { net, replicas })
    }

    /// Where they meet.
    pub fn net(&self) -> &Inproc {
        &self.net
    }

    /// The replica with this number, if it runs.
    pub fn replica(&self, id: u8) -> Option<&Replica<S>> {
        self.replicas.get(usize::from(id))?.as_ref()
    }

    /// The replica that says of itself that it leads, waited for at most so long.
    pub fn leader(&self, patience: Duration) -> Option<&Replica<S>> {
        let begin = Instant::now();
        loop {
            let running = self.replicas.iter().flatten();
            let leader = running
                .into_iter()
                .find(|replica| replica.leader() == Some(replica.id()));
            if leader.is_some() || begin.elapsed() > patience {
                return leader;
            }
            thread::sleep(LOOK);
        }
    }

    /// Proposes command number `sequence` of `client` as a client should: at the leader, and again, with the same
    /// numbers, while the outcome is unknown or there is no leader, for at most so long. Without a session (`client` 0)
    /// an unknown outcome is final, since another try could be applied beside the first.
    ///
    /// # Errors
    /// The last try's; [`ProposeError::Unknown`] if an earlier one may have been decided.
    pub fn propose(
        &self,
        client: u64,
        sequence: u64,
        command: &[u8],
        patience: Duration,
    ) -> Result<Reply, ProposeError> {
        let begin = Instant::now();
        let mut may_be_decided = false;
        loop {
            let left = patience.saturating_sub(begin.elapsed());
            let outcome = match self.leader(left) {
                Some(leader) => leader.propose_as(client, sequence, command),
                None => Err(ProposeError::NotLeader { hint: None }),
            };
            may_be_decided |= outcome == Err(ProposeError::Unknown);
            let again = matches!(
                outcome,
                Err(ProposeError::NotLeader { .. }
                    | ProposeError::Unknown
                    | ProposeError::Overloaded
                    | ProposeError::Stopped(_))
            );
            if !again {
                return outcome;
            }
            if begin.elapsed() > patience || may_be_decided && client == 0 {
                // That the last try was refused says nothing of the others.
                return match may_be_decided {
                    true => Err(ProposeError::Unknown),
                    false => outcome,
                };
            }
            thread::sleep(LOOK);
        }
    }

    /// Stops a replica: its memory and state are gone.
    pub fn stop(&mut self, id: u8) {
        if let Some(slot) = self.replicas.get_mut(usize::from(id)) {
            *slot = None;
        }
    }

    /// Starts a stopped replica again, with empty memory: it recovers from the others.
    ///
    /// # Errors
    /// A setting, memory, or the operating system.
    ///
    /// # Panics
    /// If it runs.
    pub fn restart(
        &mut self,
        id: u8,
        app: S,
        change: impl Fn(&mut Options),
    ) -> Result<(), StartError> {
        assert!(self.replica(id).is_none(), "replica {id} runs");
        let mut options = self.net.options(id);
        change(&mut options);
        options.settings.form = false;
        self.replicas[usize::from(id)] = Some(self.net.replica(options, app)?);
        Ok(())
    }
}
