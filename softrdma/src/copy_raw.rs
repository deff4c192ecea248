//! Whole-word copies, with 16-byte stores on x86-64.
//!
//! # Why the wide path is sound
//!
//! The block of assembly is to the compiler an unknown function that may do to the words what Rust code may: one atomic
//! store a word, in ascending order. It does no less on the machine: both addresses are 16-byte aligned, aligned
//! 16-byte loads and stores are single-copy atomic on every processor with AVX by its maker's statement, and on any
//! x86-64 an aligned 8-byte lane of them is never torn (tearing happens at cache-line borders only). Under x86's
//! total store order stores become visible in program order, so each is a Release store, and a copy is visible in
//! ascending steps of at most 16 bytes. Whole-message order as seen through words is therefore kept up to pairs of
//! words; the last word of a copy is always stored alone, so whoever sees it sees all the others. Loom and Miri, and
//! sanitizer builds, take the plain loop.

use crate::limits::WORD;
use crate::sync::{Ordering, Word};

/// Bytes from which the wide path pays.
#[cfg(all(target_arch = "x86_64", not(any(loom, miri, mu_sanitize))))]
const WIDE_FROM: usize = 32;

/// Copies `src` to `dst`, ascending.
#[inline]
pub(crate) fn words(dst: &[Word], src: &[Word]) {
    assert_eq!(dst.len(), src.len());
    let one_by_one = |dst: &[Word], src: &[Word]| {
        for (d, s) in dst.iter().zip(src) {
            d.store(s.load(Ordering::Acquire), Ordering::Release);
        }
    };
    let lead = lead(dst);
    one_by_one(&dst[..lead], &src[..lead]);
    let (dst, src) = (&dst[lead..], &src[lead..]);
    let at = wide(
        dst.as_ptr().cast(),
        src.as_ptr().cast(),
        dst.len() * WORD,
        Shared::Both,
    );
    one_by_one(&dst[at..], &src[at..]);
}

/// Copies private bytes to whole words, ascending.
#[inline]
pub(crate) fn from_bytes(dst: &[Word], src: &[u8]) {
    let (src, rest) = src.as_chunks::<WORD>();
    assert!(dst.len() == src.len() && rest.is_empty());
    let one_by_one = |dst: &[Word], src: &[[u8; WORD]]| {
        for (d, s) in dst.iter().zip(src) {
            d.store(u64::from_ne_bytes(*s), Ordering::Release);
        }
    };
    let lead = lead(dst);
    one_by_one(&dst[..lead], &src[..lead]);
    let (dst, src) = (&dst[lead..], &src[lead..]);
    let at = wide(
        dst.as_ptr().cast(),
        src.as_ptr().cast(),
        dst.len() * WORD,
        Shared::Target,
    );
    one_by_one(&dst[at..], &src[at..]);
}

/// Copies whole words to private bytes, ascending.
#[inline]
pub(crate) fn to_bytes(dst: &mut [u8], src: &[Word]) {
    let (dst, rest) = dst.as_chunks_mut::<WORD>();
    assert!(src.len() == dst.len() && rest.is_empty());
    let one_by_one = |dst: &mut [[u8; WORD]], src: &[Word]| {
        for (d, s) in dst.iter_mut().zip(src) {
            *d = s.load(Ordering::Acquire).to_ne_bytes();
        }
    };
    let lead = lead(src);
    one_by_one(&mut dst[..lead], &src[..lead]);
    let (dst, src) = (&mut dst[lead..], &src[lead..]);
    let at = wide(
        dst.as_mut_ptr().cast(),
        src.as_ptr().cast(),
        src.len() * WORD,
        Shared::Source,
    );
    one_by_one(&mut dst[at..], &src[at..]);
}

/// Words before the first that is 16-byte aligned.
#[inline]
fn lead(words: &[Word]) -> usize {
    usize::from(!words.as_ptr().addr().is_multiple_of(16)).min(words.len())
}

/// Which side others may access; that side must be 16-byte aligned for the wide path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shared {
    Both,
    Target,
    Source,
}

/// Copies as many leading words as the wide path may and returns their number. At least the last word is left over.
#[cfg(all(target_arch = "x86_64", not(any(loom, miri, mu_sanitize))))]
#[inline]
fn wide(dst: *const u8, src: *const u8, len: usize, shared: Shared) -> usize {
    const LONG: usize = 64;
    const SHORT: usize = 16;
    if len < WIDE_FROM {
        return 0;
    }
    let aligned = |p: *const u8| p.addr().is_multiple_of(16);
    let ok = match shared {
        Shared::Both => aligned(dst) && aligned(src),
        Shared::Target => aligned(dst),
        Shared::Source => aligned(src),
    };
    if !ok {
        return 0;
    }
    let n = (len - WORD) / SHORT * SHORT;
    // SAFETY: `dst..dst+n` and `src..src+n` lie inside the slices of the three callers, which assert equal lengths
    // and pass pointers made from them; a private target is the caller's `&mut`. Shared words are `AtomicU64`, so
    // stores through a shared reference are allowed; the module header argues that the wide accesses are word-atomic
    // and ordered.
    unsafe {
        std::arch::asm!(
            "test {long}, {long}",
            "jz 3f",
            "2:",
            "movdqu {a}, [{s}]",
            "movdqu {b}, [{s} + 16]",
            "movdqu {c}, [{s} + 32]",
            "movdqu {e}, [{s} + 48]",
            "movdqu [{d}], {a}",
            "movdqu [{d} + 16], {b}",
            "movdqu [{d} + 32], {c}",
            "movdqu [{d} + 48], {e}",
            "add {s}, 64",
            "add {d}, 64",
            "dec {long}",
            "jnz 2b",
            "3:",
            "test {short}, {short}",
            "jz 5f",
            "4:",
            "movdqu {a}, [{s}]",
            "movdqu [{d}], {a}",
            "add {s}, 16",
            "add {d}, 16",
            "dec {short}",
            "jnz 4b",
            "5:",
            s = inout(reg) src => _,
            d = inout(reg) dst => _,
            long = inout(reg) n / LONG => _,
            short = inout(reg) n % LONG / SHORT => _,
            a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, e = out(xmm_reg) _,
            options(nostack),
        );
    }
    n / WORD
}

/// Where there is no wide path, the plain loop does it all.
#[cfg(not(all(target_arch = "x86_64", not(any(loom, miri, mu_sanitize)))))]
#[inline]
fn wide(_: *const u8, _: *const u8, _: usize, _: Shared) -> usize {
    0
}
