//! Replicas as processes: `mu serve` and `mu status` on shared memory, with a real kill and a real restart. And the
//! first program of the examples. Everything that is waited for has a bound.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use mu::kv::{Client, ClientError, ClientOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

#[path = "../examples/first.rs"]
mod first;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn the_first_program_of_the_examples_runs() {
    let text = include_str!("../examples/first.rs");
    assert!(text.lines().count() <= 30);
    first::main();
}

/// A cluster of this test: addresses that no other test and no other process of this host has, since the loopback
/// network has room for one of each process id.
struct Cluster {
    dir: tempfile::TempDir,
    members: Vec<(u8, SocketAddr)>,
    /// Of replica 1.
    control: SocketAddr,
    processes: Vec<Option<Process>>,
}

/// A running `mu serve`, killed when dropped.
struct Process {
    child: Child,
    ready: Value,
    said: mpsc::Receiver<String>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Cluster {
    fn new(test: u16) -> Self {
        Self::of(test, 3, "")
    }

    /// `members` of them, each with what stands in `more`.
    fn of(test: u16, members: u8, more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let [_, a, b, c] = std::process::id().to_be_bytes();
        let host = Ipv4Addr::new(127, 1 + (a & 0x3f), b, c.max(1));
        let port = |id: u8, client: bool| {
            let port = 20_000 + test * 100 + u16::from(id) * 2 + u16::from(client);
            SocketAddr::from((host, port))
        };
        let key = dir.path().join("cluster.key");
        fs::write(&key, "a key of this test only").expect("written");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("made private");
        let mut text = format!(
            "cluster = \"test-{test}\"\npsk_file = \"cluster.key\"\nlog_bytes = 4194304\nheartbeat_us = 1000\n\
             detect_us = 50000\nreplicas = [\n"
        );
        for id in 0..members {
            let (control, client) = (port(id, false), port(id, true));
            text.push_str(&format!(
                "    {{ id = {id}, control = \"{control}\", client = \"{client}\"{more} }},\n"
            ));
        }
        text.push_str("]\n");
        fs::write(dir.path().join("cluster.toml"), text).expect("written");
        Self {
            dir,
            members: (0..members).map(|id| (id, port(id, true))).collect(),
            control: port(1, false),
            processes: vec![None, None, None],
        }
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("cluster.toml")
    }

    /// Starts a replica and waits until it is ready.
    fn start(&mut self, id: u8, form: bool) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mu"));
        command.args(["serve", "--json", "--id", &id.to_string(), "--config"]);
        command.arg(self.config());
        if form {
            command.arg("--form");
        }
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let (tell, said) = mpsc::channel();
        let lines = |stream: Box<dyn Read + Send>, tell: mpsc::Sender<String>| {
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    eprintln!("replica {id}: {line}");
                    let _ = tell.send(line);
                }
            });
        };
        let (tell_ready, ready) = mpsc::channel();
        lines(Box::new(child.stdout.take().expect("piped")), tell_ready);
        lines(Box::new(child.stderr.take().expect("piped")), tell);
        let mut process = Process {
            child,
            ready: Value::Null,
            said,
        };
        let line = ready.recv_timeout(PATIENCE).expect("it gets ready");
        process.ready = serde_json::from_str(&line).expect("one JSON object");
        assert_eq!(process.ready["ready"], true);
        assert_eq!(process.ready["id"], id);
        assert_eq!(process.ready["pid"], process.child.id());
        self.processes[usize::from(id)] = Some(process);
    }

    fn process(&mut self, id: u8) -> &mut Process {
        self.processes[usize::from(id)].as_mut().expect("it runs")
    }

    /// SIGKILL.
    fn kill(&mut self, id: u8) {
        self.processes[usize::from(id)] = None;
    }

    fn client(&self) -> Client {
        let options = ClientOptions {
            patience: PATIENCE,
            attempt: Duration::from_secs(1),
        };
        Client::new(self.members.clone(), options).expect("a client")
    }

    fn status_of(&self, id: u8) -> Value {
        let out = self.mu_status(&["--json", "--id", &id.to_string()]);
        let report: Value = serde_json::from_slice(&out.stdout).expect("one JSON object");
        report["replicas"][0].clone()
    }

    fn mu_status(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mu"));
        command
            .arg("status")
            .args(args)
            .arg("--config")
            .arg(self.config());
        command.output().expect("the command runs")
    }

    /// Asks until the whole of it is as it should be; one question may come at a moment of change or of little time.
    fn wait_for_text(&self, args: &[&str], code: i32, what: &str, holds: impl Fn(&str) -> bool) {
        let begin = Instant::now();
        loop {
            let out = self.mu_status(args);
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            if out.status.code() == Some(code) && holds(&text) {
                return;
            }
            assert!(
                begin.elapsed() < PATIENCE,
                "{what}: {:?}\n{text}",
                out.status
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A replica that says that it leads.
    fn leader(&self) -> u8 {
        let begin = Instant::now();
        loop {
            let leads = |id: &u8| self.status_of(*id)["status"]["role"] == "leader";
            if let Some(id) = (0..3).find(leads) {
                return id;
            }
            assert!(begin.elapsed() < PATIENCE, "nobody leads");
        }
    }

    fn wait_for(&self, id: u8, what: &str, holds: impl Fn(&Value) -> bool) {
        let begin = Instant::now();
        loop {
            let answer = self.status_of(id);
            if holds(&answer["status"]) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "replica {id}: {what}: {answer}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_killed_leader_is_replaced_comes_back_and_counts_again() {
    let mut cluster = Cluster::new(1);
    (0..3).for_each(|id| cluster.start(id, true));
    let mut client = cluster.client();
    let mut count = 0;
    let mut add = |client: &mut Client, times: i64| {
        for _ in 0..times {
            count += 1;
            assert_eq!(client.add(b"n", 1).expect("decided"), Some(count));
        }
    };
    client.put(b"k", b"v").expect("decided");
    add(&mut client, 50);
    // One that was late found a group and recovers from it: before it has a vote, no member may be lost.
    for id in 0..3 {
        cluster.wait_for(id, "it is a voter", |s| s["voter"] == true);
    }
    let leader = cluster.leader();

    let begin = Instant::now();
    cluster.kill(leader);
    add(&mut client, 1);
    eprintln!("taken over in {:?}, as the client saw it", begin.elapsed());
    add(&mut client, 50);
    assert_ne!(client.replica(), leader);
    assert_eq!(client.get(b"k").expect("read").as_deref(), Some(&b"v"[..]));
    cluster.wait_for_text(&[], 1, "one does not answer", |text| {
        text.contains("no answer") && text.contains(&format!("replica {leader}: "))
    });

    cluster.start(leader, false);
    cluster.wait_for(leader, "it is a voter again", |s| s["voter"] == true);
    cluster.wait_for_text(&[], 0, "three voters, and one of them leads", |text| {
        text.matches(" yes ").count() == 3 && text.matches(" leader ").count() == 2
    });

    // Without the one that came back there would be no majority now.
    cluster.kill(cluster.leader());
    add(&mut client, 50);
    assert_eq!(client.get(b"k").expect("read").as_deref(), Some(&b"v"[..]));

    // One that is told to found a group that exists does not.
    let gone = (0..3).find(|id| cluster.processes[usize::from(*id)].is_none());
    let gone = gone.expect("one was killed");
    cluster.start(gone, true);
    assert_eq!(cluster.process(gone).ready["form"], false);
    cluster.wait_for(gone, "it is a voter again", |s| s["voter"] == true);
    let id = gone.to_string();
    cluster.wait_for_text(&["--prometheus", "--id", &id], 0, "its figures", |text| {
        text.contains(&format!("mu_voter{{cluster=\"test-1\",id=\"{id}\"}} 1"))
    });

    for id in 0..3 {
        let process = cluster.process(id);
        kill(Pid::from_raw(process.child.id() as i32), Signal::SIGTERM).expect("sent");
        let begin = Instant::now();
        let code = loop {
            if let Some(status) = process.child.try_wait().expect("asked") {
                break status.code();
            }
            assert!(begin.elapsed() < PATIENCE, "replica {id} does not stop");
            thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(code, Some(0), "replica {id} stops cleanly");
    }
}

#[test]
fn a_leader_that_is_asked_to_stop_hands_over_first() {
    let mut cluster = Cluster::new(5);
    (0..3).for_each(|id| cluster.start(id, true));
    let mut client = cluster.client();
    client.put(b"k", b"v").expect("decided");
    for id in 0..3 {
        cluster.wait_for(id, "it is a voter", |s| s["voter"] == true);
    }
    let leader = cluster.leader();
    cluster.wait_for(leader, "both follow", |s| {
        let peers = s["peers"].as_array().expect("peers");
        peers.iter().all(|peer| peer["matched"].is_u64())
    });
    let process = cluster.process(leader);
    kill(Pid::from_raw(process.child.id() as i32), Signal::SIGTERM).expect("sent");
    let begin = Instant::now();
    let heir = loop {
        let left = PATIENCE.saturating_sub(begin.elapsed());
        let line = process.said.recv_timeout(left).expect("it says so");
        if let Some((_, heir)) = line.split_once("handed over to replica ") {
            break heir.trim().to_owned();
        }
    };
    assert_eq!(process.child.wait().expect("it ends").code(), Some(0));
    assert_ne!(heir, leader.to_string());
    assert_eq!(client.get(b"k").expect("read").as_deref(), Some(&b"v"[..]));
}

/// Two of three lose their memory. What was acknowledged may be lost with it, so nothing more is acknowledged.
#[test]
fn a_majority_that_is_killed_takes_the_group_down_for_good() {
    let mut cluster = Cluster::new(6);
    (0..3).for_each(|id| cluster.start(id, true));
    cluster.client().put(b"k", b"v").expect("decided");
    for id in 0..3 {
        cluster.wait_for(id, "it is a voter", |s| s["voter"] == true);
    }
    let left = cluster.leader();
    let others: Vec<u8> = (0..3).filter(|id| *id != left).collect();
    others.iter().for_each(|id| cluster.kill(*id));
    let no_success = |cluster: &Cluster| {
        let options = ClientOptions {
            patience: Duration::from_secs(2),
            attempt: PATIENCE,
        };
        let mut client = Client::new(cluster.members.clone(), options).expect("a client");
        let outcome = client.put(b"k", b"w");
        use ClientError::{Unavailable, Unknown};
        let down = matches!(outcome, Err(Unavailable { .. } | Unknown { .. }));
        assert!(down, "{outcome:?}");
    };
    no_success(&cluster);
    cluster.wait_for(left, "it does not lead any more", |s| s["role"] != "leader");
    others.iter().for_each(|id| cluster.start(*id, false));
    for id in &others {
        cluster.wait_for(*id, "it knows its peers", |s| {
            let peers = s["peers"].as_array().expect("peers");
            peers.iter().all(|peer| peer["alive"] == true)
        });
    }
    no_success(&cluster);
    for id in others {
        // The one that is left gives it the state, and nobody can give it a vote.
        cluster.wait_for(id, "it has no vote", |s| s["voter"] == false);
    }
    cluster.wait_for(left, "it keeps its vote", |s| s["voter"] == true);
}

#[test]
fn a_group_that_lost_its_memory_stays_down_and_says_so() {
    let mut cluster = Cluster::new(2);
    (0..3).for_each(|id| cluster.start(id, false));
    for id in 0..3 {
        let begin = Instant::now();
        let complains = |line: &String| line.contains("finds no leader to recover from");
        let process = cluster.process(id);
        loop {
            let left = PATIENCE.saturating_sub(begin.elapsed());
            let line = process.said.recv_timeout(left).expect("it says so");
            if complains(&line) {
                break;
            }
        }
    }
    for id in 0..3 {
        cluster.wait_for(id, "it recovers, without a vote", |s| {
            s["role"] == "recovering" && s["voter"] == false
        });
    }
    let options = ClientOptions {
        patience: Duration::from_millis(500),
        // Long enough that a busy machine makes no silence of it, which would be unknown.
        attempt: PATIENCE,
    };
    let mut client = Client::new(cluster.members.clone(), options).expect("a client");
    let outcome = client.put(b"k", b"v");
    assert!(
        matches!(outcome, Err(ClientError::Unavailable { .. })),
        "{outcome:?}"
    );
}

/// The processors that a thread of a process may use, by the kernel's word.
fn processors_of(pid: u32, thread: &str) -> Option<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    tasks.flatten().find_map(|task| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let allowed = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        (name.trim() == thread).then(|| allowed.trim().to_owned())
    })
}

#[test]
fn threads_run_where_the_configuration_says_with_each_way_to_poll() {
    let own = fs::read_to_string("/proc/self/status").expect("there is one");
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let cpu: String = own
        .expect("it is said")
        .trim()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    for poll in ["spin", "adaptive", "event"] {
        let mut cluster = Cluster::of(
            8,
            1,
            &format!(", replication_cpu = {cpu}, background_cpu = {cpu}"),
        );
        let config = fs::read_to_string(cluster.config()).expect("read");
        let polls =
            format!("replication_poll = \"{poll}\"\nbackground_poll = \"{poll}\"\n{config}");
        fs::write(cluster.config(), polls).expect("written");
        cluster.start(0, true);
        let pid = cluster.process(0).child.id();
        let mut client = cluster.client();
        for n in 0..20 {
            client.put(b"key", &[n]).expect("decided");
            assert_eq!(client.get(b"key").expect("read"), Some(vec![n]), "{poll}");
        }
        for thread in ["mu", "mu-bg-0"] {
            assert_eq!(
                processors_of(pid, thread).as_deref(),
                Some(&*cpu),
                "{poll}: {thread}"
            );
        }
    }
}

#[test]
fn a_processor_that_is_not_there_is_said_with_its_key() {
    for key in ["replication_cpu", "background_cpu"] {
        let cluster = Cluster::of(9, 1, &format!(", {key} = 4095"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_mu"));
        command.args(["serve", "--form", "--id", "0", "--config"]);
        let out = command.arg(cluster.config()).output().expect("it ends");
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && out.stdout.is_empty(), "{text}");
        assert!(
            text.contains(&format!("{key} = 4095: expected a processor")),
            "{text}"
        );
    }
}

#[test]
fn nothing_is_founded_beside_a_peer_that_does_not_say_what_it_knows() {
    let cluster = Cluster::new(4);
    let silent = TcpListener::bind(cluster.control).expect("its address");
    let mut command = Command::new(env!("CARGO_BIN_EXE_mu"));
    command.args(["serve", "--form", "--id", "0", "--config"]);
    let out = command.arg(cluster.config()).output().expect("it ends");
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(
        text.contains("replica 1 does not say whether the group has a history"),
        "{text}"
    );
    assert!(out.stdout.is_empty(), "it never got ready");
    drop(silent);
}

#[test]
fn wrong_configuration_is_said_with_its_key() {
    let cluster = Cluster::new(3);
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mu"));
        let out = command.args(args).output().expect("the command runs");
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.stdout.is_empty());
        (out.status.code(), text)
    };
    let config = cluster.config();
    let path = config.to_str().expect("a path");
    for command in ["serve", "status"] {
        let (code, text) = run(&[command, "--id", "7", "--config", path]);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains("--id"), "{text}");
    }
    let text = fs::read_to_string(&config).expect("read");
    fs::write(&config, format!("{text}windoww = 3\n")).expect("written");
    let (code, text) = run(&["serve", "--id", "0", "--config", path]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("windoww"), "{text}");
    let (code, text) = run(&["serve", "--id", "0", "--config", "there/is/none.toml"]);
    assert_eq!(code, Some(2), "{text}");
}
