//! Encodings round-trip and refuse nonsense; the store agrees with a plain map; client and server keep the contract.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mu_protocol::machine::{Command, StateMachine};
use proptest::prelude::*;

use super::wire::{Frames, GREETING, Request, Response};
use super::{Answer, Client, ClientError, ClientOptions, Connection, Op, Server, Store};
use crate::host::{Handle, Inproc};

/// An [`Op`] that owns its bytes.
#[derive(Clone, Debug)]
enum Owned {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    Cas(Vec<u8>, Option<Vec<u8>>, Vec<u8>),
    Add(Vec<u8>, i64),
}

impl Owned {
    fn op(&self) -> Op<'_> {
        match self {
            Self::Put(key, value) => Op::Put { key, value },
            Self::Delete(key) => Op::Delete { key },
            Self::Cas(key, expected, new) => Op::Cas {
                key,
                expected: expected.as_deref(),
                new,
            },
            Self::Add(key, delta) => Op::Add { key, delta: *delta },
        }
    }
}

/// Few keys and values, so that commands meet.
fn ops() -> impl Strategy<Value = Owned> {
    let key = || prop::collection::vec(0..3u8, 0..2);
    let value = || prop_oneof![prop::collection::vec(0..2u8, 0..3), Just(vec![0; 8])];
    prop_oneof![
        (key(), value()).prop_map(|(k, v)| Owned::Put(k, v)),
        key().prop_map(Owned::Delete),
        (key(), prop::option::of(value()), value()).prop_map(|(k, e, v)| Owned::Cas(k, e, v)),
        (key(), any::<i64>()).prop_map(|(k, d)| Owned::Add(k, d)),
    ]
}

/// What a plain map answers.
fn model(map: &mut BTreeMap<Vec<u8>, Vec<u8>>, op: Op<'_>) -> Answer {
    match op {
        Op::Put { key, value } => {
            map.insert(key.into(), value.into());
            Answer::Done
        }
        Op::Delete { key } => map.remove(key).map_or(Answer::Missing, |_| Answer::Done),
        Op::Cas { key, expected, new } => {
            if map.get(key).map(Vec::as_slice) != expected {
                return Answer::Differs;
            }
            map.insert(key.into(), new.into());
            Answer::Done
        }
        Op::Add { key, delta } => {
            let old = map.get(key).map_or(Ok([0; 8]), |v| v.as_slice().try_into());
            let Ok(old) = old else {
                return Answer::NoNumber;
            };
            let sum = i64::from_le_bytes(old).wrapping_add(delta);
            map.insert(key.into(), sum.to_le_bytes().into());
            Answer::Number(sum)
        }
    }
}

fn apply(store: &mut Store, bytes: &[u8]) -> Option<Answer> {
    let command = Command {
        index: 1,
        place: 0,
        time_ns: 0,
        client: 0,
        sequence: 0,
        bytes,
    };
    let mut reply = Vec::new();
    store.apply(&command, &mut reply);
    Answer::decode(&reply)
}

