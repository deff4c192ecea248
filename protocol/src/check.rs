//! Check words: a 64-bit mixture of other words, by which a reader tells a complete record from a torn or stale one.
//! Strong against accidents, not against attackers; payloads have a CRC of their own.

/// Mixes `words` into one. Different lengths and orders give different results.
#[inline]
pub fn mix<const N: usize>(words: [u64; N]) -> u64 {
    // Odd 64-bit constants with evenly spread bits (from the digits of the golden ratio and of pi).
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    const SEED: u64 = 0x2436_a885_a308_d313;
    let mut sum = SEED ^ N as u64;
    let mut factor = STEP;
    for word in words {
        // The products do not depend on each other, so the processor overlaps them.
        let product = u128::from(word ^ factor) * u128::from(factor | 1 << 63);
        sum = sum.rotate_left(23) ^ product as u64 ^ (product >> 64) as u64;
        factor = factor.wrapping_add(STEP);
    }
    sum ^ sum >> 29
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_every_word_counts() {
        let words = [7, 0, u64::MAX, 1 << 40];
        let before = mix(words);
        for word in 0..words.len() {
            for bit in 0..64 {
                let mut changed = words;
                changed[word] ^= 1 << bit;
                assert_ne!(mix(changed), before, "bit {bit} of word {word}");
            }
        }
        assert_ne!(mix([1, 2]), mix([2, 1]));
        assert_ne!(mix([0]), mix([0, 0]));
    }

    #[test]
    fn words_of_different_records_rarely_mix_up() {
        // All pairs of halves of two records: what a torn record looks like.
        let mut seen = std::collections::HashSet::new();
        for a in 0..200u64 {
            for b in 0..200u64 {
                assert!(seen.insert(mix([a, a << 32, b, b << 4])), "{a} {b}");
            }
        }
    }
}
