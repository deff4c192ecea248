//! The supervisor: starts the nodes, knows their roles, starts again what ends, and stops them all.

use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::Signal;

use super::node::{Address, Heard, Node, Plan, What, last_lines, last_words};

/// Longest wait for nodes that were asked to end, before they are made to.
const STOP: Duration = Duration::from_secs(10);
/// Between two looks at processes that end.
const LOOK: Duration = Duration::from_millis(5);
/// A cluster that is not whole for so long is told of, and again after as long.
const NOTICE: Duration = Duration::from_secs(20);
const LEADER: &str = "leader";
const FOLLOWER: &str = "follower";

/// What happened to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    /// All nodes serve, one leads, the others follow: for the first time, or again.
    Whole(Vec<Address>),
    /// A node leads; if its predecessor was killed on purpose, so long after that.
    Leads { id: u8, gap: Option<Duration> },
    /// A node ended, in this way, and is started again.
    Ended { id: u8, how: ExitStatus },
    /// A node could not be started again, for this reason; that is tried once more.
    NotStarted { id: u8, why: String },
    /// A node runs again, as this process.
    Back { id: u8, pid: u32 },
    /// For so long not all nodes serve, one leads and the others follow; it is because of these.
    NotWhole {
        since: Duration,
        nodes: Vec<Laggard>,
    },
}

/// A node that is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Laggard {
    pub(crate) id: u8,
    /// Its role, or in a few words why it has none.
    pub(crate) role: String,
    /// What it logged last.
    pub(crate) log: Vec<String>,
}

/// See the module.
pub(crate) struct Supervisor {
    plan: Plan,
    nodes: Vec<Node>,
    heard: Receiver<Heard>,
    to: Sender<Heard>,
    /// Since all nodes served once.
    was_whole: bool,
    is_whole: bool,
    /// Since when it is not, ...
    broken: Instant,
    /// ... how often that was told, and after how long it is.
    notices: u32,
    pub(super) notice: Duration,
    /// The leader that was killed on purpose, and when.
    killed: Option<(u8, Instant)>,
}

impl Supervisor {
    /// Starts all nodes of a new cluster.
    pub(crate) fn start(plan: Plan) -> Result<Self> {
        let (to, heard) = channel();
        let mut supervisor = Self {
            nodes: plan.ids.iter().map(|id| Node::new(*id)).collect(),
            plan,
            heard,
            to,
            was_whole: false,
            is_whole: false,
            broken: Instant::now(),
            notices: 0,
            notice: NOTICE,
            killed: None,
        };
        for node in &mut supervisor.nodes {
            node.start(&supervisor.plan, true, &supervisor.to)?;
        }
        Ok(supervisor)
    }

    /// Waits for at most so long, and gives what happened.
    ///
    /// # Errors
    /// A node ended before the cluster was ever whole: it would do so again.
    pub(crate) fn turn(&mut self, patience: Duration) -> Result<Vec<Happened>> {
        let mut happened = Vec::new();
        match self.heard.recv_timeout(patience) {
            Ok(heard) => self.take(heard, &mut happened),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => unreachable!("this end has a sender too"),
        }
        while let Ok(heard) = self.heard.try_recv() {
            self.take(heard, &mut happened);
        }
        self.reap(&mut happened)?;
        self.start_again(&mut happened);
        let whole = self.whole();
        if let (Some(addresses), false) = (&whole, self.is_whole) {
            self.was_whole = true;
            happened.push(Happened::Whole(addresses.clone()));
        }
        if self.is_whole || whole.is_some() {
            (self.broken, self.notices) = (Instant::now(), 0);
        }
        self.is_whole = whole.is_some();
        happened.extend(self.not_whole());
        Ok(happened)
    }

    /// Whom it is waited for, when that is due to be told.
    fn not_whole(&mut self) -> Option<Happened> {
        let since = self.broken.elapsed();
        if self.is_whole || since < self.notice * (self.notices + 1) {
            return None;
        }
        self.notices += 1;
        let role = |node: &Node| match (&node.address, node.runs()) {
            (Some(address), _) => address.role.clone(),
            (None, true) => "not ready".into(),
            (None, false) => "not running".into(),
        };
        let is_well = |node: &Node| [LEADER, FOLLOWER].contains(&role(node).as_str());
        // If each by itself is well, they do not agree on who leads.
        let all = self.nodes.iter().all(is_well);
        let nodes = self.nodes.iter().filter(|node| all || !is_well(node));
        let laggards = nodes.map(|node| Laggard {
            id: node.id,
            role: role(node),
            log: last_lines(&self.plan, node.id),
        });
        Some(Happened::NotWhole {
            since,
            nodes: laggards.collect(),
        })
    }

