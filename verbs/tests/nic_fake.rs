//! The NIC backend over the fake provider: every operation, refusal, change of state and fall-back, with no library and
//! under Miri.

#![cfg(feature = "fake")]

use std::collections::HashSet;

use mu_verbs::nic::fake::{self, FakeOptions};
use mu_verbs::nic::{
    self, GidKind, LinkLayer, Nic, NicControl, NicCq, NicMr, NicMw, NicOptions, NicPd, NicQp,
    PortState,
};
use mu_verbs::{
    Access, AsyncEvent, Atomicity, BackendKind, Barrier, Completion, CompletionQueue, Context,
    Endpoint, Error, Memory, MemoryRegion, MemoryWindow, Modify, Mtu, Payload, Placement,
    PostError, QpCap, QpControl, QpState, QueuePair, RecvWr, RemoteAddr, RtrAttr, RtsAttr,
    SendFlags, SendOp, SendWr, Sge, WcOpcode, WcStatus, Wr, next_rkey,
};

const BYTES: usize = 4096;
const FULL: Access = Access(0b1_1111);

fn open(device: &str, options: FakeOptions) -> Nic {
    Nic::open_with(fake::lib(options), device, &NicOptions::default()).unwrap()
}

/// One end of a connection.
struct Side {
    nic: Nic,
    pd: NicPd,
    send_cq: NicCq,
    recv_cq: NicCq,
    qp: NicQp,
    memory: Memory,
    mr: NicMr,
}

impl Side {
    fn new(device: &str, options: FakeOptions, cap: &QpCap) -> Self {
        let nic = open(device, options);
        let pd = nic.alloc_pd().unwrap();
        let send_cq = nic.create_cq(256).unwrap();
        let recv_cq = nic.create_cq(256).unwrap();
        let qp = nic.create_qp(&pd, &send_cq, &recv_cq, cap).unwrap();
        let memory = nic.alloc_memory(BYTES).unwrap();
        let mr = nic.reg_mr(&pd, &memory, 0..BYTES, FULL).unwrap();
        Self {
            nic,
            pd,
            send_cq,
            recv_cq,
            qp,
            memory,
            mr,
        }
    }

    fn control(&self) -> NicControl {
        self.qp.control().clone()
    }

    fn state(&self) -> QpState {
        self.qp.control().state().unwrap()
    }

    fn post(&mut self, op: SendOp<'_, NicMr, NicMw>) -> Result<(), PostError> {
        self.qp.post_send(&SendWr {
            wr_id: 7,
            op,
            flags: SendFlags::SIGNALED,
        })
    }

    /// The one completion that is there.
    fn sent(&mut self) -> Completion {
        one(&mut self.send_cq)
    }

    fn received(&mut self) -> Completion {
        one(&mut self.recv_cq)
    }

    fn event(&self) -> Option<AsyncEvent> {
        self.nic.poll_async_event().unwrap()
    }
}

fn one(cq: &mut NicCq) -> Completion {
    let mut out = [Completion::EMPTY; 4];
    assert_eq!(cq.poll(&mut out), 1, "exactly one completion");
    out[0]
}

struct Pair {
    a: Side,
    b: Side,
}

impl Pair {
    fn new() -> Self {
        Self::with(
            FakeOptions::default(),
            &QpCap {
                max_send_sge: 4,
                max_recv_sge: 4,
                ..QpCap::default()
            },
        )
    }

    fn with(options: FakeOptions, cap: &QpCap) -> Self {
        let pair = Self {
            a: Side::new("fake0", options, cap),
            b: Side::new("fake1", options, cap),
        };
        pair.connect();
        pair
    }

    fn connect(&self) {
        for side in [&self.a, &self.b] {
            side.control().modify(&Modify::Init(FULL)).unwrap();
        }
        for (side, peer) in [(&self.a, &self.b), (&self.b, &self.a)] {
            side.control()
                .modify(&Modify::Rtr(RtrAttr::new(peer.control().endpoint())))
                .unwrap();
            side.control()
                .modify(&Modify::Rts(RtsAttr::default()))
                .unwrap();
        }
    }

    fn write(&mut self, at: usize, len: usize) -> Result<(), PostError> {
        let remote = self.b.mr.remote(at);
        let pieces = [Sge::new(&self.a.mr, at, len)];
        let op = SendOp::Write {
            payload: Payload::Regions(&pieces),
            remote,
            imm: None,
        };
        self.a.qp.post_send(&SendWr {
            wr_id: 7,
            op,
            flags: SendFlags::SIGNALED,
        })
    }

    /// Writes 8 bytes and says how that ended.
    fn write_status(&mut self) -> WcStatus {
        self.write(0, 8).unwrap();
        self.a.sent().status
    }
}

fn inline_write(bytes: &[u8], remote: RemoteAddr, flags: SendFlags) -> Wr<'_, Nic> {
    SendWr {
        wr_id: 1,
        op: SendOp::Write {
            payload: Payload::Inline(bytes),
            remote,
            imm: None,
        },
        flags,
    }
}

fn errno_of<T>(result: Result<T, Error>, wanted: i32) -> String {
    let error = result.map(drop).unwrap_err();
    assert_eq!(error.errno(), wanted, "{error}");
    error.to_string()
}

#[test]
fn devices_are_listed_with_ports_and_addresses() {
    let list = nic::devices(fake::lib(FakeOptions::default())).unwrap();
    assert_eq!(list.reason, None);
    let names: Vec<_> = list.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["fake0", "fake1"]);
    for device in list {
        assert_eq!(device.problem, None);
        assert!(
            device.guid >> 32 != 0,
            "host byte order: {:#x}",
            device.guid
        );
        assert_eq!(device.driver, "unknown");
        let [port] = device.ports.as_slice() else {
            panic!("one port")
        };
        assert_eq!(
            (port.port, port.state, port.link_layer),
            (1, PortState::ACTIVE, LinkLayer::ETHERNET)
        );
        assert_eq!((port.active_mtu, port.max_mtu), (Mtu::B4096, Mtu::B4096));
        let kinds: Vec<_> = port.gids.iter().map(|g| (g.index, g.kind)).collect();
        assert_eq!(kinds, [(0, GidKind::RoceV1), (1, GidKind::RoceV2)]);
    }
}

