//! The conformance suite on every backend that any machine has, with few revocations in each storm; `conformance` (the
//! program) runs it in full and on devices, and its `--self-test` breaks a backend in every way it knows.

use mu_tests::backends::{Backend, FakeDevice, Inproc, Shm};
use mu_tests::cases;
use mu_tests::harness::Traits;
use mu_tests::run::{Options, Outcome, run};

fn keeps_the_contract<B: Backend>(backend: &B) {
    let traits = Traits {
        rounds: 8,
        ..backend.traits()
    };
    let options = Options {
        seed: 1,
        ..Options::default()
    };
    let report = run(backend.name(), &backend.open(), traits, &options, |case| {
        if case.outcome != Outcome::Passed {
            println!("{}", case.text());
        }
    })
    .expect("the backend opens");
    assert!(
        report.holds(),
        "{} (seed {}): {:?}, skips: {:?}",
        report.backend,
        report.seed,
        report.counts(),
        report.skip_errors
    );
    assert_eq!(
        report.cases.len(),
        cases::all::<B::Ctx>().len(),
        "every case ran"
    );
}

#[test]
fn there_are_enough_cases_with_names_of_their_own() {
    let mut names: Vec<_> = cases::all::<mu_verbs::soft::Soft>()
        .iter()
        .map(|case| case.name)
        .collect();
    assert!(names.len() >= 80, "{} cases", names.len());
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn every_expected_skip_names_a_case() {
    let names: Vec<_> = cases::all::<mu_verbs::soft::Soft>()
        .iter()
        .map(|case| case.name)
        .collect();
    for expected in mu_tests::backends::EXPECTED {
        assert!(
            names.contains(&expected.case),
            "there is no case {}",
            expected.case
        );
    }
}

#[test]
fn inproc() {
    keeps_the_contract(&Inproc);
}

#[test]
fn shm() {
    keeps_the_contract(&Shm);
}

#[test]
fn nic_over_the_fake_provider() {
    keeps_the_contract(&FakeDevice);
}
