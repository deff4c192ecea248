//! The leader on one thread, both followers on another: replicas that do not share a processor.
//!
//! This is how mu's replicas stand to each other, whose followers poll on a processor of their own. Both threads spin
//! over two rings. On the clock is the way of a command to the near follower and back; the far follower is served
//! after it. Between slices the followers' thread sleeps, so that it takes nothing from the others.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use quanta::Clock;
use rtrb::{Consumer, Producer, RingBuffer};

use crate::contestant::{Applied, Command, Core, REPLICAS};
use crate::host;
use crate::node::{FAR, LEADER, NEAR, Node};

/// Orders that may be on their way.
const RING: usize = 1024;

/// Followers on the other thread.
const FOLLOWERS: usize = REPLICAS - 1;

/// What the leader's thread asks of the followers'. Each order has exactly one reply.
enum Order<M> {
    /// Messages to one follower.
    Deliver(usize, Vec<M>),
    Apply,
    Compact,
    Sleep,
}

/// The messages that followers have for the leader, in the vector of the order if it had one, and, unless the order
/// was `Deliver`, how the followers stand.
struct Reply<M> {
    messages: Vec<M>,
    state: Option<Box<State>>,
}

#[derive(Clone, Default)]
struct State {
    in_office: bool,
    applied: [Applied; FOLLOWERS],
}

/// The thread of the followers.
struct Followers<N: Node> {
    nodes: [N; FOLLOWERS],
    orders: Consumer<Order<N::Message>>,
    replies: Producer<Reply<N::Message>>,
    awake: Arc<AtomicBool>,
}

impl<N: Node> Followers<N> {
    /// Carries out orders until the leader's thread is gone.
    fn run(mut self) -> Result<()> {
        loop {
            match self.orders.pop() {
                Ok(order) => self.carry_out(order)?,
                Err(_) if self.orders.is_abandoned() => return Ok(()),
                Err(_) => std::hint::spin_loop(),
            }
        }
    }

    fn carry_out(&mut self, order: Order<N::Message>) -> Result<()> {
        if let Order::Deliver(to, mut messages) = order {
            let node = &mut self.nodes[to - NEAR];
            for message in messages.drain(..) {
                node.receive(message)?;
            }
            node.begin(&mut messages);
            self.reply(messages, None)?;
            return self.finish(to - NEAR);
        }
        let mut messages = Vec::new();
        for node in &mut self.nodes {
            match order {
                Order::Apply => node.apply()?,
                Order::Compact => node.compact()?,
                Order::Deliver(..) | Order::Sleep => {}
            }
            node.work(&mut messages);
        }
        let state = State {
            in_office: self.nodes.iter().all(N::in_office),
            applied: [0, 1].map(|at: usize| self.nodes[at].applied().clone()),
        };
        self.reply(messages, Some(Box::new(state)))?;
        if matches!(order, Order::Sleep) {
            while !self.awake.swap(false, Ordering::Acquire) {
                thread::park();
            }
        }
        Ok(())
    }

    /// What a follower does after its answer is out. It has nothing more to say then.
    fn finish(&mut self, at: usize) -> Result<()> {
        let mut messages = Vec::new();
        self.nodes[at].end(&mut messages);
        ensure!(
            messages.is_empty(),
            "a follower had messages after its answer"
        );
        Ok(())
    }

    fn reply(&mut self, messages: Vec<N::Message>, state: Option<Box<State>>) -> Result<()> {
        let sent = self.replies.push(Reply { messages, state });
        sent.map_err(|_| anyhow!("more replies than orders"))
    }
}

/// The contestant.
pub struct TwoThreads<N: Node> {
    leader: N,
    orders: Producer<Order<N::Message>>,
    replies: Consumer<Reply<N::Message>>,
    /// Orders that have no reply yet.
    outstanding: usize,
    followers: State,
    awake: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
    /// Messages on their way, and empty vectors that have carried some.
    messages: Vec<N::Message>,
    spare: Vec<Vec<N::Message>>,
}

impl<N: Node> TwoThreads<N> {
    /// A group that has elected its leader; the followers' thread runs on the second of `pins`, if there is one.
    pub fn new(pins: &[usize]) -> Result<Self> {
        let (orders, their_orders) = RingBuffer::new(RING);
        let (their_replies, replies) = RingBuffer::new(RING);
        let awake = Arc::new(AtomicBool::new(false));
        let (their_awake, cpu) = (awake.clone(), pins.get(1).copied());
        // The nodes are made where they run: a node need not be fit to change threads.
        let thread = thread::Builder::new()
            .name("followers".into())
            .spawn(move || {
                if let Some(cpu) = cpu {
                    host::pin(cpu)?;
                }
                let nodes = [N::new(NEAR)?, N::new(FAR)?];
                let (orders, replies, awake) = (their_orders, their_replies, their_awake);
                Followers {
                    nodes,
                    orders,
                    replies,
                    awake,
                }
                .run()
            })?;
        let mut group = Self {
            leader: N::new(LEADER)?,
            orders,
            replies,
            outstanding: 0,
            followers: State::default(),
            awake,
            thread: Some(thread),
            messages: Vec::new(),
            spare: Vec::new(),
        };
        group.leader.campaign()?;
        group.settle()?;
        group.order(Order::Sleep)?;
        group.settle()?;
        let elected = group.leader.in_office() && group.followers.in_office;
        ensure!(elected, "the first election did not come about");
        Ok(group)
    }

