//! One end of a link between two replicas: when its queue pair is reset and when it is connected, and to what.
//!
//! # The handshake
//!
//! Each reset makes a new *generation*, and a queue pair connects once in a generation. An end says (generation, echo,
//! connected), echo being the peer's generation that it has heard of. On hearing (g, echo, connected) it does this:
//!
//! - connected to g: all is well; if the peer has not heard of this generation, say it again;
//! - connected to another one: that is over, take a new generation;
//! - fresh: connect if echo is the own generation; else say the own one, with echo g.
//!
//! So nobody connects to a peer that has not heard of the generation it connects with, and a peer that has heard of it
//! is either fresh or connected to it, or has begun anew and says so. A fault therefore costs each end one reset, not
//! a chase of resets. Only what was heard last counts, and what is to be said is a flag: messages need no queue. A
//! link is *up* once the peer says that it has connected to this generation: from then on it answers. The unit tests go
//! through every interleaving of two ends with faults in between, and find that it always ends connected.
//!
//! A queue pair that is receiving should not be reset (kernel Soft-RoCE breaks it), so it goes to ERR first and is
//! reset a while later.

use crate::message::Connect;

/// What is to be done to the queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take the peer's rights through it away and bring it to ERR. Report with [`Line::closed`].
    Close,
    /// Bring it to RESET, unless it was never used (`fresh`), and to INIT. Report with [`Line::opened`].
    Open {
        /// It is in RESET already.
        fresh: bool,
    },
    /// Connect it, to RTS. Report with [`Line::connected`].
    Connect(Connect),
}

/// Where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkState {
    /// Not usable; to be closed from this time on.
    Broken {
        /// When, in nanoseconds.
        at_ns: u64,
    },
    /// In ERR until its last packet is through.
    Draining {
        /// Until when.
        until_ns: u64,
    },
    /// In INIT, to be connected.
    Fresh,
    /// In RTS, connected to the peer's generation.
    Connected {
        /// The peer's generation.
        peer: u32,
        /// The peer has said that it is connected to this one: the link is up.
        confirmed: bool,
    },
}

/// A link whose last failure is so long ago is taken for a sound one.
const CALM_NS: u64 = 100_000_000;
/// The pause before a second reset; it doubles with every further one.
const PAUSE_NS: u64 = 1_000_000;
/// How often it doubles.
const MAX_DOUBLINGS: u32 = 5;

/// One end of a link.
#[derive(Clone, Debug)]
pub struct Line {
    generation: u32,
    state: LinkState,
    /// The last message of this life of the peer.
    heard: Option<Connect>,
    say: bool,
    /// The queue pair was never used.
    unused: bool,
    drain_ns: u64,
    failures: u32,
    failed_ns: Option<u64>,
}

