//! What is printed: one JSON object, or a table for people.

use std::fmt::Write as _;

use serde::Serialize;

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

/// The p50 of each peer over the p50 of mu; null where one of the two did not run.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Ratios {
    omnipaxos_over_mu: Option<f64>,
    raft_rs_over_mu: Option<f64>,
    openraft_over_mu: Option<f64>,
    omnipaxos_2_threads_over_mu: Option<f64>,
    raft_rs_2_threads_over_mu: Option<f64>,
}

impl Ratios {
    fn new(figures: &[Figures]) -> Self {
        let p50 = |name| {
            figures
                .iter()
                .find(|f| f.name == name)
                .map(|f| f.one.p50 as f64)
        };
        let over_mu = |name| Some((p50(name)? / p50("mu")? * 100.0).round() / 100.0);
        Self {
            omnipaxos_over_mu: over_mu("omnipaxos"),
            raft_rs_over_mu: over_mu("raft-rs"),
            openraft_over_mu: over_mu("openraft"),
            omnipaxos_2_threads_over_mu: over_mu("omnipaxos-2-threads"),
            raft_rs_2_threads_over_mu: over_mu("raft-rs-2-threads"),
        }
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
        let ratios = [
            ("omnipaxos", self.ratios.omnipaxos_over_mu),
            ("raft-rs", self.ratios.raft_rs_over_mu),
            ("openraft", self.ratios.openraft_over_mu),
            (
                "omnipaxos-2-threads",
                self.ratios.omnipaxos_2_threads_over_mu,
            ),
            ("raft-rs-2-threads", self.ratios.raft_rs_2_threads_over_mu),
        ];
        for (name, ratio) in ratios {
            let ratio = ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"));
            let _ = writeln!(out, "p50 of {name:<19} over p50 of mu  {ratio:>8}");
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
        assert_eq!(ratios.omnipaxos_over_mu, Some(3.3));
        assert_eq!(ratios.raft_rs_over_mu, Some(15.05));
        assert_eq!(ratios.openraft_over_mu, None);
    }

    #[test]
    fn without_mu_all_ratios_are_null_and_their_names_stay() {
        let report = Report::new(Host::new(), &[figures("omnipaxos", 330)], &PLAN, &[0]);
        let json = serde_json::to_value(&report).unwrap();
        let ratios = json["ratios"].as_object().unwrap();
        assert_eq!(ratios.len(), 5);
        assert!(ratios.values().all(serde_json::Value::is_null));
        assert!(
            report.table().contains("over p50 of mu         -"),
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
