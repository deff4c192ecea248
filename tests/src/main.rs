//! `conformance`: holds a backend to the contract of `mu-verbs`.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use mu_softrdma::Fabric;
use mu_softrdma::fault::Placement as Order;
use mu_tests::backends::{Backend, Device, FakeDevice, Inproc, Shm};
use mu_tests::broken::{Broken, Mutation};
use mu_tests::cases;
use mu_tests::harness::{Open, Traits};
use mu_tests::run::{Options, Outcome, Report, run};
use mu_verbs::soft::Soft;
use mu_verbs::{BackendKind, Context, Mtu, Placement};
use serde_json::json;

/// Holds a backend to the one contract of the verbs layer: a line for each case, then the counts. Exit status 1 if a
/// case failed, or if other cases were skipped than the backend's capabilities explain.
#[derive(Clone, Parser)]
struct Args {
    /// The backend.
    #[arg(long, value_enum, default_value = "inproc")]
    backend: Name,
    /// The ibverbs device of the asking side (backend nic).
    #[arg(long, default_value = "rxe0")]
    device: String,
    /// The ibverbs device of the answering side (backend nic); the same if not given.
    #[arg(long)]
    peer: Option<String>,
    /// Packet size in bytes (backend nic).
    #[arg(long, default_value_t = 1024)]
    mtu: u32,
    /// Revocations in each storm.
    #[arg(long)]
    rounds: Option<u32>,
    /// Only cases whose name contains this; may be given several times.
    #[arg(long)]
    filter: Vec<String>,
    /// Only list the cases.
    #[arg(long)]
    list: bool,
    /// Print one JSON object instead of lines.
    #[arg(long)]
    json: bool,
    /// Seed of all random choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Break the in-process backend one way at a time and see that the suite notices each.
    #[arg(long)]
    self_test: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// Threads of this process.
    Inproc,
    /// Shared memory.
    Shm,
    /// An ibverbs device.
    Nic,
    /// The NIC backend over the fake provider.
    NicFake,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = if args.list {
        cases::all::<Soft>()
            .iter()
            .for_each(|case| println!("{}", case.name));
        Ok(true)
    } else if args.self_test {
        self_test(&args)
    } else {
        judge(&args)
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("conformance: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn judge(args: &Args) -> Result<bool> {
    match args.backend {
        Name::Inproc => judge_backend(args, &Inproc),
        Name::Shm => judge_backend(args, &Shm),
        Name::NicFake => judge_backend(args, &FakeDevice),
        Name::Nic => {
            let device = args.device.clone();
            let peer = args.peer.clone().unwrap_or_else(|| device.clone());
            judge_backend(
                args,
                &Device {
                    device,
                    peer,
                    mtu: mtu(args.mtu)?,
                },
            )
        }
    }
}

fn mtu(bytes: u32) -> Result<Mtu> {
    let found = (1..=5)
        .filter_map(Mtu::from_code)
        .find(|mtu| mtu.bytes() == bytes as usize);
    ensure!(
        found.is_some(),
        "--mtu {bytes}: must be 256, 512, 1024, 2048 or 4096"
    );
    Ok(found.unwrap_or_default())
}

fn options(args: &Args) -> Options {
    Options {
        filter: args.filter.clone(),
        seed: args.seed,
        first_failure: false,
    }
}

fn judge_backend<B: Backend>(args: &Args, backend: &B) -> Result<bool> {
    let mut traits = backend.traits();
    traits.rounds = args.rounds.unwrap_or(traits.rounds);
    let report = run(
        backend.name(),
        &backend.open(),
        traits,
        &options(args),
        |case| {
            if !args.json {
                println!("{}", case.text());
            }
        },
    )?;
    if args.json {
        println!("{}", report.json());
    } else {
        summary(&report);
    }
    Ok(report.holds())
}

fn summary(report: &Report) {
    let (passed, failed, skipped) = report.counts();
    let (fewest, most) = report.expected_skips;
    report
        .skip_errors
        .iter()
        .for_each(|e| println!("WRONG SKIPS: {e}"));
    println!(
        "backend {}, seed {}, {fewest} to {most} skips expected",
        report.backend, report.seed
    );
    println!("{passed} passed, {failed} failed, {skipped} skipped");
}

/// Every mutation must be caught, and the wrapper with nothing broken must pass.
fn self_test(args: &Args) -> Result<bool> {
    let mut results = Vec::new();
    let mut survived = 0;
    let mut one = |name: String, first: Option<(&'static str, String)>, should_fail: bool| {
        let right = first.is_some() == should_fail;
        survived += usize::from(!right);
        if !args.json {
            let verdict = if right { "ok" } else { "WRONG" };
            match &first {
                Some((case, why)) => println!(
                    "{verdict} {name} -> {case}: {}",
                    why.chars().take(140).collect::<String>()
                ),
                None => println!("{verdict} {name} -> no case fails"),
            }
        }
        results.push(
            json!({ "mutation": name, "first_failing_case": first.map(|f| f.0), "right": right }),
        );
    };
    one(
        "Nothing".into(),
        first_failure(args, &broken(Mutation::Nothing))?,
        false,
    );
    for how in Mutation::ALL {
        one(format!("{how:?}"), first_failure(args, &broken(how))?, true);
    }
    // What comes late must be seen by the storms alone as well.
    for how in [Mutation::FlagsLate, Mutation::DeregistrationLate] {
        let storms = Args {
            filter: vec!["storm".into()],
            ..args.clone()
        };
        one(
            format!("{how:?}, storms only"),
            first_failure(&storms, &broken(how))?,
            true,
        );
    }
    for order in [Order::Shuffle128, Order::Shuffle64] {
        one(
            format!("Placement{order:?}"),
            first_failure(args, &misplaced(order))?,
            true,
        );
    }
    if args.json {
        println!("{}", json!({ "mutations": results, "survived": survived }));
    } else {
        println!("{} mutations, {survived} wrong", results.len());
    }
    Ok(survived == 0)
}

fn broken(how: Mutation) -> Open<Broken<Soft>> {
    let open = Inproc.open();
    Arc::new(move || {
        let (a, b) = open()?;
        Ok((Broken::new(a, how), Broken::new(b, how)))
    })
}

/// A device that places the words of a WRITE in some other order than it says.
fn misplaced(order: Order) -> Open<Soft> {
    Arc::new(move || {
        let fabric = Fabric::new();
        let node = || -> Result<Soft> {
            Ok(Soft::over(
                fabric.open_with(order)?,
                BackendKind::Inproc,
                Placement::WholeMessage,
            ))
        };
        Ok((node()?, node()?))
    })
}

fn first_failure<C: Context>(
    args: &Args,
    open: &Open<C>,
) -> Result<Option<(&'static str, String)>> {
    let options = Options {
        first_failure: true,
        ..options(args)
    };
    let report = run("broken inproc", open, Traits::BROKEN, &options, |_| ())?;
    Ok(report
        .cases
        .into_iter()
        .find_map(|case| match case.outcome {
            Outcome::Failed(why) => Some((case.name, why)),
            _ => None,
        }))
}
