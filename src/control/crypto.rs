//! The keyed hashes of the control connection: HMAC-SHA256, under keys that are wiped when dropped.
//!
//! Every use has a label of its own, and every part is preceded by its length, so that no two uses and no two lists of
//! parts hash the same bytes. Tags are compared by the crate, in constant time.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::limits::TAG_BYTES;

/// Bytes of a derived key, and of a proof.
pub(super) const HASH_BYTES: usize = 32;

/// A secret that hashes are keyed with.
#[derive(Clone)]
pub(super) struct Key(Zeroizing<Vec<u8>>);

impl Key {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    /// A key for one use.
    pub(super) fn derive(&self, label: &str, parts: &[&[u8]]) -> Self {
        let hash = Zeroizing::new(<[u8; HASH_BYTES]>::from(
            self.hash(label, parts).finalize().into_bytes(),
        ));
        Self::new(&*hash)
    }

    pub(super) fn proof(&self, label: &str, parts: &[&[u8]]) -> [u8; HASH_BYTES] {
        self.hash(label, parts).finalize().into_bytes().into()
    }

    pub(super) fn proves(&self, label: &str, parts: &[&[u8]], proof: &[u8]) -> bool {
        self.hash(label, parts).verify_slice(proof).is_ok()
    }

    pub(super) fn tag(&self, label: &str, parts: &[&[u8]]) -> [u8; TAG_BYTES] {
        let whole = self.proof(label, parts);
        *whole.first_chunk().expect("a tag is the head of a hash")
    }

    pub(super) fn tags(&self, label: &str, parts: &[&[u8]], tag: &[u8; TAG_BYTES]) -> bool {
        self.hash(label, parts).verify_truncated_left(tag).is_ok()
    }

    fn hash(&self, label: &str, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut hash = Hmac::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        for part in [label.as_bytes()].iter().chain(parts) {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(not shown)")
    }
}

/// The hash of what both sides sent.
pub(super) fn transcript(parts: [&[u8]; 2]) -> [u8; HASH_BYTES] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_the_borders_between_parts_count() {
        let key = Key::new(b"0123456789abcdef");
        let proof = key.proof("a", &[b"bc", b"d"]);
        assert!(key.proves("a", &[b"bc", b"d"], &proof));
        assert!(!key.proves("a", &[b"b", b"cd"], &proof));
        assert!(!key.proves("ab", &[b"c", b"d"], &proof));
        assert!(!key.proves("a", &[b"bc", b"d"], &proof[..31]));
        assert!(!Key::new(b"0123456789abcdeF").proves("a", &[b"bc", b"d"], &proof));
        assert_ne!(transcript([b"ab", b"c"]), transcript([b"a", b"bc"]));
        assert_eq!(format!("{key:?}"), "Key(not shown)");
    }

    /// RFC 4231, test case 2, so that it is HMAC-SHA256 and nothing else.
    #[test]
    fn it_is_hmac_sha256() {
        let mut hash = Hmac::<Sha256>::new_from_slice(b"Jefe").unwrap();
        hash.update(b"what do ya want for nothing?");
        let hex = data_encoding::HEXLOWER.encode(&hash.finalize().into_bytes());
        assert_eq!(
            hex,
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
