//! Strangers, and somebody on the wire.

use super::*;
use crate::control::handshake::Acceptor;
use crate::control::wire::Frame;

/// A member that answers by hand: what `answer` makes of each frame of the dialer.
fn false_acceptor(
    listener: TcpListener,
    mut answer: impl FnMut(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut raw = Raw::over(stream);
        while let Some(frame) = raw.frame() {
            for reply in answer(&frame) {
                let mut out = Vec::new();
                frame::push(&mut out, &[&reply]);
                raw.send(&out);
            }
        }
    })
}

/// Waits until the dialer of a mesh has refused somebody for this reason; it must not have come up.
fn refuses(mesh: &Mesh, kind: RefusalKind) {
    until("it refuses", || mesh.counters().refused(kind) > 0);
    assert_eq!(mesh.counters().up, 0);
}

#[test]
fn a_handshake_that_is_replayed_proves_nothing() {
    let mut cluster = Cluster::new(2);
    let one = cluster.start(1, 1);
    let (recorded, mut with) = Raw::come_up(cluster.address(1), &cluster.identity(0), 1);
    assert_eq!(next(&one), up(0, 1000));
    let mut recorded = recorded;
    recorded.seal(&mut with, Kind::Message, b"pay 100");
    assert_eq!(next(&one), message(0, b"pay 100"));
    let bytes = recorded.sent.clone();
    drop(recorded);
    assert_eq!(next(&one), Event::Down { peer: 0 });

    let mut replay = Raw::connect(cluster.address(1));
    replay.send(&bytes);
    assert!(matches!(
        Frame::decode(&replay.frame().unwrap()),
        Some(Frame::Challenge { .. })
    ));
    // What else is said, if it gets through before the end, is that it failed.
    assert!(
        replay
            .frame()
            .is_none_or(|frame| frame == Frame::Failed.encode())
    );
    until("it is counted", || {
        one.counters().refused(RefusalKind::Authentication) == 1
    });
    assert_eq!((one.counters().up, one.poll()), (1, None));
}

#[test]
fn a_frame_that_is_sent_back_is_no_frame() {
    let mut cluster = Cluster::new(2);
    let one = cluster.start(1, 1);
    let (mut raw, _with) = Raw::come_up(cluster.address(1), &cluster.identity(0), 1);
    assert_eq!(next(&one), up(0, 1000));
    // It has the number that the next frame of the other direction has.
    assert!(one.send(0, b"pay 100"));
    let frame = raw.frame().unwrap();
    let mut back = Vec::new();
    frame::push(&mut back, &[&frame]);
    raw.send(&back);
    let (peer, refusal, by_peer) = (0, Refusal::BadMac, false);
    assert_eq!(
        next(&one),
        Event::Refused {
            peer,
            refusal,
            by_peer
        }
    );
    assert_eq!(next(&one), Event::Down { peer: 0 });
}

#[test]
fn a_handshake_that_is_sent_back_proves_nothing() {
    // Word for word.
    let mut cluster = Cluster::new(2);
    let listener = cluster.listeners[1].take().unwrap();
    let echo = false_acceptor(listener, |frame| vec![frame.to_vec()]);
    let zero = cluster.start(0, 1);
    refuses(&zero, RefusalKind::Malformed);
    drop(zero);
    echo.join().unwrap();

    // The dialer's own proof, dressed as the acceptor's.
    let mut cluster = Cluster::new(2);
    let listener = cluster.listeners[1].take().unwrap();
    let who = introduction_of(&cluster, 1);
    let dressed = false_acceptor(listener, move |frame| match Frame::decode(frame) {
        Some(Frame::Hello { nonce, .. }) => vec![Frame::Challenge { nonce }.encode()],
        Some(Frame::Proof(proof)) => {
            let (code, who) = (0, who.clone());
            vec![Frame::Verdict { code, proof, who }.encode()]
        }
        other => panic!("{other:?}"),
    });
    let zero = cluster.start(0, 1);
    refuses(&zero, RefusalKind::Authentication);
    drop(zero);
    dressed.join().unwrap();
}

