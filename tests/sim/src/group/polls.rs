//! Polls of a replica's engines: what goes in, and what comes out.

use std::rc::Rc;

use mu_history::KvOutput;
use mu_protocol::ids::{Epoch, ReplicaId};
use mu_protocol::layout::{Role, Standing, header};
use mu_protocol::replication::{Event, Outcome, ReadOutcome, Refused, Stopped};

use super::Group;
use super::app::decode_output;
use super::channel::Control;
use super::clients::{Answer, Asked, Reply};
use super::oracle::position_after;
use super::plan::Theme;
use super::replica::{Process, Rep, end_of};
use super::rows::Row;

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
        process.progressed();
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
        process.progressed();
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
        let beat = process.heartbeat();
        let pace = bg.poll(now_ns);
        if process.dying.get() || process.dead.get() {
            return false;
        }
        self.pulse_rule(slot, process, now_ns, beat);
        self.rights_rule(slot, process);
        while let Some((peer, message)) = bg.control_out() {
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
        if before.role == Role::Leader && standing.role == Role::Follower {
            self.gave_up(slot, process, rep);
        }
        if standing.role == Role::Candidate {
            process.end_before.set(end_of(rep).index);
        }
        if standing.role == Role::Leader {
            self.core
                .borrow_mut()
                .oracle
                .leads(id, rep.incarnation(), epoch);
            process.leads.set(Some(epoch));
            self.leader_rules(slot, process, rep, epoch);
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

    /// A leader stepped down by itself: it has to have lost its majority, or been overtaken.
    fn gave_up(&self, slot: usize, process: &Process, rep: &Rep) {
        let Some(epoch) = process.leads.get() else {
            return;
        };
        // Told so by its background engine, overtaken, or with an entry that a flipped bit damaged.
        let overtaken = process.shared.promised() != epoch
            || process.shared.candidate() != epoch
            || self.core.borrow().oracle.excused > 0
            || self
                .reachable()
                .any(|(_, other)| other.log.header(header::MIN_PROPOSAL) > epoch.0);
        // Of one that came back the leader may not know yet that it has a vote.
        let has_vote = |id: ReplicaId| {
            let founder = self.slots[id.index()].lives.get() == 1;
            let process = self.process(id.index()).filter(|_| founder);
            process.is_some_and(|process| process.standing.get().voter)
        };
        let with_it = rep.followers().filter(|(id, _)| has_vote(*id)).count() + 1;
        if !overtaken && with_it >= self.members.quorum() {
            self.fail(format!(
                "I24: replica {slot} gives the leadership of {epoch} up, though {with_it} voters follow it"
            ));
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
