//! The rounds: taking a replica away, waiting for what follows, bringing it back.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use mu::host::{RoleEvent, Status, monotonic_ns};
use nix::sys::signal::Signal;

use super::replica::{AGAIN, Hang, Strings};
use super::steps::{CASES, Case, Victim};
use super::woken::Probe;
use super::{Fault, Found, Plan};
use crate::bench::stats::{Random, Recorder};
use crate::local::caller::{Ask, Told};
use crate::local::cluster::{Cluster, PATIENCE};
use crate::local::judge::judge;
use crate::local::load::{Load, Record};

/// Between a takeover that is over and the next fault: at least so long, and up to twice.
const CALM_MS: u64 = 40;
/// Statuses are published this often; what happened before a moment is in one asked for so much later.
const PUBLISHED: Duration = Duration::from_millis(60);
/// Of an epoch, the lowest, which say whose it is; the others count.
const OWNER_BITS: u32 = 4;
/// Between two looks at words or counters.
const LOOK: Duration = Duration::from_micros(500);

pub(super) struct Bench<'a> {
    plan: &'a Plan,
    cluster: Cluster,
    strings: Strings,
    load: Load,
    probe: Probe,
    random: Random,
    detect: Recorder,
    switch: Recorder,
    total: Recorder,
    rejoin: Recorder,
    steps: BTreeMap<String, u64>,
    /// What the probe saw.
    records: Vec<Record>,
    woken_asked: u64,
    woken_answers: u64,
    false_failovers: u64,
}

/// How much leading there has been.
#[derive(Clone, Copy)]
pub(super) struct Leaderships {
    /// How often the replicas that run have become leader, summed. A killed replica's count goes with it.
    led: u64,
    /// The count of the highest epoch that anybody knows: every attempt to lead takes one.
    epochs: u64,
}

