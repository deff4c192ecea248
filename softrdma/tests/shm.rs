//! The shared-memory backend between two processes: this test program starts itself again as the peer.
#![cfg(not(any(loom, miri)))]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use mu_softrdma::shm::{self, Options};
use mu_softrdma::types::*;
use mu_softrdma::{Cq, Memory, Mr, Mw, Node, Pd, Qp};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BYTES: usize = 4 << 20;
const WRITE: usize = 1 << 20;

struct End {
    node: Node,
    pd: Pd,
    memory: Memory,
    mr: Mr,
    cq: Cq,
    qp: Qp,
}

impl End {
    fn open(options: &Options) -> Self {
        let node = shm::open(options).unwrap();
        let pd = node.alloc_pd();
        let memory = node.alloc_memory(BYTES).unwrap();
        let mr = node.reg_mr(&pd, &memory, 0..BYTES, Access::ALL).unwrap();
        let cq = node.create_cq(64).unwrap();
        let qp = node.create_qp(&pd, &cq, &cq, &QpCap::default()).unwrap();
        Self {
            node,
            pd,
            memory,
            mr,
            cq,
            qp,
        }
    }

    /// Endpoint, address and key, as the peer needs them.
    fn card(&self) -> String {
        let e = self.qp.control().endpoint();
        let hex: String = e.to_bytes().iter().map(|b| format!("{b:02x}")).collect();
        format!("{hex} {} {}", self.mr.addr(), self.mr.key())
    }

    fn init(&self) {
        self.qp
            .control()
            .modify(&Modify::Init(Access::LOG))
            .unwrap();
    }

    fn connect(&self, card: &str) -> RemoteAddr {
        let mut parts = card.split_whitespace();
        let hex = parts.next().unwrap();
        let bytes: Vec<u8> = (0..Endpoint::BYTES)
            .map(|i| u8::from_str_radix(&hex[2 * i..][..2], 16).unwrap())
            .collect();
        let remote = Endpoint::from_bytes(bytes.as_slice().try_into().unwrap()).unwrap();
        let rtr = RtrAttr {
            path_mtu: Mtu::B4096,
            ..RtrAttr::new(remote)
        };
        self.qp.control().modify(&Modify::Rtr(rtr)).unwrap();
        self.qp
            .control()
            .modify(&Modify::Rts(RtsAttr {
                timeout: 8,
                retry_cnt: 1,
                ..RtsAttr::default()
            }))
            .unwrap();
        RemoteAddr {
            addr: parts.next().unwrap().parse().unwrap(),
            rkey: parts.next().unwrap().parse().unwrap(),
        }
    }

    /// Writes a message of `WRITE` bytes that all say `round`; the status of its completion.
    fn write(&mut self, remote: RemoteAddr, round: u64) -> WcStatus {
        for word in 0..WRITE / 8 {
            self.memory.store(word, round);
        }
        self.post(remote, 0, WRITE)
    }

    fn post(&mut self, remote: RemoteAddr, at: usize, len: usize) -> WcStatus {
        let sges = [Sge::new(&self.mr, at, len)];
        let op: SendOp<'_, Mr, Mw> = SendOp::Write {
            payload: Payload::Regions(&sges),
            remote,
            imm: None,
        };
        self.qp
            .post_send(&SendWr {
                wr_id: 1,
                op,
                flags: SendFlags::SIGNALED,
            })
            .unwrap();
        let mut out = [Completion::EMPTY];
        let start = Instant::now();
        while self.cq.poll(&mut out) == 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "no completion");
            std::thread::yield_now();
        }
        out[0].status
    }
}

/// The other process: obeys lines on its standard input.
struct Peer {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Peer {
    fn start() -> Self {
        Self::start_with("MU_SHM_NOTHING")
    }

