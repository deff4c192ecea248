//! The command as people and scripts use it: its JSON, its exit statuses, its messages. No figure is judged but for
//! being there and agreeing with the others.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

fn mu(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mu"))
        .args(args)
        .output()
        .expect("the command starts")
}

/// Runs with `--json`, expects `status`, and gives the one object on standard output.
fn json(args: &[&str], status: i32) -> Value {
    let out = mu(&[args, &["--json"]].concat());
    let (stdout, stderr) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    assert_eq!(
        out.status.code(),
        Some(status),
        "{args:?}\n{stdout}\n{stderr}"
    );
    let value: Value =
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {stdout}"));
    assert!(value.is_object(), "{stdout}");
    value
}

/// Runs, expects wrong usage, and gives the message.
fn misuse(args: &[&str]) -> String {
    let out = mu(args);
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(
        out.stdout.is_empty(),
        "{args:?} printed something on standard output"
    );
    stderr
}

fn assert_percentiles(p: &Value) {
    let values = ["p50", "p90", "p99", "p999", "max"]
        .map(|key| p[key].as_u64().unwrap_or_else(|| panic!("{key} in {p}")));
    assert!(
        values[0] > 0 && values.is_sorted() && p["count"].as_u64() > Some(0),
        "{p}"
    );
}

const BACKENDS: [&str; 2] = ["inproc", "shm"];

#[test]
fn writes_are_measured_with_a_breakdown() {
    for backend in BACKENDS {
        for extra in [
            &["--size", "64", "--inline"][..],
            &["--size", "4099"],
            &["--size", "1", "--span", "128"],
        ] {
            let args = [
                &["bench", "write", "--backend", backend, "--count", "500"],
                extra,
            ]
            .concat();
            let o = json(&args, 0);
            assert_eq!(
                (o["backend"].as_str(), o["size"].to_string().as_str()),
                (Some(backend), extra[1])
            );
            assert_percentiles(&o["latency"]);
            for key in [
                "per_write_ns",
                "memcpy_ns",
                "per_write_best_ns",
                "memcpy_best_ns",
            ] {
                assert!(o[key].as_f64() > Some(0.0), "{key} in {o}");
            }
            for key in [
                "word_stores",
                "gated_stores",
                "post_unsignalled",
                "post_in_batch",
                "poll_in_batch",
                "empty_poll",
            ] {
                assert!(o["breakdown_ns"][key].as_f64() > Some(0.0), "{key} in {o}");
            }
            assert!(o["host"]["cpus"].as_u64() > Some(0));
        }
    }
}

#[test]
fn round_trips_have_a_bare_form_beside_them() {
    for backend in BACKENDS {
        for size in ["8", "2048"] {
            let o = json(
                &[
                    "bench",
                    "write",
                    "--backend",
                    backend,
                    "--ping-pong",
                    "--count",
                    "400",
                    "--size",
                    size,
                ],
                0,
            );
            assert_percentiles(&o["round_trip"]);
            assert_percentiles(&o["bare_round_trip"]);
            assert_eq!(o["bare_size"], 8);
            for ratio in ["ratio_p50", "ratio_amortised"] {
                // Of writes and words of different sizes there is none.
                assert_eq!(o[ratio].as_f64() > Some(0.0), size == "8", "{ratio} in {o}");
                assert_eq!(o[ratio].is_null(), size != "8", "{ratio} in {o}");
            }
        }
    }
}

#[test]
fn nothing_lands_after_a_revocation_by_any_method() {
    for backend in BACKENDS {
        for method in ["qp-flags", "qp-cycle", "reregister", "window"] {
            let o = json(
                &[
                    "bench",
                    "write",
                    "--backend",
                    backend,
                    "--revoke-stress",
                    "50",
                    "--method",
                    method,
                ],
                0,
            );
            assert_eq!(
                (o["revocations"].as_u64(), o["late_words"].as_u64()),
                (Some(50), Some(0)),
                "{o}"
            );
            assert_eq!(
                (o["method"].as_str(), o["barrier"].as_str()),
                (Some(method), Some("yes"))
            );
            assert_percentiles(&o["revoke"]);
            assert!(o["writes"].as_u64() > Some(0) && o["seed"].is_u64());
        }
    }
}

#[test]
fn the_search_for_late_words_finds_them_when_nothing_is_revoked() {
    for backend in BACKENDS {
        let o = json(
            &[
                "bench",
                "write",
                "--backend",
                backend,
                "--revoke-stress",
                "50",
                "--broken",
            ],
            1,
        );
        assert!(o["late_words"].as_u64() > Some(0), "{o}");
    }
    let o = json(
        &[
            "bench",
            "write",
            "--backend",
            "shm",
            "--stop-writer",
            "5",
            "--broken",
        ],
        1,
    );
    assert!(o["late_words"].as_u64() > Some(0), "{o}");
}

