//! The replica, whatever its device is, as the node's threads use it under a lock.
//!
//! The server's main thread proposes on itself: it holds the lock for the microsecond that takes, and no thread
//! is woken. At other times the node's own thread polls.

use mu::host::{Direct, Halted, Handle, ProposeError};
use mu::protocol::layout::Role;
use mu::protocol::replication::{Event, Outcome, Pace};
use mu_verbs::Context;

use crate::effects::{Effects, FIRST, LAST};

/// What a thread that has the lock can do.
pub(crate) trait Engine: Send {
    /// Decides the bytes of a turn; the first byte is room for the marks. Its other bytes are void afterwards.
    fn decide(&mut self, turn: &mut [u8]) -> Result<(), ProposeError>;
    /// Proves the leadership. Gives the place of the stream that everything decided before is in.
    fn prove(&mut self) -> Result<u64, ProposeError>;
    fn poll(&mut self) -> Pace;
    /// Begins to hand the leadership to the most advanced follower.
    fn hand_over(&mut self) -> Result<(), ProposeError>;
    fn leads(&self) -> bool;
    /// Whether it only follows: nobody waits for it.
    fn follows(&self) -> bool;
    fn stopped(&self) -> Option<Halted>;
    fn handle(&self) -> Handle;
}

/// A replica and the session of its commands.
pub(crate) struct Seat<C: Context> {
    direct: Direct<C, Effects>,
    session: u64,
    sequence: u64,
}

impl<C: Context> Seat<C> {
    /// `session` is this life's own.
    pub(crate) fn new(direct: Direct<C, Effects>, session: u64) -> Self {
        Self {
            direct,
            session,
            sequence: 0,
        }
    }
}

impl<C: Context> Engine for Seat<C> {
    fn decide(&mut self, turn: &mut [u8]) -> Result<(), ProposeError> {
        let room = self.direct.max_command_bytes() - 1;
        let end = turn.len();
        let (mut at, mut in_flight) = (1, 0_usize);
        let mut failed = None;
        loop {
            while at < end && failed.is_none() {
                let next = (at + room).min(end);
                let mut marks = 0;
                if at == 1 {
                    marks |= FIRST;
                }
                if next == end {
                    marks |= LAST;
                }
                // The byte before the part: the room at the front, or the last byte of a part that was taken already.
                turn[at - 1] = marks;
                match self
                    .direct
                    .submit(self.session, self.sequence + 1, &turn[at - 1..next])
                {
                    Ok(_) => {
                        self.sequence += 1;
                        in_flight += 1;
                        at = next;
                    }
                    // What is in flight makes room, and so does recycling.
                    Err(ProposeError::Overloaded) => break,
                    Err(error) => failed = Some(error),
                }
            }
            if in_flight == 0 && (at == end || failed.is_some()) {
                return failed.map_or(Ok(()), Err);
            }
            let pace = self.direct.poll(|event| {
                if let Event::Command { outcome, .. } = event {
                    in_flight -= 1;
                    if let Some(error) = error_of(&outcome) {
                        failed.get_or_insert(error);
                    }
                }
            });
            if in_flight > 0 || at < end {
                self.direct.rest(pace, None);
            }
        }
    }

    fn prove(&mut self) -> Result<u64, ProposeError> {
        self.direct.read(Effects::position)
    }

    fn poll(&mut self) -> Pace {
        self.direct.poll(|_| {})
    }

    fn hand_over(&mut self) -> Result<(), ProposeError> {
        self.direct.transfer(None).map(drop)
    }

    fn leads(&self) -> bool {
        self.direct.leads()
    }

    fn follows(&self) -> bool {
        let standing = self.direct.standing();
        standing.role == Role::Follower && standing.voter
    }

    fn stopped(&self) -> Option<Halted> {
        self.direct.stopped()
    }

    fn handle(&self) -> Handle {
        self.direct.handle()
    }
}

/// A part was decided now and by this try, or it is not known to be.
fn error_of(outcome: &Outcome<'_>) -> Option<ProposeError> {
    match *outcome {
        Outcome::Decided { .. } => None,
        Outcome::DecidedReplyGone { index } => Some(ProposeError::ReplyGone { index }),
        Outcome::Superseded { .. } => Some(ProposeError::Superseded),
        Outcome::Unknown => Some(ProposeError::Unknown),
        Outcome::NotLeader(hint) => Some(ProposeError::NotLeader { hint }),
    }
}
