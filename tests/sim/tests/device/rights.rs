//! `PeerRight`, unchanged, over simulated devices: once a right is taken away for certain, nothing lands.

use crate::pair::{BYTES, End, Pair};
use mu_sim::{Fault, Leak, NodeId, Profile, Rates, Rng};
use mu_verbs::rights::{Grant, PeerRight, RightAttr, RightState};
use mu_verbs::{QueuePair, RemoteAddr, RevokeMethod};

fn right(end: &End) -> PeerRight<mu_sim::SimContext> {
    let range = 0..BYTES;
    PeerRight::new(
        &end.ctx,
        &end.pd,
        end.qp.control(),
        &end.memory,
        range,
        RightAttr::LOG,
    )
    .expect("a right that can be granted")
}

fn words(end: &End) -> Vec<u64> {
    (0..BYTES / 8).map(|word| end.memory.load(word)).collect()
}

/// Writes under way, a revocation in the midst of them, and what landed after it.
fn storm(seed: u64, profile: Profile, method: Option<RevokeMethod>) -> (bool, u64) {
    let mut pair = Pair::new(seed, profile);
    let mut right = right(&pair.b);
    pair.connect(right.init_access(), crate::pair::IMPATIENT);
    let Grant { remote, len } = right.grant(None).expect("granted");
    assert_eq!(len, BYTES);
    let mut rng = Rng::new(seed);
    for wr_id in 0..8 {
        let addr = remote.addr + rng.below(BYTES as u64 / 2);
        let bytes = vec![1 + wr_id as u8; pair.a.qp.cap().max_inline_data as usize];
        pair.a.write(wr_id, &bytes, RemoteAddr { addr, ..remote });
    }
    pair.run(rng.below(8_000));
    match method {
        None => assert_eq!(right.revoke_fully(None).map(|_| ()).ok(), Some(())),
        Some(method) => drop(right.revoke(method, None).expect("it is offered")),
    }
    let before = words(&pair.b);
    pair.run(crate::pair::SOON_NS);
    let refused = pair.world.coverage().of(Fault::RefusedInFlight);
    (words(&pair.b) != before, refused)
}

fn devices(seed: u64) -> Profile {
    let profile = Profile::draw(&mut Rng::new(seed));
    Profile {
        max_inline_data: profile.max_inline_data.max(64),
        torn: 900_000,
        ..profile
    }
}

#[test]
fn nothing_lands_after_a_full_revocation_on_any_device() {
    let mut in_flight = 0;
    for seed in 0..2_000 {
        let profile = devices(seed);
        let (landed, refused) = storm(seed, profile, None);
        assert!(
            !landed,
            "seed {seed}: bytes landed after the revocation, {profile:?}"
        );
        in_flight += refused;
    }
    assert!(
        in_flight > 20,
        "only {in_flight} writes were under way when the right went"
    );
}

#[test]
fn flags_alone_leak_where_they_are_said_to() {
    let leaks = |leak| {
        let seeds = 0..500;
        let profile = |seed| Profile {
            leak,
            ..devices(seed)
        };
        seeds
            .filter(|seed| storm(*seed, profile(*seed), Some(RevokeMethod::QpFlags)).0)
            .count()
    };
    assert_eq!(leaks(Leak::NONE), 0);
    assert!(
        leaks(Leak::SOFT_ROCE) > 5,
        "a method that is no barrier never leaked"
    );
}

#[test]
fn a_right_comes_back_with_a_new_grant() {
    let mut pair = Pair::calm(1);
    let mut right = right(&pair.b);
    pair.connect(right.init_access(), crate::pair::IMPATIENT);
    for round in 0..5u8 {
        let grant = right.grant(None).expect("granted");
        pair.a.write(1, &[round; 8], grant.remote);
        assert!(pair.settle()[0].status.is_success());
        assert_eq!(pair.b.memory.load(0), u64::from_le_bytes([round; 8]));
        right.revoke_fully(None).expect("revoked");
        assert_eq!(right.state(), RightState::Fenced);
    }
}

#[test]
fn flags_that_fail_are_followed_by_the_next_method() {
    let mut pair = Pair::calm(1);
    let mut right = right(&pair.b);
    pair.connect(right.init_access(), crate::pair::IMPATIENT);
    let grant = right.grant(None).expect("granted");
    pair.world.set_rates(
        NodeId(1),
        Rates {
            flags_fail: 1_000_000,
            ..Rates::NONE
        },
    );
    let revoked = right
        .revoke_fully(None)
        .expect("the registration still can be taken away");
    assert_eq!(revoked.method, RevokeMethod::Reregister);
    assert!(pair.world.coverage().of(Fault::FlagsFail) > 0);
    pair.a.write(1, &[1; 8], grant.remote);
    assert!(!pair.settle()[0].status.is_success());
    assert_eq!(pair.b.memory.load(0), 0);
}
