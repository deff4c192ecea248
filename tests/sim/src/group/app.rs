//! The replicated application of a run: a key-value store that remembers what it applied, for the oracles.

use std::collections::BTreeMap;

use mu_history::{Kv, KvOp, KvOutput, Model};
use mu_protocol::check::mix;
use mu_protocol::machine::{Command, RestoreError, StateMachine};

/// A command of a client: which operation, which try of it, and what it does. The padding makes its size odd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Number of the operation in the history.
    pub(crate) op: u32,
    /// Number of this try, unique in the run.
    pub(crate) attempt: u32,
    pub(crate) kv: KvOp,
}

/// Bytes of a request before its padding.
pub(crate) const REQUEST_BYTES: usize = 48;

impl Request {
    /// Appends the encoded form with `padding` bytes behind it.
    pub(crate) fn encode(&self, padding: usize, out: &mut Vec<u8>) {
        let [kind, key, a, b] = match self.kv {
            KvOp::Put { key, value } => [0, key, value, 0],
            KvOp::Get { key } => [1, key, 0, 0],
            KvOp::Cas { key, expect, new } => [
                2 + u64::from(expect.is_some()),
                key,
                expect.unwrap_or(0),
                new,
            ],
            KvOp::Add { key, delta } => [4, key, delta, 0],
        };
        let who = u64::from(self.op) << 32 | u64::from(self.attempt);
        let words = [who, kind | (padding as u64) << 8, key, a, b];
        for word in words {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&mix(words).to_le_bytes());
        out.extend((0..padding).map(|n| filler(who, n)));
    }

    /// Decodes; `None` for bytes that no client of this run can have sent.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, padding) = bytes.split_first_chunk::<REQUEST_BYTES>()?;
        let words: [u64; 6] = std::array::from_fn(|n| {
            u64::from_le_bytes(head[n * 8..n * 8 + 8].try_into().expect("eight bytes"))
        });
        let [who, kind, key, a, b, check] = words;
        let whole = mix([who, kind, key, a, b]) == check
            && kind >> 8 == padding.len() as u64
            && padding
                .iter()
                .enumerate()
                .all(|(n, byte)| *byte == filler(who, n));
        let kv = match kind & 0xff {
            0 => KvOp::Put { key, value: a },
            1 => KvOp::Get { key },
            2 => KvOp::Cas {
                key,
                expect: None,
                new: b,
            },
            3 => KvOp::Cas {
                key,
                expect: Some(a),
                new: b,
            },
            4 => KvOp::Add { key, delta: a },
            _ => return None,
        };
        whole.then_some(Self {
            op: (who >> 32) as u32,
            attempt: who as u32,
            kv,
        })
    }
}

fn filler(who: u64, n: usize) -> u8 {
    (who as u8).wrapping_mul(31).wrapping_add(n as u8) | 1
}

/// Bytes of a reply.
pub(crate) const REPLY_BYTES: usize = 16;

fn encode_output(output: KvOutput) -> [u8; REPLY_BYTES] {
    let (tag, value) = match output {
        KvOutput::Done => (0, 0),
        KvOutput::Value(None) => (1, 0),
        KvOutput::Value(Some(value)) => (2, value),
        KvOutput::Swapped(done) => (3, u64::from(done)),
        KvOutput::Sum(sum) => (4, sum),
    };
    let mut out = [0; REPLY_BYTES];
    out[..8].copy_from_slice(&u64::to_le_bytes(tag));
    out[8..].copy_from_slice(&value.to_le_bytes());
    out
}

/// Decodes a reply; `None` for bytes that are none.
pub(crate) fn decode_output(reply: &[u8]) -> Option<KvOutput> {
    let (tag, value) = reply.split_first_chunk::<8>()?;
    let value = u64::from_le_bytes(value.try_into().ok()?);
    Some(match u64::from_le_bytes(*tag) {
        0 => KvOutput::Done,
        1 => KvOutput::Value(None),
        2 => KvOutput::Value(Some(value)),
        3 => KvOutput::Swapped(value == 1),
        4 => KvOutput::Sum(value),
        _ => return None,
    })
}

