//! The vocabulary of verbs: access flags, states, work requests, completions. The values of flags and codes are those
//! of libibverbs (`infiniband/verbs.h`), so that the NIC backend passes them through.

use std::fmt;
use std::ops::{BitAnd, BitOr};

use crate::limits::MAX_RECV_WR;

/// Access rights of a region, a window or a queue pair (`enum ibv_access_flags`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Access(pub u32);

impl Access {
    /// No right at all: local reads only.
    pub const NONE: Self = Self(0);
    /// The owner's device may write (needed for READ, atomics and RECV targets).
    pub const LOCAL_WRITE: Self = Self(1);
    /// The peer may write by RDMA WRITE.
    pub const REMOTE_WRITE: Self = Self(2);
    /// The peer may read by RDMA READ.
    pub const REMOTE_READ: Self = Self(4);
    /// The peer may use compare-and-swap and fetch-and-add.
    pub const REMOTE_ATOMIC: Self = Self(8);
    /// Memory windows may be bound to the region.
    pub const MW_BIND: Self = Self(16);
    /// Everything a log holder gets: local write, remote write and read.
    pub const LOG: Self = Self(7);
    /// Every flag this crate knows. Relaxed ordering is deliberately not among them: a polled region must not have it.
    pub const ALL: Self = Self(31);

    /// Whether every flag of `other` is set in `self`.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags of `self` that are not in `other`.
    #[inline]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether a peer gets any right.
    #[inline]
    pub const fn any_remote(self) -> bool {
        self.0 & (Self::REMOTE_WRITE.0 | Self::REMOTE_READ.0 | Self::REMOTE_ATOMIC.0) != 0
    }

    /// Whether the flags may be registered: remote writes and atomics need the local write right (`ibv_reg_mr(3)`).
    pub const fn is_registrable(self) -> bool {
        let writes = self.0 & (Self::REMOTE_WRITE.0 | Self::REMOTE_ATOMIC.0) != 0;
        self.0 & !Self::ALL.0 == 0 && (!writes || self.contains(Self::LOCAL_WRITE))
    }
}

impl BitOr for Access {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Access {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(u32, &str); 5] = [
            (1, "local_write"),
            (2, "remote_write"),
            (4, "remote_read"),
            (8, "remote_atomic"),
            (16, "mw_bind"),
        ];
        let set: Vec<&str> = NAMES
            .iter()
            .filter(|(bit, _)| self.0 & bit != 0)
            .map(|(_, name)| *name)
            .collect();
        write!(
            f,
            "Access({})",
            if set.is_empty() {
                "none".into()
            } else {
                set.join("|")
            }
        )
    }
}

/// State of a queue pair (`enum ibv_qp_state`; SQD and SQE are not used).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QpState {
    /// Newly made or reset: nothing may be posted.
    Reset,
    /// Receives may be posted.
    Init,
    /// Ready to receive: answers its peer.
    Rtr,
    /// Ready to send as well.
    Rts,
    /// Failed: everything posted is flushed.
    Err,
}

/// Status of a completion (`enum ibv_wc_status`). A number of a newer library stays what it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct WcStatus(pub u32);

impl WcStatus {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// A message was longer than the receive buffer (receiver's side).
    pub const LOC_LEN_ERR: Self = Self(1);
    /// The responder's queue pair cannot take the message, or a local operation failed inside the queue pair.
    pub const LOC_QP_OP_ERR: Self = Self(2);
    /// A local element lies outside its region, or the region lacks the right.
    pub const LOC_PROT_ERR: Self = Self(4);
    /// Flushed: the queue pair failed before this request ran.
    pub const WR_FLUSH_ERR: Self = Self(5);
    /// A window could not be bound.
    pub const MW_BIND_ERR: Self = Self(6);
    /// The responder calls the request invalid: its queue pair forbids the operation, or a length does not fit.
    pub const REM_INV_REQ_ERR: Self = Self(9);
    /// The responder's region refused: key, bounds, domain or right.
    pub const REM_ACCESS_ERR: Self = Self(10);
    /// The responder failed by itself.
    pub const REM_OP_ERR: Self = Self(11);
    /// The peer never answered.
    pub const RETRY_EXC_ERR: Self = Self(12);
    /// The peer had no receive posted for too long.
    pub const RNR_RETRY_EXC_ERR: Self = Self(13);
    /// Anything else the device reports.
    pub const GENERAL_ERR: Self = Self(21);

