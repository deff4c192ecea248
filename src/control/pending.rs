//! Connections on their way to be up, or to their end.

use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use super::conn::{self, Filled, Outgoing};
use super::frame::Reader;
use super::handshake::{Acceptor, Authenticated, Dialer, Identity, Refused};
use super::limits::{FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX, HANDSHAKE_LIMIT};
use super::refusal::{Refusal, RefusalKind};
use super::session::{Kind, Sealer};
use super::shared::{Shared, lock};
use super::wire::{Nonce, Purpose};

pub(super) struct Pending {
    pub(super) stream: TcpStream,
    reader: Reader,
    out: Outgoing,
    stage: Stage,
    /// The peer that this side dials here.
    pub(super) dialled: Option<u8>,
    pub(super) deadline: Instant,
    ended: bool,
}

enum Stage {
    /// TCP is not yet through.
    Connecting(Nonce),
    Dialing(Dialer),
    Accepting(Acceptor),
    /// Authenticated; the other side's hello is still to come.
    Greeting(Box<Authenticated>),
    /// The last word is on its way out. Then the other side closes: who closes first with bytes unread can undo it.
    Draining,
}

/// What there is besides the connection.
pub(super) struct Context<'a> {
    pub(super) me: &'a Identity,
    pub(super) shared: &'a Shared,
    /// Whether an incarnation of a peer is a former one.
    pub(super) superseded: &'a dyn Fn(u8, u64) -> bool,
}

/// How far it has come.
pub(super) enum Outcome {
    Going,
    /// It is up: the other side's hello.
    Up {
        hello: Vec<u8>,
    },
    /// It is refused; [`Pending::has_ended`] says whether there is a last word.
    Refused(Refused),
    /// Nobody is there.
    Unreachable,
    /// It is over, and there is nothing to say about it.
    Closed,
}

/// The parts of a connection that is up.
pub(super) struct Parts {
    pub(super) stream: TcpStream,
    pub(super) reader: Reader,
    pub(super) out: Outgoing,
    pub(super) authenticated: Authenticated,
}

impl Pending {
    pub(super) fn dial(stream: TcpStream, peer: u8, nonce: Nonce, now: Instant) -> Self {
        Self::new(stream, Stage::Connecting(nonce), Some(peer), now)
    }

    pub(super) fn accept(stream: TcpStream, nonce: Nonce, now: Instant) -> Self {
        let stage = Stage::Accepting(Acceptor::new(nonce));
        Self::new(stream, stage, None, now)
    }

    fn new(stream: TcpStream, stage: Stage, dialled: Option<u8>, now: Instant) -> Self {
        Self {
            stream,
            reader: Reader::new(HANDSHAKE_FRAME_BYTES_MAX),
            out: Outgoing::default(),
            stage,
            dialled,
            deadline: now + HANDSHAKE_LIMIT,
            ended: false,
        }
    }

    pub(super) fn wants_to_write(&self) -> bool {
        matches!(self.stage, Stage::Connecting(_)) || self.out.waiting_bytes() > 0
    }

    pub(super) fn wants_to_read(&self) -> bool {
        !matches!(self.stage, Stage::Connecting(_))
    }

    /// An incoming connection of somebody who has proved nothing.
    pub(super) fn is_stranger(&self) -> bool {
        matches!(self.stage, Stage::Accepting(_))
    }

    pub(super) fn is_connecting(&self) -> bool {
        matches!(self.stage, Stage::Connecting(_))
    }

    pub(super) fn is_draining(&self) -> bool {
        matches!(self.stage, Stage::Draining)
    }

    /// It is refused and there is no last word to bring out.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// The parts of one whose outcome was [`Outcome::Up`].
    pub(super) fn into_parts(self) -> Option<Parts> {
        let Stage::Greeting(authenticated) = self.stage else {
            return None;
        };
        Some(Parts {
            stream: self.stream,
            reader: self.reader,
            out: self.out,
            authenticated: *authenticated,
        })
    }

