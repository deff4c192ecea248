//! Faults of all kinds, one after the other, from a seed.

use mu_protocol::check::mix;
use mu_protocol::ids::Epoch;
use mu_protocol::layout::{Role, public};
use mu_protocol::zoo::Sound;

use crate::group::{Group, STEP_NS};

/// A small generator: the same seed gives the same faults.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = mix([self.0]);
        (self.0 % limit as u64) as usize
    }
}

/// Faults of all kinds for a while, then none. How many steps it took from then until one leads with the grants of all.
fn shaken(n: usize, seed: u64) -> usize {
    let mut dice = Dice(seed);
    let mut group = Group::led(n, Sound);
    let mut promises = vec![(0, Epoch::NONE); n];
    for _ in 0..40 {
        let (a, b) = (dice.below(n), dice.below(n));
        match dice.below(8) {
            0 if a != b => group.cut(a, b),
            1 => group.heal(),
            2 | 3 if a != b => group.node(a).break_log_link(b),
            4 => group.node(a).paused = true,
            5 => group
                .nodes
                .iter_mut()
                .flatten()
                .for_each(|node| node.paused = false),
            6 => group.node(a).stuck ^= true,
            _ => {
                // Only one at a time, and whoever comes back is taken in, as the replication engine would.
                group.heal();
                group.kill(a);
                group.run(dice.below(100));
                group.start(a, Role::Recovering, false);
                group.run(dice.below(200));
                group.node(a).rest_as(Role::Learner, false);
                group.run(dice.below(200));
                group.node(a).rest_as(Role::Follower, true);
            }
        }
        for _ in 0..dice.below(300) {
            group.step();
            for (node, (life, last)) in group.nodes.iter().flatten().zip(&mut promises) {
                let incarnation = node.board.public(public::INCARNATION);
                let promise = node.shared.promised();
                assert!(
                    *life != incarnation || promise >= *last,
                    "seed {seed}: from {last} to {promise}"
                );
                (*life, *last) = (incarnation, promise);
            }
        }
    }
    group.heal();
    for node in group.nodes.iter_mut().flatten() {
        (node.paused, node.stuck) = (false, false);
    }
    group.until(
        &format!("one leader with the grants of all, n {n} seed {seed}"),
        60_000,
        |group| {
            let leaders = group.leaders();
            leaders.len() == 1 && {
                let leader = group.node(leaders[0]);
                leader.acks(leader.shared.candidate()).len() == n - 1
            }
        },
    )
}

#[test]
fn after_faults_of_all_kinds_one_leads_and_all_have_granted() {
    let mut longest = 0;
    for seed in 0..20 {
        for n in [3, 5] {
            longest = longest.max(shaken(n, seed));
        }
    }
    println!("the longest way back: {longest} steps of {STEP_NS} ns");
}