proptest! {
    #[test]
    fn the_store_agrees_with_a_plain_map_and_its_digest_with_its_state(all in prop::collection::vec(ops(), 0..60)) {
        let (mut store, mut map) = (Store::new(), BTreeMap::new());
        for owned in &all {
            let mut bytes = Vec::new();
            owned.op().encode(&mut bytes);
            prop_assert_eq!(Op::decode(&bytes), Some(owned.op()));
            prop_assert_eq!(apply(&mut store, &bytes), Some(model(&mut map, owned.op())));
        }
        prop_assert_eq!(store.len(), map.len());
        for (key, value) in &map {
            prop_assert_eq!(store.get(key), Some(value.as_slice()));
        }
        // The same state by another way has the same digest, a changed one another.
        let mut other = Store::new();
        for (key, value) in map.iter().rev() {
            other.run(Op::Put { key, value });
        }
        prop_assert_eq!(other.digest(), store.digest());
        let mut snapshot = Vec::new();
        store.snapshot(&mut snapshot);
        let mut restored = Store::new();
        restored.run(Op::Put { key: b"old", value: b"state" });
        prop_assert_eq!(restored.restore(&snapshot), Ok(()));
        prop_assert_eq!(restored.digest(), store.digest());
        restored.run(Op::Put { key: b"one", value: b"more" });
        prop_assert_ne!(restored.digest(), store.digest());
        for len in 0..snapshot.len() {
            prop_assert!(restored.restore(&snapshot[..len]).is_err());
        }
    }

    #[test]
    fn random_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let mut store = Store::new();
        prop_assert!(apply(&mut store, &bytes).is_some());
        let _ = (Request::decode(&bytes), Response::decode(&bytes), Answer::decode(&bytes));
        let mut frames = Frames::new(64);
        frames.push(&bytes);
        while let Ok(Some(frame)) = frames.next() {
            prop_assert!(frame.len() <= 64);
        }
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut(
        commands in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..10),
        cut in 1..40usize,
    ) {
        let mut bytes = Vec::new();
        for (n, command) in commands.iter().enumerate() {
            Request::Command { client: 5, sequence: n as u64, command }.encode(n as u64 + 7, &mut bytes);
            Response::Decided(command).encode(n as u64, &mut bytes);
        }
        let mut frames = Frames::new(1000);
        let mut n = 0;
        for piece in bytes.chunks(cut) {
            frames.push(piece);
            while let Some(frame) = frames.next().expect("none is too long") {
                let command = commands[n / 2].as_slice();
                let sequence = (n / 2) as u64;
                if n % 2 == 0 {
                    let request = Request::Command { client: 5, sequence, command };
                    prop_assert_eq!(Request::decode(frame), Some((sequence + 7, request)));
                } else {
                    prop_assert_eq!(Response::decode(frame), Some((sequence, Response::Decided(command))));
                }
                n += 1;
            }
        }
        prop_assert_eq!(n, 2 * commands.len());
        prop_assert!(frames.is_empty());
    }
}

#[test]
fn responses_round_trip() {
    for response in [
        Response::Value(None),
        Response::Value(Some(b"")),
        Response::Value(Some(b"v")),
        Response::NotLeader { hint: None },
        Response::NotLeader { hint: Some(8) },
        Response::Unknown,
        Response::Overloaded,
        Response::TooLarge { limit: 9 },
        Response::Stopped,
        Response::Superseded,
        Response::ReplyGone,
    ] {
        let mut frame = Vec::new();
        response.encode(3, &mut frame);
        assert_eq!(Response::decode(&frame[4..]), Some((3, response)));
    }
}

/// The largest command: with as many reads of such values in flight as there may be, more waits to be sent than may.
const COMMAND_BYTES: usize = 1030;
/// Clients of one server.
const CONNECTIONS: usize = 16;

/// Servers of an in-process group, each on a thread of its own.
struct Service {
    addresses: Vec<(u8, SocketAddr)>,
    handles: Vec<Handle>,
    threads: Vec<Option<JoinHandle<()>>>,
    stop: Vec<Arc<AtomicBool>>,
}

impl Service {
    fn start(replicas: u8) -> Self {
        Self::start_some(replicas, replicas)
    }

    /// Only the first `up` of the replicas.
    fn start_some(replicas: u8, up: u8) -> Self {
        let net = Inproc::new(replicas);
        let mut service = Self {
            addresses: Vec::new(),
            handles: Vec::new(),
            threads: Vec::new(),
            stop: Vec::new(),
        };
        for id in 0..up {
            let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
            service
                .addresses
                .push((id, listener.local_addr().expect("an address")));
            let mut options = net.options(id);
            options.settings.max_command_bytes = COMMAND_BYTES;
            let direct = net.direct(options, Store::new()).expect("it starts");
            service.handles.push(direct.handle());
            let stop = Arc::new(AtomicBool::new(false));
            service.stop.push(Arc::clone(&stop));
            let mut server = Server::new(direct, listener, None).expect("it starts");
            server.connections_max = CONNECTIONS;
            service.threads.push(Some(thread::spawn(move || {
                while !stop.load(Ordering::Acquire) && server.turn().is_none() {}
                server.stop();
            })));
        }
        service
    }

