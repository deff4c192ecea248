//! Stops between two verbs: the driver gets a say before every call that a node's code makes on its device.
//!
//! A thread can be preempted anywhere, so a replica can be paused or killed between any two verbs of one poll. The
//! driver installs a hook for its thread; the hook may let the world go on for a while, others' code included, before
//! the call goes through, or [`freeze`](crate::World::freeze) the device, so that the call and all later ones do
//! nothing.

use std::cell::RefCell;
use std::rc::Rc;

/// What is about to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// A request is posted.
    Post,
    /// A completion queue is polled.
    Poll,
    /// A queue pair's state or rights change.
    Modify,
    /// A registration is made, changed or ended.
    Register,
    /// One of the last two is done, and the caller does not know it yet.
    Changed,
}

type Hook = Rc<dyn Fn(u64, Verb)>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Takes the hook out again when dropped.
#[must_use = "the hook is there as long as this lives"]
pub struct Hooked(());

/// Calls `hook` with the device's number before every verb on this thread. There is at most one.
///
/// # Panics
/// If there is one.
pub fn before_verbs(hook: impl Fn(u64, Verb) + 'static) -> Hooked {
    let old = HOOK.with_borrow_mut(|place| place.replace(Rc::new(hook)));
    assert!(old.is_none(), "two drivers on one thread");
    Hooked(())
}

impl Drop for Hooked {
    fn drop(&mut self) {
        HOOK.with_borrow_mut(|place| place.take());
    }
}

/// Called before every verb, with no lock held.
#[inline]
pub(crate) fn verb(device: u64, verb: Verb) {
    // Cloned, since the hook may run code that calls verbs.
    if let Some(hook) = HOOK.with_borrow(Clone::clone) {
        hook(device, verb);
    }
}
