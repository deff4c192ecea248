//! Both engines of whole groups over the software backend, in one thread and virtual time.

mod group;
mod review;
mod unreadable;

use group::{Group, id, is};
use mu_protocol::entry::{Encoder, Frame, Header, Kind};
use mu_protocol::layout::{Role, Standing, header, public};
use mu_protocol::log::{Source, look};
use mu_protocol::replication::{Event, Outcome, ReadOutcome, Refused};
use mu_protocol::zoo::Sound;

#[test]
fn a_group_of_any_size_replicates_in_order() {
    for n in 1..=9 {
        let mut group = Group::new(n, |_| {});
        let leader = group.elect();
        assert_eq!(leader, 0, "the lowest id of {n}");
        for k in 1..=50u64 {
            assert_eq!(
                group.propose(leader, 0, 0, &k.to_le_bytes()),
                Ok(k),
                "{n} replicas"
            );
        }
        group.settle();
        assert_eq!(group.node(n - 1).replica.replication.app().0.len(), 50);
    }
}

#[test]
fn a_minority_may_die_in_a_group_of_any_size_and_no_more() {
    for n in 1..=9 {
        let mut group = Group::new(n, |_| {});
        assert_eq!(group.elect(), 0);
        assert_eq!(group.propose(0, 0, 0, b"all"), Ok(1));
        group.settle();
        let least = n / 2 + 1;
        (least..n).for_each(|dead| group.kill(dead));
        assert_eq!(
            group.propose(0, 0, 0, b"a majority"),
            Ok(2),
            "{least} of {n}"
        );
        if least > 1 {
            group.kill(least - 1);
            let alone = group.propose(0, 0, 0, b"a minority");
            assert!(alone.is_err(), "{} of {n}: {alone:?}", least - 1);
        }
    }
}

/// How many followers' logs have the entry at `at` with number `index`: when a command is answered, and when that turn
/// of the leader's is over.
fn spread(group: &mut Group, leader: usize, followers: &[usize]) -> (usize, usize) {
    let now_ns = group.now_ns;
    let logs: Vec<_> = followers
        .iter()
        .map(|&n| group.node(n).replica.replication.log().clone())
        .collect();
    let replication = &mut group.node(leader).replica.replication;
    // What the chores posted last is done with.
    replication.poll(now_ns, |_| {});
    let (point, mut answered) = (replication.applied(), None);
    let have = || {
        logs.iter()
            .filter(|log| log.load(point.at) == point.index + 1)
            .count()
    };
    replication.submit(0, 0, &[7; 64]).expect("it leads");
    replication.poll(now_ns, |event| {
        if let Event::Command { outcome, .. } = event {
            assert!(matches!(outcome, Outcome::Decided { .. }), "{outcome:?}");
            answered = Some(have());
        }
    });
    (answered.expect("an answer in the same turn"), have())
}

#[test]
fn a_majority_has_a_command_before_its_answer_and_all_have_it_when_the_turn_is_over() {
    for n in [2, 3, 5, 9] {
        let mut group = Group::new(n, |_| {});
        let leader = group.elect();
        group.propose(leader, 0, 0, b"first").expect("decided");
        group.settle();
        let all =
            |group: &mut Group| group.node(leader).replica.replication.followers().count() + 1 == n;
        group.until("all are confirmed", 100_000, all);
        let followers: Vec<_> = (0..n).filter(|other| *other != leader).collect();
        assert_eq!(
            spread(&mut group, leader, &followers),
            (n / 2, n - 1),
            "{n} replicas"
        );
        group.settle();
    }
}

#[test]
fn a_dead_follower_that_is_first_in_line_puts_no_answer_off() {
    for n in [3, 5] {
        let mut group = Group::new(n, |_| {});
        let leader = group.elect();
        group.propose(leader, 0, 0, b"first").expect("decided");
        group.settle();
        let mut followers: Vec<_> = (0..n).filter(|other| *other != leader).collect();
        group.kill(followers.remove(0));
        assert_eq!(
            spread(&mut group, leader, &followers).1,
            n - 2,
            "{n} replicas"
        );
    }
}

