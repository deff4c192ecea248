//! The entry: how commands lie in the log. `docs/protocol.md`, section 2, has the words.
//!
//! # Ordering
//!
//! An entry is written in ascending order of its words, each with Release, by the leader itself or by the device that
//! carries its bytes. A reader loads the header's words and then the tail with Acquire: where the device places a whole
//! message in order, a tail that fits means that everything before it is there. Elsewhere the payload's checksum
//! decides. The header check depends on index and epoch, and the tail on the epoch of the entry before as well: bytes
//! of an earlier lap, of another leader or behind another entry do not fit.

use mu_verbs::WORD;

use crate::check::mix;
use crate::ids::{Epoch, ReplicaId};

/// Words of the header.
pub const HEADER_WORDS: usize = 6;
/// Bytes of the header.
pub const HEADER_BYTES: usize = HEADER_WORDS * WORD;
/// Bytes of the tail.
pub const TAIL_BYTES: usize = WORD;
/// Bytes of an entry around its payload.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + TAIL_BYTES;
/// Bytes of a command's frame before its bytes, if it has no session.
pub const FRAME_BYTES: usize = WORD;
/// Bytes of a frame with a session.
pub const SESSION_FRAME_BYTES: usize = 3 * WORD;
/// A frame's first word: its command's length, and whether client and sequence follow.
const HAS_SESSION: u64 = 1 << 32;
/// A lag of the commit index that does not fit: it is not told.
const NO_COMMIT: u32 = u32::MAX;

/// What an entry carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Nothing: a new leader's first entry.
    Empty = 1,
    /// Commands of clients.
    Commands = 2,
    /// The admission of a replica as a voter.
    Admit = 3,
}

/// The header of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its index; the first entry has 1.
    pub index: u64,
    /// The leader that created it.
    pub epoch: Epoch,
    /// The epoch of the entry before it. The tail has it.
    pub previous: Epoch,
    /// What that leader knew to be decided.
    pub commit: u64,
    /// Leader time: nanoseconds since the Unix epoch, never going back in a log.
    pub time_ns: u64,
    /// Bytes of payload.
    pub len: u32,
    /// Commands.
    pub count: u16,
    /// What it carries.
    pub kind: Kind,
    /// The payload's CRC32C, if it has one.
    pub crc: Option<u32>,
}

impl Header {
    /// Bytes of the whole entry.
    #[inline]
    pub const fn size(&self) -> usize {
        size(self.len as usize)
    }

    /// The header's words, the check included.
    #[inline]
    pub fn to_words(&self) -> [u64; HEADER_WORDS] {
        let flags = u64::from(self.crc.is_some());
        let meta = u64::from(self.len)
            | u64::from(self.count) << 32
            | (self.kind as u64) << 48
            | flags << 56;
        let lag = u32::try_from(self.index.saturating_sub(self.commit)).unwrap_or(NO_COMMIT);
        let known = u64::from(lag) | u64::from(self.crc.unwrap_or(0)) << 32;
        let words = [self.index, self.epoch.0, self.time_ns, meta, known];
        let [a, b, c, d, e] = words;
        [a, b, c, d, e, mix(words)]
    }

    /// Decodes a header that was copied into private memory. `None` if it is torn, stale or nonsense. What the tail
    /// says, the epoch of the entry before, is not known yet.
    #[inline]
    pub fn from_words(words: [u64; HEADER_WORDS]) -> Option<Self> {
        let [index, epoch, time_ns, meta, known, check] = words;
        if mix([index, epoch, time_ns, meta, known]) != check {
            return None;
        }
        let kind = match (meta >> 48) as u8 {
            1 => Kind::Empty,
            2 => Kind::Commands,
            3 => Kind::Admit,
            _ => return None,
        };
        let commit = match known as u32 {
            NO_COMMIT => 0,
            lag => index.checked_sub(lag.into())?,
        };
        Some(Self {
            index,
            epoch: Epoch(epoch),
            previous: Epoch::NONE,
            commit,
            time_ns,
            len: meta as u32,
            count: (meta >> 32) as u16,
            kind,
            crc: (meta >> 56 & 1 == 1).then_some((known >> 32) as u32),
        })
    }
}

/// Bytes of an entry with `len` bytes of payload.
#[inline]
pub const fn size(len: usize) -> usize {
    OVERHEAD_BYTES + len.next_multiple_of(WORD)
}

/// The tail that belongs to a header check and the epoch of the entry before.
#[inline]
pub const fn tail(check: u64, previous: Epoch) -> u64 {
    !check ^ previous.0
}

/// The epoch of the entry before, by a tail that belongs to a header check and its epoch. `None` if there can be none:
/// the tail is torn or stale.
#[inline]
pub fn previous(tail: u64, check: u64, epoch: Epoch) -> Option<Epoch> {
    let previous = Epoch(!check ^ tail);
    let can_be = previous == Epoch::NONE || previous.owner().is_some();
    (can_be && previous <= epoch).then_some(previous)
}

