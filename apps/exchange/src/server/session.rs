//! A FIX session at one connection: what a client's message leads to.
//!
//! Every message that is had goes through the log, with its number, in the order of the numbers. So this side only has
//! to know which number comes next, and leaves the rest to the replicated session.

use super::conn::{After, Close, Conn, Fix, Logon, State};
use crate::exchange::{COMP_BYTES_MAX, SessionCommand, session_number};
use crate::fix::message::{Body, FrameError, Message};
use crate::fix::order::{Malformed, order};
use crate::order::ORDER_BYTES;

const NS_PER_S: u64 = 1_000_000_000;
/// The longest interval of heartbeats, in seconds.
const HEARTBEAT_S_MAX: u64 = 3600;

/// So often a message may come garbled, one after the other, before the connection ends.
const GARBLED_MAX: u32 = 8;

/// What a message leads to.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing; look at the next one.
    Done,
    /// There is none yet.
    Wait,
    /// A command for the log.
    Submit(Vec<u8>, After),
    /// The connection ends at once.
    End(String),
}

/// Whom messages are addressed to, and which symbols there are.
pub(super) struct Desk<'a> {
    pub(super) comp: &'a str,
    pub(super) symbol: &'a dyn Fn(&str) -> Option<u16>,
}

/// Takes the next message.
pub(super) fn step(conn: &mut Conn, desk: &Desk<'_>) -> Step {
    // Lent to the message while the connection changes.
    let mut frames = std::mem::take(&mut conn.frames);
    let step = match frames.next() {
        Ok(None) => Step::Wait,
        Ok(Some(message)) => match &mut conn.state {
            State::On(fix) => fix.message(&message, desk),
            _ => logon(&message, desk),
        },
        Err(error @ FrameError::CheckSum { .. }) => {
            // Its number was not had, so the client is asked for it again when its next message comes.
            tracing::warn!(from = conn.peer, %error, "a garbled message is left out");
            match &mut conn.state {
                State::On(fix) => fix.garbled(&error),
                _ => Step::End(error.to_string()),
            }
        }
        Err(error) => Step::End(error.to_string()),
    };
    conn.frames = frames;
    step
}

/// The first message of a connection has to be a logon.
fn logon(message: &Message<'_>, desk: &Desk<'_>) -> Step {
    let end = |why: &str| Step::End(format!("no logon: {why}"));
    if message.kind() != b"A" {
        return end("the first message is of another type");
    }
    let comp = message
        .get(49)
        .and_then(|comp| std::str::from_utf8(comp).ok());
    let Some(comp) = comp.filter(|comp| comp.len() <= COMP_BYTES_MAX) else {
        return end("SenderCompID(49) is missing or too long");
    };
    if message.get(56) != Some(desk.comp.as_bytes()) {
        return Step::End(format!("no logon: TargetCompID(56) is not {}", desk.comp));
    }
    let Some(number) = message.number(34).filter(|number| *number > 0) else {
        return end("MsgSeqNum(34) is missing");
    };
    let heartbeat_s = message.number(108).filter(|s| *s <= HEARTBEAT_S_MAX);
    let Some(heartbeat_s) = heartbeat_s else {
        return end("HeartBtInt(108) is missing or too long");
    };
    let reset = message.flag(141);
    if reset && number != 1 {
        return end("ResetSeqNumFlag(141) with a MsgSeqNum(34) that is not 1");
    }
    let session = session_number(comp);
    let command = SessionCommand::Open { comp, reset }.encode(session, number);
    let logon = Logon {
        session,
        comp: comp.into(),
        number,
        heartbeat_s,
        reset,
    };
    Step::Submit(command, After::Logon(Box::new(logon)))
}

impl Fix {
    /// After the logon went through the log: its answer has the number `out`.
    pub(super) fn new(logon: &Logon, in_next: u64, out: u64) -> Self {
        let mut answer = Body::default().with(98, 0).with(108, logon.heartbeat_s);
        if logon.reset {
            answer = answer.with(141, "Y");
        }
        Self {
            session: logon.session,
            comp: logon.comp.clone(),
            in_next,
            out_next: out,
            said: [(out, ("A", answer))].into(),
            missed: logon.number.saturating_sub(in_next),
            taking: 0,
            asked: None,
            garbled: (0, 0),
            resend: None,
            probed: false,
            heartbeat_ns: logon.heartbeat_s * NS_PER_S,
            close_at: None,
        }
    }