/// A command as a replica applied it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) index: u64,
    pub(crate) place: u16,
    pub(crate) client: u64,
    pub(crate) sequence: u64,
    /// `None` if the bytes are none that a client sent.
    pub(crate) request: Option<Request>,
    pub(crate) output: Option<KvOutput>,
}

/// What an application does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misbehaviour {
    /// It counts one too many from this index on: it is not deterministic.
    DeviatesAt(u64),
    /// It panics at this index.
    PanicsAt(u64),
}

/// The store.
#[derive(Default)]
pub(crate) struct App {
    state: BTreeMap<u64, u64>,
    rolling: u64,
    /// Applied since somebody looked.
    pub(crate) fresh: Vec<Applied>,
    pub(crate) misbehaviour: Option<Misbehaviour>,
    /// It would have panicked: the process is to be killed.
    pub(crate) panicked: bool,
}

impl App {
    /// What is stored under a key.
    pub(crate) fn get(&self, key: u64) -> Option<u64> {
        self.state.get(&key).copied()
    }
}

impl StateMachine for App {
    fn apply(&mut self, command: &Command<'_>, reply: &mut Vec<u8>) {
        if self.panicked {
            return;
        }
        if let Some(Misbehaviour::PanicsAt(index)) = self.misbehaviour {
            self.panicked = command.index >= index;
        }
        let request = Request::decode(command.bytes);
        let output = request.map(|request| {
            let key = Kv.key(&request.kv);
            let (after, output) = Kv.apply(&self.get(key), &request.kv);
            match after {
                Some(value) => self.state.insert(key, value),
                None => self.state.remove(&key),
            };
            output
        });
        if let Some(output) = output {
            reply.extend_from_slice(&encode_output(output));
        }
        if let Some(Misbehaviour::DeviatesAt(index)) = self.misbehaviour
            && command.index >= index
        {
            self.rolling ^= 1;
        }
        let attempt = request.map_or(u64::MAX, |request| request.attempt.into());
        self.rolling = mix([self.rolling, command.index, attempt]);
        self.fresh.push(Applied {
            index: command.index,
            place: command.place,
            client: command.client,
            sequence: command.sequence,
            request,
            output,
        });
    }

    fn digest(&self) -> u64 {
        self.rolling
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.rolling.to_le_bytes());
        for (key, value) in &self.state {
            out.extend_from_slice(&key.to_le_bytes());
            out.extend_from_slice(&value.to_le_bytes());
        }
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let bad = || RestoreError(format!("a state of {} bytes", bytes.len()));
        let (rolling, pairs) = bytes.split_first_chunk::<8>().ok_or_else(bad)?;
        if !pairs.len().is_multiple_of(16) {
            return Err(bad());
        }
        self.rolling = u64::from_le_bytes(*rolling);
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let pairs = pairs.chunks_exact(16);
        self.state = pairs
            .map(|pair| (word(&pair[..8]), word(&pair[8..])))
            .collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_round_trip_and_damage_shows() {
        let ops = [
            KvOp::Put { key: 1, value: 2 },
            KvOp::Get { key: 3 },
            KvOp::Cas {
                key: 1,
                expect: None,
                new: 4,
            },
            KvOp::Cas {
                key: 1,
                expect: Some(9),
                new: 4,
            },
            KvOp::Add { key: 5, delta: 6 },
        ];
        for (n, kv) in ops.into_iter().enumerate() {
            let request = Request {
                op: n as u32,
                attempt: 77,
                kv,
            };
            let mut bytes = Vec::new();
            request.encode(n * 5, &mut bytes);
            assert_eq!(Request::decode(&bytes), Some(request));
            for at in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 2;
                assert_eq!(Request::decode(&bad), None, "byte {at}");
            }
        }
        let outputs = [
            KvOutput::Done,
            KvOutput::Value(None),
            KvOutput::Value(Some(7)),
            KvOutput::Swapped(true),
            KvOutput::Swapped(false),
            KvOutput::Sum(8),
        ];
        for output in outputs {
            assert_eq!(decode_output(&encode_output(output)), Some(output));
        }
        assert_eq!(decode_output(&[9; REPLY_BYTES]), None);
    }
}
