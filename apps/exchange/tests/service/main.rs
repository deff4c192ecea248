//! The exchange as three processes, with FIX clients that lose their leader and send nonsense.

mod client;
mod feed;
mod nodes;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use client::Client;
use feed::Receiver;
use mu_exchange::exchange::SYMBOLS;
use mu_exchange::fix::message::Body;
use mu_exchange::flow::{Flow, Mix};
use nodes::{Nodes, PATIENCE};

/// A limit order of one client.
fn limit(name: &str, side: u8, price: &str, quantity: u64) -> Body {
    Body::default()
        .with(11, name)
        .with(55, "ALPHA")
        .with(54, side)
        .with(38, quantity)
        .with(40, 2)
        .with(44, price)
}

fn reports(client: &Client, name: &str) -> Vec<String> {
    let about = client.heard.iter().filter(|heard| heard.get(11) == name);
    about.map(|heard| heard.get(150).to_owned()).collect()
}

#[test]
fn a_leader_killed_under_load_loses_nothing_and_doubles_nothing() {
    const ORDERS: usize = 3000;
    const IN_FLIGHT: usize = 100;
    let seed = 5;
    let mut nodes = Nodes::form(&[]);
    let addresses = nodes.clients();
    let mut client = Client::new("FLOW");
    client.find(&addresses);
    let mut flow = Flow::new(seed, SYMBOLS.len() as u16, Mix::ALL);
    let mut asked: Vec<String> = Vec::new();
    // Every request has exactly one first answer: new, replaced, cancelled on request, or a reject.
    let answered = |client: &Client| {
        let firsts = client.heard.iter().filter(|heard| {
            let cancel = heard.get(150) == "4" && !heard.get(41).is_empty();
            heard.kind == "9" || ["0", "5", "8"].contains(&heard.get(150)) || cancel
        });
        firsts.count()
    };
    let mut killed = Vec::new();
    while asked.len() < ORDERS {
        if !client.is_on() {
            client.find(&addresses);
        }
        while client.is_on() && asked.len() < ORDERS && asked.len() < answered(&client) + IN_FLIGHT
        {
            let order = flow.next_order();
            client.order(&order, SYMBOLS[usize::from(order.symbol)]);
            let name = u64::from_le_bytes(order.name.0[..8].try_into().expect("eight bytes"));
            asked.push(name.to_string());
        }
        if killed.len() < 2 && asked.len() >= ORDERS * (1 + killed.len()) / 3 {
            // With commands on their way to it.
            let leader = nodes.leader();
            nodes.kill(leader);
            killed.push(leader);
            if killed.len() < 2 {
                client.find(&addresses);
                nodes.start(leader, false, &[]);
                nodes.at_rest();
            }
        }
        let heard = client.heard.len();
        client.wait(|client| client.heard.len() > heard);
        let stuck = client.is_on() && client.heard.len() == heard;
        assert!(
            !stuck,
            "{} asked, {} answers\n{}",
            asked.len(),
            answered(&client),
            nodes.logs()
        );
    }
    while answered(&client) < ORDERS {
        if !client.is_on() {
            client.find(&addresses);
        }
        let all = client.wait(|client| answered(client) >= ORDERS);
        assert!(
            all || !client.is_on(),
            "{} answers\n{}",
            answered(&client),
            nodes.logs()
        );
    }
    nodes.start(killed[1], false, &[]);
    // Nothing comes after the last answer.
    client.hear();
    let mut firsts: HashMap<&str, u32> = HashMap::new();
    for heard in &client.heard {
        assert!(heard.kind == "8" || heard.kind == "9", "{heard:?}");
        let cancel = heard.get(150) == "4" && !heard.get(41).is_empty();
        if heard.kind == "9" || ["0", "5", "8"].contains(&heard.get(150)) || cancel {
            *firsts.entry(heard.get(11)).or_default() += 1;
        }
    }
    for name in &asked {
        assert_eq!(
            firsts.get(name.as_str()),
            Some(&1),
            "answers to request {name}, seed {seed}"
        );
    }
    let mut ids: Vec<&str> = client
        .heard
        .iter()
        .map(|heard| heard.get(17))
        .filter(|id| !id.is_empty())
        .collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "every execution has its own ExecID");
    let pictures = nodes.at_rest();
    assert_eq!(
        pictures[0]["orders"], ORDERS as u64,
        "each was applied once"
    );
    assert!(
        pictures[0]["trades"].as_u64() > Some(100),
        "{}",
        pictures[0]
    );
    assert!(
        pictures.iter().all(|picture| *picture == pictures[0]),
        "{pictures:#?}"
    );
}