/// One command in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The client's number; 0 is no session.
    pub client: u64,
    /// The client's number of this command. Not kept without a session.
    pub sequence: u64,
    /// The command.
    pub bytes: &'a [u8],
}

impl Frame<'_> {
    /// Bytes before the command.
    #[inline]
    const fn head_bytes(&self) -> usize {
        if self.client == 0 {
            FRAME_BYTES
        } else {
            SESSION_FRAME_BYTES
        }
    }
}

/// The commands of a payload in private memory, one after the other.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
    left: u16,
}

impl<'a> Frames<'a> {
    /// The `count` commands of `payload`.
    pub fn new(payload: &'a [u8], count: u16) -> Self {
        Self {
            rest: payload,
            left: count,
        }
    }
}

/// A payload that its own frames contradict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFrame;

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, BadFrame>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let frame = (|| {
            let (head, rest) = self.rest.split_first_chunk()?;
            let head = u64::from_le_bytes(*head);
            let (client, sequence, rest) = match head & !u64::from(u32::MAX) {
                0 => (0, 0, rest),
                HAS_SESSION => {
                    let (client, rest) = rest.split_first_chunk()?;
                    let (sequence, rest) = rest.split_first_chunk()?;
                    let [client, sequence] =
                        [client, sequence].map(|word| u64::from_le_bytes(*word));
                    (client, sequence, rest)
                }
                _ => return None,
            };
            let len = head as u32 as usize;
            let bytes = rest.get(..len)?;
            self.rest = rest.get(len.checked_next_multiple_of(WORD)?..)?;
            Some(Frame {
                client,
                sequence,
                bytes,
            })
        })();
        if frame.is_none() {
            self.left = 0;
        }
        Some(frame.ok_or(BadFrame))
    }
}

/// Payload of an admission: the replica and its incarnation.
pub fn admit(id: ReplicaId, incarnation: u64) -> [u8; 16] {
    let mut payload = [0; 16];
    payload[0] = id.get();
    payload[8..].copy_from_slice(&incarnation.to_le_bytes());
    payload
}

/// Decodes an admission.
pub fn admitted(payload: &[u8]) -> Option<(ReplicaId, u64)> {
    let payload: &[u8; 16] = payload.try_into().ok()?;
    let incarnation = u64::from_le_bytes(payload[8..].try_into().ok()?);
    ReplicaId::new(payload[0]).map(|id| (id, incarnation))
}

/// An entry under construction, in private memory of fixed size.
#[derive(Debug)]
pub struct Encoder {
    bytes: Box<[u8]>,
    /// Bytes of header and payload so far.
    len: usize,
    count: u16,
    /// The entry is complete; the next command begins another one. Until then its payload can be read.
    finished: bool,
}

