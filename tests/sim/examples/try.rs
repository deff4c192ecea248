use mu_sim::group::{Options, run};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let first: u64 = a[1].parse().unwrap();
    let n: u64 = a[2].parse().unwrap();
    let trace = a.len() > 3;
    let t = std::time::Instant::now();
    let mut bad = 0;
    let mut ev = 0;
    let mut unk = 0;
    let mut ops = (0, 0);
    let mut ent = 0;
    for seed in first..first + n {
        let sink: Option<Box<dyn FnMut(&str) + Send>> = if trace {
            Some(Box::new(|l: &str| println!("{l}")))
        } else {
            None
        };
        let r = run(Options {
            seed,
            bug: None,
            trace: sink,
        });
        ev += r.events;
        unk += r.unknown as u64;
        ops.0 += r.operations.0;
        ops.1 += r.operations.1;
        ent += r.entries;
        if r.outcome != mu_sim::group::Outcome::Held {
            bad += 1;
            println!("seed {seed}: {:?}", r.outcome);
            if trace {
                println!("{}", r.what);
            }
        }
    }
    println!(
        "{bad} bad of {n}, {:?}/seed, {} events/seed, {unk} unknown, ops {ops:?} entries {ent}",
        t.elapsed() / n as u32,
        ev / n
    );
}
