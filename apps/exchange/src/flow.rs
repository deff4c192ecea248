//! Orders as a market makes them, from a seed: the same seed gives the same orders.
//!
//! Of the commands 40 % are cancels, the rest new orders over several symbols. Prices walk; most orders join the book
//! within a few levels of the middle, some cross it, a few are immediate or cancel, fill or kill, or market orders. Now
//! and then there is a burst: one symbol, one side, many orders that cross, and cancels of what is in their way. A
//! cancel means one of the recent orders most of the time, whether it was filled meanwhile or not: the client often
//! does not know either.

use std::collections::VecDeque;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::order::{Force, Kind, Name, Order, Side, Type};

/// Traders, each a session of its own, with numbers from 1.
pub const TRADERS: u64 = 16;
/// Of a symbol's orders so many are remembered; beyond, the oldest is cancelled, so books stay bounded.
const REMEMBERED: usize = 1024;
/// A cancel means one of so many recent orders.
const RECENT: usize = 100;
/// The smallest difference between prices, in 1/10000: a cent.
const TICK: u64 = 100;
/// Prices stay between these.
const PRICES: std::ops::Range<u64> = 10_0000..1000_0000;
/// Levels from the middle that an order joins at most.
const LEVELS: u64 = 8;
/// Shares of a lot, and lots of an order at most.
const LOT: u64 = 100;
const LOTS_MAX: u64 = 10;
/// Orders of a burst.
const BURST: std::ops::Range<u32> = 20..200;

/// Of a thousand commands, ...
const CANCELS: u32 = 400;
/// ... of a thousand new orders, ...
const CROSSING: u32 = 150;
const CROSSING_IN_BURST: u32 = 500;
const IMMEDIATE: u32 = 60;
const ALL_OR_NOTHING: u32 = 20;
const MARKET: u32 = 10;
/// ... and of a hundred thousand commands begins a burst.
const BURSTS: u32 = 50;

/// What the flow is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Of a thousand commands so many are replaces, in the place of new orders.
    pub replaces: u32,
    /// Whether there are market orders.
    pub market: bool,
}

impl Mix {
    /// Everything there is.
    pub const ALL: Self = Self {
        replaces: 50,
        market: true,
    };
    /// What every engine has: limit orders of all three kinds, and cancels.
    pub const COMMON: Self = Self {
        replaces: 0,
        market: false,
    };
}

#[derive(Debug)]
struct Market {
    middle: u64,
    /// Orders that were sent, the oldest first.
    sent: VecDeque<(u64, u64, Side)>,
}

#[derive(Debug)]
struct Burst {
    symbol: u16,
    side: Side,
    left: u32,
}

/// An endless flow of orders.
#[derive(Debug)]
pub struct Flow {
    random: ChaCha8Rng,
    mix: Mix,
    markets: Vec<Market>,
    burst: Option<Burst>,
    names: u64,
}

impl Flow {
    /// From a seed, over symbols 0 to `symbols - 1`.
    ///
    /// # Panics
    /// If there is no symbol.
    #[must_use]
    pub fn new(seed: u64, symbols: u16, mix: Mix) -> Self {
        assert!(symbols > 0, "a flow of orders needs a symbol");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let markets = (0..symbols).map(|_| Market {
            middle: random.random_range(50_0000 / TICK..200_0000 / TICK) * TICK,
            sent: VecDeque::with_capacity(REMEMBERED + 1),
        });
        Self {
            markets: markets.collect(),
            random,
            mix,
            burst: None,
            names: 0,
        }
    }

    /// Whether the next order is part of a burst.
    #[must_use]
    pub fn is_burst(&self) -> bool {
        self.burst.is_some()
    }

    fn of_thousand(&mut self, so_many: u32) -> bool {
        self.random.random_range(0..1000) < so_many
    }

    /// The next order.
    pub fn next_order(&mut self) -> Order {
        if self.burst.is_none() && self.random.random_range(0..100_000) < BURSTS {
            self.burst = Some(Burst {
                symbol: self.any_symbol(),
                side: self.any_side(),
                left: self.random.random_range(BURST),
            });
        }
        let (symbol, side) = match &mut self.burst {
            Some(burst) => {
                burst.left -= 1;
                let (symbol, side, over) = (burst.symbol, burst.side, burst.left == 0);
                if over {
                    self.burst = None;
                }
                (symbol, Some(side))
            }
            None => (self.any_symbol(), None),
        };
        let sent = &self.markets[usize::from(symbol)].sent;
        if sent.len() > REMEMBERED {
            let oldest = self.markets[usize::from(symbol)].sent.pop_front();
            return self.cancel(symbol, oldest.expect("there are many"));
        }
        let kind = self.random.random_range(0..1000);
        if kind < CANCELS + self.mix.replaces && !sent.is_empty() {
            let recent = sent.len().saturating_sub(RECENT);
            let at = self.random.random_range(recent..sent.len());
            let sent = &mut self.markets[usize::from(symbol)].sent;
            let found = sent.remove(at).expect("within the length");
            return if kind < CANCELS {
                self.cancel(symbol, found)
            } else {
                self.replace(symbol, found)
            };
        }
        self.new_order(symbol, side)
    }

    fn any_symbol(&mut self) -> u16 {
        let symbols = self.markets.len();
        // The first symbols are traded most.
        let at = self
            .random
            .random_range(0..symbols)
            .min(self.random.random_range(0..symbols));
        u16::try_from(at).expect("made from such a number")
    }

