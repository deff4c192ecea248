fn main() {
    let a: Vec<String> = std::env::args().collect();
    let bug = mu_protocol::zoo::Bug::ALL
        .iter()
        .copied()
        .find(|b| b.name() == a[1]);
    let (f, n): (u64, u64) = (a[2].parse().unwrap(), a[3].parse().unwrap());
    for seed in f..f + n {
        eprintln!("{seed}");
        mu_sim::group::run(mu_sim::group::Options {
            seed,
            bug,
            trace: None,
        });
    }
}
