//! The pull-score: whether a peer lives, from the heartbeat counter that this replica reads from it.
//!
//! Each read is one sample. A counter that changed is a sign of life and raises the score, one that stands still lowers
//! it. At zero the peer is dead, and only a full score brings it back: between the two it stays what it was. A sign of
//! life weighs as much as several bad samples, so a peer that beats at another pace than the reader is not lost; what
//! is lost is one whose counter stands still.
//!
//! **Own stalls.** A reader that was paused finds old samples and a long gap, and neither says anything about the peer.
//! A bad sample that spans a stall of the reader is excused. Never twice in a row, though: a host that always polls
//! slowly still has to find out who is dead.

/// How many samples it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// The highest score, which makes a peer alive: so many bad samples in a row make it dead.
    full: u32,
    /// What a sign of life adds.
    sign: u32,
}

/// Signs of life in a row that bring a peer back.
const SIGNS: u32 = 3;

impl Thresholds {
    /// For reads every `heartbeat_ns` of a peer that is to be dead after `detect_ns`.
    pub fn new(heartbeat_ns: u64, detect_ns: u64) -> Self {
        let full = (detect_ns / heartbeat_ns.max(1)).clamp(2, 1 << 20) as u32;
        Self {
            full,
            sign: full.div_ceil(SIGNS),
        }
    }
}

/// One peer's score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    value: u32,
    alive: bool,
    counter: Option<u64>,
    excused: bool,
}

impl Score {
    /// Whether the peer counts as alive.
    pub fn is_alive(&self) -> bool {
        self.alive
    }

    /// The score, from 0 to the full one.
    pub fn value(&self) -> u32 {
        self.value
    }

    /// A read brought `counter`. `on_time`: this replica did not stall between posting it and seeing it complete. The
    /// first counter only begins the comparison.
    pub fn saw(&mut self, thresholds: Thresholds, counter: u64, on_time: bool) {
        match self.counter.replace(counter) {
            None => {}
            Some(before) if before == counter => self.missed(thresholds, on_time),
            Some(_) => self.sign_of_life(thresholds),
        }
    }

    /// The peer gave a sign of life.
    pub fn sign_of_life(&mut self, thresholds: Thresholds) {
        self.excused = false;
        self.value = (self.value + thresholds.sign).min(thresholds.full);
        self.alive |= self.value == thresholds.full;
    }

    /// No sign of life for the time of one sample.
    pub fn missed(&mut self, _: Thresholds, on_time: bool) {
        if !on_time && !self.excused {
            self.excused = true;
            return;
        }
        self.excused = false;
        self.value = self.value.saturating_sub(1);
        self.alive &= self.value > 0;
    }

    /// The transport says that the peer is gone: dead at once. The counter is kept, so that one read of a counter that
    /// stands still is no sign of life.
    pub fn gone(&mut self) {
        (self.value, self.alive, self.excused) = (0, false, false);
    }

    /// Another life of the peer.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Thresholds = Thresholds { full: 12, sign: 4 };

    fn alive() -> Score {
        let mut score = Score::default();
        (0..=3).for_each(|n| score.saw(T, n, true));
        assert!(score.is_alive());
        score
    }

    #[test]
    fn thresholds_follow_the_settings() {
        assert_eq!(Thresholds::new(50_000, 600_000), T);
        assert_eq!(Thresholds::new(50, 100), Thresholds { full: 2, sign: 1 });
        assert_eq!(Thresholds::new(0, 0).full, 2, "nonsense is bounded");
    }

    #[test]
    fn a_peer_that_stands_still_is_dead_after_the_time_and_not_before() {
        let mut score = alive();
        for n in 1..12 {
            score.saw(T, 3, true);
            assert!(score.is_alive(), "after {n} samples");
        }
        score.saw(T, 3, true);
        assert!(!score.is_alive());
    }

    #[test]
    fn it_comes_back_only_after_several_signs_and_does_not_flap() {
        let mut score = alive();
        score.gone();
        for counter in 4..6 {
            score.saw(T, counter, true);
            assert!(!score.is_alive());
        }
        score.saw(T, 6, true);
        assert!(score.is_alive());
        // A peer that gives a sign with every sixth sample neither comes back when it is dead ...
        let mut dead = Score::default();
        for n in 0..600 {
            dead.saw(T, n / 6, true);
            assert!(!dead.is_alive());
        }
        // ... nor, with every fourth, is it lost when it is alive.
        for n in 40..640 {
            score.saw(T, n / 4, true);
            assert!(score.is_alive());
        }
    }

    #[test]
    fn a_counter_that_was_read_once_is_no_sign_of_life() {
        let mut score = Score::default();
        score.saw(T, 900, true);
        assert_eq!(score.value(), 0);
        score.saw(T, 900, true);
        assert_eq!(score.value(), 0);
    }

    #[test]
    fn own_stalls_are_not_counted_but_a_slow_pace_is() {
        let mut score = alive();
        for n in 4..400 {
            // One long stall now and then: the sample that spans it is old, and the peer goes on beating after it.
            score.saw(T, n - 1, false);
            score.saw(T, n, true);
            assert_eq!(score.value(), 12);
        }
        let mut late = 0;
        while score.is_alive() {
            score.saw(T, 399, false);
            late += 1;
        }
        assert_eq!(
            late, 24,
            "a dead peer is found even if every sample is late"
        );
    }
}
