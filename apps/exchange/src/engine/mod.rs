//! What the exchange wants of an order book, and who provides it.
//!
//! An engine matches, and no more: it knows neither clients nor clocks of its own, and it numbers nothing. Whatever has
//! to be the same on every replica and after a restart (ids, times, who owns an order) is the exchange's.

mod orderbook;

pub use orderbook::OrderBookRs;

use crate::order::{Force, Side};

/// An order that comes in. A market order is a limit order at the worst price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// The exchange's number of it.
    pub id: u64,
    /// Buy or sell.
    pub side: Side,
    /// The worst price, in 1/10000.
    pub price: u64,
    /// How much.
    pub quantity: u64,
    /// What happens to the rest.
    pub force: Force,
}

/// A trade with an order that rested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// The order that rested.
    pub maker: u64,
    /// Its price.
    pub price: u64,
    /// How much.
    pub quantity: u64,
}

/// An order in the book.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resting {
    /// The exchange's number of it.
    pub id: u64,
    /// Buy or sell.
    pub side: Side,
    /// Its price.
    pub price: u64,
    /// What is left of it.
    pub quantity: u64,
}

/// An engine that could not do what the exchange had checked before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine refused: {0}")]
pub struct EngineError(pub String);

/// The book of one symbol: price first, then time. Deterministic: the same calls give the same fills.
pub trait Engine: Send + 'static {
    /// An empty book.
    fn new(symbol: &str) -> Self;

    /// Leader time as it stands in the log, before each call.
    fn set_time(&mut self, time_ns: u64);

    /// Matches an order, appends its fills in their order, and gives how much of it rests.
    ///
    /// # Errors
    /// The engine refused; it has done nothing then, and every replica's engine refuses it.
    ///
    /// # Panics
    /// It failed for a reason that others may not have: the replica stops. So do `cancel` and `reduce`.
    fn submit(&mut self, order: &Incoming, fills: &mut Vec<Fill>) -> Result<u64, EngineError>;

    /// Takes an order out; whether it was there.
    fn cancel(&mut self, id: u64) -> bool;

    /// Makes an order smaller, in its place in the queue; whether it was there.
    fn reduce(&mut self, id: u64, quantity: u64) -> bool;

    /// Every order: bids, then asks, best price first, at one price in the order of the queue.
    fn queues(&self, each: &mut dyn FnMut(Resting));
}