    /// Whether the request was carried out.
    #[inline]
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }

    /// Whether this may be how the loss of a right shows: flags, region, silence or flush (see `DESIGN.md`, section 3).
    /// After any of them the bytes may or may not have landed.
    #[inline]
    pub const fn may_be_lost_right(self) -> bool {
        matches!(
            self,
            Self::REM_INV_REQ_ERR | Self::REM_ACCESS_ERR | Self::RETRY_EXC_ERR | Self::WR_FLUSH_ERR
        )
    }
}

impl fmt::Debug for WcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::SUCCESS => "SUCCESS",
            Self::LOC_LEN_ERR => "LOC_LEN_ERR",
            Self::LOC_QP_OP_ERR => "LOC_QP_OP_ERR",
            Self::LOC_PROT_ERR => "LOC_PROT_ERR",
            Self::WR_FLUSH_ERR => "WR_FLUSH_ERR",
            Self::MW_BIND_ERR => "MW_BIND_ERR",
            Self::REM_INV_REQ_ERR => "REM_INV_REQ_ERR",
            Self::REM_ACCESS_ERR => "REM_ACCESS_ERR",
            Self::REM_OP_ERR => "REM_OP_ERR",
            Self::RETRY_EXC_ERR => "RETRY_EXC_ERR",
            Self::RNR_RETRY_EXC_ERR => "RNR_RETRY_EXC_ERR",
            Self::GENERAL_ERR => "GENERAL_ERR",
            Self(number) => return write!(f, "WcStatus({number})"),
        };
        f.write_str(name)
    }
}

impl fmt::Display for WcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a completion completes (`enum ibv_wc_opcode`). Valid only when the status is success, as with libibverbs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WcOpcode(pub u32);

impl WcOpcode {
    /// A SEND.
    pub const SEND: Self = Self(0);
    /// An RDMA WRITE.
    pub const RDMA_WRITE: Self = Self(1);
    /// An RDMA READ.
    pub const RDMA_READ: Self = Self(2);
    /// A compare-and-swap.
    pub const COMP_SWAP: Self = Self(3);
    /// A fetch-and-add.
    pub const FETCH_ADD: Self = Self(4);
    /// A window bind.
    pub const BIND_MW: Self = Self(5);
    /// A local invalidation.
    pub const LOCAL_INV: Self = Self(6);
    /// A receive, filled by a SEND.
    pub const RECV: Self = Self(128);
    /// A receive, consumed by an RDMA WRITE with immediate.
    pub const RECV_RDMA_WITH_IMM: Self = Self(129);
}

/// A work completion (`struct ibv_wc`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The caller's number of the request.
    pub wr_id: u64,
    /// How it ended. If not success, only `wr_id`, `status`, `qp_num` and `vendor_err` mean anything.
    pub status: WcStatus,
    /// What it was.
    pub opcode: WcOpcode,
    /// Bytes received or read.
    pub byte_len: u32,
    /// Immediate data in host order, if the peer sent any.
    pub imm_data: Option<u32>,
    /// The local queue pair.
    pub qp_num: u32,
    /// The device's own code; in software [`PEER_ENDED`](Self::PEER_ENDED) or 0.
    pub vendor_err: u32,
}

impl Completion {
    /// `vendor_err` of the software layer beside [`WcStatus::RETRY_EXC_ERR`]: the peer's process has ended, or is about
    /// to and does not come back from it (between threads of one process: its context is closed). Its threads may run
    /// for some microseconds more.
    pub const PEER_ENDED: u32 = 1;

    /// A value to fill a polling array with.
    pub const EMPTY: Self = Self {
        wr_id: 0,
        status: WcStatus::SUCCESS,
        opcode: WcOpcode::SEND,
        byte_len: 0,
        imm_data: None,
        qp_num: 0,
        vendor_err: 0,
    };
}

/// Flags of a send request (`enum ibv_send_flags`). Inline is not one of them: it is how the payload is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SendFlags(pub u32);

