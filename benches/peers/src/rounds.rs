//! The rounds: every contestant has a slice of every round, in an order that moves on by one from round to round.
//!
//! So whatever slows the machine for a while slows all of them. A slice is: some commands that warm the caches and are
//! not recorded, single commands that are, a window of commands in flight, and the check of what was decided.

use anyhow::{Context as _, Result, ensure};
use quanta::Clock;

use crate::contestant::{Command, Core, REPLICAS};
use crate::stats::{Percentiles, Recorder, median};

/// How much is run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub rounds: usize,
    /// Commands of a slice that come first and are not recorded.
    pub warm_up: u64,
    /// Single commands of a slice that are recorded.
    pub singles: u64,
    /// Commands of a slice that are pipelined.
    pub pipelined: u64,
    pub in_flight: usize,
}

/// What was found of one contestant.
#[derive(Debug)]
pub struct Figures {
    pub name: &'static str,
    pub setup: String,
    pub one: Percentiles,
    /// The p50 of the best and of the worst round.
    pub p50_low: u64,
    pub p50_high: u64,
    /// Pipelined commands per second: the median over the rounds, and the best.
    pub rate: f64,
    pub rate_best: f64,
    /// Commands decided, each of which all three replicas have applied.
    pub decided: u64,
}

/// A contestant, and what it has done so far.
struct Entrant<'a> {
    core: &'a mut dyn Core,
    submitted: u64,
    one: Recorder,
    p50s: Vec<u64>,
    rates: Vec<f64>,
}

/// Runs the plan and checks it. `progress` is told how many rounds are done.
pub fn run(
    cores: &mut [Box<dyn Core>],
    plan: &Plan,
    progress: impl Fn(usize),
) -> Result<Vec<Figures>> {
    let clock = Clock::new();
    let mut entrants = Vec::new();
    for core in cores {
        let (one, p50s, rates) = (Recorder::new()?, Vec::new(), Vec::new());
        entrants.push(Entrant {
            core: core.as_mut(),
            submitted: 0,
            one,
            p50s,
            rates,
        });
    }
    let count = entrants.len();
    for round in 0..plan.rounds {
        for turn in 0..count {
            let entrant = &mut entrants[(round + turn) % count];
            let slice = entrant.slice(plan, &clock);
            slice.with_context(|| format!("{} in round {round}", entrant.core.name()))?;
        }
        progress(round + 1);
    }
    Ok(entrants.iter().map(Entrant::figures).collect())
}

