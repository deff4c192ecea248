//! Whole-word copies, with 16-byte stores for long ones on x86-64.
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
const WIDE_FROM: usize = 128;

/// Copies `src` to `dst`, ascending.
#[inline]
pub(crate) fn words(dst: &[Word], src: &[Word]) {
    assert_eq!(dst.len(), src.len());
    let at = wide(
        dst.as_ptr().cast(),
        src.as_ptr().cast(),
        dst.len() * WORD,
        Shared::Both,
    );
    for (d, s) in dst[at..].iter().zip(&src[at..]) {
        d.store(s.load(Ordering::Acquire), Ordering::Release);
    }
}

/// Copies private bytes to whole words, ascending.
#[inline]
pub(crate) fn from_bytes(dst: &[Word], src: &[u8]) {
    assert_eq!(dst.len() * WORD, src.len());
    let at = wide(dst.as_ptr().cast(), src.as_ptr(), src.len(), Shared::Target);
    let (dst, src) = (&dst[at..], src[at * WORD..].as_chunks::<WORD>().0);
    for (d, s) in dst.iter().zip(src) {
        d.store(u64::from_ne_bytes(*s), Ordering::Release);
    }
}

/// Copies whole words to private bytes, ascending.
#[inline]
pub(crate) fn to_bytes(dst: &mut [u8], src: &[Word]) {
    assert_eq!(src.len() * WORD, dst.len());
    let at = wide(
        dst.as_mut_ptr(),
        src.as_ptr().cast(),
        dst.len(),
        Shared::Source,
    );
    let dst = dst[at * WORD..].as_chunks_mut::<WORD>().0;
    for (d, s) in dst.iter_mut().zip(&src[at..]) {
        *d = s.load(Ordering::Acquire).to_ne_bytes();
    }
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
    const STEP: usize = 64;
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
    let steps = (len - WORD) / STEP;
    let n = steps * STEP;
    // SAFETY: `dst..dst+n` and `src..src+n` lie inside the slices of the three callers, which assert equal lengths
    // and pass pointers made from them; a private target is the caller's `&mut`. Shared words are `AtomicU64`, so
    // stores through a shared reference are allowed; the module header argues that the wide accesses are word-atomic
    // and ordered.
    unsafe {
        std::arch::asm!(
            "2:",
            "movdqu {a}, [{s} + {i}]",
            "movdqu {b}, [{s} + {i} + 16]",
            "movdqu {c}, [{s} + {i} + 32]",
            "movdqu {e}, [{s} + {i} + 48]",
            "movdqu [{d} + {i}], {a}",
            "movdqu [{d} + {i} + 16], {b}",
            "movdqu [{d} + {i} + 32], {c}",
            "movdqu [{d} + {i} + 48], {e}",
            "add {i}, 64",
            "jnz 2b",
            s = in(reg) src.add(n),
            d = in(reg) dst.add(n),
            i = inout(reg) (n as isize).wrapping_neg() => _,
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
