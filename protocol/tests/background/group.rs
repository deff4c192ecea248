//! Background engines over the software backend, in one thread and virtual time, with a stand-in for the replication
//! engine: it takes up and gives up candidacies, counts acknowledgements, publishes words, and writes into granted
//! logs.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use mu_protocol::background::{Background, Parts, PerPeer, board_qp_cap};
use mu_protocol::ids::{Epoch, Members, ReplicaId};
use mu_protocol::layout::{Ack, BOARD_BYTES, OUTBOX_BYTES, Role, Standing, public, row};
use mu_protocol::limits::{LOG_HEADER_BYTES, MAX_REPLICAS};
use mu_protocol::settings::Settings;
use mu_protocol::shared::{Board, Shared};
use mu_protocol::zoo::Zoo;
use mu_softrdma::Fabric;
use mu_verbs::soft::Soft;
use mu_verbs::sync::Ordering;
use mu_verbs::{
    Access, Completion, CompletionQueue, Context, Memory, Modify, Payload, QpControl, QueuePair,
    RemoteAddr, SendFlags, SendOp, SendWr, Sge, WORD, WcStatus,
};

type Qp = <Soft as Context>::Qp;
type Control = <Soft as Context>::Control;

/// One step of virtual time.
pub(crate) const STEP_NS: u64 = 10_000;
/// Steps of one heartbeat of 50 µs.
pub(crate) const BEAT: usize = 5;
/// What a leader writes lies behind the header.
pub(crate) const WRITTEN_AT: usize = LOG_HEADER_BYTES / WORD;

pub(crate) fn id(n: usize) -> ReplicaId {
    ReplicaId::new(n as u8).expect("an id")
}

/// One replica.
pub(crate) struct Node<Z: Zoo> {
    pub(crate) soft: Soft,
    pub(crate) shared: Arc<Shared>,
    pub(crate) board: Board,
    pub(crate) log: Memory,
    pub(crate) background: Background<Soft, Z>,
    settings: Settings,
    log_qps: PerPeer<Qp>,
    log_cq: <Soft as Context>::Cq,
    source: <Soft as Context>::Mr,
    _pull_qps: PerPeer<Qp>,
    /// Of the board and log links, to break them.
    controls: [PerPeer<Control>; 2],
    /// The stand-in is not polled, nor the engine.
    pub(crate) stuck: bool,
    pub(crate) paused: bool,
    /// What it is while it does not stand.
    rest: Standing,
}

impl<Z: Zoo> Node<Z> {
    fn new(
        fabric: &Fabric,
        settings: Settings,
        incarnation: u64,
        rest: Standing,
        zoo: Z,
        now_ns: u64,
    ) -> Self {
        let soft = Soft::inproc(fabric).expect("a context");
        let (log_pd, board_pd) = (
            soft.alloc_pd().expect("a domain"),
            soft.alloc_pd().expect("a domain"),
        );
        let memory = |bytes| soft.alloc_memory(bytes).expect("memory");
        let board = Board {
            memory: memory(BOARD_BYTES),
            outbox: memory(OUTBOX_BYTES),
        };
        let log = memory(LOG_HEADER_BYTES + settings.ring_bytes);
        let cq = || soft.create_cq(1024).expect("a queue");
        let (log_cq, board_cq, pull_cq) = (cq(), cq(), cq());
        let qps = |pd, cq| -> PerPeer<Qp> {
            let mut qps = [const { None }; MAX_REPLICAS];
            for peer in settings.peers().iter() {
                let qp = soft.create_qp(pd, cq, cq, &board_qp_cap());
                qps[peer.index()] = Some(qp.expect("a queue pair"));
            }
            qps
        };
        let log_qps = qps(&log_pd, &log_cq);
        let board_qps = qps(&board_pd, &board_cq);
        let pull_qps = qps(&board_pd, &pull_cq);
        let controls = |qps: &PerPeer<Qp>| -> PerPeer<Control> {
            std::array::from_fn(|peer| qps[peer].as_ref().map(|qp| QueuePair::control(qp).clone()))
        };
        let shared = Arc::new(Shared::new());
        let breakable = [controls(&board_qps), controls(&log_qps)];
        let parts = Parts {
            ctx: soft.clone(),
            settings: settings.clone(),
            shared: Arc::clone(&shared),
            board: board.clone(),
            log: log.clone(),
            log_pd: log_pd.clone(),
            board_pd,
            log_controls: controls(&log_qps),
            pull_controls: controls(&pull_qps),
            board_qps,
            board_cq,
        };
        board.set_public(public::INCARNATION, incarnation);
        board.set_public(public::STANDING, rest.to_word());
        let bytes = memory(4096);
        Self {
            source: soft
                .reg_mr(&log_pd, &bytes, 0..4096, Access::NONE)
                .expect("a registration"),
            background: Background::new(parts, zoo, now_ns).expect("an engine"),
            soft,
            shared,
            board,
            log,
            settings,
            log_qps,
            log_cq,
            _pull_qps: pull_qps,
            controls: breakable,
            stuck: false,
            paused: false,
            rest,
        }
    }

