//! Two sides prove to each other that they have the key, and that they belong together. No sockets here.
//!
//! ```text
//! dialer                                    acceptor
//!   hello: nonce, who            ---->
//!                                <----      challenge: nonce
//!   proof(dialer)                ---->                               the acceptor believes the dialer
//!                                <----      verdict, who, proof(acceptor, verdict, who)
//! ```
//!
//! Each proof is a keyed hash over the transcript so far, the hello and the challenge: both nonces, and the dialer's
//! cluster, ids, incarnation, version and layout; the acceptor's adds its own. It has a label for its direction, so one
//! sent back proves nothing; nonces are fresh, so one seen before proves nothing. The keys of the session, one for each
//! direction, are derived from the shared key and all of it.
//!
//! What does not fit (cluster, version, id, layout) is looked at only after the proof of the other side, and the
//! verdict says it under the acceptor's proof. Before, all that anybody hears is a nonce and that authentication
//! failed.

use super::crypto::{HASH_BYTES, Key, transcript};
use super::frame;
use super::refusal::{Refusal, RefusalKind};
use super::session::{Opener, Sealer};
use super::wire::{Frame, Introduction, NO_ID, Nonce, Purpose};
use crate::config::{Layout, PROTOCOL_VERSION, Psk};

const DIALER_PROOF: &str = "mu control 1: proof of the dialer";
const ACCEPTOR_PROOF: &str = "mu control 1: proof of the acceptor";
const DIALER_KEY: &str = "mu control 1: from dialer to acceptor";
const ACCEPTOR_KEY: &str = "mu control 1: from acceptor to dialer";

/// The code of a verdict that refuses nothing.
const WELCOME: u8 = 0;

/// Who this side is.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) version: u32,
    pub(super) id: u8,
    pub(super) incarnation: u64,
    pub(super) cluster: String,
    pub(super) layout: Layout,
    /// The ids of all members.
    pub(super) members: Vec<u8>,
    pub(super) key: Key,
}

impl Identity {
    /// A client that only asks for the status.
    pub(super) fn of_client(psk: &Psk, cluster: &str) -> Self {
        Self {
            version: PROTOCOL_VERSION,
            id: NO_ID,
            incarnation: 0,
            cluster: cluster.into(),
            layout: Layout {
                members: 0,
                log: 0,
                limits: 0,
            },
            members: Vec::new(),
            key: Key::new(psk.bytes()),
        }
    }

    fn introduce(&self, purpose: Purpose, to: u8) -> Introduction {
        Introduction {
            version: self.version,
            purpose,
            from: self.id,
            to,
            incarnation: self.incarnation,
            layout: self.layout,
            cluster: self.cluster.clone(),
        }
    }

    /// Whether this side wants what the other, authenticated side is. `expected` is whom the dialer dialled.
    fn check(&self, theirs: &Introduction, expected: Option<u8>) -> Result<(), Refusal> {
        if theirs.version != self.version {
            return Err(Refusal::Version {
                ours: self.version,
                theirs: theirs.version,
            });
        }
        if theirs.cluster != self.cluster {
            return Err(Refusal::Cluster {
                ours: self.cluster.clone(),
                theirs: theirs.cluster.clone(),
            });
        }
        if theirs.purpose == Purpose::Status {
            return Ok(());
        }
        let found = theirs.from;
        if found == self.id {
            return Err(Refusal::SameId { id: found });
        }
        if !self.members.contains(&found) {
            return Err(Refusal::UnknownId { id: found });
        }
        // Seen from the acceptor, the other side has dialled the wrong one; it is the one that was found.
        let (expected, found) = match expected {
            Some(expected) => (expected, found),
            None => (theirs.to, self.id),
        };
        if expected != found {
            return Err(Refusal::WrongReplica { expected, found });
        }
        if theirs.layout != self.layout {
            return Err(Refusal::Layout {
                difference: self.layout.difference(&theirs.layout),
            });
        }
        Ok(())
    }
}

