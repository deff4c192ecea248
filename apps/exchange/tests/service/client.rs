//! A FIX client with the memory that FIX asks of one: it sends again what it is asked for, and counts in both
//! directions across connections.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use mu_exchange::fix::message::{Body, Frames, Header, Message, write};
use mu_exchange::order::{Force, Kind, Name, Order, Side, Type};

use crate::nodes::PATIENCE;

const STEP: Duration = Duration::from_millis(20);

/// What was said to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) kind: String,
    pub(crate) number: u64,
    pub(crate) again: bool,
    pub(crate) fields: BTreeMap<u32, String>,
}

impl Heard {
    pub(crate) fn get(&self, tag: u32) -> &str {
        self.fields.get(&tag).map_or("", String::as_str)
    }

    fn of(message: &Message<'_>) -> Self {
        let text = |tag| {
            message
                .get(tag)
                .map(|value| String::from_utf8_lossy(value).into_owned())
        };
        let tags = [
            97, 7, 11, 14, 16, 17, 36, 37, 39, 41, 45, 58, 102, 103, 112, 123, 150, 151, 371, 373,
            434,
        ];
        Self {
            kind: String::from_utf8_lossy(message.kind()).into_owned(),
            number: message.number(34).expect("a number"),
            again: message.flag(43),
            fields: tags
                .into_iter()
                .filter_map(|tag| Some((tag, text(tag)?)))
                .collect(),
        }
    }
}

pub(crate) struct Client {
    pub(crate) comp: String,
    stream: Option<(TcpStream, Frames)>,
    /// Everything with a number that was sent; `None` for what is not sent again.
    pub(crate) sent: BTreeMap<u64, Option<(&'static str, Body)>>,
    pub(crate) out_next: u64,
    pub(crate) in_next: u64,
    /// Application messages in the order of their numbers, each once.
    pub(crate) heard: Vec<Heard>,
    /// Messages that came before their turn.
    early: BTreeMap<u64, Heard>,
    asked: bool,
}

impl Client {
    pub(crate) fn new(comp: &str) -> Self {
        Self {
            comp: comp.into(),
            stream: None,
            sent: BTreeMap::new(),
            out_next: 1,
            in_next: 1,
            heard: Vec::new(),
            early: BTreeMap::new(),
            asked: false,
        }
    }

    pub(crate) fn write(&mut self, number: u64, kind: &str, body: &Body, again: bool) {
        let header = Header {
            kind,
            from: &self.comp,
            to: "MU",
            number,
            time_ns: 0,
            first_sent_ns: again.then_some(0),
        };
        let mut out = Vec::new();
        write(&header, body, &mut out);
        self.raw(&out);
    }

    /// Bytes as they are. A connection that is gone is noticed at the next read.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        if let Some((stream, _)) = &mut self.stream
            && stream.write_all(bytes).is_err()
        {
            self.stream = None;
        }
    }

    fn send(&mut self, kind: &'static str, body: Body, kept: bool) -> u64 {
        let number = self.out_next;
        self.out_next += 1;
        self.write(number, kind, &body, false);
        self.sent.insert(number, kept.then_some((kind, body)));
        number
    }

    pub(crate) fn admin(&mut self, kind: &'static str, body: Body) -> u64 {
        self.send(kind, body, false)
    }

    pub(crate) fn application(&mut self, kind: &'static str, body: Body) -> u64 {
        self.send(kind, body, true)
    }

    pub(crate) fn order(&mut self, order: &Order, symbol: &str) -> u64 {
        let name = |name: Name| u64::from_le_bytes(name.0[..8].try_into().expect("eight bytes"));
        let mut body = Body::default()
            .with(11, name(order.name))
            .with(55, symbol)
            .with(54, if order.side == Side::Buy { 1 } else { 2 });
        if order.kind != Kind::New {
            body = body.with(41, name(order.original));
        }
        if order.kind != Kind::Cancel {
            let market = order.order_type == Type::Market;
            let force = match order.force {
                Force::Day => 0,
                Force::ImmediateOrCancel => 3,
                Force::FillOrKill => 4,
            };
            body = body
                .with(38, order.quantity)
                .with(40, if market { 1 } else { 2 })
                .with(59, force);
            if !market {
                body = body.with(
                    44,
                    format_args!("{}.{:04}", order.price / 10_000, order.price % 10_000),
                );
            }
        }
        let kind = match order.kind {
            Kind::New => "D",
            Kind::Cancel => "F",
            Kind::Replace => "G",
        };
        self.application(kind, body)
    }

