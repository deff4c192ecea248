//! Market data for everybody: ITCH messages in MoldUDP64 packets from the leader, and in a file from any replica.
//!
//! Packets can be lost, and a leader that dies takes some with it. The numbers of the messages are the exchange's, the
//! same at every replica: a leader that took over says the last ones again, and any replica answers a MoldUDP64 request
//! for those that it keeps. A receiver drops numbers that it had.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use crate::engine::Engine;
use crate::exchange::Exchange;
use crate::itch::blocks;

/// Bytes of a packet at most, so that none is cut into pieces on an Ethernet.
const PACKET_BYTES: usize = 1400;
/// MoldUDP64's name of a stream.
const NAME_BYTES: usize = 10;
const HEAD_BYTES: usize = NAME_BYTES + 10;
/// Messages that are kept for requests.
const KEPT: usize = 16_384;
/// Of these a leader that took over says so many again.
const SAID_AGAIN: u64 = 512;
/// An idle feed says after so long which number comes next.
const HEARTBEAT_NS: u64 = 1_000_000_000;
/// Requests answered before other work has its turn.
const REQUESTS: usize = 16;

/// Where market data goes.
pub(super) struct Publisher {
    name: [u8; NAME_BYTES],
    file: Option<(PathBuf, BufWriter<File>)>,
    udp: Option<(UdpSocket, SocketAddr)>,
    requests: Option<UdpSocket>,
    /// Blocks, the newest last; `next` is the number after it.
    kept: VecDeque<Box<[u8]>>,
    next: u64,
    generation: u64,
    leads: bool,
    sent_ns: u64,
}

impl Publisher {
    /// To nobody yet. `name` names the stream.
    pub(super) fn new<E: Engine>(name: &str, exchange: &Exchange<E>) -> Self {
        let mut stream = [b' '; NAME_BYTES];
        for (to, from) in stream.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        let (opening, next) = exchange.opening();
        Self {
            name: stream,
            file: None,
            udp: None,
            requests: None,
            kept: blocks(&opening).map(Box::from).collect(),
            next,
            generation: exchange.generation(),
            leads: false,
            sent_ns: 0,
        }
    }

    /// Writes a file, from the beginning.
    pub(super) fn open_file<E: Engine>(
        &mut self,
        path: &Path,
        exchange: &Exchange<E>,
    ) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&exchange.opening().0)?;
        file.flush()?;
        self.file = Some((path.into(), file));
        Ok(())
    }

    /// Sends packets, and answers requests at `own`.
    pub(super) fn open_udp(&mut self, to: SocketAddr, own: SocketAddr) -> io::Result<()> {
        let any = SocketAddr::new(own.ip(), 0);
        let socket = UdpSocket::bind(any)?;
        // A full socket loses packets, as the network does; it does not hold up the log.
        socket.set_nonblocking(true)?;
        self.udp = Some((socket, to));
        let requests = UdpSocket::bind(own)?;
        requests.set_nonblocking(true)?;
        self.requests = Some(requests);
        Ok(())
    }

    /// Once a turn of the server.
    pub(super) fn turn<E: Engine>(&mut self, exchange: &Exchange<E>, leads: bool, now_ns: u64) {
        let news = exchange.news();
        if self.generation != exchange.generation() {
            self.begin_anew(exchange);
        } else if news.count > 0 {
            self.keep(&news.blocks, news.first + news.count);
            if let Some((_, file)) = &mut self.file {
                let written = file.write_all(&news.blocks).and_then(|()| file.flush());
                self.heed(written);
            }
        }
        let took_over = leads && !self.leads;
        self.leads = leads;
        if leads && self.udp.is_some() {
            let from = match took_over {
                true => self.next - SAID_AGAIN.min(self.kept.len() as u64),
                false => self.next - news.count.min(self.kept.len() as u64),
            };
            if from < self.next || now_ns - self.sent_ns >= HEARTBEAT_NS {
                self.send(from);
                self.sent_ns = now_ns;
            }
        }
        self.answer();
    }

    /// The state is another one: so is the file.
    fn begin_anew<E: Engine>(&mut self, exchange: &Exchange<E>) {
        self.generation = exchange.generation();
        self.kept.clear();
        self.next = exchange.opening().1;
        if let Some((path, _)) = self.file.take() {
            let written = self.open_file(&path, exchange);
            self.heed(written);
        }
    }

    fn keep(&mut self, news: &[u8], next: u64) {
        for block in blocks(news) {
            if self.kept.len() == KEPT {
                self.kept.pop_front();
            }
            self.kept.push_back(block.into());
        }
        self.next = next;
    }

    /// A full disk is no reason to stop trading.
    fn heed(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            tracing::error!(%error, "the file of market data ends here");
            self.file = None;
        }
    }

    /// Sends everything from a number on.
    fn send(&mut self, mut from: u64) {
        let Some((socket, to)) = &self.udp else {
            return;
        };
        loop {
            let (packet, count) = self.packet(from, u64::MAX);
            // Whoever misses it asks.
            let _ = socket.send_to(&packet, to);
            from += count;
            if count == 0 || from == self.next {
                return;
            }
        }
    }

    /// Answers requests for messages that are kept.
    fn answer(&mut self) {
        let Some(requests) = &self.requests else {
            return;
        };
        let mut request = [0; HEAD_BYTES];
        for _ in 0..REQUESTS {
            let Ok((HEAD_BYTES, from)) = requests.recv_from(&mut request) else {
                return;
            };
            let number = u64::from_be_bytes(request[10..18].try_into().expect("eight bytes"));
            let count = u16::from_be_bytes([request[18], request[19]]);
            let first = self.next - self.kept.len() as u64;
            if request[..NAME_BYTES] == self.name && (first..self.next).contains(&number) {
                let (packet, _) = self.packet(number, count.into());
                let _ = requests.send_to(&packet, from);
            }
        }
    }

    /// A packet with as many messages as it holds, `count` at most, and how many these are.
    fn packet(&self, from: u64, count: u64) -> (Vec<u8>, u64) {
        let mut packet = Vec::with_capacity(PACKET_BYTES);
        packet.extend_from_slice(&self.name);
        packet.extend_from_slice(&from.to_be_bytes());
        packet.extend_from_slice(&[0; 2]);
        let before = self.kept.len()
            - usize::try_from(self.next - from)
                .unwrap_or(0)
                .min(self.kept.len());
        let mut held: u16 = 0;
        for block in self.kept.range(before..) {
            if u64::from(held) == count || packet.len() + block.len() > PACKET_BYTES {
                break;
            }
            packet.extend_from_slice(block);
            held += 1;
        }
        packet[18..20].copy_from_slice(&held.to_be_bytes());
        (packet, held.into())
    }
}