/// A handshake that failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refused {
    pub(super) refusal: Refusal,
    /// It was the other side that refused.
    pub(super) by_peer: bool,
    /// Who it was, if that is proved.
    pub(super) peer: Option<u8>,
}

impl Refused {
    fn here(refusal: Refusal) -> Self {
        Self {
            refusal,
            by_peer: false,
            peer: None,
        }
    }
}

/// A handshake that succeeded.
#[derive(Debug)]
pub(super) struct Authenticated {
    pub(super) theirs: Introduction,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
}

impl Authenticated {
    fn new(me: &Identity, theirs: Introduction, session: &[u8], is_dialer: bool) -> Self {
        let dialer = me.key.derive(DIALER_KEY, &[session]);
        let acceptor = me.key.derive(ACCEPTOR_KEY, &[session]);
        let (out, into) = match is_dialer {
            true => (dialer, acceptor),
            false => (acceptor, dialer),
        };
        Self {
            theirs,
            sealer: Sealer::new(out),
            opener: Opener::new(into),
        }
    }
}

/// The side that connected.
pub(super) struct Dialer {
    hello: Vec<u8>,
    purpose: Purpose,
    to: u8,
    /// The transcript, once the challenge is there.
    challenged: Option<Transcript>,
}

type Transcript = [u8; HASH_BYTES];

impl Dialer {
    pub(super) fn start(
        me: &Identity,
        purpose: Purpose,
        to: u8,
        nonce: Nonce,
        out: &mut Vec<u8>,
    ) -> Self {
        let who = me.introduce(purpose, to);
        let hello = Frame::Hello { nonce, who }.encode();
        frame::push(out, &[&hello]);
        Self {
            hello,
            purpose,
            to,
            challenged: None,
        }
    }

    /// Takes the other side's next frame; what is to be sent is put into `out`.
    pub(super) fn on_frame(
        &mut self,
        me: &Identity,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Authenticated>, Refused> {
        match (Frame::decode(bytes), &self.challenged) {
            (Some(Frame::Challenge { .. }), None) => {
                let transcript = transcript([&self.hello, bytes]);
                let proof = me.key.proof(DIALER_PROOF, &[&transcript]);
                frame::push(out, &[&Frame::Proof(proof).encode()]);
                self.challenged = Some(transcript);
                Ok(None)
            }
            (Some(Frame::Verdict { code, proof, who }), Some(transcript)) => {
                let said: [&[u8]; 3] = [transcript, &[code], &who.encode()];
                if !me.key.proves(ACCEPTOR_PROOF, &said, &proof) {
                    return Err(Refused::here(Refusal::Authentication));
                }
                self.judge(me, code, &who)?;
                let session = session(transcript, &who);
                Ok(Some(Authenticated::new(me, who, &session, true)))
            }
            (Some(Frame::Failed), Some(_)) => Err(Refused {
                by_peer: true,
                ..Refused::here(Refusal::Authentication)
            }),
            _ => Err(Refused::here(Refusal::Malformed)),
        }
    }

    /// Looks at a verdict that is proved.
    fn judge(&self, me: &Identity, code: u8, theirs: &Introduction) -> Result<(), Refused> {
        let refused = |refusal, by_peer| Refused {
            refusal,
            by_peer,
            peer: Some(theirs.from),
        };
        if code != WELCOME {
            let kind = RefusalKind::from_code(code);
            let kind = kind.ok_or_else(|| refused(Refusal::Malformed, false))?;
            return Err(refused(as_seen_here(kind, me, theirs, self.to), true));
        }
        if theirs.purpose != self.purpose || theirs.to != me.id {
            return Err(refused(Refusal::Malformed, false));
        }
        me.check(theirs, Some(self.to))
            .map_err(|refusal| refused(refusal, false))
    }
}

/// What the keys of a session are derived from.
fn session(transcript: &Transcript, acceptor: &Introduction) -> Transcript {
    self::transcript([transcript, &acceptor.encode()])
}

/// The particulars of a refusal of which the other side said the kind.
fn as_seen_here(kind: RefusalKind, me: &Identity, theirs: &Introduction, to: u8) -> Refusal {
    match kind {
        RefusalKind::Version => Refusal::Version {
            ours: me.version,
            theirs: theirs.version,
        },
        RefusalKind::Cluster => Refusal::Cluster {
            ours: me.cluster.clone(),
            theirs: theirs.cluster.clone(),
        },
        RefusalKind::SameId => Refusal::SameId { id: me.id },
        RefusalKind::UnknownId => Refusal::UnknownId { id: me.id },
        RefusalKind::WrongReplica => Refusal::WrongReplica {
            expected: to,
            found: theirs.from,
        },
        RefusalKind::Layout => Refusal::Layout {
            difference: me.layout.difference(&theirs.layout),
        },
        RefusalKind::Superseded => Refusal::Superseded,
        RefusalKind::FrameTooBig => Refusal::FrameTooBig,
        RefusalKind::BadMac => Refusal::BadMac,
        RefusalKind::Replayed => Refusal::Replayed,
        RefusalKind::TimeOut => Refusal::TimeOut,
        RefusalKind::Crowded => Refusal::Crowded,
        RefusalKind::Authentication => Refusal::Authentication,
        RefusalKind::Malformed => Refusal::Malformed,
    }
}

/// The side that was connected to.
pub(super) struct Acceptor {
    nonce: Nonce,
    /// The dialer's introduction and the transcript, once they are there.
    greeted: Option<(Introduction, Transcript)>,
}

impl Acceptor {
    pub(super) fn new(nonce: Nonce) -> Self {
        Self {
            nonce,
            greeted: None,
        }
    }

