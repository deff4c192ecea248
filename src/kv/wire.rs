//! What client and server say to each other over TCP. All numbers are little-endian.
//!
//! ```text
//! client, once: GREETING (8)
//! frame:    length of the rest (4), rest
//! request:  kind (1), number that the response repeats (8), then
//!   1 command  client (8), sequence (8), the command as in `Op`
//!   2 get      key; answered linearizably
//! response: kind (1), number of the request (8), then what `Response` has
//! ```
//!
//! A frame that is too long or malformed ends the connection. Responses may come in another order than requests.

use std::ops::Range;

/// What a connection begins with: a name and a version.
pub const GREETING: [u8; 8] = *b"mu-kv\0\0\x01";
/// What a request has around a command.
pub const REQUEST_OVERHEAD: usize = 1 + 8 + 16;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// A command of a session.
    Command {
        /// The client; 0 has no session.
        client: u64,
        /// The client's number of it.
        sequence: u64,
        /// The encoded [`Op`](super::Op).
        command: &'a [u8],
    },
    /// A linearizable read.
    Get {
        /// Of this key.
        key: &'a [u8],
    },
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response<'a> {
    /// Decided and applied; the encoded [`Answer`](super::Answer).
    Decided(&'a [u8]),
    /// The value read, if there is one.
    Value(Option<&'a [u8]>),
    /// This replica does not lead. Not decided.
    NotLeader {
        /// Who does, as far as known.
        hint: Option<u8>,
    },
    /// It may or may not be decided.
    Unknown,
    /// Too much is in flight. Not decided.
    Overloaded,
    /// The command is too long. Not decided.
    TooLarge {
        /// At most so many bytes.
        limit: u64,
    },
    /// This replica has stopped. Not decided.
    Stopped,
    /// The client has gone on to a later number.
    Superseded,
    /// Decided by an earlier try, whose answer is gone.
    ReplyGone,
}

/// Appends a whole frame: its length, then what `body` appends.
fn framed(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let len = u32::try_from(out.len() - start - 4).expect("a frame below 4 GiB");
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
}

impl<'a> Request<'a> {
    /// Appends it as a frame.
    pub fn encode(&self, number: u64, out: &mut Vec<u8>) {
        framed(out, |out| match self {
            Self::Command {
                client,
                sequence,
                command,
            } => {
                out.push(1);
                for word in [number, *client, *sequence] {
                    out.extend_from_slice(&word.to_le_bytes());
                }
                out.extend_from_slice(command);
            }
            Self::Get { key } => {
                out.push(2);
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(key);
            }
        });
    }

    /// Decodes a frame's inside, with its number; `None` for what is no request.
    #[must_use]
    pub fn decode(frame: &'a [u8]) -> Option<(u64, Self)> {
        let (&kind, rest) = frame.split_first()?;
        let (number, rest) = word(rest)?;
        let request = match kind {
            1 => {
                let (client, rest) = word(rest)?;
                let (sequence, command) = word(rest)?;
                Self::Command {
                    client,
                    sequence,
                    command,
                }
            }
            2 if rest.len() <= super::KEY_BYTES_MAX => Self::Get { key: rest },
            _ => return None,
        };
        Some((number, request))
    }
}

const NO_HINT: u8 = u8::MAX;

impl<'a> Response<'a> {
    /// Appends it as a frame.
    pub fn encode(&self, number: u64, out: &mut Vec<u8>) {
        framed(out, |out| {
            out.push(match self {
                Self::Decided(_) => 0,
                Self::Value(_) => 1,
                Self::NotLeader { .. } => 2,
                Self::Unknown => 3,
                Self::Overloaded => 4,
                Self::TooLarge { .. } => 5,
                Self::Stopped => 6,
                Self::Superseded => 7,
                Self::ReplyGone => 8,
            });
            out.extend_from_slice(&number.to_le_bytes());
            match self {
                Self::Decided(bytes) => out.extend_from_slice(bytes),
                Self::Value(value) => {
                    out.push(value.is_some().into());
                    out.extend_from_slice(value.unwrap_or_default());
                }
                Self::NotLeader { hint } => out.push(hint.unwrap_or(NO_HINT)),
                Self::TooLarge { limit } => out.extend_from_slice(&limit.to_le_bytes()),
                Self::Unknown | Self::Overloaded | Self::Stopped => {}
                Self::Superseded | Self::ReplyGone => {}
            }
        });
    }

    /// Decodes a frame's inside, with the request's number; `None` for what is no response.
    #[must_use]
    pub fn decode(frame: &'a [u8]) -> Option<(u64, Self)> {
        let (&kind, rest) = frame.split_first()?;
        let (number, rest) = word(rest)?;
        let plain = |response| rest.is_empty().then_some(response);
        let response = match (kind, rest) {
            (0, answer) => Self::Decided(answer),
            (1, [0]) => Self::Value(None),
            (1, [1, value @ ..]) => Self::Value(Some(value)),
            (2, [hint]) => Self::NotLeader {
                hint: (*hint != NO_HINT).then_some(*hint),
            },
            (3, _) => plain(Self::Unknown)?,
            (4, _) => plain(Self::Overloaded)?,
            (5, limit) => Self::TooLarge {
                limit: u64::from_le_bytes(limit.try_into().ok()?),
            },
            (6, _) => plain(Self::Stopped)?,
            (7, _) => plain(Self::Superseded)?,
            (8, _) => plain(Self::ReplyGone)?,
            _ => return None,
        };
        Some((number, response))
    }
}

fn word(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*word), rest))
}

/// A frame longer than allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {len} bytes; at most {limit} are allowed")]
pub struct TooLong {
    /// Its length.
    pub len: usize,
    /// The limit.
    pub limit: usize,
}

/// Cuts a stream of bytes into frames.
#[derive(Debug)]
pub struct Frames {
    bytes: Vec<u8>,
    /// What lies before it has been taken.
    at: usize,
    limit: usize,
}

impl Frames {
    /// For frames of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            at: 0,
            limit,
        }
    }

    /// Bytes that came.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.at > 0 {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes that are held and not taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes `n` bytes that are no frame, if they are there.
    pub fn take(&mut self, n: usize) -> Option<&[u8]> {
        let taken = self.bytes.get(self.at..self.at + n)?;
        self.at += n;
        Some(taken)
    }

    /// Whether there is a whole frame.
    ///
    /// # Errors
    /// It is too long; nothing after it makes sense.
    pub fn has_next(&self) -> Result<bool, TooLong> {
        Ok(self.found()?.is_some())
    }

    /// The inside of the next whole frame.
    ///
    /// # Errors
    /// It is too long; nothing after it makes sense.
    #[allow(clippy::should_implement_trait, reason = "it lends what it holds")]
    pub fn next(&mut self) -> Result<Option<&[u8]>, TooLong> {
        let Some(inside) = self.found()? else {
            return Ok(None);
        };
        self.at = inside.end;
        Ok(Some(&self.bytes[inside]))
    }

    /// Where the inside of the next whole frame lies.
    fn found(&self) -> Result<Option<Range<usize>>, TooLong> {
        let rest = &self.bytes[self.at..];
        let Some((len, rest)) = rest.split_first_chunk() else {
            return Ok(None);
        };
        let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
        let limit = self.limit;
        if len > limit {
            return Err(TooLong { len, limit });
        }
        let start = self.at + 4;
        Ok((rest.len() >= len).then(|| start..start + len))
    }
}
