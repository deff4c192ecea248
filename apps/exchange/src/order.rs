//! What the log carries and what trades are compared by: fixed little-endian records, so that a program in any language
//! reads and writes them.
//!
//! An **order command** is [`ORDER_BYTES`] bytes:
//!
//! | offset | bytes | field | values |
//! |---|---|---|---|
//! | 0 | 1 | kind | 1 new, 2 cancel, 3 replace |
//! | 1 | 1 | side | 1 buy, 2 sell |
//! | 2 | 1 | type | 1 limit, 2 market |
//! | 3 | 1 | time in force | 1 day (rests), 2 immediate or cancel, 3 fill or kill |
//! | 4 | 2 | symbol | its number, from 0 |
//! | 6 | 2 | reserved | 0 |
//! | 8 | 8 | session | whose order it is |
//! | 16 | 8 | price | in units of 1/10000, 1 to [`PRICE_MAX`]; 0 in a market order and a cancel |
//! | 24 | 8 | quantity | 1 to [`QUANTITY_MAX`]; 0 in a cancel; in a replace the new total, what was filled included |
//! | 32 | 20 | order | the client's name for this request, zero-padded; unique among the session's live orders |
//! | 52 | 20 | original | in a cancel and a replace the name of the order meant; else zeros |
//! | 72 | 8 | number | the session's number of the command, from 1, so that a retry is applied once; 0: none |
//!
//! A number as a name is its 8 bytes, little-endian, then zeros. Side, type and time in force of a cancel or a replace
//! are not looked at; the order's own hold.
//!
//! A **trade record** is [`TRADE_BYTES`] bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | symbol |
//! | 2 | 1 | side of the taker |
//! | 3 | 5 | 0 |
//! | 8 | 8 | price: the maker's |
//! | 16 | 8 | quantity |
//! | 24 | 8 | session of the taker |
//! | 32 | 20 | order of the taker |
//! | 52 | 8 | session of the maker |
//! | 60 | 20 | order of the maker |
//!
//! Two engines agree when the [`TradeHash`] over their trade records does.

/// Bytes of an order command.
pub const ORDER_BYTES: usize = 80;
/// Bytes of a trade record.
pub const TRADE_BYTES: usize = 80;
/// Bytes of a client's name for an order.
pub const NAME_BYTES: usize = 20;
/// The highest price, in 1/10000: 199,999.9999, which is ITCH's.
pub const PRICE_MAX: u64 = 1_999_999_999;
/// The largest quantity of an order.
pub const QUANTITY_MAX: u64 = 1_000_000;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A new order.
    New,
    /// The end of one.
    Cancel,
    /// Another price or quantity.
    Replace,
}

/// Buy or sell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Buy.
    Buy,
    /// Sell.
    Sell,
}

/// Limit or market.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// At this price or a better one.
    Limit,
    /// At any price; what finds no counterpart is cancelled.
    Market,
}

/// How long it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// Until it is cancelled.
    Day,
    /// What is not filled at once is cancelled.
    ImmediateOrCancel,
    /// Filled at once and whole, or not at all.
    FillOrKill,
}

/// A client's name for an order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(pub [u8; NAME_BYTES]);

impl Name {
    /// Nothing.
    pub const NONE: Self = Self([0; NAME_BYTES]);

    /// A number as a name.
    #[must_use]
    pub fn number(number: u64) -> Self {
        let mut name = Self::NONE;
        name.0[..8].copy_from_slice(&number.to_le_bytes());
        name
    }

    /// A text as a name: 1 to 20 bytes, none of them zero.
    #[must_use]
    pub fn text(text: &[u8]) -> Option<Self> {
        if text.is_empty() || text.len() > NAME_BYTES || text.contains(&0) {
            return None;
        }
        let mut name = Self::NONE;
        name.0[..text.len()].copy_from_slice(text);
        Some(name)
    }

    /// Without the padding.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let len = self.0.iter().rposition(|byte| *byte != 0);
        &self.0[..len.map_or(0, |last| last + 1)]
    }
}

/// An order command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// What is asked for.
    pub kind: Kind,
    /// Buy or sell.
    pub side: Side,
    /// Limit or market.
    pub order_type: Type,
    /// How long it stays.
    pub force: Force,
    /// The number of the symbol.
    pub symbol: u16,
    /// Whose order it is.
    pub session: u64,
    /// In 1/10000.
    pub price: u64,
    /// How much.
    pub quantity: u64,
    /// The client's name for the request.
    pub name: Name,
    /// The order that is meant.
    pub original: Name,
    /// The session's number of the command; 0 for none.
    pub number: u64,
}

impl Order {
    /// The bytes of the command.
    #[must_use]
    pub fn encode(&self) -> [u8; ORDER_BYTES] {
        let mut out = [0; ORDER_BYTES];
        out[0] = match self.kind {
            Kind::New => 1,
            Kind::Cancel => 2,
            Kind::Replace => 3,
        };
        out[1] = side_byte(self.side);
        out[2] = match self.order_type {
            Type::Limit => 1,
            Type::Market => 2,
        };
        out[3] = match self.force {
            Force::Day => 1,
            Force::ImmediateOrCancel => 2,
            Force::FillOrKill => 3,
        };
        out[4..6].copy_from_slice(&self.symbol.to_le_bytes());
        out[8..16].copy_from_slice(&self.session.to_le_bytes());
        out[16..24].copy_from_slice(&self.price.to_le_bytes());
        out[24..32].copy_from_slice(&self.quantity.to_le_bytes());
        out[32..52].copy_from_slice(&self.name.0);
        out[52..72].copy_from_slice(&self.original.0);
        out[72..80].copy_from_slice(&self.number.to_le_bytes());
        out
    }

