//! What goes wrong, by name, and how often it did.

use std::collections::BTreeMap;

/// A fault of devices, links and memory. Each is counted when it strikes, not when it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A completion never comes.
    CompletionLost,
    /// A completion, and all behind it, comes much later.
    CompletionLate,
    /// A completion comes twice.
    CompletionTwice,
    /// A request ends with an error although its bytes landed.
    CompletionLies,
    /// A queue pair goes to ERR by itself.
    QpBreaks,
    /// A change of a queue pair's flags fails.
    FlagsFail,
    /// A change of a queue pair's flags works but breaks the queue pair.
    FlagsBreakQp,
    /// A change of a queue pair's state fails.
    ModifyFails,
    /// A change of a queue pair takes long.
    ModifySlow,
    /// A registration's rights cannot be changed.
    ReregisterFails,
    /// A registration cannot be ended.
    DeregisterFails,
    /// Bytes land after a revocation that is no barrier.
    LeakAfterRevoke,
    /// A piece in flight is refused since its right is gone.
    RefusedInFlight,
    /// A request of an earlier connection or of a dead process still takes effect.
    GhostLands,
    /// A request lands but its answer cannot get back.
    AnswerLost,
    /// A packet does not get through and is sent again.
    Retransmit,
    /// What is sent again is taken from memory again.
    GatheredAgain,
    /// The peer did not answer for too long.
    RetriesExhausted,
    /// A request ends at once, since the peer's process has ended.
    PeerEnded,
    /// An acknowledged write becomes visible later.
    VisibleLate,
    /// A message is placed in more than one piece.
    Torn,
    /// Pieces of a message are placed out of order.
    OutOfOrder,
    /// A message takes much longer than usual.
    LatencyTail,
    /// A message meets a clogged link.
    Clog,
    /// A completion queue runs over.
    CqOverrun,
    /// A queue pair takes no more requests.
    QueueFull,
    /// A NIC dies or its port goes down.
    NicDown,
    /// A link is cut in one direction.
    OneWayCut,
    /// A link is cut in both directions.
    TwoWayCut,
    /// A bit of memory flips.
    BitFlip,
    /// A node loses its memory.
    MemoryLost,
    /// A node's clock jumps.
    ClockJump,
    /// A node's clock runs at a wrong rate.
    ClockDrift,
    /// A node's clock stands still.
    ClockStop,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 34] = [
        Self::CompletionLost,
        Self::CompletionLate,
        Self::CompletionTwice,
        Self::CompletionLies,
        Self::QpBreaks,
        Self::FlagsFail,
        Self::FlagsBreakQp,
        Self::ModifyFails,
        Self::ModifySlow,
        Self::ReregisterFails,
        Self::DeregisterFails,
        Self::LeakAfterRevoke,
        Self::RefusedInFlight,
        Self::GhostLands,
        Self::AnswerLost,
        Self::Retransmit,
        Self::GatheredAgain,
        Self::RetriesExhausted,
        Self::PeerEnded,
        Self::VisibleLate,
        Self::Torn,
        Self::OutOfOrder,
        Self::LatencyTail,
        Self::Clog,
        Self::CqOverrun,
        Self::QueueFull,
        Self::NicDown,
        Self::OneWayCut,
        Self::TwoWayCut,
        Self::BitFlip,
        Self::MemoryLost,
        Self::ClockJump,
        Self::ClockDrift,
        Self::ClockStop,
    ];

    /// Those that a run of a group has to show sooner or later. The others are shown by the tests of the device: the
    /// protocol makes its completion queues large enough, a process that is killed takes its memory with it, and a
    /// registration that cannot be ended is beyond what a replica has to survive.
    pub fn in_groups() -> impl Iterator<Item = Self> {
        let others = [Self::CqOverrun, Self::MemoryLost, Self::DeregisterFails];
        Self::ALL
            .into_iter()
            .filter(move |fault| !others.contains(fault))
    }

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CompletionLost => "completion_lost",
            Self::CompletionLate => "completion_late",
            Self::CompletionTwice => "completion_twice",
            Self::CompletionLies => "completion_lies",
            Self::QpBreaks => "qp_breaks",
            Self::FlagsFail => "flags_fail",
            Self::FlagsBreakQp => "flags_break_qp",
            Self::ModifyFails => "modify_fails",
            Self::ModifySlow => "modify_slow",
            Self::ReregisterFails => "reregister_fails",
            Self::DeregisterFails => "deregister_fails",
            Self::LeakAfterRevoke => "leak_after_revoke",
            Self::RefusedInFlight => "refused_in_flight",
            Self::GhostLands => "ghost_lands",
            Self::AnswerLost => "answer_lost",
            Self::Retransmit => "retransmit",
            Self::GatheredAgain => "gathered_again",
            Self::RetriesExhausted => "retries_exhausted",
            Self::PeerEnded => "peer_ended",
            Self::VisibleLate => "visible_late",
            Self::Torn => "torn",
            Self::OutOfOrder => "out_of_order",
            Self::LatencyTail => "latency_tail",
            Self::Clog => "clog",
            Self::CqOverrun => "cq_overrun",
            Self::QueueFull => "queue_full",
            Self::NicDown => "nic_down",
            Self::OneWayCut => "one_way_cut",
            Self::TwoWayCut => "two_way_cut",
            Self::BitFlip => "bit_flip",
            Self::MemoryLost => "memory_lost",
            Self::ClockJump => "clock_jump",
            Self::ClockDrift => "clock_drift",
            Self::ClockStop => "clock_stop",
        }
    }
}

