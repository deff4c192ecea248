//! Every reason to refuse a connection: both sides say it, and both count it.

use super::*;

/// Changes a member into one that is to be refused.
type Change = fn(&mut Identity);

/// Who dials replica 1 (0 but for the change), whom it asks for, and what it is told.
#[rustfmt::skip]
const REFUSED: &[(Change, u8, RefusalKind, &str)] = &[
    (|me| me.key = Key::new(b"the key of the testt"), 1, RefusalKind::Authentication,
     "authentication failed: do both have the same key?"),
    (|me| me.version = 77, 1, RefusalKind::Version,
     "protocol version 77 here and 2 there: run the same build of mu on both"),
    (|me| me.cluster = "other".into(), 1, RefusalKind::Cluster,
     "cluster \"other\" here and \"tests\" there: one of them has the wrong cluster.toml or the wrong address"),
    (|me| me.id = 1, 1, RefusalKind::SameId, "both are replica 1: give every process an id of its own"),
    (|me| me.id = 8, 1, RefusalKind::UnknownId,
     "no member has id 8: add it to replicas in cluster.toml, or start it with the right id"),
    (|_| (), 2, RefusalKind::WrongReplica,
     "replica 2 was expected and replica 1 is there: look at the addresses in replicas"),
    (|me| me.layout.members ^= 1, 1, RefusalKind::Layout,
     "cluster.toml differs in replicas (id, control, client): give all members the same file"),
    (|me| me.layout.log ^= 1, 1, RefusalKind::Layout,
     "cluster.toml differs in log (backend, log_bytes, max_command_bytes, checksum): give all members the same file"),
    (|me| { me.layout.log ^= 1; me.layout.limits ^= 1 }, 1, RefusalKind::Layout, "checksum) and limits (window, "),
    // The higher id dials.
    (|me| me.id = 2, 1, RefusalKind::Malformed, "a frame is malformed"),
];

#[test]
fn a_dialer_that_does_not_fit_is_told_why_once_it_is_authenticated() {
    let mut cluster = Cluster::new(3);
    let one = cluster.start(1, 1);
    // It dials replica 2, which is not there.
    cluster.listeners[2] = None;
    let mut expected = std::collections::HashMap::new();
    for (change, to, kind, said) in REFUSED {
        let mut me = cluster.identity(0);
        change(&mut me);
        let refused = Raw::connect(cluster.address(1))
            .authenticate(&me, *to)
            .unwrap()
            .unwrap_err();
        let text = refused.refusal.to_string();
        assert_eq!(refused.refusal.kind(), *kind, "{text}");
        assert!(text.contains(said), "{text}");
        assert!(refused.by_peer);
        *expected.entry(*kind).or_insert(0) += 1;
        until("it is counted", || {
            one.counters().refused(*kind) == expected[kind]
        });
    }
    let counters = one.counters();
    for kind in RefusalKind::ALL {
        assert_eq!(
            counters.refused(*kind),
            expected.get(kind).copied().unwrap_or(0),
            "{kind:?}"
        );
    }
    assert_eq!(counters.up, 0);

    // The same dialer without a change, so that it was the changes.
    let _ = Raw::come_up(cluster.address(1), &cluster.identity(0), 1);
    until("it is up", || one.counters().up == 1);
}

#[test]
fn a_stranger_learns_nothing() {
    let mut cluster = Cluster::new(2);
    let _one = cluster.start(1, 1);
    let mut me = cluster.identity(0);
    me.key = Key::new(b"not the key of it");
    let mut raw = Raw::connect(cluster.address(1));
    let mut out = Vec::new();
    let mut dialer = Dialer::start(&me, Purpose::Peer, 1, [1; NONCE_BYTES], &mut out);
    raw.send(&std::mem::take(&mut out));
    let challenge = raw.frame().unwrap();
    dialer.on_frame(&me, &challenge, &mut out).unwrap();
    raw.send(&out);
    let failed = raw.frame().unwrap();
    assert_eq!(failed, wire::Frame::Failed.encode());
    assert!(raw.is_closed());
    // A nonce and a name of the protocol are all that was said.
    assert_eq!(challenge.len(), 1 + 8 + NONCE_BYTES);
}

#[test]
fn two_meshes_with_unequal_files_both_say_so() {
    let mut cluster = Cluster::new(2);
    let zero = cluster.start(0, 1);
    let mut me = cluster.identity(1);
    me.layout.limits ^= 1;
    let listener = cluster.listeners[1].take().unwrap();
    let one = Mesh::run(listener, me, &[(0, Some(cluster.address(0)))], b"").unwrap();
    for (mesh, peer, by_peer) in [(&zero, 1, true), (&one, 0, false)] {
        let Event::Refused {
            peer: who,
            refusal,
            by_peer: by,
        } = next(mesh)
        else {
            panic!("not refused");
        };
        assert_eq!((who, by), (peer, by_peer));
        let text = refusal.to_string();
        assert!(
            text.starts_with("cluster.toml differs in limits (window, heartbeat_us"),
            "{text}"
        );
    }
    until("each attempt is counted on both sides", || {
        zero.counters().refused_by_peer(RefusalKind::Layout) > 2
            && one.counters().refused(RefusalKind::Layout) > 2
    });
    assert_eq!((zero.poll(), one.poll()), (None, None), "told once");
}