    fn stop(&mut self, id: u8) {
        self.stop[usize::from(id)].store(true, Ordering::Release);
        self.handles[usize::from(id)].wake();
        if let Some(thread) = self.threads[usize::from(id)].take() {
            thread.join().expect("the server ends well");
        }
    }

    fn client(&self) -> Client {
        let options = ClientOptions {
            patience: Duration::from_secs(20),
            attempt: Duration::from_secs(2),
        };
        Client::new(self.addresses.clone(), options).expect("a client")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        (0..self.threads.len()).for_each(|id| self.stop(id as u8));
    }
}

#[test]
fn a_client_finds_the_leader_and_goes_on_when_it_is_gone() {
    let mut service = Service::start(3);
    let mut client = service.client();
    client.put(b"k", b"v").expect("decided");
    assert_eq!(client.get(b"k").expect("read").as_deref(), Some(&b"v"[..]));
    assert_eq!(client.get(b"none").expect("read"), None);
    assert!(!client.cas(b"k", None, b"w").expect("decided"));
    assert!(client.cas(b"k", Some(b"v"), b"w").expect("decided"));
    assert_eq!(client.add(b"k", 1).expect("decided"), None, "no number");
    assert!(client.delete(b"k").expect("decided"));
    assert!(!client.delete(b"k").expect("decided"));
    for n in 1..=100 {
        assert_eq!(client.add(b"n", 1).expect("decided"), Some(n));
    }
    let leader = client.replica();
    service.stop(leader);
    for n in 101..=200 {
        assert_eq!(client.add(b"n", 1).expect("decided"), Some(n));
    }
    assert_ne!(client.replica(), leader);
    let too_large = client.put(b"k", &[0; COMMAND_BYTES + 1]);
    assert!(
        matches!(too_large, Err(ClientError::TooLarge { limit: 1030, .. })),
        "{too_large:?}"
    );
    let too_long = client.get(&[0; 2000]);
    assert!(matches!(
        too_long,
        Err(ClientError::KeyTooLong { bytes: 2000 })
    ));
}

/// A request where nobody leads is answered neither at once, for somebody may lead soon, nor never.
#[test]
fn a_request_waits_a_moment_for_a_leader() {
    let service = Service::start_some(3, 1);
    let address = service.addresses[0].1;
    let mut connection = Connection::open(address, Duration::from_secs(5)).expect("connected");
    for _ in 0..3 {
        let begin = Instant::now();
        let number = connection.send(Request::Get { key: b"k" }).expect("sent");
        let deadline = begin + Duration::from_secs(20);
        let (answered, response) = connection.receive(deadline).expect("answered");
        assert_eq!(answered, number);
        assert!(
            matches!(response, Response::NotLeader { hint: None }),
            "{response:?}"
        );
        assert!(begin.elapsed() >= super::server::LEADERLESS);
    }
    // One that does not read its answers is kept as well, and no more is read from it than has room.
    let mut flood = TcpStream::connect(address).expect("connected");
    flood.write_all(&GREETING).expect("sent");
    let mut frame = Vec::new();
    Request::Get { key: b"k" }.encode(1, &mut frame);
    let many = frame.repeat(4096);
    flood
        .set_write_timeout(Some(Duration::from_millis(500)))
        .expect("a time-out");
    let begin = Instant::now();
    while flood.write_all(&many).is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(60), "never held back");
    }
}

#[test]
fn what_may_be_decided_is_unknown_and_what_nobody_took_is_not() {
    // A replica that takes a command and says nothing, then one that refuses.
    let silent = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let options = ClientOptions {
        patience: Duration::from_millis(300),
        attempt: Duration::from_millis(50),
    };
    let nobody = {
        let gone = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        gone.local_addr().expect("an address")
    };
    let mut client = Client::new(vec![(0, nobody)], options).expect("a client");
    let outcome = client.put(b"k", b"v");
    assert!(
        matches!(outcome, Err(ClientError::Unavailable { .. })),
        "{outcome:?}"
    );
    let replicas = vec![(0, silent.local_addr().expect("an address")), (1, nobody)];
    let mut client = Client::new(replicas, options).expect("a client");
    let outcome = client.put(b"k", b"v");
    assert!(
        matches!(outcome, Err(ClientError::Unknown { .. })),
        "{outcome:?}"
    );
    let outcome = client.get(b"k");
    assert!(
        matches!(outcome, Err(ClientError::Unavailable { .. })),
        "{outcome:?}"
    );
}