#[test]
fn a_follower_names_the_leader_and_clients_learn_what_is_wrong() {
    let nodes = Nodes::form(&[]);
    nodes.at_rest();
    let leader = nodes.leader();
    let mut client = Client::new("A");
    let follower = (0..3).find(|id| *id != leader).expect("three");
    client.connect(nodes.client(follower));
    client.logon();
    let said = client
        .wait_any(|heard| heard.kind == "5")
        .expect("a logout");
    assert!(
        said.get(58).contains(&nodes.client(leader).to_string()),
        "{said:?}"
    );
    // The number that this logon had is missed by the leader, asked for, and left out.
    client.connect(nodes.client(leader));
    client.logon();
    client.application("D", limit("a", 1, "10.00", 100));
    assert!(
        client.wait(|client| reports(client, "a") == ["0"]),
        "{:?}",
        client.heard
    );

    // A field that is wrong: a session-level reject that names it, and the session goes on.
    client.application("D", limit("b", 3, "10.00", 100));
    client.application("D", limit("c", 1, "ten", 100));
    client.application("Q", Body::default().with(11, "d"));
    client.application("D", limit("e", 1, "11.00", 0));
    client.application("D", limit("a", 1, "11.00", 1));
    assert!(
        client.wait(|client| client.heard.len() == 6),
        "{:?}",
        client.heard
    );
    let said: Vec<(&str, &str)> = client.heard[1..]
        .iter()
        .map(|h| (h.kind.as_str(), h.get(371)))
        .collect();
    assert_eq!(
        said,
        [("3", "54"), ("3", "44"), ("j", ""), ("8", ""), ("8", "")]
    );
    assert_eq!(client.heard[4].get(103), "13", "a wrong quantity");
    assert_eq!(client.heard[5].get(103), "6", "a duplicate");
    assert!(
        nodes
            .log(leader)
            .contains("a malformed message is rejected")
    );

    // A garbled message is left out and had when it is sent again.
    let number = client.out_next;
    client.out_next += 1;
    let body = limit("f", 1, "9.00", 1);
    client.raw(b"8=FIX.4.4\x019=5\x0135=D\x0110=000\x01");
    client.sent.insert(number, Some(("D", body)));
    client.admin("1", Body::default().with(112, "there?"));
    assert!(
        client.wait(|client| reports(client, "f") == ["0"]),
        "{:?}",
        client.heard
    );

    // A retry with its old number is not carried out again; without PossDupFlag it ends the session.
    client.write(number, "D", &limit("f", 1, "9.00", 1), true);
    client.admin("1", Body::default().with(112, "still?"));
    client
        .wait_any(|heard| heard.get(112) == "still?")
        .expect("a heartbeat");
    assert_eq!(reports(&client, "f"), ["0"]);
    client.write(number, "D", &limit("f", 1, "9.00", 1), false);
    let said = client
        .wait_any(|heard| heard.kind == "5")
        .expect("a logout");
    assert!(said.get(58).contains("MsgSeqNum too low"), "{said:?}");
    let orders = nodes.status(leader).expect("it runs")["orders"].clone();
    assert_eq!(orders, 4, "a, e, a again, f");
}