    /// A command that has the client's message `number` (0: none) and takes a number for what is said.
    fn say(&mut self, number: u64, kind: &'static str, body: Body, close: Close) -> Step {
        self.taking += 1;
        let command = SessionCommand::Take { count: 1 }.encode(self.session, number);
        Step::Submit(command, After::Say(kind, body, close))
    }

    fn note(&self, number: u64, after: After) -> Step {
        let command = SessionCommand::Take { count: 0 }.encode(self.session, number);
        Step::Submit(command, after)
    }

    /// Has the client's request for what was said from `from` on. What its count may have passed over before that is
    /// said again, once.
    fn repeat(&mut self, number: u64, from: u64, after: After) -> Step {
        let missed = std::mem::take(&mut self.missed);
        let command = SessionCommand::Repeat {
            from: from.saturating_sub(missed),
            end: from,
        };
        Step::Submit(command.encode(self.session, number), after)
    }

    /// A sign of life.
    pub(super) fn heartbeat(&mut self) -> Step {
        self.say(0, "0", Body::default(), Close::No)
    }

    /// Asks for one.
    pub(super) fn probe(&mut self) -> Step {
        self.probed = true;
        self.say(0, "1", Body::default().with(112, "MU"), Close::No)
    }

    /// Asks the client for what is missing.
    pub(super) fn ask_again(&mut self) -> Step {
        self.asked = Some(self.in_next);
        let body = Body::default().with(7, self.in_next).with(16, 0);
        self.say(0, "2", body, Close::No)
    }

    fn garbled(&mut self, error: &FrameError) -> Step {
        // It may be the one that was asked for: then it is asked for once more.
        self.asked = None;
        let times = match self.garbled {
            (number, times) if number == self.in_next => times + 1,
            _ => 1,
        };
        self.garbled = (self.in_next, times);
        if times > GARBLED_MAX {
            return Step::End(format!(
                "message {} came garbled {times} times: {error}",
                self.in_next
            ));
        }
        let body = Body::default().with(45, self.in_next).with(58, error);
        self.say(0, "3", body, Close::No)
    }

    fn message(&mut self, message: &Message<'_>, desk: &Desk<'_>) -> Step {
        self.probed = false;
        let kind = message.kind();
        if message.get(49) != Some(self.comp.as_bytes())
            || message.get(56) != Some(desk.comp.as_bytes())
        {
            return Step::End("SenderCompID(49) or TargetCompID(56) is not the session's".into());
        }
        let Some(number) = message.number(34) else {
            return Step::End("MsgSeqNum(34) is missing".into());
        };
        // SequenceReset in its reset mode is obeyed whatever its number is.
        let resets = kind == b"4" && !message.flag(123);
        if number > self.in_next && !resets {
            // What both miss would be missing for ever if each waited for the other: a request is answered at once, and
            // had when its turn comes.
            if let (b"2", Some(from), Some(to)) = (kind, message.number(7), message.number(16)) {
                self.resend = Some((from.max(1), to));
                if self.missed > 0 {
                    return self.repeat(0, from, After::Nothing);
                }
            }
            // Asked once for each place where something is missing.
            return match self.asked == Some(self.in_next) {
                true => Step::Done,
                false => self.ask_again(),
            };
        }
        if number < self.in_next && !resets {
            if message.flag(43) {
                return Step::Done;
            }
            let text = format!(
                "MsgSeqNum too low, expecting {} but received {number}",
                self.in_next
            );
            return self.say(0, "5", Body::default().with(58, text), Close::Yes);
        }
        if resets {
            return self.reset(message, number);
        }
        self.in_next += 1;
        self.next_message(message, kind, number, desk)
    }

