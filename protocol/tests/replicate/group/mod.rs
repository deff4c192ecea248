//! A group of replicas in one process and one thread, in virtual time: the engines over the software backend.

use std::collections::VecDeque;

use mu_protocol::entry::HEADER_BYTES;
use mu_protocol::ids::{Members, ReplicaId};
use mu_protocol::layout::{Role, public};
use mu_protocol::machine::{Command, RestoreError, StateMachine};
use mu_protocol::replica::{Life, Replica, assemble};
use mu_protocol::replication::{Event, Outcome, ReadOutcome};
use mu_protocol::settings::{Checksum, Settings};
use mu_protocol::zoo::Sound;
use mu_softrdma::Fabric;
use mu_verbs::soft::Soft;

/// Keeps every command: what was applied, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Journal(pub(crate) Vec<Vec<u8>>);

impl StateMachine for Journal {
    fn apply(&mut self, command: &Command<'_>, reply: &mut Vec<u8>) {
        self.0.push(command.bytes.to_vec());
        reply.extend_from_slice(&(self.0.len() as u64).to_le_bytes());
    }
    fn digest(&self) -> u64 {
        self.0.len() as u64
    }
    fn snapshot(&self, out: &mut Vec<u8>) {
        for command in &self.0 {
            out.extend_from_slice(&(command.len() as u64).to_le_bytes());
            out.extend_from_slice(command);
        }
    }
    fn restore(&mut self, mut bytes: &[u8]) -> Result<(), RestoreError> {
        self.0.clear();
        while let Some((len, rest)) = bytes.split_first_chunk() {
            let len = u64::from_le_bytes(*len) as usize;
            self.0.push(rest[..len].to_vec());
            bytes = &rest[len..];
        }
        Ok(())
    }
}

/// One step of virtual time.
pub(crate) const STEP_NS: u64 = 5_000;

pub(crate) struct Node {
    pub(crate) replica: Replica<Soft, Journal, Sound>,
    pub(crate) soft: Soft,
    /// The replication engine is not polled.
    pub(crate) paused: bool,
    /// The background engine is not polled, and hears nothing.
    pub(crate) asleep: bool,
    pub(crate) commands: Vec<(u64, Result<u64, &'static str>)>,
    pub(crate) reads: Vec<(u64, ReadOutcome)>,
    /// The roles that it took, with the horizon that peers could read with each.
    pub(crate) roles: Vec<(Role, u64)>,
}

pub(crate) struct Group {
    fabric: Fabric,
    pub(crate) settings: Settings,
    pub(crate) nodes: Vec<Option<Node>>,
    messages: VecDeque<(usize, usize, Vec<u8>)>,
    pub(crate) now_ns: u64,
    lives: u64,
    /// Of the replicas that are started from now on.
    pub(crate) wall_offset_ns: u64,
    /// The replica that is being polled apart, and what came for it meanwhile.
    aside: Option<usize>,
    /// Two that cannot introduce themselves to each other.
    pub(crate) cut: (usize, usize),
    held: Vec<(usize, Vec<u8>)>,
}

pub(crate) fn id(n: usize) -> ReplicaId {
    ReplicaId::new(n as u8).expect("an id")
}

impl Group {
    /// `n` founders.
    pub(crate) fn new(n: usize, adjust: impl Fn(&mut Settings)) -> Self {
        let members: Members = (0..n).map(id).collect();
        let mut settings = Settings::new(id(0), members);
        settings.ring_bytes = 64 << 10;
        settings.max_command_bytes = 3000;
        adjust(&mut settings);
        let mut group = Self {
            fabric: Fabric::new(),
            settings,
            nodes: (0..n).map(|_| None).collect(),
            messages: VecDeque::new(),
            now_ns: 1_000_000,
            lives: 0,
            wall_offset_ns: 0,
            aside: None,
            cut: (n, n),
            held: Vec::new(),
        };
        for n in 0..n {
            group.start(n, true);
        }
        group
    }

