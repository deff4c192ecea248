//! Ways by which a word could land after a right was gone, or a completion say too much, between processes. Each was
//! there once.
#![cfg(not(any(loom, miri)))]

mod peer;

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use mu_softrdma::Memory;
use mu_softrdma::error::Error;
use mu_softrdma::shm::{self, Options};
use mu_softrdma::types::*;
use nix::sys::signal::Signal;
use nix::sys::socket::*;
use peer::{End, Peer, SEND, WRITE, endpoint, is_stopped, join, join_all, until, wait_for_change};

/// Rounds in which a writer is stopped at a random moment, at most.
const ROUNDS: u32 = 60;
/// Rounds in which it was in mid-copy, after which a test is content.
const HITS: u32 = 3;

/// Not a test of its own: what the other process runs.
#[test]
#[ignore = "started by the other tests"]
fn peer_main() {
    peer::obey();
}

/// Runs rounds until enough of them hit what the test is about.
fn rounds(what: &str, mut round: impl FnMut() -> bool) {
    let (mut hits, mut done) = (0, 0);
    while hits < HITS && done < ROUNDS {
        hits += u32::from(round());
        done += 1;
    }
    println!("{hits} of {done} rounds: {what}");
    assert!(hits > 0, "no round of {done} had {what}");
}

/// Whether the storm's last WRITE ends within a chunk: its words say where in the writer's memory they were.
fn ends_within_a_chunk(words: &[u64]) -> bool {
    let chunk = Mtu::B4096.bytes() / 8;
    let cut = (2..words.len()).find(|&i| words[i] != words[i - 1] + 1);
    cut.is_some_and(|i| i % chunk != 0)
}

fn words(memory: &Memory) -> Vec<u64> {
    (0..WRITE / 8).map(|i| memory.load(i)).collect()
}

/// Both writers of one process are stopped in mid-copy; the fence of the first must not pass for one of the second.
#[test]
fn two_writers_of_one_lane_are_both_fenced() {
    if shm::can_fence().is_err() {
        return println!("nothing to test: no fence here");
    }
    rounds("both writers stopped in mid-copy", || {
        let node = shm::open(&Options::default()).unwrap();
        let ends = [End::on(&node), End::on(&node)];
        let mut peer = Peer::start_with("MU_SHM_ENDS", "2");
        join_all(&ends, &mut peer);
        peer.tell("storm");
        assert_eq!(peer.hear(), "storming");
        ends.iter().for_each(|end| wait_for_change(&end.memory));
        peer.stop();
        for end in &ends {
            let control = end.qp.control();
            control.modify(&Modify::Access(Access::NONE)).unwrap();
        }
        let before = [words(&ends[0].memory), words(&ends[1].memory)];
        peer.signal(Signal::SIGCONT);
        for _ in &ends {
            assert_ne!(peer.hear(), "SUCCESS");
        }
        for (n, (end, before)) in ends.iter().zip(&before).enumerate() {
            let after = words(&end.memory);
            let late = after.iter().zip(before).filter(|(a, b)| a != b).count();
            assert_eq!(late, 0, "words landed at end {n} after the revocation");
        }
        before.iter().all(|words| ends_within_a_chunk(words))
    });
}

