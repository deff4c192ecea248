//! What the threads of one replica share, and what is published of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mu_protocol::background;
use mu_protocol::ids::{Epoch, ReplicaId};
use mu_protocol::layout::{Role, Standing};
use mu_protocol::limits::MAX_REPLICAS;
use mu_protocol::message::Link;
use mu_protocol::replication;
use mu_verbs::RevokeMethod;

use super::clock::Clock;
use super::error::Halted;
use super::events::RoleEvents;
use super::stages::{Stage, Stages};
use super::status::{PeerStatus, Status};
use super::wake::Waker;

/// Shared by the threads and handles of one replica.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) cluster: String,
    pub(crate) id: ReplicaId,
    pub(crate) incarnation: u64,
    pub(crate) clock: Clock,
    /// The replication thread's sleep.
    pub(crate) waker: Waker,
    /// The background thread's.
    pub(crate) background_waker: Waker,
    /// Why all threads are to end: one more than its place in [`WHY`], or 0 if they are not.
    ending: AtomicU8,
    view: Mutex<View>,
    background: Mutex<Option<BackgroundView>>,
    pub(crate) stages: Mutex<Stages>,
    events: Mutex<RoleEvents>,
}

/// What the replication engine is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct View {
    pub(crate) standing: Standing,
    pub(crate) epoch: Epoch,
    pub(crate) leader: Option<ReplicaId>,
    pub(crate) commit: u64,
    pub(crate) applied: u64,
    pub(crate) in_flight: u64,
    pub(crate) stopped: Option<Halted>,
    pub(crate) counters: replication::Counters,
    pub(crate) matched: [Option<u64>; MAX_REPLICAS],
}

/// What the background engine is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BackgroundView {
    pub(crate) view: background::View,
    pub(crate) counters: background::Counters,
    pub(crate) refused_connections: u64,
}

/// Nothing panics half-way under these locks.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const WHY: [Halted; 4] = [
    Halted::Asked,
    Halted::Panicked,
    Halted::Superseded,
    Halted::Diverged,
];

impl Common {
    pub(crate) fn new(
        cluster: String,
        id: ReplicaId,
        incarnation: u64,
        clock: Clock,
    ) -> nix::Result<Self> {
        Ok(Self {
            cluster,
            id,
            incarnation,
            clock,
            waker: Waker::new()?,
            background_waker: Waker::new()?,
            ending: AtomicU8::new(0),
            view: Mutex::default(),
            background: Mutex::default(),
            stages: Mutex::new(Stages::new()),
            events: Mutex::default(),
        })
    }

    /// Asks all threads to end; the first reason counts.
    pub(crate) fn end(&self, why: Halted) {
        let code = 1 + WHY.iter().position(|w| *w == why).unwrap_or(0) as u8;
        // It fails where another reason came first.
        let _ = self
            .ending
            .compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
        self.waker.wake();
        self.background_waker.wake();
    }

    /// Whether all threads are to end, and why.
    #[inline]
    pub(crate) fn ending(&self) -> Option<Halted> {
        let code = usize::from(self.ending.load(Ordering::Acquire));
        code.checked_sub(1).map(|why| WHY[why % WHY.len()])
    }

