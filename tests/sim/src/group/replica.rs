//! One life of a replica: its device, memory and engines, started and killed.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use mu_protocol::background::Background;
use mu_protocol::ids::{Epoch, ReplicaId};
use mu_protocol::layout::Standing;
use mu_protocol::log::{Log, Point, look};
use mu_protocol::replica::{Life, Replica, assemble};
use mu_protocol::replication::{Replication, Stopped};
use mu_protocol::settings::Settings;
use mu_protocol::shared::Shared;
use mu_protocol::zoo::{Seeded, Sound};
use mu_verbs::Memory;

use super::app::{App, Misbehaviour};
use super::channel::Control;
use super::clients::Asked;
use super::rules::{PulseSeen, RightsSeen};
use super::{Engine, Group, Slot, Tickets};
use crate::context::SimContext;

pub(crate) type Rep = Replication<SimContext, App, Seeded>;
pub(crate) type Bg = Background<SimContext, Seeded>;

/// The time since the Unix epoch when a world begins.
const WALL_NS: u64 = 1_700_000_000_000_000_000;

/// A life.
pub(crate) struct Process {
    pub(crate) ctx: SimContext,
    pub(crate) shared: Arc<Shared>,
    pub(crate) log: Log,
    /// Its public line, and the rows of the others.
    pub(crate) board: Memory,
    /// Where peers see its log and its board.
    pub(crate) log_addr: u64,
    pub(crate) board_addr: u64,
    pub(crate) rep: RefCell<Rep>,
    pub(crate) bg: RefCell<Bg>,
    pub(crate) inbox: RefCell<VecDeque<Asked>>,
    pub(crate) mail: RefCell<VecDeque<(ReplicaId, Control)>>,
    pub(crate) commands: Tickets,
    pub(crate) reads: Tickets,
    /// Its leadership is to be handed over.
    pub(crate) hand_over: Cell<bool>,
    /// It stopped between two verbs and is to be killed.
    pub(crate) dying: Cell<bool>,
    /// It is killed; a poll of it may still be on the stack.
    pub(crate) dead: Cell<bool>,
    // What it said last, for when it is busy.
    pub(crate) standing: Cell<Standing>,
    pub(crate) leads: Cell<Option<Epoch>>,
    pub(crate) incarnation: Cell<u64>,
    pub(crate) applied: Cell<Point>,
    pub(crate) digest: Cell<u64>,
    pub(crate) stopped: Cell<Option<Stopped>>,
    /// How often its ring was full.
    pub(crate) ring_full: Cell<u64>,
    /// Up to where the oracles have looked at its log.
    pub(crate) cursor: Cell<Point>,
    pub(crate) min_proposal: Cell<u64>,
    /// What the rules of its background engine's polls were told last.
    pub(crate) pulse: Cell<PulseSeen>,
    pub(crate) rights: Cell<RightsSeen>,
    /// End of its log when it became a candidate.
    pub(crate) end_before: Cell<u64>,
    /// Its application is not to be trusted.
    pub(crate) misbehaves: Cell<bool>,
}

impl Group {
    /// Starts a replica: as a founder the first time, and with empty memory under its old id ever after.
    pub(crate) fn start(&self, slot: usize) {
        let place = &self.slots[slot];
        assert!(!self.is_running(slot), "replica {slot} runs");
        let zombie = place.zombie.borrow_mut().take();
        if let Some(zombie) = zombie {
            self.bury(place.id, &zombie);
        }
        let life = place.lives.get() + 1;
        place.lives.set(life);
        let founder = life == 1;
        let settings = Settings {
            id: place.id,
            form: founder,
            ..self.settings.clone()
        };
        let ctx = self.world.open(place.node);
        let incarnation = self.core.borrow_mut().rng.next_u64() | 1;
        let now_ns = self.world.clock_ns(place.node);
        let life_of = Life {
            incarnation,
            wall_offset_ns: WALL_NS,
            now_ns,
        };
        let replica = assemble(&ctx, settings, life_of, App::default(), self.zoo)
            .unwrap_or_else(|e| panic!("replica {slot} cannot be made: {e}"));
        let Replica {
            replication,
            background,
        } = replica;
        let shared = replication.shared().clone();
        let address = |memory| {
            self.world
                .place_of(memory)
                .expect("a memory of this world")
                .0
        };
        let process = Process {
            log_addr: address(replication.log().memory()),
            board_addr: address(&replication.board().memory),
            log: replication.log().clone(),
            board: replication.board().memory.clone(),
            standing: Cell::new(replication.standing()),
            leads: Cell::default(),
            incarnation: Cell::new(incarnation),
            applied: Cell::default(),
            digest: Cell::default(),
            stopped: Cell::default(),
            ring_full: Cell::default(),
            cursor: Cell::default(),
            min_proposal: Cell::default(),
            pulse: Cell::default(),
            rights: Cell::default(),
            misbehaves: Cell::default(),
            hand_over: Cell::default(),
            dying: Cell::default(),
            dead: Cell::default(),
            end_before: Cell::default(),
            rep: RefCell::new(replication),
            bg: RefCell::new(background),
            inbox: RefCell::default(),
            mail: RefCell::default(),
            commands: RefCell::default(),
            reads: RefCell::default(),
            ctx,
            shared,
        };
        if founder {
            self.core.borrow_mut().oracle.founder(place.id, incarnation);
        }
        self.world.note(incarnation, || {
            format!("replica {slot} starts its life {life}")
        });
        *place.process.borrow_mut() = Some(Rc::new(process));
        self.wake_engines(slot);
    }

