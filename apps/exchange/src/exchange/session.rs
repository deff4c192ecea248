//! The replicated half of a FIX session: which number comes next in each direction, and what was said.
//!
//! Every message that takes a number takes it through the log: orders with their own commands, the rest (heartbeats,
//! logons, ...) with a [`SessionCommand`]. So a leader that takes over goes on where its predecessor ended. What the
//! predecessor had received and not decided is missing from the numbers, the client is asked to send it again, and it
//! is carried out once, whichever of the two leaders got it.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};

use super::report::Report;

/// Sessions that there may be.
pub const SESSIONS_MAX: usize = 256;
/// Reports that are kept of a session, to be sent again.
pub const REPORTS_KEPT: usize = 1024;
/// Bytes of a session's name.
pub const COMP_BYTES_MAX: usize = 32;
/// The first byte of a session's command, which is no order's.
pub(super) const SESSION_COMMAND: u8 = 16;
/// Numbers that a logon leaves out at most, for answers of other replicas that the client counted.
const SKIP_MAX: u64 = 1000;
/// Numbers that one command takes at most.
const TAKE_MAX: u64 = 16;
const HEAD_BYTES: usize = 32;

/// How a command was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// Carried out.
    Done = 0,
    /// An order that was refused; the report says why.
    Rejected = 1,
    /// Its number was had before, so it was not carried out now.
    Again = 2,
    /// A number before it is missing, so it was not carried out.
    Gap = 3,
    /// There is no such session.
    NoSession = 4,
    /// The bytes are no command.
    Malformed = 5,
    /// There are as many sessions as there may be.
    Full = 6,
    /// Another session has the same number, from another name.
    Taken = 7,
}

impl Verdict {
    /// What a byte says.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Verdict; 8] = [
            Verdict::Done,
            Verdict::Rejected,
            Verdict::Again,
            Verdict::Gap,
            Verdict::NoSession,
            Verdict::Malformed,
            Verdict::Full,
            Verdict::Taken,
        ];
        ALL.get(usize::from(byte)).copied()
    }
}

/// What a session's client does that is no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionCommand<'a> {
    /// It logs on.
    Open {
        /// Its name.
        comp: &'a str,
        /// Numbers begin anew.
        reset: bool,
    },
    /// It, or the exchange, says something that takes numbers and does nothing else.
    Take {
        /// Numbers for the exchange.
        count: u64,
    },
    /// The exchange says reports again, as new messages: those with numbers from `from` to `end - 1`.
    Repeat {
        /// The first.
        from: u64,
        /// After the last.
        end: u64,
    },
    /// The client goes on with this number.
    Next {
        /// Which comes next.
        next: u64,
    },
}

/// What a session's command got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// How.
    pub verdict: Verdict,
    /// The first number taken for the exchange.
    pub out: u64,
    /// The number that the client's next message has.
    pub in_next: u64,
}

/// Bytes of a reply to a session's command.
const TAKEN_BYTES: usize = 24;

impl Taken {
    pub(super) fn encode(&self, reply: &mut Vec<u8>) {
        reply.extend_from_slice(&(self.verdict as u64).to_le_bytes());
        reply.extend_from_slice(&self.out.to_le_bytes());
        reply.extend_from_slice(&self.in_next.to_le_bytes());
    }

    /// What a reply says.
    #[must_use]
    pub fn decode(reply: &[u8]) -> Option<Self> {
        let reply: &[u8; TAKEN_BYTES] = reply.try_into().ok()?;
        let word =
            |at: usize| u64::from_le_bytes(reply[at..at + 8].try_into().expect("eight bytes"));
        Some(Self {
            verdict: Verdict::from_byte(reply[0])?,
            out: word(8),
            in_next: word(16),
        })
    }
}

/// The number of a session, from its name: FNV-1a, with 64 bits.
#[must_use]
pub fn session_number(comp: &str) -> u64 {
    let hash = comp.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    hash.max(1)
}

impl SessionCommand<'_> {
    /// The bytes for the log. `number` is that of the client's message, 0 if it is none's.
    #[must_use]
    pub fn encode(&self, session: u64, number: u64) -> Vec<u8> {
        let (op, argument, rest) = match self {
            Self::Open { comp, reset } => (1, u64::from(*reset), comp.as_bytes()),
            Self::Take { count } => (2, *count, &[][..]),
            Self::Next { next } => (3, *next, &[][..]),
            Self::Repeat { from, end } => (4, *from, &end.to_le_bytes()[..]),
        };
        let mut out = vec![SESSION_COMMAND, op, 0, 0, 0, 0, 0, 0];
        for word in [session, number, argument] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(rest);
        out
    }
}

