//! The background engine over the software backend: connections, detection, permissions, election, and what the bug
//! zoo makes of each.

mod group;
mod shaken;

use std::time::Instant;

use group::{BEAT, Group, STEP_NS, WRITTEN_AT, id};
use mu_protocol::background::ControlRefused;
use mu_protocol::check::mix;
use mu_protocol::ids::Epoch;
use mu_protocol::layout::{Role, alive, board_row, public, row};
use mu_protocol::limits::ROW_WORDS;
use mu_protocol::message::Link;
use mu_protocol::shared::Halt;
use mu_protocol::zoo::{Bug, Seeded, Sound, Zoo};
use mu_verbs::sync::Ordering;

#[test]
fn all_connect_and_the_lowest_leads_with_the_votes_of_all() {
    for n in [1, 2, 3, 5, 9] {
        let mut group = Group::led(n, Sound);
        assert_eq!(
            (group.leaders(), group.elections()),
            (vec![0], 1),
            "{n} replicas"
        );
        let epoch = group.node(0).shared.candidate();
        group.until("sight of all", 20 * BEAT, |group| {
            (0..n).all(|m| alive(group.node(m).board.public(public::ALIVE)).len() == n)
        });
        for m in 0..n {
            let node = group.node(m);
            assert_eq!(node.shared.promised(), epoch);
            assert_eq!(node.shared.holder(), Some(id(0)));
            let acks = node.acks(epoch);
            assert_eq!(acks.len(), if m == 0 { n - 1 } else { 0 });
            assert!(
                acks.iter()
                    .all(|(_, ack)| ack.voter && ack.promised == epoch)
            );
        }
    }
}

/// Heartbeats from the death of the leader to the request of the next, and whether it came to lead.
fn takeover<Z: Zoo>(zoo: Z, limit: usize) -> Option<usize> {
    let mut group = Group::led(3, zoo);
    group.run(20 * BEAT);
    group.kill(0);
    for step in 0..limit {
        if group.node(1).shared.candidate() != Epoch::NONE {
            let asked = group.node(2).board.mail(id(1), row::REQUEST);
            assert_eq!(
                asked,
                group.node(1).shared.candidate().0,
                "asked in the same poll"
            );
            group.until("the next leader", 2 * BEAT, |group| group.leaders() == [1]);
            assert_eq!(group.node(2).background.counters().elections, 0);
            return Some(step.div_ceil(BEAT));
        }
        group.step();
    }
    None
}

#[test]
fn a_killed_leader_is_replaced_within_few_heartbeats() {
    let beats = takeover(Sound, 1_000).expect("a successor");
    assert!(beats <= 3, "{beats} heartbeats");
    assert_eq!(
        takeover(Seeded(Some(Bug::ReadFailureIsAlive)), 1_000 * BEAT),
        None
    );
}

/// Whether the replication engine's standstill costs a replica the leadership.
fn stuck_leader_is_replaced<Z: Zoo>(zoo: Z) -> bool {
    let mut group = Group::led(3, zoo);
    group.node(0).stuck = true;
    group.run(400 * BEAT);
    group.node(1).leads() && group.node(0).shared.promised() == group.node(1).shared.candidate()
}

#[test]
fn a_replica_whose_replication_engine_is_stuck_shares_its_fate() {
    assert!(stuck_leader_is_replaced(Sound));
    assert!(!stuck_leader_is_replaced(Seeded(Some(Bug::NoFateSharing))));
}

/// Deposes leader 0 by a handover to 1. How the old leader's write to 2 ends after 2 has acknowledged 1, and what 2
/// has.
fn deposed_write<Z: Zoo>(zoo: Z) -> (bool, u64) {
    let mut group = Group::led(3, zoo);
    let old = group.node(0).shared.candidate();
    let ack = group.node(0).acks(old)[1].1;
    assert!(group.node(0).write(2, &ack, 7).is_success());
    assert_eq!(group.node(2).log.load(WRITTEN_AT), 7);
    group.node(0).shared.hand_over(Some(id(1)));
    group.until("the acknowledgement", 200, |group| {
        let epoch = group.node(1).shared.candidate();
        epoch != Epoch::NONE
            && group
                .node(1)
                .acks(epoch)
                .iter()
                .any(|(peer, _)| *peer == id(2))
    });
    let status = group.node(0).write(2, &ack, 8);
    (status.is_success(), group.node(2).log.load(WRITTEN_AT))
}

