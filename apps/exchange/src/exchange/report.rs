//! What a session is told about its orders. Made on every replica alike and kept with the session, so that a leader
//! that took over can say again what its predecessor said.

use crate::order::{Force, NAME_BYTES, Name, Side, Type};

/// Bytes of a report in a snapshot.
pub(super) const REPORT_BYTES: usize = 128;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum What {
    /// An order was taken.
    New = 0,
    /// It was filled, in whole or in part.
    Trade = 1,
    /// It, or what was left of it, is gone.
    Cancelled = 2,
    /// It has another price or quantity.
    Replaced = 3,
    /// It was not taken.
    Rejected = 4,
    /// A cancel was not carried out.
    CancelRejected = 5,
    /// A replace was not carried out.
    ReplaceRejected = 6,
}

/// Why something was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum Reason {
    /// Nothing.
    #[error("no reason")]
    None = 0,
    /// There is no such symbol.
    #[error("there is no such symbol")]
    Symbol = 1,
    /// The price is not one.
    #[error("the price is not from 0.0001 to 199999.9999, or a market order has one")]
    Price = 2,
    /// The quantity is not one.
    #[error("the quantity is not from 1 to 1000000")]
    Quantity = 3,
    /// An order of the session has this name.
    #[error("a live order of this session has this ClOrdID")]
    Duplicate = 4,
    /// Too many orders rest.
    #[error("the exchange holds as many orders as it can")]
    Full = 5,
    /// There is no such order.
    #[error(
        "no live order of this session has this OrigClOrdID: it is filled, cancelled, or never was"
    )]
    Unknown = 6,
    /// As much as the new quantity is filled already.
    #[error("as much as the new quantity is filled already")]
    TooLate = 7,
    /// The engine refused.
    #[error("the engine refused")]
    Engine = 8,
}

/// One report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// What happened.
    pub what: What,
    /// Why not.
    pub reason: Reason,
    /// It was said before, with another number.
    pub again: bool,
    /// Of the order, as all these.
    pub side: Side,
    /// Limit or market.
    pub order_type: Type,
    /// How long it stays.
    pub force: Force,
    /// Its symbol.
    pub symbol: u16,
    /// The exchange's number of it; 0 if it has none.
    pub order: u64,
    /// The client's name for the request that this is about.
    pub name: Name,
    /// For a cancel and a replace the order meant.
    pub original: Name,
    /// Its price.
    pub price: u64,
    /// Its quantity.
    pub quantity: u64,
    /// The price of this fill.
    pub last_price: u64,
    /// The quantity of this fill.
    pub last_quantity: u64,
    /// What still may be filled.
    pub leaves: u64,
    /// What was filled.
    pub filled: u64,
    /// Sum of price times quantity over the fills.
    pub notional: u64,
    /// Entry of the log, ...
    pub index: u64,
    /// ... place of the command in it, ...
    pub place: u16,
    /// ... and of the report among those of the command.
    pub nth: u32,
    /// Leader time.
    pub time_ns: u64,
}

impl Report {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[
            self.what as u8,
            self.reason as u8,
            u8::from(self.side == Side::Sell),
            u8::from(self.order_type == Type::Market),
            match self.force {
                Force::Day => 0,
                Force::ImmediateOrCancel => 1,
                Force::FillOrKill => 2,
            },
            u8::from(self.again),
        ]);
        out.extend_from_slice(&self.symbol.to_le_bytes());
        out.extend_from_slice(&self.name.0);
        out.extend_from_slice(&self.original.0);
        for small in [
            self.price,
            self.quantity,
            self.last_price,
            self.last_quantity,
            self.leaves,
            self.filled,
        ] {
            out.extend_from_slice(&(small as u32).to_le_bytes());
        }
        out.extend_from_slice(&self.nth.to_le_bytes());
        out.extend_from_slice(&u32::from(self.place).to_le_bytes());
        for word in [self.order, self.notional, self.index, self.time_ns] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.resize(start + REPORT_BYTES, 0);
    }

    pub(super) fn decode(bytes: &[u8; REPORT_BYTES]) -> Option<Self> {
        let small =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let word =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let name = |at: usize| {
            Name(
                bytes[at..at + NAME_BYTES]
                    .try_into()
                    .expect("a name's bytes"),
            )
        };
        Some(Self {
            what: *WHATS.get(usize::from(bytes[0]))?,
            reason: *REASONS.get(usize::from(bytes[1]))?,
            again: bytes[5] != 0,
            side: [Side::Buy, Side::Sell]
                .get(usize::from(bytes[2]))
                .copied()?,
            order_type: [Type::Limit, Type::Market]
                .get(usize::from(bytes[3]))
                .copied()?,
            force: [Force::Day, Force::ImmediateOrCancel, Force::FillOrKill]
                .get(usize::from(bytes[4]))
                .copied()?,
            symbol: u16::from_le_bytes([bytes[6], bytes[7]]),
            name: name(8),
            original: name(28),
            price: small(48).into(),
            quantity: small(52).into(),
            last_price: small(56).into(),
            last_quantity: small(60).into(),
            leaves: small(64).into(),
            filled: small(68).into(),
            nth: small(72),
            place: u16::try_from(small(76)).ok()?,
            order: word(80),
            notional: word(88),
            index: word(96),
            time_ns: word(104),
        })
    }
}

const WHATS: [What; 7] = [
    What::New,
    What::Trade,
    What::Cancelled,
    What::Replaced,
    What::Rejected,
    What::CancelRejected,
    What::ReplaceRejected,
];

pub(super) const REASONS: [Reason; 9] = [
    Reason::None,
    Reason::Symbol,
    Reason::Price,
    Reason::Quantity,
    Reason::Duplicate,
    Reason::Full,
    Reason::Unknown,
    Reason::TooLate,
    Reason::Engine,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_comes_back_from_its_bytes() {
        let report = Report {
            what: What::Trade,
            reason: Reason::Engine,
            again: true,
            side: Side::Sell,
            order_type: Type::Market,
            force: Force::FillOrKill,
            symbol: 7,
            order: 1 << 40,
            name: Name::number(3),
            original: Name::text(b"twenty bytes exactly").expect("a name"),
            price: 1,
            quantity: 2,
            last_price: 3,
            last_quantity: 4,
            leaves: 5,
            filled: 6,
            notional: 1 << 50,
            index: 8,
            place: 9,
            nth: 10,
            time_ns: 1 << 60,
        };
        let mut bytes = Vec::new();
        report.encode(&mut bytes);
        let bytes: &mut [u8; REPORT_BYTES] = bytes.as_mut_slice().try_into().expect("its length");
        assert_eq!(Report::decode(bytes), Some(report));
        bytes[0] = 7;
        assert_eq!(Report::decode(bytes), None);
    }
}