fn decode(bytes: &[u8]) -> Option<(u64, u64, SessionCommand<'_>)> {
    let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
    let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    let (session, number, argument) = (word(8), word(16), word(24));
    let command = match head[1] {
        1 if (1..=COMP_BYTES_MAX).contains(&rest.len()) => SessionCommand::Open {
            comp: std::str::from_utf8(rest).ok()?,
            reset: argument != 0,
        },
        2 if argument <= TAKE_MAX => SessionCommand::Take { count: argument },
        3 => SessionCommand::Next { next: argument },
        4 => SessionCommand::Repeat {
            from: argument,
            end: u64::from_le_bytes(rest.try_into().ok()?),
        },
        _ => return None,
    };
    Some((session, number, command))
}

/// One session.
#[derive(Debug)]
pub struct Session {
    pub(super) number: u64,
    pub(super) comp: Box<str>,
    pub(super) in_next: u64,
    pub(super) out_next: u64,
    pub(super) reports: VecDeque<(u64, Report)>,
    touched: Cell<bool>,
}

impl Session {
    pub(super) fn new(number: u64, comp: &str) -> Self {
        Self {
            number,
            comp: comp.into(),
            in_next: 1,
            out_next: 1,
            reports: VecDeque::new(),
            touched: Cell::new(false),
        }
    }

    /// The number that the client's next message has.
    #[must_use]
    pub fn in_next(&self) -> u64 {
        self.in_next
    }

    /// The number that the exchange's next message has.
    #[must_use]
    pub fn out_next(&self) -> u64 {
        self.out_next
    }

    /// What was said with a number, if that was a report and it is kept.
    #[must_use]
    pub fn report(&self, number: u64) -> Option<&Report> {
        let at = self.reports.partition_point(|(other, _)| *other < number);
        let (found, report) = self.reports.get(at)?;
        (*found == number).then_some(report)
    }

    /// The reports that are kept with numbers from `from` to `end - 1`.
    pub fn reports(&self, from: u64, end: u64) -> impl Iterator<Item = &(u64, Report)> {
        let at = self.reports.partition_point(|(number, _)| *number < from);
        self.reports
            .range(at..)
            .take_while(move |(number, _)| *number < end)
    }

    pub(super) fn say(&mut self, report: Report) {
        if self.reports.len() == REPORTS_KEPT {
            self.reports.pop_front();
        }
        self.reports.push_back((self.out_next, report));
        self.out_next += 1;
    }

    /// Says reports again under new numbers, and gives the first.
    fn repeat(&mut self, from: u64, end: u64) -> u64 {
        let first = self.out_next;
        let again: Vec<Report> = self.reports(from, end).map(|(_, report)| *report).collect();
        for report in again {
            self.say(Report {
                again: true,
                ..report
            });
        }
        first
    }

    /// Whether the client's message is the next one; then it is had.
    fn admit(&mut self, number: u64) -> Verdict {
        if number == 0 {
            return Verdict::Done;
        }
        match number.cmp(&self.in_next) {
            std::cmp::Ordering::Less => Verdict::Again,
            std::cmp::Ordering::Greater => Verdict::Gap,
            std::cmp::Ordering::Equal => {
                self.in_next += 1;
                Verdict::Done
            }
        }
    }

