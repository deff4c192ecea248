//! The shared-memory backend between two processes: this test program starts itself again as the peer.
#![cfg(not(any(loom, miri)))]

mod peer;

use std::time::{Duration, Instant};

use mu_softrdma::Memory;
use mu_softrdma::shm::{self, Options};
use mu_softrdma::types::*;
use nix::sys::signal::Signal;
#[cfg(not(mu_sanitize))]
use nix::unistd::Pid;
use peer::{End, Peer, WRITE, join, join_all, wait_for_change, wait_for_stop};

/// Not a test of its own: what the other process runs.
#[test]
#[ignore = "started by the other tests"]
fn peer_main() {
    peer::obey();
}

fn pair() -> (End, Peer, RemoteAddr) {
    let (end, mut peer) = (End::open(&Options::default()), Peer::start());
    let remote = join(&end, &mut peer);
    (end, peer, remote)
}

#[test]
fn writes_both_ways() {
    let (mut end, mut peer, remote) = pair();
    peer.tell("write 77");
    assert_eq!(peer.hear(), "SUCCESS");
    assert!((0..WRITE / 8).all(|i| end.memory.load(i) == 77));
    assert_eq!(end.write(remote, 99), WcStatus::SUCCESS);
    peer.tell(&format!("read {}", WRITE / 8 - 1));
    assert_eq!(peer.hear(), "99");
}