    /// The stand-in's turn.
    fn replicate(&mut self) {
        self.shared.advance();
        let promised = self.shared.promised();
        let candidate = self.shared.candidate();
        if candidate == Epoch::NONE {
            self.shared.leave(promised);
        }
        let acks = self.acks(candidate);
        let votes = acks.iter().filter(|(_, ack)| ack.voter).count() + 1;
        let standing = match candidate {
            Epoch::NONE => self.rest,
            _ if votes >= self.settings.members.quorum() => Standing {
                role: Role::Leader,
                voter: true,
            },
            _ => Standing {
                role: Role::Candidate,
                voter: true,
            },
        };
        self.board.set_public(public::STANDING, standing.to_word());
        self.board.set_public(public::LEADS, candidate.0);
    }

    /// The peers that have granted `epoch` for the connection there is.
    pub(crate) fn acks(&self, epoch: Epoch) -> Vec<(ReplicaId, Ack)> {
        let valid = |peer: ReplicaId| {
            let ack = Ack::from_words(self.board.record(peer, row::ACK))?;
            let connected = self
                .shared
                .peer(peer)
                .log_generation
                .load(Ordering::Acquire);
            let valid = ack.granted && ack.epoch == epoch && u64::from(ack.generation) == connected;
            valid.then_some((peer, ack))
        };
        self.settings.peers().iter().filter_map(valid).collect()
    }

    pub(crate) fn rest_as(&mut self, role: Role, voter: bool) {
        self.rest = Standing { role, voter };
    }

    pub(crate) fn standing(&self) -> Standing {
        Standing::from_word(self.board.public(public::STANDING))
    }

    pub(crate) fn leads(&self) -> bool {
        self.standing().role == Role::Leader
    }

    /// Writes `value` into the log that `ack` gives access to, and waits for how it ended.
    pub(crate) fn write(&mut self, to: usize, ack: &Ack, value: u64) -> WcStatus {
        mu_verbs::MemoryRegion::memory(&self.source).store(0, value);
        let remote = RemoteAddr {
            addr: ack.addr + LOG_HEADER_BYTES as u64,
            rkey: ack.rkey,
        };
        let qp = self.log_qps[to].as_mut().expect("a queue pair");
        let posted = QueuePair::post_send(
            qp,
            &SendWr {
                wr_id: value,
                op: SendOp::Write {
                    payload: Payload::Regions(&[Sge::new(&self.source, 0, WORD)]),
                    remote,
                    imm: None,
                },
                flags: SendFlags::SIGNALED,
            },
        );
        if posted.is_err() {
            return WcStatus::WR_FLUSH_ERR;
        }
        let mut completions = [Completion::EMPTY; 4];
        for _ in 0..1000 {
            let n = CompletionQueue::poll(&mut self.log_cq, &mut completions);
            if let Some(done) = completions[..n].iter().find(|done| done.wr_id == value) {
                return done.status;
            }
        }
        panic!("a write without an end");
    }

    /// Takes the queue pairs of the board and log links with `peer` to ERR.
    fn break_links(&self, peer: usize) {
        for controls in &self.controls {
            let control = controls[peer].as_ref().expect("a peer");
            QpControl::modify(control, &Modify::Err).expect("any state may go to ERR");
        }
    }

    pub(crate) fn break_log_link(&self, peer: usize) {
        let control = self.controls[1][peer].as_ref().expect("a peer");
        QpControl::modify(control, &Modify::Err).expect("any state may go to ERR");
    }
}

/// The replicas and what connects them.
pub(crate) struct Group<Z: Zoo> {
    fabric: Fabric,
    settings: Settings,
    zoo: Z,
    pub(crate) nodes: Vec<Option<Node<Z>>>,
    messages: VecDeque<(usize, usize, Vec<u8>)>,
    cuts: HashSet<(usize, usize)>,
    pub(crate) now_ns: u64,
    lives: u64,
}

impl<Z: Zoo> Group<Z> {
    /// `n` founders, which know nothing of each other yet.
    pub(crate) fn new(n: usize, zoo: Z) -> Self {
        let members: Members = (0..n).map(id).collect();
        let settings = Settings {
            ring_bytes: 64 << 10,
            max_command_bytes: 1 << 10,
            ..Settings::new(id(0), members)
        };
        let mut group = Self {
            fabric: Fabric::new(),
            settings,
            zoo,
            nodes: (0..n).map(|_| None).collect(),
            messages: VecDeque::new(),
            cuts: HashSet::new(),
            now_ns: 1_000_000,
            lives: 0,
        };
        for n in 0..n {
            group.start(n, Role::Follower, true);
        }
        group
    }