impl SendFlags {
    /// No completion on success.
    pub const NONE: Self = Self(0);
    /// Wait for earlier READs and atomics of this queue pair (`IBV_SEND_FENCE`).
    pub const FENCE: Self = Self(1);
    /// Make a completion (`IBV_SEND_SIGNALED`). A failure makes one in any case.
    pub const SIGNALED: Self = Self(2);
    /// Ask the receiver's device for an event (`IBV_SEND_SOLICITED`).
    pub const SOLICITED: Self = Self(4);

    /// Whether every flag of `other` is set in `self`.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for SendFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A piece of a registered region (`struct ibv_sge`). It borrows the region, whose deregistration waits for the device,
/// so no request can outlive the memory.
#[derive(Debug)]
pub struct Sge<'a, M> {
    /// The registration that gives the local key.
    pub mr: &'a M,
    /// Bytes from the start of the registration.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
}

impl<'a, M> Sge<'a, M> {
    /// `len` bytes of `mr` from `offset`.
    pub const fn new(mr: &'a M, offset: usize, len: usize) -> Self {
        Self { mr, offset, len }
    }
}

impl<M> Clone for Sge<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M> Copy for Sge<'_, M> {}

/// Where the bytes of a WRITE or SEND come from.
#[derive(Debug)]
pub enum Payload<'a, M> {
    /// Private bytes, copied while posting (`IBV_SEND_INLINE`): free again when the post returns.
    Inline(&'a [u8]),
    /// Pieces of registered regions, which stay as they are until the completion.
    Regions(&'a [Sge<'a, M>]),
}

impl<M> Clone for Payload<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M> Copy for Payload<'_, M> {}

/// A place in the peer's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteAddr {
    /// Address in the peer's registration, in bytes.
    pub addr: u64,
    /// The key of the registration or window.
    pub rkey: u32,
}

/// What a send request does (`enum ibv_wr_opcode`).
#[derive(Debug)]
pub enum SendOp<'a, M, W> {
    /// RDMA WRITE; with immediate data it also consumes a receive of the peer.
    Write {
        /// The bytes.
        payload: Payload<'a, M>,
        /// Where to.
        remote: RemoteAddr,
        /// Immediate data in host order.
        imm: Option<u32>,
    },
    /// RDMA READ into local pieces.
    Read {
        /// Where to, at home.
        local: &'a [Sge<'a, M>],
        /// Where from.
        remote: RemoteAddr,
    },
    /// SEND; it needs a receive of the peer.
    Send {
        /// The bytes.
        payload: Payload<'a, M>,
        /// Immediate data in host order.
        imm: Option<u32>,
    },
    /// 64-bit compare-and-swap; the old value goes to `local`.
    CompareSwap {
        /// 8 bytes for the old value.
        local: Sge<'a, M>,
        /// 8-byte aligned word of the peer.
        remote: RemoteAddr,
        /// Expected value.
        compare: u64,
        /// New value.
        swap: u64,
    },
    /// 64-bit fetch-and-add; the old value goes to `local`.
    FetchAdd {
        /// 8 bytes for the old value.
        local: Sge<'a, M>,
        /// 8-byte aligned word of the peer.
        remote: RemoteAddr,
        /// What to add.
        add: u64,
    },
    /// Binds a type-2 memory window to part of a region (`IBV_WR_BIND_MW`). The window's key becomes `rkey`.
    BindMw {
        /// The window.
        mw: &'a W,
        /// The key the window gets: the low byte is the caller's, the rest the window's (`ibv_inc_rkey`).
        rkey: u32,
        /// The region, registered with [`Access::MW_BIND`].
        mr: &'a M,
        /// Bytes from the start of the registration.
        offset: usize,
        /// Bytes.
        len: usize,
        /// What the window allows.
        access: Access,
    },
    /// Invalidates the window bound under `rkey` (`IBV_WR_LOCAL_INV`).
    LocalInv {
        /// The window's key.
        rkey: u32,
    },
}

impl<M, W> Clone for SendOp<'_, M, W> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M, W> Copy for SendOp<'_, M, W> {}

/// A send work request (`struct ibv_send_wr`).
#[derive(Debug)]
pub struct SendWr<'a, M, W> {
    /// The caller's number, returned in the completion.
    pub wr_id: u64,
    /// What to do.
    pub op: SendOp<'a, M, W>,
    /// How.
    pub flags: SendFlags,
}