#[test]
fn opening_chooses_the_routed_address_and_refuses_what_is_not_there() {
    let lib = fake::lib(FakeOptions::default());
    let nic = Nic::open_with(lib, "fake1", &NicOptions::default()).unwrap();
    assert_eq!(
        nic.gid().unwrap().to_string(),
        "1: ::ffff:10.0.0.2 (RoCE v2)"
    );
    let first = Nic::open_with(
        lib,
        "fake1",
        &NicOptions {
            gid_index: Some(0),
            ..NicOptions::default()
        },
    )
    .unwrap();
    assert_eq!(first.gid().unwrap().kind, GidKind::RoceV1);

    let error = errno_of(
        Nic::open_with(lib, "mlx5_9", &NicOptions::default()),
        libc::ENODEV,
    );
    assert!(
        error.contains("mlx5_9") && error.contains("fake0, fake1"),
        "{error}"
    );
    let port = NicOptions {
        port: 2,
        ..NicOptions::default()
    };
    assert!(
        errno_of(Nic::open_with(lib, "fake0", &port), libc::EINVAL).contains("ports 1 to 1, not 2")
    );
    let gid = NicOptions {
        gid_index: Some(9),
        ..NicOptions::default()
    };
    let error = errno_of(Nic::open_with(lib, "fake0", &gid), libc::EINVAL);
    assert!(
        error.contains("no GID at index 9") && error.contains("1: ::ffff:10.0.0.1 (RoCE v2)"),
        "{error}"
    );
    let level = NicOptions {
        service_level: 16,
        ..NicOptions::default()
    };
    errno_of(Nic::open_with(lib, "fake0", &level), libc::EINVAL);
}

#[test]
fn capabilities_are_asked_or_tried() {
    let able = open("fake0", FakeOptions::default());
    let caps = able.caps();
    assert_eq!(
        (caps.backend, caps.device.as_str()),
        (BackendKind::Nic, "fake0")
    );
    assert_eq!(caps.max_inline_data, 256);
    assert_eq!(
        (caps.max_sge, caps.max_recv_sge, caps.max_qp_rd_atom),
        (8, 8, 16)
    );
    assert_eq!((caps.max_msg, caps.max_mtu), (1 << 30, Mtu::B4096));
    assert_eq!(
        (caps.atomicity, caps.placement),
        (Atomicity::Hca, Placement::Unknown)
    );
    assert!(caps.rereg_mr && caps.memory_windows && caps.target_cpu_free);
    assert_eq!(
        (caps.revoke.reregister, caps.revoke.window),
        (Barrier::Yes, Barrier::Unknown)
    );

    let options = FakeOptions {
        rereg_mr: false,
        memory_windows: false,
        max_inline: 100,
        ..FakeOptions::default()
    };
    let poor = open("fake0", options);
    let caps = poor.caps();
    assert!(!caps.rereg_mr && !caps.memory_windows);
    assert_eq!(caps.revoke.window, Barrier::Unsupported);
    assert_eq!(
        caps.max_inline_data, 64,
        "the largest half of 1024 that fits"
    );
}

#[test]
fn writes_of_every_size_land_whole_and_nowhere_else() {
    let mut pair = Pair::new();
    for len in [0, 1, 3, 7, 8, 9, 63, 64, 65, 1023, 1024, 1025, 2000] {
        pair.a
            .memory
            .write_bytes(16, &(0..len).map(|i| (i * 7 + 1) as u8).collect::<Vec<_>>());
        pair.b.memory.write_bytes(0, &[0xee; BYTES]);
        pair.write(16, len).unwrap();
        let done = pair.a.sent();
        assert_eq!(
            (done.wr_id, done.status, done.opcode),
            (7, WcStatus::SUCCESS, WcOpcode::RDMA_WRITE)
        );
        assert_eq!(done.qp_num, pair.a.control().qp_num());
        let mut got = vec![0; len + 32];
        pair.b.memory.read_bytes(0, &mut got);
        let expected: Vec<_> = (0..len).map(|i| (i * 7 + 1) as u8).collect();
        assert_eq!(got[16..16 + len], expected, "{len}");
        assert!(
            got[..16].iter().chain(&got[16 + len..]).all(|b| *b == 0xee),
            "{len}"
        );
    }
}

#[test]
fn inline_bytes_are_free_again_after_the_post() {
    let mut pair = Pair::new();
    let limit = pair.a.qp.cap().max_inline_data as usize;
    for len in [0, 1, 8, 13, limit] {
        let mut bytes = vec![0x5a; len];
        let remote = pair.b.mr.remote(8);
        pair.a
            .qp
            .post_send(&inline_write(&bytes, remote, SendFlags::SIGNALED))
            .unwrap();
        bytes.fill(0);
        assert_eq!(pair.a.sent().status, WcStatus::SUCCESS);
        let mut got = vec![0; len];
        pair.b.memory.read_bytes(8, &mut got);
        assert!(got.iter().all(|b| *b == 0x5a), "{len}");
    }
    let bytes = vec![0; limit + 1];
    let refused = pair
        .a
        .qp
        .post_send(&inline_write(&bytes, pair.b.mr.remote(0), SendFlags::NONE));
    assert_eq!(
        refused,
        Err(PostError::InlineTooLong {
            len: limit + 1,
            limit
        })
    );
    // A flag that is not in the vocabulary (IBV_SEND_INLINE is 8) changes nothing: this is longer than inline data can
    // be.
    pair.a.memory.store(0, 42);
    let pieces = [Sge::new(&pair.a.mr, 0, 2 * limit)];
    let op = SendOp::Write {
        payload: Payload::Regions(&pieces),
        remote: pair.b.mr.remote(0),
        imm: None,
    };
    pair.a
        .qp
        .post_send(&SendWr {
            wr_id: 0,
            op,
            flags: SendFlags(8 | 2),
        })
        .unwrap();
    assert_eq!(pair.a.sent().status, WcStatus::SUCCESS);
    assert_eq!(pair.b.memory.load(0), 42);
}