    /// What the bytes say; `None` if they are no order command. Prices and quantities are judged by the exchange.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; ORDER_BYTES] = bytes.try_into().ok()?;
        Some(Self {
            kind: match bytes[0] {
                1 => Kind::New,
                2 => Kind::Cancel,
                3 => Kind::Replace,
                _ => return None,
            },
            side: side_of(bytes[1])?,
            order_type: match bytes[2] {
                1 => Type::Limit,
                2 => Type::Market,
                _ => return None,
            },
            force: match bytes[3] {
                1 => Force::Day,
                2 => Force::ImmediateOrCancel,
                3 => Force::FillOrKill,
                _ => return None,
            },
            symbol: u16::from_le_bytes([bytes[4], bytes[5]]),
            session: word(bytes, 8),
            price: word(bytes, 16),
            quantity: word(bytes, 24),
            name: name(bytes, 32),
            original: name(bytes, 52),
            number: word(bytes, 72),
        })
    }
}

/// A trade, as two engines compare it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trade {
    /// The number of the symbol.
    pub symbol: u16,
    /// Side of the taker.
    pub side: Side,
    /// The maker's price, in 1/10000.
    pub price: u64,
    /// How much.
    pub quantity: u64,
    /// Session and order of the taker.
    pub taker: (u64, Name),
    /// Session and order of the maker.
    pub maker: (u64, Name),
}

impl Trade {
    /// The bytes of the record.
    #[must_use]
    pub fn encode(&self) -> [u8; TRADE_BYTES] {
        let mut out = [0; TRADE_BYTES];
        out[0..2].copy_from_slice(&self.symbol.to_le_bytes());
        out[2] = side_byte(self.side);
        out[8..16].copy_from_slice(&self.price.to_le_bytes());
        out[16..24].copy_from_slice(&self.quantity.to_le_bytes());
        out[24..32].copy_from_slice(&self.taker.0.to_le_bytes());
        out[32..52].copy_from_slice(&self.taker.1.0);
        out[52..60].copy_from_slice(&self.maker.0.to_le_bytes());
        out[60..80].copy_from_slice(&self.maker.1.0);
        out
    }
}

/// A running hash over trade records: FNV-1a over their 64-bit little-endian words,
/// `h = (h ^ word) * 0x100000001b3` from `0xcbf29ce484222325`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TradeHash(pub u64);

impl TradeHash {
    /// Over nothing.
    pub const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    /// Goes on with another record.
    pub fn add(&mut self, record: &[u8; TRADE_BYTES]) {
        for word in record.as_chunks::<8>().0 {
            self.0 = (self.0 ^ u64::from_le_bytes(*word)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

fn side_byte(side: Side) -> u8 {
    match side {
        Side::Buy => 1,
        Side::Sell => 2,
    }
}

fn side_of(byte: u8) -> Option<Side> {
    match byte {
        1 => Some(Side::Buy),
        2 => Some(Side::Sell),
        _ => None,
    }
}

fn word(bytes: &[u8; ORDER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn name(bytes: &[u8; ORDER_BYTES], at: usize) -> Name {
    Name(
        bytes[at..at + NAME_BYTES]
            .try_into()
            .expect("a name's bytes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        Order {
            kind: Kind::Replace,
            side: Side::Sell,
            order_type: Type::Limit,
            force: Force::FillOrKill,
            symbol: 0x0102,
            session: 3,
            price: PRICE_MAX,
            quantity: 5,
            name: Name::text(b"twenty bytes, exactly").unwrap_or(Name::number(7)),
            original: Name::text(b"A-1").expect("a name"),
            number: 9,
        }
    }

    #[test]
    fn an_order_is_the_bytes_that_the_table_says() {
        let bytes = order().encode();
        assert_eq!(&bytes[..8], [3, 2, 1, 3, 2, 1, 0, 0]);
        assert_eq!(bytes[16..24], PRICE_MAX.to_le_bytes());
        assert_eq!(&bytes[32..40], 7_u64.to_le_bytes(), "21 bytes are no name");
        assert_eq!(&bytes[52..56], b"A-1\0");
        assert_eq!(Order::decode(&bytes), Some(order()));
    }

    #[test]
    fn other_bytes_are_no_order() {
        let bytes = order().encode();
        assert_eq!(Order::decode(&bytes[..79]), None);
        for at in 0..4 {
            let mut wrong = bytes;
            wrong[at] = 9;
            assert_eq!(Order::decode(&wrong), None, "byte {at}");
        }
    }

    #[test]
    fn the_hash_is_the_published_one() {
        let mut hash = TradeHash::EMPTY;
        hash.add(&[0; TRADE_BYTES]);
        let ten = (0..10).fold(0xcbf2_9ce4_8422_2325_u64, |h, _| {
            h.wrapping_mul(0x100_0000_01b3)
        });
        assert_eq!(hash.0, ten);
        let mut other = TradeHash::EMPTY;
        other.add(&[1; TRADE_BYTES]);
        assert_ne!(hash, other);
    }
}
