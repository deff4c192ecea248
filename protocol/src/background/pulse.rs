//! The own pulse: when the next heartbeat is due, whether this replica may give one, and whether it was paused.
//!
//! *Fate sharing*: the counter that peers read goes up only while the replication engine makes progress, so a replica
//! that cannot lead or follow looks dead even if this engine runs.

/// A poll that comes so many heartbeats after the last one is late: the replica was paused or starved.
pub const STALL_BEATS: u64 = 4;
/// An engine that is at something that takes long is stuck after so many times the usual time.
pub const BUSY: u64 = 400;

/// What a poll finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// A heartbeat is due.
    pub beat: bool,
    /// The last poll was too long ago.
    pub stalled: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Pulse {
    heartbeat_ns: u64,
    stuck_ns: u64,
    next_ns: u64,
    polled_ns: u64,
    progress: u64,
    /// The last time that there was progress.
    progress_ns: u64,
    busy: bool,
}

impl Pulse {
    /// The first heartbeat is due at once.
    pub fn new(heartbeat_ns: u64, stuck_ns: u64, now_ns: u64) -> Self {
        Self {
            heartbeat_ns,
            stuck_ns,
            next_ns: now_ns,
            polled_ns: now_ns,
            progress: 0,
            progress_ns: now_ns,
            busy: false,
        }
    }

    /// One poll, with the replication engine's count of its own polls, and whether it said that it is at something that
    /// takes long.
    pub fn poll(&mut self, now_ns: u64, progress: u64, busy: bool) -> Turn {
        let gap_ns = now_ns.saturating_sub(std::mem::replace(&mut self.polled_ns, now_ns));
        let stalled = gap_ns > STALL_BEATS * self.heartbeat_ns;
        if progress != self.progress {
            (self.progress, self.progress_ns) = (progress, now_ns);
        } else if stalled {
            // Who was paused here was not looking whether the other engine went on.
            self.progress_ns = self.progress_ns.saturating_add(gap_ns);
        }
        self.busy = busy;
        let beat = now_ns >= self.next_ns;
        if beat {
            // Beats that were missed are not made up for.
            let next_ns = self.next_ns + self.heartbeat_ns;
            self.next_ns = if next_ns > now_ns {
                next_ns
            } else {
                now_ns + self.heartbeat_ns
            };
        }
        Turn { beat, stalled }
    }

    /// Whether the replication engine makes progress.
    pub fn is_fit(&self) -> bool {
        let patience_ns = if self.busy {
            BUSY * self.stuck_ns
        } else {
            self.stuck_ns
        };
        self.polled_ns.saturating_sub(self.progress_ns) <= patience_ns
    }

    /// When the next heartbeat is due.
    pub fn next_ns(&self) -> u64 {
        self.next_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_keep_their_time_and_are_not_made_up_for() {
        let mut pulse = Pulse::new(50, 500, 1000);
        let mut beats = Vec::new();
        for now in (1000..1300).step_by(7) {
            if pulse.poll(now, now, false).beat {
                beats.push(now);
            }
        }
        assert_eq!(beats, [1000, 1056, 1105, 1154, 1203, 1252]);
        assert_eq!(
            pulse.poll(5000, 1, false),
            Turn {
                beat: true,
                stalled: true
            }
        );
        assert_eq!(
            pulse.poll(5001, 2, false),
            Turn {
                beat: false,
                stalled: false
            }
        );
        assert_eq!(pulse.next_ns(), 5050);
    }

    #[test]
    fn without_progress_there_is_no_pulse_and_an_own_pause_is_not_blamed_on_the_other_engine() {
        let mut pulse = Pulse::new(50, 500, 0);
        for now in (0..=500).step_by(50) {
            pulse.poll(now, 0, false);
            assert!(pulse.is_fit(), "{now}");
        }
        pulse.poll(550, 0, false);
        assert!(!pulse.is_fit());
        pulse.poll(600, 1, false);
        assert!(pulse.is_fit());
        pulse.poll(900_000, 1, false);
        assert!(pulse.is_fit(), "both were paused");
        (900_050..900_700).step_by(50).for_each(|now| {
            pulse.poll(now, 1, false);
        });
        assert!(!pulse.is_fit());
    }
}
