fn main() {
    let a: Vec<String> = std::env::args().collect();
    let n: u64 = a[1].parse().unwrap();
    for bug in mu_protocol::zoo::Bug::ALL {
        if a.len() > 2 && !a[2..].iter().any(|x| x == bug.name()) {
            continue;
        }
        let t = std::time::Instant::now();
        let c = mu_sim::group::hunt(*bug, 0, n, 2);
        let how: String =
            c.by.map_or("NOT CAUGHT".into(), |f| {
                format!("seed {} {}", f.seed, f.what)
            })
            .chars()
            .take(150)
            .collect();
        println!("{:24} {:6} {:?} {how}", bug.name(), c.seeds, t.elapsed());
    }
}
