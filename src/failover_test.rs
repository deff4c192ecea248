//! `mu demo` and `mu bench failover` as people and scripts use them: their JSON, their exit statuses, and that what
//! they started is gone when they are. No figure is judged but for being there.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mu"));
    command.args(args);
    command
}

fn mu(args: &[&str]) -> Output {
    command(args).output().expect("the command starts")
}

fn json(args: &[&str], status: i32) -> Value {
    let out = mu(args);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(status), "{args:?}\n{stderr}");
    serde_json::from_slice(&out.stdout).expect("one JSON object")
}

const FAILOVER: [&str; 6] = [
    "bench",
    "failover",
    "--json",
    "--quiet-s",
    "0.1",
    "--rounds",
];

#[test]
fn a_killed_leader_costs_nothing_acknowledged_and_a_forged_write_is_missed() {
    let o = json(&[&FAILOVER[..], &["2"]].concat(), 0);
    assert_eq!(
        (&o["backend"], &o["fault"]),
        (&"shm".into(), &"kill".into())
    );
    assert_eq!((&o["replicas"], &o["rounds"]), (&3.into(), &2.into()));
    assert_eq!((&o["lost"], &o["stale_reads"]), (&0.into(), &0.into()));
    assert_eq!(o["linearizable"], "yes");
    assert!(o["acked"].as_u64() > Some(100), "{o}");
    assert!(o["false_failovers"].is_u64(), "{o}");
    assert_eq!(o["total"]["count"], 2);
    for key in ["detect", "switch", "total"] {
        assert!(o[key]["p50"].as_u64() > Some(0), "{key}: {o}");
    }
    let o = json(&[&FAILOVER[..], &["1", "--forge"]].concat(), 1);
    assert_eq!((&o["lost"], &o["linearizable"]), (&1.into(), &"no".into()));
    assert!(o["false_failovers"].as_u64() >= Some(1), "{o}");
    assert_eq!(
        (&o["woken_asked"], &o["woken_answers"]),
        (&2.into(), &2.into())
    );
}

#[test]
fn a_replica_dies_at_a_named_step() {
    let args = [&FAILOVER[..], &["2", "--steps", "successor"]].concat();
    let o = json(&args, 0);
    assert_eq!(o["steps"]["Successor before-modify-1"], 1, "{o}");
    assert_eq!(o["steps"]["Successor after-modify-1"], 1, "{o}");
}

#[test]
fn the_demonstration_says_what_it_checked_and_draws_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let svg = dir.path().join("page.svg");
    let path = svg.to_str().expect("a path");
    let begin = Instant::now();
    let out = mu(&["demo", "--seconds", "1", "--svg", path]);
    let text = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{text}\n{errors}");
    assert!(begin.elapsed() < Duration::from_secs(30));
    let last = text.lines().last().expect("it says something");
    assert!(last.starts_with("Nothing acknowledged was lost:"), "{text}");
    let page = std::fs::read_to_string(&svg).expect("the picture");
    let page = roxmltree::Document::parse(&page).expect("an SVG");
    assert_eq!(page.root_element().tag_name().name(), "svg");

    let out = mu(&["demo", "--svg", "there/is/none.svg"]);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1));
    assert!(errors.contains("none.svg"), "{errors}");
}

#[test]
fn replicas_die_with_the_command_that_started_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let svg = dir.path().join("page.svg");
    let mut child = command(&["demo", "--seconds", "20", "--svg"])
        .arg(&svg)
        .stdout(Stdio::null())
        .spawn()
        .expect("the command starts");
    let parent = child.id();
    let begin = Instant::now();
    while children_of(parent).len() < 3 {
        assert!(begin.elapsed() < Duration::from_secs(20), "three replicas");
        thread::sleep(Duration::from_millis(10));
    }
    let children = children_of(parent);
    // Not by a way in which it could clean up.
    kill(Pid::from_raw(parent as i32), Signal::SIGKILL).expect("sent");
    child.wait().expect("it dies");
    let begin = Instant::now();
    while children.iter().any(|pid| is_mu(*pid)) {
        assert!(begin.elapsed() < Duration::from_secs(20), "{children:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The processes that have this parent.
fn children_of(parent: u32) -> Vec<u32> {
    let tasks = format!("/proc/{parent}/task");
    let tasks = std::fs::read_dir(tasks).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let words: Vec<String> = lists
        .flat_map(|list| {
            list.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect();
    words.iter().filter_map(|word| word.parse().ok()).collect()
}

fn is_mu(pid: u32) -> bool {
    let exe = Path::new("/proc").join(pid.to_string()).join("exe");
    std::fs::read_link(exe).is_ok_and(|exe| exe.ends_with("mu"))
}

#[test]
fn wrong_usage_is_named() {
    for (args, word) in [
        (
            &["bench", "failover", "--backend", "inproc"][..],
            "--backend",
        ),
        (
            &["bench", "failover", "--fault", "hang", "--steps", "leader"],
            "--steps",
        ),
        (&["bench", "failover", "--quiet-s=-1"], "--quiet-s"),
        (&["bench", "failover", "--rounds", "0"], "--rounds"),
        (&["demo", "--seconds", "0"], "--seconds"),
    ] {
        let out = mu(args);
        let errors = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {errors}");
        assert!(errors.contains(word) && out.stdout.is_empty(), "{errors}");
    }
}
