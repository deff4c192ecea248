//! How a thread that polls an engine waits between two polls.
//!
//! A [`Pacer`] only decides; whoever polls carries it out with a [`Waker`](super::Waker). After work it spins, then
//! gives the processor away, then sleeps, each sleep twice as long as the one before, never past what is due next.
//! Sleeping is what makes several replicas live on few processors: a thread that yields is still runnable, and takes
//! turns from one that has work.

use std::thread::available_parallelism;

use crate::config::Poll;

/// How long a thread spins, yields and sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// It spins for so long after work.
    pub spin_ns: u64,
    /// Then it yields for so long.
    pub yield_ns: u64,
    /// Then it sleeps for so long at first ...
    pub sleep_first_ns: u64,
    /// ... and at last. Also bounded by what is due.
    pub sleep_most_ns: u64,
}

const US: u64 = 1_000;

impl Policy {
    /// Never gives the processor away.
    pub const SPIN: Self = Self {
        spin_ns: u64::MAX,
        yield_ns: 0,
        sleep_first_ns: US,
        sleep_most_ns: US,
    };

    /// Spins for a while where there are processors to spare.
    pub const ADAPTIVE: Self = Self {
        spin_ns: 50 * US,
        yield_ns: 100 * US,
        sleep_first_ns: 10 * US,
        sleep_most_ns: 200 * US,
    };

    /// The same where there are fewer processors than threads: who yields there is in the way of who has work.
    pub const SCARCE: Self = Self {
        spin_ns: 2 * US,
        yield_ns: 0,
        sleep_first_ns: 20 * US,
        sleep_most_ns: 1_000 * US,
    };

    /// Sleeps at once.
    pub const EVENT: Self = Self {
        spin_ns: 0,
        yield_ns: 0,
        sleep_first_ns: 50 * US,
        sleep_most_ns: 1_000 * US,
    };

    /// The policy of this name on a machine where `threads` threads poll.
    #[must_use]
    pub fn named(poll: Poll, threads: usize) -> Self {
        match poll {
            Poll::Spin => Self::SPIN,
            Poll::Event => Self::EVENT,
            Poll::Adaptive if is_scarce(threads) => Self::SCARCE,
            Poll::Adaptive => Self::ADAPTIVE,
        }
    }
}

/// Whether this process may use fewer processors than `threads`.
pub(crate) fn is_scarce(threads: usize) -> bool {
    available_parallelism().map_or(1, usize::from) < threads
}

/// What to do until the next poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Poll again.
    Spin,
    /// Let others run, then poll again.
    Yield,
    /// Sleep for so long, or until woken.
    Sleep {
        /// How long.
        ns: u64,
    },
}

/// Decides, poll after poll. See the module.
#[derive(Clone, Debug)]
pub struct Pacer {
    policy: Policy,
    /// When there was work last.
    worked_ns: u64,
    /// How long the next sleep is.
    sleep_ns: u64,
}

impl Pacer {
    /// Begins as if there had just been work.
    #[must_use]
    pub fn new(policy: Policy, now_ns: u64) -> Self {
        Self {
            policy,
            worked_ns: now_ns,
            sleep_ns: policy.sleep_first_ns,
        }
    }

    /// After a poll at `now_ns` that had work or not. `waiting`: somebody waits for what only polling brings, so sleeps
    /// do not grow. `due_ns`: when it has to be polled at the latest.
    #[inline]
    pub fn rest(&mut self, now_ns: u64, worked: bool, waiting: bool, due_ns: u64) -> Rest {
        let policy = &self.policy;
        if worked {
            self.worked_ns = now_ns;
            self.sleep_ns = policy.sleep_first_ns;
        }
        let idle_ns = now_ns.saturating_sub(self.worked_ns);
        if idle_ns < policy.spin_ns {
            return Rest::Spin;
        }
        if idle_ns - policy.spin_ns < policy.yield_ns {
            return Rest::Yield;
        }
        let ns = self.sleep_ns.min(due_ns.saturating_sub(now_ns));
        if ns == 0 {
            return Rest::Yield;
        }
        self.sleep_ns = match waiting {
            true => policy.sleep_first_ns,
            false => (self.sleep_ns * 2).min(policy.sleep_most_ns),
        };
        Rest::Sleep { ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        spin_ns: 10,
        yield_ns: 20,
        sleep_first_ns: 100,
        sleep_most_ns: 400,
    };

    #[test]
    fn spins_then_yields_then_sleeps_longer_and_longer_up_to_its_bound() {
        let mut pacer = Pacer::new(POLICY, 1000);
        let mut rest = |now, worked| pacer.rest(now, worked, false, u64::MAX);
        assert_eq!(rest(1009, false), Rest::Spin);
        assert_eq!(rest(1010, false), Rest::Yield);
        assert_eq!(rest(1029, false), Rest::Yield);
        let sleeps = [1030, 1130, 1330, 1730].map(|now| rest(now, false));
        assert_eq!(
            sleeps,
            [100, 200, 400, 400].map(|ns| Rest::Sleep { ns }),
            "doubled"
        );
        assert_eq!(rest(2000, true), Rest::Spin);
        assert_eq!(rest(2030, false), Rest::Sleep { ns: 100 }, "begins anew");
    }

    #[test]
    fn never_sleeps_past_what_is_due_and_not_longer_while_somebody_waits() {
        let mut pacer = Pacer::new(POLICY, 0);
        assert_eq!(
            pacer.rest(50, false, false, 80),
            Rest::Sleep { ns: 30 },
            "until it is due"
        );
        assert_eq!(pacer.rest(80, false, false, 80), Rest::Yield, "overdue");
        let mut pacer = Pacer::new(POLICY, 0);
        for now in [50, 150, 250, 350] {
            assert_eq!(
                pacer.rest(now, false, true, u64::MAX),
                Rest::Sleep { ns: 100 }
            );
        }
    }

    #[test]
    fn the_named_policies_do_what_their_names_say() {
        let after =
            |policy: Policy, idle_ns| Pacer::new(policy, 0).rest(idle_ns, false, false, u64::MAX);
        assert_eq!(after(Policy::SPIN, u64::MAX / 2), Rest::Spin);
        assert!(matches!(after(Policy::EVENT, 0), Rest::Sleep { .. }));
        assert_eq!(after(Policy::ADAPTIVE, 10_000), Rest::Spin);
        assert!(matches!(after(Policy::SCARCE, 10_000), Rest::Sleep { .. }));
        assert_eq!(Policy::named(Poll::Adaptive, usize::MAX), Policy::SCARCE);
        assert_eq!(Policy::named(Poll::Adaptive, 1), Policy::ADAPTIVE);
    }
}
