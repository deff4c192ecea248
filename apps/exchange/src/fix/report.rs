//! What a client is told.

use super::message::Body;
use super::time;
use crate::exchange::{Reason, Report, What};
use crate::order::{Force, Name, Side, Type};

/// The type of a report's message, and the message.
#[must_use]
pub fn body(report: &Report, symbol: &str) -> (&'static str, Body) {
    let (kind, body) = match report.what {
        What::CancelRejected | What::ReplaceRejected => ("9", cancel_reject(report)),
        _ => ("8", execution(report, symbol)),
    };
    // PossResend: known from another number, if that was heard.
    (
        kind,
        if report.again {
            body.with(97, "Y")
        } else {
            body
        },
    )
}

fn execution(report: &Report, symbol: &str) -> Body {
    let (exec_type, status) = match report.what {
        What::New => ("0", "0"),
        What::Trade if report.leaves > 0 => ("F", "1"),
        What::Trade => ("F", "2"),
        What::Replaced if report.filled > 0 => ("5", "1"),
        What::Replaced => ("5", "0"),
        What::Cancelled => ("4", "4"),
        _ => ("8", "8"),
    };
    let mut body = Body::default()
        .with(37, order(report))
        .with(
            17,
            format_args!("{}.{}.{}", report.index, report.place, report.nth),
        )
        .with(150, exec_type)
        .with(39, status)
        .with(11, Text(report.name));
    if report.original != Name::NONE {
        body = body.with(41, Text(report.original));
    }
    body = body
        .with(55, if symbol.is_empty() { "N/A" } else { symbol })
        .with(54, if report.side == Side::Buy { 1 } else { 2 })
        .with(38, report.quantity)
        .with(
            40,
            if report.order_type == Type::Market {
                1
            } else {
                2
            },
        );
    if report.order_type == Type::Limit {
        body = body.with(44, Price(report.price));
    }
    body = body.with(
        59,
        match report.force {
            Force::Day => 0,
            Force::ImmediateOrCancel => 3,
            Force::FillOrKill => 4,
        },
    );
    if report.what == What::Trade {
        body = body
            .with(32, report.last_quantity)
            .with(31, Price(report.last_price));
    }
    let average = report.notional.checked_div(report.filled).unwrap_or(0);
    body = body
        .with(151, report.leaves)
        .with(14, report.filled)
        .with(6, Price(average))
        .with(60, time::text(report.time_ns));
    if report.reason != Reason::None {
        body = body
            .with(103, reject_reason(report.reason))
            .with(58, report.reason);
    }
    body
}

fn cancel_reject(report: &Report) -> Body {
    let replace = report.what == What::ReplaceRejected;
    let known = report.reason != Reason::Unknown;
    let status = match (known, report.filled) {
        (false, _) => "8",
        (true, 0) => "0",
        (true, _) => "1",
    };
    Body::default()
        .with(37, order(report))
        .with(11, Text(report.name))
        .with(41, Text(report.original))
        .with(39, status)
        .with(434, if replace { 2 } else { 1 })
        .with(
            102,
            match report.reason {
                Reason::TooLate => 0,
                Reason::Unknown => 1,
                Reason::Duplicate => 6,
                _ => 99,
            },
        )
        .with(60, time::text(report.time_ns))
        .with(58, report.reason)
}

/// As OrdRejReason(103) counts.
fn reject_reason(reason: Reason) -> u8 {
    match reason {
        Reason::Symbol => 1,
        Reason::Full => 3,
        Reason::Unknown => 5,
        Reason::Duplicate => 6,
        Reason::Quantity => 13,
        _ => 99,
    }
}

fn order(report: &Report) -> String {
    match report.order {
        0 => "NONE".into(),
        id => id.to_string(),
    }
}

struct Price(u64);

impl std::fmt::Display for Price {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:04}", self.0 / 10_000, self.0 % 10_000)
    }
}

struct Text(Name);

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.0.bytes()))
    }
}