/// Whether a stopped writer can be fenced here.
fn can_fence() -> bool {
    let devices = json(&["devices"], 0);
    let shm = devices["devices"]
        .as_array()
        .unwrap()
        .iter()
        .find(|d| d["name"] == "shm")
        .unwrap();
    shm["capabilities"]["bounded_revoke"] == true
}

#[test]
fn a_stopped_writer_lands_nothing_when_it_goes_on() {
    if !can_fence() {
        println!("SKIP: no userfaultfd here, so a stopped writer cannot be fenced");
        return;
    }
    let o = json(
        &["bench", "write", "--backend", "shm", "--stop-writer", "20"],
        0,
    );
    assert_eq!(
        (o["stopped_rounds"].as_u64(), o["late_words"].as_u64()),
        (Some(20), Some(0)),
        "{o}"
    );
    assert!(o["in_mid_copy"].as_u64() > Some(0), "{o}");
    assert_percentiles(&o["revoke"]);
}

#[test]
fn devices_lists_the_software_backends_and_what_rdma_lacks() {
    let o = json(&["devices"], 0);
    for backend in BACKENDS {
        let device = o["devices"]
            .as_array()
            .unwrap()
            .iter()
            .find(|d| d["name"] == backend)
            .unwrap();
        assert_eq!(device["backend"], backend);
        let caps = &device["capabilities"];
        assert_eq!(caps["revoke"]["qp-flags"], "yes");
        assert_eq!(
            (&caps["revoke_with"], &caps["placement"]),
            (&"qp-flags".into(), &"whole message".into())
        );
    }
    if o["rdma"]["devices"] == 0 {
        for problem in o["rdma"]["problems"].as_array().unwrap() {
            assert!(
                problem["what"].as_str().is_some_and(|s| !s.is_empty()),
                "{problem}"
            );
            assert!(
                problem["remedy"].as_str().is_some_and(|s| !s.is_empty()),
                "{problem}"
            );
        }
        assert!(!o["rdma"]["problems"].as_array().unwrap().is_empty());
    }
    assert!(mu(&["devices"]).status.success());
}

#[test]
fn doctor_says_what_fails_and_how_to_mend_it() {
    let o = json(
        &["doctor", "--device", "inproc", "--revoke-stress", "20"],
        0,
    );
    for check in o["checks"].as_array().unwrap() {
        assert_eq!(
            check["verdict"] == "pass",
            check["fix"].is_null(),
            "{check}"
        );
    }
    let methods: Vec<&Value> = o["revoke_stress"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["method"])
        .collect();
    assert_eq!(methods, ["qp-flags", "window", "reregister", "qp-cycle"]);
    assert_eq!(
        (o["ok"].as_bool(), o["failed"].as_u64()),
        (Some(true), Some(0))
    );

    // A device that nobody has: either there are no devices at all, which fails, or it is not among them.
    let out = mu(&["doctor", "--device", "no-such-device"]);
    assert!(matches!(out.status.code(), Some(1 | 2)), "{out:?}");
}

#[test]
fn a_writer_that_was_never_stopped_in_mid_copy_tested_nothing() {
    // Two words next to each other are hardly ever told apart by a signal, so one round of these tests nothing.
    let args = [
        "bench",
        "write",
        "--backend",
        "shm",
        "--stop-writer",
        "1",
        "--size",
        "16",
        "--json",
    ];
    let tested_nothing = (0..20).any(|_| {
        let out = mu(&args);
        let report: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        let is_idle = report["in_mid_copy"] == 0;
        let message = String::from_utf8_lossy(&out.stderr);
        assert!(
            !is_idle || (out.status.code() == Some(1) && message.contains("mid-copy")),
            "{out:?}"
        );
        is_idle
    });
    assert!(tested_nothing || !can_fence());
}

#[test]
fn a_failure_leaves_standard_output_empty() {
    // Wrong usage is looked at elsewhere. An address space too small for the target makes the far end fail at work.
    for backend in BACKENDS {
        let out = Command::new("sh")
            .args(["-c", "ulimit -v 1500000; exec \"$0\" \"$@\""])
            .arg(env!("CARGO_BIN_EXE_mu"))
            .args([
                "bench",
                "write",
                "--backend",
                backend,
                "--size",
                "1073741824",
                "--json",
            ])
            .output()
            .expect("the command starts");
        let message = String::from_utf8_lossy(&out.stderr);
        if out.status.code() == Some(2) {
            println!("SKIP: this machine has no memory for it: {message}");
            continue;
        }
        assert_eq!(out.status.code(), Some(1), "{message}");
        assert!(
            out.stdout.is_empty() && message.lines().count() == 1,
            "{message}"
        );
        assert!(!message.contains("Broken pipe"), "{message}");
        assert!(message.matches("Out of memory").count() == 1, "{message}");
    }
}

