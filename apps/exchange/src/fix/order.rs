//! What a client's message asks for.

use super::message::{Message, number};
use crate::order::{Force, Kind, Name, Order, Side, Type};

/// Digits after the point of a price.
const DECIMALS: usize = 4;

/// A field that is not there or makes no sense: a session-level reject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The field.
    pub tag: u32,
    /// As SessionRejectReason(373) counts.
    pub reason: Wrong,
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum Wrong {
    /// It has to be there.
    #[error("required tag missing")]
    Missing = 1,
    /// None of those that it may be.
    #[error("value is incorrect (out of range) for this tag")]
    Value = 5,
    /// It cannot be read.
    #[error("incorrect data format for value")]
    Format = 6,
}

/// Turns NewOrderSingle (D), OrderCancelRequest (F) and OrderCancelReplaceRequest (G) into an order of a session with
/// the message's number. `symbol` knows symbols' numbers; one that it does not know becomes one that no exchange has,
/// so that the reject is in the order's own words. Another type of message is `None`.
pub fn order(
    message: &Message<'_>,
    session: u64,
    number: u64,
    symbol: impl Fn(&str) -> Option<u16>,
) -> Option<Result<Order, Malformed>> {
    let kind = match message.kind() {
        b"D" => Kind::New,
        b"F" => Kind::Cancel,
        b"G" => Kind::Replace,
        _ => return None,
    };
    Some(read(message, kind, session, number, symbol))
}

fn read(
    message: &Message<'_>,
    kind: Kind,
    session: u64,
    number: u64,
    symbol: impl Fn(&str) -> Option<u16>,
) -> Result<Order, Malformed> {
    let side = match required(message, 54)? {
        b"1" => Side::Buy,
        b"2" => Side::Sell,
        _ => return Err(value(54)),
    };
    let symbol = std::str::from_utf8(required(message, 55)?)
        .ok()
        .and_then(symbol);
    let mut order = Order {
        kind,
        side,
        order_type: Type::Limit,
        force: Force::Day,
        symbol: symbol.unwrap_or(u16::MAX),
        session,
        price: 0,
        quantity: 0,
        name: name(message, 11)?,
        original: Name::NONE,
        number,
    };
    if kind != Kind::New {
        order.original = name(message, 41)?;
    }
    if kind == Kind::Cancel {
        return Ok(order);
    }
    order.order_type = match required(message, 40)? {
        b"1" if kind == Kind::New => Type::Market,
        b"2" => Type::Limit,
        _ => return Err(value(40)),
    };
    order.force = match message.get(59) {
        None | Some(b"0" | b"1") => Force::Day,
        Some(b"3") => Force::ImmediateOrCancel,
        Some(b"4") => Force::FillOrKill,
        Some(_) => return Err(value(59)),
    };
    order.quantity = quantity(required(message, 38)?)?;
    if order.order_type == Type::Limit {
        order.price = price(required(message, 44)?)?;
    }
    Ok(order)
}

fn value(tag: u32) -> Malformed {
    Malformed {
        tag,
        reason: Wrong::Value,
    }
}

fn format(tag: u32) -> Malformed {
    Malformed {
        tag,
        reason: Wrong::Format,
    }
}

/// A field that has to be there.
pub(super) fn required<'a>(message: &Message<'a>, tag: u32) -> Result<&'a [u8], Malformed> {
    message.get(tag).ok_or(Malformed {
        tag,
        reason: Wrong::Missing,
    })
}

fn name(message: &Message<'_>, tag: u32) -> Result<Name, Malformed> {
    let text = required(message, tag)?;
    // As it is to be said again.
    let printable = text.iter().all(|byte| matches!(byte, b' '..=b'~'));
    Name::text(text).filter(|_| printable).ok_or(value(tag))
}

/// A whole number of shares; zeros may follow a point.
fn quantity(text: &[u8]) -> Result<u64, Malformed> {
    let (whole, part) = point(text);
    match number(whole) {
        Some(whole) if part.iter().all(|digit| *digit == b'0') => Ok(whole),
        _ => Err(format(38)),
    }
}