#[test]
fn immediate_data_and_messages_reach_receives_in_host_order() {
    let mut pair = Pair::new();
    let b = &mut pair.b;
    b.qp.post_recv(&RecvWr {
        wr_id: 50,
        local: &[],
    })
    .unwrap();
    b.qp.post_recv(&RecvWr {
        wr_id: 51,
        local: &[Sge::new(&b.mr, 64, 8), Sge::new(&b.mr, 128, 0)],
    })
    .unwrap();
    b.qp.post_recv(&RecvWr {
        wr_id: 52,
        local: &[Sge::new(&b.mr, 128, 8), Sge::new(&b.mr, 256, 8)],
    })
    .unwrap();
    let remote = pair.b.mr.remote(0);
    let op = SendOp::Write {
        payload: Payload::Inline(b"12345678"),
        remote,
        imm: Some(0x0102_0304),
    };
    pair.a.post(op).unwrap();
    assert_eq!(pair.a.sent().opcode, WcOpcode::RDMA_WRITE);
    let got = pair.b.received();
    assert_eq!(
        (got.wr_id, got.opcode, got.byte_len),
        (50, WcOpcode::RECV_RDMA_WITH_IMM, 8)
    );
    assert_eq!(got.imm_data, Some(0x0102_0304));
    assert_eq!(pair.b.memory.load(0).to_le_bytes(), *b"12345678");

    pair.a
        .post(SendOp::Send {
            payload: Payload::Inline(b"abcd"),
            imm: None,
        })
        .unwrap();
    assert_eq!(pair.a.sent().opcode, WcOpcode::SEND);
    let got = pair.b.received();
    assert_eq!(
        (got.wr_id, got.opcode, got.byte_len, got.imm_data),
        (51, WcOpcode::RECV, 4, None)
    );

    let pieces = [Sge::new(&pair.a.mr, 0, 4), Sge::new(&pair.a.mr, 8, 8)];
    pair.a.memory.write_bytes(0, b"0123....456789ab");
    let op = SendOp::Send {
        payload: Payload::Regions(&pieces),
        imm: Some(9),
    };
    pair.a
        .qp
        .post_send(&SendWr {
            wr_id: 3,
            op,
            flags: SendFlags::SIGNALED | SendFlags::SOLICITED,
        })
        .unwrap();
    assert_eq!(pair.a.sent().status, WcStatus::SUCCESS);
    let got = pair.b.received();
    assert_eq!((got.wr_id, got.byte_len, got.imm_data), (52, 12, Some(9)));
    let mut bytes = [0; 8];
    pair.b.memory.read_bytes(128, &mut bytes);
    assert_eq!(bytes, *b"01234567");
    pair.b.memory.read_bytes(256, &mut bytes[..4]);
    assert_eq!(bytes[..4], *b"89ab");
}

#[test]
fn reads_and_atomics_bring_back_what_was_there() {
    let mut pair = Pair::new();
    pair.b.memory.store(3, 100);
    let remote = pair.b.mr.remote(24);
    let (qp, mr) = (&mut pair.a.qp, &pair.a.mr);
    let mut post = |op: SendOp<'_, _, _>| {
        qp.post_send(&SendWr {
            wr_id: 0,
            op,
            flags: SendFlags::SIGNALED,
        })
        .unwrap()
    };
    let whole = [Sge::new(mr, 0, 8)];
    post(SendOp::Read {
        local: &whole,
        remote,
    });
    post(SendOp::FetchAdd {
        local: Sge::new(mr, 8, 8),
        remote,
        add: 5,
    });
    post(SendOp::CompareSwap {
        local: Sge::new(mr, 16, 8),
        remote,
        compare: 105,
        swap: 7,
    });
    post(SendOp::CompareSwap {
        local: Sge::new(mr, 24, 8),
        remote,
        compare: 105,
        swap: 8,
    });
    let mut out = [Completion::EMPTY; 8];
    assert_eq!(pair.a.send_cq.poll(&mut out), 4);
    let opcodes: Vec<_> = out[..4].iter().map(|c| (c.status, c.opcode)).collect();
    let ok = WcStatus::SUCCESS;
    let swap = WcOpcode::COMP_SWAP;
    assert_eq!(
        opcodes,
        [
            (ok, WcOpcode::RDMA_READ),
            (ok, WcOpcode::FETCH_ADD),
            (ok, swap),
            (ok, swap)
        ]
    );
    assert_eq!(
        [0, 1, 2, 3].map(|i| pair.a.memory.load(i)),
        [100, 100, 105, 7]
    );
    assert_eq!(pair.b.memory.load(3), 7);

    let short = SendOp::FetchAdd {
        local: Sge::new(&pair.a.mr, 8, 4),
        remote,
        add: 5,
    };
    let refused = pair.a.qp.post_send(&SendWr {
        wr_id: 0,
        op: short,
        flags: SendFlags::NONE,
    });
    assert!(
        matches!(
            refused,
            Err(PostError::Invalid {
                errno: libc::EINVAL,
                ..
            })
        ),
        "{refused:?}"
    );
}

#[test]
fn unsignalled_requests_are_silent_and_hold_their_slots() {
    let mut pair = Pair::with(
        FakeOptions::default(),
        &QpCap {
            max_send_wr: 8,
            ..QpCap::default()
        },
    );
    let remote = pair.b.mr.remote(0);
    assert_eq!(pair.a.qp.cap().max_send_wr, 8);
    for _ in 0..8 {
        pair.a
            .qp
            .post_send(&inline_write(b"12345678", remote, SendFlags::NONE))
            .unwrap();
    }
    let full = PostError::QueueFull {
        qp_num: pair.a.control().qp_num(),
        depth: 8,
    };
    let wr = inline_write(b"12345678", remote, SendFlags::SIGNALED);
    assert_eq!(pair.a.qp.post_send(&wr), Err(full));
    assert_eq!(pair.a.send_cq.poll(&mut [Completion::EMPTY; 4]), 0);
    assert_eq!(pair.a.send_cq.poll(&mut []), 0);
}