#[test]
fn wrong_usage_is_named() {
    for (args, named) in [
        (&["--backend", "nowhere"][..], "nowhere"),
        (&["--size", "none"], "none"),
        (&["--size", "0"], "--size 0"),
        (&["--size", "12", "--ping-pong"], "multiple of 8"),
        (&["--size", "4096", "--inline"], "1024"),
        (&["--span", "8"], "--span 8"),
        (&["--span", "18446744073709551615"], "--span 1844"),
        (&["--span", "1125899906842624"], "--span 1125"),
        (
            &["--backend", "shm", "--stop-writer", "--size", "8"],
            "--size 8",
        ),
        (&["--count", "0"], "--count"),
        (&["--revoke-stress", "0"], "--revoke-stress"),
        (&["--ping-pong", "--revoke-stress", "5"], "--revoke-stress"),
        (&["--method", "qp-flags"], "--revoke-stress"),
        (&["--broken"], "--broken"),
        (&["--inline", "--ping-pong"], "--inline"),
        (&["--revoke-stress", "5", "--count", "5"], "--count"),
        (&["--stop-writer"], "--backend shm"),
        (&["--device", "rxe0"], "--backend nic"),
        (&["--pin", "99999"], "99999"),
        (&["--pin", "0,0,0"], "two at most"),
        (
            &["--backend", "nic", "--device", "no-such-device"],
            "no-such-device",
        ),
        (&["--no-such-option"], "--no-such-option"),
    ] {
        let message = misuse(&[&["bench", "write"], args].concat());
        assert!(message.contains(named), "{args:?}: {message}");
    }
    assert!(misuse(&["doctor", "--peer", "rxe1"]).contains("--revoke-stress"));
    assert!(misuse(&["no-such-command"]).contains("no-such-command"));
}

/// `mu` beside a node program that never gets ready, since `mu` looks for it there. As every node it makes up its own
/// mind on the signals that `mu` takes as a descriptor.
fn beside_a_node(dir: &Path) -> PathBuf {
    let (own, mu) = (env!("CARGO_BIN_EXE_mu"), dir.join("mu"));
    if fs::hard_link(own, &mu).is_err() {
        fs::copy(own, &mu).expect("a copy");
    }
    let node = dir.join("mu-exchange");
    fs::write(
        &node,
        "#!/bin/sh\necho started >>starts\nexec env --default-signal=INT,TERM sleep 60\n",
    )
    .expect("a file");
    fs::set_permissions(&node, fs::Permissions::from_mode(0o700)).expect("a file");
    mu
}

#[test]
fn a_cluster_that_is_interrupted_before_it_is_ready_has_not_failed() {
    let dir = tempfile::tempdir().expect("a folder");
    let cluster = dir.path().join("cluster");
    let started = |id: u8| cluster.join(format!("node-{id}/starts")).exists();
    let child = Command::new(beside_a_node(dir.path()))
        .args(["cluster", "exchange", "--dir"])
        .arg(&cluster)
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let begin = Instant::now();
    while !(0..3).all(started) {
        assert!(begin.elapsed() < Duration::from_secs(20), "nodes start");
        std::thread::sleep(Duration::from_millis(10));
    }
    // As a terminal does, to all of its group.
    let group = Pid::from_raw(i32::try_from(child.id()).expect("a process number"));
    killpg(group, Signal::SIGINT).expect("a signal");
    let out = child.wait_with_output().expect("it ends");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{stderr}");
    assert!(stderr.is_empty(), "{stderr}");
    let stdout = String::from_utf8_lossy(&out.stdout);
    assert!(stdout.contains("all nodes have ended"), "{stdout}");
    assert!(!stdout.contains("cleanly"), "{stdout}");
}

#[test]
fn a_wrong_setting_leaves_no_configuration_behind() {
    let dir = tempfile::tempdir().expect("a folder");
    let cluster = dir.path().join("cluster");
    let out = Command::new(beside_a_node(dir.path()))
        .args(["cluster", "exchange", "--set", "nonsense = 1", "--dir"])
        .arg(&cluster)
        .output()
        .expect("the command starts");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("nonsense"), "{stderr}");
    let left = fs::read_dir(&cluster).expect("the folder").count();
    assert_eq!(left, 0);
}
