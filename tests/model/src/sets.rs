//! The configurations that are run, smallest bounds at which each module still matters.

use crate::bugs::Bug;
use crate::config::{Applying, Config};

/// Elections and entries only. One replica has to be able to lose and to regain the leadership: with one attempt each,
/// several of the seeded bugs stay invisible.
pub const BASE: Config = Config {
    any_epoch: true,
    torn: true,
    push: true,
    ..Config::base("base", [2, 0, 2], 3)
};

/// Three candidates; late granters join.
pub const GROWTH: Config = Config {
    growth: true,
    torn: true,
    ..Config::base("growth", [1, 1, 1], 3)
};

/// Connections that end and come back.
pub const CONNECTIONS: Config = Config {
    growth: true,
    reconnect: true,
    torn: true,
    push: true,
    ..Config::base("connections", [2, 1, 0], 3)
};

/// A ring of two under a log of four.
pub const RECYCLING: Config = Config {
    ring: 2,
    growth: true,
    applying: Applying::FollowersLag,
    ..Config::base("recycling", [2, 1, 0], 4)
};

/// A crash, and the way back to a vote.
pub const RESTART: Config = Config {
    crashes: 1,
    restart: true,
    ..Config::base("restart", [1, 1, 0], 4)
};

/// A replica that was lapped or left behind, or has a damaged entry, catches up; another one crashes.
pub const CATCHING_UP: Config = Config {
    ring: 2,
    growth: true,
    applying: Applying::FollowersLag,
    crashes: 1,
    catch_up: true,
    damage: true,
    ..Config::base("catching up", [1, 1, 0], 4)
};

/// The modules together.
pub const TOGETHER: Config = Config {
    ring: 2,
    growth: true,
    applying: Applying::FollowersLag,
    crashes: 1,
    restart: true,
    catch_up: true,
    ..Config::base("together", [1, 1, 0], 4)
};

/// For every push.
pub const CI: &[Config] = &[
    BASE,
    GROWTH,
    CONNECTIONS,
    RECYCLING,
    RESTART,
    CATCHING_UP,
    TOGETHER,
];

/// For once a week.
pub const DEEP: &[Config] = &[
    Config {
        any_epoch: true,
        growth: true,
        torn: true,
        ..Config::base("three candidates, one regains", [2, 1, 1], 3)
    },
    Config {
        torn: true,
        ..Config::base("both regain", [2, 2, 0], 4)
    },
    Config {
        applying: Applying::AllLag,
        ..RECYCLING.named("recycling, the leader lags too", 5)
    },
    Config {
        reconnect: true,
        ..RECYCLING.named("recycling over lost connections", 4)
    },
    Config {
        crashes: 2,
        ..RESTART.named("two crashes", 3)
    },
    Config {
        attempts: [1, 1, 1],
        ..RESTART.named("restart, three candidates", 3)
    },
    TOGETHER.named("together, five entries", 5),
    Config {
        attempts: [2, 1, 0],
        ..RESTART.named("restart, a leader regains", 4)
    },
    Config {
        push: true,
        ..CATCHING_UP.named("catching up, the commit index told", 4)
    },
];

/// Where each seeded bug is looked for.
pub const fn control(bug: Bug) -> Config {
    let config = match bug {
        Bug::AmnesiacVotes | Bug::CountLearner => Config {
            growth: true,
            ..RESTART
        },
        Bug::AdmitAnyLife => Config {
            attempts: [1, 0, 0],
            crashes: 2,
            ..RESTART.named("restart twice", 5)
        },
        Bug::ClearsAll => CATCHING_UP,
        Bug::OverwriteUnapplied | Bug::IgnoreLapped | Bug::IgnoreIndex => RECYCLING,
        _ => Config::base("plain", [2, 0, 2], 3),
    };
    Config {
        bug: Some(bug),
        ..config
    }
}

impl Config {
    /// The same under another name and with another highest index.
    const fn named(self, name: &'static str, entries: u8) -> Self {
        let ring = if self.ring < self.entries {
            self.ring
        } else {
            entries
        };
        Self {
            name,
            entries,
            ring,
            ..self
        }
    }
}