#[test]
fn the_deposed_holder_writes_nothing_after_the_acknowledgement() {
    assert_eq!(deposed_write(Sound), (false, 7));
    assert_eq!(
        deposed_write(Seeded(Some(Bug::GrantWithoutRevoke))),
        (true, 8)
    );
}

#[test]
fn leadership_is_handed_over_once_and_nobody_takes_it_back() {
    let mut group = Group::led(5, Sound);
    let old = group.node(0).shared.candidate();
    group.node(0).shared.hand_over(Some(id(3)));
    group.until("the successor", 200, |group| group.leaders() == [3]);
    group.node(0).shared.hand_over(None);
    assert_eq!(group.node(0).shared.candidate(), Epoch::NONE);
    assert!(group.node(3).shared.candidate() > old);
    group.run(500 * BEAT);
    assert_eq!((group.leaders(), group.elections()), (vec![3], 2));
    assert_eq!(
        group.node(3).board.mail(id(0), row::HANDOVER),
        0,
        "the word is taken back"
    );
}

#[test]
fn a_broken_log_link_is_made_anew_and_the_same_request_granted_again() {
    let mut group = Group::led(3, Sound);
    let epoch = group.node(0).shared.candidate();
    let first = group.node(0).acks(epoch)[0].1;
    for granter in [false, true] {
        let before = group.node(0).acks(epoch)[0].1;
        if granter {
            // Nobody reports it: the engine itself looks at its queue pairs now and then.
            group.node(1).break_log_link(0);
        } else {
            group.node(0).break_log_link(1);
            let peer = group.node(0).shared.peer(id(1));
            peer.log_fault
                .store(before.generation.into(), Ordering::Release);
        }
        group.until("another grant", 200 * BEAT, |group| {
            let acks = group.node(0).acks(epoch);
            acks.iter()
                .any(|(peer, ack)| *peer == id(1) && ack.generation > before.generation)
        });
        let ack = group.node(0).acks(epoch)[0].1;
        assert!(group.node(0).write(1, &ack, 9).is_success());
    }
    let counters = group.node(1).background.counters();
    assert_eq!((counters.grants, counters.grants_again), (1, 2));
    assert!(counters.resets[Link::Log as usize] >= 2);
    assert_eq!(group.elections(), 1, "nobody loses the leadership by it");
    assert!(first.generation < group.node(0).acks(epoch)[0].1.generation);
}

#[test]
fn another_life_starts_with_nothing_and_is_asked_anew() {
    let mut group = Group::led(3, Sound);
    let epoch = group.node(0).shared.candidate();
    // A word of the old life in the leader's mailbox.
    group
        .node(2)
        .board
        .set_out(id(0), row::SNAPSHOT_REQUEST, 77);
    group
        .node(2)
        .shared
        .peer(id(0))
        .outbox_changes
        .store(1, Ordering::Release);
    group.until("the word", 50, |group| {
        group.node(0).board.mail(id(2), row::SNAPSHOT_REQUEST) == 77
    });
    group.kill(2);
    group.until("its death", 5 * BEAT, |group| {
        !group.node(0).shared.peer(id(2)).is_alive()
    });
    group.run(10 * BEAT);
    group.start(2, Role::Recovering, false);
    group.step();
    let start = board_row(id(2));
    let row: Vec<u64> = (start..start + ROW_WORDS)
        .map(|word| group.node(0).board.memory.load(word))
        .collect();
    assert_eq!(row, [0; ROW_WORDS], "nothing of the old life is left");
    assert_eq!(
        group.node(0).shared.peer(id(2)).public(public::INCARNATION),
        0
    );
    group.until("its new life", 50 * BEAT, |group| {
        let peer = group.node(0).shared.peer(id(2));
        peer.is_alive() && peer.public(public::INCARNATION) == 1004
    });
    assert_eq!(
        group.node(2).board.mail(id(0), row::REQUEST),
        epoch.0,
        "asked again"
    );
}