#[test]
fn a_learner_that_is_first_in_line_gets_a_command_behind_the_answer() {
    let mut group = Group::new(3, |_| {});
    assert_eq!(group.elect(), 0);
    group.propose(0, 0, 0, b"first").expect("decided");
    group.settle();
    group.kill(1);
    group.start(1, false);
    group.until("a learner is confirmed", 100_000, |group| {
        let replication = &group.node(0).replica.replication;
        let told = Standing::from_word(replication.peer_public(id(1), public::STANDING));
        let confirmed = replication.followers().any(|(peer, _)| peer == id(1));
        assert_eq!(
            replication.counters().admitted,
            0,
            "seen before it is a voter"
        );
        confirmed && told.role == Role::Learner
    });
    assert_eq!(spread(&mut group, 0, &[1, 2]), (1, 2));
    group.settle();
    assert_eq!(group.node(0).replica.replication.counters().admitted, 1);
}

/// Seed 72442 of the simulator: the vote rested until there would be a later leader, who could not come without it.
#[test]
fn a_voter_that_found_an_entry_damaged_votes_again_without_another_leader() {
    let mut group = Group::with_first(|_| {});
    group.node(1).paused = true;
    for k in 2..=4 {
        assert_eq!(group.propose(0, 0, 0, &[k; 40]), Ok(k.into()));
    }
    group.damage_next(1);
    group.kill(0);
    notices_and_votes_again(&mut group);
}

/// Of three replicas without their leader 0, replica 1 notices its damaged entry, and both go on in the end.
fn notices_and_votes_again(group: &mut Group) {
    group.notices_damage();
    let leader = group.elect();
    assert!(group.propose(leader, 0, 0, b"two are a majority").is_ok());
    group.settle();
}

/// Replica 1 alone acknowledged the last command, behind what it takes a snapshot of; then its leader is gone.
#[test]
fn what_a_voter_acknowledged_stays_behind_the_snapshot_that_it_takes() {
    let mut group = Group::with_first(|_| {});
    group.node(1).paused = true;
    assert_eq!(group.propose(0, 0, 0, b"second"), Ok(2));
    assert_eq!(group.propose(0, 0, 0, b"third"), Ok(3));
    group.until("the other has applied it", 100_000, |group| {
        group.node(2).replica.replication.applied().index >= 4
    });
    group.damage_next(1);
    group.node(2).paused = true;
    let acknowledged = group.propose(0, 0, 0, b"acknowledged");
    assert_eq!(acknowledged, Ok(4));
    group.kill(0);
    // The write to the other one did not arrive.
    let replication = &group.node(2).replica.replication;
    let at = replication.applied().at;
    replication.log().clear(at..at + 128);
    group.node(2).paused = false;
    notices_and_votes_again(&mut group);
    for n in [1, 2] {
        let journal = &group.node(n).replica.replication.app().0;
        assert!(journal.iter().any(|bytes| bytes == b"acknowledged"), "{n}");
    }
}

