//! The replicated state of a node, as mu sees it: a stream of bytes, which is what its redis-server wrote, and how far
//! the stream is.
//!
//! # Entries
//!
//! A command of the log is one byte and then bytes of the stream. A turn of the server that fits is one command, with
//! the marks FIRST and LAST. A longer one is several: the first has FIRST, the last LAST, and nothing of it is in the
//! stream before its last part is applied. A leader that dies in between leaves parts that the next turn's FIRST drops:
//! nobody but a leader appends, and the next one begins with a turn of its own.

use std::sync::Arc;

use mu::protocol::check::mix;
use mu::{Command, RestoreError, StateMachine};

use crate::feed::{Base, Feed};

/// The first part of a turn.
pub(crate) const FIRST: u8 = 1;
/// The last part of a turn.
pub(crate) const LAST: u8 = 2;

/// What the local server is asked for.
pub(crate) trait Local: Send {
    /// Its dataset, if it stands at a place of the stream just now.
    fn save(&self) -> Option<Base>;
}

/// See the module.
pub(crate) struct Effects {
    feed: Arc<Feed>,
    local: Box<dyn Local>,
    position: u64,
    digest: u64,
    parts: Vec<u8>,
}

impl Effects {
    /// At the beginning of a group's stream.
    pub(crate) fn new(feed: Arc<Feed>, local: Box<dyn Local>) -> Self {
        Self {
            feed,
            local,
            position: 0,
            digest: 0,
            parts: Vec::new(),
        }
    }

    /// Bytes of the stream so far.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    fn append(&mut self, bytes: &[u8]) {
        self.position += bytes.len() as u64;
        self.digest = mix([self.digest, u64::from(crc32c::crc32c(bytes)), self.position]);
        self.feed.push(bytes);
    }
}

impl StateMachine for Effects {
    fn apply(&mut self, command: &Command<'_>, _: &mut Vec<u8>) {
        let Some((marks, bytes)) = command.bytes.split_first() else {
            return;
        };
        if marks & FIRST != 0 {
            self.parts.clear();
            if marks & LAST != 0 {
                return self.append(bytes);
            }
        }
        self.parts.extend_from_slice(bytes);
        if marks & LAST != 0 {
            let turn = std::mem::take(&mut self.parts);
            self.append(&turn);
        }
    }

