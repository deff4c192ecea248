//! A callback's reach. While one runs, its thread has an active scope: what it may write to or read from, under a
//! number that is good for this one call. A number that is kept longer or used by another thread is found out, and so
//! is a call that would wait for the thread it is on.
//!
//! A thread that ends loses its scope before the last of its destructors has run. Those may still call in; callbacks
//! do not run on such a thread any more.

use std::cell::RefCell;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::code::Fault;

/// What the running callback may use.
#[derive(Debug, Default)]
enum Scope {
    /// No callback runs.
    #[default]
    Outside,
    /// One that can neither write nor read.
    Plain,
    Sink {
        token: u64,
        bytes: Vec<u8>,
    },
    Source {
        token: u64,
        bytes: Vec<u8>,
        at: usize,
    },
}

struct Local {
    scope: Scope,
    next: u64,
}

/// Numbers of one thread; no program has so many threads or callbacks that they meet.
const NUMBERS: u64 = 1 << 40;
/// No number of a callback.
const NOWHERE: u64 = 0;
static THREADS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static LOCAL: RefCell<Local> = RefCell::new(Local {
        scope: Scope::Outside,
        next: THREADS.fetch_add(1, Ordering::Relaxed).wrapping_mul(NUMBERS) + 1,
    });
}

fn enter(make: impl FnOnce(u64) -> Scope) -> u64 {
    let entered = with(|local| {
        let token = local.next;
        local.next += 1;
        local.scope = make(token);
        token
    });
    entered.unwrap_or(NOWHERE)
}

fn leave() -> Scope {
    with(|local| mem::take(&mut local.scope)).unwrap_or_default()
}

/// `None` on a thread that ends.
fn with<R>(look: impl FnOnce(&mut Local) -> R) -> Option<R> {
    LOCAL.try_with(|local| look(&mut local.borrow_mut())).ok()
}

/// Whether callbacks can run on the calling thread.
pub(crate) fn is_there() -> bool {
    with(|_| ()).is_some()
}

/// Runs a callback that only gets values.
pub(crate) fn plain<R>(call: impl FnOnce() -> R) -> R {
    enter(|_| Scope::Plain);
    let result = call();
    leave();
    result
}

/// Runs a callback that appends to `out`.
pub(crate) fn writing<R>(out: &mut Vec<u8>, call: impl FnOnce(u64) -> R) -> R {
    let bytes = mem::take(out);
    let token = enter(|token| Scope::Sink { token, bytes });
    let result = call(token);
    if let Scope::Sink { bytes, .. } = leave() {
        *out = bytes;
    }
    result
}

/// Runs a callback that reads from a copy of `bytes`.
pub(crate) fn reading<R>(bytes: &[u8], call: impl FnOnce(u64) -> R) -> R {
    let bytes = bytes.to_vec();
    let token = enter(|token| Scope::Source {
        token,
        bytes,
        at: 0,
    });
    let result = call(token);
    leave();
    result
}

/// Whether the calling thread is inside of a callback.
pub(crate) fn is_inside() -> bool {
    with(|local| !matches!(local.scope, Scope::Outside)).unwrap_or(false)
}

/// The fault of a number that is not the running callback's.
fn stale<R>(what: &str) -> Result<R, Fault> {
    let text = format!("the {what} is not the one of the callback that this thread is in");
    Err(Fault::misuse(text))
}

/// Appends to the running callback's sink.
pub(crate) fn write(sink: u64, more: &[u8]) -> Result<(), Fault> {
    let written = with(|local| match &mut local.scope {
        Scope::Sink { token, bytes } if *token == sink => {
            bytes.extend_from_slice(more);
            Ok(())
        }
        _ => stale("sink"),
    });
    written.unwrap_or_else(|| stale("sink"))
}

/// Hands at most `most` of what the running callback's source still has to `take`.
pub(crate) fn read(source: u64, most: usize, take: impl FnOnce(&[u8])) -> Result<(), Fault> {
    let read = with(|local| match &mut local.scope {
        Scope::Source { token, bytes, at } if *token == source => {
            let end = bytes.len().min(at.saturating_add(most));
            take(&bytes[*at..end]);
            *at = end;
            Ok(())
        }
        _ => stale("source"),
    });
    read.unwrap_or_else(|| stale("source"))
}

/// How much the running callback's source still has.
pub(crate) fn left(source: u64) -> Result<usize, Fault> {
    let left = with(|local| match &local.scope {
        Scope::Source { token, bytes, at } if *token == source => Ok(bytes.len() - at),
        _ => stale("source"),
    });
    left.unwrap_or_else(|| stale("source"))
}
