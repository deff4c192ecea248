//! What replicas tell each other over the control connection, which the host of the engines provides: reliable, in
//! order, authenticated, and breakable. Everything else goes through memory.

use mu_verbs::{Endpoint, RemoteAddr};

use crate::limits::{CONNECT_BYTES, HELLO_BYTES};

/// What a connection carries. Each is a reliable connection of its own between every two replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Link {
    /// Writes of the leader into the log. Replication plane, a protection domain of its own.
    Log = 0,
    /// Heartbeats, permission requests and their answers. Background plane.
    Board = 1,
    /// Reads of a replica that catches up. Background plane.
    Pull = 2,
}

impl Link {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Log, Self::Board, Self::Pull];
}

/// Why bytes of a peer were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not as long as this message is.
    #[error("{what} of {got} bytes, expected {expected}")]
    Length {
        /// Which message.
        what: &'static str,
        /// Bytes received.
        got: usize,
        /// Bytes of such a message.
        expected: usize,
    },
    /// A version, a kind or a number that does not exist.
    #[error("{what} with an unknown {field}")]
    Field {
        /// Which message.
        what: &'static str,
        /// Which field.
        field: &'static str,
    },
}

/// Version of the layout of messages and memory.
pub const VERSION: u32 = 2;

/// Where a replica's memory lies, for one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Random number of this life of the replica.
    pub incarnation: u64,
    /// Bytes of its ring, which must be equal in a group.
    pub ring_bytes: u64,
    /// Its largest command, which must be equal in a group.
    pub max_command_bytes: u64,
    /// Its sessions, which must be equal in a group.
    pub sessions: u64,
    /// Whether it writes and needs a checksum in entries, which must be equal in a group.
    pub checksum: bool,
    /// Its public line, to be read.
    pub public: RemoteAddr,
    /// The peer's row in its board, to be written.
    pub row: RemoteAddr,
    /// Its log, header included, to be read.
    pub log: RemoteAddr,
}

impl Hello {
    /// The encoded form.
    pub fn to_bytes(&self) -> [u8; HELLO_BYTES] {
        let mut out = Writer {
            bytes: [0; HELLO_BYTES],
            at: 0,
        };
        out.u64(VERSION.into());
        out.u64(self.incarnation);
        out.u64(self.ring_bytes);
        out.u64(self.max_command_bytes);
        out.u64(self.sessions);
        out.u64(self.checksum.into());
        for remote in [self.public, self.row, self.log] {
            out.u64(remote.addr);
            out.u64(remote.rkey.into());
        }
        out.bytes
    }

    /// Decodes.
    ///
    /// # Errors
    /// Another length or version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MessageError> {
        let mut words = Reader::new("hello", bytes, HELLO_BYTES)?;
        if words.u64() != u64::from(VERSION) {
            return Err(MessageError::Field {
                what: "hello",
                field: "version",
            });
        }
        Ok(Self {
            incarnation: words.u64(),
            ring_bytes: words.u64(),
            max_command_bytes: words.u64(),
            sessions: words.u64(),
            checksum: words.u64() != 0,
            public: words.remote()?,
            row: words.remote()?,
            log: words.remote()?,
        })
    }
}

/// One side's end of a link, to be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// Which link.
    pub link: Link,
    /// The sender's generation of it: counts its resets.
    pub generation: u32,
    /// The receiver's generation that the sender has heard of, or 0.
    pub echo: u32,
    /// Whether the sender has connected to it.
    pub connected: bool,
    /// The sender's queue pair, in INIT or further.
    pub endpoint: Endpoint,
}

/// Where the flag stands, after the endpoint.
const CONNECTED_AT: usize = 16 + Endpoint::BYTES;
const _: () = assert!(CONNECTED_AT < CONNECT_BYTES);

impl Connect {
    /// The encoded form.
    pub fn to_bytes(&self) -> [u8; CONNECT_BYTES] {
        let mut out = Writer {
            bytes: [0; CONNECT_BYTES],
            at: 0,
        };
        out.u64(u64::from(VERSION) | (self.link as u64) << 32);
        out.u64(u64::from(self.generation) | u64::from(self.echo) << 32);
        out.bytes[16..CONNECTED_AT].copy_from_slice(&self.endpoint.to_bytes());
        out.bytes[CONNECTED_AT] = self.connected.into();
        out.bytes
    }

