//! Bounds so small that they are explored with every other test: the model holds, the cheapest bugs are found. The real
//! bounds are those of `ci/model`.

use mu_model::bugs::Bug;
use mu_model::config::Config;
use mu_model::run::explore;
use mu_model::sets;
use mu_model::state::Violation;

#[test]
fn two_candidates_and_two_entries_hold() {
    let outcome = explore(&Config::base("small", [1, 0, 1], 2), 1);
    assert!(outcome.holds(), "{outcome:?}");
    assert!(
        outcome.unique > 500,
        "{} states are too few",
        outcome.unique
    );
    assert!(outcome.wanted >= 2);
}

#[test]
fn a_configuration_that_cannot_come_by_its_situations_does_not_hold() {
    // There is never a second holder of a right, so no write can be cut.
    let mut config = Config::base("vacuous", [1, 0, 0], 1);
    config.growth = true;
    config.torn = true;
    let outcome = explore(&config, 1);
    assert_eq!(outcome.violation.map(|(violation, _)| violation), None);
    assert_eq!(outcome.missing, ["a write is cut"]);
}

#[test]
fn a_seeded_bug_is_found_as_what_it_is() {
    let found = |bug| {
        let outcome = explore(&sets::control(bug), 1);
        assert!(!outcome.exhausted);
        outcome.violation.map(|(violation, _)| violation)
    };
    assert_eq!(found(Bug::DecideAlone), Some(Violation::Lost));
    assert_eq!(found(Bug::CommitItself), Some(Violation::AppliedUndecided));
    assert_eq!(found(Bug::AmnesiacVotes), Some(Violation::Lost));
}

#[test]
fn two_writers_of_one_log_are_seen() {
    let of = |bug| explore(&sets::control(bug), 1).two_writers;
    assert!(of(Bug::GrantWithoutRevoke) && of(Bug::OwnEngineNotStopped));
    assert!(!of(Bug::AdoptFirst));
}
