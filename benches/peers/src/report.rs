//! What is printed: one JSON object, or a table for people.

use std::fmt::Write as _;

use serde::{Serialize, Serializer};

use crate::contestant::{COMMAND_SIZE, REPLICAS};
use crate::host::Host;
use crate::rounds::{Figures, Plan};
use crate::stats::Percentiles;

#[derive(Debug, Serialize)]
pub struct Report {
    host: Host,
    /// The commit, if the environment names it in `MU_COMMIT`.
    commit: Option<String>,
    pinning: Vec<usize>,
    replicas: usize,
    command_bytes: usize,
    rounds: usize,
    peers: Vec<Peer>,
    ratios: Ratios,
}

#[derive(Debug, Serialize)]
struct Peer {
    name: &'static str,
    setup: String,
    one: Percentiles,
    one_p50_lowest_round: u64,
    one_p50_highest_round: u64,
    pipelined_ops_per_s: u64,
    pipelined_best_ops_per_s: u64,
    in_flight: usize,
    decided: u64,
}

/// What is held against what: the name in the JSON, the peer, and mu in the set-up that compares.
const RATIOS: [[&str; 3]; 7] = [
    ["omnipaxos_over_mu", "omnipaxos", "mu"],
    ["raft_rs_over_mu", "raft-rs", "mu"],
    ["openraft_over_mu", "openraft", "mu"],
    [
        "omnipaxos_all_logs_over_mu_all_logs",
        "omnipaxos-all-logs",
        "mu-all-logs",
    ],
    [
        "raft_rs_all_logs_over_mu_all_logs",
        "raft-rs-all-logs",
        "mu-all-logs",
    ],
    [
        "omnipaxos_2_threads_over_mu_2_threads",
        "omnipaxos-2-threads",
        "mu-2-threads",
    ],
    [
        "raft_rs_2_threads_over_mu_2_threads",
        "raft-rs-2-threads",
        "mu-2-threads",
    ],
];

/// The p50 of each peer over the p50 of mu, in the order of [`RATIOS`]; null where one of the two did not run.
#[derive(Debug, PartialEq)]
struct Ratios([Option<f64>; RATIOS.len()]);

impl Ratios {
    fn new(figures: &[Figures]) -> Self {
        let p50 = |name| {
            figures
                .iter()
                .find(|f| f.name == name)
                .map(|f| f.one.p50 as f64)
        };
        Self(RATIOS.map(|[_, peer, mu]| Some((p50(peer)? / p50(mu)? * 100.0).round() / 100.0)))
    }
}

impl Serialize for Ratios {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(RATIOS.iter().map(|[name, ..]| name).zip(&self.0))
    }
}

impl Report {
    pub fn new(host: Host, figures: &[Figures], plan: &Plan, pinning: &[usize]) -> Self {
        let peer = |f: &Figures| Peer {
            name: f.name,
            setup: f.setup.clone(),
            one: f.one,
            one_p50_lowest_round: f.p50_low,
            one_p50_highest_round: f.p50_high,
            pipelined_ops_per_s: f.rate as u64,
            pipelined_best_ops_per_s: f.rate_best as u64,
            in_flight: plan.in_flight,
            decided: f.decided,
        };
        Self {
            host,
            commit: std::env::var("MU_COMMIT").ok(),
            pinning: pinning.to_vec(),
            replicas: REPLICAS,
            command_bytes: COMMAND_SIZE,
            rounds: plan.rounds,
            peers: figures.iter().map(peer).collect(),
            ratios: Ratios::new(figures),
        }
    }

    pub fn table(&self) -> String {
        let mut out = format!(
            "{REPLICAS} replicas in one process, {COMMAND_SIZE} B, {} rounds, on {} ({} CPUs), pinned to {:?}\n\n",
            self.rounds, self.host.cpu, self.host.cpus, self.pinning
        );
        let _ = writeln!(
            out,
            "{:<20}{:>9}{:>15}{:>9}{:>9}{:>9}{:>11}{:>12}  set-up",
            "", "p50 ns", "(rounds)", "p90", "p99", "p99.9", "max", "pipelined/s"
        );
        for peer in &self.peers {
            let rounds = format!(
                "({}-{})",
                peer.one_p50_lowest_round, peer.one_p50_highest_round
            );
            let (one, rate) = (&peer.one, peer.pipelined_ops_per_s);
            let _ = writeln!(
                out,
                "{:<20}{:>9}{:>15}{:>9}{:>9}{:>9}{:>11}{:>12}  {}; {} in flight",
                peer.name,
                one.p50,
                rounds,
                one.p90,
                one.p99,
                one.p999,
                one.max,
                rate,
                peer.setup,
                peer.in_flight
            );
        }
        out.push('\n');
        for ([_, peer, mu], ratio) in RATIOS.iter().zip(self.ratios.0) {
            let ratio = ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"));
            let _ = writeln!(out, "p50 of {peer:<19} over p50 of {mu:<12} {ratio:>8}");
        }
        out.push_str(
            "\nEvery command was decided, and applied by all three replicas, once and in order.\n",
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan {
        rounds: 2,
        warm_up: 0,
        singles: 1,
        pipelined: 1,
        in_flight: 8,
    };

    fn figures(name: &'static str, p50: u64) -> Figures {
        let one = Percentiles {
            p50,
            p90: p50,
            p99: p50,
            p999: p50,
            max: p50,
            count: 2,
        };
        let (setup, rate) = ("in a test".into(), 1e6);
        Figures {
            name,
            setup,
            one,
            p50_low: p50,
            p50_high: p50,
            rate,
            rate_best: rate,
            decided: 4,
        }
    }

    #[test]
    fn ratios_are_peer_over_mu() {
        let ratios = Ratios::new(&[
            figures("mu", 100),
            figures("omnipaxos", 330),
            figures("raft-rs", 1505),
        ]);
        assert_eq!(ratios.0[..3], [Some(3.3), Some(15.05), None]);
        let threads = [
            figures("mu", 1),
            figures("mu-2-threads", 200),
            figures("omnipaxos-2-threads", 500),
        ];
        assert_eq!(Ratios::new(&threads).0[5], Some(2.5), "like with like");
    }

    #[test]
    fn without_mu_all_ratios_are_null_and_their_names_stay() {
        let report = Report::new(Host::new(), &[figures("omnipaxos", 330)], &PLAN, &[0]);
        let json = serde_json::to_value(&report).unwrap();
        let ratios = json["ratios"].as_object().unwrap();
        assert_eq!(ratios.len(), RATIOS.len());
        assert!(ratios.values().all(serde_json::Value::is_null));
        assert!(
            report.table().contains("over p50 of mu                  -"),
            "{}",
            report.table()
        );
    }

    #[test]
    fn the_json_has_the_names_that_others_rely_on() {
        let json =
            serde_json::to_value(Report::new(Host::new(), &[figures("mu", 100)], &PLAN, &[]))
                .unwrap();
        for name in ["host", "commit", "pinning", "rounds", "peers", "ratios"] {
            assert!(json.get(name).is_some(), "{name}");
        }
        let peer = &json["peers"][0];
        for name in ["name", "setup", "pipelined_ops_per_s", "in_flight"] {
            assert!(peer.get(name).is_some(), "{name}");
        }
        for name in ["p50", "p90", "p99", "p999", "max", "count"] {
            assert!(peer["one"][name].is_u64(), "{name}");
        }
    }
}
