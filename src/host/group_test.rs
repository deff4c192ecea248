//! Groups in one process: proposing, reading, losing the leader, handing over, coming back.

use std::time::{Duration, Instant};

use mu_protocol::ids::ReplicaId;
use mu_protocol::machine::{Command, RestoreError, StateMachine};

use super::{Direct, Group, Halted, Inproc, Options, ProposeError};

const PATIENCE: Duration = Duration::from_secs(20);

/// Adds numbers up.
#[derive(Debug, Default)]
struct Sum(u64);

impl StateMachine for Sum {
    fn apply(&mut self, command: &Command<'_>, reply: &mut Vec<u8>) {
        assert_ne!(command.bytes, b"panic", "as asked");
        self.0 += u64::from(command.bytes[0]);
        reply.extend_from_slice(&self.0.to_le_bytes());
    }
    fn digest(&self) -> u64 {
        self.0
    }
    fn snapshot(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0.to_le_bytes());
    }
    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let bytes = bytes.try_into();
        self.0 = u64::from_le_bytes(bytes.map_err(|_| RestoreError("not eight bytes".into()))?);
        Ok(())
    }
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("a number"))
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn add(group: &Group<Sum>, sequence: u64) -> u64 {
    let reply = group.propose(7, sequence, &[1], PATIENCE);
    number(&reply.expect("decided").bytes)
}

/// For tests that are not about failures, which a thread that waits for a processor looks like.
fn calm(options: &mut Options) {
    options.settings.detect_ns = 10_000_000_000;
    options.settings.election_ns = 2_000_000_000;
}

#[test]
fn three_replicas_propose_read_and_apply_everywhere() {
    let group = Group::start_with(Inproc::new(3), |_| Sum::default(), calm).expect("a group");
    for sequence in 1..=200 {
        assert_eq!(add(&group, sequence), sequence);
    }
    assert_eq!(add(&group, 200), 200, "a retry gets the old reply");
    let leader = group.leader(PATIENCE).expect("a leader");
    assert_eq!(leader.read(|sum| sum.0), Ok(200));
    for id in 0..3 {
        let replica = group.replica(id).expect("it runs");
        until("an idle leader's followers apply all", || {
            replica.local_read(|sum| sum.0) == Ok(200)
        });
        assert!(replica.status().voter, "{:?}", replica.status());
        // A status is published now and then.
        until("everybody says who leads", || {
            replica.status().leader == Some(leader.id().get())
        });
    }
    let status = leader.status();
    assert_eq!(status.role, "leader");
    let total = status.stages.iter().find(|(name, _)| name == "total");
    assert!(total.is_some_and(|(_, p)| p.count > 0), "{status:?}");
    let follower = (0..3).find(|id| *id != leader.id().get());
    let follower = group.replica(follower.expect("another")).expect("it runs");
    let refused = ProposeError::NotLeader {
        hint: Some(leader.id()),
    };
    assert_eq!(follower.propose(&[1]), Err(refused.clone()));
    assert_eq!(follower.read(|sum| sum.0), Err(refused));
    let limit = 64 << 10;
    assert_eq!(
        leader.propose(&vec![0; limit + 1]),
        Err(ProposeError::TooLarge {
            bytes: limit + 1,
            limit
        })
    );
}

#[test]
fn a_leader_that_stops_is_replaced_and_comes_back() {
    let mut group = Group::start(3, Sum::default).expect("a group");
    let mut sequence = 0;
    let mut next = |group: &Group<Sum>| {
        sequence += 1;
        assert_eq!(add(group, sequence), sequence);
    };
    for round in 0..3 {
        (0..20).for_each(|_| next(&group));
        let leader = group.leader(PATIENCE).expect("a leader").id().get();
        group.stop(leader);
        (0..20).for_each(|_| next(&group));
        let restarted = group.restart(leader, Sum::default(), |_| {});
        restarted.expect("it starts again");
        let back = group.replica(leader).expect("it runs");
        until(
            &format!("round {round}: replica {leader} is a voter again"),
            || back.status().voter,
        );
    }
    let expected = sequence;
    for id in 0..3 {
        let replica = group.replica(id).expect("it runs");
        until("all have everything", || {
            replica.local_read(|sum| sum.0) == Ok(expected)
        });
    }
}

