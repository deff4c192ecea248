//! The replicated state: keys and values.

use std::collections::HashMap;

use mu_protocol::check::mix;
use mu_protocol::machine::{Command, RestoreError, StateMachine};

use super::op::{Answer, Op};

/// Keys and values. The order in which a map is walked differs from replica to replica, so nothing depends on it: the
/// digest is a sum over the pairs, kept up with each change.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pairs: HashMap<Box<[u8]>, Vec<u8>>,
    digest: u64,
}

impl Store {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.pairs.get(key).map(Vec::as_slice)
    }

    /// Keys that have a value.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether no key has a value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Carries a command out.
    pub fn run(&mut self, op: Op<'_>) -> Answer {
        match op {
            Op::Put { key, value } => {
                self.set(key, value);
                Answer::Done
            }
            Op::Delete { key } => match self.pairs.remove(key) {
                Some(old) => {
                    self.digest = self.digest.wrapping_sub(pair_hash(key, &old));
                    Answer::Done
                }
                None => Answer::Missing,
            },
            Op::Cas { key, expected, new } => {
                if self.get(key) != expected {
                    return Answer::Differs;
                }
                self.set(key, new);
                Answer::Done
            }
            Op::Add { key, delta } => {
                let old = match self.get(key) {
                    None => 0,
                    Some(bytes) => match bytes.try_into() {
                        Ok(bytes) => i64::from_le_bytes(bytes),
                        Err(_) => return Answer::NoNumber,
                    },
                };
                let sum = old.wrapping_add(delta);
                self.set(key, &sum.to_le_bytes());
                Answer::Number(sum)
            }
        }
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.digest = self.digest.wrapping_add(pair_hash(key, value));
        match self.pairs.get_mut(key) {
            Some(old) => {
                self.digest = self.digest.wrapping_sub(pair_hash(key, old));
                old.clear();
                old.extend_from_slice(value);
            }
            None => {
                self.pairs.insert(key.into(), value.to_vec());
            }
        }
    }
}

impl StateMachine for Store {
    fn apply(&mut self, command: &Command<'_>, reply: &mut Vec<u8>) {
        let answer = Op::decode(command.bytes).map_or(Answer::Malformed, |op| self.run(op));
        answer.encode(reply);
    }

    fn digest(&self) -> u64 {
        mix([self.digest, self.pairs.len() as u64])
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            for bytes in [&**key, value] {
                out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
                out.extend_from_slice(bytes);
            }
        }
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let mut rest = bytes;
        let count = word(&mut rest).ok_or_else(|| bad("no number of pairs", bytes))?;
        let mut store = Self::new();
        for _ in 0..count {
            let pair = piece(&mut rest).and_then(|key| Some((key, piece(&mut rest)?)));
            let (key, value) = pair.ok_or_else(|| bad("it ends within a pair", bytes))?;
            store.set(key, value);
        }
        if store.pairs.len() as u64 != count || !rest.is_empty() {
            return Err(bad("a key stands twice, or something follows", bytes));
        }
        *self = store;
        Ok(())
    }
}

fn bad(what: &str, bytes: &[u8]) -> RestoreError {
    RestoreError(format!(
        "{what} (a key-value state of {} bytes)",
        bytes.len()
    ))
}

fn word(rest: &mut &[u8]) -> Option<u64> {
    let (word, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u64::from_le_bytes(*word))
}

fn piece<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(word(rest)?).ok()?;
    let (piece, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(piece)
}

fn pair_hash(key: &[u8], value: &[u8]) -> u64 {
    hash(hash(key.len() as u64, key), value)
}

fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let state = words
        .iter()
        .fold(seed, |state, word| mix([state, u64::from_le_bytes(*word)]));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix([state, u64::from_le_bytes(last), bytes.len() as u64])
}