#[test]
fn a_list_is_posted_in_order_up_to_the_request_that_is_refused() {
    let cap = QpCap {
        max_send_wr: 128,
        max_send_sge: 4,
        ..QpCap::default()
    };
    let mut pair = Pair::with(FakeOptions::default(), &cap);
    let remote = pair.b.mr.remote(0);
    let values: Vec<[u8; 8]> = (0_u64..100).map(|i| (i + 1).to_le_bytes()).collect();
    let mut wrs: Vec<Wr<'_, Nic>> = values
        .iter()
        .enumerate()
        .map(|(i, bytes)| {
            let remote = RemoteAddr {
                addr: remote.addr + 8 * i as u64,
                ..remote
            };
            SendWr {
                wr_id: i as u64,
                ..inline_write(bytes, remote, SendFlags::SIGNALED)
            }
        })
        .collect();
    pair.a.qp.post_send_list(&[]).unwrap();
    pair.a.qp.post_send_list(&wrs).unwrap();
    let mut out = [Completion::EMPTY; 128];
    assert_eq!(pair.a.send_cq.poll(&mut out), 100);
    assert!(
        out[..100]
            .iter()
            .enumerate()
            .all(|(i, c)| c.wr_id == i as u64 && c.status.is_success())
    );
    assert!((0..100).all(|i| pair.b.memory.load(i) == i as u64 + 1));

    // A check fails in the middle: those before it are posted.
    let long = vec![0; pair.a.qp.cap().max_inline_data as usize + 1];
    wrs[40] = inline_write(&long, remote, SendFlags::SIGNALED);
    let (posted, why) = pair.a.qp.post_send_list(&wrs).unwrap_err();
    assert_eq!(posted, 40);
    assert!(matches!(why, PostError::InlineTooLong { .. }));
    assert_eq!(pair.a.send_cq.poll(&mut out), 40);

    // The queue fills up in the middle.
    wrs[40] = wrs[39];
    pair.a.qp.post_send_list(&wrs).unwrap();
    let (posted, why) = pair.a.qp.post_send_list(&wrs).unwrap_err();
    assert_eq!((posted, why.errno()), (28, libc::ENOMEM));

    // Requests with many pieces: the array of pieces fills before that of requests.
    assert_eq!(pair.a.send_cq.poll(&mut out), 128);
    let pieces: Vec<_> = (0..4).map(|i| Sge::new(&pair.a.mr, 64 * i, 16)).collect();
    for i in 0..8 {
        pair.a.memory.store(8 * (i / 2) + i % 2, i as u64 + 70);
    }
    let wide: Vec<Wr<'_, Nic>> = (0..50)
        .map(|i| {
            let remote = pair.b.mr.remote(64 * i);
            let op = SendOp::Write {
                payload: Payload::Regions(&pieces),
                remote,
                imm: None,
            };
            SendWr {
                wr_id: i as u64,
                op,
                flags: SendFlags::SIGNALED,
            }
        })
        .collect();
    pair.a.qp.post_send_list(&wide).unwrap();
    assert_eq!(pair.a.send_cq.poll(&mut out), 50);
    assert!(out[..50].iter().all(|c| c.status.is_success()));
    for i in 0..50 {
        assert!(
            (0..8).all(|word| pair.b.memory.load(8 * i + word) == word as u64 + 70),
            "request {i}"
        );
    }
}

#[test]
fn what_a_post_refuses() {
    let mut pair = Pair::new();
    let remote = pair.b.mr.remote(0);
    let pieces = [Sge::new(&pair.a.mr, 0, 8); 5];
    let five = SendOp::Write {
        payload: Payload::Regions(&pieces),
        remote,
        imm: None,
    };
    let post = |qp: &mut NicQp, op| {
        qp.post_send(&SendWr {
            wr_id: 0,
            op,
            flags: SendFlags::NONE,
        })
    };
    assert_eq!(
        post(&mut pair.a.qp, five),
        Err(PostError::TooManySges { count: 5, limit: 4 })
    );
    let five = RecvWr {
        wr_id: 0,
        local: &pieces,
    };
    assert_eq!(
        pair.a.qp.post_recv(&five),
        Err(PostError::TooManySges { count: 5, limit: 4 })
    );

    let long = [Sge::new(&pair.a.mr, 0, 1 << 30), Sge::new(&pair.a.mr, 0, 1)];
    let op = SendOp::Read {
        local: &long,
        remote,
    };
    assert_eq!(
        post(&mut pair.a.qp, op),
        Err(PostError::TooLong {
            len: (1 << 30) + 1,
            limit: 1 << 30
        })
    );

    let foreign = [Sge::new(&pair.b.mr, 0, 8)];
    let op = SendOp::Write {
        payload: Payload::Regions(&foreign),
        remote,
        imm: None,
    };
    assert!(matches!(
        post(&mut pair.a.qp, op),
        Err(PostError::Invalid {
            errno: libc::EINVAL,
            ..
        })
    ));

    let depth = pair.a.qp.cap().max_recv_wr;
    for slot in 0..depth {
        pair.a
            .qp
            .post_recv(&RecvWr {
                wr_id: slot.into(),
                local: &[],
            })
            .unwrap();
    }
    let full = pair.a.qp.post_recv(&RecvWr {
        wr_id: 0,
        local: &[],
    });
    assert!(
        matches!(full, Err(PostError::QueueFull { depth: d, .. }) if d == depth),
        "{full:?}"
    );
}

#[test]
fn posts_are_refused_by_state() {
    let mut side = Side::new("fake0", FakeOptions::default(), &QpCap::default());
    let qp_num = side.control().qp_num();
    let remote = side.mr.remote(0);
    let wr = inline_write(b"12345678", remote, SendFlags::SIGNALED);
    let wrong = |state| PostError::WrongState { qp_num, state };
    let recv = RecvWr {
        wr_id: 5,
        local: &[],
    };
    assert_eq!(side.qp.post_send(&wr), Err(wrong(QpState::Reset)));
    assert_eq!(
        side.qp.post_send_list(&[wr]),
        Err((0, wrong(QpState::Reset)))
    );
    assert_eq!(side.qp.post_recv(&recv), Err(wrong(QpState::Reset)));
    side.control().modify(&Modify::Init(FULL)).unwrap();
    assert_eq!(side.qp.post_send(&wr), Err(wrong(QpState::Init)));
    side.qp.post_recv(&recv).unwrap();
    let own = side.control().endpoint();
    side.control()
        .modify(&Modify::Rtr(RtrAttr::new(own)))
        .unwrap();
    assert_eq!(side.qp.post_send(&wr), Err(wrong(QpState::Rtr)));
    side.control().modify(&Modify::Err).unwrap();
    assert_eq!(side.received().status, WcStatus::WR_FLUSH_ERR);
    side.qp.post_send(&wr).unwrap();
    side.qp.post_recv(&recv).unwrap();
    assert_eq!(side.sent().status, WcStatus::WR_FLUSH_ERR);
    assert_eq!(side.received().status, WcStatus::WR_FLUSH_ERR);
}