    pub(crate) fn connect(&mut self, address: SocketAddr) -> bool {
        self.stream = TcpStream::connect(address).ok().map(|stream| {
            stream.set_read_timeout(Some(STEP)).expect("a socket");
            stream.set_nodelay(true).expect("a socket");
            (stream, Frames::default())
        });
        self.asked = false;
        self.stream.is_some()
    }

    pub(crate) fn is_on(&self) -> bool {
        self.stream.is_some()
    }

    pub(crate) fn leave(&mut self) {
        self.stream = None;
    }

    pub(crate) fn logon(&mut self) {
        self.admin("A", Body::default().with(98, 0).with(108, 30));
    }

    /// Logs on at whichever of the replicas leads.
    pub(crate) fn find(&mut self, addresses: &[SocketAddr]) {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            for address in addresses {
                if !self.connect(*address) {
                    continue;
                }
                self.logon();
                let answer = self.wait_any(|heard| heard.kind == "A" || heard.kind == "5");
                if answer.is_some_and(|heard| heard.kind == "A") {
                    return;
                }
                self.stream = None;
            }
            std::thread::sleep(STEP);
        }
        panic!("{} finds no leader", self.comp);
    }

    /// The first message for which something holds, whatever its number; `None` when the connection ends.
    pub(crate) fn wait_any(&mut self, holds: impl Fn(&Heard) -> bool) -> Option<Heard> {
        let begin = Instant::now();
        while self.stream.is_some() && begin.elapsed() < PATIENCE {
            let found = self.hear().into_iter().find(|heard| holds(heard));
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Hears until something holds of what was heard, or the connection ends.
    pub(crate) fn wait(&mut self, holds: impl Fn(&Self) -> bool) -> bool {
        let begin = Instant::now();
        while self.stream.is_some() && begin.elapsed() < PATIENCE {
            if holds(self) {
                return true;
            }
            self.hear();
        }
        holds(self)
    }

    /// Reads once; everything that came, in the order in which it came.
    pub(crate) fn hear(&mut self) -> Vec<Heard> {
        let Some((stream, frames)) = &mut self.stream else {
            return Vec::new();
        };
        let mut bytes = [0; 16 << 10];
        match stream.read(&mut bytes) {
            Ok(n) if n > 0 => frames.push(&bytes[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Vec::new();
            }
            _ => {
                self.stream = None;
                return Vec::new();
            }
        }
        let mut all = Vec::new();
        while let Some(message) = frames.next().expect("the exchange speaks FIX") {
            all.push(Heard::of(&message));
        }
        for heard in &all {
            self.count(heard.clone());
        }
        all
    }

    /// Takes a message up in the order of the numbers.
    fn count(&mut self, heard: Heard) {
        if heard.kind == "5" {
            // As QuickFIX does: a logout is counted whatever its number is.
            self.in_next += 1;
            return;
        }
        if heard.number < self.in_next {
            assert!(
                heard.again,
                "number {} again, without PossDupFlag",
                heard.number
            );
            return;
        }
        if heard.kind == "2" {
            self.send_again(heard.get(7).parse().expect("a number"));
        }
        let missing = heard.number > self.in_next;
        self.early.insert(heard.number, heard);
        while let Some(heard) = self.early.remove(&self.in_next) {
            self.asked = false;
            self.in_next = match heard.kind.as_str() {
                "4" => heard.get(36).parse().expect("a number"),
                _ => self.in_next + 1,
            };
            self.early.retain(|number, _| *number >= self.in_next);
            // Said again under another number: known by what it says.
            let known = heard.get(97) == "Y"
                && self
                    .heard
                    .iter()
                    .any(|had| had.get(17) == heard.get(17) && had.get(11) == heard.get(11));
            if !known && ["8", "9", "3", "j"].contains(&heard.kind.as_str()) {
                self.heard.push(heard);
            }
        }
        if missing && !self.asked && self.early.keys().next().is_some() {
            self.asked = true;
            self.admin("2", Body::default().with(7, self.in_next).with(16, 0));
        }
    }

    fn send_again(&mut self, from: u64) {
        let all: Vec<_> = self
            .sent
            .range(from..)
            .map(|(n, sent)| (*n, sent.clone()))
            .collect();
        for (number, sent) in all {
            match sent {
                Some((kind, body)) => self.write(number, kind, &body, true),
                None => {
                    let body = Body::default().with(123, "Y").with(36, number + 1);
                    self.write(number, "4", &body, true);
                }
            }
        }
    }
}
