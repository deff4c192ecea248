//! One call from a thread to the replication thread, and its answer.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, Thread};

use super::common::lock;
use super::error::ProposeError;

type Outcome<T> = Result<T, ProposeError>;

/// The waiter and the answerer each set one thing and then look for the other's, with a fence between, so the answer is
/// seen or the waiter is woken.
struct Call<T> {
    ready: AtomicBool,
    outcome: Mutex<Option<Outcome<T>>>,
    waiter: OnceLock<Thread>,
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
        waiter: OnceLock::new(),
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
        for _ in 0..SPINS {
            if self.0.ready.load(Ordering::Acquire) {
                break;
            }
            std::hint::spin_loop();
        }
        if !self.0.ready.load(Ordering::Acquire) {
            let _ = self.0.waiter.set(thread::current());
            fence(Ordering::SeqCst);
            while !self.0.ready.load(Ordering::Acquire) {
                thread::park();
            }
        }
        self.poll().expect("an outcome is taken once")
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
        if let Some(waiter) = self.call.waiter.get() {
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
    fn an_answer_that_is_dropped_is_unknown() {
        let (mut pending, answer) = call::<()>(ProposeError::Unknown);
        assert_eq!(pending.poll(), None);
        drop(answer);
        assert_eq!(pending.poll(), Some(Err(ProposeError::Unknown)));
    }
}
