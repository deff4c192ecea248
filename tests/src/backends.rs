//! How to open each backend, and which cases it may skip.

use std::sync::Arc;

use anyhow::Context as _;
use mu_softrdma::Fabric;
use mu_verbs::nic::{self, Nic, NicOptions};
use mu_verbs::soft::Soft;
use mu_verbs::{Atomicity, BackendKind, Barrier, Capabilities, Context, Placement};

use crate::harness::{Open, Traits};

/// A backend under test.
pub trait Backend {
    /// Its contexts.
    type Ctx: Context;
    /// The name it is chosen by.
    fn name(&self) -> &'static str;
    /// Opens two contexts that can reach each other, fresh ones each time.
    fn open(&self) -> Open<Self::Ctx>;
    /// What it needs of the suite.
    fn traits(&self) -> Traits;
}

/// Threads of this process.
pub struct Inproc;

impl Backend for Inproc {
    type Ctx = Soft;

    fn name(&self) -> &'static str {
        "inproc"
    }

    fn open(&self) -> Open<Soft> {
        Arc::new(|| {
            let fabric = Fabric::new();
            Ok((Soft::inproc(&fabric)?, Soft::inproc(&fabric)?))
        })
    }

    fn traits(&self) -> Traits {
        Traits::SOFT
    }
}

/// Shared memory between contexts of this process, which know each other by their sockets only, as processes do.
pub struct Shm;

impl Backend for Shm {
    type Ctx = Soft;

    fn name(&self) -> &'static str {
        "shm"
    }

    fn open(&self) -> Open<Soft> {
        Arc::new(|| {
            let options = mu_softrdma::shm::Options::default();
            Ok((Soft::shm(&options)?, Soft::shm(&options)?))
        })
    }

    fn traits(&self) -> Traits {
        Traits::SOFT
    }
}

/// ibverbs devices.
pub struct Device {
    /// The asking side's.
    pub device: String,
    /// The answering side's; the same one if there is but one.
    pub peer: String,
    /// Packet size.
    pub mtu: mu_verbs::Mtu,
}

impl Backend for Device {
    type Ctx = Nic;

    fn name(&self) -> &'static str {
        "nic"
    }

    fn open(&self) -> Open<Nic> {
        let (device, peer) = (self.device.clone(), self.peer.clone());
        Arc::new(move || {
            let options = NicOptions::default();
            let a = Nic::open(&device, &options).with_context(|| format!("opening {device}"))?;
            Ok((
                a,
                Nic::open(&peer, &options).with_context(|| format!("opening {peer}"))?,
            ))
        })
    }

    fn traits(&self) -> Traits {
        Traits {
            mtu: self.mtu,
            ..Traits::NIC
        }
    }
}

/// The NIC backend over the fake provider.
pub struct FakeDevice;

impl Backend for FakeDevice {
    type Ctx = Nic;

    fn name(&self) -> &'static str {
        "nic-fake"
    }

    fn open(&self) -> Open<Nic> {
        let lib = nic::fake::lib(nic::fake::FakeOptions::default());
        Arc::new(move || {
            let options = NicOptions::default();
            Ok((
                Nic::open_with(lib, "fake0", &options)?,
                Nic::open_with(lib, "fake1", &options)?,
            ))
        })
    }

    fn traits(&self) -> Traits {
        Traits {
            waits: false,
            byte_ranges: false,
            ..Traits::SOFT
        }
    }
}

/// Why a case is expected to be skipped, and on which backends.
pub struct Expected {
    /// The case.
    pub case: &'static str,
    /// Whether it is skipped there.
    pub skipped: fn(&Capabilities, &Traits) -> Answer,
}

/// Whether a case is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It runs.
    Runs,
    /// It is skipped.
    Skips,
    /// It depends on what the device does, which no capability tells.
    Either,
}

const fn skips_if(condition: bool) -> Answer {
    if condition {
        Answer::Skips
    } else {
        Answer::Runs
    }
}

fn atomics(caps: &Capabilities, _: &Traits) -> Answer {
    skips_if(matches!(caps.atomicity, Atomicity::None))
}

fn windows(caps: &Capabilities, _: &Traits) -> Answer {
    skips_if(!caps.memory_windows)
}

fn waiting(_: &Capabilities, traits: &Traits) -> Answer {
    skips_if(!traits.waits)
}

fn exact_queues(_: &Capabilities, traits: &Traits) -> Answer {
    skips_if(!traits.exact_queues)
}

fn many_pieces(caps: &Capabilities, _: &Traits) -> Answer {
    skips_if(caps.max_sge < 2)
}

fn rereg(caps: &Capabilities, _: &Traits) -> Answer {
    skips_if(!caps.rereg_mr)
}

/// Drivers differ in whether they raise the event (Soft-RoCE does not before 2026).
fn events(caps: &Capabilities, _: &Traits) -> Answer {
    if caps.backend == BackendKind::Nic {
        Answer::Either
    } else {
        Answer::Runs
    }
}

fn window_method(caps: &Capabilities, _: &Traits) -> Answer {
    skips_if(caps.revoke.window == Barrier::Unsupported)
}