/// Whether a replica without memory gives the leader an acknowledgement, and whether that has a vote.
fn recovering_grants<Z: Zoo>(zoo: Z) -> Option<bool> {
    let mut group = Group::led(3, zoo);
    let epoch = group.node(0).shared.candidate();
    group.kill(2);
    group.run(10 * BEAT);
    group.start(2, Role::Recovering, false);
    group.run(200 * BEAT);
    assert_eq!(group.leaders(), [0]);
    let acks = group.node(0).acks(epoch);
    acks.iter()
        .find(|(peer, _)| *peer == id(2))
        .map(|(_, ack)| ack.voter)
}

#[test]
fn without_memory_it_grants_nothing_and_as_a_learner_without_a_vote() {
    assert_eq!(recovering_grants(Sound), None);
    assert_eq!(
        recovering_grants(Seeded(Some(Bug::AmnesiacVotes))),
        Some(true)
    );

    let mut group = Group::led(3, Sound);
    let epoch = group.node(0).shared.candidate();
    group.node(2).rest_as(Role::Recovering, false);
    group.until("nobody who may write", 5 * BEAT, |group| {
        group.node(2).shared.holder().is_none()
    });
    let stale = group.node(0).acks(epoch)[1].1;
    assert!(
        !group.node(0).write(2, &stale, 5).is_success(),
        "its right went with the standing"
    );
    let peer = group.node(0).shared.peer(id(2));
    peer.log_fault
        .store(stale.generation.into(), Ordering::Release);
    group.run(50 * BEAT);
    assert_eq!(group.node(0).acks(epoch).len(), 1);
    group.node(2).rest_as(Role::Learner, false);
    group.until("a learner's grant", 50 * BEAT, |group| {
        group.node(0).acks(epoch).len() == 2
    });
    assert!(!group.node(0).acks(epoch)[1].1.voter);
}

#[test]
fn a_half_cut_network_does_not_flap() {
    let mut group = Group::led(3, Sound);
    group.run(20 * BEAT);
    for follower in [1, 2] {
        group.cut(0, follower);
        group.run(2_000 * BEAT);
        assert!(!group.node(follower).shared.peer(id(0)).is_alive());
        assert_eq!(
            (group.leaders(), group.elections()),
            (vec![0], 1),
            "0 still has a majority"
        );
        group.heal();
        group.until("sight of each other", 100 * BEAT, |group| {
            group.node(follower).shared.peer(id(0)).is_alive()
        });
        assert_eq!((group.leaders(), group.elections()), (vec![0], 1));
    }
    // The control: cut off from both, it is replaced.
    group.cut(0, 2);
    group.cut(0, 1);
    group.until("another leader", 50 * BEAT, |group| group.node(1).leads());
}

#[test]
fn who_sees_no_majority_raises_no_epoch() {
    let mut group = Group::led(3, Sound);
    group.run(20 * BEAT);
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        group.cut(a, b);
    }
    let promised = |group: &mut Group<Sound>| -> Vec<_> {
        (0..3).map(|n| group.node(n).shared.promised()).collect()
    };
    let before = promised(&mut group);
    group.run(1_000 * BEAT);
    assert_eq!((group.elections(), promised(&mut group)), (1, before));
    group.heal();
    group.run(200 * BEAT);
    assert_eq!(
        group.leaders(),
        [0],
        "it goes on when they see each other again"
    );
}

#[test]
fn an_own_pause_is_not_counted_against_the_others() {
    let mut group = Group::led(3, Sound);
    group.run(20 * BEAT);
    for _ in 0..50 {
        group
            .nodes
            .iter_mut()
            .flatten()
            .for_each(|node| node.paused = true);
        group.run(100 * BEAT);
        // Everybody comes back, one after the other.
        for n in [2, 1, 0] {
            group.node(n).paused = false;
            group.run(2 * BEAT);
        }
        group.run(20 * BEAT);
    }
    assert_eq!((group.leaders(), group.elections()), (vec![0], 1));
    assert!(group.node(1).background.counters().stalls >= 50);
    // The control: the leader alone pauses as long.
    group.node(0).paused = true;
    group.until("another leader", 50 * BEAT, |group| group.node(1).leads());
}