    /// Does what can be done now, without waiting.
    pub(super) fn advance(&mut self, cx: &Context<'_>) -> Outcome {
        let outcome = match self.stage {
            Stage::Connecting(nonce) => self.connected(cx, nonce),
            Stage::Draining => return self.drain(),
            _ => match conn::fill(&mut self.reader, &self.stream) {
                Filled::Closed => return Outcome::Closed,
                Filled::Nothing => Outcome::Going,
                Filled::Some => self.take_frames(cx),
            },
        };
        if let Outcome::Refused(_) = outcome {
            self.stage = Stage::Draining;
            self.ended = self.out.waiting_bytes() == 0 || matches!(self.drain(), Outcome::Closed);
            return outcome;
        }
        if self.is_draining() {
            return self.drain();
        }
        match self.out.flush(&self.stream) {
            Ok(()) => outcome,
            Err(_) => Outcome::Closed,
        }
    }

    fn connected(&mut self, cx: &Context<'_>, nonce: Nonce) -> Outcome {
        let Some(peer) = self.dialled else {
            return Outcome::Closed;
        };
        if conn::dialled(&self.stream).is_err() {
            return Outcome::Unreachable;
        }
        let dialer = Dialer::start(cx.me, Purpose::Peer, peer, nonce, self.out.tail());
        self.stage = Stage::Dialing(dialer);
        Outcome::Going
    }

    fn take_frames(&mut self, cx: &Context<'_>) -> Outcome {
        loop {
            let frame = match self.reader.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Outcome::Going,
                Err(_) => return refuse(Refusal::FrameTooBig, None),
            };
            let authenticated = match &mut self.stage {
                Stage::Dialing(dialer) => dialer.on_frame(cx.me, frame, self.out.tail()),
                Stage::Accepting(acceptor) => {
                    acceptor.on_frame(cx.me, cx.superseded, frame, self.out.tail())
                }
                Stage::Greeting(authenticated) => return on_hello(authenticated, frame),
                Stage::Connecting(_) | Stage::Draining => return Outcome::Closed,
            };
            match authenticated {
                Ok(None) => {}
                Ok(Some(authenticated)) => {
                    if let Some(outcome) = self.greet(cx, authenticated) {
                        return outcome;
                    }
                }
                Err(refused) => return Outcome::Refused(refused),
            }
        }
    }

    /// Both sides are who they say: a peer is told the hello, a client its answer. `None`: there may be more to read.
    fn greet(&mut self, cx: &Context<'_>, mut with: Authenticated) -> Option<Outcome> {
        let theirs = &with.theirs;
        if theirs.purpose == Purpose::Status {
            let status = lock(&cx.shared.status);
            with.sealer.seal(Kind::Status, &status, self.out.tail());
            cx.shared.counts.status_answers.add();
            self.stage = Stage::Draining;
            return Some(Outcome::Going);
        }
        if (cx.superseded)(theirs.from, theirs.incarnation) {
            self.turn_away(&mut with.sealer, RefusalKind::Superseded);
            return Some(refuse(Refusal::Superseded, Some(theirs.from)));
        }
        let hello = lock(&cx.shared.hello);
        with.sealer.seal(Kind::Hello, &hello, self.out.tail());
        self.reader.raise(FRAME_BYTES_MAX);
        self.stage = Stage::Greeting(Box::new(with));
        None
    }

    fn turn_away(&mut self, sealer: &mut Sealer, kind: RefusalKind) {
        sealer.seal(Kind::Refused, &[kind as u8], self.out.tail());
    }

    fn drain(&mut self) -> Outcome {
        if self.out.flush(&self.stream).is_err() {
            return Outcome::Closed;
        }
        if self.out.waiting_bytes() == 0 {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        match conn::discard(&self.stream) {
            Filled::Closed => Outcome::Closed,
            Filled::Some | Filled::Nothing => Outcome::Going,
        }
    }
}

/// The first frame of a peer that is authenticated.
fn on_hello(with: &mut Authenticated, frame: &[u8]) -> Outcome {
    let peer = Some(with.theirs.from);
    match with.opener.open(frame) {
        Ok((Kind::Hello, hello)) => Outcome::Up {
            hello: hello.to_vec(),
        },
        Ok((Kind::Refused, &[code])) if code == RefusalKind::Superseded as u8 => {
            Outcome::Refused(Refused {
                refusal: Refusal::Superseded,
                by_peer: true,
                peer,
            })
        }
        Ok(_) => refuse(Refusal::Malformed, peer),
        Err(refusal) => refuse(refusal, peer),
    }
}

fn refuse(refusal: Refusal, peer: Option<u8>) -> Outcome {
    Outcome::Refused(Refused {
        refusal,
        by_peer: false,
        peer,
    })
}
