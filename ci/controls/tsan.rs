//! Two threads write one word without any order between them. ThreadSanitizer must say so, or the lane proves nothing.

static mut WORD: u64 = 0;

fn main() {
    let threads: Vec<_> = (0..2)
        .map(|n| {
            std::thread::spawn(move || {
                for _ in 0..1000 {
                    // SAFETY: there is none: this is the offence.
                    unsafe { WORD += n };
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("neither thread panics");
    }
}
