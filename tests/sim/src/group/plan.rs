//! What is done to a group: a few themes a run, drawn from the seed, each of which strikes again and again until the
//! safety phase is over. Few at a time, since faults that all strike at once hide each other.

use mu_protocol::zoo::Bug;

use super::faults::Act;
use super::{Core, Group, Token};
use crate::profile::Profile;
use crate::rng::Rng;

/// A kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Theme {
    Kill,
    Pause,
    Hang,
    Starve,
    Zombie,
    Nic,
    CutLeader,
    Split,
    OneWay,
    Mesh,
    Flap,
    Clog,
    Control,
    Device,
    LogLink,
    BoardLink,
    Slow,
    Clock,
    Panic,
    Handover,
    Burst,
    /// Those below go alone: with others, what is at risk is more than the group promises to bear.
    Bits,
    Deviate,
    Majority,
    Power,
}

use Theme::*;

/// Those that go together, the frequent ones more often.
const TOGETHER: &[Theme] = &[
    Kill, Kill, Kill, Pause, Pause, Pause, Hang, Hang, Starve, Zombie, Nic, CutLeader, CutLeader,
    Split, OneWay, Mesh, Flap, Clog, Control, Device, Device, LogLink, BoardLink, Slow, Slow,
    Clock, Panic, Handover, Burst,
];
const ALONE: &[Theme] = &[Bits, Deviate, Majority, Power];
/// One run in so many has a theme that goes alone; and one in so many has no trouble at all.
const ALONE_ONE_IN: u64 = 12;
const QUIET_ONE_IN: u64 = 25;

/// What a seeded defect needs to show, and a run like all others seldom has.
#[derive(Clone, Copy)]
pub(crate) struct Aim {
    themes: &'static [Theme],
    /// The device, made of the one that was drawn.
    pub(crate) device: fn(Profile) -> Profile,
    /// Commands are all of one size, so that entries of two leaders end at the same place.
    pub(crate) one_size: bool,
}

impl Aim {
    const ANY: Self = Self {
        themes: &[],
        device: |drawn| drawn,
        one_size: false,
    };

    /// At `bug`, if it needs anything.
    pub(crate) fn at(bug: Bug) -> Option<Self> {
        Some(match bug {
            Bug::SkipSelfFence => Self {
                themes: &[Pause, OneWay, Flap],
                ..Self::ANY
            },
            Bug::StaleRequests => Self {
                themes: &[Clog, CutLeader, Pause],
                device: Profile::sluggish,
                ..Self::ANY
            },
            Bug::IgnoreChain => Self {
                themes: &[CutLeader, Device, Burst],
                one_size: true,
                ..Self::ANY
            },
            Bug::ReconnectInUse => Self {
                themes: &[Nic, Hang, Hang],
                device: Profile::synchronous,
                ..Self::ANY
            },
            Bug::ReuseUnsent => Self {
                themes: &[OneWay, Slow, Burst],
                device: Profile::sluggish_and_gathering,
                ..Self::ANY
            },
            Bug::ForgetTheOthers => Self {
                themes: &[Kill, CutLeader, Slow],
                device: Profile::said_to_run,
                ..Self::ANY
            },
            _ => return None,
        })
    }
}

/// The plan of a run.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) themes: Vec<Theme>,
    acts: Vec<Option<Act>>,
    /// Nothing new is done after this.
    pub(crate) until_ns: u64,
}

impl Plan {
    /// Themes for one run.
    pub(crate) fn draw(rng: &mut Rng, replicas: usize, until_ns: u64, aim: Option<Aim>) -> Self {
        let mut themes = Vec::new();
        if let Some(aim) = aim {
            themes.extend(aim.themes);
        } else if rng.one_in(ALONE_ONE_IN) && replicas >= 3 {
            themes.push(*rng.pick(ALONE));
        } else if !rng.one_in(QUIET_ONE_IN) {
            for _ in 0..rng.range(1, 4) {
                let theme = *rng.pick(TOGETHER);
                if !themes.contains(&theme) {
                    themes.push(theme);
                }
            }
        }
        Self {
            themes,
            acts: Vec::new(),
            until_ns,
        }
    }
}

impl Group {
    /// Does something at a time.
    pub(crate) fn schedule(&self, at_ns: u64, act: Act) {
        let plan = &mut self.core.borrow_mut().plan;
        let n = plan.acts.len() as u32;
        plan.acts.push(Some(act));
        self.world.wake_at(at_ns, Token::Plan(n).into());
    }

    /// Every theme strikes for the first time some time after the start.
    pub(crate) fn begin_plan(&self) {
        let themes = self.core.borrow().plan.themes.clone();
        for theme in themes {
            let first = self.period(theme) / 2;
            self.schedule(self.world.now_ns() + first, Act::Strike(theme));
        }
    }

    /// Time until a theme strikes again.
    fn period(&self, theme: Theme) -> u64 {
        let detect = self.settings.detect_ns;
        let (low, high) = match theme {
            Kill | Zombie | Nic | Panic | Deviate | Bits => (4 * detect, 20 * detect),
            Majority | Power => (8 * detect, 16 * detect),
            Flap | LogLink | BoardLink | Control => (detect / 4, 4 * detect),
            Pause | Hang | Starve | CutLeader | Split | OneWay | Mesh | Clog | Device | Slow
            | Clock | Handover | Burst => (detect, 12 * detect),
        };
        self.core.borrow_mut().rng.spread(low, high)
    }

    pub(crate) fn plan_goes_on(&self, n: u32) {
        let act = self.core.borrow_mut().plan.acts[n as usize].take();
        let Some(act) = act else { return };
        self.world.note(n.into(), || format!("plan: {act:?}"));
        let now = self.world.now_ns();
        let over = now > self.core.borrow().plan.until_ns;
        match act {
            Act::Strike(_) if over => {}
            Act::Strike(theme) => {
                self.strike(theme);
                self.schedule(now + self.period(theme), Act::Strike(theme));
            }
            other => self.act(other),
        }
    }

    /// No planned act is done any more.
    pub(crate) fn end_plan(&self) {
        let Core { plan, .. } = &mut *self.core.borrow_mut();
        plan.acts.iter_mut().for_each(|act| *act = None);
    }
}
