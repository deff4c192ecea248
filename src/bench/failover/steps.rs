//! The named steps at which a replica can be made to die or to stop, and the device that does it.
//!
//! A step is a moment around a verb: just before or just after one kind of request is posted, or when a completion has
//! been taken and nothing made of it yet. Since the protocol is verbs with little between them, that reaches every
//! order in which a replica can be interrupted, without a hook in the protocol. [`Trapped`] is a device that looks at
//! each verb whether it is the one; the thread that posts it raises the signal, so nothing comes after it.

use std::ops::Range;
use std::sync::Arc;
use std::thread;

use mu::host::monotonic_ns;
use mu_verbs::sync::Ordering;
use mu_verbs::{
    Access, AsyncEvent, Capabilities, Completion, CompletionQueue, Context, Endpoint, Error,
    Memory, Modify, Payload, PostError, QpCap, QpControl, QpState, QueuePair, RecvWr, SendOp, Wr,
};
use nix::sys::signal::{Signal, raise};

use super::replica::{Hang, Trap};

/// A kind of verb, by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Entries into a follower's log.
    LogWrite,
    /// One word into a follower's log: minProposal, the commit index, the proof of a read.
    WordWrite,
    /// A follower's header or log.
    LogRead,
    /// Completions of these.
    LogCompletion,
    /// A peer's public line, with each heartbeat.
    BoardRead,
    /// The own row in a peer's mailbox: requests and acknowledgements.
    RowWrite,
    /// Completions of these.
    BoardCompletion,
    /// A queue pair's rights or state: revoking and granting among them.
    Modify,
}

const VERBS: [(Verb, &str); 8] = [
    (Verb::LogWrite, "log-write"),
    (Verb::WordWrite, "word-write"),
    (Verb::LogRead, "log-read"),
    (Verb::LogCompletion, "log-completion"),
    (Verb::BoardRead, "board-read"),
    (Verb::RowWrite, "row-write"),
    (Verb::BoardCompletion, "board-completion"),
    (Verb::Modify, "modify"),
];

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Around which verb.
    pub(crate) verb: Verb,
    /// After it, and not before.
    pub(crate) after: bool,
    /// The how many-th since it was armed, from 1.
    pub(crate) nth: u8,
}

impl Step {
    const fn before(verb: Verb, nth: u8) -> Self {
        Self {
            verb,
            after: false,
            nth,
        }
    }

    const fn after(verb: Verb, nth: u8) -> Self {
        Self {
            verb,
            after: true,
            nth,
        }
    }

    /// As `after-log-write-1`.
    pub(crate) fn name(self) -> String {
        let verb = VERBS.iter().find(|(verb, _)| *verb == self.verb);
        let verb = verb.map_or("", |(_, name)| name);
        let moment = if self.after { "after" } else { "before" };
        format!("{moment}-{verb}-{}", self.nth)
    }

    /// In a word, never 0.
    pub(super) fn to_word(self) -> u64 {
        1 + (self.verb as u64) * 2 + u64::from(self.after)
    }
}

/// Who is to die or stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Victim {
    /// The leader, at work
    Leader,
    /// The replica to which the leader is about to hand over
    Successor,
    /// A follower, at work or while it grants another leader its log
    Follower,
}

/// A step with who takes it, and whether it takes a handover to be reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) victim: Victim,
    pub(crate) step: Step,
    pub(crate) handover: bool,
}

const fn case(victim: Victim, step: Step, handover: bool) -> Case {
    Case {
        victim,
        step,
        handover,
    }
}