impl<'a> Bench<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        cluster: Cluster,
        strings: Strings,
        load: Load,
    ) -> Result<Self> {
        Ok(Self {
            plan,
            probe: Probe::new(&cluster.clients())?,
            cluster,
            strings,
            load,
            random: Random::new(plan.load.seed),
            detect: Recorder::new()?,
            switch: Recorder::new()?,
            total: Recorder::new()?,
            rejoin: Recorder::new()?,
            steps: BTreeMap::new(),
            records: Vec::new(),
            woken_asked: 0,
            woken_answers: 0,
            false_failovers: 0,
        })
    }

    /// Waits until so many more commands are acknowledged.
    pub(super) fn wait_until_served(&self, commands: u64) -> Result<()> {
        let before = self.load.acked();
        let begin = Instant::now();
        while self.load.acked() < before + commands {
            if begin.elapsed() > PATIENCE {
                bail!("no command is acknowledged any more");
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// The leaderships so far.
    pub(super) fn leaderships(&mut self) -> Result<Leaderships> {
        let mut so_far = Leaderships { led: 0, epochs: 0 };
        for id in self.cluster.ids() {
            let status = self.cluster.status(id)?;
            so_far.led += counter(&status, "led")?;
            so_far.epochs = so_far.epochs.max(status.epoch >> OWNER_BITS);
        }
        Ok(so_far)
    }

    /// An idle and a loaded time in which nobody may take over; counts those who do.
    pub(super) fn quiet(&mut self) -> Result<()> {
        let before = self.leaderships()?;
        for rests in [true, false] {
            self.load.rest(rests);
            thread::sleep(self.plan.quiet);
        }
        if self.plan.forge {
            self.disturb()?;
        }
        thread::sleep(PUBLISHED);
        self.false_failovers += self.leaderships()?.led - before.led;
        Ok(())
    }

    /// What nobody may see in a quiet time: the leader changes. And what a leader without its office would answer: what
    /// the one that leads does.
    fn disturb(&mut self) -> Result<()> {
        let leader = self.cluster.wait_for_leader(None)?;
        let begin = Instant::now();
        let successor = loop {
            // One that comes to nothing is asked for again.
            self.strings
                .hand_over(leader, (leader + 1) % self.plan.replicas);
            thread::sleep(AGAIN);
            match self.cluster.wait_for_leader(None)? {
                same if same == leader && begin.elapsed() < PATIENCE => {}
                successor => break successor,
            }
        };
        let mut leader = successor;
        loop {
            self.probe.reconnect();
            let sent = self.probe.send(leader, self.plan.load.keys - 1);
            self.woken_asked = sent.count();
            let (records, answers) = self.probe.hear(sent);
            self.records.extend(records);
            self.woken_answers = answers;
            if answers == 2 || begin.elapsed() > PATIENCE {
                break;
            }
            // It was late, or another one leads by now.
            leader = self.cluster.wait_for_leader(None)?;
        }
        Ok(())
    }

    /// Takes the leader away at any moment, waits for the next one, brings the old one back.
    pub(super) fn round(&mut self) -> Result<()> {
        let leader = self.calm()?;
        let fault_ns = self.load.watch(leader);
        match self.plan.fault {
            Fault::Kill => self.cluster.signal(leader, Signal::SIGKILL)?,
            Fault::Stop => self.cluster.signal(leader, Signal::SIGSTOP)?,
            Fault::Hang => self.strings.hang(leader, Hang::Replication),
            Fault::Heartbeat => self.strings.hang(leader, Hang::Background),
            Fault::Handover => {
                let to = (leader + 1) % self.plan.replicas;
                self.strings.hand_over(leader, to);
            }
        }
        let regained_ns = self.load.regained(PATIENCE)?;
        self.total.record(regained_ns.saturating_sub(fault_ns));
        self.bring_back(leader)?;
        self.phases(leader, fault_ns)
    }

    /// Takes a replica away at the next step of this victim.
    pub(super) fn round_at(&mut self, victim: Victim, round: u64) -> Result<()> {
        let cases: Vec<&Case> = CASES.iter().filter(|case| case.victim == victim).collect();
        let case = *cases[round as usize % cases.len()];
        let name = case.step.name();
        let (id, sprung_ns) = loop {
            if let Some(sprung) = self.spring(case)? {
                break sprung;
            }
        };
        if case.victim == Victim::Leader {
            let regained_ns = self.load.regained(PATIENCE)?;
            self.total.record(regained_ns.saturating_sub(sprung_ns));
        }
        // Whoever leads now, it serves without the one that is away.
        let served = self.wait_until_served(50);
        served.with_context(|| format!("replica {id} is away at step {name}"))?;
        self.bring_back(id)?;
        self.wait_until_served(50)?;
        *self.steps.entry(format!("{victim:?} {name}")).or_default() += 1;
        if case.victim == Victim::Leader {
            self.phases(id, sprung_ns)?;
        }
        Ok(())
    }

    /// Sets the trap for whoever has the part of this case now, and waits until it has sprung: who it was, and when.
    /// `None` if one leads before that which nobody meant to, so that the parts are others (and the report counts one
    /// more failover).
    fn spring(&mut self, case: Case) -> Result<Option<(u8, u64)>> {
        let leader = self.calm()?;
        let n = self.plan.replicas;
        let (successor, other) = ((leader + 1) % n, (leader + 2) % n);
        let id = match case.victim {
            Victim::Leader => leader,
            Victim::Successor => successor,
            Victim::Follower => other,
        };
        self.load.watch(leader);
        self.strings
            .arm(id, case.step, self.plan.fault == Fault::Stop);
        let handover = case.handover.then_some((leader, successor));
        let sprung_ns = self.wait_until_sprung(id, handover);
        self.strings.disarm(id);
        match sprung_ns {
            Ok(at_ns) => Ok(Some((id, at_ns))),
            Err(error) => {
                let leads = self.cluster.wait_for_leader(None)?;
                match leads == leader || case.handover && leads == successor {
                    true => Err(error.context(format!("replica {id}, step {}", case.step.name()))),
                    false => Ok(None),
                }
            }
        }
    }

    /// A moment's rest; then who leads.
    fn calm(&mut self) -> Result<u8> {
        let calm_ms = CALM_MS + self.random.below(CALM_MS);
        thread::sleep(Duration::from_millis(calm_ms));
        self.probe.reconnect();
        self.cluster.wait_for_leader(None)
    }

    /// `handover`: from whom to whom, if that is what leads to the step.
    fn wait_until_sprung(&self, id: u8, handover: Option<(u8, u8)>) -> Result<u64> {
        let begin = Instant::now();
        let mut asked: Option<Instant> = None;
        loop {
            let due = asked.is_none_or(|at| at.elapsed() > AGAIN);
            if let Some((from, to)) = handover.filter(|_| due) {
                self.strings.hand_over(from, to);
                asked = Some(Instant::now());
            }
            match self.strings.sprung(id) {
                Some(at_ns) => return Ok(at_ns),
                None if begin.elapsed() > PATIENCE / 4 => bail!("it did not come to that step"),
                None => thread::sleep(LOOK),
            }
        }
    }

    /// Brings a replica back that was taken away, and waits until it has its vote.
    fn bring_back(&mut self, id: u8) -> Result<()> {
        let since_ns = monotonic_ns();
        match self.plan.fault {
            Fault::Kill => {
                self.cluster.reap(id)?;
                self.cluster.start(id, false)?;
            }
            Fault::Stop | Fault::Hang | Fault::Heartbeat => self.wake(id)?,
            Fault::Handover => {}
        }
        self.cluster
            .wait_for(id, "a voter", |status| status.voter)?;
        self.rejoin.record(monotonic_ns() - since_ns);
        Ok(())
    }

    /// Lets a replica go on, with requests waiting for it that only a leader may answer.
    fn wake(&mut self, id: u8) -> Result<()> {
        let key = self.random.below(self.plan.load.keys);
        let sent = self.probe.send(id, key);
        self.woken_asked += sent.count();
        let woken_ns = monotonic_ns();
        match self.plan.fault {
            Fault::Hang | Fault::Heartbeat => self.strings.hang(id, Hang::Nothing),
            _ => self.cluster.signal(id, Signal::SIGCONT)?,
        }
        let (records, answers) = self.probe.hear(sent);
        self.records.extend(records);
        // One that leads again may answer, also if it has lost that since; the judge looks at what it said in any case.
        if answers > 0 && !self.led_since(id, woken_ns)? {
            self.woken_answers += answers;
        }
        Ok(())
    }

    /// Whether a replica leads, or says that it became the leader after a moment.
    fn led_since(&mut self, id: u8, moment_ns: u64) -> Result<bool> {
        if self.cluster.wait_for_leader(None)? == id {
            return Ok(true);
        }
        // What it says may be as old as that.
        thread::sleep(PUBLISHED);
        let events = self.cluster.status(id)?.events;
        let since = |event: &RoleEvent| event.role == "leader" && event.at_ns > moment_ns;
        Ok(events.iter().any(since))
    }

    /// What the replicas say of the takeover after `fault_ns`.
    fn phases(&mut self, away: u8, fault_ns: u64) -> Result<()> {
        match self.cluster.takeover(away, fault_ns)? {
            Some(takeover) => {
                self.detect.record(takeover.stood_ns - fault_ns);
                self.switch.record(takeover.led_ns - fault_ns);
            }
            // The one that was taken away had just lost its office: that was no failover of this round.
            None => self.false_failovers += 1,
        }
        Ok(())
    }

    /// Ends the load and judges it.
    pub(super) fn found(mut self, before: Leaderships) -> Result<Found> {
        let after = self.leaderships()?;
        let extra_failovers = match (self.plan.fault, self.plan.at) {
            // The counts of killed replicas are gone, and a step may cost more than one leader.
            (Fault::Kill, _) | (_, Some(_)) => None,
            _ => Some((after.led - before.led).saturating_sub(self.plan.rounds)),
        };
        let mut records = self.load.end()?;
        records.extend(self.records);
        if self.plan.forge {
            records.extend(forged(&records));
        }
        let judged = judge(&self.cluster.clients(), &records)?;
        Ok(Found {
            detect: self.detect.percentiles(),
            switch: self.switch.percentiles(),
            total: self.total.percentiles(),
            acked: judged.acked,
            unknown: judged.unknown,
            lost: judged.lost,
            stale_reads: judged.stale_reads,
            false_failovers: self.false_failovers,
            quiet_s: self.plan.quiet.as_secs_f64(),
            extra_failovers,
            epochs: after.epochs - before.epochs,
            linearizable: judged.linearizable,
            why: judged.why,
            rejoin: self.rejoin.percentiles(),
            woken_asked: self.woken_asked,
            woken_answers: self.woken_answers,
            steps: self.steps,
            operations: judged.operations,
            seed: self.plan.load.seed,
        })
    }
}

/// An acknowledged write that nobody made, at the end of everything.
fn forged(records: &[Record]) -> Option<Record> {
    let last = records.iter().filter(|record| {
        let put = matches!(record.ask, Ask::Put { .. });
        put && record.called.answer.is_some()
    });
    let mut record = *last.max_by_key(|record| record.called.invoked_ns)?;
    if let Ask::Put { value, .. } = &mut record.ask {
        *value = u64::MAX;
    }
    let now_ns = monotonic_ns();
    record.called.invoked_ns = now_ns;
    record.called.answer = Some((Told::Done, 0, now_ns));
    Some(record)
}

/// What a replica counted under this name.
pub(crate) fn counter(status: &Status, name: &str) -> Result<u64> {
    let found = status.counters.iter().find(|(known, _)| known == name);
    found
        .map(|(_, count)| *count)
        .with_context(|| format!("a status without the counter {name}"))
}
