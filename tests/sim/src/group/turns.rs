//! When engines are polled, and where they are stopped.

use super::rows::Row;
use super::{Engine, Group, Token};
use crate::hook::Verb;

impl Group {
    /// Sees to it that an engine is polled at this time, and not at any that was planned before.
    pub(crate) fn wake_engine(&self, slot: usize, engine: Engine, at_ns: u64) {
        let mut turns = self.slots[slot].turns.get();
        turns[engine as usize] += 1;
        let turn = turns[engine as usize];
        self.slots[slot].turns.set(turns);
        self.world.wake_at(
            at_ns,
            Token::Poll {
                slot: slot as u8,
                engine,
                turn,
            }
            .into(),
        );
    }

    /// One poll of an engine, and its next one.
    pub(crate) fn poll(&self, slot: usize, engine: Engine, turn: u32) {
        let place = &self.slots[slot];
        let Some(process) = self.process(slot) else {
            return;
        };
        if place.turns.get()[engine as usize] != turn {
            return;
        }
        let hung_ns = place.cpu.get().hung_until_ns[engine as usize];
        if hung_ns > self.world.now_ns() {
            // For ever, or for a while.
            if hung_ns != u64::MAX {
                self.wake_engine(slot, engine, hung_ns);
            }
            return;
        }
        self.core.borrow_mut().running.push((slot, engine));
        let worked = match engine {
            Engine::Replication => self.poll_replication(slot, &process),
            Engine::Background => self.poll_background(slot, &process),
        };
        self.core.borrow_mut().running.pop();
        if process.dying.get() && !process.dead.get() {
            self.kill(slot);
        }
        if process.dead.get() {
            return;
        }
        let pace = place.cpu.get().pace_ns;
        let wait = {
            let rng = &mut self.core.borrow_mut().rng;
            // Whoever polls an engine may do so sooner than it asks for.
            let soon = worked || engine == Engine::Background && rng.one_in(2);
            let usual = if soon { pace / 4 } else { pace };
            if rng.one_in(200) {
                rng.range(pace, 10 * pace)
            } else {
                usual / 2 + rng.below(usual + 1)
            }
        };
        self.wake_engine(slot, engine, self.world.now_ns() + wait.max(50));
    }

    /// Before (or just after) a verb of whichever engine is running: the place where it can be stopped.
    pub(crate) fn before_verb(&self, device: u64, verb: Verb) {
        self.look_at_placements();
        let Some((slot, engine)) = self.core.borrow().running.last().copied() else {
            return;
        };
        let place = &self.slots[slot];
        let Some(process) = self
            .process(slot)
            .filter(|process| process.ctx.id() == device)
        else {
            return;
        };
        let mut cpu = place.cpu.get();
        let Some(stop) = cpu.stop.as_mut().filter(|stop| stop.engine == engine) else {
            return;
        };
        let change = matches!(verb, Verb::Modify | Verb::Register | Verb::Changed);
        if stop.at_change && !change {
            return;
        }
        // Polling is most of what is called, and seldom where anything can go wrong: it counts for less.
        if verb == Verb::Poll && !self.core.borrow_mut().rng.one_in(8) {
            return;
        }
        if stop.verbs > 0 {
            stop.verbs -= 1;
            return place.cpu.set(cpu);
        }
        let stop = cpu.stop.take().expect("found above");
        place.cpu.set(cpu);
        self.world.note(stop.verbs.into(), || {
            format!("replica {slot} stops before {verb:?}: {stop:?}")
        });
        self.hit(Row::of_stop(verb, stop.pause_ns.is_none()));
        match stop.pause_ns {
            None => {
                self.world.freeze(&process.ctx);
                process.dying.set(true);
            }
            Some(pause_ns) => {
                self.run_until(self.world.now_ns() + pause_ns);
                if self.is_deposed(slot, &process) {
                    self.hit(Row::WokeDeposed);
                }
            }
        }
    }
}
