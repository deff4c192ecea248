//! A turn of the server's event loop, between two waits for events: commands run, what they did is written to the
//! append-only file and flushed, and then replies leave.
//!
//! That order is Redis's own with `appendfsync always`, and all that this node relies on. Two rules follow:
//!
//! - [`decide`]: the flush returns when the turn's bytes are decided, or the process ends. So a reply never tells of an
//!   effect that is not decided, whoever's effect it is.
//! - [`before_reply`]: before the first byte for a client leaves after anything ran, this node has proved, later than
//!   that ran, that it leads; the flush is such a proof. So a leader without its office answers nothing: whatever
//!   another one decided, it decided after the proof, and so after the read.
//!
//! A follower's server gets its bytes from the log, so what it writes is dropped; only which database its file has
//! selected is kept, for the time when the file becomes the stream.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::hooks_raw;
use crate::node::{self, Mode};
use crate::resp;

/// The server's thread; 0 before it is known, and in a forked child.
static MAIN: AtomicU64 = AtomicU64::new(0);
/// Something ran since this node proved its leadership.
static UNPROVED: AtomicBool = AtomicBool::new(true);

static TURN: Mutex<Turn> = Mutex::new(Turn {
    bytes: Vec::new(),
    file_selected: None,
    begun_selected: None,
});

struct Turn {
    /// One byte of room, then what was written.
    bytes: Vec<u8>,
    /// The database that the append-only file has selected.
    file_selected: Option<u32>,
    /// The same before this turn.
    begun_selected: Option<u32>,
}

/// The stream has been told that database. No part of the turn: another thread changes it, with the server's global
/// lock, and must not wait for a turn.
static TOLD: AtomicBool = AtomicBool::new(false);

/// A buffer that grew larger than this is given back.
const KEPT_BYTES: usize = 1 << 20;

/// This is the server's thread.
pub(crate) fn enter() {
    MAIN.store(hooks_raw::this_thread(), Ordering::Relaxed);
}

/// This process is a forked child.
pub(crate) fn leave() {
    MAIN.store(0, Ordering::Relaxed);
}

/// Whether this is the server's thread.
#[inline]
pub(crate) fn is_main() -> bool {
    MAIN.load(Ordering::Relaxed) == hooks_raw::this_thread()
}

/// A turn begins.
#[inline]
pub(crate) fn begin() {
    if is_main() {
        executed();
    }
}

/// A command runs.
#[inline]
pub(crate) fn executed() {
    UNPROVED.store(true, Ordering::Relaxed);
}

/// Takes what is written to the append-only file.
pub(crate) fn collect(bytes: &[u8]) {
    if bytes.is_empty() {
        // A turn without bytes would pass as decided, and so as a proof.
        return;
    }
    let mut turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if turn.bytes.is_empty() {
        turn.bytes.push(0);
        turn.begun_selected = turn.file_selected;
    }
    match resp::selected(bytes, turn.file_selected) {
        Some(selected) => turn.file_selected = selected,
        None => node::end("the append-only file got bytes that are no commands"),
    }
    turn.bytes.extend_from_slice(bytes);
}

/// The next turn begins with the database of its first command. A primary's RDB file tells none, or the one that its
/// attached replicas have selected, and not the stream's. Called with the server's global lock, between two turns.
pub(crate) fn say_database_again() {
    TOLD.store(false, Ordering::SeqCst);
}

/// Returns when what was collected is decided.
pub(crate) fn decide() {
    let mut turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if turn.bytes.is_empty() {
        return;
    }
    if let Some(node) = node::get()
        && node.mode() == Mode::Leader
    {
        if !TOLD.swap(true, Ordering::SeqCst)
            && let Some(db) = turn.begun_selected
        {
            // The stream may have selected another one: a command that did nothing here is not in this file. So may a
            // dataset that this primary has given.
            let select = resp::command(&[b"SELECT", db.to_string().as_bytes()]);
            turn.bytes.splice(1..1, select);
        }
        node.decide(&mut turn.bytes);
        UNPROVED.store(false, Ordering::Relaxed);
    }
    match turn.bytes.capacity() > KEPT_BYTES {
        true => turn.bytes = Vec::new(),
        false => turn.bytes.clear(),
    }
}

/// Before bytes leave for a client.
#[inline]
pub(crate) fn before_reply() {
    if !UNPROVED.load(Ordering::Relaxed) {
        return;
    }
    if let Some(node) = node::get()
        && node.mode() == Mode::Leader
    {
        node.prove();
    }
    UNPROVED.store(false, Ordering::Relaxed);
}