    /// Both engines are polled soon, whatever was planned before.
    pub(crate) fn wake_engines(&self, slot: usize) {
        for engine in Engine::BOTH {
            let wait = self.core.borrow_mut().rng.range(100, 5_000);
            self.wake_engine(slot, engine, self.world.now_ns() + wait);
        }
    }

    /// A replica's process ends, and its memory with it.
    pub(crate) fn kill(&self, slot: usize) {
        let Some(process) = self.slots[slot].process.borrow_mut().take() else {
            return;
        };
        self.world
            .note(slot as u64, || format!("replica {slot} is killed"));
        self.bury(self.slots[slot].id, &process);
        self.lines_of(slot);
    }

    /// A replica's CPU dies; its NIC goes on serving its memory.
    pub(crate) fn make_zombie(&self, slot: usize) {
        let Some(process) = self.slots[slot].process.borrow_mut().take() else {
            return;
        };
        self.world
            .note(slot as u64, || format!("the CPU of replica {slot} dies"));
        process.dead.set(true);
        self.world.freeze(&process.ctx);
        *self.slots[slot].zombie.borrow_mut() = Some(process);
        self.lines_of(slot);
    }

    fn bury(&self, id: ReplicaId, process: &Process) {
        process.dead.set(true);
        self.world.kill(&process.ctx);
        let grave = (id, process.incarnation.get(), process.log.clone());
        self.core.borrow_mut().graves.push(grave);
    }

    fn lines_of(&self, slot: usize) {
        (0..self.slots.len())
            .filter(|peer| *peer != slot)
            .for_each(|peer| self.break_line(slot, peer));
    }

    /// All processes whose memory peers can reach: those that run, and those whose CPU is dead.
    pub(crate) fn reachable(&self) -> impl Iterator<Item = (&Slot, Rc<Process>)> {
        self.slots.iter().flat_map(|slot| {
            let running = slot.process.borrow().clone();
            let zombie = slot.zombie.borrow().clone();
            running
                .into_iter()
                .chain(zombie)
                .map(move |process| (slot, process))
        })
    }
}

impl Process {
    /// Its application panics no more. One that deviates has done so already.
    pub(crate) fn behave(&self) {
        if let Ok(mut rep) = self.rep.try_borrow_mut()
            && matches!(rep.app().misbehaviour, Some(Misbehaviour::PanicsAt(_)))
        {
            rep.app_mut().misbehaviour = None;
        }
    }

    /// What it is and how far, for people.
    pub(crate) fn state(&self) -> String {
        let standing = self.standing.get();
        let vote = if standing.voter { "" } else { " without vote" };
        let promised = self.shared.promised();
        let Ok(rep) = self.rep.try_borrow() else {
            return format!("is {:?}{vote}, busy", standing.role);
        };
        let followers: Vec<_> = rep
            .followers()
            .map(|(id, index)| format!("{id} at {index}"))
            .collect();
        let holder = self
            .shared
            .holder()
            .map_or("nobody".into(), |id| id.to_string());
        format!(
            "is {:?}{vote}, applied {} of {}, log up to {}, promised {promised}, held by {holder}, \
             followers {followers:?}",
            standing.role,
            rep.applied().index,
            rep.commit(),
            end_of(&rep).index,
        )
    }

    /// Makes its application do wrong.
    pub(crate) fn misbehave(&self, how: Misbehaviour) {
        // While its engine is stopped in mid-poll it cannot be reached; then it is spared.
        if let Ok(mut rep) = self.rep.try_borrow_mut() {
            rep.app_mut().misbehaviour = Some(how);
        }
    }
}

/// The end of what a replica's log holds as a chain, from what it has applied on.
pub(crate) fn end_of(rep: &Rep) -> Point {
    let (mut point, log) = (rep.applied(), rep.log());
    let max = rep.settings().max_entry_bytes();
    while let Some(header) = look(log, point, max, Sound) {
        point = point.after(&header);
    }
    point
}
