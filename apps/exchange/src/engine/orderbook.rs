//! The engine of the crate orderbook-rs.
//!
//! Its own trade ids begin anew after a restore, and its snapshot has times and statistics in it that the exchange has
//! no use for. So neither is used: the exchange numbers trades, and restores a book by submitting what rests in the
//! order of arrival.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use orderbook_rs::{
    Clock, Id, OrderBook, OrderBookError, OrderType, SubmitFailure, TimeInForce, TimestampMs,
    TradeResult,
};
use pricelevel::{Hash32, OrderUpdate, Price, Quantity};

use super::{Engine, EngineError, Fill, Incoming, Resting};
use crate::order::{Force, Side};

const NS_PER_MS: u64 = 1_000_000;

/// The log's clock, as the engine asks for it.
#[derive(Debug, Default)]
struct LogClock(AtomicU64);

impl Clock for LogClock {
    fn now_millis(&self) -> TimestampMs {
        TimestampMs::new(self.0.load(Ordering::Relaxed))
    }
}

/// A book of orderbook-rs.
pub struct OrderBookRs {
    book: OrderBook<()>,
    clock: Arc<LogClock>,
}

impl Engine for OrderBookRs {
    fn new(symbol: &str) -> Self {
        let clock = Arc::new(LogClock::default());
        Self {
            book: OrderBook::with_clock(symbol, Arc::clone(&clock) as Arc<dyn Clock>),
            clock,
        }
    }

    fn set_time(&mut self, time_ns: u64) {
        self.clock.0.store(time_ns / NS_PER_MS, Ordering::Relaxed);
    }

    fn submit(&mut self, order: &Incoming, fills: &mut Vec<Fill>) -> Result<u64, EngineError> {
        let taker = OrderType::Standard {
            id: Id::Sequential(order.id),
            price: Price::new(order.price.into()),
            quantity: Quantity::new(order.quantity),
            side: theirs(order.side),
            user_id: Hash32::zero(),
            timestamp: self.clock.now_millis(),
            time_in_force: match order.force {
                Force::Day => TimeInForce::Gtc,
                Force::ImmediateOrCancel => TimeInForce::Ioc,
                Force::FillOrKill => TimeInForce::Fok,
            },
            extra_fields: (),
        };
        let before = fills.len();
        let filled = |fills: &[Fill]| fills.iter().map(|fill| fill.quantity).sum::<u64>();
        match self.book.add_order_with_committed(taker) {
            Ok((_, trades)) => {
                take(trades.as_ref(), fills);
                let left = order.quantity - filled(&fills[before..]);
                Ok(if order.force == Force::Day { left } else { 0 })
            }
            // How this engine says that the rest of such an order found nobody.
            Err(SubmitFailure {
                error: OrderBookError::InsufficientLiquidity { .. },
                committed,
                ..
            }) if order.force != Force::Day => {
                take(committed.as_deref(), fills);
                Ok(0)
            }
            Err(failure) => Err(refusal(failure)),
        }
    }

    fn cancel(&mut self, id: u64) -> bool {
        was_there(self.book.cancel_order(Id::Sequential(id)))
    }

    fn reduce(&mut self, id: u64, quantity: u64) -> bool {
        let update = OrderUpdate::UpdateQuantity {
            order_id: Id::Sequential(id),
            new_quantity: Quantity::new(quantity),
        };
        was_there(self.book.update_order(update))
    }

    fn queues(&self, each: &mut dyn FnMut(Resting)) {
        let snapshot = self
            .book
            .create_snapshot(usize::MAX)
            .expect("one thread has this book, so it stands still");
        for level in snapshot.bids.iter().chain(&snapshot.asks) {
            for order in level.orders() {
                each(Resting {
                    id: number(order.id()),
                    side: ours(order.side()),
                    price: level.price().as_u128() as u64,
                    quantity: order.visible_quantity().as_u64(),
                });
            }
        }
    }
}

/// A refusal that is a function of the order and the book, which every replica sees.
///
/// # Panics
/// Anything else, a lack of memory for one, may have happened here alone, or has left trades in the book. A replica
/// that went on would have another book than the others. So it stops, and gets the state from them.
fn refusal(failure: SubmitFailure) -> EngineError {
    match failure.error {
        OrderBookError::DuplicateOrderId { .. }
        | OrderBookError::InvalidPriceLevel(_)
        | OrderBookError::QuantityOverflow { .. }
            if failure.committed.is_none() =>
        {
            EngineError(failure.error.to_string())
        }
        error => {
            panic!("the engine failed in the middle of an order, so its book is lost: {error}")
        }
    }
}

/// Whether an order was there. Panics for a failure as [`refusal`] does.
fn was_there<T>(done: Result<Option<T>, OrderBookError>) -> bool {
    match done {
        Ok(found) => found.is_some(),
        Err(OrderBookError::OrderNotFound(_)) => false,
        Err(error) => panic!("the engine failed to change an order, so its book is lost: {error}"),
    }
}

fn take(trades: Option<&TradeResult>, fills: &mut Vec<Fill>) {
    let Some(trades) = trades else { return };
    for trade in trades.match_result.trades().as_vec() {
        fills.push(Fill {
            maker: number(trade.maker_order_id()),
            price: trade.price().as_u128() as u64,
            quantity: trade.quantity().as_u64(),
        });
    }
}