impl<M, W> Clone for SendWr<'_, M, W> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M, W> Copy for SendWr<'_, M, W> {}

/// A receive work request (`struct ibv_recv_wr`).
#[derive(Debug)]
pub struct RecvWr<'a, M> {
    /// The caller's number, returned in the completion.
    pub wr_id: u64,
    /// Where the message goes; empty for messages without bytes (immediate data only).
    pub local: &'a [Sge<'a, M>],
}

impl<M> Clone for RecvWr<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M> Copy for RecvWr<'_, M> {}

/// Path MTU: how many bytes one packet carries (`enum ibv_mtu`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(u32)]
pub enum Mtu {
    /// 256 bytes.
    B256 = 1,
    /// 512 bytes.
    B512 = 2,
    /// 1024 bytes.
    #[default]
    B1024 = 3,
    /// 2048 bytes.
    B2048 = 4,
    /// 4096 bytes.
    B4096 = 5,
}

impl Mtu {
    /// In bytes.
    #[inline]
    pub const fn bytes(self) -> usize {
        128 << self as u32
    }

    /// From the code of `enum ibv_mtu`.
    pub const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            1 => Self::B256,
            2 => Self::B512,
            3 => Self::B1024,
            4 => Self::B2048,
            5 => Self::B4096,
            _ => return None,
        })
    }
}

/// What a peer needs to know of a queue pair to connect to it. Travels over the control connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Endpoint {
    /// The software context's number; 0 on a NIC.
    pub node: u64,
    /// Queue pair number, 24 bits.
    pub qp_num: u32,
    /// First packet sequence number it sends, 24 bits, drawn by the operating system.
    pub psn: u32,
    /// Global identifier of the port (RoCE: of the address); zero in software.
    pub gid: [u8; 16],
    /// Local identifier (InfiniBand only).
    pub lid: u16,
}

impl Endpoint {
    /// Bytes of the encoded form.
    pub const BYTES: usize = 40;

    /// The fixed encoded form, little-endian, with a version byte.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[0] = 1;
        out[2..4].copy_from_slice(&self.lid.to_le_bytes());
        out[4..8].copy_from_slice(&self.qp_num.to_le_bytes());
        out[8..12].copy_from_slice(&self.psn.to_le_bytes());
        out[16..24].copy_from_slice(&self.node.to_le_bytes());
        out[24..40].copy_from_slice(&self.gid);
        out
    }

    /// Decodes what [`Endpoint::to_bytes`] made; `None` for another version or numbers out of range.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let word =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let (qp_num, psn) = (word(4), word(8));
        let reserved = bytes[1] == 0 && bytes[12..16] == [0; 4];
        (bytes[0] == 1 && reserved && qp_num < 1 << 24 && psn < 1 << 24).then(|| Self {
            node: u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes")),
            qp_num,
            psn,
            gid: bytes[24..40].try_into().expect("sixteen bytes"),
            lid: u16::from_le_bytes([bytes[2], bytes[3]]),
        })
    }
}

/// Sizes of a queue pair (`struct ibv_qp_cap`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpCap {
    /// Outstanding send requests.
    pub max_send_wr: u32,
    /// Outstanding receive requests.
    pub max_recv_wr: u32,
    /// Pieces of one send request.
    pub max_send_sge: u32,
    /// Pieces of one receive request.
    pub max_recv_sge: u32,
    /// Inline payload in bytes.
    pub max_inline_data: u32,
}

impl Default for QpCap {
    /// 128 requests in each direction (fewer receives where the limit is lower), one piece each, 128 bytes inline. Not
    /// every device has that much: one that offers less inline data refuses these sizes, so take the smaller of this
    /// and what its capabilities say.
    fn default() -> Self {
        Self {
            max_send_wr: 128,
            max_recv_wr: if MAX_RECV_WR < 128 {
                MAX_RECV_WR as u32
            } else {
                128
            },
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: 128,
        }
    }
}

/// Attributes of the change to ready-to-receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtrAttr {
    /// The peer.
    pub remote: Endpoint,
    /// Packet size on the path.
    pub path_mtu: Mtu,
    /// READs and atomics of the peer served at once.
    pub max_dest_rd_atomic: u8,
    /// How long the peer waits when no receive is posted: code 0 to 31 of the specification (12 is 0.64 ms).
    pub min_rnr_timer: u8,
}

