//! Measurements of a backend, generic over its context, and what they stand on.
//!
//! Every measurement has a near end, which asks and measures, and a far end: a thread of this process (`inproc`,
//! `nic`) or a process of its own (`shm`). Both kinds run the same code and talk over a pair of pipes
//! ([`peer::Link`]) and, on hot paths, over shared words ([`map_raw::Words`]).

pub(crate) mod backend;
pub(crate) mod end;
pub(crate) mod failover;
pub(crate) mod group;
pub(crate) mod host;
pub(crate) mod map_raw;
pub(crate) mod peer;
pub(crate) mod ping_pong;
pub(crate) mod raw;
pub(crate) mod redis;
pub(crate) mod rejoin;
pub(crate) mod replicate;
pub(crate) mod revoke;
pub(crate) mod spin;
pub(crate) mod stats;
pub(crate) mod stop;
pub(crate) mod storm;
pub(crate) mod throughput;
pub(crate) mod write;

#[cfg(test)]
mod tests {
    use mu_verbs::nic::fake::{self, FakeOptions};
    use mu_verbs::nic::{Nic, NicOptions};
    use mu_verbs::{Context, RevokeMethod};

    use super::backend::{Far, Pair};
    use super::{ping_pong, revoke, write};

    /// The measurements over the NIC backend, with the fake provider in the place of libibverbs.
    fn pair() -> Pair<Nic> {
        let lib = fake::lib(FakeOptions::default());
        let open = |name| Nic::open_with(lib, name, &NicOptions::default()).unwrap();
        Pair {
            near: open("fake0"),
            far: Far::Thread(open("fake1")),
        }
    }

    #[test]
    fn writes_and_round_trips_over_verbs() {
        let plan = write::Plan {
            size: 64,
            span: None,
            count: Some(100),
            inline: false,
            pins: vec![],
        };
        let found = write::run(&pair(), &plan).unwrap();
        assert!(found.latency.count >= 100 && found.per_write_ns > 0.0);
        let plan = ping_pong::Plan {
            size: 8,
            count: Some(100),
            pins: vec![],
        };
        let found = ping_pong::run(&pair(), &plan).unwrap();
        assert_eq!(
            (found.round_trip.count, found.bare_round_trip.count),
            (100, 100)
        );
    }

    #[test]
    fn revocations_over_verbs() {
        let pair = pair();
        for method in [RevokeMethod::QpFlags, RevokeMethod::Reregister] {
            let plan = revoke::Plan::new(pair.near.caps(), method, 5).unwrap();
            let found = revoke::run(&pair, &plan).unwrap();
            assert_eq!(found.revocations, 5);
            assert!(found.holds() && found.writes > 0, "{found:?}");
        }
    }
}
