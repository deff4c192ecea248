//! `mu doctor`: checks host and devices. Each line is pass, warn or fail, with the fix.
//!
//! A line fails only if a backend that was chosen cannot work; what costs speed, or stands in the way of a backend
//! that nobody asked for, is a warning. So a laptop without RDMA ends with status 0.

mod adapter;
mod host;
mod stress;

use anyhow::Result;
use serde::Serialize;

use super::{Status, misuse, print, print_json, table};
use crate::bench::revoke;
use crate::rdma::Survey;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The device that must work: an RDMA device, inproc or shm [default: inproc and shm]
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// The RDMA device at the other end of the revocation stress [default: the same one]
    #[arg(long, value_name = "NAME", requires = "revoke_stress")]
    peer: Option<String>,
    /// Takes a right away N times in a write storm by each method, and prints what landed afterwards
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    revoke_stress: Option<u64>,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Pass,
    Warn,
    Fail,
}

/// One line.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do about it.
    fix: Option<String>,
}

impl Check {
    fn pass(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Pass,
            found: found.into(),
            fix: None,
        }
    }

    fn warn(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Warn,
            found: found.into(),
            fix: Some(fix.into()),
        }
    }

    /// A failure if `needed`, else a warning.
    fn fail_if(
        needed: bool,
        name: &'static str,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        let verdict = if needed { Verdict::Fail } else { Verdict::Warn };
        Self {
            verdict,
            ..Self::warn(name, found, fix)
        }
    }
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    passed: usize,
    warned: usize,
    failed: usize,
    checks: Vec<Check>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoke_stress: Option<Vec<revoke::Report>>,
}

/// What the user wants to work.
struct Wanted<'a> {
    device: Option<&'a str>,
}

impl Wanted<'_> {
    fn shm(&self) -> bool {
        self.device.is_none_or(|name| name == "shm")
    }

    /// The RDMA device, if one is named.
    fn adapter(&self) -> Option<&str> {
        self.device.filter(|name| !["inproc", "shm"].contains(name))
    }
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    let wanted = Wanted {
        device: args.device.as_deref(),
    };
    let survey = Survey::new();
    if let Some(name) = wanted.adapter()
        && !survey.devices.is_empty()
        && !survey.devices.iter().any(|device| device.name == name)
    {
        let names: Vec<&str> = survey
            .devices
            .iter()
            .map(|device| device.name.as_str())
            .collect();
        return Err(misuse(format!(
            "--device: no device '{name}'; there are: inproc, shm, {}",
            names.join(", ")
        )));
    }
    let mut checks = host::checks(&wanted);
    checks.extend(adapter::checks(&wanted, &survey));
    let revoke_stress = match args.revoke_stress {
        Some(rounds) => {
            let reports = stress::run(wanted.device, args.peer.as_deref(), rounds)?;
            checks.extend(reports.iter().map(stress::check));
            Some(reports)
        }
        None => None,
    };
    let count = |verdict| {
        checks
            .iter()
            .filter(|check| check.verdict == verdict)
            .count()
    };
    let report = Report {
        ok: count(Verdict::Fail) == 0,
        passed: count(Verdict::Pass),
        warned: count(Verdict::Warn),
        failed: count(Verdict::Fail),
        checks,
        revoke_stress,
    };
    if args.json {
        print_json(&report)?;
    } else {
        print(&report.text())?;
    }
    Ok(if report.ok {
        Status::Holds
    } else {
        Status::DoesNotHold
    })
}

impl Report {
    fn text(&self) -> String {
        let mut rows = Vec::new();
        for check in &self.checks {
            let verdict = match check.verdict {
                Verdict::Pass => "pass",
                Verdict::Warn => "WARN",
                Verdict::Fail => "FAIL",
            };
            rows.push(vec![verdict.into(), check.name.into(), check.found.clone()]);
            rows.extend(
                check
                    .fix
                    .iter()
                    .map(|fix| vec![String::new(), String::new(), format!("fix: {fix}")]),
            );
        }
        let stress = self
            .revoke_stress
            .as_deref()
            .map(stress::text)
            .unwrap_or_default();
        let (passed, warned, failed) = (self.passed, self.warned, self.failed);
        format!(
            "{}{stress}{passed} passed, {warned} warned, {failed} failed\n",
            table(&rows, 3)
        )
    }
}