impl Line {
    /// For a queue pair in RESET. `drain_ns`: how long it stays in ERR before it is reset.
    pub fn new(drain_ns: u64) -> Self {
        Self {
            generation: 0,
            state: LinkState::Broken { at_ns: 0 },
            heard: None,
            say: false,
            unused: true,
            drain_ns,
            failures: 0,
            failed_ns: None,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> LinkState {
        self.state
    }

    /// The own generation; 0 before the first.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The peer's generation that this end is connected to.
    pub fn peer_generation(&self) -> Option<u32> {
        match self.state {
            LinkState::Connected { peer, .. } => Some(peer),
            _ => None,
        }
    }

    /// Both ends are connected to each other.
    pub fn is_up(&self) -> bool {
        matches!(
            self.state,
            LinkState::Connected {
                confirmed: true,
                ..
            }
        )
    }

    /// What is to be done now.
    pub fn next(&self, now_ns: u64) -> Option<Step> {
        match self.state {
            LinkState::Broken { at_ns } if now_ns >= at_ns => Some(if self.unused {
                Step::Open { fresh: true }
            } else {
                Step::Close
            }),
            LinkState::Draining { until_ns } if now_ns >= until_ns => {
                Some(Step::Open { fresh: false })
            }
            LinkState::Fresh => self
                .heard
                .filter(|heard| self.fits(heard))
                .map(Step::Connect),
            _ => None,
        }
    }

    /// When there will be something to be done without any message, if ever.
    pub fn due_ns(&self) -> Option<u64> {
        match self.state {
            LinkState::Broken { at_ns } => Some(at_ns),
            LinkState::Draining { until_ns } => Some(until_ns),
            _ => None,
        }
    }

    /// The queue pair was closed, or could not be.
    pub fn closed(&mut self, ok: bool, now_ns: u64) {
        if ok {
            self.state = LinkState::Draining {
                until_ns: now_ns + self.drain_ns,
            };
        } else {
            self.fail(now_ns);
        }
    }

    /// The queue pair is in INIT, or could not be brought there.
    pub fn opened(&mut self, ok: bool, now_ns: u64) {
        self.unused = false;
        if !ok {
            return self.fail(now_ns);
        }
        self.generation = self
            .generation
            .checked_add(1)
            .expect("a link is reset less than 2^32 times");
        self.state = LinkState::Fresh;
        self.say = true;
    }

    /// The queue pair is connected to what was heard, or could not be.
    pub fn connected(&mut self, ok: bool, now_ns: u64) {
        match self.heard.filter(|_| ok) {
            Some(heard) => {
                self.state = LinkState::Connected {
                    peer: heard.generation,
                    confirmed: heard.connected,
                };
                self.say = true;
            }
            None => self.fail(now_ns),
        }
    }

    /// The queue pair has failed.
    pub fn fault(&mut self, now_ns: u64) {
        if matches!(self.state, LinkState::Fresh | LinkState::Connected { .. }) {
            self.fail(now_ns);
        }
    }

    /// Nothing failed, but the connection has to be another one: at once, and without a pause for the next failure.
    pub fn retire(&mut self, now_ns: u64) {
        if let LinkState::Connected { .. } = self.state {
            self.state = LinkState::Broken { at_ns: now_ns };
        }
    }

    /// The peer begins another life: what it said is void, and the queue pair must not be one that the old one knew.
    pub fn renew(&mut self, now_ns: u64) {
        self.heard = None;
        match self.state {
            LinkState::Connected { .. } => {
                (self.failures, self.failed_ns) = (0, None);
                self.fail(now_ns);
            }
            LinkState::Fresh => self.say = true,
            LinkState::Broken { .. } | LinkState::Draining { .. } => {}
        }
    }

    /// The peer said something.
    pub fn hear(&mut self, message: Connect, now_ns: u64) {
        self.heard = Some(message);
        match &mut self.state {
            LinkState::Connected { peer, confirmed } if *peer == message.generation => {
                if message.echo == self.generation {
                    *confirmed |= message.connected;
                } else {
                    self.say = true;
                }
            }
            // The other end's connection is over, for its own reasons, and it is the one that pauses between failures.
            LinkState::Connected { .. } => self.retire(now_ns),
            LinkState::Fresh => self.say |= !self.fits(&message),
            // It will be answered when there is a generation again.
            LinkState::Broken { .. } | LinkState::Draining { .. } => {}
        }
    }

    /// Says everything again: the peer may have missed it.
    pub fn repeat(&mut self) {
        self.say = true;
    }

    /// Takes the flag: what is to be said now, if anything: (generation, echo, connected).
    pub fn take_say(&mut self) -> Option<(u32, u32, bool)> {
        let echo = self.heard.map_or(0, |heard| heard.generation);
        let connected = match self.state {
            LinkState::Fresh => false,
            LinkState::Connected { .. } => true,
            LinkState::Broken { .. } | LinkState::Draining { .. } => return None,
        };
        std::mem::take(&mut self.say).then_some((self.generation, echo, connected))
    }

    /// Whether a fresh queue pair may be connected to the sender of this.
    fn fits(&self, heard: &Connect) -> bool {
        heard.echo == self.generation
    }

    /// To be closed and opened again: at once if the last time is long ago, else after a pause that grows.
    fn fail(&mut self, now_ns: u64) {
        let at_ns = match self.failed_ns {
            Some(last) if now_ns.saturating_sub(last) < CALM_NS => {
                self.failures = (self.failures + 1).min(MAX_DOUBLINGS);
                now_ns.max(last + (PAUSE_NS << self.failures))
            }
            _ => {
                self.failures = 0;
                now_ns
            }
        };
        self.failed_ns = Some(at_ns);
        self.state = LinkState::Broken { at_ns };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, VecDeque};

    use mu_verbs::Endpoint;

    use super::*;
    use crate::message::Link;

    const SECOND: u64 = 1_000_000_000;

    type Said = (u32, u32, bool);

    fn connect((generation, echo, connected): Said) -> Connect {
        Connect {
            link: Link::Log,
            generation,
            echo,
            connected,
            endpoint: Endpoint::default(),
        }
    }

    /// Two ends and what is on its way between them. Queue pairs are known by their generation.
    #[derive(Clone)]
    struct Pair {
        ends: [Line; 2],
        wires: [VecDeque<Said>; 2],
        faults: u32,
        now_ns: u64,
    }

    /// What tells two situations apart: everything but times.
    type Key = (
        Vec<(u32, u8, u32, bool, Option<Said>, bool)>,
        Vec<Vec<Said>>,
        u32,
    );

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Step(usize),
        Say(usize),
        Deliver(usize),
        Fault(usize),
        Reconnect,
    }

    impl Pair {
        fn new(faults: u32) -> Self {
            let end = || {
                let mut line = Line::new(0);
                line.opened(true, 0);
                line
            };
            Self {
                ends: [end(), end()],
                wires: Default::default(),
                faults,
                now_ns: 0,
            }
        }

        fn key(&self) -> Key {
            let end = |line: &Line| {
                let (kind, peer, confirmed) = match line.state {
                    LinkState::Broken { .. } => (0, 0, false),
                    LinkState::Draining { .. } => (1, 0, false),
                    LinkState::Fresh => (2, 0, false),
                    LinkState::Connected { peer, confirmed } => (3, peer, confirmed),
                };
                let heard = line
                    .heard
                    .map(|heard| (heard.generation, heard.echo, heard.connected));
                (line.generation, kind, peer, confirmed, heard, line.say)
            };
            let wires = self.wires.iter().map(|wire| wire.iter().copied().collect());
            (
                self.ends.iter().map(end).collect(),
                wires.collect(),
                self.faults,
            )
        }

        fn events(&self) -> Vec<Event> {
            let mut events = Vec::new();
            for end in 0..2 {
                if self.ends[end].next(self.now_ns + SECOND).is_some() {
                    events.push(Event::Step(end));
                }
                if self.ends[end].clone().take_say().is_some() {
                    events.push(Event::Say(end));
                }
                if !self.wires[end].is_empty() {
                    events.push(Event::Deliver(end));
                }
                if self.faults > 0 && self.ends[end].peer_generation().is_some() {
                    events.push(Event::Fault(end));
                }
            }
            if self.faults > 0 && self.wires.iter().any(|wire| !wire.is_empty()) {
                events.push(Event::Reconnect);
            }
            events
        }

        fn after(&self, event: Event) -> Self {
            let mut pair = self.clone();
            pair.now_ns += SECOND;
            let now = pair.now_ns;
            match event {
                Event::Step(end) => {
                    let line = &mut pair.ends[end];
                    match line.next(now).expect("a step") {
                        Step::Close => line.closed(true, now),
                        Step::Open { .. } => line.opened(true, now),
                        Step::Connect(_) => line.connected(true, now),
                    }
                }
                Event::Say(end) => {
                    let said = pair.ends[end].take_say().expect("something to say");
                    pair.wires[end].push_back(said);
                }
                Event::Deliver(end) => {
                    let message = pair.wires[end].pop_front().expect("a message");
                    pair.ends[1 - end].hear(connect(message), now);
                }
                Event::Fault(end) => {
                    pair.faults -= 1;
                    pair.ends[end].fault(now);
                }
                Event::Reconnect => {
                    // The control connection breaks, with what is on its way, and comes up again.
                    pair.faults -= 1;
                    pair.wires.iter_mut().for_each(VecDeque::clear);
                    pair.ends.iter_mut().for_each(Line::repeat);
                }
            }
            pair
        }

        /// Nothing is left to be done: the two must be connected to each other and know it.
        fn is_good(&self) -> bool {
            let [a, b] = &self.ends;
            a.is_up()
                && b.is_up()
                && a.peer_generation() == Some(b.generation())
                && b.peer_generation() == Some(a.generation())
        }
    }

    /// Goes through every interleaving. Returns how many situations there are, or the trace to a bad end or a circle.
    fn explore(start: &Pair) -> Result<usize, String> {
        fn visit(
            pair: &Pair,
            seen: &mut HashMap<Key, bool>,
            trace: &mut Vec<Event>,
        ) -> Result<(), String> {
            let key = pair.key();
            match seen.get(&key) {
                Some(true) => return Ok(()),
                Some(false) => return Err(format!("a circle: {trace:?}")),
                None => {}
            }
            if trace.len() > 300 {
                return Err(format!("no end: {trace:?}"));
            }
            seen.insert(key.clone(), false);
            let events = pair.events();
            if events.is_empty() && !pair.is_good() {
                return Err(format!("a bad end: {trace:?} {:?}", pair.ends));
            }
            for event in events {
                trace.push(event);
                visit(&pair.after(event), seen, trace)?;
                trace.pop();
            }
            seen.insert(key, true);
            Ok(())
        }
        let mut seen = HashMap::new();
        visit(start, &mut seen, &mut Vec::new())?;
        Ok(seen.len())
    }

    #[test]
    fn every_interleaving_with_faults_ends_connected() {
        for faults in 0..=4 {
            let situations = explore(&Pair::new(faults)).unwrap_or_else(|bad| panic!("{bad}"));
            println!("{faults} faults: {situations} situations");
            assert!(situations > 10, "{situations}");
        }
    }

    #[test]
    fn messages_lost_without_a_reconnection_are_a_bad_end_that_the_exploration_finds() {
        let mut pair = Pair::new(0);
        for end in &mut pair.ends {
            end.take_say().expect("something to say");
        }
        let bad = explore(&pair).expect_err("nobody says it again");
        assert!(bad.contains("a bad end"), "{bad}");
    }

    #[test]
    fn resets_pause_longer_and_longer_and_never_spin() {
        let mut line = Line::new(0);
        assert_eq!(line.next(0), Some(Step::Open { fresh: true }));
        line.opened(true, 0);
        let (mut now, mut resets) = (0, 0);
        while now < 100_000_000 {
            line.hear(connect((resets + 1, line.generation(), false)), now);
            while let Some(step) = line.next(now) {
                match step {
                    Step::Close => line.closed(true, now),
                    Step::Open { .. } => line.opened(true, now),
                    Step::Connect(_) => {
                        line.connected(true, now);
                        line.fault(now);
                        resets += 1;
                    }
                }
            }
            now += 10_000;
        }
        assert!((4..12).contains(&resets), "{resets} resets in 0.1 s");
    }

    #[test]
    fn another_life_of_the_peer_never_gets_a_queue_pair_that_the_old_one_knew() {
        let mut line = Line::new(0);
        line.opened(true, 0);
        line.hear(connect((7, 1, false)), 0);
        line.connected(true, 0);
        assert!(!line.is_up(), "the peer may not answer yet");
        line.hear(connect((7, 1, true)), 0);
        assert!(line.is_up());
        line.renew(5);
        assert_eq!(line.next(5), Some(Step::Close));
        line.closed(true, 5);
        line.opened(true, 5);
        assert_eq!(line.next(5), None, "what the old life said is forgotten");
        assert_eq!(line.generation(), 2);
        line.hear(connect((1, 1, false)), 6);
        assert_eq!(
            line.next(6),
            None,
            "the new life has not heard of this generation"
        );
        line.hear(connect((1, 2, false)), 6);
        assert!(matches!(line.next(6), Some(Step::Connect(_))));
    }
}
