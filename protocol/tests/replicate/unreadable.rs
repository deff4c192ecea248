//! What a reader of the catching up found: entries that cannot be read, votes that rest, and rights that come back.

use mu_protocol::entry::{HEADER_WORDS, Header, Kind, tail};
use mu_protocol::layout::{Role, header};
use mu_protocol::log::Point;
use mu_verbs::sync::Ordering;

use crate::group::{Group, id, is};

/// Three replicas with one command decided, and the replication engines of 1 and 2 paused.
fn two_paused(completion_timeout_ns: u64) -> Group {
    let mut group =
        Group::with_first(|settings| settings.completion_timeout_ns = completion_timeout_ns);
    for n in [1, 2] {
        group.node(n).paused = true;
    }
    group
}

fn applied(group: &mut Group, n: usize) -> Point {
    group.node(n).replica.replication.applied()
}

/// Zeroes the log of `n` behind what it has applied and `skip` bytes.
fn forget(group: &mut Group, n: usize, skip: u64) {
    let replication = &group.node(n).replica.replication;
    let at = replication.applied().at + skip;
    replication.log().clear(at..at + 512);
}

/// Decides two commands, of which the second says that the first is decided, and gives the point before them.
fn acknowledge_two(group: &mut Group) -> Point {
    let before = applied(group, 1);
    assert_eq!(group.propose(0, 0, 0, b"acknowledged"), Ok(2));
    assert_eq!(group.propose(0, 0, 0, b"behind it"), Ok(3));
    before
}

/// What the header of `n` says of the commit index.
fn tell(group: &mut Group, n: usize, commit: u64) {
    let log = group.node(n).replica.replication.log();
    log.set_header(header::COMMIT, commit);
}

fn has(group: &mut Group, n: usize, command: &[u8]) -> bool {
    let journal = &group.node(n).replica.replication.app().0;
    journal.iter().any(|bytes| bytes == command)
}

/// One of two knows that an entry is decided that it cannot read; the other one has it, and does not know.
#[test]
fn a_damaged_entry_is_mended_from_a_log_whose_owner_does_not_know_that_it_is_decided() {
    let mut group = two_paused(50_000_000);
    let before = applied(&mut group, 1);
    assert_eq!(group.propose(0, 0, 0, b"acknowledged"), Ok(2));
    let size = applied(&mut group, 0).at - before.at;
    assert_eq!(group.propose(0, 0, 0, b"behind it"), Ok(3));
    group.kill(0);
    group.damage_next(1);
    forget(&mut group, 2, size);
    for n in [1, 2] {
        tell(&mut group, n, before.index);
    }
    group.notices_damage();
    group.node(2).paused = false;
    let leader = group.elect();
    assert!(group.propose(leader, 0, 0, b"two are a majority").is_ok());
    group.settle();
    assert!(has(&mut group, 1, b"acknowledged") && has(&mut group, 2, b"acknowledged"));
    let counters = group.node(1).replica.replication.counters();
    assert_eq!((counters.mended, counters.snapshots), (1, 0));
}

/// The same entry number at the same place, but of another leader: not what the own header says.
#[test]
fn another_entry_does_not_mend_a_damaged_one() {
    let mut group = two_paused(50_000_000);
    let before = acknowledge_two(&mut group);
    group.kill(0);
    group.damage_next(1);
    forget(&mut group, 2, 0);
    append(&mut group, 2, before, NEVER);
    for n in [1, 2] {
        tell(&mut group, n, before.index);
    }
    group.notices_damage();
    group.node(2).paused = false;
    for _ in 0..50_000 {
        group.step();
        assert_eq!(group.leader(), None);
    }
    assert!(!has(&mut group, 1, &NEVER[8..]));
    assert_eq!(group.node(1).replica.replication.counters().mended, 0);
}

/// As above, but the other one's log is longer than the own one can be read, and both are awake.
#[test]
fn a_candidate_does_not_adopt_another_log_over_what_it_knows_to_be_decided() {
    let mut group = two_paused(50_000_000);
    let before = acknowledge_two(&mut group);
    group.kill(0);
    group.damage_next(1);
    forget(&mut group, 2, 0);
    let next = append(&mut group, 2, before, NEVER);
    append(&mut group, 2, next, NEVER);
    tell(&mut group, 1, before.index + 1);
    tell(&mut group, 2, before.index);
    for n in [1, 2] {
        group.node(n).paused = false;
    }
    for _ in 0..50_000 {
        group.step();
        assert_eq!(group.leader(), None);
        assert_eq!(applied(&mut group, 1), before);
    }
    let stood = group.node(1).replica.background.counters().elections;
    assert!(stood > 0, "replica 1 tried");
}

/// A command that was never decided, in its frame.
const NEVER: &[u8] = b"\x08\0\0\0\0\0\0\0neverdec";