    fn digest(&self) -> u64 {
        mix([self.digest, self.position, self.parts.len() as u64])
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        // A snapshot of nothing is refused by whoever asked, which then asks again, another replica if there is one.
        let whole = self.feed.held().or_else(|| {
            let base = self.local.save()?;
            let tail = self.feed.tail(base.position)?;
            Some((Arc::new(base), tail))
        });
        let Some((base, tail)) = whole else {
            return;
        };
        for word in [
            VERSION,
            self.position,
            self.digest,
            base.position,
            base.users.len() as u64,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let users = base.users.iter().map(Vec::as_slice);
        for bytes in [self.parts.as_slice(), &tail, &base.rdb]
            .into_iter()
            .chain(users)
        {
            out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            out.extend_from_slice(bytes);
        }
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let mut bytes = Bytes(bytes);
        if bytes.word()? != VERSION {
            return Err(RestoreError("of another version".into()));
        }
        let (position, digest) = (bytes.word()?, bytes.word()?);
        let (start, users) = (bytes.word()?, bytes.word()?);
        let (parts, tail, rdb) = (bytes.text()?, bytes.text()?, bytes.text()?);
        let users = (0..users)
            .map(|_| bytes.text().map(<[u8]>::to_vec))
            .collect::<Result<_, _>>()?;
        if start.checked_add(tail.len() as u64) != Some(position) {
            return Err(RestoreError("its dataset and its bytes do not meet".into()));
        }
        let base = Base {
            position: start,
            rdb: rdb.to_vec(),
            users,
        };
        self.feed.reset(Arc::new(base), tail);
        (self.position, self.digest) = (position, digest);
        self.parts = parts.to_vec();
        Ok(())
    }
}

const VERSION: u64 = 0x6d75_7265_6469_7301;

/// Bytes of a snapshot that are still to be read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn word(&mut self) -> Result<u64, RestoreError> {
        let short = || RestoreError("the donor has no dataset to give, or it is cut".into());
        let (word, rest) = self.0.split_first_chunk::<8>().ok_or_else(short)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*word))
    }

    fn text(&mut self) -> Result<&'a [u8], RestoreError> {
        let len = usize::try_from(self.word()?).unwrap_or(usize::MAX);
        let short = || RestoreError("it is cut".into());
        let (text, rest) = self.0.split_at_checked(len).ok_or_else(short)?;
        self.0 = rest;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Saved(Option<u64>);

    impl Local for Saved {
        fn save(&self) -> Option<Base> {
            let position = self.0?;
            Some(Base {
                position,
                rdb: b"saved".to_vec(),
                users: vec![b"user a on".to_vec()],
            })
        }
    }

    fn effects(saved: Option<u64>) -> Effects {
        let feed = Arc::new(Feed::new(1));
        feed.reset(Arc::new(Base::empty()), b"");
        Effects::new(feed, Box::new(Saved(saved)))
    }

    fn apply(effects: &mut Effects, marks: u8, bytes: &[u8]) {
        let bytes = [&[marks], bytes].concat();
        let command = Command {
            index: 1,
            place: 0,
            time_ns: 0,
            client: 0,
            sequence: 0,
            bytes: &bytes,
        };
        effects.apply(&command, &mut Vec::new());
    }

    fn stream(effects: &Effects) -> Vec<u8> {
        effects.feed.tail(0).expect("kept")
    }

    #[test]
    fn a_turn_in_parts_is_in_the_stream_when_its_last_part_is() {
        let mut effects = effects(None);
        apply(&mut effects, FIRST | LAST, b"one");
        apply(&mut effects, FIRST, b"tw");
        apply(&mut effects, 0, b"o t");
        assert_eq!(stream(&effects), b"one");
        apply(&mut effects, LAST, b"wo");
        assert_eq!(
            (stream(&effects).as_slice(), effects.position()),
            (&b"onetwo two"[..], 10)
        );
    }

    #[test]
    fn parts_of_a_leader_that_died_are_dropped_by_the_next_turn() {
        let mut effects = effects(None);
        apply(&mut effects, FIRST, b"half a ");
        apply(&mut effects, 0, b"turn");
        let before = effects.digest();
        apply(&mut effects, FIRST, b"a");
        apply(&mut effects, LAST, b"b");
        assert_eq!(stream(&effects), b"ab");
        assert_ne!(effects.digest(), before);
    }

    #[test]
    fn a_snapshot_carries_dataset_bytes_and_parts() {
        let mut donor = effects(Some(2));
        apply(&mut donor, FIRST | LAST, b"abcd");
        // The server has the dataset now, so it is asked for its own.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = std::net::TcpStream::connect(listener.local_addr().expect("one")).expect("up");
        assert!(donor.feed.attach(&donor.feed.stream_id(), stream, 0));
        donor.feed.acked(1);
        apply(&mut donor, FIRST, b"part");
        let mut bytes = Vec::new();
        donor.snapshot(&mut bytes);
        let mut other = effects(None);
        other.restore(&bytes).expect("a snapshot");
        assert_eq!((other.digest(), other.position()), (donor.digest(), 4));
        let (base, tail) = other.feed.held().expect("to be fed");
        assert_eq!(
            (base.position, base.rdb.as_slice(), tail.as_slice()),
            (2, &b"saved"[..], &b"cd"[..])
        );
        assert_eq!(base.users, [b"user a on"]);
        for effects in [&mut donor, &mut other] {
            apply(effects, LAST, b"s");
        }
        assert_eq!((other.digest(), other.position()), (donor.digest(), 9));
        for len in 0..bytes.len() {
            assert!(other.restore(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn who_has_nothing_to_give_gives_nothing_that_could_be_taken() {
        let donor = effects(None);
        assert!(donor.feed.lead(0));
        let mut bytes = Vec::new();
        donor.snapshot(&mut bytes);
        assert!(effects(None).restore(&bytes).is_err());
    }
}
