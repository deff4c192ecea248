//! The divergence guard: whether a majority has another digest of the state where this replica has one too.
//!
//! Digest points are words that another thread, or a peer's, writes while they are read, so index and digest may belong
//! to different points. Such words do not fit their check and are no point. (Half-written points are alike on all
//! replicas: without a check they would even agree with each other.) Peers count only if a majority of them agrees on
//! one value, and the own point counts only when it has stood unchanged while the replication engine went through a
//! whole poll.

use crate::check::mix;
use crate::layout::public;

/// Digest points that a replica keeps.
pub const POINTS: usize = 2;

/// One point: index and digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Index of the last entry in it.
    pub index: u64,
    /// Digest of the state after it.
    pub digest: u64,
}

impl Point {
    /// Point number `n` of a public line.
    pub fn load(n: usize, word: impl Fn(usize) -> u64) -> Option<Self> {
        let first = public::DIGEST + public::DIGEST_WORDS * n;
        let (index, digest, check) = (word(first), word(first + 1), word(first + 2));
        (index != 0 && check == mix([index, digest])).then_some(Self { index, digest })
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    /// An own point against which a majority stands, with the replication engine's count of polls then.
    suspect: Option<(Point, u64)>,
}

/// Polls of the replication engine after which an own point is not half written any more.
const WHOLE_POLLS: u64 = 2;

impl Guard {
    /// Looks at the own points and those of the voters; `quorum` of them with one other value are against this replica.
    /// Whether it has diverged.
    pub fn has_diverged(
        &mut self,
        own: [Option<Point>; POINTS],
        voters: impl Iterator<Item = [Option<Point>; POINTS]> + Clone,
        quorum: usize,
        progress: u64,
    ) -> bool {
        let others = |index: u64| {
            let at = move |points: [Option<Point>; POINTS]| {
                points
                    .into_iter()
                    .flatten()
                    .find(|point| point.index == index)
            };
            voters.clone().filter_map(at)
        };
        let outvoted = own.into_iter().flatten().find(|own| {
            others(own.index)
                .filter(|other| other.digest != own.digest)
                .any(|other| others(own.index).filter(|same| *same == other).count() >= quorum)
        });
        match (outvoted, self.suspect) {
            (Some(point), Some((before, since))) if point == before => {
                progress.wrapping_sub(since) >= WHOLE_POLLS
            }
            (Some(point), _) => {
                self.suspect = Some((point, progress));
                false
            }
            (None, _) => {
                self.suspect = None;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(index: u64, digest: u64) -> [Option<Point>; POINTS] {
        [Some(Point { index, digest }), None]
    }

    fn diverged(
        own: [Option<Point>; POINTS],
        voters: &[[Option<Point>; POINTS]],
        polls: [u64; 2],
    ) -> bool {
        let mut guard = Guard::default();
        let first = guard.has_diverged(own, voters.iter().copied(), 2, polls[0]);
        assert!(!first, "one look is never enough");
        guard.has_diverged(own, voters.iter().copied(), 2, polls[1])
    }

    #[test]
    fn one_against_a_majority_has_diverged() {
        let majority = [
            point(7, 1),
            [
                Some(Point {
                    index: 14,
                    digest: 5,
                }),
                Some(Point {
                    index: 7,
                    digest: 1,
                }),
            ],
        ];
        assert!(diverged(point(7, 2), &majority, [10, 12]));
        assert!(!diverged(point(7, 1), &majority, [10, 12]), "it agrees");
        assert!(!diverged(point(6, 2), &majority, [10, 12]), "another index");
        assert!(
            !diverged(point(7, 2), &majority[..1], [10, 12]),
            "one is no majority"
        );
        assert!(
            !diverged(point(7, 2), &[point(7, 1), point(7, 3)], [10, 12]),
            "they do not agree"
        );
        assert!(
            !diverged(point(7, 2), &majority, [10, 11]),
            "it may be half written"
        );
    }

    #[test]
    fn words_of_different_points_do_not_fit() {
        let words = |n: usize| match n - public::DIGEST {
            0 => 7,
            1 => 99,
            2 => mix([7, 99]),
            3 => 14,
            4 => 99,
            _ => mix([7, 99]),
        };
        assert_eq!(
            Point::load(0, words),
            Some(Point {
                index: 7,
                digest: 99
            })
        );
        assert_eq!(Point::load(1, words), None);
        assert_eq!(Point::load(0, |_| 0), None);
    }
}
