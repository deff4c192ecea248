//! Frames after the handshake: kind, sequence number, payload, tag.
//!
//! Each direction has a key of its own, so a frame sent back is no frame. The tag covers kind, number and payload, and
//! the number has to be the next one: TCP loses and reorders nothing, so any other is a replay or a gap that somebody
//! made.

use super::crypto::Key;
use super::frame;
use super::limits::{FRAME_OVERHEAD_BYTES, MESSAGE_BYTES_MAX, TAG_BYTES};
use super::refusal::Refusal;

const LABEL: &str = "mu control 1: frame";

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    /// The first of each side: what its application has to say.
    Hello = 1,
    /// Instead of it: the dialer does not want this connection. The payload is the code of the reason.
    Refused = 2,
    Message = 3,
    /// What a status client came for.
    Status = 4,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Hello, Self::Refused, Self::Message, Self::Status]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// The sending end of one direction.
#[derive(Debug)]
pub(super) struct Sealer {
    key: Key,
    next: u64,
}

impl Sealer {
    pub(super) fn new(key: Key) -> Self {
        Self { key, next: 0 }
    }

    /// Puts a frame at the end of `out`.
    pub(super) fn seal(&mut self, kind: Kind, payload: &[u8], out: &mut Vec<u8>) {
        assert!(
            payload.len() <= MESSAGE_BYTES_MAX,
            "callers check the length"
        );
        let number = self.next.to_le_bytes();
        let kind = [kind as u8];
        let tag = self.key.tag(LABEL, &[&kind, &number, payload]);
        frame::push(out, &[&kind, &number, payload, &tag]);
        self.next += 1;
    }
}

/// The receiving end of one direction.
#[derive(Debug)]
pub(super) struct Opener {
    key: Key,
    next: u64,
}

impl Opener {
    pub(super) fn new(key: Key) -> Self {
        Self { key, next: 0 }
    }

    /// The kind and payload of a frame, if it is the next one of the other side.
    pub(super) fn open<'a>(&mut self, frame: &'a [u8]) -> Result<(Kind, &'a [u8]), Refusal> {
        if frame.len() < FRAME_OVERHEAD_BYTES {
            return Err(Refusal::Malformed);
        }
        let (head, tag) = frame
            .split_last_chunk::<TAG_BYTES>()
            .expect("longer than its overhead");
        let (kind, rest) = head.split_first_chunk::<1>().expect("likewise");
        let (number, payload) = rest.split_first_chunk::<8>().expect("likewise");
        if !self.key.tags(LABEL, &[kind, number, payload], tag) {
            return Err(Refusal::BadMac);
        }
        if u64::from_le_bytes(*number) != self.next {
            return Err(Refusal::Replayed);
        }
        self.next += 1;
        let kind = Kind::from_byte(kind[0]).ok_or(Refusal::Malformed)?;
        Ok((kind, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Sealer, Opener) {
        let key = Key::new(b"one direction...");
        (Sealer::new(key.clone()), Opener::new(key))
    }

    fn sealed(sealer: &mut Sealer, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        sealer.seal(Kind::Message, payload, &mut out);
        out.split_off(4)
    }

    #[test]
    fn opens_what_was_sealed_in_order_and_once() {
        let (mut sealer, mut opener) = pair();
        let frames = [
            sealed(&mut sealer, b"a"),
            sealed(&mut sealer, b""),
            sealed(&mut sealer, b"c"),
        ];
        assert_eq!(opener.open(&frames[0]), Ok((Kind::Message, &b"a"[..])));
        assert_eq!(opener.open(&frames[0]), Err(Refusal::Replayed));
        assert_eq!(opener.open(&frames[2]), Err(Refusal::Replayed), "a gap");
        assert_eq!(opener.open(&frames[1]), Ok((Kind::Message, &b""[..])));
        assert_eq!(opener.open(&frames[2]), Ok((Kind::Message, &b"c"[..])));
    }

    #[test]
    fn every_changed_bit_is_seen() {
        let (mut sealer, mut opener) = pair();
        let good = sealed(&mut sealer, b"payload");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opener.open(&bad), Err(Refusal::BadMac), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(opener.open(&good[..len]).is_err(), "{len} bytes");
        }
        assert!(opener.open(&good).is_ok());
    }

    #[test]
    fn the_other_direction_has_another_key() {
        let (mut sealer, _) = pair();
        let mut other = Opener::new(Key::new(b"another direction"));
        assert_eq!(other.open(&sealed(&mut sealer, b"x")), Err(Refusal::BadMac));
    }
}
