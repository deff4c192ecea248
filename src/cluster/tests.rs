use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// A node that does what it is told by files in its folder: it leads while `lead` is there, and ends with `end`.
const NODE: &str = r#"#!/bin/sh
trap 'exit 0' TERM
while [ $# -gt 0 ]; do case $1 in --id) id=$2; shift ;; --form) form=yes ;; esac; shift; done
echo "form=${form:-no}" >>starts
role() { if [ -e lead ]; then echo leader; else echo follower; fi; }
echo 'something else'
printf 'no UTF-8: \377\376\n'
printf '%100000s\n' '' | tr ' ' '{'
[ ! -e shy ] || { echo 'it does not dare' >&2; while [ -e shy ]; do sleep 0.02; done; }
last=$(role)
echo "{\"ready\":true,\"id\":$id,\"pid\":$$,\"role\":\"$last\",\"host\":\"127.0.0.1\",\"port\":7$id}"
while :; do
    [ ! -e end ] || { rm end; echo 'its last words' >&2; exit 7; }
    now=$(role); [ "$now" = "$last" ] || echo "{\"role\":\"$now\"}"; last=$now
    sleep 0.02
done
"#;

fn plan(dir: &Path) -> Plan {
    let program = dir.join("node.sh");
    fs::write(&program, NODE).expect("a file");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("a file");
    for id in 0..3 {
        fs::create_dir(dir.join(format!("node-{id}"))).expect("a folder");
    }
    Plan {
        program,
        before: vec!["serve".into()],
        after: vec![],
        dir: dir.into(),
        config: dir.join("cluster.toml"),
        ids: vec![0, 1, 2],
    }
}

fn touch(dir: &Path, id: u8, name: &str) {
    fs::write(dir.join(format!("node-{id}/{name}")), "").expect("a file");
}

/// Everything that happens until something holds.
fn until(supervisor: &mut Supervisor, holds: impl Fn(&Happened) -> bool) -> Vec<Happened> {
    let begin = Instant::now();
    let mut all = Vec::new();
    while begin.elapsed() < PATIENCE {
        all.extend(
            supervisor
                .turn(Duration::from_millis(10))
                .expect("it goes on"),
        );
        if all.iter().any(&holds) {
            return all;
        }
    }
    panic!("it does not happen; this did: {all:?}");
}

fn is_whole(happened: &Happened) -> bool {
    matches!(happened, Happened::Whole(_))
}

#[test]
fn what_ends_is_started_again_as_one_that_comes_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let plan = plan(dir.path());
    touch(dir.path(), 1, "lead");
    let mut supervisor = Supervisor::start(plan).expect("it starts");
    let all = until(&mut supervisor, is_whole);
    let Some(Happened::Whole(nodes)) = all.last() else {
        panic!("{all:?}");
    };
    let seen: Vec<(u8, &str, u16)> = nodes
        .iter()
        .map(|n| (n.id, n.role.as_str(), n.port))
        .collect();
    assert_eq!(
        seen,
        [(0, "follower", 70), (1, "leader", 71), (2, "follower", 72)]
    );

    // A follower ends by itself.
    touch(dir.path(), 2, "end");
    let all = until(&mut supervisor, is_whole);
    let ended = |h: &Happened| matches!(h, Happened::Ended { id: 2, how } if how.code() == Some(7));
    assert!(all.iter().any(ended), "{all:?}");
    assert!(
        all.iter()
            .any(|h| matches!(h, Happened::Back { id: 2, .. }))
    );
    let starts = fs::read_to_string(dir.path().join("node-2/starts")).expect("a file");
    assert_eq!(starts, "form=yes\nform=no\n");

    // The leader is killed, and another one takes over.
    let killed = supervisor
        .kill_leader()
        .expect("a signal")
        .expect("one leads");
    assert_eq!(killed.0, 1);
    fs::remove_file(dir.path().join("node-1/lead")).expect("it leads");
    touch(dir.path(), 0, "lead");
    let all = until(&mut supervisor, is_whole);
    let leads = |h: &Happened| {
        matches!(
            h,
            Happened::Leads {
                id: 0,
                gap: Some(_)
            }
        )
    };
    assert!(all.iter().any(leads), "{all:?}");

    let ends = supervisor.stop().expect("they end");
    assert_eq!(ends.len(), 3);
    assert!(
        ends.iter().all(|(_, how)| how.code() == Some(0)),
        "{ends:?}"
    );
}

#[test]
fn a_node_that_ends_before_the_cluster_is_ready_ends_it_with_its_words() {
    let dir = tempfile::tempdir().expect("a folder");
    let plan = plan(dir.path());
    touch(dir.path(), 0, "end");
    let mut supervisor = Supervisor::start(plan).expect("it starts");
    let begin = Instant::now();
    let error = loop {
        match supervisor.turn(Duration::from_millis(10)) {
            Ok(_) => assert!(begin.elapsed() < PATIENCE, "it goes on"),
            Err(error) => break error.to_string(),
        }
    };
    assert!(
        error.contains("node 0") && error.contains("its last words"),
        "{error}"
    );
}

#[test]
fn a_node_that_cannot_be_started_again_is_tried_once_more() {
    let dir = tempfile::tempdir().expect("a folder");
    let plan = plan(dir.path());
    touch(dir.path(), 1, "lead");
    let mut supervisor = Supervisor::start(plan).expect("it starts");
    until(&mut supervisor, is_whole);
    // No log can be opened where a folder is.
    let log = dir.path().join("node-2.log");
    fs::remove_file(&log).expect("its log");
    fs::create_dir(&log).expect("a folder");
    touch(dir.path(), 2, "end");
    let fails =
        |h: &Happened| matches!(h, Happened::NotStarted { id: 2, why } if why.contains("log"));
    until(&mut supervisor, fails);
    until(&mut supervisor, fails);
    fs::remove_dir(&log).expect("the folder");
    until(&mut supervisor, is_whole);
}

#[test]
fn who_is_waited_for_is_told_again_and_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let plan = plan(dir.path());
    touch(dir.path(), 1, "lead");
    touch(dir.path(), 2, "shy");
    let mut supervisor = Supervisor::start(plan).expect("it starts");
    supervisor.notice = Duration::from_millis(500);
    let shy = |h: &Happened| match h {
        Happened::NotWhole { nodes, .. } => {
            let [Laggard { id: 2, role, log }] = &nodes[..] else {
                return false;
            };
            role == "not ready" && log == &["it does not dare"]
        }
        _ => false,
    };
    until(&mut supervisor, shy);
    until(&mut supervisor, shy);
    fs::remove_file(dir.path().join("node-2/shy")).expect("a file");
    until(&mut supervisor, is_whole);
    // Whole it is, and then nobody leads.
    fs::remove_file(dir.path().join("node-1/lead")).expect("a file");
    let all = |h: &Happened| matches!(h, Happened::NotWhole { nodes, .. } if nodes.len() == 3);
    until(&mut supervisor, all);
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let plan = Plan {
        program: "/no/such/program".into(),
        ..plan(dir.path())
    };
    let error = Supervisor::start(plan).err().expect("nothing to start");
    assert!(error.to_string().contains("/no/such/program"), "{error}");
}