/// Every case that some backend skips, with the condition. What is not here must run everywhere.
pub const EXPECTED: &[Expected] = &[
    Expected {
        case: "data::write_gathers",
        skipped: many_pieces,
    },
    Expected {
        case: "data::send_gathers",
        skipped: many_pieces,
    },
    Expected {
        case: "data::read_scatters",
        skipped: many_pieces,
    },
    Expected {
        case: "data::recv_scatters",
        skipped: |caps, _| skips_if(caps.max_recv_sge < 2),
    },
    Expected {
        case: "data::empty_pieces_are_skipped",
        skipped: |caps, _| skips_if(caps.max_sge < 3),
    },
    Expected {
        case: "data::compare_swap_succeeds",
        skipped: atomics,
    },
    Expected {
        case: "data::compare_swap_fails",
        skipped: atomics,
    },
    Expected {
        case: "data::fetch_add_returns_the_old",
        skipped: atomics,
    },
    Expected {
        case: "data::fetch_add_wraps",
        skipped: atomics,
    },
    Expected {
        case: "data::atomics_keep_their_neighbours",
        skipped: atomics,
    },
    Expected {
        case: "data::words_are_never_torn",
        skipped: |caps, _| skips_if(caps.placement == Placement::Unknown),
    },
    Expected {
        case: "data::placement_is_as_stated",
        skipped: |caps, _| skips_if(caps.placement != Placement::WholeMessage),
    },
    Expected {
        case: "queues::list_longer_than_the_queue",
        skipped: exact_queues,
    },
    Expected {
        case: "queues::queue_full_until_polled",
        skipped: exact_queues,
    },
    Expected {
        case: "queues::unsignalled_keep_their_slots",
        skipped: exact_queues,
    },
    Expected {
        case: "queues::queue_full_of_waiting_requests",
        skipped: waiting,
    },
    Expected {
        case: "order::atomic_sees_the_write_before_it",
        skipped: atomics,
    },
    Expected {
        case: "order::read_sees_the_atomic_before_it",
        skipped: atomics,
    },
    Expected {
        case: "order::atomics_of_two_threads_add_up",
        skipped: atomics,
    },
    Expected {
        case: "order::compare_swap_locks",
        skipped: atomics,
    },
    Expected {
        case: "receive::posted_late",
        skipped: waiting,
    },
    Expected {
        case: "receive::posted_late_for_an_immediate",
        skipped: waiting,
    },
    Expected {
        case: "states::err_flushes_sends_in_order",
        skipped: waiting,
    },
    Expected {
        case: "states::close_with_requests_outstanding",
        skipped: waiting,
    },
    Expected {
        case: "refusals::wrong_key_for_an_atomic",
        skipped: atomics,
    },
    Expected {
        case: "refusals::bounds_of_atomics",
        skipped: atomics,
    },
    Expected {
        case: "refusals::region_without_atomic",
        skipped: atomics,
    },
    Expected {
        case: "refusals::flags_without_atomic",
        skipped: atomics,
    },
    Expected {
        case: "refusals::misaligned_atomics",
        skipped: atomics,
    },
    Expected {
        case: "refusals::event_of_a_wrong_key",
        skipped: events,
    },
    Expected {
        case: "refusals::event_of_forbidden_flags",
        skipped: events,
    },
    Expected {
        case: "local::second_piece_beyond_the_region",
        skipped: many_pieces,
    },
    Expected {
        case: "local::atomic_into_read_only_memory",
        skipped: atomics,
    },
    Expected {
        case: "regions::ranges_of_bytes",
        skipped: |_, traits| skips_if(!traits.byte_ranges),
    },
    Expected {
        case: "regions::reregister_keeps_the_key",
        skipped: rereg,
    },
    Expected {
        case: "regions::reregister_takes_rights_away",
        skipped: rereg,
    },
    Expected {
        case: "regions::reregister_unsupported",
        skipped: |caps, _| skips_if(caps.rereg_mr),
    },
    Expected {
        case: "windows::write_through",
        skipped: windows,
    },
    Expected {
        case: "windows::read_and_atomics_through",
        skipped: windows,
    },
    Expected {
        case: "windows::bounds",
        skipped: windows,
    },
    Expected {
        case: "windows::rights_of_the_window",
        skipped: windows,
    },
    Expected {
        case: "windows::window_narrows_the_region",
        skipped: windows,
    },
    Expected {
        case: "windows::wrong_key",
        skipped: windows,
    },
    Expected {
        case: "windows::invalidated_key",
        skipped: windows,
    },
    Expected {
        case: "windows::invalidated_and_bound_again",
        skipped: windows,
    },
    Expected {
        case: "windows::bound_twice_without_invalidation",
        skipped: windows,
    },
    Expected {
        case: "windows::region_without_bind_right",
        skipped: windows,
    },
    Expected {
        case: "windows::region_without_local_write",
        skipped: windows,
    },
    Expected {
        case: "windows::outside_the_region",
        skipped: windows,
    },
    Expected {
        case: "windows::region_of_another_domain",
        skipped: windows,
    },
    Expected {
        case: "windows::of_another_queue_pair",
        skipped: windows,
    },
    Expected {
        case: "windows::invalidation_of_a_wrong_key",
        skipped: windows,
    },
    Expected {
        case: "windows::failed_bind_fails_the_queue_pair",
        skipped: windows,
    },
    Expected {
        case: "windows::deallocation_ends_it",
        skipped: windows,
    },
    Expected {
        case: "windows::region_in_use",
        skipped: windows,
    },
    Expected {
        case: "windows::two_on_one_region",
        skipped: windows,
    },
    Expected {
        case: "windows::bind_is_ordered_with_sends",
        skipped: windows,
    },
    Expected {
        case: "windows::unsupported",
        skipped: |caps, _| skips_if(caps.memory_windows),
    },
    Expected {
        case: "revoke::idle_by_window",
        skipped: window_method,
    },
    Expected {
        case: "revoke::again_after_window",
        skipped: window_method,
    },
    Expected {
        case: "revoke::windows_work_after_a_cycle",
        skipped: window_method,
    },
    Expected {
        case: "revoke::storm_by_window",
        skipped: window_method,
    },
    Expected {
        case: "revoke::storm_fully_through_a_window",
        skipped: windows,
    },
    Expected {
        case: "death::peer_ready_late",
        skipped: waiting,
    },
    Expected {
        case: "death::peer_gone_with_requests_outstanding",
        skipped: waiting,
    },
];

