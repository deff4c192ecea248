//! One run: a group and a plan from a seed, a safety phase with trouble, a healed phase in which there must be
//! progress, and the verdict.

use std::fmt::Write;
use std::rc::Rc;

use super::plan::{Aim, Plan, Theme};
use super::rows::{Row, Rows};
use super::{Core, Group, Token};
use crate::faults::Coverage;
use crate::hook::before_verbs;
use crate::profile::Profile;
use crate::rng::Rng;
use crate::world::World;
use mu_history::{Kv, Place, Verdict, check, check_order};
use mu_protocol::ids::{Members, ReplicaId};
use mu_protocol::settings::{Checksum, Settings};
use mu_protocol::zoo::Bug;

/// Gets a line for everything that happens.
pub type Trace = Box<dyn FnMut(&str) + Send>;

/// What to run.
#[derive(Default)]
pub struct Options {
    /// All that happens follows from it.
    pub seed: u64,
    /// A seeded defect of the protocol.
    pub bug: Option<Bug>,
    /// The defect that the trouble is aimed at; without one, at `bug`.
    pub aim: Option<Bug>,
    /// Gets a line for everything that happens.
    pub trace: Option<Trace>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything held.
    Held,
    /// Something that must hold did not.
    Violated(String),
    /// The group made no progress though it could.
    Stuck(String),
}

/// What a run was and how it ended.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// What the replicas were and what was done to them.
    pub what: String,
    /// The hash over all that happened.
    pub hash: u64,
    /// Rows of the fault matrix that were hit.
    pub rows: Rows,
    /// Faults of devices that struck.
    pub faults: Coverage,
    /// Events of the world, entries decided, operations answered.
    pub events: u64,
    /// Entries that were decided.
    pub entries: u64,
    /// Operations that clients asked for, and those that were answered.
    pub operations: (usize, usize),
    /// The linearizability check ran out of its budget.
    pub unknown: bool,
}

/// Steps of the search for a linearization, for each key.
const SEARCH_STEPS: u64 = 200_000;
/// The healed phase must show progress within so long, and everybody be level within as much more: a number of
/// detection times, and what links that failed again and again may pause before they connect anew.
const PROGRESS_NS: u64 = 200_000_000;
const PROGRESS_DETECTS: u64 = 400;
/// Operations in the whole safety phase, and in the healed one.
const OPERATIONS: usize = 400;
const HEALED_OPERATIONS: usize = 100;
/// How long a group that cannot go on is watched, in detection times.
const WATCH_DETECTS: u64 = 40;
/// Operations in the healed phase before it counts as progress.
const PROGRESS_OPERATIONS: usize = 3;

/// Runs one seed.
pub fn run(options: Options) -> Report {
    let Options {
        seed,
        bug,
        aim,
        trace,
    } = options;
    let mut rng = Rng::new(seed);
    let mut setup = rng.fork();
    let n = *setup.pick(&[3, 3, 3, 3, 3, 3, 3, 5, 5, 5, 1, 2, 4, 7]);
    let mut profile = Profile::draw(&mut setup);
    let aim = aim.or(bug).and_then(Aim::at);
    if let Some(aim) = aim {
        profile = (aim.device)(profile);
    }
    let mut settings = settings(&mut setup, n);
    if aim.is_some_and(|aim| aim.one_size) {
        settings.max_command_bytes = super::app::REQUEST_BYTES;
    }
    let safety_ns = settings.detect_ns * setup.range(10, 60);
    let plan = Plan::draw(&mut setup, n, safety_ns, aim);
    if plan.themes.contains(&Theme::Bits) {
        // Without a checksum nobody can tell.
        settings.checksum = Checksum::Always;
    }
    let world = World::new(n, rng.next_u64(), profile);
    if let Some(sink) = trace {
        world.trace_to(sink);
    }
    world.watch_placements();
    let group = Group::new(world, n, settings, bug, rng.fork());
    let what = format!(
        "{n} replicas, {:?}, {:?}, {:?}",
        plan.themes,
        group.settings,
        group.world.profile()
    );
    group.core.borrow_mut().plan = plan;
    let hooked = {
        let group = Rc::downgrade(&group);
        before_verbs(move |device, verb| {
            if let Some(group) = group.upgrade() {
                group.before_verb(device, verb);
            }
        })
    };
    let outcome = group.whole_run(&mut setup, safety_ns);
    let mut report = group.report(outcome, what);
    // Engines are dropped without anybody looking.
    drop(hooked);
    report.hash = group.world.trace_hash();
    report
}

