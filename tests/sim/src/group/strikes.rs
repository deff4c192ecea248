//! How each kind of trouble strikes.

use mu_protocol::log::Source;

use super::app::Misbehaviour;
use super::faults::{Act, LONG, Who};
use super::plan::Theme;
use super::rows::Row;
use super::{Engine, Group};
use crate::faults::{Nic, Rates};
use crate::world::NodeId;

/// Protection domains of a replica, in the order in which they are made.
const LOG_DOMAIN: u32 = 0;
const BOARD_DOMAIN: u32 = 1;
/// Detection times that a process is paused at most.
const LONGEST_PAUSE: u64 = 100;
/// Clients at most, brief ones included.
const MAX_CLIENTS: usize = 200;

impl Group {
    pub(crate) fn strike(&self, theme: Theme) {
        match theme {
            Theme::Kill => self.strike_kill(),
            Theme::Pause => {
                let Some(slot) = self.victim() else { return };
                let leads = Some(slot) == self.leader();
                self.hit(if leads {
                    Row::LeaderPaused
                } else {
                    Row::FollowerPaused
                });
                let pause = self.pause_of(LONGEST_PAUSE);
                if pause > LONG * self.settings.detect_ns {
                    self.hit(Row::PausedLong);
                }
                self.stop(slot, Some(pause));
            }
            Theme::Hang => self.strike_hang(),
            Theme::Starve => self.strike_starve(100, Row::Starved),
            Theme::Slow => self.strike_starve(400, Row::Starved),
            Theme::Zombie => {
                let Some(slot) = self.victim().filter(|slot| self.can_lose(*slot)) else {
                    return;
                };
                self.hit(Row::Zombie);
                self.make_zombie(slot);
                self.back_later(slot);
            }
            Theme::Nic => {
                let Some(slot) = self.victim() else { return };
                self.hit(Row::NicDied);
                let nic = self.rng(|rng| *rng.pick(&[Nic::PortDown, Nic::Dead]));
                self.world.set_nic(NodeId(slot), nic);
                self.schedule(self.world.now_ns() + self.pause_ns(), Act::NicUp(slot));
            }
            Theme::CutLeader | Theme::Split | Theme::OneWay | Theme::Mesh | Theme::Flap => {
                self.strike_links(theme)
            }
            Theme::Clog => {
                self.hit(Row::Clogged);
                let (from, to) = self.pair();
                let (extra, time) = (self.pause_ns(), self.pause_ns());
                self.world.clog(NodeId(from), NodeId(to), extra, time);
            }
            Theme::Control => {
                self.hit(Row::ControlLost);
                let (a, b) = self.pair();
                self.break_line(a, b);
            }
            Theme::Device => self.strike_device(),
            Theme::LogLink | Theme::BoardLink => {
                let (domain, row) = match theme {
                    Theme::LogLink => (LOG_DOMAIN, Row::LogLinkBroken),
                    _ => (BOARD_DOMAIN, Row::BoardLinkBroken),
                };
                let Some(slot) = self.victim() else { return };
                self.hit(row);
                for n in 0..self.rng(|rng| rng.range(1, 6)) {
                    let gap = self.settings.detect_ns / 3;
                    self.schedule(self.world.now_ns() + n * gap, Act::Break(slot, domain));
                }
            }
            Theme::Clock => self.strike_clock(),
            Theme::Panic => self.misbehave(true),
            Theme::Deviate => self.misbehave(false),
            Theme::Handover => {
                if let Some(process) = self.leader().and_then(|slot| self.process(slot)) {
                    process.hand_over.set(true);
                }
            }
            Theme::Burst => self.burst(),
            Theme::Bits => self.strike_bits(),
            Theme::Majority | Theme::Power => self.strike_group(theme),
        }
    }

    fn strike_kill(&self) {
        let Some(slot) = self.victim().filter(|slot| self.can_lose(*slot)) else {
            return;
        };
        self.hit(self.role_row(slot));
        // Mostly between two verbs, sometimes between two polls.
        if self.rng(|rng| rng.one_in(5)) {
            self.kill(slot);
        } else {
            self.stop(slot, None);
        }
        self.back_later(slot);
    }

