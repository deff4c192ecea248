//! Random numbers of a run: splitmix64, since it is small, fast and the same everywhere.

/// A generator. The same seed gives the same numbers.
#[derive(Clone, Debug)]
pub struct Rng(u64);

/// What [`Rng::chance`] counts in.
const MILLION: u64 = 1_000_000;

impl Rng {
    /// From a seed. Seeds that are close give sequences that are not.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator of its own for a part of the run, so that more numbers drawn there change nothing here.
    pub fn fork(&mut self) -> Self {
        Self(self.next_u64())
    }

    /// 64 random bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`; 0 if that is 0.
    #[inline]
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(limit)) >> 64) as u64
    }

    /// A number of `low..=high`.
    ///
    /// # Panics
    /// If there is none.
    #[inline]
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "no number of {low}..={high}");
        low + self.below((high - low).saturating_add(1))
    }

    /// True `per_million` times in a million.
    #[inline]
    pub fn chance(&mut self, per_million: u32) -> bool {
        per_million > 0 && self.below(MILLION) < u64::from(per_million)
    }

    /// True once in `n` times.
    #[inline]
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `items`.
    ///
    /// # Panics
    /// If there are none.
    #[inline]
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// A length of time between `low` and `high`, short ones as likely as long ones whatever the unit.
    pub fn spread(&mut self, low: u64, high: u64) -> u64 {
        let doublings = (high / low.max(1)).max(1).ilog2();
        let top = low.max(1) << self.below(u64::from(doublings) + 1);
        self.range(
            low.min(top),
            top.saturating_mul(2).min(high).max(low.min(top)),
        )
    }

    /// Puts the items in a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_in_their_range_and_reach_its_ends() {
        let mut rng = Rng::new(7);
        let mut seen = [false; 5];
        (0..200).for_each(|_| seen[rng.range(3, 7) as usize - 3] = true);
        assert_eq!(seen, [true; 5]);
        assert_eq!(rng.below(0), 0);
        for _ in 0..1000 {
            let time = rng.spread(100, 10_000);
            assert!((100..=10_000).contains(&time), "{time}");
        }
        let hits = (0..100_000).filter(|_| rng.chance(10_000)).count();
        assert!(
            (800..1200).contains(&hits),
            "1 % came {hits} times in 100,000"
        );
        assert!(!rng.chance(0));
    }

    #[test]
    fn a_fork_is_not_its_parent() {
        let mut a = Rng::new(1);
        let mut b = a.clone();
        let mut fork = a.fork();
        b.next_u64();
        assert_eq!(a.next_u64(), b.next_u64());
        assert_ne!(fork.next_u64(), a.next_u64());
    }
}
