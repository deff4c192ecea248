//! One node: its process, and what it says.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Of what a node logged, how much is told when it failed.
const LAST_WORDS: i64 = 2000;
/// ... and how many lines of it while it is waited for.
const LAST_LINES: usize = 5;
/// Longest line that a node prints for the supervisor. What is longer comes in pieces, which say nothing.
const LINE_BYTES: u64 = 16 * 1024;
/// A node that ends sooner than this after its start is started again after a pause, ...
const SOON: Duration = Duration::from_secs(5);
/// ... which doubles each time, between these.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MOST: Duration = Duration::from_secs(5);

/// What the nodes are.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The program of each, ...
    pub(crate) program: PathBuf,
    /// ... what comes before the options that every node has, and after.
    pub(crate) before: Vec<String>,
    pub(crate) after: Vec<String>,
    /// Where nodes have their folders and logs.
    pub(crate) dir: PathBuf,
    /// The cluster's configuration.
    pub(crate) config: PathBuf,
    /// The nodes' numbers.
    pub(crate) ids: Vec<u8>,
}

/// Where a node is, for whoever wants to talk to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Address {
    pub(crate) id: u8,
    pub(crate) pid: u32,
    pub(crate) role: String,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// A line that a node prints.
#[derive(Debug, Deserialize)]
struct Line {
    role: String,
    host: Option<String>,
    port: Option<u16>,
}

/// What is heard of a node, with the number of its life.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) id: u8,
    pub(super) life: u64,
    pub(super) at: Instant,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Ready {
        role: String,
        host: String,
        port: u16,
    },
    Role(String),
    /// It closed its standard output: it has ended or is about to.
    Silent,
}

/// A node.
pub(super) struct Node {
    pub(super) id: u8,
    pub(super) life: u64,
    child: Option<Child>,
    pub(super) address: Option<Address>,
    started: Instant,
    pause: Duration,
    /// When it is to be started again.
    pub(super) again: Option<Instant>,
}

impl Node {
    pub(super) fn new(id: u8) -> Self {
        Self {
            id,
            life: 0,
            child: None,
            address: None,
            started: Instant::now(),
            pause: PAUSE_FIRST,
            again: None,
        }
    }

    /// Starts its process.
    pub(super) fn start(&mut self, plan: &Plan, form: bool, to: &Sender<Heard>) -> Result<()> {
        self.started = Instant::now();
        let folder = plan.dir.join(format!("node-{}", self.id));
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let log = File::options()
            .append(true)
            .create(true)
            .open(log_path(plan, self.id));
        let mut command = Command::new(&plan.program);
        command
            .args(&plan.before)
            .arg("--config")
            .arg(&plan.config)
            .args(["--id", &self.id.to_string(), "--json"])
            .args(["--parent", &std::process::id().to_string()])
            .args(form.then_some("--form"))
            .args(&plan.after)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.with_context(|| format!("the log of node {}", self.id))?);
        let child = command.spawn();
        let mut child = child.with_context(|| format!("starting {}", plan.program.display()))?;
        let out = child
            .stdout
            .take()
            .context("its standard output is a pipe")?;
        self.life += 1;
        let (id, life, to) = (self.id, self.life, to.clone());
        // A supervisor that is gone needs no news.
        let tell = move |what| {
            drop(to.send(Heard {
                id,
                life,
                at: Instant::now(),
                what,
            }))
        };
        let listener = thread::Builder::new().name(format!("node-{id}"));
        if let Err(error) = listener.spawn(move || listen(out, tell)) {
            // Nobody would hear it. One that is gone already is as wanted.
            let _ = child.kill();
            let _ = child.wait();
            return Err(error).context("a thread to listen to it");
        }
        (self.child, self.address, self.again) = (Some(child), None, None);
        Ok(())
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        let pid = Pid::from_raw(i32::try_from(pid).context("a process number")?);
        kill(pid, signal).with_context(|| format!("{signal} to node {}", self.id))
    }

    /// How it ended, once it has.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        let ended = child.try_wait().context("waiting for a node")?;
        if ended.is_some() {
            (self.child, self.address) = (None, None);
        }
        Ok(ended)
    }

    pub(super) fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Plans the next start.
    pub(super) fn plan_start(&mut self) {
        if self.started.elapsed() >= SOON {
            self.pause = PAUSE_FIRST;
        }
        self.again = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MOST);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // One that is gone already is as wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Tells what a node says, until it closes its standard output.
fn listen(out: ChildStdout, tell: impl Fn(What)) {
    let mut out = BufReader::new(out);
    let mut line = Vec::new();
    while matches!(next_line(&mut out, &mut line), Ok(1..)) {
        match serde_json::from_slice(&line) {
            Ok(Line {
                role,
                host: Some(host),
                port: Some(port),
            }) => tell(What::Ready { role, host, port }),
            Ok(Line { role, .. }) => tell(What::Role(role)),
            // Whatever else a program says is not for the supervisor.
            Err(_) => {}
        }
    }
    tell(What::Silent);
}

fn next_line(from: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<usize> {
    line.clear();
    from.take(LINE_BYTES).read_until(b'\n', line)
}

fn log_path(plan: &Plan, id: u8) -> PathBuf {
    plan.dir.join(format!("node-{id}.log"))
}

/// The end of what a node logged.
pub(super) fn last_words(plan: &Plan, id: u8) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log_path(plan, id))?;
        let len = i64::try_from(file.metadata()?.len()).unwrap_or(i64::MAX);
        file.seek(SeekFrom::End(-len.min(LAST_WORDS)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// The last lines of what a node logged.
pub(super) fn last_lines(plan: &Plan, id: u8) -> Vec<String> {
    let words = last_words(plan, id);
    let lines: Vec<&str> = words.lines().collect();
    let from = lines.len().saturating_sub(LAST_LINES);
    lines[from..].iter().map(|&line| line.into()).collect()
}
