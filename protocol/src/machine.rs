//! The application behind the log, with its sessions: what a decided entry does.

use crate::check::mix;
use crate::entry::{Frames, Header};
use crate::ids::Epoch;
use crate::log::Point;
use crate::session::{BadSessions, Seen, Sessions};
use crate::zoo::{Bug, Zoo};

/// One decided command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'a> {
    /// Index of its entry: the total order.
    pub index: u64,
    /// Its place among the entry's commands.
    pub place: u16,
    /// Leader time in nanoseconds since the Unix epoch: the same on every replica, and never going back.
    pub time_ns: u64,
    /// The client; 0 without a session.
    pub client: u64,
    /// The client's number of it; 0 without a session.
    pub sequence: u64,
    /// The command itself.
    pub bytes: &'a [u8],
}

/// A replicated application. It must be deterministic: what it does may depend on its state and the command only, not
/// on clocks, random numbers or addresses. All replicas apply the same commands in the same order, the leader too.
pub trait StateMachine: Send + 'static {
    /// Applies a command and appends the reply, if there is one. A panic here ends the replica, not the group.
    fn apply(&mut self, command: &Command<'_>, reply: &mut Vec<u8>);
    /// A number that differs when states differ; asked for at every digest point, so make it cheap.
    fn digest(&self) -> u64;
    /// Appends the whole state to `out`.
    fn snapshot(&self, out: &mut Vec<u8>);
    /// Replaces the state by one that [`snapshot`](Self::snapshot) wrote.
    ///
    /// # Errors
    /// Bytes that are no such state; the replica takes another snapshot then.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError>;
}

/// A snapshot that the application could not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RestoreError(pub String);

