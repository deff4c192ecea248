//! A receiver of MoldUDP64.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use mu_exchange::itch::blocks;

const STEP: Duration = Duration::from_millis(20);

pub(crate) struct Receiver {
    socket: UdpSocket,
    /// Blocks by their number.
    pub(crate) had: BTreeMap<u64, Vec<u8>>,
    /// Numbers that came more than once.
    pub(crate) again: u64,
    stream: [u8; 10],
}

impl Receiver {
    pub(crate) fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(STEP)).expect("a socket");
        Self {
            socket,
            had: BTreeMap::new(),
            again: 0,
            stream: [0; 10],
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("it is bound")
    }

    /// Takes what came.
    pub(crate) fn take(&mut self) {
        let mut packet = [0; 2048];
        while let Ok(len) = self.socket.recv(&mut packet) {
            let (head, body) = packet[..len].split_at(20);
            self.stream.copy_from_slice(&head[..10]);
            let first = u64::from_be_bytes(head[10..18].try_into().expect("eight bytes"));
            let count = u16::from_be_bytes([head[18], head[19]]);
            let found: Vec<&[u8]> = blocks(body).collect();
            assert_eq!(
                found.len(),
                usize::from(count),
                "a packet holds what its head says"
            );
            for (number, block) in (first..).zip(found) {
                if let Some(before) = self.had.insert(number, block.into()) {
                    assert_eq!(
                        before, block,
                        "message {number} is another one the second time"
                    );
                    self.again += 1;
                }
            }
        }
    }

    /// Asks a replica for what is missing.
    pub(crate) fn ask(&mut self, replica: SocketAddr) {
        let last = self.had.keys().next_back().copied().unwrap_or(1);
        for number in 1..=last {
            if !self.had.contains_key(&number) {
                let mut request = self.stream.to_vec();
                request.extend_from_slice(&number.to_be_bytes());
                request.extend_from_slice(&1_u16.to_be_bytes());
                self.socket
                    .send_to(&request, replica)
                    .expect("it can be asked");
                self.take();
            }
        }
    }
}