/// How many of these cases a backend of these capabilities must skip: at least and at most.
pub fn skip_count<'a>(
    caps: &Capabilities,
    traits: &Traits,
    cases: impl Iterator<Item = &'a str>,
) -> (usize, usize) {
    cases.fold((0, 0), |(fewest, most), case| {
        match expected(case, caps, traits) {
            Answer::Runs => (fewest, most),
            Answer::Either => (fewest, most + 1),
            Answer::Skips => (fewest + 1, most + 1),
        }
    })
}

/// Whether `case` is expected to be skipped.
pub fn expected(case: &str, caps: &Capabilities, traits: &Traits) -> Answer {
    match EXPECTED
        .iter()
        .find(|e| e.case == case)
        .map_or(Answer::Runs, |e| (e.skipped)(caps, traits))
    {
        Answer::Runs if may_deviate(case, caps) => Answer::Either,
        answer => answer,
    }
}

/// A place where a driver does otherwise than documented. Its case counts as skipped there if it fails in just this
/// way.
pub struct Deviation {
    /// The case.
    pub case: &'static str,
    /// Part of the driver's name.
    pub driver: &'static str,
    /// Part of the case's message.
    pub message: &'static str,
    /// What the driver does.
    pub why: &'static str,
}

const RXE: &str = "rdma_rxe";
const OWN_STATUS: &str = "a receive that cannot be stored ends with LOC_QP_OP_ERR";
const SHORT: &str = "a message longer than its receive is answered with a remote operation error";

/// All that are known, each seen on the driver (kernel 6.1).
pub const DEVIATIONS: &[Deviation] = &[
    Deviation {
        case: "receive::too_short",
        driver: RXE,
        message: "got Completion { wr_id: 2, status: REM_OP_ERR",
        why: SHORT,
    },
    Deviation {
        case: "receive::too_short_by_packets",
        driver: RXE,
        message: "got Completion { wr_id: 2, status: REM_OP_ERR",
        why: SHORT,
    },
    Deviation {
        case: "receive::into_read_only_memory",
        driver: RXE,
        message: "status: LOC_QP_OP_ERR",
        why: OWN_STATUS,
    },
    Deviation {
        case: "receive::outside_the_region",
        driver: RXE,
        message: "status: LOC_QP_OP_ERR",
        why: OWN_STATUS,
    },
    Deviation {
        case: "receive::of_another_domain",
        driver: RXE,
        message: "status: LOC_QP_OP_ERR",
        why: OWN_STATUS,
    },
    Deviation {
        case: "states::receives_in_err_are_flushed",
        driver: RXE,
        message: "0 of 5 came",
        why: "a receive posted in ERR stays where it is",
    },
    Deviation {
        case: "states::reset_forgets_completions",
        driver: RXE,
        message: "a completion that nobody asked for",
        why: "RESET leaves completions in their queue",
    },
    Deviation {
        case: "local::piece_of_another_domain",
        driver: RXE,
        message: "status: LOC_QP_OP_ERR",
        why: "a local key of another domain ends with LOC_QP_OP_ERR",
    },
    Deviation {
        case: "windows::bounds",
        driver: RXE,
        message: "status: SUCCESS",
        why: "a window reaches over its whole region",
    },
];

/// The deviation that explains this failure, if one does.
pub fn deviation(case: &str, caps: &Capabilities, message: &str) -> Option<&'static Deviation> {
    DEVIATIONS
        .iter()
        .find(|d| d.case == case && caps.driver.contains(d.driver) && message.contains(d.message))
}

/// Whether the driver has a known deviation in this case.
fn may_deviate(case: &str, caps: &Capabilities) -> bool {
    DEVIATIONS
        .iter()
        .any(|d| d.case == case && caps.driver.contains(d.driver))
}