    /// The message that comes next.
    fn next_message(
        &mut self,
        message: &Message<'_>,
        kind: &[u8],
        number: u64,
        desk: &Desk<'_>,
    ) -> Step {
        if !message.is_sound() {
            let text = "a field has no tag or no value";
            return self.reject(number, kind, None, 4, text);
        }
        match kind {
            b"0" => self.note(number, After::Nothing),
            b"1" => match message.get(112) {
                Some(id) => {
                    let body = Body::default().with(112, String::from_utf8_lossy(id));
                    self.say(number, "0", body, Close::No)
                }
                None => self.reject(number, kind, Some(112), 1, "required tag missing"),
            },
            b"2" => match (message.number(7), message.number(16)) {
                (Some(from), Some(to)) if from > 0 => {
                    self.repeat(number, from, After::Resend(from, to))
                }
                _ => self.reject(number, kind, Some(7), 5, "a range of numbers is needed"),
            },
            b"3" => {
                let text =
                    String::from_utf8_lossy(message.get(58).unwrap_or_default()).into_owned();
                tracing::warn!(session = self.comp, text, "the client rejects a message");
                self.note(number, After::Nothing)
            }
            b"4" => {
                self.in_next = number;
                self.reset(message, number)
            }
            b"5" => self.say(number, "5", Body::default(), Close::Yes),
            b"A" => self.reject(number, kind, None, 99, "this session is logged on already"),
            _ => match order(message, self.session, number, desk.symbol) {
                Some(Ok(order)) => {
                    let bytes: [u8; ORDER_BYTES] = order.encode();
                    Step::Submit(bytes.into(), After::Order)
                }
                Some(Err(Malformed { tag, reason })) => {
                    self.reject(number, kind, Some(tag), reason as u8, &reason.to_string())
                }
                None => self.unsupported(number, kind),
            },
        }
    }

    fn reset(&mut self, message: &Message<'_>, number: u64) -> Step {
        match message.number(36) {
            Some(next) if next > self.in_next || (next == self.in_next && !message.flag(123)) => {
                self.in_next = next;
                self.asked = None;
                let command = SessionCommand::Next { next }.encode(self.session, number);
                Step::Submit(command, After::Nothing)
            }
            _ => {
                let has = u64::from(number == self.in_next);
                self.in_next += has;
                let text = "NewSeqNo does not lead on";
                self.reject(number * has, b"4", Some(36), 5, text)
            }
        }
    }

    /// A session-level reject, and a line in the log.
    fn reject(
        &mut self,
        number: u64,
        kind: &[u8],
        tag: Option<u32>,
        reason: u8,
        text: &str,
    ) -> Step {
        tracing::warn!(
            session = self.comp,
            number,
            tag,
            text,
            "a malformed message is rejected"
        );
        let mut body = Body::default().with(45, number);
        if let Some(tag) = tag {
            body = body.with(371, tag);
        }
        let body = body
            .with(372, String::from_utf8_lossy(kind))
            .with(373, reason)
            .with(58, text);
        self.say(number, "3", body, Close::No)
    }

    fn unsupported(&mut self, number: u64, kind: &[u8]) -> Step {
        let kind = String::from_utf8_lossy(kind);
        tracing::warn!(session = self.comp, number, %kind, "a message of a type that is not served");
        let body = Body::default()
            .with(45, number)
            .with(372, kind)
            .with(380, 3)
            .with(58, "this type of message is not served");
        self.say(number, "j", body, Close::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fix::message::{Frames, Header, write};

    /// What a heartbeat with a number leads to.
    fn heartbeat(fix: &mut Fix, number: u64) -> Step {
        let header = Header {
            kind: "0",
            from: "A",
            to: "MU",
            number,
            time_ns: 0,
            first_sent_ns: None,
        };
        let mut out = Vec::new();
        write(&header, &Body::default(), &mut out);
        let mut frames = Frames::default();
        frames.push(&out);
        let message = frames.next().expect("sound").expect("whole");
        let desk = Desk {
            comp: "MU",
            symbol: &|_| None,
        };
        fix.message(&message, &desk)
    }

    #[test]
    fn a_message_garbled_again_is_asked_for_again_but_not_for_ever() {
        let logon = Logon {
            session: 1,
            comp: "A".into(),
            number: 1,
            heartbeat_s: 30,
            reset: false,
        };
        let mut fix = Fix::new(&logon, 2, 1);
        let mut frames = Frames::default();
        frames.push(b"8=FIX.4.4\x019=5\x0135=D\x0110=000\x01");
        let error = frames.next().expect_err("a wrong checksum");
        for time in 1..=GARBLED_MAX {
            let step = fix.garbled(&error);
            assert!(matches!(step, Step::Submit(_, After::Say("3", ..))));
            let step = heartbeat(&mut fix, 3);
            let asked = matches!(step, Step::Submit(_, After::Say("2", ..)));
            assert!(asked, "time {time}: {step:?}");
            assert!(matches!(heartbeat(&mut fix, 3), Step::Done), "asked once");
        }
        assert!(matches!(fix.garbled(&error), Step::End(_)));
        heartbeat(&mut fix, 2);
        let step = fix.garbled(&error);
        assert!(matches!(step, Step::Submit(..)), "another number: {step:?}");
    }
}
