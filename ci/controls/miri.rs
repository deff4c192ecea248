//! Reads through a pointer whose vector is gone. Miri must say so, or the lane proves nothing.

fn main() {
    let words = vec![1_u64; 8];
    let start = words.as_ptr();
    drop(words);
    // SAFETY: there is none: this is the offence.
    println!("{}", unsafe { start.read() });
}