    fn order(&mut self, order: Order<N::Message>) -> Result<()> {
        while self.outstanding == RING {
            self.await_reply()?;
        }
        self.outstanding += 1;
        self.orders
            .push(order)
            .map_err(|_| anyhow!("a ring with more orders than are outstanding"))
    }

    /// Sends the leader's messages, the near follower's first.
    fn dispatch(&mut self) -> Result<()> {
        let mut far = self.spare.pop().unwrap_or_default();
        let mut near = self.spare.pop().unwrap_or_default();
        for message in self.messages.drain(..) {
            let to = if N::destination(&message) == NEAR {
                &mut near
            } else {
                &mut far
            };
            to.push(message);
        }
        for (to, messages) in [(NEAR, near), (FAR, far)] {
            if messages.is_empty() {
                self.spare.push(messages);
            } else {
                self.order(Order::Deliver(to, messages))?;
            }
        }
        Ok(())
    }

    /// Takes a reply if there is one. Its messages arrive; those between followers go back out.
    fn take_reply(&mut self) -> Result<bool> {
        let Ok(mut reply) = self.replies.pop() else {
            if self.replies.is_abandoned() {
                let thread = self
                    .thread
                    .take()
                    .context("the followers' thread has ended")?;
                thread
                    .join()
                    .map_err(|_| anyhow!("the followers' thread panicked"))??;
                bail!("the followers' thread ended early");
            }
            return Ok(false);
        };
        self.outstanding -= 1;
        for message in reply.messages.drain(..) {
            if N::destination(&message) == LEADER {
                self.leader.receive(message)?;
            } else {
                self.messages.push(message);
            }
        }
        self.spare.push(reply.messages);
        if let Some(state) = reply.state {
            self.followers = *state;
        }
        Ok(true)
    }

    fn await_reply(&mut self) -> Result<()> {
        while !self.take_reply()? {
            std::hint::spin_loop();
        }
        Ok(())
    }
}

impl<N: Node> Drop for TwoThreads<N> {
    /// The thread ends by itself once it is awake and its rings are gone.
    fn drop(&mut self) {
        self.awake.store(true, Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl<N: Node> Core for TwoThreads<N> {
    fn name(&self) -> &'static str {
        N::NAMES[1]
    }

    fn setup(&self) -> String {
        format!("2 threads: leader / followers, spinning{}", N::OPTIONS)
    }

    fn wake(&mut self) -> Result<()> {
        self.awake.store(true, Ordering::Release);
        let thread = self
            .thread
            .as_ref()
            .context("the followers' thread has ended")?;
        thread.thread().unpark();
        // It is up when it has answered.
        self.order(Order::Apply)?;
        self.settle()
    }

    fn decide(&mut self, command: &Command) -> Result<()> {
        let due = self.decided() + 1;
        self.leader.propose(command)?;
        self.leader.begin(&mut self.messages);
        self.leader.end(&mut self.messages);
        self.dispatch()?;
        loop {
            self.await_reply()?;
            self.leader.begin(&mut self.messages);
            if self.decided() == due {
                return Ok(());
            }
            self.leader.end(&mut self.messages);
        }
    }

    fn settle(&mut self) -> Result<()> {
        loop {
            self.leader.work(&mut self.messages);
            self.dispatch()?;
            if self.outstanding == 0 {
                return Ok(());
            }
            self.await_reply()?;
        }
    }

    fn pipelined(&mut self, in_flight: usize, numbers: Range<u64>) -> Result<Duration> {
        let clock = Clock::new();
        let start = clock.raw();
        let mut next = numbers.start;
        while self.decided() < numbers.end {
            while next < numbers.end && next - self.decided() < in_flight as u64 {
                self.leader.propose(&Command::new(next))?;
                next += 1;
            }
            self.leader.work(&mut self.messages);
            self.dispatch()?;
            while self.take_reply()? {}
            self.leader.work(&mut self.messages);
        }
        self.settle()?;
        Ok(clock.delta(start, clock.raw()))
    }

    fn rest(&mut self) -> Result<()> {
        self.leader.announce();
        self.settle()?;
        self.leader.apply()?;
        self.order(Order::Apply)?;
        self.settle()?;
        self.leader.compact()?;
        self.order(Order::Compact)?;
        self.settle()?;
        self.order(Order::Sleep)?;
        self.settle()
    }

    fn decided(&self) -> u64 {
        self.leader.decided()
    }

    fn applied(&self) -> [Applied; REPLICAS] {
        let [near, far] = self.followers.applied.clone();
        [self.leader.applied().clone(), near, far]
    }
}