/// A snapshot that was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Too short, or not of this version.
    #[error("a snapshot of {len} bytes does not start with this version's header")]
    Header {
        /// Bytes.
        len: usize,
    },
    /// The sessions.
    #[error(transparent)]
    Sessions(#[from] BadSessions),
    /// The application's word.
    #[error("the application refused its state: {0}")]
    Application(#[from] RestoreError),
}

/// A payload that is decided and checked and still no list of commands: the leader that wrote it was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPayload;

/// How a command of a decided entry ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied<'a> {
    /// Applied, now or before; the reply.
    Reply(&'a [u8]),
    /// Applied before; its reply was too long to be kept.
    ReplyGone,
    /// The client has gone on: an older command of it, not applied now. Whether it ever was is not known any more.
    Old,
}

const SNAPSHOT_VERSION: u64 = 0x6d75_736e_6170_0001;
const SNAPSHOT_HEADER: usize = 56;

/// The application, its sessions, and how far they are.
#[derive(Debug)]
pub struct Machine<S> {
    /// The application.
    pub app: S,
    sessions: Sessions,
    applied: Point,
    /// Rolling digest of what was applied and replied.
    digest: u64,
    reply: Vec<u8>,
    /// Commands applied, retries left out.
    commands: u64,
    /// Leader time of the last entry.
    time_ns: u64,
}

impl<S: StateMachine> Machine<S> {
    /// Around a fresh application.
    pub fn new(app: S, sessions: usize, reply_bytes: usize) -> Self {
        Self {
            app,
            sessions: Sessions::new(sessions),
            applied: Point::default(),
            digest: 0,
            reply: Vec::with_capacity(reply_bytes),
            commands: 0,
            time_ns: 0,
        }
    }

    /// The last entry that was applied.
    #[inline]
    pub fn applied(&self) -> Point {
        self.applied
    }

    /// Leader time of the last applied entry.
    pub fn time_ns(&self) -> u64 {
        self.time_ns
    }

    /// Commands that made this state, retries left out.
    pub fn commands(&self) -> u64 {
        self.commands
    }

    /// Applies the entry `header`, which follows the last one, and tells `each` how every command ended.
    ///
    /// # Errors
    /// [`BadPayload`]: the state is not to be trusted any more.
    #[inline]
    pub fn apply<Z: Zoo>(
        &mut self,
        header: &Header,
        payload: &[u8],
        zoo: Z,
        mut each: impl FnMut(u16, Applied<'_>),
    ) -> Result<(), BadPayload> {
        debug_assert_eq!(header.index, self.applied.index + 1);
        // Cheap for each command, mixed once for the entry.
        let mut sum = 0u64;
        for (place, frame) in Frames::new(payload, header.count).enumerate() {
            let frame = frame.map_err(|_| BadPayload)?;
            let place = place as u16;
            if frame.client != 0 && !zoo.has(Bug::RetryAppliedTwice) {
                let again = match self.sessions.look(frame.client, frame.sequence) {
                    Seen::New => None,
                    Seen::Again(reply) => Some(Applied::Reply(reply)),
                    Seen::AgainWithoutReply => Some(Applied::ReplyGone),
                    Seen::Old => Some(Applied::Old),
                };
                if let Some(again) = again {
                    sum = fold(sum, frame.client, frame.sequence, u64::MAX);
                    each(place, again);
                    continue;
                }
            }
            self.reply.clear();
            self.commands += 1;
            let command = Command {
                index: header.index,
                place,
                time_ns: header.time_ns,
                client: frame.client,
                sequence: frame.sequence,
                bytes: frame.bytes,
            };
            self.app.apply(&command, &mut self.reply);
            if frame.client != 0 {
                self.sessions
                    .keep(frame.client, frame.sequence, &self.reply);
            }
            sum = fold(sum, frame.client, frame.sequence, self.reply.len() as u64);
            each(place, Applied::Reply(&self.reply));
        }
        self.digest = mix([self.digest, header.index, header.epoch.0, sum]);
        self.applied = self.applied.after(header);
        self.time_ns = self.time_ns.max(header.time_ns);
        Ok(())
    }

    /// Digest of the state after the last applied entry.
    pub fn digest(&self) -> u64 {
        // The sessions follow from what was applied and how, which the rolling digest covers.
        mix([self.digest, self.app.digest()])
    }

    /// Appends a snapshot to `out`.
    pub fn snapshot<Z: Zoo>(&self, out: &mut Vec<u8>, zoo: Z) {
        for word in [
            SNAPSHOT_VERSION,
            self.applied.index,
            self.applied.at,
            self.applied.epoch.0,
            self.digest,
            self.commands,
            self.time_ns,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        if zoo.has(Bug::SnapshotWithoutSessions) {
            Sessions::new(1).snapshot(out);
        } else {
            self.sessions.snapshot(out);
        }
        self.app.snapshot(out);
    }

    /// Takes a snapshot. After an error the state is not to be used before another one was taken.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let bad = SnapshotError::Header { len: bytes.len() };
        let (head, rest) = bytes
            .split_first_chunk::<SNAPSHOT_HEADER>()
            .ok_or(bad.clone())?;
        let word =
            |n: usize| u64::from_le_bytes(head[n * 8..n * 8 + 8].try_into().expect("eight bytes"));
        if word(0) != SNAPSHOT_VERSION {
            return Err(bad);
        }
        let rest = self.sessions.restore(rest)?;
        self.app.restore(rest)?;
        self.applied = Point {
            index: word(1),
            at: word(2),
            epoch: Epoch(word(3)),
        };
        (self.digest, self.commands, self.time_ns) = (word(4), word(5), word(6));
        Ok(())
    }
}

/// Adds a command to an entry's sum; the order counts.
#[inline]
fn fold(sum: u64, client: u64, sequence: u64, reply: u64) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    (sum.rotate_left(9) ^ client.rotate_left(40) ^ sequence.rotate_left(20) ^ reply)
        .wrapping_mul(ODD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Encoder, Frame, HEADER_BYTES, Kind};
    use crate::zoo::{Seeded, Sound};

    /// Adds numbers up.
    #[derive(Debug, Default)]
    struct Sum(u64);

    impl StateMachine for Sum {
        fn apply(&mut self, command: &Command<'_>, reply: &mut Vec<u8>) {
            self.0 += command.bytes.iter().map(|b| u64::from(*b)).sum::<u64>();
            reply.extend_from_slice(&self.0.to_le_bytes());
        }
        fn digest(&self) -> u64 {
            self.0
        }
        fn snapshot(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(&self.0.to_le_bytes());
        }
        fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
            let bytes = bytes
                .try_into()
                .map_err(|_| RestoreError("not eight bytes".into()))?;
            self.0 = u64::from_le_bytes(bytes);
            Ok(())
        }
    }

    fn apply<Z: Zoo>(
        machine: &mut Machine<Sum>,
        commands: &[(u64, u64, u8)],
        zoo: Z,
    ) -> Vec<Option<u64>> {
        let mut encoder = Encoder::new(4096);
        for (client, sequence, value) in commands {
            let frame = Frame {
                client: *client,
                sequence: *sequence,
                bytes: &[*value],
            };
            assert!(encoder.push(frame));
        }
        let header = Header {
            index: machine.applied().index + 1,
            epoch: Epoch(16),
            previous: machine.applied().epoch,
            commit: 0,
            time_ns: 0,
            len: 0,
            count: 0,
            kind: Kind::Commands,
            crc: None,
        };
        let (header, bytes) = encoder.finish(header, false);
        let payload = &bytes[HEADER_BYTES..HEADER_BYTES + header.len as usize];
        let mut replies = Vec::new();
        let each = |_, applied: Applied<'_>| {
            replies.push(match applied {
                Applied::Reply(bytes) => {
                    Some(u64::from_le_bytes(bytes.try_into().expect("a number")))
                }
                _ => None,
            });
        };
        machine.apply(&header, payload, zoo, each).expect("sound");
        replies
    }

    #[test]
    fn a_retry_is_applied_once_also_after_a_snapshot() {
        let mut machine = Machine::new(Sum::default(), 8, 64);
        assert_eq!(
            apply(&mut machine, &[(1, 1, 5), (2, 1, 6), (1, 1, 5)], Sound),
            [Some(5), Some(11), Some(5)]
        );
        let mut bytes = Vec::new();
        machine.snapshot(&mut bytes, Sound);
        let mut other = Machine::new(Sum::default(), 8, 64);
        other.restore(&bytes).expect("a snapshot");
        assert_eq!(
            (other.digest(), other.applied()),
            (machine.digest(), machine.applied())
        );
        assert_eq!(
            apply(
                &mut other,
                &[(2, 1, 6), (1, 0, 9), (0, 0, 1), (0, 0, 1)],
                Sound
            ),
            [Some(11), None, Some(12), Some(13)]
        );
    }

    #[test]
    fn the_bugs_do_what_they_say() {
        let twice = Seeded(Some(Bug::RetryAppliedTwice));
        let mut machine = Machine::new(Sum::default(), 8, 64);
        assert_eq!(
            apply(&mut machine, &[(1, 1, 5), (1, 1, 5)], twice),
            [Some(5), Some(10)]
        );
        let mut machine = Machine::new(Sum::default(), 8, 64);
        apply(&mut machine, &[(1, 1, 5)], Sound);
        let mut bytes = Vec::new();
        machine.snapshot(&mut bytes, Seeded(Some(Bug::SnapshotWithoutSessions)));
        machine.restore(&bytes).expect("a snapshot");
        assert_eq!(apply(&mut machine, &[(1, 1, 5)], Sound), [Some(10)]);
    }

    #[test]
    fn damaged_snapshots_are_refused_with_what_is_wrong() {
        let mut machine = Machine::new(Sum::default(), 8, 64);
        let mut bytes = Vec::new();
        machine.snapshot(&mut bytes, Sound);
        for len in 0..bytes.len() {
            assert!(machine.restore(&bytes[..len]).is_err(), "{len} bytes");
        }
        bytes[0] ^= 1;
        assert!(matches!(
            machine.restore(&bytes),
            Err(SnapshotError::Header { .. })
        ));
    }
}
