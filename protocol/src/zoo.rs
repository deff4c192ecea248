//! The bug zoo: named defects that the engines carry behind a type parameter. With [`Sound`], which every build but the
//! simulator's uses, each question is the constant `false` and the compiler removes the defect.

/// Declares the bugs once: the enum, their names and what each one is.
macro_rules! bugs {
    ($($(#[doc = $what:literal])+ $name:ident),+ $(,)?) => {
        /// A seeded defect.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Bug {
            $($(#[doc = $what])+ $name,)+
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Its name on the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// What it does wrong.
            pub const fn what(self) -> &'static str {
                match self { $(Self::$name => concat!($($what),+),)+ }
            }
        }
    };
}

bugs! {
    /// A replica grants the right to write without taking it from the last holder.
    GrantWithoutRevoke,
    /// A replica acknowledges a grant before the revocation is done.
    AckBeforeRevoke,
    /// A replica grants an epoch that is not above its promise.
    GrantAnyEpoch,
    /// A restarted replica with empty memory counts as a voter at once.
    AmnesiacVotes,
    /// The heartbeat goes on although the replication engine is stuck.
    NoFateSharing,
    /// A heartbeat read that failed counts as a sign of life (defect 10 of the released code).
    ReadFailureIsAlive,
    /// The own log is granted to another while the own engine may be writing it, and the leader counts it all the same.
    SkipSelfFence,
    /// A majority is half, rounded up, without one more (defect 6).
    HalfQuorum,
    /// A command is answered as soon as it is posted (defect 7).
    AckBeforeQuorum,
    /// The new leader adopts the first log it reads.
    AdoptFirst,
    /// The new leader adopts the longest log, whatever its epoch.
    AdoptLongest,
    /// The new leader does not read the others' logs at all.
    SkipPrepare,
    /// An entry of an earlier epoch counts as decided once a majority has it.
    CountOldEpoch,
    /// Commands pending at a deposed leader are reported as decided (defect 4).
    LostIsDecided,
    /// The ring is written over without looking at what the followers have applied (defect 5).
    RecycleUnapplied,
    /// The log is written over although writes that are under way take their bytes from it.
    ReuseUnsent,
    /// Recycling waits for every member, dead ones included.
    RecycleWaitsForAll,
    /// A new leader waits for the grant of every member (defect 1).
    GrantsFromAll,
    /// A new leader waits until it has read the log of every member (defect 3).
    PrepareWaitsForAll,
    /// One failed follower makes the leader give up (defect 2).
    AbortOnAnyFailure,
    /// A full send queue towards one slow follower makes the leader give up (defect 9).
    AbortOnFullQueue,
    /// The connection of a leader that lost its right is kept, so that what it posted can land under its next grant.
    StaleRequests,
    /// A log link is connected anew although a stopped engine may still post for the connection that is over.
    ReconnectInUse,
    /// Where who posts carries the write out, a command goes to a majority, and the others are forgotten.
    ForgetTheOthers,
    /// A completion with an error counts as a success.
    ErrorIsSuccess,
    /// An entry says that itself is decided when it is written.
    CommitItself,
    /// A follower applies what it sees, decided or not.
    ApplyUndecided,
    /// A reader does not compare the payload with its checksum.
    SkipPayloadCheck,
    /// A reader takes an entry of an earlier lap of the ring.
    IgnoreIndex,
    /// A reader does not compare the entry with the epoch of the one before it.
    IgnoreChain,
    /// The leader counts a replica that has not been admitted.
    CountLearner,
    /// A late granter counts without having been brought up to date.
    SkipFollowerUpdate,
    /// A new leader that was lapped does not notice.
    IgnoreLapped,
    /// A read is answered without the proof of leadership.
    ReadWithoutProof,
    /// A retry is applied again.
    RetryAppliedTwice,
    /// A replica that comes back takes a snapshot that is older than what it has applied.
    StateGoesBack,
    /// A snapshot leaves the sessions out.
    SnapshotWithoutSessions,
    /// An idle leader never pushes its commit index.
    NoIdleFlush,
}

/// Which defects an engine has.
pub trait Zoo: Copy + Default + Send + Sync + 'static {
    /// Whether it has this one.
    fn has(self, bug: Bug) -> bool;
}

/// None.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sound;

impl Zoo for Sound {
    #[inline(always)]
    fn has(self, _: Bug) -> bool {
        false
    }
}

/// At most one, for the simulator.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seeded(pub Option<Bug>);

impl Zoo for Seeded {
    #[inline]
    fn has(self, bug: Bug) -> bool {
        self.0 == Some(bug)
    }
}