    fn start_with(variable: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "peer_main",
                "--nocapture",
                "--include-ignored",
                "--test-threads=1",
            ])
            .env("MU_SHM_PEER", "1")
            .env(variable, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let to = child.stdin.take().unwrap();
        let from = BufReader::new(child.stdout.take().unwrap());
        Self { child, to, from }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.to, "{line}").unwrap();
    }

    /// The next line that is for us: the test harness of the peer prints some of its own.
    fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.from.read_line(&mut line).unwrap(), 0, "the peer ended");
            if let Some((_, said)) = line.split_once('@') {
                return said.trim().to_owned();
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test of its own: what the other process runs.
#[test]
#[ignore = "started by the other tests"]
fn peer_main() {
    if std::env::var_os("MU_SHM_PEER").is_none() {
        return;
    }
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
    let offer_fence = std::env::var_os("MU_SHM_NO_FENCE").is_none();
    let mut end = End::open(&Options {
        offer_fence,
        ..Options::default()
    });
    let mut remote = None;
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "init" => {
                end.init();
                println!("@{}", end.card());
            }
            "connect" => {
                remote = Some(end.connect(rest));
                println!("@connected");
            }
            "write" => println!("@{}", end.write(remote.unwrap(), rest.parse().unwrap())),
            "storm" => {
                println!("@storming");
                // Two messages that differ in every word, made beforehand: nearly all the time is copying.
                for word in WRITE / 8..3 * WRITE / 8 {
                    end.memory.store(word, word as u64);
                }
                let mut round = 1;
                let status = loop {
                    let at = WRITE << (round % 2);
                    end.memory.store(at / 8, round);
                    let status = end.post(remote.unwrap(), at, WRITE);
                    if !status.is_success() {
                        break status;
                    }
                    round += 1;
                };
                println!("@{status}");
            }
            "read" => println!("@{}", end.memory.load(rest.parse().unwrap())),
            "reset" => {
                end.qp.control().modify(&Modify::Reset).unwrap();
                println!("@reset");
            }
            other => panic!("unknown order {other}"),
        }
    }
}

fn pair() -> (End, Peer, RemoteAddr) {
    let (end, mut peer) = (End::open(&Options::default()), Peer::start());
    let remote = join(&end, &mut peer);
    (end, peer, remote)
}

fn join(end: &End, peer: &mut Peer) -> RemoteAddr {
    end.init();
    peer.tell("init");
    let card = peer.hear();
    peer.tell(&format!("connect {}", end.card()));
    let remote = end.connect(&card);
    assert_eq!(peer.hear(), "connected");
    remote
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

#[test]
fn a_killed_target_ends_requests() {
    let (mut end, mut peer, remote) = pair();
    peer.signal(Signal::SIGKILL);
    peer.child.wait().unwrap();
    let start = Instant::now();
    while end.post(remote, 0, 8) == WcStatus::SUCCESS {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "writes into the memory of the dead go on"
        );
    }
    assert_eq!(end.qp.control().state(), QpState::Err);
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
        let (mut end, mut peer) = (End::open(&options), Peer::start_with("MU_SHM_NO_FENCE"));
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

fn wait_for_change(memory: &Memory) {
    let (start, first) = (Instant::now(), memory.load(0));
    while memory.load(0) < first + 3 {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "the storm does not come"
        );
        std::hint::spin_loop();
    }
}

fn assert_frozen(memory: &Memory) {
    let before: Vec<u64> = (0..WRITE / 8).map(|i| memory.load(i)).collect();
    std::thread::sleep(Duration::from_millis(5));
    assert!(
        (0..WRITE / 8).all(|i| memory.load(i) == before[i]),
        "a word landed after the revocation"
    );
}

/// A signal takes effect when each thread next enters the kernel; state T says that all have.
fn wait_for_stop(pid: Pid) {
    let start = Instant::now();
    loop {
        let all = std::fs::read_dir(format!("/proc/{pid}/task"))
            .unwrap()
            .all(|task| {
                let stat =
                    std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
                stat.rsplit(')')
                    .next()
                    .is_some_and(|rest| rest.trim_start().starts_with('T'))
            });
        if all {
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "it does not stop"
        );
    }
}
