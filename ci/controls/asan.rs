//! Reads one word past the end of a vector. AddressSanitizer must say so, or the lane proves nothing.

fn main() {
    let words = vec![1_u64; std::env::args().len() + 7];
    let end = words.as_ptr().wrapping_add(words.len());
    // SAFETY: there is none: this is the offence.
    println!("{}", unsafe { end.read_volatile() });
}