/// All of them: 19 of a leader, at work and on its way there, and 9 of a follower.
pub(crate) const CASES: [Case; 28] = {
    use Verb::*;
    use Victim::*;
    [
        case(Leader, Step::before(LogWrite, 1), false),
        case(Leader, Step::after(LogWrite, 1), false),
        case(Leader, Step::after(LogWrite, 2), false),
        case(Leader, Step::before(LogWrite, 7), false),
        case(Leader, Step::after(LogCompletion, 1), false),
        case(Leader, Step::after(LogCompletion, 2), false),
        case(Leader, Step::before(WordWrite, 1), false),
        case(Leader, Step::after(WordWrite, 1), false),
        case(Leader, Step::after(WordWrite, 2), false),
        case(Leader, Step::before(BoardRead, 1), false),
        case(Leader, Step::after(BoardCompletion, 1), false),
        case(Successor, Step::before(Modify, 1), true),
        case(Successor, Step::after(Modify, 1), true),
        case(Successor, Step::before(RowWrite, 1), true),
        case(Successor, Step::after(RowWrite, 1), true),
        case(Successor, Step::before(LogRead, 1), true),
        case(Successor, Step::after(LogRead, 2), true),
        case(Successor, Step::after(WordWrite, 1), true),
        case(Successor, Step::after(LogWrite, 1), true),
        case(Follower, Step::before(BoardRead, 1), false),
        case(Follower, Step::after(BoardRead, 2), false),
        case(Follower, Step::after(BoardCompletion, 1), false),
        case(Follower, Step::before(Modify, 1), true),
        case(Follower, Step::after(Modify, 1), true),
        case(Follower, Step::after(Modify, 2), true),
        case(Follower, Step::before(RowWrite, 1), true),
        case(Follower, Step::after(RowWrite, 1), true),
        case(Follower, Step::after(BoardCompletion, 3), true),
    ]
};

/// A device with a trap at every verb.
#[derive(Clone)]
pub(crate) struct Trapped<C> {
    inner: C,
    trap: Arc<Trap>,
}

impl<C> Trapped<C> {
    pub(super) fn new(inner: C, trap: Arc<Trap>) -> Self {
        Self { inner, trap }
    }
}

/// Whether this thread is the one that keeps heartbeats and permissions.
fn is_background() -> bool {
    thread::current()
        .name()
        .is_some_and(|name| name.starts_with("mu-bg"))
}

impl Trap {
    /// One moment of a verb: if it is the one, the thread does not go on from here, or only after a SIGCONT.
    #[inline]
    fn pass(&self, verb: impl FnOnce() -> Option<Verb>, after: bool) {
        let armed = self.step().load(Ordering::Relaxed);
        if armed == 0 {
            return;
        }
        let step = verb().map(|verb| Step {
            verb,
            after,
            nth: 1,
        });
        if step.is_some_and(|step| step.to_word() == armed) {
            self.spring();
        }
    }

    #[cold]
    fn spring(&self) {
        if self.left().fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        self.step().store(0, Ordering::Release);
        let signal = match self.stops().load(Ordering::Acquire) {
            0 => Signal::SIGKILL,
            _ => Signal::SIGSTOP,
        };
        self.sprung().store(monotonic_ns(), Ordering::SeqCst);
        raise(signal).expect("a signal to itself");
    }
}

fn of_send<C: Context>(wr: &Wr<'_, C>) -> Option<Verb> {
    let bytes = |payload: &Payload<'_, C::Mr>| match payload {
        Payload::Inline(bytes) => bytes.len(),
        Payload::Regions(pieces) => pieces.iter().map(|piece| piece.len).sum(),
    };
    match (is_background(), &wr.op) {
        (true, SendOp::Write { .. }) => Some(Verb::RowWrite),
        (true, SendOp::Read { .. }) => Some(Verb::BoardRead),
        (false, SendOp::Write { payload, .. }) if bytes(payload) <= 8 => Some(Verb::WordWrite),
        (false, SendOp::Write { .. }) => Some(Verb::LogWrite),
        (false, SendOp::Read { .. }) => Some(Verb::LogRead),
        _ => None,
    }
}

impl<C: Context> Context for Trapped<C> {
    type Pd = C::Pd;
    type Mr = C::Mr;
    type Mw = C::Mw;
    type Cq = TrappedCq<C::Cq>;
    type Qp = TrappedQp<C>;
    type Control = TrappedControl<C::Control>;

    fn caps(&self) -> &Capabilities {
        self.inner.caps()
    }

    fn alloc_memory(&self, bytes: usize) -> Result<Memory, Error> {
        self.inner.alloc_memory(bytes)
    }

    fn alloc_pd(&self) -> Result<Self::Pd, Error> {
        self.inner.alloc_pd()
    }

    fn reg_mr(
        &self,
        pd: &Self::Pd,
        memory: &Memory,
        range: Range<usize>,
        access: Access,
    ) -> Result<Self::Mr, Error> {
        self.inner.reg_mr(pd, memory, range, access)
    }

    fn alloc_mw(&self, pd: &Self::Pd) -> Result<Self::Mw, Error> {
        self.inner.alloc_mw(pd)
    }

    fn create_cq(&self, depth: u32) -> Result<Self::Cq, Error> {
        Ok(TrappedCq {
            inner: self.inner.create_cq(depth)?,
            trap: Arc::clone(&self.trap),
        })
    }