/// Whether the other side closes the connection, without waiting for ever.
fn is_closed(mut stream: TcpStream) -> bool {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a time-out");
    let mut byte = [0];
    match stream.read(&mut byte) {
        Ok(0) => true,
        Ok(_) => false,
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn nonsense_ends_its_connection_and_floods_are_held_back() {
    let service = Service::start(1);
    let address = service.addresses[0].1;
    let mut client = service.client();
    client.put(b"k", b"v").expect("decided");
    let mut no_request = GREETING.to_vec();
    no_request.extend_from_slice(&[1, 0, 0, 0, 99]);
    let mut too_long = GREETING.to_vec();
    too_long.extend_from_slice(&u32::MAX.to_le_bytes());
    for nonsense in [b"GET / HTTP/1.1\r\n".to_vec(), no_request, too_long] {
        let mut stream = TcpStream::connect(address).expect("connected");
        stream.write_all(&nonsense).expect("sent");
        assert!(is_closed(stream), "{nonsense:?}");
    }
    // A client that asks and never reads: the server stops reading from it, and others are served.
    let mut flood = TcpStream::connect(address).expect("connected");
    flood.write_all(&GREETING).expect("sent");
    flood
        .set_write_timeout(Some(Duration::from_millis(500)))
        .expect("a time-out");
    let mut frame = Vec::new();
    Request::Get { key: b"k" }.encode(1, &mut frame);
    let many = frame.repeat(4096);
    let begin = Instant::now();
    while flood.write_all(&many).is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(60), "never held back");
    }
    assert_eq!(client.get(b"k").expect("read").as_deref(), Some(&b"v"[..]));
    // Pipelined requests are all answered.
    let mut connection = Connection::open(address, Duration::from_secs(5)).expect("connected");
    let mut open: Vec<u64> = (0..3000)
        .map(|_| connection.send(Request::Get { key: b"k" }).expect("sent"))
        .collect();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !open.is_empty() {
        let (number, response) = connection.receive(deadline).expect("answered");
        assert!(
            matches!(response, Response::Value(Some(b"v")) | Response::Overloaded),
            "{response:?}"
        );
        open.retain(|n| *n != number);
    }
}

/// What one client asks for comes in one piece, and the answers to a part of it are more than may wait to be sent.
#[test]
fn all_of_a_long_pipeline_of_large_values_is_answered() {
    let service = Service::start(1);
    let mut client = service.client();
    client.put(b"k", &[7; 1018]).expect("decided");
    let mut stream = TcpStream::connect(service.addresses[0].1).expect("connected");
    let mut bytes = GREETING.to_vec();
    for number in 0..3_000 {
        Request::Get { key: b"k" }.encode(number, &mut bytes);
    }
    stream.write_all(&bytes).expect("sent");
    let patience = Some(Duration::from_secs(10));
    stream.set_read_timeout(patience).expect("a time-out");
    let mut one = Vec::new();
    Response::Value(Some(&[7; 1018])).encode(0, &mut one);
    let mut answers = vec![0; 3_000 * one.len()];
    stream.read_exact(&mut answers).expect("all are answered");
    let ends_well = |answer: &[u8]| answer.ends_with(&[7; 1018]);
    assert!(answers.chunks_exact(one.len()).all(ends_well));
}

#[test]
fn whoever_does_not_greet_makes_room() {
    let service = Service::start(1);
    let address = service.addresses[0].1;
    let connect = || TcpStream::connect(address).expect("connected");
    let silent: Vec<_> = (0..CONNECTIONS).map(|_| connect()).collect();
    // They are all there before they could have made room.
    std::thread::sleep(Duration::from_millis(1500));
    let mut client = service.client();
    client.put(b"k", b"v").expect("decided");
    assert!(is_closed(silent.into_iter().next().expect("many")));
}
