//! What is sent on a FIX connection: what the replicated session says, number by number.

use mu::host::monotonic_ns;

use super::conn::{Conn, Fix, State};
use crate::engine::Engine;
use crate::exchange::{Exchange, Session};
use crate::fix::message::{Body, Header, write};
use crate::fix::report;

/// Nanoseconds since the Unix epoch, now.
pub(super) fn wall_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// Writes messages to a connection.
struct Pen<'a> {
    out: &'a mut Vec<u8>,
    from: &'a str,
    to: &'a str,
    now_ns: u64,
}

impl Pen<'_> {
    fn write(&mut self, number: u64, kind: &str, body: &Body, first_sent_ns: Option<u64>) {
        let header = Header {
            kind,
            from: self.from,
            to: self.to,
            number,
            time_ns: self.now_ns,
            first_sent_ns,
        };
        write(&header, body, self.out);
    }

    /// Numbers `from` to `to - 1` have nothing to be said again.
    fn gap(&mut self, from: u64, to: u64, again: bool) {
        let body = Body::default().with(123, "Y").with(36, to);
        self.write(from, "4", &body, again.then_some(self.now_ns));
    }
}

/// Prepares whatever can be sent now, in the order of the numbers.
pub(super) fn speak<E: Engine>(conn: &mut Conn, exchange: &Exchange<E>, desk: &str) {
    let before = conn.out.len();
    let limit = before + conn.room();
    let State::On(fix) = &mut conn.state else {
        return;
    };
    let Some(session) = exchange.session(fix.session) else {
        return;
    };
    let to = fix.comp.clone();
    let mut pen = Pen {
        out: &mut conn.out,
        from: desk,
        to: &to,
        now_ns: wall_ns(),
    };
    if let Some((from, to)) = fix.resend.take() {
        again(fix, session, exchange, &mut pen, from, to);
    }
    while fix.out_next < session.out_next() && pen.out.len() < limit {
        let number = fix.out_next;
        if let Some((kind, body)) = fix.said.remove(&number) {
            pen.write(number, kind, &body, None);
        } else if let Some(report) = session.report(number) {
            let (kind, body) = report::body(report, exchange.symbol_name(report.symbol));
            pen.write(number, kind, &body, None);
        } else if fix.taking > 0 {
            // It is being taken, by this connection as far as one can tell.
            break;
        } else {
            fix.out_next = next_known(fix, session, number);
            pen.gap(number, fix.out_next, false);
            continue;
        }
        fix.out_next += 1;
    }
    let all = fix.close_at.is_some_and(|at| at < fix.out_next);
    conn.closing |= all;
    if conn.out.len() > before {
        conn.spoke_ns = monotonic_ns();
    }
}

/// The first number after one without anything that has something.
fn next_known(fix: &Fix, session: &Session, number: u64) -> u64 {
    let said = fix.said.range(number..).next().map(|(n, _)| *n);
    let report = session.reports(number, u64::MAX).next().map(|(n, _)| *n);
    let known = said.into_iter().chain(report).min();
    known.unwrap_or(session.out_next())
}

/// Says numbers again: the reports that are kept; the rest is left out.
fn again<E: Engine>(
    fix: &Fix,
    session: &Session,
    exchange: &Exchange<E>,
    pen: &mut Pen<'_>,
    from: u64,
    to: u64,
) {
    // What was not said yet follows anyway.
    let end = if to == 0 {
        fix.out_next
    } else {
        fix.out_next.min(to.saturating_add(1))
    };
    let mut next = from;
    for (number, report) in session.reports(from, end) {
        if next < *number {
            pen.gap(next, *number, true);
        }
        let (kind, body) = report::body(report, exchange.symbol_name(report.symbol));
        pen.write(*number, kind, &body, Some(report.time_ns));
        next = number + 1;
    }
    if next < end {
        pen.gap(next, end, true);
    }
}

/// A logout that is the only thing said, by a replica that cannot take the session's numbers.
pub(super) fn farewell<E: Engine>(
    conn: &mut Conn,
    exchange: &Exchange<E>,
    desk: &str,
    to: (u64, &str),
    text: &str,
) {
    let number = exchange.session(to.0).map_or(1, Session::out_next);
    let mut pen = Pen {
        out: &mut conn.out,
        from: desk,
        to: to.1,
        now_ns: wall_ns(),
    };
    pen.write(number, "5", &Body::default().with(58, text), None);
    conn.closing = true;
}