    fn strike_hang(&self) {
        let Some(slot) = self.victim() else { return };
        let engine = self.rng(|rng| *rng.pick(&Engine::BOTH));
        self.hit(match engine {
            Engine::Replication => Row::ReplicationHung,
            Engine::Background => Row::BackgroundHung,
        });
        let mut cpu = self.slots[slot].cpu.get();
        cpu.hung_until_ns[engine as usize] = self.world.now_ns() + self.pause_ns();
        self.slots[slot].cpu.set(cpu);
    }

    fn strike_starve(&self, factor: u64, row: Row) {
        let Some(slot) = self.choose(Who::Follower).or_else(|| self.victim()) else {
            return;
        };
        self.hit(row);
        let mut cpu = self.slots[slot].cpu.get();
        let usual = cpu.pace_ns;
        cpu.pace_ns = (usual * factor).min(20 * self.settings.detect_ns);
        self.slots[slot].cpu.set(cpu);
        self.schedule(
            self.world.now_ns() + 2 * self.pause_ns(),
            Act::Pace(slot, usual),
        );
    }

    /// Two different replicas; both the same in a group of one.
    fn pair(&self) -> (usize, usize) {
        let n = self.slots.len() as u64;
        self.rng(|rng| {
            let a = rng.below(n);
            let b = (a + 1 + rng.below(n.saturating_sub(1))) % n;
            (a as usize, b as usize)
        })
    }