#[test]
fn the_state_table_is_kept() {
    let states = [
        QpState::Reset,
        QpState::Init,
        QpState::Rtr,
        QpState::Rts,
        QpState::Err,
    ];
    for from in states {
        for change in 0..6 {
            let side = Side::new("fake0", FakeOptions::default(), &QpCap::default());
            let control = side.control();
            let to = |change| match change {
                0 => Modify::Init(FULL),
                1 => Modify::Rtr(RtrAttr::new(control.endpoint())),
                2 => Modify::Rts(RtsAttr::default()),
                3 => Modify::Access(Access::NONE),
                4 => Modify::Err,
                _ => Modify::Reset,
            };
            let steps: &[usize] = match from {
                QpState::Reset => &[],
                QpState::Init => &[0],
                QpState::Rtr => &[0, 1],
                QpState::Rts => &[0, 1, 2],
                QpState::Err => &[0, 4],
            };
            for step in steps {
                control.modify(&to(*step)).unwrap();
            }
            assert_eq!(control.state().unwrap(), from);
            let asked = to(change);
            let expected = match (from, change) {
                (QpState::Reset, 0) => Some(QpState::Init),
                (QpState::Init, 1) => Some(QpState::Rtr),
                (QpState::Rtr, 2) => Some(QpState::Rts),
                // The verbs' table has no RTR to RTR.
                (QpState::Init | QpState::Rts, 3) => Some(from),
                (_, 4) => Some(QpState::Err),
                (_, 5) => Some(QpState::Reset),
                _ => None,
            };
            let result = control.modify(&asked);
            match expected {
                Some(state) => {
                    result.unwrap_or_else(|e| panic!("{from:?} by {}: {e}", asked.name()));
                    assert_eq!(
                        control.state().unwrap(),
                        state,
                        "{from:?} by {}",
                        asked.name()
                    );
                }
                None => {
                    let error = errno_of(result, libc::EINVAL);
                    assert!(
                        error.contains(&format!("{from:?}")) && error.contains(asked.name()),
                        "{error}"
                    );
                    assert_eq!(control.state().unwrap(), from, "unchanged");
                }
            }
        }
    }
}

#[test]
fn attributes_out_of_range_are_named() {
    let side = Side::new("fake0", FakeOptions::default(), &QpCap::default());
    let control = side.control();
    let refused = |change, word: &str| {
        let error = errno_of(control.modify(&change), libc::EINVAL);
        assert!(error.contains(word), "{error}");
    };
    refused(Modify::Init(Access(1 << 20)), "access flags");
    control.modify(&Modify::Init(FULL)).unwrap();
    let own = control.endpoint();
    let rtr = RtrAttr::new(own);
    refused(
        Modify::Rtr(RtrAttr::new(Endpoint {
            qp_num: 1 << 24,
            ..own
        })),
        "24 bits",
    );
    refused(
        Modify::Rtr(RtrAttr::new(Endpoint {
            psn: 1 << 24,
            ..own
        })),
        "24 bits",
    );
    refused(
        Modify::Rtr(RtrAttr::new(Endpoint {
            gid: [0; 16],
            ..own
        })),
        "no GID",
    );
    refused(
        Modify::Rtr(RtrAttr {
            min_rnr_timer: 32,
            ..rtr
        }),
        "min_rnr_timer",
    );
    // More than the device and the path have is lowered to what they have.
    control
        .modify(&Modify::Rtr(RtrAttr {
            max_dest_rd_atomic: 255,
            path_mtu: Mtu::B4096,
            ..rtr
        }))
        .unwrap();
    refused(
        Modify::Rts(RtsAttr {
            retry_cnt: 8,
            ..RtsAttr::default()
        }),
        "retry_cnt",
    );
    refused(
        Modify::Rts(RtsAttr {
            rnr_retry: 8,
            ..RtsAttr::default()
        }),
        "rnr_retry",
    );
    refused(
        Modify::Rts(RtsAttr {
            timeout: 32,
            ..RtsAttr::default()
        }),
        "timeout",
    );
    control
        .modify(&Modify::Rts(RtsAttr {
            max_rd_atomic: 255,
            ..RtsAttr::default()
        }))
        .unwrap();
}

#[test]
fn packet_numbers_are_drawn_anew_by_every_init() {
    let side = Side::new("fake0", FakeOptions::default(), &QpCap::default());
    let control = side.control();
    let mut seen = HashSet::new();
    for _ in 0..8 {
        control.modify(&Modify::Init(FULL)).unwrap();
        let endpoint = control.endpoint();
        assert!(endpoint.psn < 1 << 24);
        assert_eq!((endpoint.node, endpoint.qp_num), (0, control.qp_num()));
        assert_eq!(endpoint.gid, side.nic.gid().unwrap().gid);
        assert_eq!(Endpoint::from_bytes(&endpoint.to_bytes()), Some(endpoint));
        seen.insert(endpoint.psn);
        control.modify(&Modify::Reset).unwrap();
    }
    assert!(seen.len() >= 7, "eight draws of 24 bits: {seen:?}");
}