#[test]
fn two_meshes_with_unequal_keys_do_not_meet() {
    let mut cluster = Cluster::new(2);
    let zero = cluster.start(0, 1);
    let mut me = cluster.identity(1);
    me.key = Key::new(b"the key of somebody else");
    let listener = cluster.listeners[1].take().unwrap();
    let one = Mesh::run(listener, me, &[(0, Some(cluster.address(0)))], b"").unwrap();
    let refused = Event::Refused {
        peer: 1,
        refusal: Refusal::Authentication,
        by_peer: true,
    };
    assert_eq!(next(&zero), refused);
    until("it is counted", || {
        one.counters().refused(RefusalKind::Authentication) > 2
    });
    assert_eq!(one.poll(), None, "nobody has proved to be anybody");
    assert_eq!(zero.counters().up + one.counters().up, 0);
}

/// What ends a connection that was up, and what it is counted as.
#[test]
fn a_wrong_frame_ends_a_connection() {
    let mut cluster = Cluster::new(2);
    let one = cluster.start(1, 1);
    type Offence = fn(&mut Raw, &mut Authenticated);
    let offences: [(Offence, Refusal); 6] = [
        (
            |raw, _| raw.send(&(FRAME_BYTES_MAX as u32 + 1).to_le_bytes()),
            Refusal::FrameTooBig,
        ),
        (|raw, _| raw.send(&[0, 0, 0, 0]), Refusal::Malformed),
        (
            |raw, with| raw.seal(with, Kind::Hello, b"again"),
            Refusal::Malformed,
        ),
        (
            |raw, with| {
                let mut out = Vec::new();
                with.sealer.seal(Kind::Message, b"changed", &mut out);
                let at = out.len() - 20;
                out[at] ^= 1;
                raw.send(&out);
            },
            Refusal::BadMac,
        ),
        (
            |raw, with| {
                let mut out = Vec::new();
                with.sealer.seal(Kind::Message, b"twice", &mut out);
                raw.send(&out);
                raw.send(&out);
            },
            Refusal::Replayed,
        ),
        (
            // A message of a former session, under its own keys.
            |raw, with| {
                let mut other = Vec::new();
                let mut sealer = session::Sealer::new(Key::new(b"of another session"));
                sealer.seal(Kind::Message, b"old", &mut other);
                raw.send(&other);
                let _ = with;
            },
            Refusal::BadMac,
        ),
    ];
    for (offend, refusal) in offences {
        let before = one.counters().refused(refusal.kind());
        let (mut raw, mut with) = Raw::come_up(cluster.address(1), &cluster.identity(0), 1);
        assert_eq!(next(&one), up(0, 1000));
        raw.seal(&mut with, Kind::Message, b"right");
        assert_eq!(next(&one), message(0, b"right"));
        offend(&mut raw, &mut with);
        if refusal == Refusal::Replayed {
            assert_eq!(next(&one), message(0, b"twice"));
        }
        let (peer, by_peer) = (0, false);
        let counted = refusal.kind();
        assert_eq!(
            next(&one),
            Event::Refused {
                peer,
                refusal,
                by_peer
            }
        );
        assert_eq!(next(&one), Event::Down { peer: 0 });
        assert!(raw.is_closed());
        assert_eq!(one.counters().refused(counted), before + 1, "{counted:?}");
    }
}

#[test]
fn before_the_handshake_frames_are_short_and_in_order() {
    let mut cluster = Cluster::new(2);
    let one = cluster.start(1, 1);
    let address = cluster.address(1);
    let mut expected = 0;
    let proof = wire::Frame::Proof([0; 32]).encode();
    let challenge = wire::Frame::Challenge { nonce: [0; 32] }.encode();
    for wrong in [
        &b""[..],
        b"GET / HTTP/1.1",
        &proof,
        &challenge,
        &[0xff; HANDSHAKE_FRAME_BYTES_MAX],
    ] {
        let mut out = Vec::new();
        frame::push(&mut out, &[wrong]);
        let mut raw = Raw::connect(address);
        raw.send(&out);
        assert!(raw.is_closed());
        expected += 1;
        assert_eq!(one.counters().refused(RefusalKind::Malformed), expected);
    }
    for length in [HANDSHAKE_FRAME_BYTES_MAX as u32 + 1, u32::MAX] {
        let mut raw = Raw::connect(address);
        raw.send(&length.to_le_bytes());
        assert!(raw.is_closed());
    }
    assert_eq!(one.counters().refused(RefusalKind::FrameTooBig), 2);
    // Half a frame and then the end is no offence, and leaves nothing behind.
    let mut raw = Raw::connect(address);
    raw.send(&[200, 0, 0, 0, 1]);
    drop(raw);
    let _ = Raw::come_up(address, &cluster.identity(0), 1);
    assert_eq!(next(&one), up(0, 1000));
}
