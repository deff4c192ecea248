//! `mu status`: what running replicas say of themselves and their peers.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use mu::config::{Config, Member};
use mu::control::query_status;
use mu::host;
use serde::Serialize;

use super::{Configured, Status, misuse, print, print_json, row, table};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The cluster's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only this replica
    #[arg(long)]
    id: Option<u8>,
    /// Prints one JSON object
    #[arg(long, conflicts_with = "prometheus")]
    json: bool,
    /// Prints one replica's figures in the Prometheus text format
    #[arg(long, requires = "id")]
    prometheus: bool,
}

#[derive(Serialize)]
struct Report {
    cluster: String,
    replicas: Vec<Answer>,
}

#[derive(Serialize)]
struct Answer {
    id: u8,
    reachable: bool,
    /// Why it did not answer.
    reason: Option<String>,
    status: Option<host::Status>,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    let config = Config::from_file(&args.config).configured("--config")?;
    let members = match args.id {
        Some(id) => vec![config.member(id).configured("--id")?],
        None => config.members().iter().collect(),
    };
    if config.psk().is_none() {
        return Err(misuse(
            "a configuration without a key has no replicas to be asked",
        ));
    }
    let answers = ask_all(&config, &members);
    let all = answers.iter().all(|answer| answer.reachable);
    if args.prometheus {
        let answer = answers
            .into_iter()
            .next()
            .context("one replica was asked")?;
        let reason = answer.reason.unwrap_or_default();
        let status = answer
            .status
            .with_context(|| format!("replica {}: {reason}", answer.id))?;
        print(&status.prometheus())?;
    } else if args.json {
        print_json(&Report {
            cluster: config.cluster().into(),
            replicas: answers,
        })?;
    } else {
        print(&text(&answers))?;
    }
    Ok(if all {
        Status::Holds
    } else {
        Status::DoesNotHold
    })
}

/// Asks one member what it says of itself.
pub(super) fn ask(config: &Config, member: &Member) -> Result<host::Status> {
    let control = member.control.context("it has no control address")?;
    let psk = config.psk().context("the configuration has no key")?;
    let bytes = query_status(control, psk, config.cluster())?;
    serde_json::from_slice(&bytes).context("it has nothing to say yet")
}

/// All at once: one that does not answer takes its time.
fn ask_all(config: &Config, members: &[&Member]) -> Vec<Answer> {
    std::thread::scope(|scope| {
        let asks: Vec<_> = members
            .iter()
            .map(|member| (member.id, scope.spawn(move || ask(config, member))))
            .collect();
        let answers = asks.into_iter().map(|(id, asked)| {
            let asked = asked
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("the question panicked")));
            let (status, reason) = match asked {
                Ok(status) => (Some(status), None),
                Err(error) => (None, Some(super::told(&error))),
            };
            Answer {
                id,
                reachable: status.is_some(),
                reason,
                status,
            }
        });
        answers.collect()
    })
}

fn text(answers: &[Answer]) -> String {
    let head = [
        "replica", "role", "voter", "leader", "epoch", "commit", "applied", "p50 us", "p99 us",
        "peers",
    ];
    let mut rows = vec![row(head)];
    let mut below = String::new();
    for answer in answers {
        let Some(status) = &answer.status else {
            let reason = answer.reason.as_deref().unwrap_or("?");
            rows.push(row([
                &answer.id.to_string(),
                "no answer",
                "",
                "",
                "",
                "",
                "",
                "",
                "",
                "",
            ]));
            below.push_str(&format!("replica {}: {reason}\n", answer.id));
            continue;
        };
        let total = status.stages.iter().find(|(name, _)| name == "total");
        let us = |ns: u64| format!("{:.1}", ns as f64 / 1000.0);
        let (p50, p99) = total.map_or((String::new(), String::new()), |(_, p)| {
            (us(p.p50), us(p.p99))
        });
        let peers: Vec<String> = status
            .peers
            .iter()
            .map(|peer| match (peer.alive, peer.control) {
                (true, _) => format!("{} alive ({})", peer.id, peer.links.join("+")),
                (false, true) => format!("{} silent", peer.id),
                (false, false) => format!("{} gone", peer.id),
            })
            .collect();
        rows.push(row([
            &answer.id.to_string(),
            &status.role,
            if status.voter { "yes" } else { "no" },
            &status.leader.map_or("-".into(), |id| id.to_string()),
            &status.epoch.to_string(),
            &status.commit.to_string(),
            &status.applied.to_string(),
            &p50,
            &p99,
            &peers.join(", "),
        ]));
        if let Some(why) = &status.stopped {
            below.push_str(&format!("replica {}: stopped: {why}\n", answer.id));
        }
    }
    format!("{}{below}", table(&rows, 2))
}