impl Encoder {
    /// Room for entries of up to `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        assert!(max_bytes >= OVERHEAD_BYTES, "no entry is so short");
        Self {
            bytes: vec![0; max_bytes].into(),
            len: HEADER_BYTES,
            count: 0,
            finished: false,
        }
    }

    /// Commands in the entry under construction.
    #[inline]
    pub fn count(&self) -> u16 {
        if self.finished { 0 } else { self.count }
    }

    /// Bytes of the entry under construction, if it were completed now.
    #[inline]
    pub fn size(&self) -> usize {
        TAIL_BYTES
            + if self.finished {
                HEADER_BYTES
            } else {
                self.len
            }
    }

    /// Adds a command, unless it does not fit any more; says whether it did.
    #[must_use]
    #[inline]
    pub fn push(&mut self, frame: Frame<'_>) -> bool {
        let (at, count) = if self.finished {
            (HEADER_BYTES, 0)
        } else {
            (self.len, self.count)
        };
        let len = frame.bytes.len();
        let head_bytes = frame.head_bytes();
        let end = at + head_bytes + len.next_multiple_of(WORD);
        if end + TAIL_BYTES > self.bytes.len() || usize::from(count) >= crate::limits::MAX_BATCH {
            return false;
        }
        let (head, body) = self.bytes[at..end].split_at_mut(head_bytes);
        let has_session = if frame.client == 0 { 0 } else { HAS_SESSION };
        let words = [len as u64 | has_session, frame.client, frame.sequence];
        for (word, place) in words.iter().zip(head.as_chunks_mut::<WORD>().0) {
            *place = word.to_le_bytes();
        }
        fill(body, frame.bytes);
        (self.len, self.count, self.finished) = (end, count + 1, false);
        true
    }

    /// Adds bytes without a frame, padded. They must fit.
    #[inline]
    pub fn raw(&mut self, bytes: &[u8]) {
        self.begin();
        let end = self.len + bytes.len().next_multiple_of(WORD);
        fill(&mut self.bytes[self.len..end], bytes);
        self.len = end;
    }

    /// Completes the entry: fills in length, count and checksum of `header`, and gives it with its bytes.
    #[inline(always)]
    pub fn finish(&mut self, header: Header, checksum: bool) -> (Header, &[u8]) {
        self.begin();
        self.finished = true;
        let len = self.len;
        let crc = checksum.then(|| crc32c::crc32c(&self.bytes[HEADER_BYTES..len]));
        let header = Header {
            len: (len - HEADER_BYTES) as u32,
            count: self.count,
            crc,
            ..header
        };
        let words = header.to_words();
        let place: &mut [u8; HEADER_BYTES] = (&mut self.bytes[..HEADER_BYTES])
            .try_into()
            .expect("as long as a header");
        for (word, place) in words.iter().zip(place.as_chunks_mut::<WORD>().0) {
            *place = word.to_le_bytes();
        }
        let end = len + TAIL_BYTES;
        let tail = tail(words[HEADER_WORDS - 1], header.previous);
        self.bytes[len..end].copy_from_slice(&tail.to_le_bytes());
        (header, &self.bytes[..end])
    }

    /// Empties it, if it holds a complete entry.
    #[inline]
    fn begin(&mut self) {
        if self.finished {
            self.clear();
        }
    }

    /// Empties it.
    #[inline]
    pub fn clear(&mut self) {
        (self.len, self.count, self.finished) = (HEADER_BYTES, 0, false);
    }

    /// The entry that was completed last, until something is added.
    #[inline]
    pub fn entry(&self) -> Option<&[u8]> {
        self.finished.then(|| &self.bytes[..self.len + TAIL_BYTES])
    }

    /// The payload of the entry that was completed last, until something is added.
    #[inline]
    pub fn payload(&self, header: &Header) -> Option<&[u8]> {
        let payload = self
            .bytes
            .get(HEADER_BYTES..HEADER_BYTES + header.len as usize);
        payload.filter(|_| self.finished)
    }
}