    /// A group whose replica 0 leads, acknowledged by everybody.
    pub(crate) fn led(n: usize, zoo: Z) -> Self {
        let mut group = Self::new(n, zoo);
        group.until("a leader that all have granted", 2_000, |group| {
            let first = group.node(0);
            first.leads() && first.acks(first.shared.candidate()).len() == n - 1
        });
        group
    }

    /// Starts replica `n` with empty memory.
    pub(crate) fn start(&mut self, n: usize, role: Role, voter: bool) {
        self.lives += 1;
        let settings = Settings {
            id: id(n),
            ..self.settings.clone()
        };
        let rest = Standing { role, voter };
        let node = Node::new(
            &self.fabric,
            settings,
            1000 + self.lives,
            rest,
            self.zoo,
            self.now_ns,
        );
        self.nodes[n] = Some(node);
        for peer in 0..self.nodes.len() {
            if peer != n && self.nodes[peer].is_some() {
                self.connect(n, peer);
            }
        }
    }

    /// A control connection comes up.
    pub(crate) fn connect(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            let hello = self.node(from).background.hello(id(to));
            let now_ns = self.now_ns;
            let up = self
                .node(to)
                .background
                .control_up(id(from), &hello, now_ns);
            up.expect("a hello");
        }
    }

    /// Kills replica `n` as a process dies.
    pub(crate) fn kill(&mut self, n: usize) {
        let node = self.nodes[n].take().expect("it lives");
        node.soft.node().crash();
        drop(node);
        self.messages.retain(|(from, to, _)| *from != n && *to != n);
        for node in self.nodes.iter_mut().flatten() {
            node.background.control_down(id(n));
        }
    }

    /// Cuts `a` and `b` off from each other, for data and control.
    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        self.cuts.extend([(a, b), (b, a)]);
        self.node(a).break_links(b);
        self.node(b).break_links(a);
        self.node(a).background.control_down(id(b));
        self.node(b).background.control_down(id(a));
    }

    /// Ends all cuts.
    pub(crate) fn heal(&mut self) {
        for (a, b) in std::mem::take(&mut self.cuts) {
            if a < b {
                self.connect(a, b);
            }
        }
    }

    pub(crate) fn node(&mut self, n: usize) -> &mut Node<Z> {
        self.nodes[n].as_mut().expect("it lives")
    }

    /// Polls everything once.
    pub(crate) fn step(&mut self) {
        self.now_ns += STEP_NS;
        let now_ns = self.now_ns;
        for (n, node) in self.nodes.iter_mut().enumerate() {
            let Some(node) = node.as_mut().filter(|node| !node.paused) else {
                continue;
            };
            node.background.poll(now_ns);
            while let Some((to, message)) = node.background.control_out() {
                self.messages.push_back((n, to.index(), message.to_vec()));
            }
            if !node.stuck {
                node.replicate();
            }
        }
        for (from, to, message) in std::mem::take(&mut self.messages) {
            if self.cuts.contains(&(from, to)) {
                continue;
            }
            if let Some(node) = &mut self.nodes[to] {
                let taken = node.background.control_in(id(from), &message, now_ns);
                taken.expect("a message");
            }
        }
    }

    pub(crate) fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
        }
    }

    /// Steps until `done` and says how many it took; fails with `what` after `limit`.
    pub(crate) fn until(
        &mut self,
        what: &str,
        limit: usize,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> usize {
        for steps in 0..limit {
            if done(self) {
                return steps;
            }
            self.step();
        }
        let views = self.nodes.iter().flatten().map(|node| {
            let epoch = node.shared.candidate();
            (
                node.standing(),
                epoch,
                node.acks(epoch),
                node.background.view(),
                node.background.counters(),
            )
        });
        panic!(
            "{what} did not come to pass in {limit} steps: {:#?}",
            views.collect::<Vec<_>>()
        );
    }

    /// The replicas that lead.
    pub(crate) fn leaders(&self) -> Vec<usize> {
        let leads = |n: &usize| self.nodes[*n].as_ref().is_some_and(Node::leads);
        (0..self.nodes.len()).filter(leads).collect()
    }

    /// Elections so far.
    pub(crate) fn elections(&self) -> u64 {
        let nodes = self.nodes.iter().flatten();
        nodes.map(|node| node.background.counters().elections).sum()
    }
}
