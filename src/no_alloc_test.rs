//! The propose path in direct mode allocates nothing, after a warm-up that may: the counter of the conformance suite's
//! own such test. A binary of its own, for its allocator is everybody's.

#[path = "../tests/tests/no_alloc/allocator_raw.rs"]
mod allocator_raw;

use std::time::{Duration, Instant};

use allocator_raw::allocations;
use mu::host::Direct;
use mu::verbs::soft::Soft;
use mu::{Command, Inproc, RestoreError, StateMachine};

/// Counts, and allocates if it is told to.
#[derive(Default)]
struct Counter {
    count: u64,
    kept: Vec<Vec<u8>>,
}

const WASTE: &[u8] = b"waste";

impl StateMachine for Counter {
    fn apply(&mut self, command: &Command<'_>, reply: &mut Vec<u8>) {
        if command.bytes == WASTE {
            self.kept.push(command.bytes.to_vec());
        }
        self.count += 1;
        reply.extend_from_slice(&self.count.to_le_bytes());
    }
    fn digest(&self) -> u64 {
        self.count
    }
    fn snapshot(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.count.to_le_bytes());
    }
    fn restore(&mut self, _: &[u8]) -> Result<(), RestoreError> {
        Err(RestoreError("this test has no newcomers".into()))
    }
}

/// Allocations of so many proposals, reads now and then among them.
fn allocations_of(direct: &mut Direct<Soft, Counter>, rounds: u64, command: &[u8]) -> u64 {
    let first = direct.app().count;
    let before = allocations();
    for round in 1..=rounds {
        let reply = direct.propose_as(9, first + round, command);
        let reply = reply.expect("decided");
        assert_eq!(reply.bytes, (first + round).to_le_bytes());
        if round.is_multiple_of(16) {
            assert_eq!(direct.read(|app| app.count), Ok(first + round));
        }
    }
    allocations() - before
}

#[test]
fn proposing_allocates_nothing() {
    let net = Inproc::new(3);
    let start = |id| {
        let mut options = net.options(id);
        // Many laps of the ring, so that recycling is part of it.
        options.settings.ring_bytes = 256 << 10;
        options.settings.max_command_bytes = 1 << 10;
        // This is not about failures, which a busy machine may look like.
        options.settings.detect_ns = 5_000_000_000;
        options
    };
    let mut direct = net.direct(start(0), Counter::default()).expect("it starts");
    let _followers = [1, 2].map(|id| {
        net.replica(start(id), Counter::default())
            .expect("it starts")
    });
    let begin = Instant::now();
    // Both followers are written before anything is counted: one that is late needs a snapshot, which is allocated.
    while !direct.leads() || direct.engine().followers().count() < 2 {
        assert!(begin.elapsed() < Duration::from_secs(20), "not all follow");
        let pace = direct.poll(|_| {});
        direct.rest(pace, None);
    }
    for bytes in [8, 64, 512, 1024] {
        let command = vec![7; bytes];
        allocations_of(&mut direct, 500, &command);
        let made = allocations_of(&mut direct, 5000, &command);
        assert_eq!(
            made,
            0,
            "{made} allocations in 5000 proposals of {bytes} bytes: {:?}",
            direct.engine().counters()
        );
    }
    assert!(
        allocations_of(&mut direct, 100, WASTE) >= 100,
        "an application that allocates is seen"
    );
}