/// Times are scaled so that a run is short: what matters is how they compare with each other and with the network.
fn settings(rng: &mut Rng, n: usize) -> Settings {
    let members: Members = (0..n as u8).filter_map(ReplicaId::new).collect();
    let id = ReplicaId::new(0).expect("there is a first");
    let heartbeat_ns = *rng.pick(&[10_000, 20_000, 40_000]);
    let detect_ns = heartbeat_ns * rng.range(4, 10);
    let ring_bytes = *rng.pick(&[4096, 4096, 8192, 16_384, 65_536]);
    let largest = ring_bytes / 4 - 256;
    Settings {
        ring_bytes,
        max_command_bytes: largest.min(*rng.pick(&[100, 301, 768, 2048])),
        sessions: 512,
        window: *rng.pick(&[4, 16, 64]),
        checksum: *rng.pick(&[Checksum::Auto, Checksum::Always]),
        heartbeat_ns,
        detect_ns,
        stuck_ns: 2 * detect_ns,
        completion_timeout_ns: detect_ns * rng.range(2, 6),
        step_down_ns: detect_ns * rng.range(4, 12),
        election_ns: detect_ns * rng.range(2, 6),
        idle_flush_ns: heartbeat_ns,
        cut_off_ns: detect_ns * rng.range(2, 8),
        digest_interval: rng.range(1, 16),
        max_snapshot_bytes: 1 << 20,
        ..Settings::new(id, members)
    }
}

impl Group {
    fn whole_run(&self, setup: &mut Rng, safety_ns: u64) -> Outcome {
        self.begin(setup);
        self.run_until(safety_ns);
        let can_go_on = self.heal();
        let (remembers, open) = (self.remembers(), self.admission_is_open());
        let healed_ns = self.world.now_ns();
        {
            let clients = &mut self.core.borrow_mut().clients;
            clients.budget = clients.history.operations().len() + HEALED_OPERATIONS;
        }
        let clients = self.core.borrow().clients.all.len();
        (0..clients).for_each(|at| self.wake_client(at, Some(healed_ns)));
        let limit_ns = PROGRESS_NS + self.settings.detect_ns * PROGRESS_DETECTS;
        if !can_go_on {
            self.run_until(healed_ns + self.settings.detect_ns * WATCH_DETECTS);
            if !remembers && !open && self.core.borrow().clients.answered_since(healed_ns) > 0 {
                self.fail("I22: a group that lost its majority's memory answers".into());
            }
            return self.verdict(None);
        }
        let progress = self.run_until_holds(healed_ns + limit_ns, || {
            self.core.borrow().clients.answered_since(healed_ns) >= PROGRESS_OPERATIONS
        });
        if !progress {
            return self.verdict(Some(format!("no progress: {}", self.state_of_all())));
        }
        self.core.borrow_mut().clients.quiet = true;
        let level = self.run_until_holds(self.world.now_ns() + limit_ns, || self.is_level());
        self.verdict((!level).then(|| format!("not level: {}", self.state_of_all())))
    }

