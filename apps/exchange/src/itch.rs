//! Market data messages of NASDAQ's ITCH 5.0, each as a block: two bytes of length, big-endian, then the message. That
//! is how both MoldUDP64 and files carry them.
//!
//! Every order of the book is an Add Order; what happens to it is an Order Executed, Order Cancel (it became smaller)
//! or Order Delete. An order that matches at once is never added, only what is left of it. A replace that loses its
//! place is a delete and an add with the same reference.

use crate::order::Side;

const NS_PER_DAY: u64 = 86_400_000_000_000;
/// Bytes of a symbol, padded with spaces.
pub const STOCK_BYTES: usize = 8;
/// Bytes of a block's length.
pub const LENGTH_BYTES: usize = 2;

/// A symbol as ITCH spells it.
pub type Stock = [u8; STOCK_BYTES];

/// A name padded with spaces: 1 to 8 capital letters, digits or dots.
#[must_use]
pub fn stock(name: &str) -> Option<Stock> {
    let sound = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'.';
    if name.is_empty() || name.len() > STOCK_BYTES || !name.bytes().all(sound) {
        return None;
    }
    let mut stock = [b' '; STOCK_BYTES];
    stock[..name.len()].copy_from_slice(name.as_bytes());
    Some(stock)
}

/// The part that begins every message.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// Number of the symbol, from 0; `None` if it is about none.
    pub symbol: Option<u16>,
    /// Nanoseconds since the Unix epoch.
    pub time_ns: u64,
}

/// Messages begin.
pub fn system_event(out: &mut Vec<u8>, time_ns: u64, event: u8) {
    let stamp = Stamp {
        symbol: None,
        time_ns,
    };
    block(out, b'S', stamp, &[&[event]]);
}

/// A symbol there is.
pub fn stock_directory(out: &mut Vec<u8>, stamp: Stamp, stock: Stock) {
    // Market category Q, no financial status, round lots of 100 not required, common stock of no subtype, production,
    // no threshold, no IPO, no price band, no exchange-traded product.
    let rest: [&[u8]; 4] = [&stock, b"QN", &100_u32.to_be_bytes(), b"NCZ PNN2N"];
    block(
        out,
        b'R',
        stamp,
        &[rest[0], rest[1], rest[2], rest[3], &[0; 4], b"N"],
    );
}

/// An order rests.
pub fn add(
    out: &mut Vec<u8>,
    stamp: Stamp,
    id: u64,
    side: Side,
    shares: u64,
    stock: Stock,
    price: u64,
) {
    let side = match side {
        Side::Buy => b"B",
        Side::Sell => b"S",
    };
    block(
        out,
        b'A',
        stamp,
        &[
            &id.to_be_bytes(),
            side,
            &number(shares),
            &stock,
            &number(price),
        ],
    );
}

/// A part of a resting order was executed.
pub fn executed(out: &mut Vec<u8>, stamp: Stamp, id: u64, shares: u64, trade: u64) {
    block(
        out,
        b'E',
        stamp,
        &[&id.to_be_bytes(), &number(shares), &trade.to_be_bytes()],
    );
}

/// A resting order became smaller by so much.
pub fn cancelled(out: &mut Vec<u8>, stamp: Stamp, id: u64, shares: u64) {
    block(out, b'X', stamp, &[&id.to_be_bytes(), &number(shares)]);
}

/// A resting order is gone.
pub fn deleted(out: &mut Vec<u8>, stamp: Stamp, id: u64) {
    block(out, b'D', stamp, &[&id.to_be_bytes()]);
}

/// The limits of an order keep its numbers within 32 bits.
fn number(number: u64) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes()
}

fn block(out: &mut Vec<u8>, kind: u8, stamp: Stamp, parts: &[&[u8]]) {
    const HEAD_BYTES: usize = 11;
    let len = HEAD_BYTES + parts.iter().map(|part| part.len()).sum::<usize>();
    let len = u16::try_from(len).expect("messages are short");
    out.extend_from_slice(&len.to_be_bytes());
    out.push(kind);
    let locate = stamp.symbol.map_or(0, |symbol| symbol + 1);
    out.extend_from_slice(&locate.to_be_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&(stamp.time_ns % NS_PER_DAY).to_be_bytes()[2..]);
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// The blocks in some bytes, each with its length before it.
pub fn blocks(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = bytes.first_chunk::<LENGTH_BYTES>()?;
        let end = LENGTH_BYTES + usize::from(u16::from_be_bytes(*length));
        let (block, rest) = bytes.split_at_checked(end)?;
        bytes = rest;
        Some(block)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_has_the_length_of_the_specification() {
        let stamp = Stamp {
            symbol: Some(6),
            time_ns: NS_PER_DAY + 258,
        };
        let stock = stock("MU.A").expect("a symbol");
        let mut out = Vec::new();
        system_event(&mut out, 0, b'O');
        stock_directory(&mut out, stamp, stock);
        add(&mut out, stamp, 1, Side::Sell, 100, stock, 10_000);
        executed(&mut out, stamp, 1, 40, 9);
        cancelled(&mut out, stamp, 1, 10);
        deleted(&mut out, stamp, 1);
        let found: Vec<(u8, usize)> = blocks(&out)
            .map(|block| (block[2], block.len() - LENGTH_BYTES))
            .collect();
        let wanted = [
            (b'S', 12),
            (b'R', 39),
            (b'A', 36),
            (b'E', 31),
            (b'X', 23),
            (b'D', 19),
        ];
        assert_eq!(found, wanted);
        let add = blocks(&out).nth(2).expect("the third");
        assert_eq!(&add[2..13], [b'A', 0, 7, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(&add[21..34], b"S\0\0\0\x64MU.A    ");
    }

    #[test]
    fn symbols_that_itch_cannot_spell_are_none() {
        assert_eq!(stock("A"), Some(*b"A       "));
        assert_eq!(
            ["", "ABCDEFGHI", "abc", "A B"].map(stock),
            [None, None, None, None]
        );
    }
}
