//! Every limit of the protocol, with the relations between them.

use mu_verbs::WORD;

/// Replicas of one group.
pub const MAX_REPLICAS: usize = 9;
/// Bytes of the log's header, before the ring.
pub const LOG_HEADER_BYTES: usize = 128;
/// Smallest ring, in bytes.
pub const MIN_RING_BYTES: usize = 4096;
/// Largest ring, in bytes.
pub const MAX_RING_BYTES: usize = 1 << 36;
/// Positions and indexes beyond are nonsense: a log of that length would take centuries.
pub const MAX_POSITION: u64 = 1 << 62;
/// Largest entry, header and tail included, in bytes: also bounded by a quarter of the ring.
pub const MAX_ENTRY_BYTES: usize = 16 << 20;
/// Bytes of an entry that no command can have: header, tail, frame and then some.
pub const ENTRY_RESERVE_BYTES: usize = 256;
/// Longest command, in bytes, in a ring of any size.
pub const MAX_COMMAND_BYTES: usize = MAX_ENTRY_BYTES - ENTRY_RESERVE_BYTES;
/// Commands of one entry.
pub const MAX_BATCH: usize = 4096;
/// Commands submitted and not yet answered, at one leader.
pub const MAX_PENDING: usize = 65_536;
/// Reads waiting for one round that proves leadership.
pub const MAX_READS: usize = 4096;
/// Bytes of one reply that a session keeps for a retry; of a longer one only that the command was applied.
pub const MAX_KEPT_REPLY: usize = 64;
/// Sessions of one group.
pub const MAX_SESSIONS: usize = 1 << 20;
/// Words of one mailbox row: what one peer may write.
pub const ROW_WORDS: usize = 32;
/// Words of the public line: what every peer may read.
pub const PUBLIC_WORDS: usize = 32;
/// Send requests that one log queue pair holds.
pub const LOG_QP_DEPTH: u32 = 256;
/// Send requests that one board queue pair holds.
pub const BOARD_QP_DEPTH: u32 = 32;
/// Send requests that one pull queue pair holds.
pub const PULL_QP_DEPTH: u32 = 16;
/// Largest one-sided write or read of log bytes, so that one request does not hold others up.
pub const MAX_TRANSFER: usize = 256 << 10;
/// Entries that go out inline when they are at most so long; longer ones are read from the log by the device.
pub const MAX_INLINE_ENTRY: usize = 512;
/// Longest time that can be set, about thirteen days: times are multiplied and added to the clock.
pub const MAX_TIME_NS: u64 = 1 << 50;
/// Bytes of an encoded hello.
pub const HELLO_BYTES: usize = 96;
/// Bytes of an encoded connect message.
pub const CONNECT_BYTES: usize = 64;
/// Largest snapshot, in bytes.
pub const MAX_SNAPSHOT_BYTES: usize = 1 << 32;

const _: () = {
    assert!(MAX_REPLICAS < 16, "an epoch's owner fits four bits");
    assert!(LOG_HEADER_BYTES.is_multiple_of(WORD) && MIN_RING_BYTES.is_multiple_of(WORD));
    assert!(MAX_BATCH < 1 << 16, "the number of commands fits its field");
    assert!(
        MAX_ENTRY_BYTES <= u32::MAX as usize / 2,
        "a length fits its field"
    );
    assert!(
        MAX_RING_BYTES / crate::entry::OVERHEAD_BYTES < u32::MAX as usize,
        "the lag of a commit index, which is at most a ring of entries, fits its field"
    );
    assert!(MAX_PENDING >= MAX_BATCH);
    assert!(MAX_RING_BYTES > 4 * MAX_ENTRY_BYTES);
};
