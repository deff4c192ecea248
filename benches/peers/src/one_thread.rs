//! Three replicas on one thread, quorum first: a core's cheapest way to a decision.
//!
//! On the clock is the way of a command from the proposal over the near follower to the leader that knows it is
//! decided, with no hop between processors. The far follower comes after. In a window of commands all three replicas
//! are on the clock.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, ensure};
use quanta::Clock;

use crate::contestant::{Applied, Command, Core, REPLICAS};
use crate::node::{FAR, LEADER, NEAR, Node};

/// The contestant.
pub struct OneThread<N: Node> {
    nodes: [N; REPLICAS],
    /// Messages on their way; kept, so that nothing is allocated for them.
    messages: Vec<N::Message>,
    /// Messages put off until after the clock.
    late: Vec<N::Message>,
}

impl<N: Node> OneThread<N> {
    /// A group that has elected its leader.
    pub fn new() -> Result<Self> {
        let nodes = [N::new(LEADER)?, N::new(NEAR)?, N::new(FAR)?];
        let mut group = Self {
            nodes,
            messages: Vec::new(),
            late: Vec::new(),
        };
        group.nodes[LEADER].campaign()?;
        group.deliver_all()?;
        ensure!(
            group.nodes.iter().all(N::in_office),
            "the first election did not come about"
        );
        Ok(group)
    }

    /// Carries messages until there are none and no node has anything left to do.
    fn deliver_all(&mut self) -> Result<()> {
        loop {
            for node in &mut self.nodes {
                node.work(&mut self.messages);
                self.late.append(&mut self.messages);
            }
            if self.late.is_empty() {
                return Ok(());
            }
            for message in self.late.drain(..) {
                self.nodes[N::destination(&message)].receive(message)?;
            }
        }
    }

    /// Messages to this replica arrive; the others are put off.
    fn deliver_to(&mut self, replica: usize) -> Result<()> {
        for message in self.messages.drain(..) {
            if N::destination(&message) == replica {
                self.nodes[replica].receive(message)?;
            } else {
                self.late.push(message);
            }
        }
        Ok(())
    }
}

impl<N: Node> Core for OneThread<N> {
    fn name(&self) -> &'static str {
        N::NAMES[0]
    }

    fn setup(&self) -> String {
        format!("1 thread, quorum first{}", N::OPTIONS)
    }

    fn decide(&mut self, command: &Command) -> Result<()> {
        let before = self.decided();
        self.nodes[LEADER].propose(command)?;
        self.nodes[LEADER].begin(&mut self.messages);
        self.nodes[LEADER].end(&mut self.messages);
        self.deliver_to(NEAR)?;
        self.nodes[NEAR].begin(&mut self.messages);
        self.deliver_to(LEADER)?;
        self.nodes[LEADER].begin(&mut self.messages);
        ensure!(
            self.decided() == before + 1,
            "not decided by the leader and the near follower"
        );
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        self.late.append(&mut self.messages);
        self.deliver_all()
    }

    fn pipelined(&mut self, in_flight: usize, numbers: Range<u64>) -> Result<Duration> {
        let clock = Clock::new();
        let start = clock.raw();
        let mut next = numbers.start;
        while next < numbers.end {
            let window_end = numbers.end.min(next + in_flight as u64);
            for number in next..window_end {
                self.nodes[LEADER].propose(&Command::new(number))?;
            }
            self.deliver_all()?;
            next = window_end;
            ensure!(
                self.decided() == next,
                "decided {} of {next}",
                self.decided()
            );
        }
        Ok(clock.delta(start, clock.raw()))
    }

    fn rest(&mut self) -> Result<()> {
        self.nodes[LEADER].announce();
        self.deliver_all()?;
        for node in &mut self.nodes {
            node.apply()?;
        }
        for node in &mut self.nodes {
            node.compact()?;
        }
        self.deliver_all()
    }

    fn decided(&self) -> u64 {
        self.nodes[LEADER].decided()
    }

    fn applied(&self) -> [Applied; REPLICAS] {
        [LEADER, NEAR, FAR].map(|at| self.nodes[at].applied().clone())
    }
}
