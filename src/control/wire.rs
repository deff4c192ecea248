//! The frames of the handshake. What is decoded is exactly what would be encoded.

use super::crypto::HASH_BYTES;
use super::limits::HANDSHAKE_FRAME_BYTES_MAX;
use crate::config::{CLUSTER_CHARS_MAX, Layout};

/// Says that this is our handshake, and which form of it.
const MAGIC: [u8; 8] = *b"mu-ctl-1";

const HELLO: u8 = 1;
const CHALLENGE: u8 = 2;
const PROOF: u8 = 3;
const VERDICT: u8 = 4;
const FAILED: u8 = 5;

/// The id of a client that is no replica, and of any replica where one is meant.
pub(super) const NO_ID: u8 = u8::MAX;

/// Bytes of a nonce.
pub(super) const NONCE_BYTES: usize = 32;
pub(super) type Nonce = [u8; NONCE_BYTES];

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Purpose {
    Peer = 0,
    Status = 1,
}

/// Who one side says it is, and what it has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Introduction {
    pub(super) version: u32,
    pub(super) purpose: Purpose,
    /// Who is speaking.
    pub(super) from: u8,
    /// To whom it means to speak.
    pub(super) to: u8,
    pub(super) incarnation: u64,
    pub(super) layout: Layout,
    pub(super) cluster: String,
}

/// A frame of the handshake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Frame {
    /// The dialer's first.
    Hello { nonce: Nonce, who: Introduction },
    /// The acceptor's answer to anybody.
    Challenge { nonce: Nonce },
    /// The dialer has the key.
    Proof([u8; HASH_BYTES]),
    /// So has the acceptor; who it is, and whether it wants the connection: 0, or the code of a refusal.
    Verdict {
        code: u8,
        proof: [u8; HASH_BYTES],
        who: Introduction,
    },
    /// The acceptor does not believe the dialer. Proves nothing.
    Failed,
}

/// Bytes of an introduction but for the cluster's name.
const WHO_BYTES: usize = 4 + 3 + 8 + 24;
/// Bytes of the longest frame but for an introduction.
const AROUND_BYTES: usize = 1 + MAGIC.len() + NONCE_BYTES;
const _: () = assert!(2 + HASH_BYTES <= AROUND_BYTES);
const _: () =
    assert!(AROUND_BYTES + WHO_BYTES + 4 * CLUSTER_CHARS_MAX <= HANDSHAKE_FRAME_BYTES_MAX);

impl Frame {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello { nonce, who } => [&[HELLO], &MAGIC[..], nonce, &who.encode()].concat(),
            Self::Challenge { nonce } => [&[CHALLENGE], &MAGIC[..], nonce].concat(),
            Self::Proof(proof) => [&[PROOF], &proof[..]].concat(),
            Self::Verdict { code, proof, who } => {
                [&[VERDICT, *code], &proof[..], &who.encode()].concat()
            }
            Self::Failed => vec![FAILED],
        }
    }

    /// `None` for anything that `encode` does not make.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let [kind] = fields.take()?;
        if [HELLO, CHALLENGE].contains(&kind) && fields.take()? != MAGIC {
            return None;
        }
        let frame = match kind {
            HELLO => Self::Hello {
                nonce: fields.take()?,
                who: Introduction::decode(&mut fields)?,
            },
            CHALLENGE => Self::Challenge {
                nonce: fields.take()?,
            },
            PROOF => Self::Proof(fields.take()?),
            VERDICT => {
                let [code] = fields.take()?;
                Self::Verdict {
                    code,
                    proof: fields.take()?,
                    who: Introduction::decode(&mut fields)?,
                }
            }
            FAILED => Self::Failed,
            _ => return None,
        };
        fields.0.is_empty().then_some(frame)
    }
}

impl Introduction {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(WHO_BYTES + self.cluster.len());
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&[self.purpose as u8, self.from, self.to]);
        out.extend_from_slice(&self.incarnation.to_le_bytes());
        for part in [self.layout.members, self.layout.log, self.layout.limits] {
            out.extend_from_slice(&part.to_le_bytes());
        }
        // The name has the rest of the frame.
        out.extend_from_slice(self.cluster.as_bytes());
        out
    }

    fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        let version = u32::from_le_bytes(fields.take()?);
        let [purpose, from, to] = fields.take()?;
        let purpose = [Purpose::Peer, Purpose::Status]
            .into_iter()
            .find(|known| *known as u8 == purpose)?;
        let incarnation = fields.word()?;
        let layout = Layout {
            members: fields.word()?,
            log: fields.word()?,
            limits: fields.word()?,
        };
        let cluster = std::str::from_utf8(std::mem::take(&mut fields.0)).ok()?;
        let known_length = (1..=CLUSTER_CHARS_MAX).contains(&cluster.chars().count());
        known_length.then(|| Self {
            version,
            purpose,
            from,
            to,
            incarnation,
            layout,
            cluster: cluster.into(),
        })
    }
}

/// Takes fields off the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn word(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}