    fn take(&mut self, count: u64) -> u64 {
        let first = self.out_next;
        self.out_next += count;
        first
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Sessions {
    pub(super) list: Vec<Session>,
    places: HashMap<u64, usize>,
    /// Those with something new, for whoever sends it; not part of the state.
    touched: Cell<Vec<u64>>,
}

impl Sessions {
    pub(super) fn get(&self, number: u64) -> Option<&Session> {
        self.places.get(&number).map(|place| &self.list[*place])
    }

    pub(super) fn push(&mut self, session: Session) {
        self.places.insert(session.number, self.list.len());
        self.list.push(session);
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut Session> {
        let place = *self.places.get(&number)?;
        let session = &mut self.list[place];
        if !session.touched.replace(true) {
            self.touched.get_mut().push(number);
        }
        Some(session)
    }

    /// Those that were touched since the last call.
    pub(super) fn take_touched(&self) -> Vec<u64> {
        let touched = self.touched.take();
        for number in &touched {
            if let Some(session) = self.get(*number) {
                session.touched.set(false);
            }
        }
        touched
    }

    /// Has an order's number, if it has one.
    pub(super) fn admit(&mut self, session: u64, number: u64) -> Verdict {
        if number == 0 {
            return Verdict::Done;
        }
        match self.get_mut(session) {
            Some(session) => session.admit(number),
            None => Verdict::NoSession,
        }
    }

    /// Tells a session something, if it is one.
    pub(super) fn say(&mut self, session: u64, report: impl FnOnce() -> Report) {
        // Orders of a program that is no FIX client have no session to tell.
        if self.list.is_empty() {
            return;
        }
        if let Some(session) = self.get_mut(session) {
            session.say(report());
        }
    }

    pub(super) fn run(&mut self, bytes: &[u8]) -> Taken {
        let refused = |verdict| Taken {
            verdict,
            out: 0,
            in_next: 0,
        };
        let Some((number, message, command)) = decode(bytes) else {
            return refused(Verdict::Malformed);
        };
        if let SessionCommand::Open { comp, reset } = command {
            return match self.open(number, comp) {
                Ok(()) => self.logon(number, message, reset),
                Err(verdict) => refused(verdict),
            };
        }
        let Some(session) = self.get_mut(number) else {
            return refused(Verdict::NoSession);
        };
        let (verdict, out) = match command {
            SessionCommand::Take { count } => match session.admit(message) {
                Verdict::Done => (Verdict::Done, session.take(count)),
                refused => (refused, 0),
            },
            SessionCommand::Repeat { from, end } => match session.admit(message) {
                Verdict::Done => (Verdict::Done, session.repeat(from, end)),
                refused => (refused, 0),
            },
            SessionCommand::Next { next } if next >= session.in_next => {
                session.in_next = next;
                (Verdict::Done, 0)
            }
            _ => (Verdict::Again, 0),
        };
        Taken {
            verdict,
            out,
            in_next: session.in_next,
        }
    }

    fn open(&mut self, number: u64, comp: &str) -> Result<(), Verdict> {
        match self.get(number) {
            Some(session) if &*session.comp == comp => Ok(()),
            Some(_) => Err(Verdict::Taken),
            None if self.list.len() == SESSIONS_MAX => Err(Verdict::Full),
            None => {
                self.push(Session::new(number, comp));
                Ok(())
            }
        }
    }

    /// A logon is answered whatever its number is: the answer takes one of the exchange's.
    fn logon(&mut self, number: u64, message: u64, reset: bool) -> Taken {
        let session = self.get_mut(number).expect("it was opened");
        if reset {
            (session.in_next, session.out_next) = (1, 1);
            session.reports.clear();
        }
        let verdict = session.admit(message);
        if verdict == Verdict::Gap {
            // Every message that is missing may be a logon that another replica answered, and the client counted
            // that answer.
            session.out_next += (message - session.in_next).min(SKIP_MAX);
        }
        Taken {
            verdict,
            out: session.take(1),
            in_next: session.in_next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(
        sessions: &mut Sessions,
        number: u64,
        command: SessionCommand<'_>,
    ) -> (Verdict, u64, u64) {
        let taken = sessions.run(&command.encode(session_number("A"), number));
        let mut reply = Vec::new();
        taken.encode(&mut reply);
        assert_eq!(Taken::decode(&reply), Some(taken));
        (taken.verdict, taken.out, taken.in_next)
    }

    const OPEN: SessionCommand<'static> = SessionCommand::Open {
        comp: "A",
        reset: false,
    };

    #[test]
    fn numbers_go_up_once_and_a_gap_changes_nothing() {
        let mut sessions = Sessions::default();
        let take = SessionCommand::Take { count: 1 };
        assert_eq!(run(&mut sessions, 1, take).0, Verdict::NoSession);
        assert_eq!(run(&mut sessions, 1, OPEN), (Verdict::Done, 1, 2));
        assert_eq!(run(&mut sessions, 2, take), (Verdict::Done, 2, 3));
        assert_eq!(run(&mut sessions, 2, take), (Verdict::Again, 0, 3));
        assert_eq!(run(&mut sessions, 4, take), (Verdict::Gap, 0, 3));
        assert_eq!(
            run(&mut sessions, 0, take),
            (Verdict::Done, 3, 3),
            "the exchange's own"
        );
        assert_eq!(
            run(&mut sessions, 3, SessionCommand::Next { next: 9 }),
            (Verdict::Done, 0, 9)
        );
        assert_eq!(
            run(&mut sessions, 9, SessionCommand::Next { next: 8 }).0,
            Verdict::Again
        );
    }

    #[test]
    fn a_logon_leaves_out_what_other_replicas_may_have_used() {
        let mut sessions = Sessions::default();
        run(&mut sessions, 1, OPEN);
        assert_eq!(run(&mut sessions, 5, OPEN), (Verdict::Gap, 5, 2));
        assert_eq!(run(&mut sessions, u64::MAX, OPEN).1, 6 + SKIP_MAX);
        let reset = SessionCommand::Open {
            comp: "A",
            reset: true,
        };
        assert_eq!(run(&mut sessions, 1, reset), (Verdict::Done, 1, 2));
    }

    #[test]
    fn sessions_are_bounded_and_nonsense_is_refused() {
        let mut sessions = Sessions::default();
        for n in 0..SESSIONS_MAX {
            let comp = format!("C{n}");
            let open = SessionCommand::Open {
                comp: &comp,
                reset: false,
            };
            let taken = sessions.run(&open.encode(session_number(&comp), 1));
            assert_eq!(taken.verdict, Verdict::Done);
        }
        assert_eq!(run(&mut sessions, 1, OPEN).0, Verdict::Full);
        let other = OPEN.encode(session_number("C0"), 1);
        assert_eq!(sessions.run(&other).verdict, Verdict::Taken);
        for nonsense in [&other[..8], &[SESSION_COMMAND, 9][..], &[16; 40]] {
            assert_eq!(sessions.run(nonsense).verdict, Verdict::Malformed);
        }
    }
}