/// Puts `bytes` at the beginning of `place`, which is as long padded to words, and zeroes behind them.
#[inline]
fn fill(place: &mut [u8], bytes: &[u8]) {
    if let Some(last) = place.last_chunk_mut::<WORD>() {
        *last = [0; WORD];
    }
    place[..bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            index: 7,
            epoch: Epoch(0x21),
            previous: Epoch(0x13),
            commit: 5,
            time_ns: 99,
            len: 0,
            count: 0,
            kind: Kind::Commands,
            crc: None,
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let mut encoder = Encoder::new(4096);
        let commands: Vec<Vec<u8>> = (0..20u8).map(|n| vec![n; usize::from(n) * 3]).collect();
        for (n, bytes) in commands.iter().enumerate() {
            assert!(encoder.push(Frame {
                client: n as u64,
                sequence: 2 * n as u64,
                bytes,
            }));
        }
        let (header, bytes) = encoder.finish(header(), true);
        assert_eq!(bytes.len(), header.size());
        let words: Vec<u64> = bytes
            .chunks(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("a word")))
            .collect();
        let (first, check) = (&words[..HEADER_WORDS], words[HEADER_WORDS - 1]);
        let mut read = Header::from_words(first.try_into().expect("a header")).expect("complete");
        let last = words.last().expect("a tail");
        read.previous = previous(*last, check, read.epoch).expect("an epoch before");
        assert_eq!(read, header);
        let payload = &bytes[HEADER_BYTES..HEADER_BYTES + header.len as usize];
        assert_eq!(header.crc, Some(crc32c::crc32c(payload)));
        let frames: Vec<_> = Frames::new(payload, header.count)
            .map(|f| f.expect("sound"))
            .collect();
        for (n, frame) in frames.iter().enumerate() {
            assert_eq!((frame.client, frame.sequence), (n as u64, 2 * n as u64));
            assert_eq!(frame.bytes, commands[n]);
        }
        assert_eq!(frames.len(), 20);
    }

    #[test]
    fn what_does_not_fit_is_not_taken_and_the_rest_stays() {
        let frame = |bytes| Frame {
            client: 1,
            sequence: 1,
            bytes,
        };
        let mut encoder = Encoder::new(OVERHEAD_BYTES + SESSION_FRAME_BYTES + 16);
        assert!(!encoder.push(frame(&[1; 17])), "a word too long");
        assert!(encoder.push(frame(&[2; 9])));
        assert!(!encoder.push(frame(&[])), "no room for another");
        let (header, bytes) = encoder.finish(header(), false);
        assert_eq!((header.count, header.len), (1, 40));
        let padded = [[2; 9].as_slice(), &[0; 7]].concat();
        assert_eq!(bytes[HEADER_BYTES + SESSION_FRAME_BYTES..][..16], padded);
        assert!(encoder.push(frame(&[3; 16])), "the next entry");
        assert_eq!(encoder.count(), 1);

        let mut encoder = Encoder::new(1 << 20);
        for _ in 0..crate::limits::MAX_BATCH {
            assert!(encoder.push(frame(&[])));
        }
        assert!(!encoder.push(frame(&[])), "as many as an entry may have");
    }

    #[test]
    fn a_header_with_any_bit_changed_is_refused() {
        let words = header().to_words();
        for word in 0..HEADER_WORDS {
            for bit in 0..64 {
                let mut bad = words;
                bad[word] ^= 1 << bit;
                assert_eq!(Header::from_words(bad), None);
            }
        }
        assert_eq!(Header::from_words([0; HEADER_WORDS]), None);
    }

    #[test]
    fn frames_that_lie_about_their_length_end_the_walk() {
        // A session's frame of 24 bytes, and as many of a command.
        let mut payload = vec![0; 48];
        payload[4] = 1;
        payload[0] = 25;
        let walked: Vec<_> = Frames::new(&payload, 2).collect();
        assert_eq!(walked, [Err(BadFrame)]);
        payload[0] = 24;
        assert!(
            matches!(Frames::new(&payload, 1).next(), Some(Ok(frame)) if frame.bytes.len() == 24)
        );
        for bad in [u64::MAX, u32::MAX.into(), 2 << 32, 1 << 63] {
            payload[..8].copy_from_slice(&bad.to_le_bytes());
            assert_eq!(
                Frames::new(&payload, 2).next(),
                Some(Err(BadFrame)),
                "{bad:#x}"
            );
        }
        for short in [7, 8, 15, 23] {
            let mut payload = vec![0; short];
            if let Some(flag) = payload.get_mut(4) {
                *flag = 1;
            }
            let sound = Frames::new(&payload, 1).next();
            assert_eq!(sound, Some(Err(BadFrame)), "{short} bytes");
        }
        assert_eq!(Frames::new(&[], 0).next(), None);
    }

    #[test]
    fn a_frame_without_a_session_is_a_word() {
        let mut encoder = Encoder::new(4096);
        for sequence in [0, 9] {
            let bytes = &[5; 64];
            assert!(encoder.push(Frame {
                client: 0,
                sequence,
                bytes
            }));
        }
        let (header, bytes) = encoder.finish(header(), true);
        assert_eq!(bytes.len(), OVERHEAD_BYTES + 2 * (FRAME_BYTES + 64));
        let payload = &bytes[HEADER_BYTES..HEADER_BYTES + header.len as usize];
        for frame in Frames::new(payload, header.count) {
            let frame = frame.expect("sound");
            assert_eq!(
                (frame.client, frame.sequence, frame.bytes),
                (0, 0, &[5; 64][..])
            );
        }
    }

    #[test]
    fn a_commit_index_too_far_back_is_not_told() {
        for (index, commit, told) in [
            (9, 8, 8),
            (9, 9, 9),
            (1 << 40, (1 << 40) - 0xffff_fffe, (1 << 40) - 0xffff_fffe),
            (1 << 40, (1 << 40) - 0xffff_ffff, 0),
            (1 << 40, 7, 0),
        ] {
            let words = Header {
                index,
                commit,
                ..header()
            }
            .to_words();
            let read = Header::from_words(words).expect("complete");
            assert_eq!(read.commit, told, "{commit} at {index}");
        }
        // One that lies before the log begins, with a check that fits.
        let words = [3, 0x10, 0, 2 << 48, 4];
        let [a, b, c, d, e] = words;
        assert_eq!(Header::from_words([a, b, c, d, e, mix(words)]), None);
    }

    #[test]
    fn a_tail_tells_the_epoch_before_or_that_it_is_torn() {
        let words = header().to_words();
        let (check, epoch) = (words[HEADER_WORDS - 1], header().epoch);
        let sound = tail(check, header().previous);
        let first = tail(check, Epoch::NONE);
        assert_eq!(previous(first, check, epoch), Some(Epoch::NONE));
        let nobodys = tail(check, Epoch(0x1f));
        assert_eq!(previous(nobodys, check, epoch), None);
        assert_eq!(previous(sound, check, epoch), Some(header().previous));
        assert_eq!(
            previous(tail(check, Epoch(0x31)), check, epoch),
            None,
            "later than its own"
        );
        for stale in [
            0,
            u64::MAX,
            check,
            sound.rotate_left(8),
            tail(check ^ 1 << 40, epoch),
        ] {
            assert_eq!(previous(stale, check, epoch), None, "{stale:#x}");
        }
    }
}