/// Found by a reader: a stretch of the donor's log ended in the middle of an entry, and where that begins the own log
/// went on with a shorter one, which fits behind the entry before and was never decided.
#[test]
fn who_comes_back_applies_nothing_but_what_it_took() {
    let mut group = Group::with_first(|_| {});
    group.node(1).paused = true;
    assert_eq!(group.propose(0, 0, 0, b"second"), Ok(2));
    group.damage_next(1);
    group.node(1).paused = false;
    group.until("a snapshot is laid out", 100_000, |group| {
        group.node(2).replica.replication.counters().snapshots > 0
    });
    group.node(1).paused = true;
    let applied = |group: &mut Group| group.node(2).replica.replication.applied();
    let mut point = applied(&mut group);
    let stretch = group.settings.ring_bytes as u64 / 2;
    let (end, last) = (point.at + stretch, point.index + 15);
    for k in 3..18 {
        assert_eq!(group.propose(0, 0, 0, &[9; 2900]), Ok(k));
    }
    group.until("the donor has applied them", 100_000, |group| {
        applied(group).index == last
    });
    // The entry in which the first stretch ends.
    let max_bytes = group.settings.max_entry_bytes();
    let log = group.node(2).replica.replication.log();
    loop {
        let header = look(log, point, max_bytes, Sound).expect("an entry");
        if point.after(&header).at > end {
            break;
        }
        point = point.after(&header);
    }
    assert!(point.at < end && point.index < last, "{point:?}");
    let mut never = Encoder::new(256);
    assert!(never.push(Frame {
        client: 0,
        sequence: 0,
        bytes: b"never decided",
    }));
    let header = Header {
        index: point.index + 1,
        epoch: point.epoch,
        previous: point.epoch,
        commit: 0,
        time_ns: 1,
        len: 0,
        count: 0,
        kind: Kind::Commands,
        crc: None,
    };
    let bytes = never.finish(header, true).1;
    let replication = &group.node(1).replica.replication;
    assert!(replication.applied().index < point.index, "it comes back");
    replication.log().write(point.at, bytes);
    group.node(1).paused = false;
    // Looked at all the way: another snapshot would mend it.
    group.until("it has come back", 100_000, |group| {
        let replication = &group.node(1).replica.replication;
        let mut journal = replication.app().0.iter();
        assert!(journal.all(|bytes| bytes != b"never decided"));
        replication.applied().index >= last && replication.standing().role == Role::Follower
    });
    group.settle();
}

/// One of two knows that an entry is decided which neither has in its log any more. Whoever led would decide something
/// else at that index.
#[test]
fn nobody_leads_below_what_it_knows_to_be_decided() {
    let mut group = Group::with_first(|_| {});
    group.node(1).paused = true;
    group.node(2).paused = true;
    assert_eq!(group.propose(0, 0, 0, b"acknowledged"), Ok(2));
    let decided = group.node(0).replica.replication.applied().index;
    group.until("both are told", 100_000, |group| {
        [1, 2].iter().all(|&n| {
            let log = group.node(n).replica.replication.log();
            log.header(header::COMMIT) == decided
        })
    });
    group.kill(0);
    for n in [1, 2] {
        let replication = &group.node(n).replica.replication;
        let at = replication.applied().at;
        replication.log().clear(at..at + 128);
    }
    let log = group.node(2).replica.replication.log();
    log.set_header(header::COMMIT, 0);
    group.node(1).paused = false;
    group.node(2).paused = false;
    for _ in 0..50_000 {
        group.step();
        assert_eq!(group.leader(), None);
    }
    let stood = group.node(1).replica.background.counters().elections;
    assert!(stood > 0, "nobody tried");
}

#[test]
fn the_log_is_used_again_and_again() {
    let mut group = Group::new(3, |settings| settings.ring_bytes = 16 << 10);
    let leader = group.elect();
    for k in 0..2_000usize {
        let command = vec![k as u8; k * 37 % 1500];
        assert_eq!(group.propose(leader, 0, 0, &command), Ok(k as u64 + 1));
    }
    let laps = group.node(leader).replica.replication.applied().at / (16 << 10);
    assert!(laps >= 50, "only {laps} laps");
    group.settle();
}

#[test]
fn a_killed_leader_is_replaced_and_nothing_decided_is_lost() {
    let mut group = Group::new(3, |_| {});
    let mut decided = 0;
    for round in 0..6 {
        let leader = group.elect();
        for _ in 0..20 {
            decided += 1;
            assert_eq!(
                group.propose(leader, 0, 0, &[round; 40]),
                Ok(decided),
                "round {round}"
            );
        }
        // Some more, whose fate is open.
        for _ in 0..3 {
            let _ = group
                .node(leader)
                .replica
                .replication
                .submit(7, u64::from(round), b"open");
        }
        group.kill(leader);
        let next = group.elect();
        assert_ne!(next, leader);
        let journal = group.node(next).replica.replication.app().0.clone();
        assert!(
            journal.len() as u64 >= decided,
            "round {round}: {} of {decided}",
            journal.len()
        );
        decided = journal.len() as u64;
        group.start(leader, false);
        group.settle();
    }
}

