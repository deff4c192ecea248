//! Market data as the exchange makes it: the same messages with the same numbers on every replica.

use std::cell::Cell;

use crate::itch::{self, Stamp, Stock};
use crate::order::Side;

/// Bytes of messages that wait for whoever sends them; where nobody does, none are kept.
const PENDING_BYTES: usize = 64 << 10;

/// What was said since somebody asked last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// The number of the first message, from 1.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// The blocks of [`itch`].
    pub blocks: Vec<u8>,
}

/// The messages' number, and those that were not asked for yet.
pub(super) struct Feed {
    /// The number of the next message.
    pub(super) next: u64,
    pub(super) wanted: bool,
    blocks: Cell<Vec<u8>>,
    first: Cell<u64>,
}

impl Feed {
    pub(super) fn new(next: u64) -> Self {
        Self {
            next,
            wanted: false,
            blocks: Cell::new(Vec::with_capacity(PENDING_BYTES)),
            first: Cell::new(next),
        }
    }

    fn say(&mut self, message: impl FnOnce(&mut Vec<u8>)) {
        self.next += 1;
        if self.wanted {
            message(self.blocks.get_mut());
        }
    }

    pub(super) fn added(&mut self, stamp: Stamp, id: u64, stock: Stock, order: (Side, u64, u64)) {
        let (side, price, shares) = order;
        self.say(|out| itch::add(out, stamp, id, side, shares, stock, price));
    }

    pub(super) fn executed(&mut self, stamp: Stamp, id: u64, shares: u64, trade: u64) {
        self.say(|out| itch::executed(out, stamp, id, shares, trade));
    }

    pub(super) fn cancelled(&mut self, stamp: Stamp, id: u64, shares: u64) {
        self.say(|out| itch::cancelled(out, stamp, id, shares));
    }

    pub(super) fn deleted(&mut self, stamp: Stamp, id: u64) {
        self.say(|out| itch::deleted(out, stamp, id));
    }

    pub(super) fn news(&self) -> News {
        let first = self.first.replace(self.next);
        News {
            first,
            count: self.next - first,
            blocks: self.blocks.take(),
        }
    }
}
