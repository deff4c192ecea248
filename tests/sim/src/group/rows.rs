//! What a run is made of: the rows of the fault matrix that a simulator can show, each with a counter of its own. A row
//! that is never hit in a long enough run means that its fault is not tried.

use std::collections::BTreeMap;

use crate::hook::Verb;

macro_rules! rows {
    ($($(#[doc = $what:literal])+ $name:ident = $row:literal),+ $(,)?) => {
        /// A row.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Row {
            $($(#[doc = $what])+ $name,)+
        }

        impl Row {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Its name in reports.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $row,)+ }
            }
        }
    };
}

rows! {
    /// The leader's process is killed between two verbs.
    LeaderKilled = "leader_killed",
    /// A follower's process is killed between two verbs.
    FollowerKilled = "follower_killed",
    /// A candidate's process is killed between two verbs.
    CandidateKilled = "candidate_killed",
    /// A replica that catches up is killed between two verbs.
    NewcomerKilled = "newcomer_killed",
    /// More than a minority loses its memory: the group stays down.
    MajorityLost = "majority_lost",
    /// All replicas lose power at once.
    PowerLost = "power_lost",
    /// The leader is paused between two verbs.
    LeaderPaused = "leader_paused",
    /// Another replica is paused between two verbs.
    FollowerPaused = "follower_paused",
    /// A paused leader woke up to find another one.
    WokeDeposed = "woke_deposed",
    /// A replica is paused for more than thirty detection times.
    PausedLong = "paused_long",
    /// A process is killed before it posts a request.
    KilledAtPost = "killed_at_post",
    /// A process is killed before it polls a completion queue.
    KilledAtPoll = "killed_at_poll",
    /// A process is killed before it changes a queue pair's state or rights: before a grant or a revocation.
    KilledAtModify = "killed_at_modify",
    /// A process is killed before it makes, changes or ends a registration.
    KilledAtRegister = "killed_at_register",
    /// A process is killed when such a change is made and it does not know yet: between a revocation and the grant.
    KilledAfterChange = "killed_after_change",
    /// The same places, and a pause.
    PausedAtPost = "paused_at_post",
    /// Before it polls.
    PausedAtPoll = "paused_at_poll",
    /// Before it changes a queue pair.
    PausedAtModify = "paused_at_modify",
    /// Before it changes a registration.
    PausedAtRegister = "paused_at_register",
    /// Between a revocation and the grant.
    PausedAfterChange = "paused_after_change",
    /// A replica's CPU dies while its NIC goes on serving its memory.
    Zombie = "zombie",
    /// A NIC goes down while the CPU lives.
    NicDied = "nic_died",
    /// The replication engine hangs, the background engine lives.
    ReplicationHung = "replication_hung",
    /// The background engine hangs, the replication engine lives.
    BackgroundHung = "background_hung",
    /// A replica's engines are polled a hundred times less often.
    Starved = "starved",
    /// An application panics.
    Panicked = "application_panicked",
    /// An application is not deterministic.
    Deviated = "application_deviated",
    /// The leader is cut off from all others.
    LeaderCutOff = "leader_cut_off",
    /// The group falls into parts.
    Split = "split",
    /// A link works in one direction only.
    OneWay = "one_way",
    /// Every replica reaches some, none reaches all.
    Mesh = "mesh",
    /// Links come and go.
    Flapping = "flapping",
    /// Control connections break.
    ControlLost = "control_lost",
    /// Links are clogged.
    Clogged = "clogged",
    /// The queue pairs to a leader's followers break again and again.
    LogLinkBroken = "log_link_broken",
    /// The heartbeat's queue pairs break again and again.
    BoardLinkBroken = "board_link_broken",
    /// Two or more candidates or leaders at once.
    Rivals = "rivals",
    /// A replica is left behind and catches up by snapshot, its vote resting meanwhile.
    LeftBehind = "left_behind",
    /// The ring is full.
    RingFull = "ring_full",
    /// The ring was written over from its start.
    Wrapped = "wrapped",
    /// An entry that straddles the end of the ring was applied.
    Straddled = "straddled",
    /// A command of the largest size was applied.
    LargestCommand = "largest_command",
    /// A command over the limit was refused.
    TooLargeRefused = "too_large_refused",
    /// A bit of a replica's memory flips.
    BitFlipped = "bit_flipped",
    /// A clock jumps, drifts or stops.
    ClockWrong = "clock_wrong",
    /// A replica comes back with empty memory under its old id and is admitted.
    Rejoined = "rejoined",
    /// A client tries again, and the command was decided before.
    RetryFoundReply = "retry_found_reply",
    /// A command ends as unknown.
    Unknown = "outcome_unknown",
    /// A read is asked of a replica that has been deposed.
    ReadAtDeposed = "read_at_deposed",
    /// A read is answered.
    ReadAnswered = "read_answered",
    /// More commands come than can be taken.
    Overloaded = "overloaded",
    /// Leadership is handed over on request.
    HandedOver = "handed_over",
    /// A new leader adopts entries that it did not have.
    Adopted = "adopted",
    /// A group of one, and groups of even size.
    OddGroup = "odd_group",
}

/// How often each row was hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows([u64; Row::ALL.len()]);

impl Default for Rows {
    fn default() -> Self {
        Self([0; Row::ALL.len()])
    }
}

impl Row {
    /// Where a process was killed or paused.
    pub(crate) fn of_stop(verb: Verb, killed: bool) -> Self {
        match (verb, killed) {
            (Verb::Post, true) => Self::KilledAtPost,
            (Verb::Poll, true) => Self::KilledAtPoll,
            (Verb::Modify, true) => Self::KilledAtModify,
            (Verb::Register, true) => Self::KilledAtRegister,
            (Verb::Changed, true) => Self::KilledAfterChange,
            (Verb::Post, false) => Self::PausedAtPost,
            (Verb::Poll, false) => Self::PausedAtPoll,
            (Verb::Modify, false) => Self::PausedAtModify,
            (Verb::Register, false) => Self::PausedAtRegister,
            (Verb::Changed, false) => Self::PausedAfterChange,
        }
    }
}

impl Rows {
    pub(crate) fn hit(&mut self, row: Row) {
        self.0[row as usize] += 1;
    }

    /// How often `row` was hit.
    pub fn of(&self, row: Row) -> u64 {
        self.0[row as usize]
    }

    /// Adds to a map by name.
    pub fn add_to(&self, map: &mut BTreeMap<&'static str, u64>) {
        for row in Row::ALL {
            *map.entry(row.name()).or_default() += self.of(*row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_name_that_no_fault_has() {
        let names: std::collections::BTreeSet<_> = Row::ALL.iter().map(|row| row.name()).collect();
        assert_eq!(names.len(), Row::ALL.len());
        assert!(
            crate::Fault::ALL
                .iter()
                .all(|fault| !names.contains(fault.name()))
        );
    }
}