#[test]
fn a_restarted_replica_comes_back_as_a_voter_and_its_vote_is_good() {
    let mut group = Group::new(3, |_| {});
    let leader = group.elect();
    for k in 1..=300u64 {
        assert_eq!(group.propose(leader, 0, 0, &[1; 200]), Ok(k));
    }
    group.kill(2);
    for k in 301..=400u64 {
        assert_eq!(group.propose(leader, 0, 0, &[2; 200]), Ok(k));
    }
    group.start(2, false);
    assert!(is(&mut group, 2, Role::Recovering));
    group.settle();
    group.kill(1);
    assert_eq!(group.propose(leader, 0, 0, b"by 0 and 2"), Ok(401));
    group.start(1, false);
    group.settle();
    group.kill(0);
    let next = group.elect();
    assert_eq!(group.propose(next, 0, 0, b"by 1 and 2"), Ok(402));
}

#[test]
fn a_group_that_lost_the_memory_of_its_majority_stays_down() {
    let mut group = Group::new(3, |_| {});
    let leader = group.elect();
    assert_eq!(group.propose(leader, 0, 0, b"kept"), Ok(1));
    group.settle();
    group.kill(0);
    group.kill(1);
    group.start(0, false);
    group.start(1, false);
    for _ in 0..50_000 {
        group.step();
        assert_eq!(group.leader(), None);
    }
    assert!(
        group
            .node(2)
            .replica
            .replication
            .submit(0, 0, b"x")
            .is_err()
    );
    for n in [0, 1] {
        assert!(
            !group.node(n).replica.replication.standing().voter,
            "{n} must not vote"
        );
    }
}

#[test]
fn a_minority_alone_answers_with_unknown_and_then_refuses() {
    let mut group = Group::new(3, |_| {});
    let leader = group.elect();
    group.kill(1);
    group.kill(2);
    assert_eq!(group.propose(leader, 0, 0, b"lonely"), Err("unknown"));
    let refused = group
        .node(leader)
        .replica
        .replication
        .submit(0, 0, b"later");
    assert_eq!(refused, Err(Refused::NotLeader(None)));
}

#[test]
fn commands_that_are_too_long_or_too_many_are_refused() {
    let mut group = Group::new(3, |settings| settings.window = 10);
    let leader = group.elect();
    let engine = &mut group.node(leader).replica.replication;
    assert_eq!(
        engine.submit(0, 0, &[0; 3001]),
        Err(Refused::TooLarge {
            bytes: 3001,
            limit: 3000
        })
    );
    for _ in 0..10 {
        engine.submit(0, 0, b"fits").expect("within the window");
    }
    assert_eq!(
        engine.submit(0, 0, b"one more"),
        Err(Refused::Overloaded { pending: 10 })
    );
    group.until("outcomes", 1000, |group| {
        group.node(leader).commands.len() == 10
    });
    assert_eq!(group.propose(leader, 0, 0, b"again"), Ok(11));
    // A beat after the leader has said that it is one.
    group.until("the hint", 1000, |group| {
        group.node(1).replica.replication.leader() == Some(id(0))
    });
    let follower = group
        .node(1)
        .replica
        .replication
        .submit(0, 0, b"wrong door");
    assert_eq!(follower, Err(Refused::NotLeader(Some(id(0)))));
}

#[test]
fn a_retry_at_the_next_leader_is_applied_once() {
    let mut group = Group::new(3, |_| {});
    let leader = group.elect();
    assert_eq!(group.propose(leader, 9, 1, b"once"), Ok(1));
    group.kill(leader);
    let next = group.elect();
    assert_eq!(group.propose(next, 9, 1, b"once"), Ok(1), "the old reply");
    assert_eq!(group.propose(next, 9, 2, b"twice"), Ok(2));
    group.start(leader, false);
    group.settle();
}