    /// Starts replica `n` with empty memory.
    pub(crate) fn start(&mut self, n: usize, form: bool) {
        self.lives += 1;
        let settings = Settings {
            id: id(n),
            form,
            ..self.settings.clone()
        };
        let soft = Soft::inproc(&self.fabric).expect("a context");
        let life = Life {
            incarnation: 1000 + self.lives,
            wall_offset_ns: self.wall_offset_ns,
            now_ns: self.now_ns,
        };
        let replica =
            assemble(&soft, settings, life, Journal::default(), Sound).expect("a replica");
        self.nodes[n] = Some(Node {
            replica,
            soft,
            paused: false,
            asleep: false,
            commands: Vec::new(),
            reads: Vec::new(),
            roles: Vec::new(),
        });
        for peer in 0..self.nodes.len() {
            let cut = [(n, peer), (peer, n)].contains(&self.cut);
            if peer != n && self.nodes[peer].is_some() && !cut {
                self.introduce(n, peer);
                self.introduce(peer, n);
            }
        }
    }

    fn introduce(&mut self, from: usize, to: usize) {
        let hello = self.node(from).replica.background.hello(id(to));
        let now_ns = self.now_ns;
        self.node(to)
            .replica
            .background
            .control_up(id(from), &hello, now_ns)
            .expect("a hello");
    }

    /// Kills replica `n` like a process: its memory is gone, and the others notice.
    pub(crate) fn kill(&mut self, n: usize) {
        let node = self.nodes[n].take().expect("it lives");
        node.soft.node().crash();
        drop(node);
        self.messages.retain(|(from, to, _)| *from != n && *to != n);
        for peer in 0..self.nodes.len() {
            if let Some(node) = &mut self.nodes[peer] {
                node.replica.background.control_down(id(n));
            }
        }
    }

    pub(crate) fn node(&mut self, n: usize) -> &mut Node {
        self.nodes[n].as_mut().expect("it lives")
    }

    /// Polls every engine once.
    pub(crate) fn step(&mut self) {
        self.now_ns += STEP_NS;
        let now_ns = self.now_ns;
        for n in 0..self.nodes.len() {
            let Some(node) = &mut self.nodes[n] else {
                continue;
            };
            if !node.asleep {
                node.replica.background.poll(now_ns);
                while let Some((to, message)) = node.replica.background.control_out() {
                    self.messages.push_back((n, to.index(), message.to_vec()));
                }
            }
            if node.paused {
                continue;
            }
            let Node {
                replica,
                commands,
                reads,
                roles,
                ..
            } = node;
            let board = replica.replication.board().clone();
            replica.replication.poll(now_ns, |event| match event {
                Event::Command { ticket, outcome } => commands.push((
                    ticket,
                    match outcome {
                        Outcome::Decided { reply, .. } => {
                            Ok(u64::from_le_bytes(reply.try_into().expect("a number")))
                        }
                        Outcome::DecidedReplyGone { .. } => Err("reply gone"),
                        Outcome::Superseded { .. } => Err("superseded"),
                        Outcome::Unknown => Err("unknown"),
                        Outcome::NotLeader(_) => Err("not leader"),
                    },
                )),
                Event::Read { ticket, outcome } => reads.push((ticket, outcome)),
                Event::Role { standing, epoch } => {
                    roles.push((standing.role, board.public(public::HORIZON)));
                    if std::env::var_os("TRACE").is_some() {
                        eprintln!("{now_ns} {n}: {standing:?} {epoch}")
                    }
                }
            });
        }
        while let Some((from, to, message)) = self.messages.pop_front() {
            if let Some(node) = &mut self.nodes[to] {
                if node.asleep {
                    continue;
                }
                node.replica
                    .background
                    .control_in(id(from), &message, now_ns)
                    .expect("a message");
            } else if self.aside == Some(to) {
                self.held.push((from, message));
            }
        }
    }

    /// Polls the replication engine of `n` at a time `later_ns` from now. When it reports the first end of a command
    /// its thread is preempted: all others, and its own background engine, go on for `steps` steps before it does.
    pub(crate) fn poll_preempted(&mut self, n: usize, later_ns: u64, steps: usize) -> bool {
        let mut node = self.nodes[n].take().expect("it lives");
        self.aside = Some(n);
        let at_ns = self.now_ns + later_ns;
        let Replica {
            replication,
            background,
        } = &mut node.replica;
        let mut was = false;
        replication.poll(at_ns, |event| {
            if was || !matches!(event, Event::Command { .. }) {
                return;
            }
            was = true;
            for _ in 0..steps {
                self.step();
                let now_ns = self.now_ns;
                for (from, message) in std::mem::take(&mut self.held) {
                    background
                        .control_in(id(from), &message, now_ns)
                        .expect("a message");
                }
                background.poll(now_ns);
                while let Some((to, message)) = background.control_out() {
                    self.messages.push_back((n, to.index(), message.to_vec()));
                }
            }
        });
        self.aside = None;
        self.nodes[n] = Some(node);
        was
    }