/// How often each fault struck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage([u64; Fault::ALL.len()]);

impl Default for Coverage {
    fn default() -> Self {
        Self([0; Fault::ALL.len()])
    }
}

impl Coverage {
    pub(crate) fn hit(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    /// How often `fault` struck.
    pub fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    /// Adds to a map by name.
    pub fn add_to(&self, map: &mut BTreeMap<&'static str, u64>) {
        for fault in Fault::in_groups() {
            *map.entry(fault.name()).or_default() += self.of(fault);
        }
    }
}

/// How often a node's device does wrong by itself, each in a million of the requests or changes it can happen to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// [`Fault::CompletionLost`].
    pub completion_lost: u32,
    /// [`Fault::CompletionLate`].
    pub completion_late: u32,
    /// [`Fault::CompletionTwice`].
    pub completion_twice: u32,
    /// [`Fault::CompletionLies`].
    pub completion_lies: u32,
    /// [`Fault::QpBreaks`].
    pub qp_breaks: u32,
    /// [`Fault::FlagsFail`].
    pub flags_fail: u32,
    /// [`Fault::FlagsBreakQp`].
    pub flags_break_qp: u32,
    /// [`Fault::ModifyFails`].
    pub modify_fails: u32,
    /// [`Fault::ModifySlow`].
    pub modify_slow: u32,
    /// [`Fault::ReregisterFails`].
    pub reregister_fails: u32,
    /// [`Fault::DeregisterFails`].
    pub deregister_fails: u32,
}

impl Rates {
    /// Nothing goes wrong by itself.
    pub const NONE: Self = Self {
        completion_lost: 0,
        completion_late: 0,
        completion_twice: 0,
        completion_lies: 0,
        qp_breaks: 0,
        flags_fail: 0,
        flags_break_qp: 0,
        modify_fails: 0,
        modify_slow: 0,
        reregister_fails: 0,
        deregister_fails: 0,
    };
}

/// What a node's NIC does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nic {
    /// It works.
    Up,
    /// Its port is down: nothing gets in or out, and requests run out of retries.
    PortDown,
    /// It does nothing at all: no completion comes any more.
    Dead,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_its_own_place_and_name() {
        let names: std::collections::BTreeSet<_> = Fault::ALL.iter().map(|f| f.name()).collect();
        assert_eq!(names.len(), Fault::ALL.len());
        for (place, fault) in Fault::ALL.into_iter().enumerate() {
            assert_eq!(fault as usize, place, "{fault:?}");
        }
        let mut coverage = Coverage::default();
        coverage.hit(Fault::ClockStop);
        assert_eq!(
            (coverage.of(Fault::ClockStop), coverage.of(Fault::ClockJump)),
            (1, 0)
        );
    }
}
