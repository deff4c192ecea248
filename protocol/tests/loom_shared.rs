//! Models of the words that the two engines of a replica share: the promise against the leader's own log, the holder of
//! the right against the standing, and who holds a log link against its next connection. All are a store and a later
//! load on each side, which only the fences order.
#![cfg(loom)]

#[path = "../../softrdma/tests/models/mod.rs"]
mod models;

use std::sync::Arc;

use loom::thread;
use models::{caught, holds};
use mu_protocol::ids::{Epoch, ReplicaId};
use mu_protocol::layout::{Role, Standing, public};
use mu_protocol::limits::PUBLIC_WORDS;
use mu_protocol::shared::{Board, Shared};
use mu_verbs::sync::{Ordering, Weakness, weaken};
use mu_verbs::{Memory, WORD};

const OWN: Epoch = Epoch(0x10);
const OTHER: Epoch = Epoch(0x21);
/// What the leader writes into its own log.
const ENTRY: u64 = 7;

fn memory(words: usize) -> Memory {
    Memory::anonymous(words * WORD).expect("a few words")
}

/// A leader writes an entry into its own log and counts it; the background engine of the same replica promises another
/// epoch, whose leader then reads the log. If the entry was counted, it must be found.
fn own_entry(weakness: Weakness) {
    weaken(weakness);
    let (shared, log) = (Arc::new(Shared::new()), memory(1));
    shared.promise(OWN);
    let leader = {
        let (shared, log) = (Arc::clone(&shared), log.clone());
        thread::spawn(move || {
            log.store(0, ENTRY);
            shared.own_log_written();
            shared.still_promised(OWN)
        })
    };
    shared.promise(OTHER);
    let found = log.load(0) == ENTRY;
    let counted = leader.join().expect("the leader ends");
    assert!(
        found || !counted,
        "counted, and the next leader does not find it"
    );
}

#[test]
fn what_the_leader_counts_as_its_own_the_next_one_finds() {
    holds("shared: own entry against promise", None, || {
        own_entry(Weakness::None)
    });
    caught("shared: own entry against promise, NoFences", || {
        own_entry(Weakness::NoFences)
    });
}

/// The same with two entries that are under way together and two promises. `looked_after`: the second entry is followed
/// by a fence of its own.
fn own_entries(weakness: Weakness, looked_after: bool) {
    weaken(weakness);
    let (shared, log) = (Arc::new(Shared::new()), memory(2));
    shared.promise(OWN);
    let leader = {
        let (shared, log) = (Arc::clone(&shared), log.clone());
        thread::spawn(move || {
            for at in [0, 1] {
                log.store(at, ENTRY);
                if at == 0 || looked_after {
                    shared.own_log_written();
                }
            }
            [0, 1].map(|_| shared.still_promised(OWN))
        })
    };
    shared.promise(OTHER);
    let found = [0, 1].map(|at| log.load(at) == ENTRY);
    let counted = leader.join().expect("the leader ends");
    assert!(!counted[1] || counted[0], "a promise does not come back");
    for at in [0, 1] {
        assert!(
            found[at] || !counted[at],
            "entry {at} is counted and not found"
        );
    }
}

#[test]
fn every_entry_is_looked_after_by_itself() {
    holds("shared: two own entries against promise", None, || {
        own_entries(Weakness::None, true)
    });
    caught("shared: two own entries against promise, NoFences", || {
        own_entries(Weakness::NoFences, true)
    });
    caught(
        "shared: two own entries, one fence before both stand",
        || own_entries(Weakness::None, false),
    );
}

/// A replica gives its standing up and then looks who may write its log; the background engine names a holder and then
/// looks at the standing before it grants. Not both may go ahead.
fn holder(weakness: Weakness) {
    weaken(weakness);
    let shared = Arc::new(Shared::new());
    let board = Board {
        memory: memory(PUBLIC_WORDS),
        outbox: memory(1),
    };
    let standing = |role| Standing { role, voter: false }.to_word();
    board.set_public(public::STANDING, standing(Role::Learner));
    let granter = {
        let (shared, board) = (Arc::clone(&shared), board.clone());
        thread::spawn(move || {
            shared.set_holder(ReplicaId::new(1));
            Standing::from_word(board.public(public::STANDING)).role >= Role::Learner
        })
    };
    board.set_public(public::STANDING, standing(Role::Recovering));
    let nobody = shared.holder().is_none();
    let granted = granter.join().expect("the granter ends");
    assert!(
        !(nobody && granted),
        "granted, while the log is taken for nobody's"
    );
}

#[test]
fn a_log_that_is_nobodys_stays_so() {
    holds("shared: holder against standing", None, || {
        holder(Weakness::None)
    });
    caught("shared: holder against standing, NoFences", || {
        holder(Weakness::NoFences)
    });
}

/// A leader takes a link's connection up and posts on it; the background engine finds the connection broken and makes
/// another one as soon as the link is free. What was meant for the old one must not go out over the new one.
/// `too_soon`: the connector does not look whether the link is free.
fn link(weakness: Weakness, too_soon: bool) {
    const OLD: u64 = 1;
    const NEW: u64 = 2;
    weaken(weakness);
    let peer = ReplicaId::new(1).expect("an id");
    let (shared, connection) = (Arc::new(Shared::new()), memory(1));
    let generation = |shared: &Shared, number| {
        let word = &shared.peer(peer).log_generation;
        word.store(number, Ordering::Release);
    };
    connection.store(0, OLD);
    generation(&shared, OLD);
    let poster = {
        let (shared, connection) = (Arc::clone(&shared), connection.clone());
        thread::spawn(move || {
            // What is posted goes out over the connection that the queue pair has by then.
            let over = shared.hold_link(peer, OLD).then(|| connection.load(0));
            shared.let_link_go(peer);
            over
        })
    };
    generation(&shared, 0);
    if too_soon || shared.is_link_free(peer) {
        connection.store(0, NEW);
        generation(&shared, NEW);
    }
    let over = poster.join().expect("the poster ends");
    assert_ne!(over, Some(NEW), "a stray");
}

#[test]
fn no_request_goes_out_over_the_next_connection() {
    holds(
        "shared: a link's holder against its next connection",
        None,
        || link(Weakness::None, false),
    );
    caught("shared: a link's holder, NoFences", || {
        link(Weakness::NoFences, false)
    });
    caught("shared: a link's holder is not asked", || {
        link(Weakness::None, true)
    });
}
