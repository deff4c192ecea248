//! Sessions: what makes a retry safe. Part of the replicated state, so every replica decides alike.
//!
//! A client numbers its commands upwards and has one in flight. The table keeps the last number and reply of each; when
//! it is full, the session that was used longest ago is forgotten, on every replica at the same entry. A client that
//! stays silent while as many others as the table holds were active loses its protection; size the table for that.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::check::mix;
use crate::limits::MAX_KEPT_REPLY;

const NONE: u32 = u32::MAX;

/// What the table says of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen<'a> {
    /// Not applied before: apply it, then [`Sessions::keep`] the reply.
    New,
    /// A retry of the client's last command: its reply.
    Again(&'a [u8]),
    /// A retry of the client's last command, whose reply was too long to be kept.
    AgainWithoutReply,
    /// Older than the client's last command: its reply is gone.
    Old,
}

#[derive(Clone, Debug)]
struct Slot {
    client: u64,
    sequence: u64,
    /// Bytes of the reply; above [`MAX_KEPT_REPLY`] none are kept.
    len: u32,
    reply: [u8; MAX_KEPT_REPLY],
    /// Neighbours in the order of use.
    newer: u32,
    older: u32,
}

/// The table.
#[derive(Clone, Debug)]
pub struct Sessions {
    slots: Vec<Slot>,
    capacity: usize,
    places: HashMap<u64, u32, BuildHasherDefault<Mixed>>,
    newest: u32,
    oldest: u32,
}

/// Hashes one number by mixing it: client numbers come from clients, and the order of the map is never looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = mix([self.0, u64::from(*byte)]);
        }
    }
    #[inline]
    fn write_u64(&mut self, number: u64) {
        self.0 = mix([number]);
    }
}

/// A snapshot's sessions that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sessions in the snapshot are damaged or more than {capacity}")]
pub struct BadSessions {
    /// Slots of this table.
    pub capacity: usize,
}

impl Sessions {
    /// An empty table of `capacity` sessions. All memory is taken now.
    pub fn new(capacity: usize) -> Self {
        Self {
            slots: Vec::with_capacity(capacity),
            capacity,
            // Twice the room, so that forgetting and remembering never makes the map grow.
            places: HashMap::with_capacity_and_hasher(2 * capacity, BuildHasherDefault::default()),
            newest: NONE,
            oldest: NONE,
        }
    }

