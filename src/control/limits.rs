//! Every bound of the control connections.

use std::time::Duration;

/// Longest frame of an authenticated connection, without the four bytes of its length.
pub const FRAME_BYTES_MAX: usize = 64 << 10;
/// What a frame has around a message: kind, sequence number, tag.
pub(super) const FRAME_OVERHEAD_BYTES: usize = 1 + 8 + TAG_BYTES;
/// Longest message, hello or status.
pub const MESSAGE_BYTES_MAX: usize = FRAME_BYTES_MAX - FRAME_OVERHEAD_BYTES;
/// Longest frame before both sides are authenticated.
pub(super) const HANDSHAKE_FRAME_BYTES_MAX: usize = 512;
/// Bytes of the tag of a frame.
pub(super) const TAG_BYTES: usize = 16;

/// Most incoming connections that are not through their handshake.
pub const HANDSHAKES_MAX: usize = 32;
/// Most connections accepted before other work has its turn.
pub(super) const ACCEPTS_PER_TURN: usize = 16;
/// A handshake, from the connection to the hello of the other side, takes at most so long.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_millis(1000);
/// After an error of `accept` that does not go away by itself (no descriptors left), it rests for so long.
pub(super) const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Time to the first attempt to connect again.
pub const BACKOFF_MIN: Duration = Duration::from_millis(5);
/// Most time between two attempts to connect.
pub const BACKOFF_MAX: Duration = Duration::from_millis(200);

/// Most bytes that wait to be sent to one peer.
pub const OUT_BYTES_MAX: usize = 1 << 20;
/// With so many events that nobody took, no connection is read from. What one read of each brought still comes on top.
pub(super) const INBOX_EVENTS_MAX: usize = 1024;
/// Likewise, in bytes of messages.
pub(super) const INBOX_BYTES_MAX: usize = 4 << 20;

/// So many former incarnations of each peer are remembered.
pub(super) const SUPERSEDED_MAX: usize = 16;

const _: () = assert!(HANDSHAKE_FRAME_BYTES_MAX <= FRAME_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX + 4 <= OUT_BYTES_MAX);