#[test]
fn the_one_with_another_state_halts() {
    let mut group = Group::led(3, Sound);
    let publish = |group: &mut Group<Sound>, n: usize, digest: u64| {
        let board = &group.node(n).board;
        board.set_public(public::DIGEST, 64);
        board.set_public(public::DIGEST + 1, digest);
        board.set_public(public::DIGEST + 2, mix([64, digest]));
    };
    (0..3).for_each(|n| publish(&mut group, n, 5));
    group.run(20 * BEAT);
    assert!((0..3).all(|n| group.node(n).shared.halted().is_none()));
    publish(&mut group, 1, 6);
    group.run(20 * BEAT);
    let halted: Vec<_> = (0..3).map(|n| group.node(n).shared.halted()).collect();
    assert_eq!(halted, [None, Some(Halt::Diverged), None]);
}

#[test]
fn nonsense_on_the_control_connection_is_refused_with_the_reason() {
    let mut group = Group::led(3, Sound);
    let now_ns = group.now_ns;
    let mut hello = group.node(1).background.hello(id(0));
    hello[16] ^= 8;
    let engine = &mut group.node(0).background;
    let ring = engine
        .control_up(id(1), &hello, now_ns)
        .expect_err("another ring");
    let text =
        "replica 1 has a ring of 65544 bytes, this one of 65536: set ring_bytes alike in the group";
    assert_eq!(ring.to_string(), text);
    assert!(matches!(
        engine.control_up(id(1), &[], now_ns),
        Err(ControlRefused::Message(_))
    ));
    for stranger in [id(0), id(7)] {
        let refused = engine.control_up(stranger, &hello, now_ns);
        assert_eq!(refused, Err(ControlRefused::NotAMember { peer: stranger }));
    }
    assert!(matches!(
        engine.control_in(id(1), &[1; 64], now_ns),
        Err(ControlRefused::Message(_))
    ));
    engine.control_down(id(1));
    assert_eq!(
        engine.control_in(id(1), &[], now_ns),
        Err(ControlRefused::NoControl { peer: id(1) })
    );
    assert_eq!(engine.counters().refused_messages, 6);
    group.run(100 * BEAT);
    assert_eq!(group.leaders(), [0], "nothing changed by it");
}

/// Prints what a change of leaders really takes in one thread: from the successor's poll that finds the leader dead
/// until it has a majority. `cargo test --release -p mu-protocol --test background -- --ignored --nocapture`
#[test]
#[ignore = "prints a time; run in release mode"]
fn how_long_a_switch_takes() {
    let mut switches = Vec::new();
    let mut polls = Vec::new();
    for _ in 0..100 {
        let mut group = Group::led(3, Sound);
        group.run(20 * BEAT);
        let began = Instant::now();
        group.run(1_000);
        polls.push(began.elapsed().as_nanos() as u64 / 3_000);
        group.kill(0);
        let mut now_ns = group.now_ns;
        let began = loop {
            now_ns += STEP_NS;
            let began = Instant::now();
            group.node(1).background.poll(now_ns);
            if group.node(1).shared.candidate() != Epoch::NONE {
                break began;
            }
            group.node(2).background.poll(now_ns);
        };
        let epoch = group.node(1).shared.candidate();
        while group.node(1).acks(epoch).is_empty() {
            group.node(2).background.poll(now_ns);
            group.node(1).background.poll(now_ns);
        }
        switches.push(began.elapsed().as_nanos() as u64);
    }
    switches.sort_unstable();
    polls.sort_unstable();
    let at = |times: &[u64], part: usize| times[times.len() * part / 100];
    println!(
        "switch: p50 {} ns, p99 {} ns",
        at(&switches, 50),
        at(&switches, 99)
    );
    println!(
        "one poll of engine and stand-in, every fifth with a heartbeat: {} ns",
        at(&polls, 50)
    );
    assert!(
        at(&switches, 50) < 1_000_000,
        "a switch takes far less than a millisecond"
    );
}
