//! One life of a replica: its device, memory and engines, started, polled, killed.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use mu_history::KvOutput;
use mu_protocol::background::Background;
use mu_protocol::ids::{Epoch, ReplicaId};
use mu_protocol::layout::{Role, Standing};
use mu_protocol::log::{Log, Point, look};
use mu_protocol::replica::{Life, Replica, assemble};
use mu_protocol::replication::{Event, Outcome, ReadOutcome, Refused, Replication, Stopped};
use mu_protocol::settings::Settings;
use mu_protocol::shared::Shared;
use mu_protocol::zoo::{Seeded, Sound};

use super::app::{App, Misbehaviour, decode_output};
use super::channel::Control;
use super::clients::{Answer, Asked, Reply};
use super::oracle::position_after;
use super::plan::Theme;
use super::rows::Row;
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
    /// Where peers see its log and its board.
    pub(crate) log_addr: u64,
    pub(crate) board_addr: u64,
    rep: RefCell<Rep>,
    bg: RefCell<Bg>,
    pub(crate) inbox: RefCell<VecDeque<Asked>>,
    pub(crate) mail: RefCell<VecDeque<(ReplicaId, Control)>>,
    commands: Tickets,
    reads: Tickets,
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
    /// End of its log when it became a candidate.
    end_before: Cell<u64>,
    /// Its application is not to be trusted.
    pub(crate) misbehaves: Cell<bool>,
}

/// An event that outlives its poll.
enum Owned {
    Command(u64, Told),
    Read(u64, ReadOutcome),
    Role(Standing, Epoch),
}

enum Told {
    Decided(u64, Vec<u8>),
    ReplyGone,
    Superseded,
    Unknown,
    NotLeader(Option<ReplicaId>),
}