/// The control of the test above: the same false acceptor with the key is believed, so it is the proof that is missing.
#[test]
fn the_same_acceptor_with_the_key_is_believed() {
    let mut cluster = Cluster::new(2);
    let listener = cluster.listeners[1].take().unwrap();
    let me = cluster.identity(1);
    let mut acceptor = Acceptor::new([3; NONCE_BYTES]);
    let with_key = false_acceptor(listener, move |frame| {
        let mut out = Vec::new();
        let done = acceptor.on_frame(&me, &|_, _| false, frame, &mut out);
        let mut reader = Reader::new(FRAME_BYTES_MAX);
        if let Ok(Some(mut with)) = done {
            with.sealer
                .seal(Kind::Hello, b"hello of 1 in 1001", &mut out);
        }
        reader.fill(&mut &out[..]).unwrap();
        let mut frames = Vec::new();
        while let Ok(Some(frame)) = reader.next() {
            frames.push(frame.to_vec());
        }
        frames
    });
    let zero = cluster.start(0, 1);
    assert_eq!(next(&zero), up(1, 1001));
    drop(zero);
    with_key.join().unwrap();
}

fn introduction_of(cluster: &Cluster, id: u8) -> wire::Introduction {
    let me = cluster.identity(id);
    wire::Introduction {
        version: me.version,
        purpose: Purpose::Peer,
        from: id,
        to: 0,
        incarnation: me.incarnation,
        layout: me.layout,
        cluster: me.cluster,
    }
}

#[test]
fn a_dialer_that_is_led_back_to_itself_sees_it() {
    let mut cluster = Cluster::new(2);
    let listener = cluster.listeners[1].take().unwrap();
    let zero = cluster.start(0, 1);
    let address = cluster.address(0);
    let relay = std::thread::spawn(move || {
        let (mut dialer, _) = listener.accept().unwrap();
        let mut itself = TcpStream::connect(address).unwrap();
        let (mut from, mut to) = (dialer.try_clone().unwrap(), itself.try_clone().unwrap());
        let there = std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        let _ = std::io::copy(&mut itself, &mut dialer);
        let _ = there.join().unwrap();
    });
    refuses(&zero, RefusalKind::SameId);
    drop(zero);
    relay.join().unwrap();
}

#[test]
fn somebody_on_the_wire_who_changes_a_bit_is_noticed() {
    // Every byte of the hello is under the proof: a change makes it malformed or the proof wrong.
    let cluster = Cluster::new(2);
    let (zero, one) = (cluster.identity(0), cluster.identity(1));
    let mut hello = Vec::new();
    Dialer::start(&zero, Purpose::Peer, 1, [5; NONCE_BYTES], &mut hello);
    let hello = hello.split_off(4);
    for bit in 0..hello.len() * 8 {
        let mut out = Vec::new();
        let mut dialer = Dialer::start(&zero, Purpose::Peer, 1, [5; NONCE_BYTES], &mut out);
        let mut acceptor = Acceptor::new([6; NONCE_BYTES]);
        let mut changed = hello.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        out.clear();
        let refusal = match acceptor.on_frame(&one, &|_, _| false, &changed, &mut out) {
            Err(refused) => refused.refusal,
            Ok(_) => {
                let challenge = std::mem::take(&mut out).split_off(4);
                dialer.on_frame(&zero, &challenge, &mut out).unwrap();
                let proof = std::mem::take(&mut out).split_off(4);
                let judged = acceptor.on_frame(&one, &|_, _| false, &proof, &mut out);
                judged.unwrap_err().refusal
            }
        };
        let expected = [Refusal::Malformed, Refusal::Authentication];
        assert!(expected.contains(&refusal), "bit {bit}: {refusal}");
    }
}

