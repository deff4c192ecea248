//! mu: the two engines of each replica as they ship, over the software backend for threads.
//!
//! The engines take the time from their caller, and here it goes on only off the clock, as it does for the others. What
//! a replica does in the background (heartbeats, saying how far it has applied) is off the clock for single commands.

mod one_thread;
mod two_threads;

use anyhow::{Context as _, Result, bail, ensure};
use mu_protocol::ids::{Members, ReplicaId};
use mu_protocol::machine::{Command, RestoreError, StateMachine};
use mu_protocol::replica::{Life, assemble};
use mu_protocol::replication::{Event, Outcome, Refused, Replication};
use mu_protocol::settings::Settings;
use mu_protocol::zoo::Sound;
use mu_softrdma::Fabric;
use mu_verbs::soft::Soft;

use crate::contestant::{Applied, COMMAND_SIZE, REPLICAS};
use crate::node::LEADER;

pub use one_thread::OneThread;
pub use two_threads::TwoThreads;

type Replica = mu_protocol::replica::Replica<Soft, Applied, Sound>;

/// Bytes of each log's ring: a slice of the default plan fits.
const RING_BYTES: usize = 16 << 20;
/// Commands in flight, at most.
const WINDOW: usize = 4096;
/// Long enough that nobody is taken for dead: time stands still here for as long as others are measured.
const NEVER_NS: u64 = mu_protocol::limits::MAX_TIME_NS;
/// A step of time while the group forms.
const STEP_NS: u64 = 5_000;
/// Steps in which it must have formed.
const STEPS_MAX: usize = 20_000;

impl StateMachine for Applied {
    #[inline]
    fn apply(&mut self, command: &Command<'_>, _reply: &mut Vec<u8>) {
        Applied::apply(self, command.bytes);
    }

    fn digest(&self) -> u64 {
        self.count()
    }

    fn snapshot(&self, _out: &mut Vec<u8>) {}

    /// Nobody comes back here.
    fn restore(&mut self, _bytes: &[u8]) -> Result<(), RestoreError> {
        Err(RestoreError("a contestant has no snapshots".into()))
    }
}

/// A group that has elected its leader.
struct Group {
    replicas: [Replica; REPLICAS],
    now_ns: u64,
    /// What the replicas' memories and connections live in.
    fabric: Fabric,
}

fn id(at: usize) -> Result<ReplicaId> {
    u8::try_from(at)
        .ok()
        .and_then(ReplicaId::new)
        .with_context(|| format!("no replica {at}"))
}

fn settings(at: usize) -> Result<Settings> {
    let members: Members = (0..REPLICAS).map(id).collect::<Result<_>>()?;
    let mut settings = Settings::new(id(at)?, members);
    settings.ring_bytes = RING_BYTES;
    settings.max_command_bytes = COMMAND_SIZE;
    settings.window = WINDOW;
    settings.form = true;
    for limit_ns in [
        &mut settings.detect_ns,
        &mut settings.stuck_ns,
        &mut settings.completion_timeout_ns,
        &mut settings.step_down_ns,
        &mut settings.cut_off_ns,
    ] {
        *limit_ns = NEVER_NS;
    }
    Ok(settings)
}

impl Group {
    fn new() -> Result<Self> {
        let (fabric, now_ns) = (Fabric::new(), STEP_NS);
        let make = |at: usize| -> Result<Replica> {
            let life = Life {
                incarnation: 1 + at as u64,
                wall_offset_ns: 0,
                now_ns,
            };
            let ctx = Soft::inproc(&fabric)?;
            Ok(assemble(
                &ctx,
                settings(at)?,
                life,
                Applied::default(),
                Sound,
            )?)
        };
        let replicas = [make(0)?, make(1)?, make(2)?];
        let mut group = Self {
            replicas,
            now_ns,
            fabric,
        };
        for from in 0..REPLICAS {
            for to in (0..REPLICAS).filter(|to| *to != from) {
                let hello = group.replicas[from].background.hello(id(to)?);
                let background = &mut group.replicas[to].background;
                background.control_up(id(from)?, &hello, now_ns)?;
            }
        }
        for _ in 0..STEPS_MAX {
            if group.has_formed() {
                return Ok(group);
            }
            group.step()?;
        }
        bail!("the first election did not come about");
    }

    fn has_formed(&self) -> bool {
        let leader = &self.replicas[LEADER].replication;
        leader.leads().is_some() && leader.followers().count() == REPLICAS - 1
    }

    /// Polls every engine once and carries their messages.
    fn step(&mut self) -> Result<()> {
        self.now_ns += STEP_NS;
        let mut messages = Vec::new();
        for (from, replica) in self.replicas.iter_mut().enumerate() {
            replica.background.poll(self.now_ns);
            replica.replication.poll(self.now_ns, |_| {});
            while let Some((to, message)) = replica.background.control_out() {
                messages.push((from, to.index(), message.to_vec()));
            }
        }
        for (from, to, message) in messages {
            let background = &mut self.replicas[to].background;
            background.control_in(id(from)?, &message, self.now_ns)?;
        }
        Ok(())
    }
}

/// What a proposer does: hands commands over and hears how they ended.
struct Proposer {
    submitted: u64,
    decided: u64,
}

impl Proposer {
    const NEW: Self = Self {
        submitted: 0,
        decided: 0,
    };

    /// Hands a command over; says whether it was taken. It is not while too much is in flight.
    #[inline]
    fn submit(
        &mut self,
        engine: &mut Engine,
        command: &crate::contestant::Command,
    ) -> Result<bool> {
        match engine.submit(0, 0, command.bytes()) {
            Ok(_) => {
                self.submitted += 1;
                Ok(true)
            }
            Err(Refused::Overloaded { .. }) => Ok(false),
            Err(other) => Err(other.into()),
        }
    }

    /// One turn of the leader's engine; `decided` is called with each command that was decided.
    #[inline]
    fn poll(&mut self, engine: &mut Engine, now_ns: u64, mut decided: impl FnMut()) -> Result<()> {
        let mut lost = false;
        engine.poll(now_ns, |event| {
            if let Event::Command { outcome, .. } = event {
                match outcome {
                    Outcome::Decided { .. } => {
                        self.decided += 1;
                        decided();
                    }
                    _ => lost = true,
                }
            }
        });
        ensure!(!lost, "a command was not decided: the leadership was lost");
        Ok(())
    }
}

type Engine = Replication<Soft, Applied, Sound>;

/// Whether the logs of both followers hold all that was decided.
fn is_everywhere(leader: &Engine) -> bool {
    let mut followers = leader.followers();
    followers.all(|(_, matched)| matched >= leader.commit())
}
