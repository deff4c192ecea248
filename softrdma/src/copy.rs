//! Copies between words, and between words and private bytes, at byte granularity.
//!
//! Every access to shared memory is a whole 64-bit word: loads are Acquire, stores Release, in ascending address
//! order, so a reader that sees a word of a copy with Acquire also sees every word before it. A word that is covered
//! only in part (the ends of an unaligned range) is merged by compare-and-swap, which keeps its neighbours' bytes.
//! Long aligned middles go through [`copy_raw`](crate::copy_raw), which keeps the same promises with wider stores.

use crate::copy_raw;
use crate::limits::WORD;
use crate::sync::{Ordering, Word};

/// Copies `len` bytes from byte `src_at` of `src` to byte `dst_at` of `dst`, ascending.
///
/// # Panics
/// If a range lies outside its slice.
#[inline]
pub(crate) fn words_to_words(dst: &[Word], dst_at: usize, src: &[Word], src_at: usize, len: usize) {
    if (dst_at | src_at | len).is_multiple_of(WORD) {
        let n = len / WORD;
        copy_raw::words(&dst[dst_at / WORD..][..n], &src[src_at / WORD..][..n]);
        return;
    }
    for_each_word(dst_at, len, |word, skip, n, done| {
        store_part(&dst[word], skip, n, load_bytes(src, src_at + done, n));
    });
}

/// Copies private bytes to byte `dst_at` of `dst`, ascending.
///
/// # Panics
/// If the range lies outside `dst`.
#[inline]
pub(crate) fn bytes_to_words(dst: &[Word], dst_at: usize, src: &[u8]) {
    if (dst_at | src.len()).is_multiple_of(WORD) {
        copy_raw::from_bytes(&dst[dst_at / WORD..][..src.len() / WORD], src);
    } else {
        bytes_to_parts(dst, dst_at, src);
    }
}

#[inline(never)]
fn bytes_to_parts(dst: &[Word], dst_at: usize, src: &[u8]) {
    for_each_word(dst_at, src.len(), |word, skip, n, done| {
        let mut bytes = [0; WORD];
        bytes[..n].copy_from_slice(&src[done..done + n]);
        store_part(&dst[word], skip, n, u64::from_le_bytes(bytes));
    });
}

/// Copies `dst.len()` bytes from byte `src_at` of `src` into private bytes, ascending.
///
/// # Panics
/// If the range lies outside `src`.
#[inline]
pub(crate) fn words_to_bytes(dst: &mut [u8], src: &[Word], src_at: usize) {
    if (src_at | dst.len()).is_multiple_of(WORD) {
        let n = dst.len() / WORD;
        copy_raw::to_bytes(dst, &src[src_at / WORD..][..n]);
    } else {
        parts_to_bytes(dst, src, src_at);
    }
}

#[inline(never)]
fn parts_to_bytes(dst: &mut [u8], src: &[Word], src_at: usize) {
    for_each_word(src_at, dst.len(), |word, skip, n, done| {
        let value = u64::from_le(src[word].load(Ordering::Acquire)) >> (8 * skip);
        dst[done..done + n].copy_from_slice(&value.to_le_bytes()[..n]);
    });
}

/// Cuts the byte range `at..at + len` at word borders: `f(word, bytes to skip in it, bytes of it, bytes before it)`.
#[inline]
fn for_each_word(at: usize, len: usize, mut f: impl FnMut(usize, usize, usize, usize)) {
    let mut done = 0;
    while done < len {
        let skip = (at + done) % WORD;
        let n = (WORD - skip).min(len - done);
        f((at + done) / WORD, skip, n, done);
        done += n;
    }
}

/// `n` bytes (at most 8) from byte `at`, as the low bytes of a little-endian number.
#[inline]
fn load_bytes(src: &[Word], at: usize, n: usize) -> u64 {
    let (word, skip) = (at / WORD, at % WORD);
    let low = u64::from_le(src[word].load(Ordering::Acquire)) >> (8 * skip);
    if skip + n <= WORD {
        return low;
    }
    low | u64::from_le(src[word + 1].load(Ordering::Acquire)) << (8 * (WORD - skip))
}

/// Stores the low `n` bytes of `value` at byte `skip` of the word, keeping the others.
#[inline]
fn store_part(word: &Word, skip: usize, n: usize, value: u64) {
    if n == WORD {
        word.store(value.to_le(), Ordering::Release);
        return;
    }
    let mask = ((1u64 << (8 * n)) - 1) << (8 * skip);
    let bits = (value << (8 * skip)) & mask;
    let mut old = word.load(Ordering::Relaxed);
    loop {
        let new = ((u64::from_le(old) & !mask) | bits).to_le();
        match word.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => old = now,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn words(n: usize) -> Vec<Word> {
        (0..n).map(|_| Word::new(0xEEEE_EEEE_EEEE_EEEE)).collect()
    }

    fn bytes_of(words: &[Word]) -> Vec<u8> {
        words
            .iter()
            .flat_map(|w| w.load(Ordering::Relaxed).to_ne_bytes())
            .collect()
    }

    /// Every alignment of both sides and every length up to four words, and some long ones: against plain slices.
    #[test]
    fn agrees_with_plain_slices() {
        let data: Vec<u8> = (0..600).map(|i| (i * 7 + 1) as u8).collect();
        let lens: Vec<usize> = if cfg!(miri) {
            vec![0, 1, 8, 15, 40]
        } else {
            (0..34).chain([127, 128, 129, 500]).collect()
        };
        // Miri needs a second for some twenty of these.
        let places: &[usize] = if cfg!(miri) {
            &[0, 3, 13]
        } else {
            &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
        };
        for &dst_at in places {
            for &src_at in places {
                for &len in &lens {
                    let src = words(80);
                    bytes_to_words(&src, src_at, &data[..len]);
                    let mut plain = vec![0xEE; 640];
                    plain[src_at..src_at + len].copy_from_slice(&data[..len]);
                    assert_eq!(bytes_of(&src), plain, "bytes_to_words {src_at} {len}");

                    let dst = words(80);
                    words_to_words(&dst, dst_at, &src, src_at, len);
                    let mut plain = vec![0xEE; 640];
                    plain[dst_at..dst_at + len].copy_from_slice(&data[..len]);
                    assert_eq!(
                        bytes_of(&dst),
                        plain,
                        "words_to_words {dst_at} {src_at} {len}"
                    );

                    let mut out = vec![0; len];
                    words_to_bytes(&mut out, &dst, dst_at);
                    assert_eq!(out, &data[..len], "words_to_bytes {dst_at} {len}");
                }
            }
        }
    }
}
