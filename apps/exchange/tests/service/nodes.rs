//! Three replicas of the exchange as processes.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mu::config::{Config, write_local};
use serde_json::Value;

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);
/// A busy machine is not to change the leader; a process that dies is found without heartbeats. States are compared
/// often.
const SETTINGS: &str = "heartbeat_us = 1000\ndetect_us = 2000000\ndigest_interval = 16\n";

/// Groups of this process so far.
static GROUPS: AtomicU16 = AtomicU16::new(0);

/// The first address of another group. Tests run at the same time, and the ports of a node that was killed have to stay
/// free for it, so no two groups of this process have one in common.
fn first_address() -> SocketAddr {
    const FIRST_PORT: u16 = 21_000;
    const PORTS: u16 = 6;
    // A process number has 22 bits.
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let host = Ipv4Addr::new(127, 128 | (high & 0x3f), middle, low);
    let group = GROUPS.fetch_add(1, Ordering::Relaxed);
    SocketAddr::from((host, FIRST_PORT + PORTS * group))
}

pub(crate) struct Nodes {
    dir: tempfile::TempDir,
    path: PathBuf,
    config: Config,
    children: Vec<Option<Child>>,
}

impl Nodes {
    /// Three that form a group; `extra` are further options of each.
    pub(crate) fn form(extra: &[&str]) -> Self {
        Self::form_each([extra; 3])
    }

    /// Three that form a group, each with its own further options.
    pub(crate) fn form_each(extra: [&[&str]; 3]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path =
            write_local(dir.path(), 3, SETTINGS, Some(first_address())).expect("an empty folder");
        let config = Config::from_file(&path).expect("sound");
        let mut nodes = Self {
            dir,
            path,
            config,
            children: vec![None, None, None],
        };
        for (id, extra) in (0..3).zip(extra) {
            nodes.start(id, true, extra);
        }
        nodes.leader();
        nodes
    }

    pub(crate) fn start(&mut self, id: u8, form: bool, extra: &[&str]) {
        let log = self.dir.path().join(format!("{id}.log"));
        let log = File::options()
            .append(true)
            .create(true)
            .open(log)
            .expect("a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_mu-exchange"));
        command
            .args(["serve", "--json", "--id", &id.to_string(), "--config"])
            .arg(&self.path);
        command
            .args(["--parent", &std::process::id().to_string()])
            .args(extra);
        if form {
            command.arg("--form");
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.children[usize::from(id)] = Some(child.expect("it starts"));
    }

    pub(crate) fn log(&self, id: u8) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("{id}.log"))).expect("a log")
    }

    pub(crate) fn logs(&self) -> String {
        let logs: Vec<String> = (0..3)
            .map(|id| format!("--- {id}\n{}", self.log(id)))
            .collect();
        logs.join("\n")
    }

    pub(crate) fn client(&self, id: u8) -> SocketAddr {
        self.config
            .member(id)
            .expect("a member")
            .client
            .expect("an address")
    }

    pub(crate) fn clients(&self) -> Vec<SocketAddr> {
        (0..3).map(|id| self.client(id)).collect()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, id: u8) {
        let mut child = self.children[usize::from(id)].take().expect("it runs");
        child.kill().expect("it is ours");
        child.wait().expect("it is gone");
    }

    pub(crate) fn ask(&self, id: u8, what: &str) -> Option<String> {
        let stream = TcpStream::connect(self.client(id)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        writeln!(&stream, "{what}").ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        Some(line)
    }

    pub(crate) fn status(&self, id: u8) -> Option<Value> {
        serde_json::from_str(&self.ask(id, "status")?).ok()
    }

    /// Waits until something holds.
    pub(crate) fn until<T>(&self, what: &str, holds: impl Fn(&Self) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(held) = holds(self) {
                return held;
            }
            if begin.elapsed() > PATIENCE {
                let running = self
                    .children
                    .iter()
                    .zip(0..)
                    .filter(|(child, _)| child.is_some());
                let logs: Vec<String> = running.map(|(_, id)| self.log(id)).collect();
                panic!("waiting for {what}\n{}", logs.join("\n---\n"));
            }
            thread::sleep(LOOK);
        }
    }

    /// Who leads.
    pub(crate) fn leader(&self) -> u8 {
        self.until("a leader", |nodes| {
            (0..3).find(|id| {
                nodes
                    .status(*id)
                    .is_some_and(|status| status["role"] == "leader")
            })
        })
    }

    /// Waits until all three have applied the same and are leader or followers; gives their pictures without the id and
    /// role.
    pub(crate) fn at_rest(&self) -> Vec<Value> {
        let at = |nodes: &Self| {
            let all: Option<Vec<Value>> = (0..3).map(|id| nodes.status(id)).collect();
            let all = all?;
            let same = |key: &str| all.iter().all(|status| status[key] == all[0][key]);
            let settled = |status: &Value| {
                ["leader", "follower"].contains(&status["role"].as_str().unwrap_or(""))
            };
            (same("index") && same("leader") && all.iter().all(settled)).then_some(all)
        };
        let mut all = self.until("all three at the same entry", at);
        for (status, id) in all.iter_mut().zip(0..) {
            let fields = status.as_object_mut().expect("an object");
            let hash = self.ask(id, "hash").expect("it runs");
            assert_eq!(hash.trim().len(), 16, "{hash}");
            fields.insert("books_hash".into(), hash.into());
            fields.remove("id");
            fields.remove("role");
        }
        all
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
