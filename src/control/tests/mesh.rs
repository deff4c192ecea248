//! Members of one cluster, as it should be.

use super::*;

#[test]
fn three_members_find_each_other_and_talk() {
    let mut cluster = Cluster::new(3);
    let meshes: Vec<Mesh> = (0..3)
        .map(|id| cluster.start(id, 10 + u64::from(id)))
        .collect();
    for (id, mesh) in (0..3).zip(&meshes) {
        let mut seen = vec![next(mesh), next(mesh)];
        seen.sort_by_key(|event| match event {
            Event::Up { peer, .. } => *peer,
            other => panic!("{other:?}"),
        });
        let others = (0..3).filter(|&peer| peer != id);
        assert_eq!(
            seen,
            others
                .map(|peer| up(peer, 10 + u64::from(peer)))
                .collect::<Vec<_>>()
        );
    }
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
        let text = format!("from {from} to {to}");
        assert!(meshes[from].send(to as u8, text.as_bytes()));
        assert!(meshes[from].send(to as u8, b""));
        assert_eq!(next(&meshes[to]), message(from as u8, text.as_bytes()));
        assert_eq!(next(&meshes[to]), message(from as u8, b""));
    }
    let longest = vec![7; MESSAGE_BYTES_MAX];
    assert!(meshes[0].send(2, &longest));
    assert_eq!(next(&meshes[2]), message(0, &longest));
    assert!(!meshes[0].send(0, b"to itself"));
    assert!(!meshes[0].send(200, b"to nobody"));

    let counters = meshes[0].counters();
    assert_eq!((counters.up, counters.down), (2, 0));
    assert_eq!((counters.messages_out, counters.messages_in), (5, 4));
    assert_eq!(
        (
            counters.dials,
            meshes[1].counters().dials,
            meshes[2].counters().dials
        ),
        (2, 1, 0)
    );
    for kind in RefusalKind::ALL {
        assert_eq!(
            counters.refused(*kind) + counters.refused_by_peer(*kind),
            0,
            "{kind:?}"
        );
    }

    let mut meshes = meshes.into_iter();
    let (zero, one, two) = (
        meshes.next().unwrap(),
        meshes.next().unwrap(),
        meshes.next().unwrap(),
    );
    let started = Instant::now();
    drop(one);
    assert!(
        started.elapsed() < HANDSHAKE_LIMIT / 2,
        "{:?}",
        started.elapsed()
    );
    assert_eq!(next(&zero), Event::Down { peer: 1 });
    assert_eq!(next(&two), Event::Down { peer: 1 });
    assert!(!zero.send(1, b"gone"));
    assert!(zero.send(2, b"still there"));
    assert_eq!(next(&two), message(0, b"still there"));
}

#[test]
fn a_member_that_starts_late_is_found() {
    let mut cluster = Cluster::new(2);
    // Nobody listens on the other address for a while.
    cluster.listeners[1] = None;
    let zero = cluster.start(0, 1);
    until("several attempts found nobody", || {
        zero.counters().dials_failed >= 4
    });
    assert!(!zero.send(1, b"not yet"));
    let one = cluster.start(1, 2);
    assert_eq!(next(&zero), up(1, 2));
    assert_eq!(next(&one), up(0, 1));
    // An address that is taken says so.
    let again = Mesh::start(&cluster.config, 1, 3, b"")
        .err()
        .unwrap()
        .to_string();
    let address = cluster.address(1);
    assert!(
        again.starts_with(&format!("replica 1 cannot listen on {address}: ")),
        "{again}"
    );
    assert!(
        again.ends_with("is another process running as this replica?"),
        "{again}"
    );
}

