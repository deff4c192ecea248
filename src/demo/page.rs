//! The page that the demonstration ends with.

use hdrhistogram::Histogram;

use anyhow::Result;
use mu::picture::{Bucket, Event, Page, Percentiles, Phase, Sample, Takeover};

use super::Shown;
use crate::bench::host::Host;

/// Ranges of a histogram in each factor of two.
const BUCKETS_PER_DOUBLE: f64 = 4.0;
/// Longest latency told apart: a minute.
const LONGEST_NS: u64 = 60_000_000_000;

/// Puts it together.
pub(crate) fn page(shown: &Shown) -> Result<Page> {
    let t = shown.times;
    // All times of a page count from one instant.
    let at = |ns: u64| ns.saturating_sub(t.loaded_ns);
    let mut series = Vec::new();
    let mut phases = [Vec::new(), Vec::new(), Vec::new()];
    for record in &shown.records {
        let Some((_, _, at_ns)) = record.called.answer else {
            continue;
        };
        let latency_ns = at_ns - record.called.invoked_ns;
        series.push(Sample {
            at_ns: at(at_ns),
            latency_ns,
        });
        let phase = match (at_ns < t.killed_ns, record.called.invoked_ns < t.decided_ns) {
            (true, _) => 0,
            (false, true) => 2,
            (false, false) => 1,
        };
        phases[phase].push(latency_ns);
    }
    let names = ["before the kill", "after the takeover", "during it"];
    let phases = names
        .iter()
        .zip(&phases)
        .map(|(name, all)| phase(name, all));
    let (old, new) = (shown.old_leader, shown.new_leader);
    let event = |ns: u64, text: String| Event {
        at_ns: at(ns),
        text,
    };
    let host = Host::new(&[]);
    let ms = |ns: u64| ns as f64 / 1e6;
    Ok(Page {
        title: format!(
            "The leader is killed; {:.2} ms later a client has its next answer",
            ms(t.decided_ns - t.killed_ns)
        ),
        subtitle: vec![
            format!(
                "mu demo: three replica processes of one host over shared memory, {} clients over TCP",
                shown.clients
            ),
            format!(
                "{}, {} processors, Linux {}",
                host.cpu, host.cpus, host.kernel
            ),
        ],
        phases: phases.collect::<Result<_>>()?,
        series,
        takeover: Some(Takeover {
            killed_ns: at(t.killed_ns),
            detected_ns: at(t.detected_ns),
            switched_ns: at(t.switched_ns),
            decided_ns: at(t.decided_ns),
        }),
        events: vec![
            event(t.killed_ns, format!("kill -9 of replica {old}, the leader")),
            event(t.detected_ns, format!("replica {new} stands")),
            event(t.switched_ns, format!("replica {new} leads")),
            event(t.decided_ns, "first answer from the new leader".into()),
            event(t.restarted_ns, format!("replica {old} starts again, empty")),
            event(t.rejoined_ns, format!("replica {old} has a vote again")),
        ],
        closing: shown.closing(),
        holds: shown.judgement.holds(),
    })
}

fn phase(name: &str, latencies: &[u64]) -> Result<Phase> {
    let mut histogram = Histogram::<u64>::new_with_bounds(1, LONGEST_NS, 3)?;
    for ns in latencies {
        histogram.saturating_record((*ns).max(1));
    }
    let at = |q| match histogram.is_empty() {
        true => 0,
        false => histogram.value_at_quantile(q).min(histogram.max()),
    };
    let mut buckets = Vec::new();
    let step = 2_f64.powf(1.0 / BUCKETS_PER_DOUBLE);
    let mut from = 1_000.0_f64;
    while !histogram.is_empty() && from <= histogram.max() as f64 {
        let (from_ns, to_ns) = (from as u64, (from * step) as u64);
        let count = latencies
            .iter()
            .filter(|ns| (from_ns..to_ns).contains(*ns))
            .count() as u64;
        if count > 0 {
            buckets.push(Bucket {
                from_ns,
                to_ns,
                count,
            });
        }
        from *= step;
    }
    Ok(Phase {
        name: name.into(),
        percentiles: Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
            count: histogram.len(),
        },
        histogram: buckets,
    })
}