#[test]
fn one_who_says_nothing_is_sent_away_in_time() {
    let mut cluster = Cluster::new(2);
    let one = cluster.start(1, 1);
    let started = Instant::now();
    let mut silent = Raw::connect(cluster.address(1));
    // One that never stops, a byte at a time, is no better off.
    let mut dripping = TcpStream::connect(cluster.address(1)).unwrap();
    let mut hello = Vec::new();
    Dialer::start(
        &cluster.identity(0),
        Purpose::Peer,
        1,
        [0; NONCE_BYTES],
        &mut hello,
    );
    let dripped = hello.iter().position(|byte| {
        std::thread::sleep(HANDSHAKE_LIMIT / 20);
        dripping.write_all(&[*byte]).is_err()
    });
    assert!(dripped.is_some(), "it could say all of it");
    assert!(silent.is_closed());
    let took = started.elapsed();
    assert!(
        took >= HANDSHAKE_LIMIT && took < HANDSHAKE_LIMIT * 4,
        "{took:?}"
    );
    assert_eq!(one.counters().refused(RefusalKind::TimeOut), 2);
}

#[test]
fn half_open_connections_are_bounded_and_hinder_nobody() {
    const EXTRA: usize = 7;
    let mut cluster = Cluster::new(2);
    let one = cluster.start(1, 1);
    let mut silent = Vec::new();
    for _ in 0..HANDSHAKES_MAX + EXTRA {
        silent.push(Raw::connect(cluster.address(1)));
    }
    until("the oldest made room", || {
        one.counters().refused(RefusalKind::Crowded) == EXTRA as u64
    });
    let zero = cluster.start(0, 1);
    assert_eq!((next(&zero), next(&one)), (up(1, 1), up(0, 1)));
    for raw in &mut silent[..EXTRA] {
        assert!(raw.is_closed());
    }
    // They made room; they were not sent away for their time, nor did anybody wait for that.
    assert_eq!(one.counters().refused(RefusalKind::TimeOut), 0);
}

#[test]
fn a_flood_of_connections_leaves_members_in_touch() {
    let mut cluster = Cluster::new(2);
    let (zero, one) = (cluster.start(0, 1), cluster.start(1, 1));
    assert_eq!((next(&zero), next(&one)), (up(1, 1), up(0, 1)));
    let address = cluster.address(1);
    let over = std::sync::atomic::AtomicBool::new(false);
    let mut slowest = Duration::ZERO;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // As many at a time as the descriptors of this process allow for, again and again.
            for round in 0..20 {
                let kept: Vec<_> = (0..100)
                    .filter_map(|_| TcpStream::connect(address).ok())
                    .collect();
                for mut stream in &kept {
                    let _ = stream.write_all(&[round; 3]);
                }
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let mut rounds = 0;
        while !over.load(std::sync::atomic::Ordering::Relaxed) || rounds == 0 {
            let started = Instant::now();
            assert!(zero.send(1, b"ping"));
            assert_eq!(next(&one), message(0, b"ping"));
            slowest = slowest.max(started.elapsed());
            rounds += 1;
        }
    });
    let counters = one.counters();
    println!(
        "{} accepted, slowest message in between {slowest:?}",
        counters.accepted
    );
    assert!(counters.accepted > 100, "no flood");
    assert_eq!((counters.up, counters.down), (1, 0));
    assert!(slowest < HANDSHAKE_LIMIT, "{slowest:?}");
}

#[test]
fn random_bytes_on_the_wire_leave_a_mesh_as_it_was() {
    use rand_chacha::rand_core::{Rng, SeedableRng};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let mut cluster = Cluster::new(2);
    let one = cluster.start(1, 1);
    for round in 0..200_usize {
        let mut bytes = vec![0; round * 7 % 900];
        random.fill_bytes(&mut bytes);
        if round % 2 == 0 && bytes.len() > 4 {
            // With a length that fits, so that it gets further.
            let length = (bytes.len() - 4) as u32 % 600;
            bytes[..4].copy_from_slice(&length.to_le_bytes());
        }
        Raw::connect(cluster.address(1)).send(&bytes);
    }
    let zero = cluster.start(0, 1);
    assert_eq!((next(&zero), next(&one)), (up(1, 1), up(0, 1)));
    let counters = one.counters();
    assert!(
        counters.refused(RefusalKind::Malformed) > 10
            && counters.refused(RefusalKind::FrameTooBig) > 10
    );
}