#[test]
fn a_restarted_member_replaces_its_former_self() {
    // Member 1 is dialled by 0 and dials 2, so both ways are seen.
    let mut cluster = Cluster::new(3);
    let (zero, two) = (cluster.start(0, 1), cluster.start(2, 1));
    assert_eq!((next(&zero), next(&two)), (up(2, 1), up(0, 1)));
    for incarnation in [5, 6, 7] {
        let one = cluster.start(1, incarnation);
        for other in [&zero, &two] {
            assert_eq!(next(other), up(1, incarnation));
        }
        let seen = [next(&one), next(&one)];
        assert!(
            seen.contains(&up(0, 1)) && seen.contains(&up(2, 1)),
            "{seen:?}"
        );
        drop(one);
        for other in [&zero, &two] {
            assert_eq!(next(other), Event::Down { peer: 1 });
        }
    }
    // A former incarnation does not come back, whichever side dials.
    let one = cluster.start(1, 6);
    let refused = |peer, by_peer| Event::Refused {
        peer,
        refusal: Refusal::Superseded,
        by_peer,
    };
    assert_eq!(next(&zero), refused(1, false));
    assert_eq!(next(&two), refused(1, false));
    let seen = [next(&one), next(&one)];
    assert!(
        seen.contains(&refused(0, true)) && seen.contains(&refused(2, true)),
        "{seen:?}"
    );
    until("each attempt is counted", || {
        zero.counters().refused(RefusalKind::Superseded) > 2
            && two.counters().refused(RefusalKind::Superseded) > 2
            && one.counters().refused_by_peer(RefusalKind::Superseded) > 4
    });
    assert_eq!(
        (zero.poll(), two.poll(), one.poll()),
        (None, None, None),
        "told once"
    );
}

#[test]
fn a_newer_connection_replaces_one_that_seems_alive() {
    let mut cluster = Cluster::new(2);
    let one = cluster.start(1, 1);
    let mut me = cluster.identity(0);
    let (mut old, mut old_with) = Raw::come_up(cluster.address(1), &me, 1);
    assert_eq!(next(&one), up(0, 1000));
    old.seal(&mut old_with, Kind::Message, b"old");
    assert_eq!(next(&one), message(0, b"old"));

    me.incarnation = 1001;
    let (mut new, mut new_with) = Raw::come_up(cluster.address(1), &me, 1);
    assert_eq!(next(&one), Event::Down { peer: 0 });
    assert_eq!(next(&one), up(0, 1001));
    assert!(old.is_closed());
    new.seal(&mut new_with, Kind::Message, b"new");
    assert_eq!(next(&one), message(0, b"new"));
    assert!(one.send(0, b"back"));
    let frame = new.frame().unwrap();
    assert_eq!(
        new_with.opener.open(&frame),
        Ok((Kind::Message, &b"back"[..]))
    );

    // The same process may connect again, the replaced one may not.
    let (_again, _) = Raw::come_up(cluster.address(1), &me, 1);
    assert_eq!(
        (next(&one), next(&one)),
        (Event::Down { peer: 0 }, up(0, 1001))
    );
    me.incarnation = 1000;
    let refused = Raw::connect(cluster.address(1))
        .authenticate(&me, 1)
        .unwrap()
        .unwrap_err();
    assert_eq!(
        (refused.refusal, refused.by_peer),
        (Refusal::Superseded, true)
    );
}

#[test]
fn nobody_polls_and_nothing_is_lost_or_piled_up() {
    const BYTES: usize = 8 << 10;
    let mut cluster = Cluster::new(2);
    let (zero, one) = (cluster.start(0, 1), cluster.start(1, 1));
    assert_eq!((next(&zero), next(&one)), (up(1, 1), up(0, 1)));
    // The sender is told to stop: the inbox, the sockets and the queue are full.
    let mut sent: u32 = 0;
    let mut refused_since = None;
    while refused_since.is_none_or(|since: Instant| since.elapsed() < Duration::from_millis(200)) {
        let mut bytes = vec![0; BYTES];
        bytes[..4].copy_from_slice(&sent.to_le_bytes());
        if zero.send(1, &bytes) {
            sent += 1;
            refused_since = None;
        } else {
            refused_since.get_or_insert_with(Instant::now);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(sent < 100_000, "nothing holds the sender back");
    }
    let read = one.counters().messages_in as usize;
    assert!(
        read * BYTES <= limits::INBOX_BYTES_MAX + FRAME_BYTES_MAX,
        "{read} messages read"
    );
    assert!(zero.counters().queue_full > 0);
    for expected in 0..sent {
        match next(&one) {
            Event::Message { peer: 0, bytes } => {
                assert_eq!(
                    (bytes.len(), &bytes[..4]),
                    (BYTES, &expected.to_le_bytes()[..])
                );
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(one.counters().messages_in, u64::from(sent));
    assert!(zero.send(1, b"again"));
    assert_eq!(next(&one), message(0, b"again"));
}

#[test]
fn a_wait_ends_when_it_is_woken() {
    let mut cluster = Cluster::new(1);
    let mesh = cluster.start(0, 1);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let started = Instant::now();
            (mesh.wait(PATIENCE), started.elapsed())
        });
        mesh.wake();
        let (event, waited) = waiter.join().unwrap();
        assert!(!event && waited < PATIENCE / 2, "{waited:?}");
    });
    assert!(!mesh.wait(Duration::from_millis(1)), "nothing to wake for");
}