#[test]
fn errors_of_the_responder_fail_both_ends_and_say_why() {
    let bad_key = |pair: &mut Pair| {
        let remote = RemoteAddr {
            rkey: pair.b.mr.rkey() ^ 0xffff_0000,
            ..pair.b.mr.remote(0)
        };
        pair.a
            .post(SendOp::Write {
                payload: Payload::Inline(b"12345678"),
                remote,
                imm: None,
            })
            .unwrap();
    };
    let bad_bounds = |pair: &mut Pair| {
        let remote = pair.b.mr.remote(BYTES - 4);
        pair.a
            .post(SendOp::Write {
                payload: Payload::Inline(b"12345678"),
                remote,
                imm: None,
            })
            .unwrap();
    };
    let bad_flags = |pair: &mut Pair| {
        pair.b
            .control()
            .modify(&Modify::Access(Access::REMOTE_READ))
            .unwrap();
        pair.write(0, 8).unwrap();
    };
    type Case = (fn(&mut Pair), WcStatus, fn(u32) -> AsyncEvent);
    let cases: [Case; 3] = [
        (bad_key, WcStatus::REM_ACCESS_ERR, |qp_num| {
            AsyncEvent::QpAccessError { qp_num }
        }),
        (bad_bounds, WcStatus::REM_ACCESS_ERR, |qp_num| {
            AsyncEvent::QpAccessError { qp_num }
        }),
        (bad_flags, WcStatus::REM_INV_REQ_ERR, |qp_num| {
            AsyncEvent::QpRequestError { qp_num }
        }),
    ];
    for (act, status, event) in cases {
        let mut pair = Pair::new();
        pair.b.memory.store(0, 1);
        act(&mut pair);
        let failed = pair.a.sent();
        assert_eq!((failed.status, failed.wr_id), (status, 7));
        assert!(failed.status.may_be_lost_right());
        assert_eq!(pair.b.memory.load(0), 1);
        assert_eq!(
            (pair.a.state(), pair.b.state()),
            (QpState::Err, QpState::Err)
        );
        assert_eq!(pair.b.event(), Some(event(pair.b.control().qp_num())));
        assert_eq!(pair.b.event(), None);
        // What follows is flushed, also if it did not ask for a completion.
        let wr = inline_write(b"12345678", pair.b.mr.remote(0), SendFlags::NONE);
        pair.a.qp.post_send(&wr).unwrap();
        assert_eq!(pair.a.sent().status, WcStatus::WR_FLUSH_ERR);
        // And both come back.
        pair.a.control().modify(&Modify::Reset).unwrap();
        pair.b.control().modify(&Modify::Reset).unwrap();
        pair.connect();
        assert_eq!(pair.write_status(), WcStatus::SUCCESS);
    }
}

#[test]
fn a_queue_pair_that_failed_by_itself_is_named_in_its_real_state() {
    let mut pair = Pair::new();
    pair.write(BYTES - 4, 8).unwrap();
    assert_eq!(
        pair.a.sent().status,
        WcStatus::LOC_PROT_ERR,
        "the device checks local bounds"
    );
    let error = errno_of(pair.a.control().modify(&Modify::Access(FULL)), libc::EINVAL);
    assert!(
        error.contains("no change from Err by ACCESS_FLAGS"),
        "{error}"
    );
}

#[test]
fn the_peers_that_are_not_there_or_not_ready() {
    let mut pair = Pair::new();
    pair.a
        .post(SendOp::Send {
            payload: Payload::Inline(b"x"),
            imm: None,
        })
        .unwrap();
    assert_eq!(pair.a.sent().status, WcStatus::RNR_RETRY_EXC_ERR);
    let Pair { mut a, b } = Pair::new();
    let remote = b.mr.remote(0);
    b.qp.close().unwrap();
    a.post(SendOp::Write {
        payload: Payload::Inline(b"x"),
        remote,
        imm: None,
    })
    .unwrap();
    assert_eq!(a.sent().status, WcStatus::RETRY_EXC_ERR);
}

#[test]
fn a_message_longer_than_the_receive_fails_on_both_sides() {
    let mut pair = Pair::new();
    pair.b
        .qp
        .post_recv(&RecvWr {
            wr_id: 1,
            local: &[Sge::new(&pair.b.mr, 0, 8)],
        })
        .unwrap();
    pair.a
        .post(SendOp::Send {
            payload: Payload::Inline(b"123456789"),
            imm: None,
        })
        .unwrap();
    assert_eq!(pair.a.sent().status, WcStatus::REM_INV_REQ_ERR);
    assert_eq!(pair.b.received().status, WcStatus::LOC_LEN_ERR);
}

#[test]
fn rights_are_taken_away_and_given_back_by_flags() {
    let mut pair = Pair::new();
    assert_eq!(pair.write_status(), WcStatus::SUCCESS);
    pair.b
        .control()
        .modify(&Modify::Access(Access::NONE))
        .unwrap();
    pair.b.control().modify(&Modify::Access(FULL)).unwrap();
    assert_eq!(
        pair.write_status(),
        WcStatus::SUCCESS,
        "no write in between: the connection lives on"
    );
    pair.b
        .control()
        .modify(&Modify::Access(Access::NONE))
        .unwrap();
    assert_eq!(pair.write_status(), WcStatus::REM_INV_REQ_ERR);

    let stubborn = FakeOptions {
        access_flags_in_rts: false,
        ..FakeOptions::default()
    };
    let pair = Pair::with(stubborn, &QpCap::default());
    let error = pair
        .b
        .control()
        .modify(&Modify::Access(Access::NONE))
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Verb {
                verb: "ibv_modify_qp",
                ..
            }
        ),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("from Rts by ACCESS_FLAGS"),
        "{error}"
    );
}

