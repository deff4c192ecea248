//! Pages drawn and looked at as XML. `MU_PICTURE=page.svg cargo test -p mu-smr --lib picture` keeps the usual one, to
//! be looked at by eye.

use super::*;

const MS: u64 = 1_000_000;
const US: u64 = 1000;

/// What a run of four seconds looks like: two clients, the leader killed after two of them.
fn usual() -> Page {
    let takeover = Takeover {
        killed_ns: 2000 * MS,
        detected_ns: 2000 * MS + 412 * US,
        switched_ns: 2000 * MS + 596 * US,
        decided_ns: 2000 * MS + 612 * US,
    };
    let mut noise = 0x9e37_79b9_u64;
    let mut random = move || {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        (noise >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut series = Vec::new();
    for client in 0..2 {
        let mut now_ns = client * 700;
        while now_ns < 4000 * MS {
            let after = now_ns >= takeover.decided_ns;
            let base = if after { 2400.0 } else { 1900.0 };
            let slow = if random() < 0.004 {
                1.0 + 60.0 * random() * random()
            } else {
                1.0
            };
            let mut latency_ns = (base * (0.9 + 0.35 * random() * random()) * slow) as u64;
            if now_ns + latency_ns > takeover.killed_ns && !after {
                latency_ns = takeover.decided_ns + 5 * US * client - now_ns;
            }
            now_ns += latency_ns;
            series.push(Sample {
                at_ns: now_ns,
                latency_ns,
            });
            // Far from the kill a few commands stand for many.
            let far = now_ns.abs_diff(takeover.killed_ns) > 5 * MS;
            now_ns += if far {
                (400_000.0 * random()) as u64
            } else {
                900
            };
        }
    }
    let of = |after: bool| {
        let part = series
            .iter()
            .filter(move |s| (s.at_ns > takeover.killed_ns) == after);
        let mut latencies: Vec<u64> = part.map(|s| s.latency_ns).collect();
        latencies.sort_unstable();
        latencies
    };
    Page {
        title: "mu demo: the leader is killed, and nothing acknowledged is lost".into(),
        subtitle: vec![
            "3 replicas as processes of this host over shared memory; 2 clients, one 64 B command at a time each"
                .into(),
            "AMD EPYC, 2 cores, Linux 6.1; threads not pinned; poll policy adaptive".into(),
        ],
        phases: vec![
            phase("before the kill", &of(false)),
            phase("after the kill", &of(true)),
        ],
        takeover: Some(takeover),
        events: [
            (0, "load begins, replica 0 leads in epoch 1"),
            (2000 * MS, "replica 0 killed (SIGKILL)"),
            (takeover.detected_ns, "replica 1 holds replica 0 for dead"),
            (takeover.switched_ns, "permissions of replicas 1 and 2 switched"),
            (takeover.decided_ns, "first command decided in epoch 2"),
            (2310 * MS, "replica 0 restarted as incarnation 2"),
            (2342 * MS, "replica 0 has caught up, 3 of 3 in the quorum"),
            (4000 * MS, "load ends"),
        ]
        .map(|(at_ns, text)| Event { at_ns, text: text.into() })
        .into(),
        series,
        closing: "Nothing acknowledged was lost: 1,204,118 commands answered, each of them in the logs of \
                  all replicas, once; linearizable: yes."
            .into(),
        holds: true,
    }
}

fn phase(name: &str, latencies: &[u64]) -> Phase {
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    Phase {
        name: name.into(),
        percentiles: Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
            count: latencies.len() as u64,
        },
        histogram: latencies
            .iter()
            .map(|&ns| Bucket {
                from_ns: ns,
                to_ns: ns,
                count: 1,
            })
            .collect(),
    }
}

/// The text of every element, from a page that must be well-formed XML with nothing outside of its frame.
fn texts(svg: &str) -> Vec<String> {
    let document = roxmltree::Document::parse(svg).expect("well-formed");
    assert_eq!(document.root_element().tag_name().name(), "svg");
    for node in document.descendants() {
        for (attribute, limit) in [("x", SIZE.0), ("cx", SIZE.0), ("y", SIZE.1), ("cy", SIZE.1)] {
            if let Some(value) = node.attribute(attribute) {
                let value: f64 = value.parse().expect("a number");
                assert!(
                    (0.0..=f64::from(limit)).contains(&value),
                    "{attribute}={value}: {node:?}"
                );
            }
        }
    }
    let texts = document
        .descendants()
        .filter(|node| node.has_tag_name("text"));
    texts
        .map(|node| node.text().unwrap_or_default().trim().to_owned())
        .collect()
}

#[test]
fn the_usual_page_says_everything() {
    let page = usual();
    let svg = render(&page);
    if let Some(path) = std::env::var_os("MU_PICTURE") {
        std::fs::write(path, &svg).expect("written");
    }
    let texts = texts(&svg);
    let has = |wanted: &str| {
        assert!(
            texts.iter().any(|text| text == wanted),
            "{wanted}: {texts:#?}"
        )
    };
    has(&page.title);
    has(&page.subtitle[1]);
    assert!(
        texts.join(" ").ends_with(&page.closing),
        "on two lines: {texts:#?}"
    );
    has("detect 412 µs");
    has("switch 184 µs");
    has("first command 16 µs");
    has("in all 612 µs");
    has("leader killed; 612 µs later the next one has decided a command");
    has("time (s)");
    has("time since the leader was killed (µs)");
    has("share of commands");
    has("+412 µs");
    has("\u{2212}2 s");
    has("first command decided in epoch 2");
    has("1 ms");
    has("100 %");
    assert!(svg.len() < 2 << 20, "{} bytes", svg.len());
}

#[test]
fn a_page_is_drawn_whatever_is_missing() {
    texts(&render(&Page::default()));
    let usual = usual();
    let without = |change: fn(&mut Page)| {
        let mut page = usual.clone();
        change(&mut page);
        texts(&render(&page))
    };
    let missing = "nothing was measured".to_owned();
    assert!(without(|page| page.series.clear()).contains(&missing));
    assert!(without(|page| page.takeover = None).contains(&missing));
    assert!(without(|page| page.phases.clear()).contains(&missing));
    let one = without(|page| {
        page.series.truncate(1);
        page.phases.truncate(1);
        page.phases[0].histogram.truncate(1);
    });
    assert!(!one.contains(&missing));
}

#[test]
fn a_page_is_drawn_whatever_the_numbers() {
    let instants = [0, 1, u64::MAX / 2, u64::MAX];
    for from in instants {
        for to in instants {
            let sample = |at_ns, latency_ns| Sample { at_ns, latency_ns };
            let takeover = Takeover {
                killed_ns: from,
                detected_ns: to,
                switched_ns: from,
                decided_ns: to,
            };
            let buckets = [(from, to, 1), (to, from, u64::MAX), (from, from, 0)];
            let bucket = |(from_ns, to_ns, count)| Bucket {
                from_ns,
                to_ns,
                count,
            };
            let page = Page {
                series: vec![sample(from, to), sample(to, from), sample(to, to)],
                takeover: Some(takeover),
                phases: vec![Phase {
                    histogram: buckets.map(bucket).to_vec(),
                    ..Phase::default()
                }],
                events: vec![
                    Event {
                        at_ns: to,
                        text: String::new()
                    };
                    3
                ],
                ..Page::default()
            };
            texts(&render(&page));
        }
    }
}

#[test]
fn words_that_are_too_long_or_no_xml_are_made_to_fit() {
    let page = Page {
        title: "<&\"'> \0\u{1b}[31m\u{fffe}".into(),
        subtitle: vec!["long ".repeat(1000); 9],
        events: vec![
            Event {
                at_ns: 1,
                text: "wide ".repeat(100)
            };
            100
        ],
        phases: vec![
            Phase {
                name: "n".repeat(99),
                ..Phase::default()
            };
            9
        ],
        closing: "\u{1F980}".repeat(999),
        ..Page::default()
    };
    let texts = texts(&render(&page));
    assert_eq!(texts[0], "<&\"'>   [31m");
    assert_eq!(in_two("one two three", 8), ("one two", "three"));
    assert_eq!(in_two("ééééé", 3), ("ééé", "éé"));
    assert!(texts.contains(&"and 93 more".to_owned()), "{texts:#?}");
    assert!(
        texts.iter().all(|text| text.chars().count() <= 170),
        "{texts:#?}"
    );
}

#[test]
fn a_million_commands_take_a_page_of_bounded_size() {
    let series = (0..1_000_000u64).map(|at| Sample {
        at_ns: at * 7919 % 4_000_000_007,
        latency_ns: 1000 + at * 104_729 % 1_000_003,
    });
    let page = Page {
        series: series.collect(),
        ..usual()
    };
    let svg = render(&page);
    assert!(svg.len() < 16 << 20, "{} bytes", svg.len());
}
