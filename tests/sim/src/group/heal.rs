//! The healed phase: trouble ends, but for a minority that stays as it is or gets worse.

use mu_protocol::entry::{Kind, admitted};
use mu_protocol::layout::Role;
use mu_protocol::log::{look, take};
use mu_protocol::zoo::Sound;

use super::Group;
use super::faults::Act;
use crate::faults::{Nic, Rates};
use crate::world::NodeId;

impl Group {
    /// Ends all trouble but that of a minority that stays as it is, or gets worse. Whether the group can go on.
    pub(crate) fn heal(&self) -> bool {
        self.end_plan();
        self.world.calm();
        let n = self.slots.len();
        for a in 0..n {
            self.world.set_rates(NodeId(a), Rates::NONE);
            if self.world.nic(NodeId(a)) != Nic::Up {
                self.world.set_nic(NodeId(a), Nic::Up);
            }
            self.world.set_clock_rate(NodeId(a), 1_000_000);
            for b in (0..n).filter(|b| *b != a) {
                self.world.cut(NodeId(a), NodeId(b), false);
                self.world.clog(NodeId(a), NodeId(b), 0, 0);
            }
            let mut cpu = self.slots[a].cpu.get();
            cpu.stop = None;
            cpu.hung_until_ns = [0; 2];
            cpu.pace_ns = cpu.pace_ns.min(4_000);
            self.slots[a].cpu.set(cpu);
            self.wake_engines(a);
        }
        (0..n)
            .filter_map(|slot| self.process(slot))
            .for_each(|process| process.behave());
        let voters = self.voters();
        let quorum = self.members.quorum();
        let spare = voters.saturating_sub(quorum);
        let first = self.core.borrow_mut().rng.below(n as u64) as usize;
        let mut left = self.core.borrow_mut().rng.below(spare as u64 + 1);
        if self.core.borrow().oracle.excused > 0 {
            // The one whose bit flipped is in trouble already, whether it knows or not.
            left = 0;
        }
        for slot in (0..n).map(|k| (first + k) % n) {
            let Some(process) = self.process(slot) else {
                if self.core.borrow_mut().rng.one_in(4) {
                    continue;
                }
                self.act(Act::Restart(slot));
                continue;
            };
            if left > 0 && process.standing.get().voter && !process.misbehaves.get() {
                left -= 1;
                self.leave_in_trouble(slot);
            }
        }
        voters >= quorum
    }

    /// Whether a majority still has its memory. One whose CPU is dead cannot answer, and its memory can. One whose
    /// admission is decided may not have applied it yet. One that deviates remembers like the others: if it leads and
    /// gives a snapshot, a majority deviates, and the one that does not halts.
    pub(crate) fn remembers(&self) -> bool {
        let zombies = self
            .slots
            .iter()
            .filter_map(|slot| slot.zombie.borrow().clone());
        let running = self.running().into_iter().map(|(_, process)| process);
        let alive = running.filter(|process| !process.dying.get());
        let with_vote = alive
            .chain(zombies)
            .filter(|process| process.standing.get().voter)
            .count();
        let admitted = self.running().into_iter().filter(|(slot, process)| {
            let (id, life) = (self.slots[*slot].id, process.incarnation.get());
            process.standing.get().role == Role::Learner
                && self.core.borrow().oracle.is_voter(id, life)
        });
        with_vote + admitted.count() >= self.members.quorum()
    }

    /// Whether the admission of a learner that runs stands in a log and is not decided, as far as anybody has said. A
    /// leader that wakes up may find that a majority had it, of which one has died since; then that learner counts.
    pub(crate) fn admission_is_open(&self) -> bool {
        let learners: Vec<_> = self
            .running()
            .into_iter()
            .filter(|(_, process)| process.standing.get().role == Role::Learner)
            .map(|(slot, process)| (self.slots[slot].id, process.incarnation.get()))
            .collect();
        let max = self.settings.max_entry_bytes();
        self.running().into_iter().any(|(_, process)| {
            let (mut point, mut payload) = (process.applied.get(), Vec::new());
            while let Some(header) = look(&process.log, point, max, Sound) {
                let whole = take(&process.log, point.at, &header, &mut payload, Sound);
                let of = (whole && header.kind == Kind::Admit).then(|| admitted(&payload));
                if of.flatten().is_some_and(|of| learners.contains(&of)) {
                    return true;
                }
                point = point.after(&header);
            }
            false
        })
    }

    /// One of the minority that need not be healthy.
    fn leave_in_trouble(&self, slot: usize) {
        let trouble = self.core.borrow_mut().rng.below(5);
        self.world.note(trouble, || {
            format!("replica {slot} stays in trouble: {trouble}")
        });
        match trouble {
            0 => self.kill(slot),
            1 => self.make_zombie(slot),
            2 => {
                for other in (0..self.slots.len()).filter(|other| *other != slot) {
                    self.world.cut(NodeId(slot), NodeId(other), true);
                    self.world.cut(NodeId(other), NodeId(slot), true);
                }
            }
            engine => {
                let mut cpu = self.slots[slot].cpu.get();
                cpu.hung_until_ns[engine as usize - 3] = u64::MAX;
                self.slots[slot].cpu.set(cpu);
            }
        }
    }

    /// Replicas that are healthy now.
    fn healthy(&self, slot: usize) -> bool {
        let n = self.slots.len();
        let hung = self.slots[slot].cpu.get().hung_until_ns.contains(&u64::MAX);
        let alone = n > 1
            && (0..n)
                .filter(|other| *other != slot)
                .all(|b| !self.world.reaches(NodeId(slot), NodeId(b)));
        let stopped = self
            .process(slot)
            .is_some_and(|p| p.standing.get().role == Role::Stopped);
        self.is_running(slot) && !hung && !alone && !stopped
    }

    /// Whether all healthy replicas have a vote and have applied all there is.
    pub(crate) fn is_level(&self) -> bool {
        let core = self.core.borrow();
        let last = core.oracle.last();
        let idle = core.clients.is_idle();
        drop(core);
        idle && (0..self.slots.len())
            .filter(|slot| self.healthy(*slot))
            .all(|slot| {
                let process = self.process(slot).expect("a healthy one runs");
                process.applied.get().index == last && process.standing.get().voter
            })
    }
}