#[test]
fn a_dying_client_a_flood_and_nonsense_hurt_nobody_else() {
    const FLOOD: usize = 10_000;
    let nodes = Nodes::form(&[]);
    let addresses = nodes.clients();
    let leader = nodes.leader();
    let mut good = Client::new("GOOD");
    good.find(&addresses);
    // One dies in the middle of a message.
    let mut dying = Client::new("DYING");
    dying.find(&addresses);
    dying.application("D", limit("whole", 1, "5.00", 1));
    assert!(
        dying.wait(|client| reports(client, "whole") == ["0"]),
        "{:?}\n{}",
        dying.heard,
        nodes.logs()
    );
    // Only now: a request to send again may come behind the logon, and the answer would end up in the half message.
    dying.raw(b"8=FIX.4.4\x019=120\x0135=D\x0149=DYING\x0156=MU\x0134=3\x0111=half\x01");
    dying.leave();
    // Others send nonsense.
    for nonsense in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 4096],
        b"8=FIX.4.2\x01",
        &[b'x'; 300],
    ] {
        let mut other = Client::new("OTHER");
        other.connect(nodes.client(leader));
        other.raw(nonsense);
    }
    // One sends a flood and reads nothing meanwhile.
    let address = nodes.client(leader);
    let flood = std::thread::spawn(move || {
        let mut client = Client::new("FLOOD");
        client.find(&[address]);
        for n in 0..FLOOD {
            client.application("D", limit(&n.to_string(), 1, "4.00", 1));
        }
        assert!(
            client.wait(|client| client.heard.len() >= FLOOD),
            "{} answers",
            client.heard.len()
        );
        assert!(client.heard.iter().all(|heard| heard.get(150) == "0"));
    });
    for n in 0..50 {
        let name = format!("g{n}");
        good.application("D", limit(&name, 1, "6.00", 1));
        assert!(
            good.wait(|client| reports(client, &name) == ["0"]),
            "{n}: {:?}\n{}",
            good.heard,
            nodes.logs()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    flood.join().expect("the flood is answered");
    let pictures = nodes.at_rest();
    assert_eq!(pictures[0]["orders"], FLOOD as u64 + 51);
    assert!(pictures.iter().all(|picture| *picture == pictures[0]));
}

#[test]
fn a_replica_that_was_started_with_other_symbols_stops() {
    let mut symbols = SYMBOLS;
    symbols.reverse();
    let odd = symbols.join(",");
    let nodes = Nodes::form_each([&[], &[], &["--symbols", &odd]]);
    let stopped = |id| nodes.log(id).contains("its state differs");
    let mut client = Client::new("A");
    let begin = Instant::now();
    for n in 0.. {
        if stopped(2) || begin.elapsed() > PATIENCE {
            break;
        }
        if !client.is_on() {
            client.find(&nodes.clients());
        }
        let name = format!("o{n}");
        client.application("D", limit(&name, 1, "10.00", 1));
        client.wait(|client| !reports(client, &name).is_empty());
        // Replicas tell each other their states now and then.
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(
        [0, 1, 2].map(stopped),
        [false, false, true],
        "{}",
        nodes.logs()
    );
}

#[test]
fn lines_beyond_what_a_connection_holds_are_all_answered() {
    const LINES: usize = 40_000;
    let nodes = Nodes::form(&[]);
    // Whoever says no more than two lines has both answered.
    let mut short = TcpStream::connect(nodes.client(0)).expect("it listens");
    short.write_all(b"hash\nindex\n").expect("a socket");
    short.shutdown(Shutdown::Write).expect("a socket");
    assert_eq!(BufReader::new(short).lines().count(), 2);
    let stream = TcpStream::connect(nodes.client(0)).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut writer = stream.try_clone().expect("a socket");
    let lines = "status\n".repeat(LINES) + "hash\nquit\n";
    let sent = thread::spawn(move || writer.write_all(lines.as_bytes()));
    // Nothing is read until the replica has no room for answers any more.
    thread::sleep(Duration::from_secs(1));
    let answers: Result<Vec<String>, _> = BufReader::new(stream).lines().collect();
    let answers = answers.unwrap_or_else(|error| panic!("{error}\n{}", nodes.logs()));
    sent.join().expect("it ends").expect("all is taken");
    assert_eq!(answers.len(), LINES + 1);
    assert_eq!(answers[LINES].len(), 16, "{}", answers[LINES]);
}

#[test]
fn packets_of_market_data_go_on_at_another_leader_with_the_same_numbers() {
    const ORDERS: usize = 200;
    let mut receiver = Receiver::new();
    let feed = receiver.address().to_string();
    let mut nodes = Nodes::form(&["--feed", &feed]);
    let mut client = Client::new("A");
    let leader = nodes.leader();
    client.find(&nodes.clients());
    for n in 0..2 * ORDERS {
        if n == ORDERS {
            nodes.kill(leader);
            client.find(&nodes.clients());
        }
        let (side, price) = if n % 2 == 0 {
            (1, "10.00")
        } else {
            (2, "10.01")
        };
        client.application("D", limit(&format!("o{n}"), side, price, 7));
        receiver.take();
    }
    let all = client
        .wait(|client| client.heard.iter().filter(|h| h.get(150) == "0").count() == 2 * ORDERS);
    assert!(all, "{}", nodes.logs());
    receiver.take();
    assert!(
        receiver.again > 0,
        "the new leader says the last messages again"
    );
    let second = nodes.leader();
    let follower = (0..3)
        .find(|id| *id != leader && *id != second)
        .expect("three");
    // Whatever is not there is had from a replica that sends nothing itself; two messages are lost for that on purpose.
    receiver.had.remove(&1);
    receiver.had.remove(&20);
    receiver.ask(nodes.client(follower));
    let opening = 1 + SYMBOLS.len() as u64;
    let numbers: Vec<u64> = receiver.had.keys().copied().collect();
    assert_eq!(
        numbers,
        (1..=opening + 2 * ORDERS as u64).collect::<Vec<u64>>()
    );
    let kinds = receiver.had.values().map(|block| block[2]);
    assert_eq!(kinds.filter(|kind| *kind == b'A').count(), 2 * ORDERS);
}
