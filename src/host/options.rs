//! How a replica is hosted: settings of its engines and of its threads, from code or from a [`Config`].

use std::io;

use mu_protocol::ids::{Members, ReplicaId};
use mu_protocol::settings::{Checksum, Settings};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::error::StartError;
use super::pace::{Policy, is_scarce};
use crate::config::{self, Backend, Config, Poll};

/// How one thread waits, and where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadOptions {
    /// How it waits.
    pub policy: Policy,
    /// Its processor; not pinned if `None`.
    pub cpu: Option<u16>,
}

/// How one replica is hosted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The name of the cluster, for metrics.
    pub cluster: String,
    /// Settings of the engines.
    pub settings: Settings,
    /// The thread that replicates. In direct mode that is the caller's, and only its policy counts.
    pub replication: ThreadOptions,
    /// The thread that keeps connections, heartbeats and permissions.
    pub background: ThreadOptions,
}

/// Each replica has two threads that poll.
const THREADS_PER_REPLICA: usize = 2;

impl Options {
    /// Adaptive threads for a group of which all replicas run on this machine.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let threads = settings.members.len() * THREADS_PER_REPLICA;
        let thread = ThreadOptions {
            policy: Policy::named(Poll::Adaptive, threads),
            cpu: None,
        };
        Self {
            cluster: "mu".into(),
            settings,
            replication: thread,
            background: thread,
        }
    }

    /// What a configuration says of member `id`. `form`: it founds the group, with empty memory.
    ///
    /// # Errors
    /// No member has this id, or the engines cannot take a setting.
    pub fn from_config(config: &Config, id: u8, form: bool) -> Result<Self, StartError> {
        let member = config.member(id)?;
        // On one host all replicas share the processors.
        let replicas = match config.backend() {
            Backend::Inproc | Backend::Shm => config.members().len(),
            Backend::Nic => 1,
        };
        let threads = replicas * THREADS_PER_REPLICA;
        let settings = settings(config, id, form, is_scarce(threads));
        settings.check()?;
        may_run_on("replication_cpu", member.replication_cpu)?;
        may_run_on("background_cpu", member.background_cpu)?;
        let thread = |poll, cpu| ThreadOptions {
            policy: Policy::named(poll, threads),
            cpu,
        };
        Ok(Self {
            cluster: config.cluster().into(),
            settings,
            replication: thread(config.replication_poll(), member.replication_cpu),
            background: thread(config.background_poll(), member.background_cpu),
        })
    }
}

/// Heartbeat and detection where threads take turns: a heartbeat costs each replica a turn, and a thread that waits for
/// one is late by a few time slices without anything being wrong; where they are a guest's, the host takes one of them
/// away for as long (11 ms was seen). A process that dies is found without them.
const SCARCE_TIMES_US: (u64, u64) = (100, 20_000);

/// The engines' settings for a configuration: the one place where the two meet. `scarce`: there are fewer processors
/// than threads.
fn settings(config: &Config, id: u8, form: bool, scarce: bool) -> Settings {
    let ns = |us: u64| us.saturating_mul(1_000);
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let replica = |id| ReplicaId::new(id).expect("the configuration checked it");
    let members: Members = config.members().iter().map(|m| replica(m.id)).collect();
    let base = Settings::new(replica(id), members);
    let (heartbeat_us, detect_us) = match scarce && config.has_default_times() {
        true => SCARCE_TIMES_US,
        false => (config.heartbeat_us(), config.detect_us()),
    };
    let detect_ns = ns(detect_us);
    let completion_timeout_ns = ns(config.completion_timeout_us());
    Settings {
        ring_bytes: size(config.log_bytes()),
        max_command_bytes: size(config.max_command_bytes()),
        sessions: size(config.sessions()),
        window: size(config.window()),
        checksum: match config.checksum() {
            config::Checksum::Auto => Checksum::Auto,
            config::Checksum::Always => Checksum::Always,
        },
        heartbeat_ns: ns(heartbeat_us),
        detect_ns,
        // A replica whose engine stands still must not look alive for much longer than a dead one.
        stuck_ns: base.stuck_ns.max(detect_ns),
        completion_timeout_ns,
        step_down_ns: 2 * completion_timeout_ns,
        election_ns: base.election_ns.max(detect_ns),
        idle_flush_ns: ns(config.idle_flush_us()),
        cut_off_ns: ns(config.cut_off_us()),
        digest_interval: match config.digest_interval() {
            0 => u64::MAX / 4,
            entries => entries,
        },
        max_snapshot_bytes: size(config.snapshot_max_bytes()),
        form,
        ..base
    }
}

/// Whether a thread of this process may run on the processor that a key names. The caller may be pinned itself, so a
/// thread tries it.
fn may_run_on(key: &str, cpu: Option<u16>) -> Result<(), StartError> {
    let Some(number) = cpu else { return Ok(()) };
    let tried = std::thread::Builder::new().spawn(move || pin(cpu));
    let tried = tried.map_err(|source| StartError::System {
        what: format!("a thread that tries {key}"),
        source,
    })?;
    match tried
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    {
        Err(StartError::System { source, .. }) => Err(StartError::System {
            what: format!("{key} = {number}: expected a processor that this process may use"),
            source,
        }),
        other => other,
    }
}

/// Keeps the calling thread on a processor, if one is named.
///
/// # Errors
/// There is no such processor, or this process may not use it.
pub fn pin(cpu: Option<u16>) -> Result<(), StartError> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = CpuSet::new();
    let pinned = set
        .set(cpu.into())
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    pinned.map_err(|errno| StartError::System {
        what: format!("pinning a thread to processor {cpu}"),
        source: io::Error::from(errno),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Member;

    fn config(change: impl FnOnce(config::Builder) -> config::Builder) -> Config {
        let builder = (0..3).fold(Config::builder("test").backend(Backend::Inproc), |b, id| {
            b.replica(Member::new(id))
        });
        change(builder).build().expect("a valid configuration")
    }

    #[test]
    fn the_defaults_and_the_extremes_of_a_configuration_are_settings() {
        let s = settings(&config(|b| b), 1, true, false);
        assert_eq!((s.id.get(), s.members.len(), s.form), (1, 3, true));
        assert_eq!((s.ring_bytes, s.detect_ns), (64 << 20, 500_000));
        let s = settings(&config(|b| b), 1, true, true);
        assert_eq!((s.heartbeat_ns, s.detect_ns), (100_000, 20_000_000));
        let s = settings(&config(|b| b.detect_us(501)), 1, true, true);
        assert_eq!((s.heartbeat_ns, s.detect_ns), (50_000, 501_000), "as asked");
        let small = config(|b| {
            b.log_bytes(64 << 10)
                .max_command_bytes(4096)
                .cut_off_us(2_000)
                .digest_interval(0)
        });
        let s = Options::from_config(&small, 0, false)
            .expect("settings")
            .settings;
        assert_eq!((s.ring_bytes, s.cut_off_ns), (64 << 10, 2_000_000));
        assert!(s.digest_interval > 1 << 60, "never");
    }

    #[test]
    fn the_largest_configuration_is_one_that_the_engines_take_and_one_who_is_no_member_is_refused()
    {
        let big = config(|b| {
            b.log_bytes(1 << 36)
                .max_command_bytes((16 << 20) - 256)
                .snapshot_max_bytes(1 << 32)
        });
        Options::from_config(&big, 0, true).expect("as large as can be");
        let error = Options::from_config(&config(|b| b), 7, true).expect_err("no member");
        assert!(matches!(error, StartError::Config(_)), "{error}");
    }
}
