//! Does revocation leak on this machine? Each method is tried; what is printed is what was seen.

use anyhow::{Context as _, Result};
use mu_verbs::{Barrier, Context, RevokeMethod};

use super::{Check, Verdict};
use crate::bench::backend::{self, Pair};
use crate::bench::revoke::{self, Plan, Report};
use crate::bench::stats::Percentiles;
use crate::cmd::{row, table};
use crate::rdma;

/// Runs `rounds` revocations by each method that `device` offers: a named one, else the first RDMA device that can
/// be used, else `inproc`.
pub(super) fn run(device: Option<&str>, peer: Option<&str>, rounds: u64) -> Result<Vec<Report>> {
    match device {
        Some("inproc") => each_method(&backend::inproc()?, rounds),
        Some("shm") => each_method(&backend::shm()?, rounds),
        Some(name) => each_method(&backend::nic(Some(name), peer)?, rounds),
        None => match rdma::first_usable() {
            Ok(name) => each_method(&backend::nic(Some(&name), peer)?, rounds),
            Err(_) => each_method(&backend::inproc()?, rounds),
        },
    }
}

fn each_method<C: Context>(pair: &Pair<C>, rounds: u64) -> Result<Vec<Report>> {
    let caps = pair.near.caps();
    let offered = RevokeMethod::ALL
        .into_iter()
        .filter(|m| caps.revoke.of(*m) != Barrier::Unsupported);
    offered
        .map(|method| {
            let plan = Plan::new(caps, method, rounds)?;
            revoke::run(pair, &plan)
                .with_context(|| format!("revocation by {method} on {}", caps.device))
        })
        .collect()
}

/// The line of one method. Late words fail a method that the device calls a barrier, and are no surprise with
/// another.
pub(super) fn check(report: &Report) -> Check {
    let Report {
        method,
        barrier,
        revocations,
        late_words,
        late_revocations,
        ..
    } = report;
    let found = format!(
        "{method} (barrier: {barrier}): {late_words} late words in {late_revocations} of {revocations} revocations"
    );
    match (report.late_words, report.holds()) {
        (0, _) => Check::pass("revocation", found),
        (_, true) => Check::warn(
            "revocation",
            found,
            "nothing to do: this method is not relied on alone",
        ),
        (_, false) => Check {
            verdict: Verdict::Fail,
            ..Check::warn(
                "revocation",
                found,
                "do not use this device for replication; report it with the seed",
            )
        },
    }
}

/// The table of all methods.
pub(super) fn text(reports: &[Report]) -> String {
    let mut rows = vec![row([
        "method",
        "barrier",
        "revocations",
        "late",
        "words",
        "p50 ns",
        "p99 ns",
        "max ns",
        "seed",
    ])];
    rows.extend(reports.iter().map(|r| {
        let Percentiles { p50, p99, max, .. } = r.revoke;
        let mut cells = vec![r.method.clone(), r.barrier.to_owned()];
        cells.extend(
            [
                r.revocations,
                r.late_revocations,
                r.late_words,
                p50,
                p99,
                max,
                r.seed,
            ]
            .map(|n| n.to_string()),
        );
        cells
    }));
    format!("\n{}\n", table(&rows, 2))
}
