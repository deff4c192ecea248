//! Ends of the shared-memory backend, and the other process, which is the same test program: its `peer_main` calls
//! [`obey`].
#![allow(dead_code, reason = "each test program uses a part of this")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use mu_softrdma::error::Error;
use mu_softrdma::shm::{self, Options};
use mu_softrdma::types::*;
use mu_softrdma::{Cq, Memory, Mr, Mw, Node, Pd, Qp};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Bytes of an end's region.
pub(crate) const BYTES: usize = 4 << 20;
/// Bytes of a WRITE.
pub(crate) const WRITE: usize = 1 << 20;
/// Bytes of a SEND.
pub(crate) const SEND: usize = 32 << 10;
/// What is long for anything here, even on a slow machine: a hang is a failure.
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) struct End {
    pub(crate) node: Node,
    pub(crate) pd: Pd,
    pub(crate) memory: Memory,
    pub(crate) mr: Mr,
    pub(crate) cq: Cq,
    pub(crate) qp: Qp,
    /// The completion that was waited for last.
    pub(crate) last: Completion,
}

impl End {
    pub(crate) fn open(options: &Options) -> Self {
        Self::on(&shm::open(options).unwrap())
    }

    pub(crate) fn on(node: &Node) -> Self {
        let pd = node.alloc_pd();
        let memory = node.alloc_memory(BYTES).unwrap();
        let mr = node.reg_mr(&pd, &memory, 0..BYTES, Access::ALL).unwrap();
        let cq = node.create_cq(64).unwrap();
        let qp = node.create_qp(&pd, &cq, &cq, &QpCap::default()).unwrap();
        let node = node.clone();
        Self {
            node,
            pd,
            memory,
            mr,
            cq,
            qp,
            last: Completion::EMPTY,
        }
    }

    /// Endpoint, address and key, as the peer needs them.
    pub(crate) fn card(&self) -> String {
        let e = self.qp.control().endpoint();
        let hex: String = e.to_bytes().iter().map(|b| format!("{b:02x}")).collect();
        format!("{hex} {} {}", self.mr.addr(), self.mr.key())
    }

    pub(crate) fn init(&self) {
        self.qp
            .control()
            .modify(&Modify::Init(Access::LOG))
            .unwrap();
    }

    /// To RTR, connected to the end with this card.
    pub(crate) fn answer(&self, card: &str) -> Result<(), Error> {
        let remote = endpoint(card.split_whitespace().next().unwrap());
        let rtr = RtrAttr {
            path_mtu: Mtu::B4096,
            min_rnr_timer: 1,
            ..RtrAttr::new(remote)
        };
        self.qp.control().modify(&Modify::Rtr(rtr))
    }

    pub(crate) fn connect(&self, card: &str) -> RemoteAddr {
        self.answer(card).unwrap();
        self.go(card)
    }

    /// From RTR to RTS; where the other end's memory is.
    pub(crate) fn go(&self, card: &str) -> RemoteAddr {
        let mut parts = card.split_whitespace().skip(1);
        self.qp
            .control()
            .modify(&Modify::Rts(RtsAttr {
                timeout: 8,
                retry_cnt: 1,
                rnr_retry: 7,
                ..RtsAttr::default()
            }))
            .unwrap();
        RemoteAddr {
            addr: parts.next().unwrap().parse().unwrap(),
            rkey: parts.next().unwrap().parse().unwrap(),
        }
    }

    /// Writes a message of `WRITE` bytes that all say `round`; the status of its completion.
    pub(crate) fn write(&mut self, remote: RemoteAddr, round: u64) -> WcStatus {
        for word in 0..WRITE / 8 {
            self.memory.store(word, round);
        }
        self.post(remote, 0, WRITE)
    }