#[test]
fn rights_are_taken_away_by_region() {
    let mut pair = Pair::new();
    let rkey = pair.b.mr.rkey();
    pair.b
        .mr
        .reregister(Access::LOCAL_WRITE | Access::REMOTE_READ)
        .unwrap();
    assert_eq!(
        (pair.b.mr.rkey(), pair.b.mr.access()),
        (rkey, Access::LOCAL_WRITE | Access::REMOTE_READ)
    );
    assert_eq!(pair.write_status(), WcStatus::REM_ACCESS_ERR);

    let Pair { mut a, b } = Pair::new();
    let remote = b.mr.remote(0);
    b.mr.close().unwrap();
    a.post(SendOp::Write {
        payload: Payload::Inline(b"x"),
        remote,
        imm: None,
    })
    .unwrap();
    assert_eq!(a.sent().status, WcStatus::REM_ACCESS_ERR);

    let plain = FakeOptions {
        rereg_mr: false,
        ..FakeOptions::default()
    };
    let mut pair = Pair::with(plain, &QpCap::default());
    let error = pair.b.mr.reregister(Access::NONE).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Unsupported {
                verb: "ibv_rereg_mr",
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(
        (pair.b.mr.access(), pair.write_status()),
        (FULL, WcStatus::SUCCESS),
        "unchanged"
    );
}

#[test]
fn one_memory_can_be_registered_once_for_each_peer() {
    let side = Side::new("fake0", FakeOptions::default(), &QpCap::default());
    let part = side
        .nic
        .reg_mr(&side.pd, &side.memory, 64..128, Access::LOG)
        .unwrap();
    assert_ne!(part.rkey(), side.mr.rkey());
    assert_eq!(
        (part.addr(), part.range()),
        (side.memory.addr() + 64, 64..128)
    );
    assert_eq!(
        part.remote(8),
        RemoteAddr {
            addr: side.memory.addr() + 72,
            rkey: part.rkey()
        }
    );
    assert_eq!(part.memory().addr(), side.memory.addr());
    part.close().unwrap();
}

#[test]
fn wrong_registrations_are_refused() {
    let side = Side::new("fake0", FakeOptions::default(), &QpCap::default());
    let reg = |range, access| side.nic.reg_mr(&side.pd, &side.memory, range, access);
    for range in [
        0..0,
        8..8,
        0..side.memory.len() + 1,
        usize::MAX - 8..usize::MAX,
    ] {
        errno_of(reg(range, Access::LOG), libc::EINVAL);
    }
    errno_of(reg(0..8, Access::REMOTE_WRITE), libc::EINVAL);
    let error = errno_of(reg(0..8, Access(7 | 1 << 20)), libc::EINVAL);
    assert!(error.contains("relaxed ordering"), "{error}");
    let other = open("fake0", FakeOptions::default());
    errno_of(
        other.reg_mr(&side.pd, &side.memory, 0..8, Access::LOG),
        libc::EINVAL,
    );
    errno_of(other.alloc_mw(&side.pd), libc::EINVAL);
    errno_of(
        other.create_qp(&side.pd, &side.send_cq, &side.recv_cq, &QpCap::default()),
        libc::EINVAL,
    );
    let pd = other.alloc_pd().unwrap();
    errno_of(
        other.create_qp(&pd, &side.send_cq, &side.recv_cq, &QpCap::default()),
        libc::EINVAL,
    );
    let mut mr = reg(0..8, Access::LOG).unwrap();
    errno_of(mr.reregister(Access::REMOTE_ATOMIC), libc::EINVAL);
    errno_of(mr.reregister(Access(1 | 1 << 20)), libc::EINVAL);
    assert_eq!(mr.access(), Access::LOG);
}

#[test]
fn limits_are_named_with_both_numbers() {
    let nic = open("fake0", FakeOptions::default());
    let pd = nic.alloc_pd().unwrap();
    let cq = nic.create_cq(16).unwrap();
    assert_eq!(cq.depth(), 16);
    let max = nic.caps().clone();
    errno_of(nic.create_cq(0), libc::EINVAL);
    let error = errno_of(nic.create_cq(max.max_cqe + 1), libc::ENOMEM);
    assert!(error.contains(&max.max_cqe.to_string()), "{error}");
    let cap = QpCap::default();
    let too_much = [
        QpCap {
            max_send_wr: max.max_qp_wr + 1,
            ..cap
        },
        QpCap {
            max_recv_wr: max.max_qp_wr + 1,
            ..cap
        },
        QpCap {
            max_send_sge: max.max_sge + 1,
            ..cap
        },
        QpCap {
            max_recv_sge: max.max_recv_sge + 1,
            ..cap
        },
        QpCap {
            max_inline_data: max.max_inline_data + 1,
            ..cap
        },
    ];
    for cap in too_much {
        let error = nic.create_qp(&pd, &cq, &cq, &cap).map(drop).unwrap_err();
        assert!(
            matches!(error, Error::Limit { verb: "ibv_create_qp", asked, limit, .. } if asked == limit + 1),
            "{error}"
        );
    }
    let qp = nic.create_qp(&pd, &cq, &cq, &cap).unwrap();
    let got = qp.cap();
    assert!(got.max_send_wr >= cap.max_send_wr && got.max_inline_data >= cap.max_inline_data);
}

fn bind(
    side: &mut Side,
    mw: &NicMw,
    mr: &NicMr,
    rkey: u32,
    len: usize,
    access: Access,
) -> Result<WcStatus, PostError> {
    let op = SendOp::BindMw {
        mw,
        rkey,
        mr,
        offset: 64,
        len,
        access,
    };
    side.qp.post_send(&SendWr {
        wr_id: 1,
        op,
        flags: SendFlags::SIGNALED,
    })?;
    Ok(side.sent().status)
}

#[test]
fn windows_are_bound_used_and_invalidated() {
    let mut pair = Pair::new();
    let mw = pair.b.nic.alloc_mw(&pair.b.pd).unwrap();
    let whole = pair
        .b
        .nic
        .reg_mr(&pair.b.pd, &pair.b.memory, 0..BYTES, FULL)
        .unwrap();
    let rkey = next_rkey(mw.rkey());
    assert_eq!(
        bind(&mut pair.b, &mw, &whole, rkey, 64, Access::LOG),
        Ok(WcStatus::SUCCESS)
    );
    assert_eq!(mw.rkey(), rkey);
    let write = |pair: &mut Pair, at: u64| {
        let remote = RemoteAddr {
            addr: pair.b.memory.addr() + at,
            rkey,
        };
        pair.a
            .post(SendOp::Write {
                payload: Payload::Inline(b"12345678"),
                remote,
                imm: None,
            })
            .unwrap();
        pair.a.sent().status
    };
    assert_eq!(write(&mut pair, 64), WcStatus::SUCCESS);
    assert_eq!(write(&mut pair, 120), WcStatus::SUCCESS);
    pair.b.post(SendOp::LocalInv { rkey }).unwrap();
    assert_eq!(pair.b.sent().opcode, WcOpcode::LOCAL_INV);
    assert_eq!(write(&mut pair, 64), WcStatus::REM_ACCESS_ERR);

    pair.a.control().modify(&Modify::Reset).unwrap();
    pair.b.control().modify(&Modify::Reset).unwrap();
    pair.connect();
    // A second bind goes by the key that the first one left, in a list with other requests around it.
    let again = next_rkey(mw.rkey());
    let op = SendOp::BindMw {
        mw: &mw,
        rkey: again,
        mr: &whole,
        offset: 0,
        len: 8,
        access: Access::REMOTE_WRITE,
    };
    let remote = pair.a.mr.remote(0);
    let other = inline_write(b"12345678", remote, SendFlags::SIGNALED);
    let wrs = [
        other,
        SendWr {
            wr_id: 2,
            op,
            flags: SendFlags::SIGNALED,
        },
        other,
    ];
    pair.b.qp.post_send_list(&wrs).unwrap();
    let mut out = [Completion::EMPTY; 4];
    assert_eq!(pair.b.send_cq.poll(&mut out), 3);
    assert!(out[..3].iter().all(|c| c.status.is_success()), "{out:?}");
    assert_eq!((out[1].opcode, mw.rkey()), (WcOpcode::BIND_MW, again));
    let remote = RemoteAddr {
        addr: pair.b.memory.addr() + 8,
        rkey: again,
    };
    pair.a
        .post(SendOp::Write {
            payload: Payload::Inline(b"1"),
            remote,
            imm: None,
        })
        .unwrap();
    assert_eq!(
        pair.a.sent().status,
        WcStatus::REM_ACCESS_ERR,
        "outside the window"
    );
    mw.close().unwrap();
    whole.close().unwrap();
}

#[test]
fn windows_that_cannot_be() {
    let poor = FakeOptions {
        memory_windows: false,
        ..FakeOptions::default()
    };
    let side = Side::new("fake0", poor, &QpCap::default());
    let error = side.nic.alloc_mw(&side.pd).map(drop).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Unsupported {
                verb: "ibv_alloc_mw",
                ..
            }
        ),
        "{error:?}"
    );

    let mut pair = Pair::new();
    let other_pd = pair.b.nic.alloc_pd().unwrap();
    let foreign = pair.b.nic.alloc_mw(&other_pd).unwrap();
    let whole = pair
        .b
        .nic
        .reg_mr(&pair.b.pd, &pair.b.memory, 0..BYTES, FULL)
        .unwrap();
    let rkey = next_rkey(foreign.rkey());
    let refused = bind(&mut pair.b, &foreign, &whole, rkey, 64, Access::LOG);
    assert!(
        matches!(
            refused,
            Err(PostError::Invalid {
                errno: libc::EPERM,
                ..
            })
        ),
        "{refused:?}"
    );
    let mw = pair.b.nic.alloc_mw(&pair.b.pd).unwrap();
    let rkey = next_rkey(mw.rkey());
    let refused = bind(&mut pair.b, &mw, &whole, rkey, 64, Access(1 << 20));
    assert!(
        matches!(
            refused,
            Err(PostError::Invalid {
                errno: libc::EINVAL,
                ..
            })
        ),
        "{refused:?}"
    );
    // A region without the right to be bound: the device refuses.
    let closed = pair
        .b
        .nic
        .reg_mr(&pair.b.pd, &pair.b.memory, 0..BYTES, Access::LOG)
        .unwrap();
    assert!(
        !bind(&mut pair.b, &mw, &closed, rkey, 64, Access::LOG)
            .unwrap()
            .is_success()
    );
}

