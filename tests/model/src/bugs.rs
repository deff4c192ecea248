//! The negative controls: defects that the exploration must find.

macro_rules! bugs {
    ($($(#[doc = $what:literal])+ $name:ident),+ $(,)?) => {
        /// A seeded defect.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Bug {
            $($(#[doc = $what])+ $name,)+
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Its name.
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
    /// A replica grants without taking the right from the last holder.
    GrantWithoutRevoke,
    /// A write that was posted under the old right lands after the grant was acknowledged.
    LateWrite,
    /// A replica grants an epoch below its promise.
    GrantAnyEpoch,
    /// The leader's own log alone is a majority.
    DecideAlone,
    /// The new leader adopts the first log it reads.
    AdoptFirst,
    /// The new leader adopts the longest log, whatever its epoch.
    AdoptLongest,
    /// A leader that led before goes on with its own log and reads no other.
    RegainSkipsPrepare,
    /// An entry of an earlier epoch counts as decided once a majority has it (Figure 8 of the Raft paper).
    CountOldEpoch,
    /// A follower gets the next entry without those before it.
    NoFollowerUpdate,
    /// An entry says that itself is decided.
    CommitItself,
    /// A replica grants while its own engine still writes its log as a leader; the engine looks at the promise after
    /// each entry and does not count it if the promise is another.
    OwnEngineNotStopped,
    /// The same, and the engine does not look.
    SelfFenceSkipped,
    /// A reader does not compare an entry with the epoch of the one before it.
    IgnoreChain,
    /// A restarted replica votes at once.
    AmnesiacVotes,
    /// The leader counts a replica that has not been admitted.
    CountLearner,
    /// An admission counts for any later incarnation.
    AdmitAnyLife,
    /// The ring is written over without looking at what the followers have applied.
    OverwriteUnapplied,
    /// A new leader that was lapped does not notice.
    IgnoreLapped,
    /// A reader takes an entry of an earlier lap of the ring.
    IgnoreIndex,
    /// A voter that takes a state clears the part of its log behind it, too.
    ClearsAll,
}