    fn create_qp(
        &self,
        pd: &Self::Pd,
        send_cq: &Self::Cq,
        recv_cq: &Self::Cq,
        cap: &QpCap,
    ) -> Result<Self::Qp, Error> {
        let inner = self
            .inner
            .create_qp(pd, &send_cq.inner, &recv_cq.inner, cap)?;
        let control = TrappedControl {
            inner: inner.control().clone(),
            trap: Arc::clone(&self.trap),
        };
        let trap = Arc::clone(&self.trap);
        Ok(TrappedQp {
            inner,
            control,
            trap,
        })
    }

    fn poll_async_event(&self) -> Result<Option<AsyncEvent>, Error> {
        self.inner.poll_async_event()
    }
}

/// Of [`Trapped`].
pub(crate) struct TrappedCq<Q> {
    inner: Q,
    trap: Arc<Trap>,
}

impl<Q: CompletionQueue> CompletionQueue for TrappedCq<Q> {
    #[inline]
    fn poll(&mut self, out: &mut [Completion]) -> usize {
        let n = self.inner.poll(out);
        if n > 0 {
            let verb = || {
                Some(match is_background() {
                    true => Verb::BoardCompletion,
                    false => Verb::LogCompletion,
                })
            };
            self.trap.pass(verb, true);
        }
        n
    }

    fn error(&self) -> Option<i32> {
        self.inner.error()
    }
}

/// Of [`Trapped`].
pub(crate) struct TrappedQp<C: Context> {
    inner: C::Qp,
    control: TrappedControl<C::Control>,
    trap: Arc<Trap>,
}

impl<C: Context> QueuePair<Trapped<C>> for TrappedQp<C> {
    fn control(&self) -> &TrappedControl<C::Control> {
        &self.control
    }

    fn cap(&self) -> QpCap {
        self.inner.cap()
    }

    #[inline]
    fn post_send(&mut self, wr: &Wr<'_, Trapped<C>>) -> Result<(), PostError> {
        if is_background() {
            self.trap.hold(Hang::Background);
        }
        self.trap.pass(|| of_send::<C>(wr), false);
        let posted = self.inner.post_send(wr);
        self.trap.pass(|| of_send::<C>(wr), true);
        posted
    }

    fn post_send_list(&mut self, wrs: &[Wr<'_, Trapped<C>>]) -> Result<(), (usize, PostError)> {
        let first = || wrs.first().and_then(of_send::<C>);
        self.trap.pass(first, false);
        let posted = self.inner.post_send_list(wrs);
        self.trap.pass(first, true);
        posted
    }

    fn post_recv(&mut self, wr: &RecvWr<'_, C::Mr>) -> Result<(), PostError> {
        self.inner.post_recv(wr)
    }

    fn close(self) -> Result<(), Error> {
        self.inner.close()
    }
}

/// Of [`Trapped`].
#[derive(Clone)]
pub(crate) struct TrappedControl<K> {
    inner: K,
    trap: Arc<Trap>,
}

impl<K: QpControl> QpControl for TrappedControl<K> {
    fn qp_num(&self) -> u32 {
        self.inner.qp_num()
    }

    fn endpoint(&self) -> Endpoint {
        self.inner.endpoint()
    }

    fn state(&self) -> Result<QpState, Error> {
        self.inner.state()
    }

    fn modify(&self, change: &Modify) -> Result<(), Error> {
        self.trap.pass(|| Some(Verb::Modify), false);
        let done = self.inner.modify(change);
        self.trap.pass(|| Some(Verb::Modify), true);
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_names_and_words_of_their_own() {
        let mut names: Vec<String> = CASES
            .iter()
            .map(|case| format!("{:?} {}", case.victim, case.step.name()))
            .collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), CASES.len(), "{names:?}");
        let leaders = CASES.iter().filter(|case| case.victim != Victim::Follower);
        assert!(leaders.count() >= 16);
        let followers = CASES.iter().filter(|case| case.victim == Victim::Follower);
        assert!(followers.count() >= 8);
        let mut words: Vec<u64> = VERBS
            .iter()
            .flat_map(|(verb, _)| [Step::before(*verb, 1), Step::after(*verb, 1)])
            .map(Step::to_word)
            .collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!((words.len(), words[0]), (2 * VERBS.len(), 1));
    }
}
