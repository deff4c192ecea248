//! A client that does not know better: it goes on talking to a leader that lost its office while it was stopped.
//!
//! Its requests wait in the leader's sockets, so they are the first thing that the leader finds when it wakes up.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use crate::local::caller::{Ask, Called, Caller};
use crate::local::load::Record;

/// How long it listens.
const LISTENS: Duration = Duration::from_millis(100);
/// Numbers of the two clients, and of their values: above those of all others.
const WRITER: u64 = 1 << 20;
const READER: u64 = WRITER + 1;

/// Two clients of which one writes and one reads.
pub(super) struct Probe {
    writer: Caller,
    reader: Caller,
    count: u64,
}

/// Requests that are on their way.
pub(super) struct Sent([(u64, Ask, (u64, bool)); 2]);

impl Sent {
    /// How many could be sent.
    pub(super) fn count(&self) -> u64 {
        self.0
            .iter()
            .map(|(_, _, (_, sent))| u64::from(*sent))
            .sum()
    }
}

impl Probe {
    /// Connects to everybody.
    pub(super) fn new(addresses: &[SocketAddr]) -> Result<Self> {
        Ok(Self {
            writer: Caller::new(addresses)?,
            reader: Caller::new(addresses)?,
            count: 0,
        })
    }

    /// Connects again where a connection is gone.
    pub(super) fn reconnect(&mut self) {
        self.writer.reconnect();
        self.reader.reconnect();
    }

    /// Asks `leader` to write and to read `key`.
    pub(super) fn send(&mut self, leader: u8, key: u64) -> Sent {
        self.count += 1;
        let put = Ask::Put {
            key,
            value: WRITER << 40 | self.count,
        };
        let get = Ask::Get { key };
        Sent([
            (WRITER, put, self.writer.send_only(put, leader)),
            (READER, get, self.reader.send_only(get, leader)),
        ])
    }

    /// What came of it, for the judge, and how many were answered.
    pub(super) fn hear(&mut self, sent: Sent) -> ([Record; 2], u64) {
        let mut answers = 0;
        let callers = [&mut self.writer, &mut self.reader];
        let mut callers = callers.into_iter();
        let records = sent.0.map(|(client, ask, (invoked_ns, _))| {
            let answer = callers.next().and_then(|caller| caller.hear_only(LISTENS));
            answers += u64::from(answer.is_some());
            let called = Called { invoked_ns, answer };
            Record {
                client,
                ask,
                called,
            }
        });
        (records, answers)
    }
}