    /// WRITEs `len` bytes from byte `at` on; the status of its completion.
    pub(crate) fn post(&mut self, remote: RemoteAddr, at: usize, len: usize) -> WcStatus {
        let sges = [Sge::new(&self.mr, at, len)];
        let payload = Payload::Regions(&sges);
        let op: SendOp<'_, Mr, Mw> = SendOp::Write {
            payload,
            remote,
            imm: None,
        };
        self.qp.post_send(&signalled(op)).unwrap();
        self.wait()
    }

    /// SENDs `len` bytes from byte `at` on; the status of its completion.
    pub(crate) fn send(&mut self, at: usize, len: usize, imm: Option<u32>) -> WcStatus {
        let sges = [Sge::new(&self.mr, at, len)];
        let payload = Payload::Regions(&sges);
        self.qp
            .post_send(&signalled(SendOp::Send { payload, imm }))
            .unwrap();
        self.wait()
    }

    /// Posts a receive of `len` bytes at byte `at`.
    pub(crate) fn post_recv(&mut self, wr_id: u64, at: usize, len: usize) {
        let local = [Sge::new(&self.mr, at, len)];
        let local = &local;
        self.qp.post_recv(&RecvWr { wr_id, local }).unwrap();
    }

    pub(crate) fn poll(&mut self) -> Option<Completion> {
        let mut out = [Completion::EMPTY];
        (self.cq.poll(&mut out) == 1).then_some(out[0])
    }

    fn wait(&mut self) -> WcStatus {
        self.last = until("a completion", || self.poll());
        self.last.status
    }

    /// WRITEs without a pause until one is refused; its status.
    fn storm(&mut self, remote: RemoteAddr) -> WcStatus {
        // Two messages that differ in every word, made beforehand: nearly all the time is copying.
        for word in WRITE / 8..3 * WRITE / 8 {
            self.memory.store(word, word as u64);
        }
        let mut round = 1;
        loop {
            let at = WRITE << (round % 2);
            self.memory.store(at / 8, round);
            let status = self.post(remote, at, WRITE);
            if !status.is_success() {
                return status;
            }
            round += 1;
        }
    }

    /// SENDs without a pause until one is refused; its status. All words of a message are the same, and three messages
    /// that follow one another are different.
    fn send_storm(&mut self) -> WcStatus {
        for word in 0..3 * SEND / 8 {
            self.memory.store(word, 1 + (word / (SEND / 8)) as u64);
        }
        let mut at = (0..3).cycle().map(|n| n * SEND);
        loop {
            let status = self.send(at.next().unwrap_or(0), SEND, None);
            if !status.is_success() {
                return status;
            }
        }
    }
}

fn signalled<'a>(op: SendOp<'a, Mr, Mw>) -> SendWr<'a, Mr, Mw> {
    let flags = SendFlags::SIGNALED;
    SendWr {
        wr_id: 1,
        op,
        flags,
    }
}

/// The endpoint at the beginning of a card.
pub(crate) fn endpoint(card: &str) -> Endpoint {
    let bytes: Vec<u8> = (0..Endpoint::BYTES)
        .map(|i| u8::from_str_radix(&card[2 * i..][..2], 16).unwrap())
        .collect();
    Endpoint::from_bytes(bytes.as_slice().try_into().unwrap()).unwrap()
}

