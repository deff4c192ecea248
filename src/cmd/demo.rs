//! `mu demo`: a group of replicas on this host loses its leader and goes on.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mu::picture::render;
use serde::Serialize;

use super::{Status, print, print_json};
use crate::bench::host::Host;
use crate::bench::stats::fresh_seed;
use crate::demo::{self, Figures};
use crate::local::load::Plan;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the picture goes
    #[arg(long, value_name = "FILE", default_value = "mu-demo.svg")]
    svg: PathBuf,
    /// Seconds of load before the leader is killed, and as many after
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Prints one JSON object, and what happens on standard error
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    figures: Figures,
    svg: PathBuf,
    closing: String,
    #[serde(flatten)]
    host: Host,
}

const INTRODUCTION: &str = "\
Three replicas of a key-value service, each a process of its own. The leader writes every command straight into the
memory of the others, and a client is answered when a majority has it. Seconds from the start, and what happens:

";

pub(crate) fn run(args: &Args) -> Result<Status> {
    let begin = Instant::now();
    let json = args.json;
    let tell = |text: &str| match json {
        true => eprint!("{text}"),
        // A reader that went away is no reason to stop.
        false => drop(print(text)),
    };
    tell(INTRODUCTION);
    // Before anything runs, so that a place that cannot be written costs nobody half a minute.
    fs::write(&args.svg, "").with_context(|| format!("--svg {}", args.svg.display()))?;
    let plan = Plan {
        clients: 4,
        keys: 16,
        pause: Duration::from_micros(200),
        seed: fresh_seed()?,
    };
    let shown = demo::run(Duration::from_secs(args.seconds), plan, &mut |what| {
        tell(&format!("{:6.2}  {what}\n", begin.elapsed().as_secs_f64()));
    })?;
    let page = demo::page(&shown)?;
    fs::write(&args.svg, render(&page)).with_context(|| format!("--svg {}", args.svg.display()))?;
    let closing = shown.closing();
    tell(&format!(
        "\nThe picture of it: {}\n\n{closing}\n",
        args.svg.display()
    ));
    if json {
        print_json(&Report {
            figures: shown.figures(),
            svg: args.svg.clone(),
            closing,
            host: Host::new(&[]),
        })?;
    }
    Ok(match shown.judgement.holds() {
        true => Status::Holds,
        false => Status::DoesNotHold,
    })
}
