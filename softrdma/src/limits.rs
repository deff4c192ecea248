//! Every limit of the software backend, with the relations between them.

/// Queue pairs in one context. Builds for loom and Miri are small, since every word is a tracked object there, and Miri
/// tags a whole segment whenever it is borrowed.
pub const MAX_QPS: usize = if cfg!(loom) {
    2
} else if cfg!(miri) {
    8
} else {
    64
};
/// Registrations (memory regions and windows) alive at once in one context.
pub const MAX_REGIONS: usize = if cfg!(loom) {
    2
} else if cfg!(miri) {
    16
} else {
    256
};
/// Memories allocated in the life of one context; their numbers are never used again.
pub const MAX_MEMORIES: usize = 256;
/// Receive requests one queue pair holds.
pub const MAX_RECV_WR: usize = if cfg!(loom) {
    2
} else if cfg!(miri) {
    16
} else {
    256
};
/// Send requests one queue pair holds.
pub const MAX_SEND_WR: usize = 8192;
/// Scatter/gather elements of one send request.
pub const MAX_SGE: usize = 4;
/// Scatter/gather elements of one receive request.
pub const MAX_RECV_SGE: usize = 1;
/// Bytes of payload taken from private memory while posting (`IBV_SEND_INLINE`).
pub const MAX_INLINE: usize = 1024;
/// Largest path MTU in bytes: rights are checked again for every chunk of this size.
pub const MAX_MTU: usize = 4096;
/// Largest message in bytes (`max_msg_sz`).
pub const MAX_MSG: usize = 1 << 30;
/// Entries of one completion queue (`max_cqe`).
pub const MAX_CQE: usize = 1 << 20;
/// Asynchronous events kept until they are read; the oldest is dropped beyond it.
pub const MAX_ASYNC_EVENTS: usize = 256;
/// Bytes of one word.
pub const WORD: usize = 8;

const _: () = {
    assert!(MAX_MTU.is_multiple_of(WORD));
    assert!(MAX_INLINE <= MAX_MTU, "an inline payload is one chunk");
    assert!(
        MAX_MSG < u32::MAX as usize,
        "a length fits the completion's byte_len"
    );
    assert!(
        MAX_REGIONS <= 1 << 8,
        "a key's low byte is the region's index"
    );
    assert!(MAX_RECV_WR.is_power_of_two());
};