    /// Runs a thread's body; its panic ends the replica and is said.
    pub(crate) fn guarded(&self, thread: &str, body: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            tracing::error!(replica = %self.id, thread, panic = text, "a thread panicked; this replica stops");
            self.end(Halted::Panicked);
        }
    }

    /// Records a sampled time, unless somebody is reading the histograms just now.
    pub(crate) fn record(&self, stage: Stage, ns: u64) {
        if let Ok(mut stages) = self.stages.try_lock() {
            stages.record(stage, ns);
        }
    }

    /// A change of this replica's part in the group.
    pub(crate) fn note(&self, role: &str, epoch: Epoch) {
        lock(&self.events).push(role, epoch.0);
    }

    pub(crate) fn publish(&self, view: View) {
        *lock(&self.view) = view;
    }

    pub(crate) fn view(&self) -> View {
        let mut view = *lock(&self.view);
        if let Some(why) = self.ending() {
            view.stopped.get_or_insert(why);
            view.standing.role = Role::Stopped;
        }
        view
    }

    pub(crate) fn publish_background(&self, view: BackgroundView) {
        *lock(&self.background) = Some(view);
    }

    /// Puts the picture together.
    pub(crate) fn status(&self, view: &View) -> Status {
        let background = *lock(&self.background);
        let mut counters = replication_counters(&view.counters);
        if let Some(background) = &background {
            counters.extend(background_counters(&background.counters));
            counters.push(("connections_refused".into(), background.refused_connections));
        }
        let epoch = match (view.epoch, &background) {
            (Epoch::NONE, Some(background)) => background.view.promise,
            (epoch, _) => epoch,
        };
        // Not for longer than it takes to copy them: whoever takes over takes this lock.
        let events = lock(&self.events).all();
        let stages = lock(&self.stages);
        Status {
            cluster: self.cluster.clone(),
            id: self.id.get(),
            pid: std::process::id(),
            incarnation: self.incarnation,
            role: role_name(view.standing.role).into(),
            voter: view.standing.voter,
            epoch: epoch.0,
            leader: view.leader.map(ReplicaId::get),
            commit: view.commit,
            applied: view.applied,
            in_flight: view.in_flight,
            stopped: view.stopped.map(|why| why.to_string()),
            peers: background.map_or_else(Vec::new, |b| peers(&b.view, view)),
            counters,
            events,
            stages: Stage::ALL
                .map(|(stage, name)| (name.to_owned(), stages.summary(stage)))
                .into(),
        }
    }
}

pub(crate) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Stopped => "stopped",
        Role::Recovering => "recovering",
        Role::Learner => "learner",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
    }
}

fn peers(background: &background::View, view: &View) -> Vec<PeerStatus> {
    let ids = (0..MAX_REPLICAS as u8).filter_map(ReplicaId::new);
    ids.filter_map(|id| {
        let peer = background.peers[id.index()]?;
        let names = [
            (Link::Log, "log"),
            (Link::Board, "board"),
            (Link::Pull, "pull"),
        ];
        let connected = |link: Link| {
            matches!(
                peer.links[link as usize].0,
                background::link::LinkState::Connected { .. }
            )
        };
        Some(PeerStatus {
            id: id.get(),
            alive: peer.alive,
            score: peer.score,
            control: peer.control,
            links: names
                .into_iter()
                .filter(|(link, _)| connected(*link))
                .map(|(_, name)| name.to_owned())
                .collect(),
            incarnation: peer.incarnation,
            matched: view.matched[id.index()],
        })
    })
    .collect()
}

fn named<const N: usize>(counters: [(&str, u64); N]) -> Vec<(String, u64)> {
    counters
        .map(|(name, count)| (name.to_owned(), count))
        .into()
}

fn replication_counters(c: &replication::Counters) -> Vec<(String, u64)> {
    named([
        ("decided", c.decided),
        ("applied", c.applied),
        ("led", c.led),
        ("stepped_down", c.stepped_down),
        ("unknown", c.unknown),
        ("confirmed", c.confirmed),
        ("followers_lost", c.followers_lost),
        ("cut_off", c.cut_off),
        ("queue_full", c.queue_full),
        ("ring_full", c.ring_full),
        ("rejoins", c.rejoins),
        ("snapshots", c.snapshots),
        ("damaged", c.damaged),
        ("mended", c.mended),
        ("admitted", c.admitted),
        ("stale_completions", c.stale),
    ])
}

fn background_counters(c: &background::Counters) -> Vec<(String, u64)> {
    let mut counters = named([
        ("elections", c.elections),
        ("given_up", c.given_up),
        ("grants", c.grants),
        ("grants_again", c.grants_again),
        ("failed_grants", c.failed_grants),
        ("refusals", c.refusals),
        ("failed_revocations", c.failed_revocations),
        ("peer_deaths", c.deaths),
        ("peer_revivals", c.revivals),
        ("board_errors", c.board_errors),
        ("stalls", c.stalls),
        ("unfit_heartbeats", c.unfit),
        ("refused_messages", c.refused_messages),
        ("last_switch_ns", c.last_switch_ns),
    ]);
    let revocations = RevokeMethod::ALL.iter().zip(c.revocations);
    counters.extend(
        revocations
            .map(|(method, count)| (format!("revocations_{method:?}").to_lowercase(), count)),
    );
    let links = [
        (Link::Log, "log"),
        (Link::Board, "board"),
        (Link::Pull, "pull"),
    ];
    counters.extend(links.map(|(link, name)| (format!("resets_{name}"), c.resets[link as usize])));
    counters
}