#[test]
fn a_status_client_with_the_key_is_answered() {
    let mut cluster = Cluster::new(2);
    let one = cluster.start(1, 1);
    let address = cluster.address(1);
    assert_eq!(
        query_status(address, &psk(), "tests").unwrap(),
        b"",
        "none was set"
    );
    for status in [&b"all is well"[..], &vec![9; MESSAGE_BYTES_MAX]] {
        one.set_status(status);
        assert!(query_status(address, &psk(), "tests").unwrap() == status);
    }
    assert_eq!(one.counters().status_answers, 3);

    let failed =
        |psk: &Psk, cluster: &str| query_status(address, psk, cluster).unwrap_err().to_string();
    let wrong_key = Psk::new(b"another key for tests").unwrap();
    assert_eq!(
        failed(&wrong_key, "tests"),
        format!("{address}: authentication failed: do both have the same key?")
    );
    let said = failed(&psk(), "other");
    assert!(
        said.contains("cluster \"other\" here and \"tests\" there"),
        "{said}"
    );
    for kind in [RefusalKind::Authentication, RefusalKind::Cluster] {
        until("it is counted", || one.counters().refused(kind) == 1);
    }
    let counters = one.counters();
    assert_eq!((counters.status_answers, counters.up), (3, 0));

    // Somebody who takes the connection and says nothing; and nobody.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = silent.local_addr().unwrap();
    let started = Instant::now();
    let said = query_status(address, &psk(), "tests")
        .unwrap_err()
        .to_string();
    assert!(
        said.starts_with(&format!("{address} does not answer: ")),
        "{said}"
    );
    assert!(started.elapsed() < HANDSHAKE_LIMIT * 3);
    drop(silent);
    let said = query_status(address, &psk(), "tests")
        .unwrap_err()
        .to_string();
    assert!(
        said.starts_with(&format!("cannot connect to {address}: ")),
        "{said}"
    );
}

/// Prints what a round trip takes, and asserts only that it is not out of all proportion.
#[test]
fn a_round_trip_is_short() {
    const ROUNDS: usize = 2000;
    let mut cluster = Cluster::new(2);
    let (zero, one) = (cluster.start(0, 1), cluster.start(1, 1));
    assert_eq!((next(&zero), next(&one)), (up(1, 1), up(0, 1)));
    let mut times = Vec::with_capacity(ROUNDS);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                let Event::Message { bytes, .. } = next(&one) else {
                    panic!("no message");
                };
                assert!(one.send(0, &bytes));
            }
        });
        for round in 0..ROUNDS {
            let started = Instant::now();
            assert!(zero.send(1, &round.to_le_bytes()));
            assert_eq!(next(&zero), message(1, &round.to_le_bytes()));
            times.push(started.elapsed());
        }
    });
    times.sort();
    let at = |part: usize| times[(ROUNDS - 1) * part / 100].as_micros();
    println!(
        "round trip of 8 bytes: p50 {} us, p90 {} us, p99 {} us",
        at(50),
        at(90),
        at(99)
    );
    assert!(times[ROUNDS / 2] < Duration::from_millis(20));
}