    /// Takes the other side's next frame; what is to be sent is put into `out`, also on an error. `superseded` tells
    /// whether an incarnation of a peer is a former one.
    pub(super) fn on_frame(
        &mut self,
        me: &Identity,
        superseded: &dyn Fn(u8, u64) -> bool,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Authenticated>, Refused> {
        match (Frame::decode(bytes), &self.greeted) {
            (Some(Frame::Hello { who, .. }), None) => {
                let challenge = Frame::Challenge { nonce: self.nonce }.encode();
                frame::push(out, &[&challenge]);
                self.greeted = Some((who, transcript([bytes, &challenge])));
                Ok(None)
            }
            (Some(Frame::Proof(proof)), Some((theirs, transcript))) => {
                if !me.key.proves(DIALER_PROOF, &[transcript], &proof) {
                    frame::push(out, &[&Frame::Failed.encode()]);
                    return Err(Refused::here(Refusal::Authentication));
                }
                let judged = Self::judge(me, superseded, theirs);
                let code = judged
                    .as_ref()
                    .map_or_else(|r| r.kind() as u8, |()| WELCOME);
                let who = me.introduce(theirs.purpose, theirs.from);
                let session = session(transcript, &who);
                let said: [&[u8]; 3] = [transcript, &[code], &who.encode()];
                let proof = me.key.proof(ACCEPTOR_PROOF, &said);
                frame::push(out, &[&Frame::Verdict { code, proof, who }.encode()]);
                judged.map_err(|refusal| Refused {
                    peer: Some(theirs.from),
                    ..Refused::here(refusal)
                })?;
                Ok(Some(Authenticated::new(
                    me,
                    theirs.clone(),
                    &session,
                    false,
                )))
            }
            _ => Err(Refused::here(Refusal::Malformed)),
        }
    }

    fn judge(
        me: &Identity,
        superseded: &dyn Fn(u8, u64) -> bool,
        theirs: &Introduction,
    ) -> Result<(), Refusal> {
        me.check(theirs, None)?;
        if theirs.purpose == Purpose::Status {
            return Ok(());
        }
        // Only lower ids dial: two connections at once would have to be told apart otherwise.
        if theirs.from > me.id {
            return Err(Refusal::Malformed);
        }
        match superseded(theirs.from, theirs.incarnation) {
            true => Err(Refusal::Superseded),
            false => Ok(()),
        }
    }
}
