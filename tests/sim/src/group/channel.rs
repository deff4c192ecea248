//! The control connections between replicas: reliable and in order while they are up, and breakable. Both ends are told
//! when one comes up, with the peer's hello, and when it goes down.

use mu_protocol::ids::ReplicaId;

use super::{Core, Group, Token};
use crate::world::NodeId;

/// What a background engine is told.
#[derive(Clone, Debug)]
pub(crate) enum Control {
    Up(Box<[u8]>),
    Down,
    Message(Box<[u8]>),
}

/// A connection between two replicas, the lower one first.
#[derive(Clone, Copy, Default)]
pub(crate) struct Line {
    up: bool,
    /// Counts the times it came up; what an earlier one carried is lost.
    generation: u32,
    /// When it was first seen not to get through, 0 if it does.
    blocked_since_ns: u64,
    /// Not before this does it come up again.
    retry_ns: u64,
    /// Nothing arrives before this, for each direction.
    arrives_ns: [u64; 2],
}

/// A message on its way.
pub(crate) struct Letter {
    to: usize,
    from: usize,
    generation: u32,
    body: Option<Control>,
}

/// A connection that does not get through for so long is given up.
const GIVE_UP_NS: u64 = 300_000;
/// How often connections are looked at.
pub(crate) const LOOK_NS: u64 = 40_000;

impl Group {
    fn line(&self, a: usize, b: usize) -> usize {
        a.min(b) * self.slots.len() + a.max(b)
    }

    /// Looks at all connections: brings up what can be, gives up what does not get through.
    pub(crate) fn look_at_lines(&self) {
        let now = self.world.now_ns();
        for a in 0..self.slots.len() {
            for b in a + 1..self.slots.len() {
                let open = self.reaches(a, b) && self.reaches(b, a);
                let alive = self.is_running(a) && self.is_running(b);
                let at = self.line(a, b);
                let line = self.core.borrow().lines[at];
                match (line.up, open && alive) {
                    (false, true) if now >= line.retry_ns => self.line_up(a, b),
                    (true, false) if !alive => self.break_line(a, b),
                    (true, false) if line.blocked_since_ns == 0 => {
                        self.core.borrow_mut().lines[at].blocked_since_ns = now;
                    }
                    (true, false) if now > line.blocked_since_ns + GIVE_UP_NS => {
                        self.break_line(a, b)
                    }
                    (true, true) => self.core.borrow_mut().lines[at].blocked_since_ns = 0,
                    _ => {}
                }
            }
        }
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        self.world.reaches(NodeId(from), NodeId(to))
    }

    fn line_up(&self, a: usize, b: usize) {
        let (Some(from_a), Some(from_b)) = (self.hello(a, b), self.hello(b, a)) else {
            return;
        };
        {
            let at = self.line(a, b);
            let line = &mut self.core.borrow_mut().lines[at];
            line.up = true;
            line.generation += 1;
            line.blocked_since_ns = 0;
        }
        self.post(a, b, Control::Up(from_a));
        self.post(b, a, Control::Up(from_b));
    }

    /// A connection ends: both ends are told, what is on its way is lost.
    pub(crate) fn break_line(&self, a: usize, b: usize) {
        let at = self.line(a, b);
        {
            let Core { lines, rng, .. } = &mut *self.core.borrow_mut();
            let line = &mut lines[at];
            if !line.up {
                return;
            }
            line.up = false;
            line.generation += 1;
            line.retry_ns = self.world.now_ns() + rng.range(20_000, 200_000);
        }
        self.post(a, b, Control::Down);
        self.post(b, a, Control::Down);
    }

    pub(crate) fn connect_message(&self, from: usize, to: ReplicaId, message: &[u8]) {
        let at = self.line(from, to.index());
        if self.core.borrow().lines[at].up {
            self.post(from, to.index(), Control::Message(message.into()));
        }
    }

    /// Puts a message into the post. It waits while its way is cut.
    fn post(&self, from: usize, to: usize, body: Control) {
        let now = self.world.now_ns();
        let travel = match body {
            // Its own system tells it.
            Control::Down => 1_000,
            _ => {
                self.world
                    .message_ns(NodeId(from), NodeId(to))
                    .unwrap_or(GIVE_UP_NS / 4)
                    + 5_000
            }
        };
        let at = self.line(from, to);
        let mut core = self.core.borrow_mut();
        let line = &mut core.lines[at];
        let arrives = &mut line.arrives_ns[usize::from(from > to)];
        *arrives = (now + travel).max(*arrives + 1);
        let (arrives, generation) = (*arrives, line.generation);
        let letter = core.letters.len();
        core.letters.push(Letter {
            to,
            from,
            generation,
            body: Some(body),
        });
        self.world
            .wake_at(arrives, Token::Letter(letter as u32).into());
    }

    /// A message arrives, unless its connection is gone or its way is still cut.
    pub(crate) fn deliver(&self, letter: usize) {
        let (to, from, generation, is_down) = {
            let letter = &self.core.borrow().letters[letter];
            let is_down = matches!(letter.body, Some(Control::Down));
            (letter.to, letter.from, letter.generation, is_down)
        };
        if self.core.borrow().lines[self.line(from, to)].generation != generation {
            return;
        }
        if !is_down && !self.reaches(from, to) {
            // Sent again by the transport, behind nothing: what follows waits as well, for it finds the way cut too.
            return self.break_line(from, to);
        }
        let body = self.core.borrow_mut().letters[letter].body.take();
        if let (Some(process), Some(body)) = (self.process(to), body) {
            let from = ReplicaId::new(from as u8).expect("a replica's number");
            process.mail.borrow_mut().push_back((from, body));
        }
    }
}
