//! Decoders take any bytes: they never panic, hold no more than they may, and agree with their encoders.

use std::io::Read;
use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::control::handshake::Acceptor;
use crate::control::session::{Opener, Sealer};
use crate::control::wire::{Frame, Introduction};

static IDENTITIES: LazyLock<(Identity, Identity)> = LazyLock::new(|| {
    let cluster = Cluster::new(2);
    (cluster.identity(0), cluster.identity(1))
});

/// Gives a stream in pieces of the given lengths, then all the rest.
struct Pieces<'a> {
    bytes: &'a [u8],
    lengths: std::slice::Iter<'a, usize>,
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let piece = self.lengths.next().copied().unwrap_or(usize::MAX);
        let length = piece.max(1).min(into.len()).min(self.bytes.len());
        let (now, later) = self.bytes.split_at(length);
        into[..length].copy_from_slice(now);
        self.bytes = later;
        Ok(length)
    }
}

/// All frames of a stream; whether it ended with one that is too big.
fn frames(bytes: &[u8], lengths: &[usize], limit: usize) -> (Vec<Vec<u8>>, bool) {
    let mut stream = Pieces {
        bytes,
        lengths: lengths.iter(),
    };
    let mut reader = Reader::new(limit);
    let held = reader.held_bytes();
    let mut all = Vec::new();
    loop {
        match reader.next() {
            Ok(Some(frame)) => all.push(frame.to_vec()),
            Ok(None) => {
                if reader.fill(&mut stream).unwrap() == 0 {
                    assert_eq!(reader.held_bytes(), held);
                    return (all, false);
                }
            }
            Err(_) => return (all, true),
        }
    }
}

/// The same, from the whole stream at once.
fn model(mut bytes: &[u8], limit: usize) -> (Vec<Vec<u8>>, bool) {
    let mut all = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let length = u32::from_le_bytes(*length) as usize;
        if length > limit {
            return (all, true);
        }
        let Some((frame, rest)) = rest.split_at_checked(length) else {
            break;
        };
        all.push(frame.to_vec());
        bytes = rest;
    }
    (all, false)
}

fn introduction() -> impl Strategy<Value = Introduction> {
    let words = any::<(u64, u64, u64, u64)>();
    let ids = any::<(u32, bool, u8, u8)>();
    (words, ids, "\\PC{1,64}").prop_map(|(words, ids, cluster)| Introduction {
        version: ids.0,
        purpose: if ids.1 {
            Purpose::Peer
        } else {
            Purpose::Status
        },
        from: ids.2,
        to: ids.3,
        incarnation: words.0,
        layout: crate::config::Layout {
            members: words.1,
            log: words.2,
            limits: words.3,
        },
        cluster,
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        (any::<[u8; 32]>(), introduction()).prop_map(|(nonce, who)| Frame::Hello { nonce, who }),
        any::<[u8; 32]>().prop_map(|nonce| Frame::Challenge { nonce }),
        any::<[u8; 32]>().prop_map(Frame::Proof),
        (any::<u8>(), any::<[u8; 32]>(), introduction())
            .prop_map(|(code, proof, who)| Frame::Verdict { code, proof, who }),
        Just(Frame::Failed),
    ]
}

/// Bytes that are often nearly a frame.
fn almost_frame() -> impl Strategy<Value = Vec<u8>> {
    let changed = (
        frame(),
        any::<prop::sample::Index>(),
        any::<u8>(),
        0..3_usize,
    )
        .prop_map(|(frame, at, byte, cut)| {
            let mut bytes = frame.encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            bytes
        });
    prop_oneof![vec(any::<u8>(), 0..600), changed]
}

proptest! {
    #[test]
    fn any_stream_is_cut_as_the_model_cuts_it(
        parts in vec(prop_oneof![
            vec(any::<u8>(), 0..40),
            (0..70_u32, vec(any::<u8>(), 0..70))
                .prop_map(|(length, bytes)| [&length.to_le_bytes()[..], &bytes].concat()),
        ], 0..8),
        lengths in vec(0..30_usize, 0..40),
        limit in 1..64_usize,
    ) {
        let bytes = parts.concat();
        prop_assert_eq!(frames(&bytes, &lengths, limit), model(&bytes, limit));
    }

    #[test]
    fn frames_that_were_pushed_come_out(
        all in vec(vec(any::<u8>(), 0..200), 0..10),
        lengths in vec(0..50_usize, 0..60),
    ) {
        let mut bytes = Vec::new();
        for frame in &all {
            frame::push(&mut bytes, &[frame]);
        }
        prop_assert_eq!(frames(&bytes, &lengths, 200), (all, false));
    }

    #[test]
    fn handshake_frames_decode_to_what_was_encoded(frame in frame()) {
        let bytes = frame.encode();
        prop_assert!(bytes.len() <= HANDSHAKE_FRAME_BYTES_MAX);
        prop_assert_eq!(Frame::decode(&bytes), Some(frame));
    }

    #[test]
    fn what_decodes_is_what_encodes(bytes in almost_frame()) {
        if let Some(frame) = Frame::decode(&bytes) {
            prop_assert_eq!(frame.encode(), bytes);
        }
    }

    /// Without the key nobody gets through, and answers stay few.
    #[test]
    fn no_frames_without_the_key_authenticate(all in vec(almost_frame(), 0..4)) {
        let (zero, one) = &*IDENTITIES;
        let mut out = Vec::new();
        let mut acceptor = Acceptor::new([1; NONCE_BYTES]);
        let mut dialer = Dialer::start(zero, Purpose::Peer, 1, [2; NONCE_BYTES], &mut out);
        for frame in &all {
            let accepted = acceptor.on_frame(one, &|_, _| false, frame, &mut out);
            prop_assert!(!matches!(accepted, Ok(Some(_))));
            let dialled = dialer.on_frame(zero, frame, &mut out);
            prop_assert!(!matches!(dialled, Ok(Some(_))));
        }
        prop_assert!(out.len() <= 9 * (4 + HANDSHAKE_FRAME_BYTES_MAX));
    }

    #[test]
    fn no_bytes_open_without_the_key(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert!(Opener::new(Key::new(b"k")).open(&bytes).is_err());
    }

    #[test]
    fn sealed_frames_open(all in vec(vec(any::<u8>(), 0..300), 0..6)) {
        let (mut sealer, mut opener) = (Sealer::new(Key::new(b"k")), Opener::new(Key::new(b"k")));
        let mut bytes = Vec::new();
        for payload in &all {
            sealer.seal(Kind::Message, payload, &mut bytes);
        }
        let (frames, _) = frames(&bytes, &[], FRAME_BYTES_MAX);
        prop_assert_eq!(frames.len(), all.len());
        for (frame, payload) in frames.iter().zip(&all) {
            prop_assert_eq!(opener.open(frame), Ok((Kind::Message, &payload[..])));
        }
    }
}
