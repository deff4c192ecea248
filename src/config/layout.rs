//! What all members must have alike, condensed so that two of them can compare it and say where it differs.

use std::fmt::{Display, Write};
use std::net::SocketAddr;

use sha2::{Digest, Sha256};

use super::Config;

/// The version of everything that replicas say to each other and read in each other's memory.
pub const PROTOCOL_VERSION: u32 = mu_protocol::message::VERSION;

/// Hashes of what all members must have alike, in parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Of the members and their addresses.
    pub members: u64,
    /// Of the shape of the log.
    pub log: u64,
    /// Of the limits and the times.
    pub limits: u64,
}

impl Layout {
    pub(super) fn of(config: &Config) -> Self {
        let s = &config.settings;
        let mut members = Part::default();
        for member in &config.members {
            members.add("id", member.id);
            let text =
                |address: Option<SocketAddr>| address.map_or(String::new(), |a| a.to_string());
            members.add("control", text(member.control));
            members.add("client", text(member.client));
        }
        let mut log = Part::default();
        log.add("backend", format_args!("{:?}", s.backend));
        log.add("log_bytes", s.log_bytes);
        log.add("max_command_bytes", s.max_command_bytes);
        log.add("checksum", format_args!("{:?}", s.checksum));
        let mut limits = Part::default();
        limits.add("window", s.window);
        limits.add("heartbeat_us", s.heartbeat_us);
        limits.add("detect_us", s.detect_us);
        limits.add("cut_off_us", s.cut_off_us);
        limits.add("digest_interval", s.digest_interval);
        limits.add("sessions", s.sessions);
        limits.add("snapshot_max_bytes", s.snapshot_max_bytes);
        Self {
            members: members.hash(),
            log: log.hash(),
            limits: limits.hash(),
        }
    }

    /// All of it and the protocol's version in one number.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut all = Part::default();
        all.add("version", PROTOCOL_VERSION);
        all.add("members", self.members);
        all.add("log", self.log);
        all.add("limits", self.limits);
        all.hash()
    }

    /// The parts that differ, with the keys in them; empty if none does.
    #[must_use]
    pub fn difference(&self, other: &Self) -> String {
        let parts = [
            (
                self.members == other.members,
                "replicas (id, control, client)",
            ),
            (
                self.log == other.log,
                "log (backend, log_bytes, max_command_bytes, checksum)",
            ),
            (
                self.limits == other.limits,
                "limits (window, heartbeat_us, detect_us, cut_off_us, digest_interval, sessions, snapshot_max_bytes)",
            ),
        ];
        let differing: Vec<&str> = parts
            .iter()
            .filter(|(same, _)| !same)
            .map(|(_, name)| *name)
            .collect();
        differing.join(" and ")
    }
}

/// Names and values as text, so that no two lists of them read the same.
#[derive(Default)]
struct Part(String);

impl Part {
    fn add(&mut self, name: &str, value: impl Display) {
        writeln!(self.0, "{name}={value}").expect("a string takes everything");
    }

    /// The head of the SHA-256: the same in every build and on every machine.
    fn hash(&self) -> u64 {
        let digest = Sha256::digest(self.0.as_bytes());
        u64::from_le_bytes(*digest.first_chunk().expect("32 bytes"))
    }
}