/// The process at the other end is stopped before it has answered. Who may not wait is told to come again, at once and
/// again, and is attached when that one goes on.
#[test]
fn who_does_not_wait_is_not_held_up_by_a_stopped_process() {
    let options = Options {
        attach_ms: 10_000,
        waits_attached: false,
        ..Options::default()
    };
    let (mut end, mut peer) = (End::open(&options), Peer::start());
    end.init();
    peer.tell("init");
    let theirs = peer.hear();
    peer.signal(Signal::SIGSTOP);
    wait_for_stop(peer.pid());
    for _ in 0..20 {
        let begin = Instant::now();
        let error = end.answer(&theirs).expect_err("nobody can answer");
        let took = begin.elapsed();
        assert!(error.to_string().contains("try again"), "{error}");
        assert!(took < Duration::from_secs(1), "{took:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    peer.signal(Signal::SIGCONT);
    let begin = Instant::now();
    while let Err(error) = end.answer(&theirs) {
        assert!(begin.elapsed() < Duration::from_secs(9), "{error}");
        std::thread::sleep(Duration::from_millis(1));
    }
    let remote = end.go(&theirs);
    peer.tell(&format!("connect {}", end.card()));
    assert_eq!(peer.hear(), "connected");
    assert_eq!(end.write(remote, 99), WcStatus::SUCCESS);
}

/// Why an attachment failed is said to who asks next, and then it is tried anew.
#[test]
fn who_does_not_wait_hears_why_it_failed() {
    let options = Options {
        waits_attached: false,
        ..Options::default()
    };
    let end = End::open(&options);
    end.init();
    let gone = End::open(&Options::default());
    let card = gone.card();
    drop(gone);
    let begin = Instant::now();
    let mut heard = [false; 2];
    while heard != [true; 2] {
        let error = end.answer(&card).expect_err("nobody is there").to_string();
        heard[usize::from(error.contains("no process of this host"))] = true;
        assert!(begin.elapsed() < Duration::from_secs(9), "{error}");
    }
}

/// Memory that is made after the peer attached reaches it with its first request.
#[test]
fn memory_made_later() {
    let (end, mut peer, _) = pair();
    let late = end.node.alloc_memory(WRITE).unwrap();
    let mr = end
        .node
        .reg_mr(&end.pd, &late, 0..WRITE, Access::ALL)
        .unwrap();
    end.qp.control().modify(&Modify::Reset).unwrap();
    peer.tell("reset");
    peer.hear();
    end.init();
    peer.tell("init");
    let card = peer.hear();
    let hex = end.card().split_whitespace().next().unwrap().to_owned();
    peer.tell(&format!("connect {hex} {} {}", mr.addr(), mr.key()));
    end.connect(&card);
    assert_eq!(peer.hear(), "connected");
    peer.tell("write 5");
    assert_eq!(peer.hear(), "SUCCESS");
    assert_eq!(late.load(WRITE / 8 - 1), 5);
}

/// The first request that fails need not say that the process has ended: its sockets may go before the thread that
/// holds its lifeline. On another queue pair a later one says so, as soon as the kernel does.
#[test]
fn a_killed_target_ends_requests() {
    for _ in 0..8 {
        let first = End::open(&Options::default());
        let second = End::on(&first.node);
        let mut ends = [first, second];
        let mut peer = Peer::start_with("MU_SHM_ENDS", "2");
        let remotes = join_all(&ends, &mut peer);
        peer.signal(Signal::SIGKILL);
        peer.child.wait().unwrap();
        let start = Instant::now();
        while ends[0].post(remotes[0], 0, 8) == WcStatus::SUCCESS {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "writes into the memory of the dead go on"
            );
        }
        // The thread that hears of it may wait for a processor.
        std::thread::sleep(Duration::from_millis(200));
        ends[1].post(remotes[1], 0, 8);
        for end in &ends {
            assert_eq!(end.qp.control().state(), QpState::Err);
            assert_eq!(end.last.status, WcStatus::RETRY_EXC_ERR);
        }
        let told = ends.map(|end| end.last.vendor_err);
        assert_eq!(told[1], Completion::PEER_ENDED, "{told:?}");
    }
}

/// The keeper shares the memory of its process and no descriptor, heeds no signal, and is gone soon after its process.
#[test]
#[cfg(not(mu_sanitize))]
fn a_killed_process_leaves_its_memory_to_a_keeper_which_ends() {
    let (_end, mut peer, _) = pair();
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let pid = peer.pid();
    let children = || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let of = |task: std::io::Result<std::fs::DirEntry>| task.unwrap().path().join("children");
        tasks
            .map(|task| read(of(task).display().to_string()))
            .collect::<String>()
    };
    let keeper: i32 = peer::until("one child", || children().trim().parse().ok());
    let status = || read(format!("/proc/{keeper}/status"));
    let field = |name: &str| {
        let status = status();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default()
            .trim_start_matches(':')
            .trim()
            .to_owned()
    };
    peer::until("its name", || {
        (field("Name") == "mu-shm-keep").then_some(())
    });
    let size_of_peer = || {
        let status = read(format!("/proc/{pid}/status"));
        let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
        line.unwrap().trim().to_owned()
    };
    peer::until("one memory", || {
        (field("VmSize") == size_of_peer()).then_some(())
    });
    let files = || std::fs::read_dir(format!("/proc/{keeper}/fd")).map_or(0, Iterator::count);
    peer::until("its descriptors to be closed", || {
        (files() == 1).then_some(())
    });
    nix::sys::signal::kill(Pid::from_raw(keeper), Signal::SIGTERM).unwrap();
    // It looks about itself once a second, and uses no processor for that.
    let ticks = || -> u64 {
        let stat = read(format!("/proc/{keeper}/stat"));
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = ticks();
    std::thread::sleep(Duration::from_millis(3500));
    assert!(
        ticks() <= before + 10,
        "{} ticks in 3.5 s",
        ticks() - before
    );
    peer.tell("write 1");
    assert_eq!(peer.hear(), "SUCCESS");
    assert!(
        ["S", "R"]
            .iter()
            .any(|state| field("State").starts_with(state)),
        "{}",
        status()
    );
    peer.signal(Signal::SIGKILL);
    peer.child.wait().unwrap();
    // A zombie has no memory any more; whether somebody buries it is not this program's doing.
    peer::until("the keeper to end", || {
        field("VmSize").is_empty().then_some(())
    });
}

#[test]
fn a_killed_writer_does_not_hold_up_a_revocation() {
    for _ in 0..20 {
        let (end, mut peer, _) = pair();
        peer.tell("storm");
        assert_eq!(peer.hear(), "storming");
        wait_for_change(&end.memory);
        peer.signal(Signal::SIGKILL);
        end.qp
            .control()
            .modify(&Modify::Access(Access::NONE))
            .unwrap();
        assert_frozen(&end.memory);
    }
}

/// The writer is stopped at a random moment, usually in mid-copy; the revocation is done soon, nothing lands when the
/// writer goes on, it learns that it was refused, and it can connect anew.
#[test]
fn a_stopped_writer_is_fenced() {
    let mut fenced = 0;
    for _ in 0..20 {
        let (end, mut peer, _) = pair();
        peer.tell("storm");
        assert_eq!(peer.hear(), "storming");
        wait_for_change(&end.memory);
        peer.signal(Signal::SIGSTOP);
        wait_for_stop(peer.pid());
        let start = Instant::now();
        end.qp
            .control()
            .modify(&Modify::Access(Access::REMOTE_READ))
            .unwrap();
        let took = start.elapsed();
        assert!(took < Duration::from_secs(1), "revocation took {took:?}");
        // Never grant again over a connection whose writer was fenced: its copy is still under way.
        match end.qp.control().modify(&Modify::Access(Access::LOG)) {
            Err(mu_softrdma::error::Error::Fenced { .. }) => fenced += 1,
            other => {
                other.unwrap();
                end.qp
                    .control()
                    .modify(&Modify::Access(Access::REMOTE_READ))
                    .unwrap();
            }
        }
        let before: Vec<u64> = (0..WRITE / 8).map(|i| end.memory.load(i)).collect();
        peer.signal(Signal::SIGCONT);
        let status = peer.hear();
        assert!(
            (0..WRITE / 8).all(|i| end.memory.load(i) == before[i]),
            "a word landed after the revocation"
        );
        // Without a vendor error: this process lives.
        assert!(
            ["REM_INV_REQ_ERR", "RETRY_EXC_ERR"].contains(&status.as_str()),
            "{status}"
        );

        end.qp.control().modify(&Modify::Reset).unwrap();
        peer.tell("reset");
        peer.hear();
        join(&end, &mut peer);
        peer.tell("write 123456");
        assert_eq!(peer.hear(), "SUCCESS");
        assert!((0..WRITE / 8).all(|i| end.memory.load(i) == 123_456));
    }
    println!("{fenced} of 20 were stopped in mid-copy");
    assert!(
        fenced > 0 || shm::can_fence().is_err(),
        "the test never stopped a writer in mid-copy"
    );
}

/// A writer that cannot be fenced: the revocation says that it does not know, and the last resort works.
#[test]
fn a_stopped_writer_without_a_fence_is_reported_and_can_be_orphaned() {
    let mut stalled = 0;
    for round in 0..12 {
        let options = Options {
            give_up_ms: 30,
            ..Options::default()
        };
        let (mut end, mut peer) = (
            End::open(&options),
            Peer::start_with("MU_SHM_NO_FENCE", "1"),
        );
        join(&end, &mut peer);
        peer.tell("storm");
        assert_eq!(peer.hear(), "storming");
        wait_for_change(&end.memory);
        peer.signal(Signal::SIGSTOP);
        wait_for_stop(peer.pid());
        let revoked = end
            .qp
            .control()
            .modify(&Modify::Access(Access::REMOTE_READ));
        let Err(error) = revoked else { continue };
        stalled += 1;
        assert!(error.to_string().contains("stalled in mid-copy"), "{error}");
        let before: Vec<u64> = (0..WRITE / 8).map(|i| end.memory.load(i)).collect();
        end.node.orphan(&end.memory).unwrap();
        assert_eq!(end.qp.control().state(), QpState::Err);
        peer.signal(Signal::SIGCONT);
        // Refused in one way or another, depending on where it was; never a success.
        assert_ne!(peer.hear(), "SUCCESS");
        assert!(
            (0..WRITE / 8).all(|i| end.memory.load(i) == before[i]),
            "a word landed after the orphaning"
        );

        end.mr.reregister(Access::ALL).unwrap();
        end.qp.control().modify(&Modify::Reset).unwrap();
        drop(peer);
        let mut peer = Peer::start();
        join(&end, &mut peer);
        peer.tell(&format!("write {round}"));
        assert_eq!(peer.hear(), "SUCCESS");
        assert!((0..WRITE / 8).all(|i| end.memory.load(i) == round));
    }
    println!("{stalled} of 12 were stopped in mid-copy");
    assert!(stalled > 0, "the test never stopped a writer in mid-copy");
}

fn assert_frozen(memory: &Memory) {
    let before: Vec<u64> = (0..WRITE / 8).map(|i| memory.load(i)).collect();
    std::thread::sleep(Duration::from_millis(5));
    assert!(
        (0..WRITE / 8).all(|i| memory.load(i) == before[i]),
        "a word landed after the revocation"
    );
}