/// The sender is fenced in mid-copy: its bytes go nowhere, so the receiver is not told that they are there.
#[test]
fn a_fenced_send_is_not_received() {
    const RECEIVES: usize = 64;
    if shm::can_fence().is_err() {
        return println!("nothing to test: no fence here");
    }
    let whole = |end: &End, wr_id: u64| {
        let first = wr_id as usize * SEND / 8;
        let value = end.memory.load(first);
        (first..first + SEND / 8).all(|word| end.memory.load(word) == value)
    };
    rounds("a SEND fenced in mid-copy", || {
        let (mut end, mut peer) = (End::open(&Options::default()), Peer::start());
        end.init();
        for n in 0..RECEIVES {
            end.post_recv(n as u64, n * SEND, SEND);
        }
        peer.tell("init");
        let theirs = peer.hear();
        peer.tell(&format!("connect {}", end.card()));
        end.connect(&theirs);
        assert_eq!(peer.hear(), "connected");
        peer.tell("send_storm");
        assert_eq!(peer.hear(), "storming");
        // Each buffer is filled twice, the second time with another message; until the sender stands still, it never
        // has to wait for a receive.
        let (mut received, mut signalled) = (0, false);
        while !signalled || !is_stopped(peer.pid()) {
            while let Some(got) = end.poll() {
                assert!(got.status.is_success() && whole(&end, got.wr_id), "{got:?}");
                end.post_recv(got.wr_id, got.wr_id as usize * SEND, SEND);
                received += 1;
                if received > 2 * RECEIVES && !signalled {
                    peer.signal(Signal::SIGSTOP);
                    signalled = true;
                }
            }
        }
        let control = end.qp.control();
        control.modify(&Modify::Access(Access::NONE)).unwrap();
        let granted = control.modify(&Modify::Access(Access::LOG));
        let fenced = matches!(granted, Err(Error::Fenced { .. }));
        if fenced {
            peer.signal(Signal::SIGCONT);
            assert_ne!(peer.hear(), "SUCCESS");
            while let Some(got) = end.poll() {
                let torn = got.status.is_success() && !whole(&end, got.wr_id);
                assert!(!torn, "received, and its bytes are not there: {got:?}");
            }
        }
        fenced
    });
}

/// A connection whose writer can be neither fenced nor waited for, if it was stopped in mid-copy.
fn with_a_stalled_writer(test: impl FnOnce(End, &mut Peer)) -> bool {
    let options = Options {
        give_up_ms: 30,
        ..Options::default()
    };
    let mut peer = Peer::start_with("MU_SHM_NO_FENCE", "1");
    let end = End::open(&options);
    join(&end, &mut peer);
    peer.tell("storm");
    assert_eq!(peer.hear(), "storming");
    wait_for_change(&end.memory);
    peer.stop();
    let stalled = end.mr.memory().clone();
    let revoked = end.qp.control().modify(&Modify::Access(Access::NONE));
    let hit = ends_within_a_chunk(&words(&stalled)) && is_stalled(&revoked);
    if hit {
        test(end, &mut peer);
    } else {
        // What is dropped first waits no longer than this.
        peer.signal(Signal::SIGKILL);
    }
    hit
}

fn is_stalled(result: &Result<(), Error>) -> bool {
    matches!(result, Err(Error::WriterStalled { .. }))
}

/// The queue pair is gone as far as its owner can tell, and its writer still in mid-copy.
#[test]
fn a_stalled_writer_outlives_its_queue_pair() {
    rounds("a writer stopped in mid-copy", || {
        with_a_stalled_writer(|end, peer| {
            let End {
                node, pd, mr, qp, ..
            } = end;
            let other = node.alloc_memory(64).unwrap();
            let other = node.reg_mr(&pd, &other, 0..64, Access::ALL).unwrap();
            assert!(is_stalled(&qp.close()));
            let closed = mr.close();
            assert!(is_stalled(&closed), "{closed:?}");
            peer.signal(Signal::SIGCONT);
            assert_ne!(peer.hear(), "SUCCESS");
            other.close().unwrap();
        })
    });
}

#[test]
fn a_stalled_writer_outlives_a_reset() {
    rounds("a writer stopped in mid-copy", || {
        with_a_stalled_writer(|end, peer| {
            let End { mr, qp, .. } = end;
            let modify = |change| qp.control().modify(&change);
            assert!(is_stalled(&modify(Modify::Reset)));
            let init = modify(Modify::Init(Access::LOG));
            assert!(is_stalled(&init), "{init:?}");
            let closed = mr.close();
            assert!(is_stalled(&closed), "{closed:?}");
            peer.signal(Signal::SIGCONT);
            assert_ne!(peer.hear(), "SUCCESS");
            modify(Modify::Init(Access::LOG)).unwrap();
        })
    });
}