    /// Decodes.
    ///
    /// # Errors
    /// Another length, version, link, or an endpoint that cannot be.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MessageError> {
        let what = "connect message";
        let field = |field| MessageError::Field { what, field };
        let mut words = Reader::new(what, bytes, CONNECT_BYTES)?;
        let (kind, generations) = (words.u64(), words.u64());
        if kind as u32 != VERSION {
            return Err(field("version"));
        }
        let link = Link::ALL
            .into_iter()
            .find(|link| *link as u64 == kind >> 32)
            .ok_or(field("link"))?;
        let connected = match bytes[CONNECTED_AT] {
            0 => false,
            1 => true,
            _ => return Err(field("state")),
        };
        let endpoint = bytes[16..CONNECTED_AT]
            .try_into()
            .ok()
            .and_then(Endpoint::from_bytes);
        Ok(Self {
            link,
            generation: generations as u32,
            echo: (generations >> 32) as u32,
            connected,
            endpoint: endpoint.ok_or(field("endpoint"))?,
        })
    }
}

struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    fn u64(&mut self, value: u64) {
        self.bytes[self.at..self.at + 8].copy_from_slice(&value.to_le_bytes());
        self.at += 8;
    }
}

struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(what: &'static str, bytes: &'a [u8], expected: usize) -> Result<Self, MessageError> {
        if bytes.len() != expected {
            return Err(MessageError::Length {
                what,
                got: bytes.len(),
                expected,
            });
        }
        Ok(Self { what, bytes })
    }

    /// The next word; messages are as long as their fields, so there is one.
    fn u64(&mut self) -> u64 {
        let (word, rest) = self
            .bytes
            .split_first_chunk()
            .expect("a message of checked length");
        self.bytes = rest;
        u64::from_le_bytes(*word)
    }

    fn remote(&mut self) -> Result<RemoteAddr, MessageError> {
        let addr = self.u64();
        let rkey = u32::try_from(self.u64());
        rkey.map(|rkey| RemoteAddr { addr, rkey })
            .map_err(|_| MessageError::Field {
                what: self.what,
                field: "key",
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        let remote = |n: u32| RemoteAddr {
            addr: u64::from(n) << 20,
            rkey: n,
        };
        Hello {
            incarnation: 5,
            ring_bytes: 4096,
            max_command_bytes: 64,
            sessions: 7,
            checksum: true,
            public: remote(1),
            row: remote(2),
            log: remote(3),
        }
    }

    #[test]
    fn messages_round_trip() {
        assert_eq!(Hello::from_bytes(&hello().to_bytes()), Ok(hello()));
        for link in Link::ALL {
            let endpoint = Endpoint {
                qp_num: 17,
                psn: 3,
                node: 9,
                ..Endpoint::default()
            };
            let connect = Connect {
                link,
                generation: 4,
                echo: 2,
                connected: link == Link::Log,
                endpoint,
            };
            assert_eq!(Connect::from_bytes(&connect.to_bytes()), Ok(connect));
        }
    }

    #[test]
    fn nonsense_is_refused_with_what_is_wrong() {
        let short = Hello::from_bytes(&[0; 3]).expect_err("too short");
        assert_eq!(short.to_string(), "hello of 3 bytes, expected 96");
        let mut version = hello().to_bytes();
        version[0] = 9;
        assert_eq!(
            Hello::from_bytes(&version)
                .expect_err("version")
                .to_string(),
            "hello with an unknown version"
        );
        let mut key = hello().to_bytes();
        key[63] = 1;
        assert!(Hello::from_bytes(&key).is_err());
        let connect = Connect {
            link: Link::Log,
            generation: 1,
            echo: 0,
            connected: false,
            endpoint: Endpoint::default(),
        };
        let mut link = connect.to_bytes();
        link[4] = 3;
        assert_eq!(
            Connect::from_bytes(&link),
            Err(MessageError::Field {
                what: "connect message",
                field: "link"
            })
        );
        let mut state = connect.to_bytes();
        state[CONNECTED_AT] = 2;
        assert!(Connect::from_bytes(&state).is_err());
        let mut endpoint = connect.to_bytes();
        endpoint[16] = 7;
        assert!(Connect::from_bytes(&endpoint).is_err());
    }
}
