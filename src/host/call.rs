//! One call from a thread to the replication thread, and its answer.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::Instant;

use super::common::lock;
use super::error::ProposeError;

type Outcome<T> = Result<T, ProposeError>;

/// The waiter and the answerer each set one thing and then look for the other's, with a fence between, so the answer is
/// seen or the waiter is woken.
struct Call<T> {
    ready: AtomicBool,
    outcome: Mutex<Option<Outcome<T>>>,
    waiter: Mutex<Option<Thread>>,
}

/// Looks this often for an answer before it sleeps.
const SPINS: u32 = 200;

/// A call that waits for its answer.
pub struct Pending<T>(Arc<Call<T>>);

/// Whoever answers. If it is dropped without, for the replica panicked, the answer is the error it was made with.
pub(crate) struct Answer<T> {
    call: Arc<Call<T>>,
    if_dropped: Option<ProposeError>,
}

pub(crate) fn call<T>(if_dropped: ProposeError) -> (Pending<T>, Answer<T>) {
    let call = Arc::new(Call {
        ready: AtomicBool::new(false),
        outcome: Mutex::new(None),
        waiter: Mutex::new(None),
    });
    let pending = Pending(Arc::clone(&call));
    let if_dropped = Some(if_dropped);
    (pending, Answer { call, if_dropped })
}

impl<T> Pending<T> {
    /// The outcome, once; `None` before it is there.
    pub fn poll(&mut self) -> Option<Result<T, ProposeError>> {
        if !self.0.ready.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.0.outcome).take()
    }

    /// Waits for the outcome. It always comes: a leader without a majority gives up after a time, and one that stops
    /// says so.
    ///
    /// # Panics
    /// If [`poll`](Self::poll) has given it already.
    pub fn wait(mut self) -> Result<T, ProposeError> {
        if !self.spin() {
            self.park(None);
        }
        self.poll().expect("an outcome is taken once")
    }

    /// Waits for the outcome until a moment; gives the call back if there is none by then.
    ///
    /// # Errors
    /// The call itself, to be polled or waited for later.
    ///
    /// # Panics
    /// If [`poll`](Self::poll) has given it already.
    pub fn wait_until(mut self, deadline: Instant) -> Result<Result<T, ProposeError>, Self> {
        if !self.spin() && !self.park(Some(deadline)) {
            return Err(self);
        }
        Ok(self.poll().expect("an outcome is taken once"))
    }

    fn spin(&self) -> bool {
        for _ in 0..SPINS {
            if self.0.ready.load(Ordering::Acquire) {
                return true;
            }
            std::hint::spin_loop();
        }
        self.0.ready.load(Ordering::Acquire)
    }

    /// Sleeps until the outcome is there; false if the moment comes first.
    fn park(&self, deadline: Option<Instant>) -> bool {
        *lock(&self.0.waiter) = Some(thread::current());
        fence(Ordering::SeqCst);
        while !self.0.ready.load(Ordering::Acquire) {
            match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => thread::park(),
                Some(left) if left.is_zero() => return false,
                Some(left) => thread::park_timeout(left),
            }
        }
        true
    }
}

impl<T> Answer<T> {
    pub(crate) fn give(mut self, outcome: Result<T, ProposeError>) {
        self.if_dropped = None;
        self.set(outcome);
    }

    fn set(&self, outcome: Outcome<T>) {
        *lock(&self.call.outcome) = Some(outcome);
        self.call.ready.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        if let Some(waiter) = lock(&self.call.waiter).as_ref() {
            waiter.unpark();
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        if let Some(error) = self.if_dropped.take() {
            self.set(Err(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn answers_reach_waiters_however_they_race() {
        for round in 0..2000_u32 {
            let (pending, answer) = call(ProposeError::Unknown);
            let answerer = thread::spawn(move || {
                for _ in 0..round % 300 {
                    std::hint::spin_loop();
                }
                answer.give(Ok(round));
            });
            assert_eq!(pending.wait(), Ok(round));
            answerer.join().expect("it ends");
        }
    }

    #[test]
    fn a_wait_ends_at_its_moment_and_another_thread_waits_on() {
        let (pending, answer) = call(ProposeError::Unknown);
        let begin = Instant::now();
        let patience = Duration::from_millis(3);
        let pending = pending
            .wait_until(begin + patience)
            .expect_err("no outcome yet");
        assert!(begin.elapsed() >= patience);
        let waiter = thread::spawn(move || pending.wait());
        answer.give(Ok(7));
        assert_eq!(waiter.join().expect("it ends"), Ok(7));
    }

    #[test]
    fn an_answer_that_is_dropped_is_unknown() {
        let (mut pending, answer) = call::<()>(ProposeError::Unknown);
        assert_eq!(pending.poll(), None);
        drop(answer);
        assert_eq!(pending.poll(), Some(Err(ProposeError::Unknown)));
    }
}