    fn take(&mut self, heard: Heard, happened: &mut Vec<Happened>) {
        let node = self.nodes.iter_mut().find(|node| node.id == heard.id);
        let Some(node) = node.filter(|node| node.life == heard.life) else {
            return;
        };
        let role = match heard.what {
            What::Ready { role, host, port } => {
                let pid = node.pid().unwrap_or_default();
                if node.life > 1 {
                    happened.push(Happened::Back { id: node.id, pid });
                }
                node.address = Some(Address {
                    id: node.id,
                    pid,
                    role: role.clone(),
                    host,
                    port,
                });
                role
            }
            What::Role(role) => {
                if let Some(address) = &mut node.address {
                    address.role.clone_from(&role);
                }
                role
            }
            What::Silent => return,
        };
        if role == LEADER {
            let killed = self.killed.take_if(|(id, _)| *id != heard.id);
            happened.push(Happened::Leads {
                id: heard.id,
                gap: killed.map(|(_, at)| heard.at.duration_since(at)),
            });
        }
    }

    fn reap(&mut self, happened: &mut Vec<Happened>) -> Result<()> {
        for node in &mut self.nodes {
            let Some(how) = node.ended()? else { continue };
            if !self.was_whole {
                bail!(
                    "node {} ended ({how}) before the cluster was ready:\n{}",
                    node.id,
                    last_words(&self.plan, node.id)
                );
            }
            node.plan_start();
            happened.push(Happened::Ended { id: node.id, how });
        }
        Ok(())
    }

    fn start_again(&mut self, happened: &mut Vec<Happened>) {
        let now = Instant::now();
        for node in &mut self.nodes {
            if node.again.is_some_and(|at| at <= now)
                && let Err(error) = node.start(&self.plan, false, &self.to)
            {
                node.plan_start();
                let (id, why) = (node.id, format!("{error:#}"));
                happened.push(Happened::NotStarted { id, why });
            }
        }
    }

    /// The nodes, if all serve and exactly one leads.
    fn whole(&self) -> Option<Vec<Address>> {
        let all: Option<Vec<Address>> =
            self.nodes.iter().map(|node| node.address.clone()).collect();
        let all = all?;
        let with = |role: &str| all.iter().filter(|address| address.role == role).count();
        (with(LEADER) == 1 && with(FOLLOWER) == all.len() - 1).then_some(all)
    }

    /// Whether all serve now.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// `kill -9` of the leader; which one, and its process.
    pub(crate) fn kill_leader(&mut self) -> Result<Option<(u8, u32)>> {
        let leads = |node: &&Node| {
            node.address
                .as_ref()
                .is_some_and(|address| address.role == LEADER)
        };
        let Some(node) = self.nodes.iter().find(leads) else {
            return Ok(None);
        };
        let pid = node.pid().unwrap_or_default();
        self.killed = Some((node.id, Instant::now()));
        node.signal(Signal::SIGKILL)?;
        Ok(Some((node.id, pid)))
    }

    /// Asks all nodes to end, and makes those that do not. How each ended.
    pub(crate) fn stop(mut self) -> Result<Vec<(u8, ExitStatus)>> {
        for node in &self.nodes {
            // One that ends just now needs no signal.
            let _ = node.signal(Signal::SIGTERM);
        }
        let begin = Instant::now();
        let mut ends = Vec::new();
        let mut forced = false;
        while self.nodes.iter().any(Node::runs) {
            for node in &mut self.nodes {
                if let Some(how) = node.ended()? {
                    ends.push((node.id, how));
                }
            }
            if begin.elapsed() > STOP && !forced {
                forced = true;
                for node in &self.nodes {
                    let _ = node.signal(Signal::SIGKILL);
                }
            }
            thread::sleep(LOOK);
        }
        Ok(ends)
    }
}