    /// What it says of command `sequence` of `client`, which is not 0.
    #[inline]
    pub fn look(&self, client: u64, sequence: u64) -> Seen<'_> {
        let Some(place) = self.places.get(&client) else {
            return Seen::New;
        };
        let slot = &self.slots[*place as usize];
        match sequence.cmp(&slot.sequence) {
            std::cmp::Ordering::Greater => Seen::New,
            std::cmp::Ordering::Less => Seen::Old,
            std::cmp::Ordering::Equal => slot
                .reply
                .get(..slot.len as usize)
                .map_or(Seen::AgainWithoutReply, Seen::Again),
        }
    }

    /// Remembers that command `sequence` of `client` was applied, with its reply.
    #[inline]
    pub fn keep(&mut self, client: u64, sequence: u64, reply: &[u8]) {
        let place = match self.places.get(&client) {
            Some(place) => *place,
            None => self.place(client),
        };
        self.unlink(place);
        let slot = &mut self.slots[place as usize];
        slot.sequence = sequence;
        slot.len = u32::try_from(reply.len()).unwrap_or(u32::MAX);
        if let Some(kept) = slot.reply.get_mut(..reply.len()) {
            kept.copy_from_slice(reply);
        }
        self.link(place);
    }

    /// A slot for a new client: a free one, or that of the client that was silent longest.
    fn place(&mut self, client: u64) -> u32 {
        let empty = Slot {
            client,
            sequence: 0,
            len: 0,
            reply: [0; MAX_KEPT_REPLY],
            newer: NONE,
            older: NONE,
        };
        let place = if self.slots.len() < self.capacity {
            self.slots.push(empty);
            self.slots.len() as u32 - 1
        } else {
            let place = self.oldest;
            self.unlink(place);
            self.places.remove(&self.slots[place as usize].client);
            self.slots[place as usize] = empty;
            place
        };
        self.places.insert(client, place);
        place
    }

    fn unlink(&mut self, place: u32) {
        let Slot { newer, older, .. } = self.slots[place as usize];
        match newer {
            NONE if self.newest == place => self.newest = older,
            NONE => {}
            newer => self.slots[newer as usize].older = older,
        }
        match older {
            NONE if self.oldest == place => self.oldest = newer,
            NONE => {}
            older => self.slots[older as usize].newer = newer,
        }
    }

    /// Makes an unlinked slot the newest.
    fn link(&mut self, place: u32) {
        let older = self.newest;
        (
            self.slots[place as usize].newer,
            self.slots[place as usize].older,
        ) = (NONE, older);
        match older {
            NONE => self.oldest = place,
            older => self.slots[older as usize].newer = place,
        }
        self.newest = place;
    }

    /// From the one used longest ago to the newest.
    fn in_order(&self) -> impl Iterator<Item = &Slot> {
        std::iter::successors(self.slots.get(self.oldest as usize), |slot| {
            self.slots.get(slot.newer as usize)
        })
    }

    /// A number that differs when the tables differ.
    pub fn digest(&self) -> u64 {
        self.in_order().fold(self.slots.len() as u64, |sum, slot| {
            mix([
                sum,
                slot.client,
                slot.sequence,
                slot.len.into(),
                crc32c::crc32c(&slot.reply).into(),
            ])
        })
    }

    /// Appends the table to `out`.
    pub fn snapshot(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.slots.len() as u64).to_le_bytes());
        for slot in self.in_order() {
            out.extend_from_slice(&slot.client.to_le_bytes());
            out.extend_from_slice(&slot.sequence.to_le_bytes());
            out.extend_from_slice(&u64::from(slot.len).to_le_bytes());
            out.extend_from_slice(&slot.reply);
        }
    }

    /// Takes a table from the front of `bytes` and gives the rest.
    ///
    /// # Errors
    /// Damaged, or more sessions than this table holds: all of a group must have the same size.
    pub fn restore<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], BadSessions> {
        const SLOT: usize = 24 + MAX_KEPT_REPLY;
        let bad = BadSessions {
            capacity: self.capacity,
        };
        let (count, rest) = bytes.split_first_chunk().ok_or(bad)?;
        let count = usize::try_from(u64::from_le_bytes(*count)).map_err(|_| bad)?;
        let (slots, rest) = count
            .checked_mul(SLOT)
            .filter(|_| count <= self.capacity)
            .and_then(|len| rest.split_at_checked(len))
            .ok_or(bad)?;
        *self = Self::new(self.capacity);
        for slot in slots.chunks_exact(SLOT) {
            let word =
                |at: usize| u64::from_le_bytes(slot[at..at + 8].try_into().expect("eight bytes"));
            let len = u32::try_from(word(16)).map_err(|_| bad)?;
            self.keep(word(0), word(8), &[]);
            let kept = &mut self.slots[self.newest as usize];
            kept.len = len;
            kept.reply.copy_from_slice(&slot[24..]);
        }
        Ok(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_gets_the_reply_and_is_told_from_an_old_number() {
        let mut sessions = Sessions::new(4);
        assert_eq!(sessions.look(1, 10), Seen::New);
        sessions.keep(1, 10, b"ten");
        assert_eq!(sessions.look(1, 10), Seen::Again(b"ten"));
        assert_eq!(sessions.look(1, 9), Seen::Old);
        assert_eq!(sessions.look(1, 11), Seen::New);
        sessions.keep(1, 11, &[7; MAX_KEPT_REPLY + 1]);
        assert_eq!(sessions.look(1, 11), Seen::AgainWithoutReply);
    }

    #[test]
    fn the_one_silent_longest_is_forgotten_and_nobody_else() {
        let mut sessions = Sessions::new(3);
        for client in 1..=3 {
            sessions.keep(client, 1, b"");
        }
        sessions.keep(1, 2, b"");
        sessions.keep(4, 1, b"");
        assert_eq!(sessions.look(2, 1), Seen::New, "forgotten");
        for (client, sequence) in [(1, 2), (3, 1), (4, 1)] {
            assert_eq!(
                sessions.look(client, sequence),
                Seen::Again(b""),
                "{client}"
            );
        }
    }

    /// The same random use on the table and on a plain model.
    #[test]
    fn it_agrees_with_a_plain_model_and_survives_snapshots() {
        let mut sessions = Sessions::new(8);
        let mut model: Vec<(u64, u64)> = Vec::new();
        let mut random = 1u64;
        for step in 0..20_000u64 {
            random = mix([random, step]);
            let (client, sequence) = (random % 12 + 1, step);
            model.retain(|(c, _)| *c != client);
            if model.len() == 8 {
                model.remove(0);
            }
            model.push((client, sequence));
            sessions.keep(client, sequence, &sequence.to_le_bytes());
            if step % 500 == 0 {
                let mut bytes = Vec::new();
                sessions.snapshot(&mut bytes);
                bytes.push(42);
                let digest = sessions.digest();
                let mut other = Sessions::new(8);
                assert_eq!(other.restore(&bytes), Ok(&[42][..]));
                assert_eq!(other.digest(), digest);
                sessions = other;
            }
        }
        let order: Vec<_> = sessions
            .in_order()
            .map(|slot| (slot.client, slot.sequence))
            .collect();
        assert_eq!(order, model);
    }

    #[test]
    fn a_damaged_table_is_refused() {
        let mut sessions = Sessions::new(2);
        assert!(sessions.restore(&[]).is_err());
        assert!(sessions.restore(&3u64.to_le_bytes()).is_err());
        assert!(sessions.restore(&u64::MAX.to_le_bytes()).is_err());
        assert!(sessions.restore(&1u64.to_le_bytes()).is_err());
    }
}
