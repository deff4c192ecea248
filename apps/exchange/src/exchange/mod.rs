//! The replicated exchange: books, orders by their names, sessions, and what everybody is told.
//!
//! Everything here follows from the log. Times are the leader's as they stand in it, an order's number is its place in
//! it ([`order_id`]), a trade's is the entry's index and the number of the fill in that entry ([`TradeId`]).

mod feed;
mod matching;
mod report;
mod session;
mod snapshot;
#[cfg(test)]
mod tests;

pub use feed::News;
pub use matching::{Done, ORDERS_MAX};
pub use report::{Reason, Report, What};
pub use session::{
    COMP_BYTES_MAX, REPORTS_KEPT, SESSIONS_MAX, Session, SessionCommand, Taken, Verdict,
    session_number,
};

use std::collections::HashMap;

use mu::protocol::check::mix;
use mu::{Command, RestoreError, StateMachine};

use crate::engine::{Engine, Fill};
use crate::itch::{self, Stamp, Stock};
use crate::order::{Force, Name, Order, Side, Trade, TradeHash, Type};
use feed::Feed;
use session::{SESSION_COMMAND, Sessions};

/// The symbols of an exchange that was not told any.
pub const SYMBOLS: [&str; 8] = [
    "ALPHA", "BRAVO", "CHARLIE", "DELTA", "ECHO", "FOXTROT", "GOLF", "HOTEL",
];
/// Symbols that there may be.
pub const SYMBOLS_MAX: usize = 1024;

/// Where in the log, and when.
#[derive(Clone, Copy, Debug)]
struct Moment {
    index: u64,
    place: u16,
    time_ns: u64,
}

/// An order's number: its place in the log.
#[must_use]
pub fn order_id(index: u64, place: u16) -> u64 {
    index << 16 | u64::from(place)
}

/// A trade's number: the entry of the log and the number of the fill among that entry's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TradeId {
    /// The entry.
    pub index: u64,
    /// The fill, from 0.
    pub fill: u32,
}

impl TradeId {
    /// In one word, for ITCH.
    #[must_use]
    pub fn word(self) -> u64 {
        self.index << 20 | u64::from(self.fill)
    }
}

/// An order that rests, or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Live {
    session: u64,
    name: Name,
    symbol: u16,
    side: Side,
    order_type: Type,
    force: Force,
    price: u64,
    quantity: u64,
    leaves: u64,
    filled: u64,
    /// Sum of price times quantity over the fills.
    notional: u64,
    /// Its place among all arrivals, and so in the queue.
    arrival: u64,
}

struct Symbol<E> {
    name: Box<str>,
    stock: Stock,
    book: E,
}

/// Counts over all symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Commands that were orders, refused ones included.
    pub orders: u64,
    /// Orders that went into a book, or tried.
    pub arrivals: u64,
    /// Trades.
    pub trades: u64,
    /// Over their records.
    pub trade_hash: TradeHash,
}

/// The exchange.
pub struct Exchange<E> {
    symbols: Vec<Symbol<E>>,
    live: HashMap<u64, Live>,
    names: HashMap<(u64, Name), u64>,
    sessions: Sessions,
    feed: Feed,
    totals: Totals,
    /// Over the names of the symbols, so that replicas that were started with others are noticed.
    symbols_hash: u64,
    /// Sum of [`Live::hash`] over the orders.
    live_sum: u64,
    /// Over what sessions did.
    session_sum: u64,
    /// The entry of the last trade and the trades it has had.
    last: (u64, u32),
    /// Not part of the state: lives of it, ...
    generation: u64,
    /// ... the present command's fills and reports, ...
    fills: Vec<Fill>,
    nth: u32,
    /// ... and trades for whoever wants them.
    recorded: Option<Vec<(TradeId, Trade)>>,
}

/// A list of symbols that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SymbolsError {
    /// One of them.
    #[error("{0:?} is no symbol: 1 to 8 capital letters, digits or dots")]
    Spelling(String),
    /// Twice the same.
    #[error("the symbol {0} stands twice")]
    Twice(String),
    /// None, or too many.
    #[error("{0} symbols; 1 to {SYMBOLS_MAX} may be")]
    Number(usize),
}

