//! Connections to be looked at: each once, in the order in which they came, so that none waits for ever.

use std::collections::{HashSet, VecDeque};

#[derive(Debug, Default)]
pub(super) struct Dirty {
    queue: VecDeque<u64>,
    known: HashSet<u64>,
}

impl Dirty {
    /// Puts one at the end, if it is not there.
    pub(super) fn insert(&mut self, token: u64) {
        if self.known.insert(token) {
            self.queue.push_back(token);
        }
    }

    /// Takes the first one out.
    pub(super) fn next(&mut self) -> Option<u64> {
        let token = self.queue.pop_front()?;
        self.known.remove(&token);
        Some(token)
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_comes_again_goes_to_the_end_and_stands_once() {
        let mut dirty = Dirty::default();
        for token in [3, 1, 3, 2] {
            dirty.insert(token);
        }
        assert_eq!(dirty.len(), 3);
        assert_eq!(dirty.next(), Some(3));
        dirty.insert(3);
        let rest: Vec<u64> = std::iter::from_fn(|| dirty.next()).collect();
        assert_eq!(rest, [1, 2, 3]);
    }
}