    fn begin(&self, setup: &mut Rng) {
        let n = self.slots.len();
        if n.is_multiple_of(2) || n == 1 {
            self.hit(Row::OddGroup);
        }
        for slot in &self.slots {
            let mut cpu = slot.cpu.get();
            cpu.pace_ns = *setup.pick(&[500, 1_000, 2_000, 4_000]);
            slot.cpu.set(cpu);
        }
        (0..n).for_each(|slot| self.start(slot));
        self.world.wake_at(1_000, Token::Lines.into());
        let clients = setup.range(1, 5);
        let room = self.settings.max_command_bytes - super::app::REQUEST_BYTES;
        {
            let clients_of = &mut self.core.borrow_mut().clients;
            clients_of.budget = OPERATIONS;
            for _ in 0..clients {
                let think_ns = *setup.pick(&[0, 2_000, 20_000, 100_000]);
                // Some send more than is allowed, now and then.
                let over = usize::from(setup.one_in(6));
                clients_of.add(think_ns, *setup.pick(&[0, room / 3, room]) + over);
            }
        }
        for at in 0..clients as usize {
            self.wake_client(at, Some(2_000 + 777 * at as u64));
        }
        self.begin_plan();
    }

    /// Runs until a condition holds, looking now and then; whether it came to hold.
    fn run_until_holds(&self, limit_ns: u64, holds: impl Fn() -> bool) -> bool {
        while !self.failed() && self.world.now_ns() < limit_ns {
            if holds() {
                return true;
            }
            self.run_until(self.world.now_ns() + self.settings.detect_ns / 2);
        }
        holds()
    }

    fn state_of_all(&self) -> String {
        let mut all = format!("{} entries decided", self.core.borrow().oracle.last());
        for (at, slot) in self.slots.iter().enumerate() {
            let state = self
                .process(at)
                .map_or("is down".into(), |process| process.state());
            let stuck = match slot.cpu.get().hung_until_ns.map(|until| until == u64::MAX) {
                [false, false] => "",
                [true, _] => ", replication hung",
                [_, true] => ", background hung",
            };
            let _ = write!(all, "; {at} {state}{stuck}");
        }
        all
    }

    /// What came of it, the history included.
    fn verdict(&self, stuck: Option<String>) -> Outcome {
        let core = self.core.borrow();
        if let Some(violation) = core.oracle.violation() {
            return Outcome::Violated(violation.into());
        }
        let mut places = core.oracle.places();
        // A read that went through the log has its place there.
        let reads = core.clients.reads.iter();
        places.extend(reads.map(|(op, index)| (*op, Place::ReadAt { index: *index })));
        places.sort_unstable_by_key(|(op, _)| *op);
        // A read that was tried both ways counts where its answer came from.
        places.dedup_by(|later, first| {
            let same = later.0 == first.0;
            if same && matches!(later.1, Place::ReadAt { .. }) {
                first.1 = later.1;
            }
            same
        });
        if let Err(violation) = check_order(&Kv, &core.clients.history, &places) {
            return Outcome::Violated(format!("I21 order: {violation}"));
        }
        match stuck {
            Some(what) => Outcome::Stuck(what),
            None => Outcome::Held,
        }
    }

    fn report(&self, outcome: Outcome, what: String) -> Report {
        let core = &*self.core.borrow();
        let Core {
            oracle,
            clients,
            rows,
            ..
        } = core;
        // The second opinion, which knows nothing of the log.
        let (outcome, unknown) = match outcome {
            Outcome::Violated(_) => (outcome, false),
            other => match check(&Kv, &clients.history, SEARCH_STEPS) {
                Ok(Verdict::Linearizable) => (other, false),
                Ok(Verdict::Unknown { .. }) => (other, true),
                Ok(verdict) => (Outcome::Violated(format!("I21 history: {verdict}")), false),
                Err(malformed) => (
                    Outcome::Violated(format!("I21 history: {malformed}")),
                    false,
                ),
            },
        };
        Report {
            outcome,
            what,
            hash: 0,
            rows: rows.clone(),
            faults: self.world.coverage(),
            events: self.world.events(),
            entries: oracle.last(),
            operations: (
                clients.history.operations().len(),
                clients.history.answered(),
            ),
            unknown,
        }
    }
}