fn connect_idle(node: u64) -> OwnedFd {
    let kind = (AddressFamily::Unix, SockType::SeqPacket);
    let socket = socket(kind.0, kind.1, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let address = UnixAddr::new_abstract(format!("mu-shm-{node:016x}").as_bytes()).unwrap();
    connect(socket.as_raw_fd(), &address).unwrap();
    socket
}

/// Connections that say nothing, and others that say nonsense with descriptors in it.
#[test]
fn idle_connections_block_nobody_and_leak_nothing() {
    let (end, mut peer) = (End::open(&Options::default()), Peer::start());
    join(&end, &mut peer);
    let fds = format!("/proc/{}/fd", peer.pid());
    let open = || std::fs::read_dir(&fds).unwrap().count();
    // The peer's watcher may still be taking in what came with the connection: count when it has come to rest.
    let mut before = open();
    until("the peer to come to rest", || {
        std::thread::sleep(Duration::from_millis(200));
        let last = std::mem::replace(&mut before, open());
        (before == last).then_some(())
    });
    let node = {
        peer.tell("reset");
        peer.hear();
        end.qp.control().modify(&Modify::Reset).unwrap();
        peer.tell("init");
        endpoint(&peer.hear()).node
    };
    let null = File::open("/dev/null").unwrap();
    let nonsense: Vec<OwnedFd> = (0..20)
        .map(|_| {
            let socket = connect_idle(node);
            let fds = [null.as_raw_fd(); 5];
            let rights = [ControlMessage::ScmRights(&fds)];
            let (bytes, flags) = ([IoSlice::new(&[0; 48])], MsgFlags::empty());
            sendmsg::<()>(socket.as_raw_fd(), &bytes, &rights, flags, None).unwrap();
            socket
        })
        .collect();
    // The idle ones find no place that a refused one leaves.
    until("the end of those that said nonsense", || {
        (open() <= before).then_some(())
    });
    let idle: Vec<OwnedFd> = (0..200).map(|_| connect_idle(node)).collect();
    let other = End::open(&Options::default());
    peer.tell("reset");
    peer.hear();
    join(&other, &mut peer);
    peer.tell("write 7");
    assert_eq!(peer.hear(), "SUCCESS");
    drop((idle, nonsense, other));
    until("the peer to close what it accepted", || {
        (open() <= before).then_some(())
    });
}

/// A peer that says of a message that it is longer than the receive. Its words are found in the memory that both
/// processes share (here one process that is both) by the immediate value beside them.
#[test]
fn a_length_that_a_peer_invents_is_not_believed() {
    const IMM: u32 = 0xfeed_1dea;
    let (mut x, mut y) = (
        End::open(&Options::default()),
        End::open(&Options::default()),
    );
    for end in [&x, &y] {
        end.init();
    }
    y.post_recv(1, 0, 64);
    let (a, b) = (x.card(), y.card());
    x.connect(&b);
    y.connect(&a);
    assert_eq!(x.send(0, 8, Some(IMM)), WcStatus::SUCCESS);
    let honest = u64::from(IMM) << 32 | 8;
    assert_eq!(replace_shared(honest, honest | 0xffff_0000), 1);
    let got = until("the message", || y.poll());
    assert_eq!(
        (got.wr_id, got.status, got.byte_len),
        (1, WcStatus::GENERAL_ERR, 0)
    );
}

/// Replaces a word wherever it stands in the shared mappings of this process; how many memory words that were.
fn replace_shared(old: u64, new: u64) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memory = File::options()
        .read(true)
        .write(true)
        .open("/proc/self/mem")
        .unwrap();
    let mut replaced = 0;
    for line in maps.lines().filter(|line| line.contains(" rw-s ")) {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let at = |hex| u64::from_str_radix(hex, 16).unwrap();
        let (from, mut bytes) = (at(from), vec![0; (at(to) - at(from)) as usize]);
        // Another test may have unmapped it meanwhile.
        if memory.read_exact_at(&mut bytes, from).is_err() {
            continue;
        }
        for (n, word) in bytes.chunks_exact(8).enumerate() {
            if word == old.to_ne_bytes() {
                memory
                    .write_all_at(&new.to_ne_bytes(), from + 8 * n as u64)
                    .unwrap();
                replaced += 1;
            }
        }
    }
    replaced
}
