//! The gate: how a revocation is sure that nothing lands after it.
//!
//! A queue pair has two words. The *permission* word belongs to the target: only it writes there what its peer may do.
//! The *sequence* word belongs to the peer's one posting thread: odd while it copies, even otherwise.
//!
//! ```text
//! writer, per chunk                         revoker
//! W1  seq := odd            (Release)       R1  permission := less   (Release)
//! W2  fence                 (SeqCst)        R2  fence                (SeqCst)
//! W3  load permission       (Acquire)       R3  load seq             (Acquire)
//! W4  copy, if it allows    (Release each)  R4  odd: wait until it *changes*
//! W5  seq := even           (Release)
//! ```
//!
//! The two fences are totally ordered. If W2 is first, R3 sees at least the odd value of W1 and R4 waits for W5, whose
//! Release makes the copied words visible: they landed before the revocation returned. If R2 is first, W3 sees R1 and
//! the copy does not happen. Either way nothing lands afterwards. R4 waits for a change and not for an even value, so
//! a writer that goes on posting (and is refused each time) cannot hold the revoker up. W1 is a Release store because
//! the revoker may see the *next* odd value instead of W5's even one: that value must carry the finished copy as
//! well.
//!
//! A writer that stops inside W4 leaves the sequence odd. [`quiesce`] then reports a stall, and the caller has to
//! fence it by other means or wait for its death; it must not grant the right again while the sequence is odd.

use crate::sync::{Ordering, Word, fence};

/// Runs `chunk` between W1 and W5. It must check the permission (W3) before it touches memory. If it unwinds, the
/// sequence ends even all the same.
#[inline]
pub fn enter<R>(seq: &Word, chunk: impl FnOnce() -> R) -> R {
    let inside = begin(seq);
    let result = chunk();
    drop(inside);
    result
}

/// W1 and W2. Dropping the guard is W5; forgetting it is what a writer does that dies in mid-copy.
#[inline]
pub fn begin(seq: &Word) -> Inside<'_> {
    let odd = seq.load(Ordering::Relaxed).wrapping_add(1) | 1;
    seq.store(odd, Ordering::Release);
    fence(Ordering::SeqCst);
    Inside {
        seq,
        even: odd.wrapping_add(1),
    }
}

/// A writer between W1 and W5.
pub struct Inside<'a> {
    seq: &'a Word,
    even: u64,
}

impl Drop for Inside<'_> {
    #[inline]
    fn drop(&mut self) {
        self.seq.store(self.even, Ordering::Release);
    }
}

/// R1 and R2: stores a permission (or the state of a region) that the writer checks in W3.
#[inline]
pub fn revoke(permission: &Word, less: u64) {
    permission.store(less, Ordering::Release);
    fence(Ordering::SeqCst);
}

/// Whether the writer is inside a copy.
#[inline]
pub fn is_busy(seq: &Word) -> bool {
    seq.load(Ordering::Acquire) & 1 == 1
}

/// R3 and R4: waits until no copy that started under the old permission is under way. `wait` is called while it is, and
/// ends the wait by returning a value, which is then given back as the stall.
///
/// # Errors
/// What `wait` returned: the writer is still inside the same copy.
#[inline]
pub fn quiesce<S>(seq: &Word, mut wait: impl FnMut() -> Option<S>) -> Result<(), S> {
    let seen = seq.load(Ordering::Acquire);
    if seen & 1 == 0 {
        return Ok(());
    }
    loop {
        if seq.load(Ordering::Acquire) != seen {
            return Ok(());
        }
        if let Some(stall) = wait() {
            return Err(stall);
        }
    }
}