impl Owned {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Role { standing, epoch } => Self::Role(standing, epoch),
            Event::Read { ticket, outcome } => Self::Read(ticket, outcome),
            Event::Command { ticket, outcome } => Self::Command(
                ticket,
                match outcome {
                    Outcome::Decided { index, reply } => Told::Decided(index, reply.to_vec()),
                    Outcome::DecidedReplyGone { .. } => Told::ReplyGone,
                    Outcome::Superseded { .. } => Told::Superseded,
                    Outcome::Unknown => Told::Unknown,
                    Outcome::NotLeader(hint) => Told::NotLeader(hint),
                },
            ),
        }
    }
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
            standing: Cell::new(replication.standing()),
            leads: Cell::default(),
            incarnation: Cell::new(incarnation),
            applied: Cell::default(),
            digest: Cell::default(),
            stopped: Cell::default(),
            ring_full: Cell::default(),
            cursor: Cell::default(),
            min_proposal: Cell::default(),
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

    pub(crate) fn poll_replication(&self, slot: usize, process: &Process) -> bool {
        let mut rep = process.rep.borrow_mut();
        self.take_requests(slot, process, &mut rep);
        if process.hand_over.take() && rep.leads().is_some() {
            let now_ns = self.world.clock_ns(self.slots[slot].node);
            if rep.transfer(None, now_ns).is_ok() {
                self.hit(Row::HandedOver);
            }
        }
        let now_ns = self.world.clock_ns(self.slots[slot].node);
        let mut events = Vec::new();
        let gone = || process.dying.get() || process.dead.get();
        let pace = rep.poll(now_ns, |event| {
            if !gone() {
                events.push(Owned::from(event));
            }
        });
        if gone() {
            return false;
        }
        if rep.app().panicked {
            self.hit(Row::Panicked);
            process.dying.set(true);
            return false;
        }
        let busy = pace.worked || !events.is_empty();
        if busy || process.applied.get() != rep.applied() {
            self.observe(slot, process, &mut rep);
        }
        for event in events {
            self.hear(slot, process, &mut rep, event);
        }
        process.leads.set(rep.leads());
        busy
    }

    pub(crate) fn poll_background(&self, slot: usize, process: &Process) -> bool {
        let mut bg = process.bg.borrow_mut();
        let now_ns = self.world.clock_ns(self.slots[slot].node);
        loop {
            let Some((peer, control)) = process.mail.borrow_mut().pop_front() else {
                break;
            };
            let taken = match &control {
                Control::Up(hello) => bg.control_up(peer, hello, now_ns),
                Control::Message(message) => bg.control_in(peer, message, now_ns),
                Control::Down => {
                    bg.control_down(peer);
                    Ok(())
                }
            };
            if let Err(refused) = taken {
                self.fail(format!(
                    "control: replica {slot} refuses {control:?} of {peer}: {refused}"
                ));
            }
        }
        let pace = bg.poll(now_ns);
        while let Some((peer, message)) = bg.control_out() {
            if process.dying.get() || process.dead.get() {
                return false;
            }
            self.connect_message(slot, peer, &message);
        }
        pace.worked
    }

    /// What a replica says first on a new control connection with a peer; nothing while its engine is busy.
    pub(crate) fn hello(&self, slot: usize, peer: usize) -> Option<Box<[u8]>> {
        let process = self.process(slot)?;
        let bg = process.bg.try_borrow().ok()?;
        Some(Box::new(bg.hello(self.slots[peer].id)))
    }

    /// What clients asked since the last poll goes to the engine.
    fn take_requests(&self, slot: usize, process: &Process, rep: &mut Rep) {
        loop {
            let Some(asked) = process.inbox.borrow_mut().pop_front() else {
                return;
            };
            let is_read = asked.read_key.is_some();
            let ticket = match is_read {
                true => rep.read(),
                false => rep.submit(asked.session, asked.sequence, &asked.bytes),
            };
            let refused = match ticket {
                Ok(ticket) => {
                    if is_read && self.is_deposed(slot, process) {
                        self.hit(Row::ReadAtDeposed);
                    }
                    let tickets = if is_read {
                        &process.reads
                    } else {
                        &process.commands
                    };
                    tickets.borrow_mut().push_back((ticket, asked));
                    continue;
                }
                Err(refused) => refused,
            };
            self.core.borrow_mut().oracle.never(asked.attempt);
            let answer = match refused {
                Refused::NotLeader(hint) => Answer::Elsewhere(hint),
                Refused::Overloaded { .. } => {
                    self.hit(Row::Overloaded);
                    Answer::Busy
                }
                Refused::TooLarge { .. } => {
                    self.hit(Row::TooLargeRefused);
                    Answer::Hopeless
                }
                Refused::Stopped(_) => Answer::Elsewhere(None),
            };
            self.reply(&asked, answer);
        }
    }

    /// Whether another replica leads in a higher epoch than this one, which still takes itself for the leader.
    pub(crate) fn is_deposed(&self, slot: usize, process: &Process) -> bool {
        let own = process.leads.get();
        let leads = |other: usize| self.process(other).and_then(|process| process.leads.get());
        own.is_some() && (0..self.slots.len()).any(|other| other != slot && leads(other) > own)
    }

    fn reply(&self, asked: &Asked, answer: Answer) {
        self.send_reply(Reply {
            client: asked.client,
            attempt: asked.attempt,
            answer,
        });
    }

    fn hear(&self, slot: usize, process: &Process, rep: &mut Rep, event: Owned) {
        match event {
            Owned::Role(standing, epoch) => self.hear_role(slot, process, rep, standing, epoch),
            Owned::Command(ticket, told) => {
                let next = process.commands.borrow_mut().pop_front();
                match next {
                    Some((given, asked)) if given == ticket => self.hear_command(&asked, told),
                    other => {
                        let given = other.map(|(given, _)| given);
                        self.fail(format!(
                            "tickets: command {ticket} ends, {given:?} is next at replica {slot}"
                        ));
                    }
                }
            }
            Owned::Read(ticket, outcome) => {
                let next = process.reads.borrow_mut().pop_front();
                match next {
                    Some((given, asked)) if given == ticket => self.hear_read(&asked, rep, outcome),
                    other => {
                        let given = other.map(|(given, _)| given);
                        self.fail(format!(
                            "tickets: read {ticket} ends, {given:?} is next at replica {slot}"
                        ));
                    }
                }
            }
        }
    }

    fn hear_role(
        &self,
        slot: usize,
        process: &Process,
        rep: &Rep,
        standing: Standing,
        epoch: Epoch,
    ) {
        let id = self.slots[slot].id;
        let before = process.standing.replace(standing);
        self.world.note(standing.to_word(), || {
            format!(
                "replica {slot} is {standing:?} in epoch {epoch}, applied {}",
                rep.applied().index
            )
        });
        if standing.role == Role::Candidate {
            process.end_before.set(end_of(rep).index);
        }
        if standing.role == Role::Leader {
            self.core
                .borrow_mut()
                .oracle
                .leads(id, rep.incarnation(), epoch);
            process.leads.set(Some(epoch));
            // Its own empty entry is one of them.
            if end_of(rep).index > process.end_before.get() + 1 {
                self.hit(Row::Adopted);
            }
        }
        if matches!(standing.role, Role::Candidate | Role::Leader) {
            let strives = |process: Rc<Process>| {
                matches!(process.standing.get().role, Role::Candidate | Role::Leader)
            };
            if (0..self.slots.len())
                .filter_map(|slot| self.process(slot))
                .filter(|p| strives(p.clone()))
                .count()
                > 1
            {
                self.hit(Row::Rivals);
            }
        }
        if standing.role == Role::Stopped {
            process.stopped.set(rep.stopped());
            match rep.stopped() {
                Some(Stopped::Diverged)
                    if self.core.borrow().plan.themes.contains(&Theme::Deviate) =>
                {
                    self.hit(Row::Deviated);
                }
                other => self.fail(format!("halt: replica {slot} halts: {other:?}")),
            }
        }
        if standing.role == Role::Recovering && before.role != Role::Recovering {
            self.hit(Row::LeftBehind);
        }
        if standing.voter && !before.voter {
            self.hit(Row::Rejoined);
            if !self.core.borrow().oracle.is_voter(id, rep.incarnation()) {
                self.fail(format!(
                    "I22: replica {slot} takes itself for a voter, and nobody admitted it"
                ));
            }
        }
    }

    fn hear_command(&self, asked: &Asked, told: Told) {
        let answer = match told {
            Told::Decided(index, reply) => match decode_output(&reply) {
                Some(output) => {
                    self.core
                        .borrow_mut()
                        .oracle
                        .answered(asked.attempt, index, output);
                    Answer::Done {
                        output,
                        read_at: None,
                    }
                }
                None => {
                    return self.fail(format!(
                        "reply: try {} was answered {reply:?}",
                        asked.attempt
                    ));
                }
            },
            Told::ReplyGone => {
                return self.fail(format!("reply: that of try {} is gone", asked.attempt));
            }
            Told::Superseded => Answer::Hopeless,
            Told::Unknown => {
                self.hit(Row::Unknown);
                Answer::Unknown
            }
            Told::NotLeader(hint) => {
                self.core.borrow_mut().oracle.never(asked.attempt);
                Answer::Elsewhere(hint)
            }
        };
        self.reply(asked, answer);
    }

    fn hear_read(&self, asked: &Asked, rep: &Rep, outcome: ReadOutcome) {
        let answer = match outcome {
            ReadOutcome::Ready { .. } => {
                self.hit(Row::ReadAnswered);
                let key = asked.read_key.expect("it is a read");
                // The state may be newer than what was proven, never older.
                Answer::Done {
                    output: KvOutput::Value(rep.app().get(key)),
                    read_at: Some(position_after(rep.applied().index)),
                }
            }
            ReadOutcome::NotLeader(hint) => Answer::Elsewhere(hint),
        };
        self.reply(asked, answer);
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
