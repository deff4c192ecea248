//! Commands and what they answer, as bytes. All numbers are little-endian.
//!
//! ```text
//! command: op (1), length of the key (2), key, rest
//!   put    value
//!   delete nothing
//!   cas    0 and the new value: only if there is none; 1, length of the expected value (4), it, the new value
//!   add    number (8)
//! answer: code (1), for a number also the number (8)
//! ```
//!
//! An answer is short enough for the session table to keep, so a retry always gets it.

use mu_protocol::limits::MAX_KEPT_REPLY;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// Sets a value.
    Put {
        /// Of this key.
        key: &'a [u8],
        /// To this.
        value: &'a [u8],
    },
    /// Removes a key.
    Delete {
        /// This one.
        key: &'a [u8],
    },
    /// Compares and swaps.
    Cas {
        /// This key's value ...
        key: &'a [u8],
        /// ... if it is this; `None` if there must be none ...
        expected: Option<&'a [u8]>,
        /// ... becomes this.
        new: &'a [u8],
    },
    /// Adds to a number, 0 if there is none.
    Add {
        /// This key's value, eight bytes.
        key: &'a [u8],
        /// So much, wrapping.
        delta: i64,
    },
}

/// What a command answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Done,
    /// There was no such key to be deleted.
    Missing,
    /// The value was another one; nothing is changed.
    Differs,
    /// The sum.
    Number(i64),
    /// The value is no number of eight bytes; nothing is changed.
    NoNumber,
    /// The bytes are no command.
    Malformed,
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const CAS: u8 = 3;
const ADD: u8 = 4;

impl<'a> Op<'a> {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &'a [u8] {
        match self {
            Self::Put { key, .. }
            | Self::Delete { key }
            | Self::Cas { key, .. }
            | Self::Add { key, .. } => key,
        }
    }

    /// Appends the encoded form.
    ///
    /// # Panics
    /// If the key is longer than [`KEY_BYTES_MAX`], or the expected value than 4 GiB.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let key = self.key();
        assert!(key.len() <= KEY_BYTES_MAX, "a key of {} bytes", key.len());
        out.push(match self {
            Self::Put { .. } => PUT,
            Self::Delete { .. } => DELETE,
            Self::Cas { .. } => CAS,
            Self::Add { .. } => ADD,
        });
        out.extend_from_slice(&(key.len() as u16).to_le_bytes());
        out.extend_from_slice(key);
        match self {
            Self::Put { value, .. } => out.extend_from_slice(value),
            Self::Delete { .. } => {}
            Self::Cas { expected, new, .. } => {
                out.push(expected.is_some().into());
                if let Some(expected) = expected {
                    let len = u32::try_from(expected.len()).expect("a value below 4 GiB");
                    out.extend_from_slice(&len.to_le_bytes());
                    out.extend_from_slice(expected);
                }
                out.extend_from_slice(new);
            }
            Self::Add { delta, .. } => out.extend_from_slice(&delta.to_le_bytes()),
        }
    }

    /// Decodes; `None` for what is no command.
    #[must_use]
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (&op, rest) = bytes.split_first()?;
        let (len, rest) = rest.split_first_chunk()?;
        let len = usize::from(u16::from_le_bytes(*len));
        let (key, rest) = rest.split_at_checked(len)?;
        if key.len() > KEY_BYTES_MAX {
            return None;
        }
        match op {
            PUT => Some(Self::Put { key, value: rest }),
            DELETE => rest.is_empty().then_some(Self::Delete { key }),
            CAS => {
                let (&some, rest) = rest.split_first()?;
                let (expected, new) = match some {
                    0 => (None, rest),
                    1 => {
                        let (len, rest) = rest.split_first_chunk()?;
                        let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
                        let (expected, new) = rest.split_at_checked(len)?;
                        (Some(expected), new)
                    }
                    _ => return None,
                };
                Some(Self::Cas { key, expected, new })
            }
            ADD => {
                let delta = i64::from_le_bytes(rest.try_into().ok()?);
                Some(Self::Add { key, delta })
            }
            _ => None,
        }
    }
}

impl Answer {
    /// Appends the encoded form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(match self {
            Self::Done => 0,
            Self::Missing => 1,
            Self::Differs => 2,
            Self::Number(_) => 3,
            Self::NoNumber => 4,
            Self::Malformed => 5,
        });
        if let Self::Number(n) = self {
            out.extend_from_slice(&n.to_le_bytes());
        }
    }

    /// Decodes; `None` for what is no answer.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&code, rest) = bytes.split_first()?;
        if code == 3 {
            return Some(Self::Number(i64::from_le_bytes(rest.try_into().ok()?)));
        }
        let answers = [
            (0, Self::Done),
            (1, Self::Missing),
            (2, Self::Differs),
            (4, Self::NoNumber),
            (5, Self::Malformed),
        ];
        let found = answers.into_iter().find(|(c, _)| *c == code)?;
        rest.is_empty().then_some(found.1)
    }
}

const ANSWER_BYTES_MAX: usize = 9;
const _: () = assert!(ANSWER_BYTES_MAX <= MAX_KEPT_REPLY, "retries get the answer");
const _: () = assert!(KEY_BYTES_MAX <= u16::MAX as usize);
