//! Who and when: replica ids, sets of them, epochs, incarnations.

use std::fmt;

use crate::limits::MAX_REPLICAS;

/// A replica's number in its group, 0 to 8. The lowest live one leads when nobody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(u8);

impl ReplicaId {
    /// The replica with this number, if there can be one.
    pub const fn new(id: u8) -> Option<Self> {
        if (id as usize) < MAX_REPLICAS {
            Some(Self(id))
        } else {
            None
        }
    }

    /// As an index into tables of replicas.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The number itself.
    #[inline]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Members(u16);

impl Members {
    /// Nobody.
    pub const NONE: Self = Self(0);

    /// The set with these bits; bits beyond the highest id are dropped.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & ((1 << MAX_REPLICAS) - 1))
    }
    /// Bit i for replica i.
    pub const fn bits(self) -> u16 {
        self.0
    }
    /// Whether `id` is in it.
    #[inline]
    pub const fn contains(self, id: ReplicaId) -> bool {
        self.0 >> id.0 & 1 == 1
    }
    /// With `id` in it.
    #[must_use]
    pub const fn with(self, id: ReplicaId) -> Self {
        Self(self.0 | 1 << id.0)
    }
    /// With `id` not in it.
    #[must_use]
    pub const fn without(self, id: ReplicaId) -> Self {
        Self(self.0 & !(1 << id.0))
    }
    /// How many.
    #[inline]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }
    /// Whether nobody is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// How many make a majority of this set: floor(n/2)+1, right for even sizes too.
    #[inline]
    pub const fn quorum(self) -> usize {
        self.len() / 2 + 1
    }
    /// In ascending order.
    pub fn iter(self) -> impl Iterator<Item = ReplicaId> {
        (0..MAX_REPLICAS as u8)
            .map(ReplicaId)
            .filter(move |id| self.contains(*id))
    }
}

impl FromIterator<ReplicaId> for Members {
    fn from_iter<I: IntoIterator<Item = ReplicaId>>(ids: I) -> Self {
        ids.into_iter().fold(Self::NONE, Self::with)
    }
}

/// A leadership attempt, the paper's proposal number: unique to one replica, ordered, never used twice. The low four
/// bits are the owner, the rest counts. It is at once the number of a permission request, the promise of a replica that
/// granted it, and the mark of the entries its leader creates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Before every leader.
    pub const NONE: Self = Self(0);

    /// The lowest epoch of `owner` above `seen`. `None` if the numbers are used up, which only nonsense from a peer can
    /// bring about.
    pub const fn above(seen: Self, owner: ReplicaId) -> Option<Self> {
        match (seen.0 >> 4).checked_add(1) {
            Some(count) if count < 1 << 59 => Some(Self(count << 4 | owner.0 as u64)),
            _ => None,
        }
    }

    /// Whose attempt it is. `None` for [`Epoch::NONE`] and for numbers that nobody can own.
    #[inline]
    pub const fn owner(self) -> Option<ReplicaId> {
        if self.0 == 0 {
            None
        } else {
            ReplicaId::new((self.0 & 15) as u8)
        }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.owner() {
            Some(owner) => write!(f, "{}.{owner}", self.0 >> 4),
            None => write!(f, "none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_is_more_than_half_for_every_size() {
        for n in 1..=MAX_REPLICAS {
            let group: Members = (0..n as u8).filter_map(ReplicaId::new).collect();
            let quorum = group.quorum();
            assert!(2 * quorum > n, "two majorities of {n} meet");
            assert!(2 * (quorum - 1) <= n, "one fewer would do for {n}");
        }
    }

    #[test]
    fn epochs_are_ordered_unique_and_know_their_owner() {
        let id = |n| ReplicaId::new(n).expect("an id");
        let first = Epoch::above(Epoch::NONE, id(3)).expect("room");
        let second = Epoch::above(first, id(0)).expect("room");
        assert!(second > first && first > Epoch::NONE);
        assert_eq!((first.owner(), second.owner()), (Some(id(3)), Some(id(0))));
        assert_eq!(Epoch::NONE.owner(), None);
        assert_eq!(Epoch(0x1f).owner(), None, "no replica 15");
        assert_eq!(Epoch::above(Epoch(u64::MAX), id(0)), None);
        assert_eq!(second.to_string(), "2.0");
    }
}