impl Entrant<'_> {
    fn slice(&mut self, plan: &Plan, clock: &Clock) -> Result<()> {
        self.core.wake()?;
        self.singles(plan.warm_up, clock)?;
        let mut of_round = Recorder::new()?;
        for ns in self.singles(plan.singles, clock)? {
            self.one.record(ns);
            of_round.record(ns);
        }
        self.p50s.push(of_round.percentiles().p50);

        let numbers = self.submitted..self.submitted + plan.pipelined;
        let elapsed = self.core.pipelined(plan.in_flight, numbers)?;
        self.submitted += plan.pipelined;
        self.rates
            .push(plan.pipelined as f64 / elapsed.as_secs_f64());

        self.core.rest()?;
        self.check()
    }

    /// Decides commands one at a time; how many nanoseconds each took.
    fn singles(&mut self, commands: u64, clock: &Clock) -> Result<Vec<u64>> {
        let mut took_ns = Vec::with_capacity(commands as usize);
        for _ in 0..commands {
            let command = Command::new(self.submitted);
            self.submitted += 1;
            let start = clock.raw();
            let end = self.core.one(&command, clock)?;
            took_ns.push(clock.delta_as_nanos(start, end));
            self.core.settle()?;
        }
        Ok(took_ns)
    }

    /// What was decided is what was submitted, and each replica has applied exactly that.
    fn check(&self) -> Result<()> {
        let (decided, submitted) = (self.core.decided(), self.submitted);
        ensure!(
            decided == submitted,
            "decided {decided} commands of {submitted}"
        );
        let applied = self.core.applied();
        for (replica, applied) in applied.iter().enumerate().take(REPLICAS) {
            applied
                .check(submitted)
                .with_context(|| format!("replica {replica}"))?;
        }
        Ok(())
    }

    fn figures(&self) -> Figures {
        Figures {
            name: self.core.name(),
            setup: self.core.setup(),
            one: self.one.percentiles(),
            p50_low: self.p50s.iter().copied().min().unwrap_or(0),
            p50_high: self.p50s.iter().copied().max().unwrap_or(0),
            rate: median(&self.rates),
            rate_best: self.rates.iter().copied().fold(0.0, f64::max),
            decided: self.submitted,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::ops::Range;
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::contestant::Applied;

    const PLAN: Plan = Plan {
        rounds: 3,
        warm_up: 1,
        singles: 5,
        pipelined: 10,
        in_flight: 4,
    };

    /// What a contestant under test does wrong.
    #[derive(Clone, Copy, PartialEq)]
    enum Bug {
        None,
        LosesOnOneReplica,
        AppliesTwice,
        SwapsTwo,
        SaysDecidedTooOften,
        SkipsPipelined,
    }

    /// A contestant that applies at once, and keeps a diary of whose slice it was.
    struct Fake {
        name: &'static str,
        bug: Bug,
        decided: u64,
        applied: [Applied; REPLICAS],
        diary: Rc<RefCell<Vec<&'static str>>>,
    }

    impl Fake {
        fn new(name: &'static str, bug: Bug) -> Self {
            Self {
                name,
                bug,
                decided: 0,
                applied: Default::default(),
                diary: Rc::default(),
            }
        }

        fn decide(&mut self, number: u64) {
            let bites = |bug| self.bug == bug && number == 7;
            self.decided += if bites(Bug::SaysDecidedTooOften) {
                2
            } else {
                1
            };
            let applied_as = match number {
                8 | 9 if self.bug == Bug::SwapsTwo => 17 - number,
                _ => number,
            };
            let (lost, twice) = (bites(Bug::LosesOnOneReplica), bites(Bug::AppliesTwice));
            for (replica, applied) in self.applied.iter_mut().enumerate() {
                let times = if lost && replica == 2 {
                    0
                } else {
                    1 + usize::from(twice)
                };
                for _ in 0..times {
                    applied.apply(Command::new(applied_as).bytes());
                }
            }
        }
    }

    impl Core for Fake {
        fn name(&self) -> &'static str {
            self.name
        }

        fn setup(&self) -> String {
            "in a test".into()
        }

        fn wake(&mut self) -> Result<()> {
            self.diary.borrow_mut().push(self.name);
            Ok(())
        }

        fn decide(&mut self, command: &Command) -> Result<()> {
            let number = self.decided;
            assert_eq!(command, &Command::new(number), "commands come in order");
            self.decide(number);
            Ok(())
        }

        fn settle(&mut self) -> Result<()> {
            Ok(())
        }

        fn pipelined(&mut self, _in_flight: usize, mut numbers: Range<u64>) -> Result<Duration> {
            if self.bug == Bug::SkipsPipelined {
                numbers.next_back();
            }
            numbers.for_each(|number| self.decide(number));
            Ok(Duration::from_micros(1))
        }

        fn rest(&mut self) -> Result<()> {
            Ok(())
        }

        fn decided(&self) -> u64 {
            self.decided
        }

        fn applied(&self) -> [Applied; REPLICAS] {
            self.applied.clone()
        }
    }

    fn verdict(bug: Bug) -> Result<Vec<Figures>> {
        run(&mut [Box::new(Fake::new("fake", bug))], &PLAN, |_| ())
    }

    #[test]
    fn an_honest_contestant_passes_and_its_figures_are_complete() {
        let figures = verdict(Bug::None).unwrap().remove(0);
        assert_eq!((figures.one.count, figures.decided), (15, 48));
        assert!((figures.rate - 10e6).abs() < 1.0, "{}", figures.rate);
    }

    #[test]
    fn every_way_to_cheat_is_found() {
        for (bug, words) in [
            (Bug::LosesOnOneReplica, "replica 2"),
            (Bug::AppliesTwice, "replica 0"),
            (Bug::SwapsTwo, "command 8 is not that command"),
            (Bug::SaysDecidedTooOften, "decided 17 commands of 16"),
            (Bug::SkipsPipelined, "decided 15 commands of 16"),
        ] {
            let error = format!("{:#}", verdict(bug).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn the_order_moves_on_from_round_to_round() {
        let diary = Rc::new(RefCell::new(Vec::new()));
        let mut cores: Vec<Box<dyn Core>> = Vec::new();
        for name in ["a", "b", "c"] {
            cores.push(Box::new(Fake {
                diary: diary.clone(),
                ..Fake::new(name, Bug::None)
            }));
        }
        run(&mut cores, &PLAN, |_| ()).unwrap();
        assert_eq!(diary.borrow().concat(), "abcbcacab");
    }
}