/// A price in 1/10000.
fn price(text: &[u8]) -> Result<u64, Malformed> {
    let (whole, part) = point(text);
    let (part, beyond) = part.split_at(part.len().min(DECIMALS));
    if !beyond.iter().all(|digit| *digit == b'0') {
        return Err(value(44));
    }
    let mut digits = [b'0'; DECIMALS];
    digits[..part.len()].copy_from_slice(part);
    let whole = if whole.is_empty() { b"0" } else { whole };
    let read = || {
        number(whole)?
            .checked_mul(10_000)?
            .checked_add(number(&digits)?)
    };
    read().ok_or(format(44))
}

fn point(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|byte| *byte == b'.') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, b""),
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{Body, Frames, Header, write};
    use super::*;

    fn parse(kind: &str, fields: &[(u32, &str)]) -> Option<Result<Order, Malformed>> {
        let header = Header {
            kind,
            from: "A",
            to: "MU",
            number: 2,
            time_ns: 0,
            first_sent_ns: None,
        };
        let body = fields
            .iter()
            .fold(Body::default(), |body, (tag, value)| body.with(*tag, value));
        let mut bytes = Vec::new();
        write(&header, &body, &mut bytes);
        let mut frames = Frames::default();
        frames.push(&bytes);
        let message = frames.next().expect("a frame").expect("whole");
        order(&message, 9, 2, |name| (name == "ECHO").then_some(4))
    }

    const NEW: [(u32, &str); 6] = [
        (11, "c1"),
        (55, "ECHO"),
        (54, "1"),
        (38, "100"),
        (40, "2"),
        (44, "12.34"),
    ];

    fn but(tag: u32, value: Option<&'static str>) -> Result<Order, Malformed> {
        let mut fields: Vec<(u32, &str)> = NEW.into_iter().filter(|(t, _)| *t != tag).collect();
        fields.extend(value.map(|value| (tag, value)));
        parse("D", &fields).expect("an order")
    }

    #[test]
    fn a_new_order_is_read() {
        let order = parse("D", &NEW).expect("an order").expect("sound");
        assert_eq!(
            (order.symbol, order.price, order.quantity),
            (4, 123_400, 100)
        );
        assert_eq!((order.session, order.number), (9, 2));
        assert_eq!(
            but(59, Some("3")).expect("sound").force,
            Force::ImmediateOrCancel
        );
        assert_eq!(but(55, Some("NONE")).expect("sound").symbol, u16::MAX);
        for (text, price) in [
            ("1", 10_000),
            (".0001", 1),
            ("1.23450", 12_345),
            ("199999.9999", 1_999_999_999),
        ] {
            assert_eq!(but(44, Some(text)).expect("sound").price, price, "{text}");
        }
        assert_eq!(but(38, Some("5.00")).expect("sound").quantity, 5);
        assert_eq!(parse("8", &NEW), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (tag, text, reason) in [
            (11, None, Wrong::Missing),
            (44, None, Wrong::Missing),
            (54, Some("3"), Wrong::Value),
            (40, Some("P"), Wrong::Value),
            (59, Some("6"), Wrong::Value),
            (11, Some("more than twenty bytes"), Wrong::Value),
            (11, Some("caf\u{e9}"), Wrong::Value),
            (44, Some("1.23456"), Wrong::Value),
            (44, Some("-1"), Wrong::Format),
            (44, Some("1e5"), Wrong::Format),
            (44, Some("1.2.3"), Wrong::Format),
            (38, Some("1.5"), Wrong::Format),
            (38, Some("9999999999999999999"), Wrong::Format),
        ] {
            assert_eq!(
                but(tag, text),
                Err(Malformed { tag, reason }),
                "{tag}={text:?}"
            );
        }
        let cancel = parse("F", &NEW).expect("an order");
        assert_eq!(
            cancel,
            Err(Malformed {
                tag: 41,
                reason: Wrong::Missing
            })
        );
    }
}