/// The other process: obeys lines on its standard input.
pub(crate) struct Peer {
    pub(crate) child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Peer {
    pub(crate) fn start() -> Self {
        Self::start_with("MU_SHM_ENDS", "1")
    }

    /// `MU_SHM_ENDS`: with so many ends on one context. `MU_SHM_NO_FENCE`: it cannot be fenced.
    pub(crate) fn start_with(variable: &str, value: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "peer_main",
                "--nocapture",
                "--include-ignored",
                "--test-threads=1",
            ])
            .env("MU_SHM_PEER", "1")
            .env(variable, value)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let to = child.stdin.take().unwrap();
        let from = BufReader::new(child.stdout.take().unwrap());
        Self { child, to, from }
    }

    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.to, "{line}").unwrap();
    }

    /// The next line that is for us: the test harness of the peer prints some of its own.
    pub(crate) fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.from.read_line(&mut line).unwrap(), 0, "the peer ended");
            if let Some((_, said)) = line.split_once('@') {
                return said.trim().to_owned();
            }
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub(crate) fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        wait_for_stop(self.pid());
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the other process runs; nothing in a process that was not started by [`Peer`]. Cards and answers of several
/// ends are separated by semicolons, except for those of a storm, which come as each end's storm is over.
pub(crate) fn obey() {
    if std::env::var_os("MU_SHM_PEER").is_none() {
        return;
    }
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
    let node = shm::open(&Options {
        offer_fence: std::env::var_os("MU_SHM_NO_FENCE").is_none(),
        ..Options::default()
    })
    .unwrap();
    let count = std::env::var("MU_SHM_ENDS").map_or(1, |n| n.parse().unwrap());
    let mut ends: Vec<End> = (0..count).map(|_| End::on(&node)).collect();
    let mut remotes = Vec::new();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "init" => {
                ends.iter().for_each(End::init);
                println!("@{}", cards(&ends));
            }
            "connect" => {
                remotes = connect_all(&ends, rest);
                println!("@connected");
            }
            "write" => println!("@{}", ends[0].write(remotes[0], rest.parse().unwrap())),
            "storm" | "send_storm" => {
                println!("@storming");
                std::thread::scope(|scope| {
                    for (end, remote) in ends.iter_mut().zip(&remotes) {
                        scope.spawn(move || {
                            let status = match word {
                                "storm" => end.storm(*remote),
                                _ => end.send_storm(),
                            };
                            match end.last.vendor_err {
                                0 => println!("@{status}"),
                                code => println!("@{status} {code}"),
                            }
                        });
                    }
                });
            }
            "read" => println!("@{}", ends[0].memory.load(rest.parse().unwrap())),
            "reset" => {
                for end in &ends {
                    end.qp.control().modify(&Modify::Reset).unwrap();
                }
                println!("@reset");
            }
            other => panic!("unknown order {other}"),
        }
    }
}

fn cards(ends: &[End]) -> String {
    let cards: Vec<_> = ends.iter().map(End::card).collect();
    cards.join(";")
}

fn connect_all(ends: &[End], cards: &str) -> Vec<RemoteAddr> {
    let each = ends.iter().zip(cards.split(';'));
    each.map(|(end, card)| end.connect(card)).collect()
}

/// Connects the peer's first end.
pub(crate) fn join(end: &End, peer: &mut Peer) -> RemoteAddr {
    join_all(std::slice::from_ref(end), peer)[0]
}

/// Connects each end to one of the peer's.
pub(crate) fn join_all(ends: &[End], peer: &mut Peer) -> Vec<RemoteAddr> {
    ends.iter().for_each(End::init);
    peer.tell("init");
    let theirs = peer.hear();
    peer.tell(&format!("connect {}", cards(ends)));
    let remotes = connect_all(ends, &theirs);
    assert_eq!(peer.hear(), "connected");
    remotes
}

/// Calls `ask` until it gives something.
pub(crate) fn until<R>(what: &str, mut ask: impl FnMut() -> Option<R>) -> R {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < LIMIT, "waited too long for {what}");
        std::thread::yield_now();
    }
}

pub(crate) fn wait_for_change(memory: &Memory) {
    let (start, first) = (Instant::now(), memory.load(0));
    while memory.load(0) < first + 3 {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "the storm does not come"
        );
        std::hint::spin_loop();
    }
}

/// A signal takes effect when each thread next enters the kernel; state T says that all have.
pub(crate) fn is_stopped(pid: Pid) -> bool {
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .all(|task| {
            let stat =
                std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
            stat.rsplit(')')
                .next()
                .is_some_and(|rest| rest.trim_start().starts_with('T'))
        })
}

pub(crate) fn wait_for_stop(pid: Pid) {
    until("the stop", || is_stopped(pid).then_some(()));
}