/// Puts an entry of a leader that decided nothing into the log of `n`.
fn append(group: &mut Group, n: usize, point: Point, payload: &[u8]) -> Point {
    let header = Header {
        index: point.index + 1,
        epoch: point.epoch,
        previous: point.epoch,
        commit: 0,
        time_ns: 1,
        len: payload.len() as u32,
        count: 1,
        kind: Kind::Commands,
        crc: Some(crc32c::crc32c(payload)),
    };
    let words = header.to_words();
    let bytes = |word: u64| word.to_le_bytes();
    let mut entry: Vec<u8> = words.into_iter().flat_map(bytes).collect();
    entry.extend_from_slice(payload);
    entry.extend_from_slice(&bytes(tail(words[HEADER_WORDS - 1], header.previous)));
    let log = group.node(n).replica.replication.log();
    log.write(point.at, &entry);
    point.after(&header)
}

/// A busy leader tells what is decided by its entries only. Replica 2 has seen the one that says so, not the decided
/// one, which is damaged there, and has not noticed yet; replica 1 has neither.
#[test]
fn a_candidate_gives_way_to_what_a_granter_knows_to_be_decided() {
    let mut group = two_paused(5_000_000_000);
    let before = acknowledge_two(&mut group);
    group.damage_next(2);
    forget(&mut group, 1, 0);
    group.kill(0);
    for n in [1, 2] {
        tell(&mut group, n, before.index);
        group.node(n).paused = false;
    }
    for _ in 0..100_000 {
        group.step();
        assert_eq!(group.leader(), None);
    }
    let knows = group.node(2).replica.replication.commit();
    assert_eq!(knows, before.index + 1, "by the entry behind");
    let stood = group.node(1).replica.background.counters().elections;
    assert!(stood > 0, "replica 1 tried");
}

/// Of five, one lacks what it zeroed behind a snapshot and dies; a candidate that it has granted has found itself
/// lapped. The three that are left have everything in their logs, and nobody has a state that is newer.
#[test]
fn a_candidate_that_nobody_can_bring_on_votes_again() {
    let mut group = Group::new(5, |_| {});
    assert_eq!(group.elect(), 0);
    group.propose(0, 0, 0, b"first").expect("decided");
    group.settle();
    for n in [1, 2, 3] {
        group.node(n).paused = true;
    }
    let before = applied(&mut group, 1);
    assert_eq!(group.propose(0, 0, 0, b"acknowledged"), Ok(2));
    group.until("replica 4 applies it", 100_000, |group| {
        applied(group, 4).index > before.index
    });
    group
        .node(4)
        .replica
        .replication
        .log()
        .clear(before.at..before.at + 512);
    group.node(3).asleep = true;
    group.kill(0);
    for n in [1, 2, 3] {
        tell(&mut group, n, before.index);
    }
    group.node(1).paused = false;
    group.node(2).paused = false;
    group.until("a candidate finds itself lapped", 100_000, |group| {
        is(group, 1, Role::Recovering)
    });
    group.kill(4);
    group.node(3).asleep = false;
    group.node(3).paused = false;
    let leader = group.elect();
    assert!(group.propose(leader, 0, 0, b"three are a majority").is_ok());
    for n in [1, 2, 3] {
        group.until("all have it", 100_000, |group| {
            has(group, n, b"acknowledged")
        });
    }
}

/// A replica that catches up writes its own log. The leader that had the right and gets it again must notice, since
/// what it has counted there may be gone.
#[test]
fn the_holder_of_a_right_that_was_withdrawn_has_to_connect_anew() {
    let mut group = two_paused(50_000_000);
    assert_eq!(group.propose(0, 0, 0, b"second"), Ok(2));
    group.node(2).paused = false;
    group.until("another one has applied it", 100_000, |group| {
        has(group, 2, b"second")
    });
    let link = |group: &mut Group| {
        let peer = group.node(0).replica.replication.shared().peer(id(1));
        peer.log_generation.load(Ordering::Acquire)
    };
    let first = link(&mut group);
    group.damage_next(1);
    group.node(1).paused = false;
    group.until("it is noticed", 100_000, |group| {
        is(group, 1, Role::Recovering)
    });
    group.until("it is back", 100_000, |group| is(group, 1, Role::Follower));
    assert_ne!(first, 0);
    group.until("another connection", 100_000, |group| {
        ![0, first].contains(&link(group))
    });
    assert!(group.propose(0, 0, 0, b"third").is_ok());
    group.settle();
}

/// What is known to be decided is applied before the role is taken, and one of it is no list of commands.
#[test]
fn who_halts_while_it_takes_over_does_not_lead() {
    let mut group = two_paused(50_000_000);
    let before = applied(&mut group, 1);
    for n in [1, 2] {
        append(&mut group, n, before, &[0xff; 40]);
    }
    group.kill(0);
    tell(&mut group, 2, before.index + 1);
    group.node(1).paused = false;
    group.until("it halts", 100_000, |group| is(group, 1, Role::Stopped));
    for _ in 0..1_000 {
        group.step();
        assert!(is(&mut group, 1, Role::Stopped));
    }
    let stood = group.node(1).replica.background.counters().elections;
    assert!(stood > 0, "it was about to lead");
}
