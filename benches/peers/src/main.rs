mod core;
mod omni_paxos;
mod open_raft;
mod raft_rs;
use crate::core::*;
fn main() -> anyhow::Result<()> {
    let mut v: Vec<Box<dyn Core>> = vec![Box::new(omni_paxos::Omni::new()?), Box::new(raft_rs::RaftRs::new()?), Box::new(open_raft::OpenRaft::new()?)];
    let mut n = [0u64;3];
    for r in 0..10 { for (i,c) in v.iter_mut().enumerate() {
        let mut h = hdrhistogram::Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?;
        let clock = quanta::Clock::new();
        c.wake()?;
        for _ in 0..2000 { let cmd = Command::new(n[i]); n[i]+=1; let s = clock.raw(); c.one(&cmd)?; h.record(clock.delta_as_nanos(s, clock.raw()))?; c.settle()?; }
        let k = 20000u64;
        let e = c.pipelined(256, n[i]..n[i]+k)?; n[i]+=k;
        c.rest()?;
        for a in c.applied() { a.check(n[i])?; }
        println!("{r} {} p50 {} p99 {} rate {:.0}", c.name(), h.value_at_quantile(0.5), h.value_at_quantile(0.99), k as f64/e.as_secs_f64());
    } }
    Ok(())
}