impl<E: Engine> Exchange<E> {
    /// With empty books.
    ///
    /// # Errors
    /// Symbols that cannot be.
    pub fn new<'a>(symbols: impl IntoIterator<Item = &'a str>) -> Result<Self, SymbolsError> {
        let mut list: Vec<Symbol<E>> = Vec::new();
        for name in symbols {
            let stock = itch::stock(name).ok_or_else(|| SymbolsError::Spelling(name.into()))?;
            if list.iter().any(|symbol| symbol.stock == stock) {
                return Err(SymbolsError::Twice(name.into()));
            }
            list.push(Symbol {
                name: name.into(),
                stock,
                book: E::new(name),
            });
        }
        if !(1..=SYMBOLS_MAX).contains(&list.len()) {
            return Err(SymbolsError::Number(list.len()));
        }
        // The messages that begin a feed have the first numbers.
        let opening = 1 + list.len() as u64;
        let symbols_hash = list.iter().fold(0, |hash, symbol| {
            mix([hash, u64::from_be_bytes(symbol.stock)])
        });
        Ok(Self {
            symbols: list,
            live: HashMap::new(),
            names: HashMap::new(),
            sessions: Sessions::default(),
            feed: Feed::new(1 + opening),
            totals: Totals {
                orders: 0,
                arrivals: 0,
                trades: 0,
                trade_hash: TradeHash::EMPTY,
            },
            symbols_hash,
            live_sum: 0,
            session_sum: 0,
            last: (0, 0),
            generation: 0,
            fills: Vec::new(),
            nth: 0,
            recorded: None,
        })
    }

    /// Keeps market data for [`news`](Self::news) from now on.
    #[must_use]
    pub fn with_news(mut self) -> Self {
        self.feed.wanted = true;
        self
    }

    /// Keeps trades for [`take_trades`](Self::take_trades) from now on.
    #[must_use]
    pub fn with_trades(mut self) -> Self {
        self.recorded = Some(Vec::new());
        self
    }

    /// Carries an order out as one command of the log.
    pub fn order(&mut self, index: u64, place: u16, time_ns: u64, order: &Order) -> Done {
        let moment = Moment {
            index,
            place,
            time_ns,
        };
        self.totals.orders += 1;
        self.nth = 0;
        match self.sessions.admit(order.session, order.number) {
            Verdict::Done => self.run(moment, order),
            refused => Done::refused(refused),
        }
    }

    /// The trades since the last call.
    pub fn take_trades(&mut self) -> Vec<(TradeId, Trade)> {
        self.recorded
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// The market data since the last call.
    pub fn news(&self) -> News {
        self.feed.news()
    }

    /// A feed from its beginning with the books as they are: for a file that begins in the middle. Gives the blocks and
    /// the number of the message that comes next.
    #[must_use]
    pub fn opening(&self) -> (Vec<u8>, u64) {
        let mut out = Vec::new();
        itch::system_event(&mut out, 0, b'O');
        for (number, symbol) in (0..).zip(&self.symbols) {
            itch::stock_directory(&mut out, stamp(number, 0), symbol.stock);
        }
        for (number, symbol) in (0..).zip(&self.symbols) {
            symbol.book.queues(&mut |order| {
                let (id, side) = (order.id, order.side);
                let stamp = stamp(number, 0);
                itch::add(
                    &mut out,
                    stamp,
                    id,
                    side,
                    order.quantity,
                    symbol.stock,
                    order.price,
                );
            });
        }
        (out, self.feed.next)
    }

    /// How often the state was replaced by a snapshot.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Sessions with something new since the last call.
    pub fn touched(&self) -> Vec<u64> {
        self.sessions.take_touched()
    }

    /// A session.
    #[must_use]
    pub fn session(&self, number: u64) -> Option<&Session> {
        self.sessions.get(number)
    }

    /// The number of a symbol.
    #[must_use]
    pub fn symbol(&self, name: &str) -> Option<u16> {
        let at = self
            .symbols
            .iter()
            .position(|symbol| &*symbol.name == name)?;
        u16::try_from(at).ok()
    }

    /// The name of a symbol, or nothing.
    #[must_use]
    pub fn symbol_name(&self, number: u16) -> &str {
        self.symbols
            .get(usize::from(number))
            .map_or("", |symbol| &symbol.name)
    }

    /// Counts.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Orders that rest.
    #[must_use]
    pub fn resting(&self) -> usize {
        self.live.len()
    }

    /// A hash over all books as the engine has them: every order with its owner, price, quantity and position in its
    /// queue.
    #[must_use]
    pub fn books_hash(&self) -> u64 {
        let mut hash = 0;
        for symbol in &self.symbols {
            symbol.book.queues(&mut |order| {
                let live = self
                    .live
                    .get(&order.id)
                    .map_or(0, |live| live.hash(order.id));
                hash = mix([hash, order.id, order.price, order.quantity, live]);
            });
            hash = mix([hash, 0]);
        }
        hash
    }

    /// The book of a symbol, one line an order, in the order of the queues.
    #[must_use]
    pub fn book_text(&self, symbol: u16) -> String {
        use std::fmt::Write as _;
        let mut out = String::new();
        let Some(symbol) = self.symbols.get(usize::from(symbol)) else {
            return out;
        };
        symbol.book.queues(&mut |order| {
            let side = if order.side == Side::Buy {
                "buy"
            } else {
                "sell"
            };
            let (whole, part) = (order.price / 10_000, order.price % 10_000);
            writeln!(
                out,
                "{side} {whole}.{part:04} {} {}",
                order.quantity, order.id
            )
            .expect("a string");
        });
        out
    }
}

fn stamp(symbol: u16, time_ns: u64) -> Stamp {
    Stamp {
        symbol: Some(symbol),
        time_ns,
    }
}

impl Live {
    fn hash(&self, id: u64) -> u64 {
        let place = u64::from(self.symbol) << 1 | u64::from(self.side == Side::Sell);
        mix([id, place, self.leaves, self.price, self.arrival])
    }
}

impl<E: Engine> StateMachine for Exchange<E> {
    fn apply(&mut self, command: &Command<'_>, reply: &mut Vec<u8>) {
        if command.bytes.first() == Some(&SESSION_COMMAND) {
            let taken = self.sessions.run(command.bytes);
            self.session_sum = mix([self.session_sum, taken.out, taken.in_next]);
            taken.encode(reply);
            return;
        }
        let done = match Order::decode(command.bytes) {
            Some(order) => self.order(command.index, command.place, command.time_ns, &order),
            None => Done::refused(Verdict::Malformed),
        };
        done.encode(reply);
    }

    fn digest(&self) -> u64 {
        let Totals {
            orders,
            arrivals,
            trades,
            trade_hash,
        } = self.totals;
        mix([
            self.symbols_hash,
            self.live_sum,
            self.session_sum,
            self.feed.next,
            orders,
            arrivals,
            trades,
            trade_hash.0,
        ])
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        snapshot::write(self, out);
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let restored = snapshot::read(self, bytes)?;
        *self = restored;
        Ok(())
    }
}