#[test]
fn an_overrun_queue_is_an_event() {
    let nic = open("fake0", FakeOptions::default());
    let pd = nic.alloc_pd().unwrap();
    let cq = nic.create_cq(1).unwrap();
    let mut qp = nic.create_qp(&pd, &cq, &cq, &QpCap::default()).unwrap();
    qp.control().modify(&Modify::Err).unwrap();
    for _ in 0..3 {
        qp.post_recv(&RecvWr {
            wr_id: 0,
            local: &[],
        })
        .unwrap();
    }
    assert_eq!(nic.poll_async_event().unwrap(), Some(AsyncEvent::CqError));
    assert_eq!(nic.poll_async_event().unwrap(), None);
}

#[test]
fn order_of_visibility_is_asked_of_the_connection() {
    for (answer, expected) in [
        (Some(true), Placement::WholeMessage),
        (Some(false), Placement::Unknown),
        (None, Placement::Unknown),
    ] {
        let pair = Pair::with(
            FakeOptions {
                data_in_order: answer,
                ..FakeOptions::default()
            },
            &QpCap::default(),
        );
        assert_eq!(pair.b.control().placement(), expected, "{answer:?}");
    }
}

#[test]
fn everything_can_be_dropped_in_any_order() {
    let before = nic::leaked();
    for order in 0..7 {
        let Side {
            nic,
            pd,
            send_cq,
            recv_cq,
            qp,
            memory,
            mr,
        } = Pair::new().a;
        let control = qp.control().clone();
        let mw = nic.alloc_mw(&pd).unwrap();
        let mut things: Vec<Box<dyn std::any::Any>> = vec![
            Box::new(nic),
            Box::new(pd),
            Box::new((send_cq, recv_cq)),
            Box::new(memory),
            Box::new(mr),
            Box::new(qp),
            Box::new(mw),
        ];
        things.rotate_left(order);
        drop(things);
        let error = errno_of(control.state(), libc::EINVAL);
        assert!(error.contains("is destroyed"), "{error}");
        errno_of(control.modify(&Modify::Reset), libc::EINVAL);
        assert_eq!(control.placement(), Placement::Unknown);
    }
    assert_eq!(nic::leaked(), before);
}

#[test]
fn closing_reports_and_takes_the_queue_pair_away() {
    let Pair { a, b } = Pair::new();
    let control = a.control();
    a.qp.close().unwrap();
    a.mr.close().unwrap();
    errno_of(control.state(), libc::EINVAL);
    drop(b);
    assert_eq!(nic::leaked(), 0, "no test of this file leaks");
}

#[test]
fn rights_change_while_another_thread_posts() {
    const ROUNDS: u64 = if cfg!(miri) { 20 } else { 2000 };
    let mut pair = Pair::new();
    let control = pair.b.control();
    let remote = pair.b.mr.remote(0);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for round in 0..ROUNDS {
                let access = if round % 2 == 0 { Access::LOG } else { FULL };
                control.modify(&Modify::Access(access)).unwrap();
                control.state().unwrap();
            }
        });
        let words = pair.b.memory.clone();
        scope.spawn(move || {
            let mut last = 0;
            for _ in 0..ROUNDS {
                let now = words.load(0);
                assert!(now >= last, "writes take effect in order");
                last = now;
            }
        });
        for value in 1..=ROUNDS {
            pair.a
                .qp
                .post_send(&inline_write(
                    &value.to_le_bytes(),
                    remote,
                    SendFlags::SIGNALED,
                ))
                .unwrap();
            assert_eq!(pair.a.sent().status, WcStatus::SUCCESS);
        }
    });
    assert_eq!(pair.b.memory.load(0), ROUNDS);
}