    /// Steps until `done`, at most `limit` steps; fails with `what` beyond.
    pub(crate) fn until(
        &mut self,
        what: &str,
        limit: usize,
        mut done: impl FnMut(&mut Self) -> bool,
    ) {
        for _ in 0..limit {
            if done(self) {
                return;
            }
            self.step();
        }
        let states: Vec<_> = self
            .nodes
            .iter()
            .map(|node| node.as_ref().map(state))
            .collect();
        panic!("{what} did not come to pass in {limit} steps: {states:#?}");
    }

    /// The replica that accepts commands, if there is exactly one.
    pub(crate) fn leader(&self) -> Option<usize> {
        let leads = |node: &Option<Node>| {
            node.as_ref()
                .is_some_and(|n| n.replica.replication.leads().is_some())
        };
        let mut leaders = (0..self.nodes.len()).filter(|n| leads(&self.nodes[*n]));
        leaders.next().filter(|_| leaders.next().is_none())
    }

    pub(crate) fn elect(&mut self) -> usize {
        self.until("an election", 20_000, |group| group.leader().is_some());
        self.leader().expect("just seen")
    }

    /// Decides one command at replica `n` and gives the reply.
    pub(crate) fn propose(
        &mut self,
        n: usize,
        client: u64,
        sequence: u64,
        command: &[u8],
    ) -> Result<u64, &'static str> {
        let ticket = match self
            .node(n)
            .replica
            .replication
            .submit(client, sequence, command)
        {
            Ok(ticket) => ticket,
            Err(_) => return Err("refused"),
        };
        self.until("an outcome", 100_000, |group| {
            group.node(n).commands.iter().any(|(t, _)| *t == ticket)
        });
        self.node(n)
            .commands
            .iter()
            .find(|(t, _)| *t == ticket)
            .expect("just seen")
            .1
    }

    /// Three replicas with entries under a checksum, of which 0 leads, and one command that all have applied.
    pub(crate) fn with_first(adjust: impl Fn(&mut Settings)) -> Self {
        let mut group = Self::new(3, |settings| {
            settings.checksum = Checksum::Always;
            adjust(settings);
        });
        assert_eq!(group.elect(), 0);
        group.propose(0, 0, 0, b"first").expect("decided");
        group.settle();
        group
    }

    /// Changes a bit of the payload of the entry that replica `n` applies next.
    pub(crate) fn damage_next(&mut self, n: usize) {
        let replication = &self.node(n).replica.replication;
        let (log, next) = (replication.log(), replication.applied());
        let word = log.offset(next.at + HEADER_BYTES as u64) / 8 + 1;
        log.memory().store(word, log.memory().load(word) ^ 1);
    }

    /// Lets replica 1 find its damaged entry while 2 is asleep: nobody leads who would write it again before that.
    pub(crate) fn notices_damage(&mut self) {
        self.node(1).paused = false;
        self.node(2).asleep = true;
        self.until("it is noticed", 100_000, |group| {
            is(group, 1, Role::Recovering)
        });
        self.node(2).asleep = false;
    }

    /// All live replicas have applied all that the leader has.
    pub(crate) fn settle(&mut self) {
        self.until("agreement of all", 200_000, |group| {
            let applied: Vec<_> = group
                .nodes
                .iter()
                .flatten()
                .map(|n| n.replica.replication.applied())
                .collect();
            applied.windows(2).all(|pair| pair[0] == pair[1])
                && group
                    .nodes
                    .iter()
                    .flatten()
                    .all(|n| n.replica.replication.standing().voter)
        });
        let mut journals = self
            .nodes
            .iter()
            .flatten()
            .map(|n| n.replica.replication.app());
        let first = journals.next().expect("somebody lives");
        assert!(
            journals.all(|journal| journal == first),
            "the journals differ"
        );
    }
}

fn state(node: &Node) -> String {
    let engine = &node.replica.replication;
    format!(
        "{:?} leads {:?} commit {} applied {:?} followers {:?} {:?} view {:?}",
        engine.standing(),
        engine.leads(),
        engine.commit(),
        engine.applied(),
        engine.followers().collect::<Vec<_>>(),
        engine.counters(),
        node.replica.background.view(),
    )
}

/// Whether replica `n` is what `role` says.
pub(crate) fn is(group: &mut Group, n: usize, role: Role) -> bool {
    group.node(n).replica.replication.standing().role == role
}
