//! What a replica says of itself and its peers: for people, for `mu status`, and for Prometheus.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::events::RoleEvent;
use super::stages::Percentiles;

/// The picture of one replica.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The cluster.
    pub cluster: String,
    /// The replica.
    pub id: u8,
    /// Its process.
    pub pid: u32,
    /// The random number of this life of it.
    pub incarnation: u64,
    /// stopped, recovering, learner, follower, candidate or leader.
    pub role: String,
    /// Whether its grants and acknowledgements count.
    pub voter: bool,
    /// The epoch in which it leads or wants to; else its promise.
    pub epoch: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<u8>,
    /// The last entry it knows to be decided.
    pub commit: u64,
    /// The last entry it applied.
    pub applied: u64,
    /// Commands that have no outcome yet.
    pub in_flight: u64,
    /// Why it stopped, if it did.
    pub stopped: Option<String>,
    /// The other members.
    pub peers: Vec<PeerStatus>,
    /// What it counted, by name.
    pub counters: Vec<(String, u64)>,
    /// The last changes of its part in the group.
    #[serde(default)]
    pub events: Vec<RoleEvent>,
    /// Where commands spent their time, by stage.
    pub stages: Vec<(String, Percentiles)>,
}

/// The picture of a peer, as this replica sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The peer.
    pub id: u8,
    /// By its pull-score.
    pub alive: bool,
    /// The pull-score.
    pub score: u32,
    /// Whether there is a control connection.
    pub control: bool,
    /// The links that are connected.
    pub links: Vec<String>,
    /// The random number of its life, 0 if unknown.
    pub incarnation: u64,
    /// As a leader: the last entry that the peer has acknowledged, if it is being written.
    pub matched: Option<u64>,
}

impl Status {
    /// The Prometheus text format.
    #[must_use]
    pub fn prometheus(&self) -> String {
        let mut out = Text {
            out: String::new(),
            labels: format!("cluster=\"{}\",id=\"{}\"", escaped(&self.cluster), self.id),
        };
        let roles = [
            "stopped",
            "recovering",
            "learner",
            "follower",
            "candidate",
            "leader",
        ];
        out.head("mu_role", "gauge", "1 for the role the replica has");
        for role in roles {
            let label = format!("role=\"{role}\"");
            out.line("mu_role", &label, (self.role == role).into());
        }
        for (name, help, value) in [
            ("mu_voter", "whether its votes count", self.voter.into()),
            ("mu_epoch", "its epoch or promise", self.epoch),
            (
                "mu_commit_index",
                "last entry known to be decided",
                self.commit,
            ),
            ("mu_applied_index", "last entry applied", self.applied),
            (
                "mu_in_flight",
                "commands without an outcome",
                self.in_flight,
            ),
        ] {
            out.head(name, "gauge", help);
            out.line(name, "", value);
        }
        type PeerGauge = (&'static str, &'static str, fn(&PeerStatus) -> u64);
        let gauges: [PeerGauge; 4] = [
            (
                "mu_peer_alive",
                "whether the pull-score says it lives",
                |p| p.alive.into(),
            ),
            ("mu_peer_score", "pull-score", |p| p.score.into()),
            ("mu_peer_links", "connected links", |p| p.links.len() as u64),
            (
                "mu_peer_matched_index",
                "last entry acknowledged to this leader",
                |p| p.matched.unwrap_or(0),
            ),
        ];
        for (name, help, of) in gauges {
            out.head(name, "gauge", help);
            for peer in &self.peers {
                out.line(name, &format!("peer=\"{}\"", peer.id), of(peer));
            }
        }
        out.head("mu_events_total", "counter", "what happened, by kind");
        for (kind, count) in &self.counters {
            out.line("mu_events_total", &format!("kind=\"{kind}\""), *count);
        }
        out.head(
            "mu_stage_nanoseconds",
            "summary",
            "time of commands by stage, sampled",
        );
        for (stage, p) in &self.stages {
            for (quantile, value) in [
                ("0.5", p.p50),
                ("0.9", p.p90),
                ("0.99", p.p99),
                ("0.999", p.p999),
            ] {
                let labels = format!("stage=\"{stage}\",quantile=\"{quantile}\"");
                out.line("mu_stage_nanoseconds", &labels, value);
            }
            out.line(
                "mu_stage_nanoseconds_count",
                &format!("stage=\"{stage}\""),
                p.count,
            );
        }
        out.out
    }
}

struct Text {
    out: String,
    labels: String,
}

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a string");
    }

    fn line(&mut self, name: &str, more: &str, value: u64) {
        let comma = if more.is_empty() { "" } else { "," };
        writeln!(self.out, "{name}{{{}{comma}{more}}} {value}", self.labels).expect("a string");
    }
}

fn escaped(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_text_has_every_figure_once_with_its_type() {
        let status = Status {
            cluster: "a\"b".into(),
            id: 2,
            role: "leader".into(),
            voter: true,
            commit: 7,
            peers: vec![PeerStatus {
                id: 1,
                alive: true,
                ..PeerStatus::default()
            }],
            counters: vec![("decided".into(), 7)],
            stages: vec![(
                "total".into(),
                Percentiles {
                    p50: 5,
                    count: 3,
                    ..Percentiles::default()
                },
            )],
            ..Status::default()
        };
        let text = status.prometheus();
        for line in [
            "mu_role{cluster=\"a\\\"b\",id=\"2\",role=\"leader\"} 1",
            "mu_role{cluster=\"a\\\"b\",id=\"2\",role=\"follower\"} 0",
            "mu_commit_index{cluster=\"a\\\"b\",id=\"2\"} 7",
            "mu_peer_alive{cluster=\"a\\\"b\",id=\"2\",peer=\"1\"} 1",
            "mu_events_total{cluster=\"a\\\"b\",id=\"2\",kind=\"decided\"} 7",
            "mu_stage_nanoseconds{cluster=\"a\\\"b\",id=\"2\",stage=\"total\",quantile=\"0.5\"} 5",
            "mu_stage_nanoseconds_count{cluster=\"a\\\"b\",id=\"2\",stage=\"total\"} 3",
        ] {
            assert_eq!(
                text.lines().filter(|l| *l == line).count(),
                1,
                "{line}\n{text}"
            );
        }
        let types = text.lines().filter(|l| l.starts_with("# TYPE")).count();
        let helps = text.lines().filter(|l| l.starts_with("# HELP")).count();
        assert_eq!(types, helps);
        let json = serde_json::to_string(&status).expect("JSON");
        assert_eq!(serde_json::from_str::<Status>(&json).expect("JSON"), status);
    }
}
