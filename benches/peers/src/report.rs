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
    pipelined_ratios: Ratios,
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

/// What is held against what: the two names in the JSON, the peer, and mu in the set-up that compares.
const RATIOS: [[&str; 4]; 7] = [
    ["omnipaxos_over_mu", "mu_over_omnipaxos", "omnipaxos", "mu"],
    ["raft_rs_over_mu", "mu_over_raft_rs", "raft-rs", "mu"],
    ["openraft_over_mu", "mu_over_openraft", "openraft", "mu"],
    [
        "omnipaxos_all_logs_over_mu_all_logs",
        "mu_all_logs_over_omnipaxos_all_logs",
        "omnipaxos-all-logs",
        "mu-all-logs",
    ],
    [
        "raft_rs_all_logs_over_mu_all_logs",
        "mu_all_logs_over_raft_rs_all_logs",
        "raft-rs-all-logs",
        "mu-all-logs",
    ],
    [
        "omnipaxos_2_threads_over_mu_2_threads",
        "mu_2_threads_over_omnipaxos_2_threads",
        "omnipaxos-2-threads",
        "mu-2-threads",
    ],
    [
        "raft_rs_2_threads_over_mu_2_threads",
        "mu_2_threads_over_raft_rs_2_threads",
        "raft-rs-2-threads",
        "mu-2-threads",
    ],
];

/// Ratios by name, in the order of [`RATIOS`] and so that more is better for mu; null where one of the two did not run.
#[derive(Debug, PartialEq)]
struct Ratios([(&'static str, Option<f64>); RATIOS.len()]);

impl Ratios {
    /// The p50 of each peer, one command at a time, over that of mu.
    fn one(figures: &[Figures]) -> Self {
        let p50 = |name| Some(find(figures, name)?.one.p50 as f64);
        Self(RATIOS.map(|[name, _, peer, mu]| (name, ratio(p50(peer), p50(mu)))))
    }

    /// The commands a second of mu, pipelined, over those of each peer.
    fn pipelined(figures: &[Figures]) -> Self {
        let rate = |name| Some(find(figures, name)?.rate);
        Self(RATIOS.map(|[_, name, peer, mu]| (name, ratio(rate(mu), rate(peer)))))
    }
}

fn find<'a>(figures: &'a [Figures], name: &str) -> Option<&'a Figures> {
    figures.iter().find(|f| f.name == name)
}

fn ratio(over: Option<f64>, under: Option<f64>) -> Option<f64> {
    Some((over? / under? * 100.0).round() / 100.0)
}

impl Serialize for Ratios {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0)
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
            ratios: Ratios::one(figures),
            pipelined_ratios: Ratios::pipelined(figures),
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
        let text = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"));
        for ([.., peer, mu], (_, ratio)) in RATIOS.iter().zip(self.ratios.0) {
            let ratio = text(ratio);
            let _ = writeln!(out, "p50 of {peer:<19} over p50 of {mu:<12} {ratio:>8}");
        }
        out.push('\n');
        for ([.., peer, mu], (_, ratio)) in RATIOS.iter().zip(self.pipelined_ratios.0) {
            let ratio = text(ratio);
            let _ = writeln!(
                out,
                "pipelined/s of {mu:<12} over that of {peer:<19} {ratio:>6}"
            );
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

    /// The rate is that of one command at a time.
    fn figures(name: &'static str, p50: u64) -> Figures {
        let one = Percentiles {
            p50,
            p90: p50,
            p99: p50,
            p999: p50,
            max: p50,
            count: 2,
        };
        let (setup, rate) = ("in a test".into(), 1e9 / p50 as f64);
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
    fn ratios_are_peer_over_mu_in_time_and_mu_over_peer_in_rate() {
        let figures_of = [
            figures("mu", 100),
            figures("omnipaxos", 330),
            figures("raft-rs", 1505),
        ];
        for (ratios, names) in [
            (
                Ratios::one(&figures_of),
                ["omnipaxos_over_mu", "raft_rs_over_mu", "openraft_over_mu"],
            ),
            (
                Ratios::pipelined(&figures_of),
                ["mu_over_omnipaxos", "mu_over_raft_rs", "mu_over_openraft"],
            ),
        ] {
            let values = [Some(3.3), Some(15.05), None];
            assert!(
                ratios.0[..3]
                    .iter()
                    .copied()
                    .eq(names.into_iter().zip(values))
            );
        }
        let threads = [
            figures("mu", 1),
            figures("mu-2-threads", 200),
            figures("omnipaxos-2-threads", 500),
        ];
        for ratios in [Ratios::one(&threads), Ratios::pipelined(&threads)] {
            assert_eq!(ratios.0[5].1, Some(2.5), "like with like");
        }
    }

    #[test]
    fn without_mu_all_ratios_are_null_and_their_names_stay() {
        let report = Report::new(Host::new(), &[figures("omnipaxos", 330)], &PLAN, &[0]);
        let json = serde_json::to_value(&report).unwrap();
        for ratios in ["ratios", "pipelined_ratios"] {
            let ratios = json[ratios].as_object().unwrap();
            assert_eq!(ratios.len(), RATIOS.len());
            assert!(ratios.values().all(serde_json::Value::is_null));
        }
        let table = report.table();
        for line in [
            "over p50 of mu                  -",
            "over that of omnipaxos                -",
        ] {
            assert!(table.contains(line), "{table}");
        }
    }

    #[test]
    fn the_json_has_the_names_that_others_rely_on() {
        let json =
            serde_json::to_value(Report::new(Host::new(), &[figures("mu", 100)], &PLAN, &[]))
                .unwrap();
        for name in [
            "host",
            "commit",
            "pinning",
            "rounds",
            "peers",
            "ratios",
            "pipelined_ratios",
        ] {
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