    fn any_side(&mut self) -> Side {
        if self.random.random_range(0..2) == 0 {
            Side::Buy
        } else {
            Side::Sell
        }
    }

    fn name(&mut self) -> u64 {
        self.names += 1;
        self.names
    }

    fn price(&mut self, symbol: u16, side: Side, crossing: bool) -> u64 {
        // Near levels are likelier.
        let far = self
            .random
            .random_range(1..=LEVELS)
            .min(self.random.random_range(1..=LEVELS))
            * TICK;
        let middle = self.markets[usize::from(symbol)].middle;
        match (side, crossing) {
            (Side::Buy, false) | (Side::Sell, true) => middle - far,
            (Side::Buy, true) | (Side::Sell, false) => middle + far,
        }
    }

    fn quantity(&mut self) -> u64 {
        self.random.random_range(1..=LOTS_MAX) * LOT
    }

    fn new_order(&mut self, symbol: u16, side: Option<Side>) -> Order {
        let in_burst = side.is_some();
        let side = match side {
            Some(side) => side,
            None => self.any_side(),
        };
        let crossing = self.of_thousand(if in_burst {
            CROSSING_IN_BURST
        } else {
            CROSSING
        });
        if crossing {
            self.walk(symbol, side);
        }
        let kind = self.random.random_range(0..1000);
        let force = match kind {
            _ if kind < IMMEDIATE => Force::ImmediateOrCancel,
            _ if kind < IMMEDIATE + ALL_OR_NOTHING => Force::FillOrKill,
            _ => Force::Day,
        };
        let market = self.mix.market
            && (IMMEDIATE + ALL_OR_NOTHING..).contains(&kind)
            && kind < IMMEDIATE + ALL_OR_NOTHING + MARKET;
        let at_once = market || force != Force::Day;
        let number = self.name();
        let session = self.random.random_range(1..=TRADERS);
        if !at_once {
            let market = &mut self.markets[usize::from(symbol)];
            market.sent.push_back((session, number, side));
        }
        Order {
            kind: Kind::New,
            side,
            order_type: if market { Type::Market } else { Type::Limit },
            force,
            symbol,
            session,
            price: if market {
                0
            } else {
                self.price(symbol, side, crossing || at_once)
            },
            quantity: self.quantity(),
            name: Name::number(number),
            original: Name::NONE,
            number: 0,
        }
    }

    /// Whoever crosses moves the middle, sometimes.
    fn walk(&mut self, symbol: u16, side: Side) {
        if !self.of_thousand(100) {
            return;
        }
        let middle = &mut self.markets[usize::from(symbol)].middle;
        *middle = match side {
            Side::Buy => *middle + TICK,
            Side::Sell => *middle - TICK,
        };
        *middle = (*middle).clamp(PRICES.start, PRICES.end);
    }

    fn about(&mut self, symbol: u16, kind: Kind, sent: (u64, u64, Side)) -> Order {
        let (session, original, side) = sent;
        Order {
            kind,
            side,
            order_type: Type::Limit,
            force: Force::Day,
            symbol,
            session,
            price: 0,
            quantity: 0,
            name: Name::number(self.name()),
            original: Name::number(original),
            number: 0,
        }
    }

    fn cancel(&mut self, symbol: u16, sent: (u64, u64, Side)) -> Order {
        self.about(symbol, Kind::Cancel, sent)
    }

    fn replace(&mut self, symbol: u16, sent: (u64, u64, Side)) -> Order {
        let order = Order {
            price: self.price(symbol, sent.2, false),
            quantity: self.quantity(),
            ..self.about(symbol, Kind::Replace, sent)
        };
        // It goes by the name of the request from here on.
        let market = &mut self.markets[usize::from(symbol)];
        market.sent.push_back((sent.0, self.names, sent.2));
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(seed: u64, count: usize) -> Vec<Order> {
        let mut flow = Flow::new(seed, 8, Mix::ALL);
        (0..count).map(|_| flow.next_order()).collect()
    }

    #[test]
    fn a_seed_is_a_flow() {
        assert_eq!(take(7, 5000), take(7, 5000));
        assert_ne!(take(7, 100), take(8, 100));
    }

    #[test]
    fn the_mix_is_as_it_says() {
        let orders = take(1, 100_000);
        let share = |of: &dyn Fn(&Order) -> bool| {
            orders.iter().filter(|order| of(order)).count() as f64 / orders.len() as f64
        };
        let cancels = share(&|order| order.kind == Kind::Cancel);
        assert!((0.38..0.45).contains(&cancels), "{cancels} cancels");
        assert!((0.03..0.06).contains(&share(&|order| order.kind == Kind::Replace)));
        let forces = [Force::ImmediateOrCancel, Force::FillOrKill];
        for force in forces {
            assert!(share(&|order| order.force == force) > 0.005, "{force:?}");
        }
        assert!(share(&|order| order.order_type == Type::Market) > 0.001);
        for symbol in 0..8 {
            assert!(
                share(&|order| order.symbol == symbol) > 0.01,
                "symbol {symbol}"
            );
        }
        let mut flow = Flow::new(1, 8, Mix::COMMON);
        let mut bursts = 0;
        for _ in 0..100_000 {
            bursts += u32::from(flow.is_burst());
            let order = flow.next_order();
            assert!(order.kind != Kind::Replace && order.order_type == Type::Limit);
        }
        assert!(bursts > 1000, "{bursts} orders of bursts");
    }
}