#[test]
fn a_handover_is_planned_and_nothing_is_lost() {
    let group = Group::start_with(Inproc::new(3), |_| Sum::default(), calm).expect("a group");
    assert_eq!(add(&group, 1), 1);
    let leader = group.leader(PATIENCE).expect("a leader");
    let to = (0..3)
        .filter_map(ReplicaId::new)
        .find(|id| *id != leader.id());
    let to = to.expect("another");
    until("a follower is up to date", || {
        leader.transfer(Some(to)) == Ok(to)
    });
    until("the successor leads", || {
        group.replica(to.get()).expect("it runs").leader() == Some(to)
    });
    assert_eq!(add(&group, 2), 2);
}

#[test]
fn a_minority_answers_unknown_or_not_leader_in_bounded_time_and_never_success() {
    let mut group = Group::start(3, Sum::default).expect("a group");
    assert_eq!(add(&group, 1), 1);
    let leader = group.leader(PATIENCE).expect("a leader").id().get();
    for id in (0..3).filter(|id| *id != leader) {
        group.stop(id);
    }
    let begin = Instant::now();
    let alone = group.replica(leader).expect("it runs");
    let outcome = alone.propose_as(7, 2, &[1]);
    assert!(
        matches!(
            outcome,
            Err(ProposeError::Unknown | ProposeError::NotLeader { .. })
        ),
        "{outcome:?}"
    );
    let read = alone.read(|sum| sum.0);
    assert!(
        matches!(read, Err(ProposeError::NotLeader { .. })),
        "{read:?}"
    );
    assert!(begin.elapsed() < PATIENCE);
}

/// The first try is unknown; that the next ones are refused says nothing of it. Without a session there is no next one.
#[test]
fn an_outcome_that_was_unknown_stays_so() {
    // Time to stop the others before the leader gives up, and to be refused after that.
    let slow = |options: &mut Options| options.settings.step_down_ns = 1_000_000_000;
    for client in [7, 0] {
        let net = Inproc::new(3);
        let mut group = Group::start_with(net, |_| Sum::default(), slow).expect("a group");
        assert_eq!(add(&group, 1), 1);
        let leader = group.leader(PATIENCE).expect("a leader").id().get();
        for id in (0..3).filter(|id| *id != leader) {
            group.stop(id);
        }
        let outcome = group.propose(client, 2, &[1], Duration::from_secs(3));
        assert_eq!(outcome, Err(ProposeError::Unknown), "client {client}");
    }
}

#[test]
fn an_application_that_panics_stops_its_replica_with_a_status_that_says_so() {
    let group = Group::start(1, Sum::default).expect("a group");
    let leader = group.leader(PATIENCE).expect("a leader");
    assert_eq!(leader.propose(b"panic"), Err(ProposeError::Unknown));
    until("it is stopped", || {
        leader.propose(&[1]) == Err(ProposeError::Stopped(Halted::Panicked))
    });
    let status = leader.status();
    assert_eq!(status.role, "stopped");
    assert!(status.stopped.is_some_and(|why| why.contains("panicked")));
}

#[test]
fn direct_mode_leads_with_followers_on_threads() {
    let net = Inproc::new(3);
    let options = |id| {
        let mut options = net.options(id);
        calm(&mut options);
        options
    };
    let mut direct: Direct<_, Sum> = net.direct(options(0), Sum::default()).expect("it starts");
    let follower = |id| net.replica(options(id), Sum::default()).expect("it starts");
    // Two followers that find each other first would elect one of themselves; one alone waits for this replica.
    let first = follower(1);
    let begin = Instant::now();
    while !direct.leads() {
        assert!(begin.elapsed() < PATIENCE, "{:?}", direct.status());
        let pace = direct.poll(|_| {});
        direct.rest(pace, None);
    }
    let followers = [first, follower(2)];
    for sequence in 1..=1000 {
        let reply = direct.propose_as(3, sequence, &[2]).expect("decided");
        assert_eq!(number(reply.bytes), 2 * sequence);
    }
    assert_eq!(direct.read(|sum| sum.0), Ok(2000));
    until("the followers have it", || {
        let pace = direct.poll(|_| {});
        direct.rest(pace, None);
        followers
            .iter()
            .all(|f| f.local_read(|sum| sum.0) == Ok(2000))
    });
    direct.stop(|_| {});
}