fn number(id: Id) -> u64 {
    match id {
        Id::Sequential(number) => number,
        other => unreachable!("no order was given the id {other}"),
    }
}

fn theirs(side: Side) -> orderbook_rs::Side {
    match side {
        Side::Buy => orderbook_rs::Side::Buy,
        Side::Sell => orderbook_rs::Side::Sell,
    }
}

fn ours(side: orderbook_rs::Side) -> Side {
    match side {
        orderbook_rs::Side::Buy => Side::Buy,
        orderbook_rs::Side::Sell => Side::Sell,
    }
}

#[cfg(test)]
mod tests {
    use pricelevel::MatchResult;

    use super::*;

    fn book() -> OrderBookRs {
        OrderBookRs::new("TEST")
    }

    fn submit(
        book: &mut OrderBookRs,
        id: u64,
        side: Side,
        price: u64,
        quantity: u64,
        force: Force,
    ) -> (u64, Vec<Fill>) {
        let mut fills = Vec::new();
        let order = Incoming {
            id,
            side,
            price,
            quantity,
            force,
        };
        let rests = book.submit(&order, &mut fills).expect("a sound order");
        (rests, fills)
    }

    fn queue(book: &OrderBookRs) -> Vec<(u64, u64)> {
        let mut all = Vec::new();
        book.queues(&mut |order| all.push((order.id, order.quantity)));
        all
    }

    #[test]
    fn price_goes_first_then_time_and_the_rest_rests() {
        let mut book = book();
        for (id, price) in [(1, 100), (2, 101), (3, 100)] {
            submit(&mut book, id, Side::Sell, price, 10, Force::Day);
        }
        let (rests, fills) = submit(&mut book, 4, Side::Buy, 100, 25, Force::Day);
        let fill = |maker, quantity| Fill {
            maker,
            price: 100,
            quantity,
        };
        assert_eq!((rests, fills), (5, vec![fill(1, 10), fill(3, 10)]));
        assert_eq!(queue(&book), [(4, 5), (2, 10)]);
    }

    #[test]
    fn the_rest_of_an_ioc_is_gone_and_a_fok_is_all_or_nothing() {
        let mut book = book();
        let (rests, fills) = submit(&mut book, 9, Side::Buy, 100, 1, Force::ImmediateOrCancel);
        assert_eq!((rests, fills.len()), (0, 0), "an empty book");
        submit(&mut book, 1, Side::Sell, 100, 10, Force::Day);
        let (rests, fills) = submit(&mut book, 2, Side::Buy, 100, 11, Force::FillOrKill);
        assert_eq!((rests, fills.len()), (0, 0));
        let (rests, fills) = submit(&mut book, 3, Side::Buy, 100, 15, Force::ImmediateOrCancel);
        assert_eq!((rests, fills[0].quantity), (0, 10));
        assert_eq!(queue(&book), []);
        submit(&mut book, 4, Side::Sell, 100, 10, Force::Day);
        let (rests, fills) = submit(&mut book, 5, Side::Buy, 100, 4, Force::FillOrKill);
        assert_eq!((rests, fills[0].quantity), (0, 4));
        assert_eq!(queue(&book), [(4, 6)]);
    }

    fn duplicate() -> OrderBookError {
        OrderBookError::DuplicateOrderId {
            order_id: Id::Sequential(1),
        }
    }

    #[test]
    fn only_what_every_replica_sees_is_a_refusal() {
        let mut book = book();
        submit(&mut book, 1, Side::Buy, 100, 10, Force::Day);
        let order = Incoming {
            id: 1,
            side: Side::Buy,
            price: 100,
            quantity: 1,
            force: Force::Day,
        };
        let refused = book.submit(&order, &mut Vec::new());
        assert_eq!(refused, Err(EngineError(duplicate().to_string())));
        assert!(!was_there::<()>(Err(OrderBookError::OrderNotFound(
            "1".into()
        ))));
    }

    #[test]
    #[should_panic(expected = "in the middle of an order")]
    fn a_failure_of_this_machine_stops_the_replica() {
        refusal(SubmitFailure::new(OrderBookError::KillSwitchActive));
    }

    #[test]
    #[should_panic(expected = "in the middle of an order")]
    fn a_failure_after_trades_stops_the_replica() {
        let trades = MatchResult::new(Id::Sequential(1), Quantity::new(1));
        let trades = TradeResult::new("TEST".into(), trades).expect("no fees");
        refusal(SubmitFailure::with_committed(duplicate(), Some(trades)));
    }

    #[test]
    #[should_panic(expected = "to change an order")]
    fn a_cancel_that_failed_stops_the_replica() {
        was_there::<()>(Err(OrderBookError::KillSwitchActive));
    }

    #[test]
    fn a_smaller_order_and_a_partly_filled_one_keep_their_places() {
        let mut book = book();
        for id in 1..=3 {
            submit(&mut book, id, Side::Buy, 100, 10, Force::Day);
        }
        assert!(book.reduce(1, 4) && !book.reduce(8, 4));
        assert_eq!(queue(&book), [(1, 4), (2, 10), (3, 10)]);
        submit(&mut book, 4, Side::Sell, 100, 6, Force::Day);
        assert_eq!(queue(&book), [(2, 8), (3, 10)]);
        assert!(book.cancel(2) && !book.cancel(2));
        assert_eq!(queue(&book), [(3, 10)]);
    }
}