impl RtrAttr {
    /// The usual attributes towards `remote`.
    pub const fn new(remote: Endpoint) -> Self {
        Self {
            remote,
            path_mtu: Mtu::B1024,
            max_dest_rd_atomic: 16,
            min_rnr_timer: 12,
        }
    }
}

/// Attributes of the change to ready-to-send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtsAttr {
    /// Time until a packet is sent again: 4.096 µs · 2^timeout; 0 waits for ever.
    pub timeout: u8,
    /// How often a packet is sent again, 0 to 7. On kernel Soft-RoCE 7 means for ever: use at most 6.
    pub retry_cnt: u8,
    /// How often a receiver that is not ready is asked again, 0 to 7; 7 means for ever.
    pub rnr_retry: u8,
    /// READs and atomics in flight.
    pub max_rd_atomic: u8,
}

impl Default for RtsAttr {
    fn default() -> Self {
        Self {
            timeout: 14,
            retry_cnt: 6,
            rnr_retry: 6,
            max_rd_atomic: 16,
        }
    }
}

/// A change of a queue pair (`ibv_modify_qp(3)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modify {
    /// RESET to INIT with what the peer may do through this queue pair.
    Init(Access),
    /// INIT to RTR.
    Rtr(RtrAttr),
    /// RTR to RTS.
    Rts(RtsAttr),
    /// Other access flags, state kept (INIT, RTS; the software backends take it in RTR too).
    Access(Access),
    /// Any state to ERR: everything outstanding is flushed.
    Err,
    /// Any state to RESET: everything outstanding is forgotten, completions included. On kernel Soft-RoCE completions
    /// made before may still be polled.
    Reset,
}

impl Modify {
    /// The attribute's name, for messages.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Init(_) => "INIT",
            Self::Rtr(_) => "RTR",
            Self::Rts(_) => "RTS",
            Self::Access(_) => "ACCESS_FLAGS",
            Self::Err => "ERR",
            Self::Reset => "RESET",
        }
    }
}

/// An asynchronous event (`enum ibv_event_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AsyncEvent {
    /// A completion queue ran over.
    CqError,
    /// The queue pair failed: a local catastrophe.
    QpFatal {
        /// Its number.
        qp_num: u32,
    },
    /// The peer broke the transport's rules or the flags of the queue pair.
    QpRequestError {
        /// Its number.
        qp_num: u32,
    },
    /// The peer used a key, a range or a right it does not have.
    QpAccessError {
        /// Its number.
        qp_num: u32,
    },
    /// The first message of the peer arrived while in RTR.
    CommunicationEstablished {
        /// Its number.
        qp_num: u32,
    },
    /// A port went up (true) or down.
    Port {
        /// Whether it is up.
        active: bool,
    },
    /// The device is gone or broken.
    DeviceFatal,
    /// Any other event, by libibverbs' number.
    Other(u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_round_trips_and_rejects_what_it_does_not_know() {
        let e = Endpoint {
            node: 0x1122_3344_5566_7788,
            qp_num: 0xab_cdef,
            psn: 0x12_3456,
            gid: [7; 16],
            lid: 9,
        };
        let bytes = e.to_bytes();
        assert_eq!(Endpoint::from_bytes(&bytes), Some(e));
        for (at, value) in [(0, 2), (1, 1), (7, 1), (11, 1), (13, 1)] {
            let mut bad = bytes;
            bad[at] = value;
            assert_eq!(Endpoint::from_bytes(&bad), None, "byte {at}");
        }
    }

    #[test]
    fn access_rules() {
        assert!(!Access::REMOTE_WRITE.is_registrable());
        assert!(
            !Access(1 << 20).is_registrable(),
            "relaxed ordering is refused"
        );
        assert!((Access::REMOTE_WRITE | Access::LOCAL_WRITE).is_registrable());
        assert!(Access::REMOTE_READ.is_registrable());
        assert_eq!(Mtu::from_code(Mtu::B4096 as u32), Some(Mtu::B4096));
        assert_eq!((Mtu::B256.bytes(), Mtu::B4096.bytes()), (256, 4096));
    }
}