    fn strike_links(&self, theme: Theme) {
        let n = self.slots.len();
        let both = |a: usize, b: usize| [(a, b), (b, a)];
        let cuts: Vec<(usize, usize)> = match theme {
            Theme::CutLeader => {
                let Some(leader) = self.leader().or_else(|| self.victim()) else {
                    return;
                };
                self.hit(Row::LeaderCutOff);
                (0..n)
                    .filter(|other| *other != leader)
                    .flat_map(|other| both(leader, other))
                    .collect()
            }
            Theme::Split => {
                self.hit(Row::Split);
                let side: Vec<bool> = (0..n).map(|_| self.rng(|rng| rng.one_in(2))).collect();
                let pairs = (0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b)));
                pairs
                    .filter(|(a, b)| side[*a] != side[*b])
                    .flat_map(|(a, b)| both(a, b))
                    .collect()
            }
            Theme::OneWay => {
                self.hit(Row::OneWay);
                let (a, b) = self.pair();
                // One direction between two, or everything out of, or into, one of them.
                match self.rng(|rng| rng.below(3)) {
                    0 => vec![(a, b)],
                    1 => (0..n)
                        .filter(|other| *other != a)
                        .map(|other| (a, other))
                        .collect(),
                    _ => (0..n)
                        .filter(|other| *other != a)
                        .map(|other| (other, a))
                        .collect(),
                }
            }
            Theme::Mesh => {
                self.hit(Row::Mesh);
                // A ring of replicas in which only neighbours reach each other; of three, one link is missing.
                if n <= 3 {
                    let (a, b) = self.pair();
                    both(a, b).to_vec()
                } else {
                    let pairs = (0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b)));
                    let far = pairs.filter(|(a, b)| b - a != 1 && b - a != n - 1);
                    far.flat_map(|(a, b)| both(a, b)).collect()
                }
            }
            _ => {
                self.hit(Row::Flapping);
                let (a, b) = self.pair();
                both(a, b).to_vec()
            }
        };
        let cuts: Vec<_> = cuts.into_iter().filter(|(a, b)| a != b).collect();
        let time = match theme {
            Theme::Flap => self.pause_ns() / 16,
            _ => self.pause_ns(),
        };
        self.act(Act::Cut(cuts.clone(), true));
        self.schedule(self.world.now_ns() + time, Act::Cut(cuts, false));
    }

    /// A device goes wrong by itself for a while, in one way or in many.
    fn strike_device(&self) {
        let Some(slot) = self.victim() else { return };
        let rates = self.rng(|rng| {
            let mut rate = |most: u64| {
                if rng.one_in(3) {
                    rng.below(most) as u32
                } else {
                    0
                }
            };
            Rates {
                completion_lost: rate(30_000),
                completion_late: rate(30_000),
                completion_twice: rate(100_000),
                completion_lies: rate(30_000),
                qp_breaks: rate(20_000),
                flags_fail: rate(800_000),
                flags_break_qp: rate(500_000),
                modify_fails: rate(300_000),
                modify_slow: rate(300_000),
                reregister_fails: rate(500_000),
                deregister_fails: 0,
            }
        });
        self.world.set_rates(NodeId(slot), rates);
        self.schedule(self.world.now_ns() + 2 * self.pause_ns(), Act::Fix(slot));
    }

    fn strike_clock(&self) {
        let Some(slot) = self.victim() else { return };
        self.hit(Row::ClockWrong);
        let node = NodeId(slot);
        match self.rng(|rng| rng.below(3)) {
            0 => self.world.jump_clock(node, 4 * self.pause_ns()),
            1 => {
                let rate = self.rng(|rng| *rng.pick(&[500_000, 2_000_000]));
                self.world.set_clock_rate(node, rate);
            }
            _ => self.world.set_clock_rate(node, 0),
        }
        self.schedule(self.world.now_ns() + self.pause_ns(), Act::ClockRight(slot));
    }

    /// One replica's application panics at an entry to come, or deviates from it on.
    fn misbehave(&self, panics: bool) {
        let Some(slot) = self.victim() else { return };
        if panics && !self.can_lose(slot) {
            return;
        }
        let Some(process) = self.process(slot) else {
            return;
        };
        let index = process.applied.get().index + self.rng(|rng| rng.range(1, 20));
        if panics {
            process.misbehave(Misbehaviour::PanicsAt(index));
            self.back_later(slot);
        } else if !self
            .running()
            .iter()
            .any(|(_, process)| process.misbehaves.get())
        {
            process.misbehaves.set(true);
            process.misbehave(Misbehaviour::DeviatesAt(index));
        }
    }

    /// Many clients with one operation each.
    fn burst(&self) {
        let room = MAX_CLIENTS.saturating_sub(self.core.borrow().clients.all.len());
        let first = self.core.borrow().clients.all.len();
        let more = self.rng(|rng| rng.range(10, 60) as usize).min(room);
        let target = self.leader().unwrap_or(0);
        for at in first..first + more {
            self.core.borrow_mut().clients.add_brief(target);
            let soon = self.rng(|rng| rng.below(2_000));
            self.wake_client(at, Some(self.world.now_ns() + soon));
        }
    }

    /// A bit of the log of one replica flips, once a run and where a majority of others has the same: what is at risk
    /// otherwise is more than a minority. A replica cannot tell a flipped bit from a write that was cut short.
    fn strike_bits(&self) {
        if self.core.borrow().rows.of(Row::BitFlipped) > 0 {
            return;
        }
        let Some(slot) = self.victim() else { return };
        let Some(process) = self.process(slot) else {
            return;
        };
        // Mostly where something is about to be read.
        let ring = process.log.ring();
        let near = process.applied.get().at;
        let at = self.rng(|rng| {
            if rng.one_in(4) {
                rng.below(ring)
            } else {
                near + rng.below(512)
            }
        });
        let (byte, bit) = (process.log.offset(at), self.rng(|rng| rng.below(8) as u32));
        let word = process.log.load(at & !7);
        let others = self
            .running()
            .into_iter()
            .filter(|(other, _)| *other != slot);
        let same = others
            .filter(|(_, other)| other.log.load(at & !7) == word)
            .count();
        if same < self.members.quorum() {
            return;
        }
        self.hit(Row::BitFlipped);
        self.core.borrow_mut().oracle.excused += 1;
        self.world.flip_bit(process.log.memory(), byte, bit);
    }

    /// More than a minority loses its memory, at once or nearly.
    fn strike_group(&self, theme: Theme) {
        let n = self.slots.len();
        let lost = match theme {
            Theme::Power => n,
            _ => n - self.members.quorum() + 1,
        };
        self.hit(if theme == Theme::Power {
            Row::PowerLost
        } else {
            Row::MajorityLost
        });
        let first = self.rng(|rng| rng.below(n as u64) as usize);
        for slot in (0..n).map(|k| (first + k) % n).take(lost) {
            self.kill(slot);
            self.back_later(slot);
        }
    }
}
