//! Sleeping that a file descriptor or another thread can end.
//!
//! # Ordering
//!
//! ```text
//! sleeper                               waker
//! S1  asleep := true                    W1  make the work visible
//! S2  fence            (SeqCst)         W2  fence            (SeqCst)
//! S3  look for work; sleep if none      W3  if asleep: clear it and write the event
//! ```
//!
//! The fences are totally ordered, so S3 sees the work of W1 or W3 sees the flag of S1: no wake-up is lost. A waker
//! whose sleeper is awake pays the fence and a load. Between the two steps of W3 the sleeper may have gone its way, and
//! the event comes when nobody sleeps: then it ends the next sleep at once, and is taken by that one.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::{TimeSpec, TimeValLike};

/// One thread's way to sleep and be woken.
#[derive(Debug)]
pub struct Waker {
    asleep: AtomicBool,
    event: EventFd,
}

impl Waker {
    /// Awake.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self {
            asleep: AtomicBool::new(false),
            event: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
        })
    }

    /// Ends a sleep, if there is one, or the one that is about to begin.
    #[inline]
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            self.rouse();
        }
    }

    #[cold]
    fn rouse(&self) {
        if self.asleep.swap(false, Ordering::Relaxed) {
            // It fails only when the counter is at its end, and then the event is there already.
            let _ = self.event.write(1);
        }
    }

    /// Sleeps for at most `ns`, unless `has_work` says that there is something to do. Also ends when one of `others`
    /// can be read.
    pub fn sleep(&self, ns: u64, others: Option<BorrowedFd<'_>>, has_work: impl FnOnce() -> bool) {
        let mut there = false;
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !has_work() {
            let wait = TimeSpec::nanoseconds(i64::try_from(ns).unwrap_or(i64::MAX));
            let fd = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut both = [
                fd(self.event.as_fd()),
                fd(others.unwrap_or(self.event.as_fd())),
            ];
            let fds = if others.is_some() {
                &mut both[..]
            } else {
                &mut both[..1]
            };
            // Interrupted or refused, the caller polls and comes back.
            let _ = ppoll(fds, Some(wait), None);
            there = fds[0].any().unwrap_or(false);
        }
        if !self.asleep.swap(false, Ordering::Relaxed) || there {
            let _ = self.event.read();
        }
    }
}

/// Asks the kernel to end this thread's sleeps on time instead of up to 50 us late. Where it does not, they are late.
pub fn sleep_precisely() {
    let _ = nix::sys::prctl::set_timerslack(1);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    const LONG_NS: u64 = 20_000_000_000;

    #[test]
    fn no_wake_up_is_lost() {
        let waker = Arc::new(Waker::new().expect("a descriptor"));
        let work = Arc::new(AtomicU64::new(0));
        let rounds = 20_000;
        let producer = {
            let (waker, work) = (Arc::clone(&waker), Arc::clone(&work));
            thread::spawn(move || {
                for round in 1..=rounds {
                    work.store(round, Ordering::Relaxed);
                    waker.wake();
                    while work.load(Ordering::Relaxed) != 0 {
                        thread::yield_now();
                    }
                }
            })
        };
        let begin = Instant::now();
        for _ in 0..rounds {
            while work.load(Ordering::Relaxed) == 0 {
                waker.sleep(LONG_NS, None, || work.load(Ordering::Relaxed) != 0);
            }
            work.store(0, Ordering::Relaxed);
        }
        producer.join().expect("the producer ends");
        assert!(
            begin.elapsed() < Duration::from_nanos(LONG_NS),
            "one lost wake-up would have slept for all of it"
        );
    }

    #[test]
    fn an_event_that_comes_too_late_ends_one_sleep_and_not_all() {
        let waker = Waker::new().expect("a descriptor");
        waker.event.write(1).expect("room for one");
        waker.sleep(LONG_NS, None, || false);
        let begin = Instant::now();
        waker.sleep(3_000_000, None, || false);
        let slept = begin.elapsed();
        assert!(slept >= Duration::from_millis(3), "{slept:?}");
    }

    #[test]
    fn a_sleep_ends_on_time_or_for_a_descriptor() {
        let waker = Waker::new().expect("a descriptor");
        let begin = Instant::now();
        waker.sleep(3_000_000, None, || false);
        let slept = begin.elapsed();
        assert!(slept >= Duration::from_millis(3), "{slept:?}");
        let ready = EventFd::from_value(1).expect("a descriptor");
        waker.sleep(LONG_NS, Some(ready.as_fd()), || false);
        assert!(begin.elapsed() < Duration::from_nanos(LONG_NS));
    }
}