#[test]
fn a_read_is_proven_by_a_majority_and_refused_without_one() {
    let mut group = Group::new(3, |_| {});
    let leader = group.elect();
    assert_eq!(group.propose(leader, 0, 0, b"x"), Ok(1));
    let ticket = group
        .node(leader)
        .replica
        .replication
        .read()
        .expect("it leads");
    group.until("a proof", 1000, |group| {
        !group.node(leader).reads.is_empty()
    });
    let index = group.node(leader).replica.replication.applied().index;
    assert_eq!(
        group.node(leader).reads,
        [(ticket, ReadOutcome::Ready { index })]
    );
    // The leader's replication engine sleeps while another one takes over, then wakes up with a read.
    group.node(leader).paused = true;
    group.until("a new leader", 20_000, |group| {
        (1..3).any(|n| group.node(n).replica.replication.leads().is_some())
    });
    let stale = group.node(leader).replica.replication.read();
    group.node(leader).paused = false;
    group.node(leader).reads.clear();
    if let Ok(ticket) = stale {
        group.until("its end", 1000, |group| {
            !group.node(leader).reads.is_empty()
        });
        assert!(
            matches!(group.node(leader).reads[..], [(t, ReadOutcome::NotLeader(_))] if t == ticket)
        );
    }
}

#[test]
fn a_leader_that_slept_through_its_replacement_acknowledges_nothing() {
    let mut group = Group::new(3, |_| {});
    let leader = group.elect();
    assert_eq!(group.propose(leader, 0, 0, b"x"), Ok(1));
    group.node(leader).paused = true;
    group.until("a new leader", 20_000, |group| {
        (1..3).any(|n| group.node(n).replica.replication.leads().is_some())
    });
    let ticket = group
        .node(leader)
        .replica
        .replication
        .submit(0, 0, b"asleep");
    group.node(leader).paused = false;
    for _ in 0..2000 {
        group.step();
    }
    if let Ok(ticket) = ticket {
        let outcome = group
            .node(leader)
            .commands
            .iter()
            .find(|(t, _)| *t == ticket)
            .map(|(_, o)| *o);
        assert!(matches!(outcome, Some(Err(_))), "{outcome:?}");
    }
    let next = group.elect();
    assert_ne!(next, leader);
    assert!(group.propose(next, 0, 0, b"y").is_ok());
    group.settle();
}

#[test]
fn leadership_is_handed_over_without_a_loss() {
    let mut group = Group::new(3, |_| {});
    let leader = group.elect();
    for k in 1..=5 {
        assert_eq!(group.propose(leader, 0, 0, b"x"), Ok(k));
    }
    let now_ns = group.now_ns;
    assert_eq!(
        group
            .node(leader)
            .replica
            .replication
            .transfer(Some(id(2)), now_ns),
        Ok(id(2))
    );
    group.until("the handover", 5_000, |group| {
        group.node(2).replica.replication.leads().is_some()
    });
    assert_eq!(group.propose(2, 0, 0, b"y"), Ok(6));
    for _ in 0..5_000 {
        group.step();
        assert_eq!(group.leader(), Some(2), "the old leader leaves it alone");
    }
    group.settle();
}

#[test]
fn a_follower_that_holds_a_full_ring_up_is_cut_off_and_comes_back() {
    let mut group = Group::new(3, |settings| settings.ring_bytes = 16 << 10);
    let leader = group.elect();
    group.node(2).paused = true;
    let mut overloaded = 0;
    let mut decided = 0u64;
    while decided < 200 {
        match group
            .node(leader)
            .replica
            .replication
            .submit(0, 0, &[5; 400])
        {
            Ok(_) => {}
            Err(Refused::Overloaded { .. }) => overloaded += 1,
            Err(other) => panic!("{other}"),
        }
        group.step();
        decided = group
            .node(leader)
            .commands
            .iter()
            .filter(|(_, outcome)| outcome.is_ok())
            .count() as u64;
        assert!(overloaded < 100_000, "the ring stays full");
    }
    assert!(overloaded > 0, "the ring was never full");
    assert_eq!(group.node(leader).replica.replication.counters().cut_off, 1);
    group.node(2).paused = false;
    group.settle();
    assert!(group.node(2).replica.replication.counters().rejoins >= 1);
}

#[test]
fn the_last_entry_does_not_wait_for_another_one() {
    let mut group = Group::new(3, |_| {});
    let leader = group.elect();
    assert_eq!(group.propose(leader, 0, 0, b"the last"), Ok(1));
    group.until("everybody applied it", 200, |group| {
        (0..3).all(|n| group.node(n).replica.replication.app().0.len() == 1)
    });
}
