//! What an order does: checks, matching, and who is told.

use super::report::{REASONS, Reason, Report, What};
use super::session::Verdict;
use super::{Exchange, Live, Moment, TradeId, order_id, stamp};
use crate::engine::{Engine, Fill, Incoming};
use crate::order::{Force, Kind, Name, Order, PRICE_MAX, QUANTITY_MAX, Side, Trade, Type};

/// Orders that may rest. With it a snapshot fits the default of `snapshot_max_bytes`.
pub const ORDERS_MAX: usize = 250_000;
/// Bytes of the reply to an order.
const DONE_BYTES: usize = 24;

/// How an order command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// How it was taken.
    pub verdict: Verdict,
    /// Why it was refused.
    pub reason: Reason,
    /// Fills it had at once.
    pub fills: u32,
    /// The order's number; 0 if it has none.
    pub order: u64,
    /// What is left of it in the book.
    pub leaves: u64,
}

impl Done {
    pub(super) fn refused(verdict: Verdict) -> Self {
        Self {
            verdict,
            reason: Reason::None,
            fills: 0,
            order: 0,
            leaves: 0,
        }
    }

    pub(super) fn encode(&self, reply: &mut Vec<u8>) {
        reply.extend_from_slice(&[self.verdict as u8, self.reason as u8, 0, 0]);
        reply.extend_from_slice(&self.fills.to_le_bytes());
        reply.extend_from_slice(&self.order.to_le_bytes());
        reply.extend_from_slice(&self.leaves.to_le_bytes());
    }

    /// What a reply says.
    #[must_use]
    pub fn decode(reply: &[u8]) -> Option<Self> {
        let reply: &[u8; DONE_BYTES] = reply.try_into().ok()?;
        let word =
            |at: usize| u64::from_le_bytes(reply[at..at + 8].try_into().expect("eight bytes"));
        Some(Self {
            verdict: Verdict::from_byte(reply[0])?,
            reason: *REASONS.get(usize::from(reply[1]))?,
            fills: u32::from_le_bytes(reply[4..8].try_into().expect("four bytes")),
            order: word(8),
            leaves: word(16),
        })
    }
}

/// What a report is about beside the order itself.
struct About {
    what: What,
    name: Name,
    original: Name,
    fill: Option<(u64, u64)>,
}

impl About {
    fn order(what: What, live: &Live) -> Self {
        Self {
            what,
            name: live.name,
            original: Name::NONE,
            fill: None,
        }
    }
}

impl<E: Engine> Exchange<E> {
    pub(super) fn run(&mut self, at: Moment, order: &Order) -> Done {
        let done = match order.kind {
            Kind::New => self.new_order(at, order),
            Kind::Cancel => self.cancel(at, order),
            Kind::Replace => self.replace(at, order),
        };
        done.unwrap_or_else(|reason| {
            self.refuse(at, order, reason);
            Done {
                reason,
                ..Done::refused(Verdict::Rejected)
            }
        })
    }

    fn new_order(&mut self, at: Moment, order: &Order) -> Result<Done, Reason> {
        if usize::from(order.symbol) >= self.symbols.len() {
            return Err(Reason::Symbol);
        }
        let (price, force) = match order.order_type {
            Type::Limit if !is_price(order.price) => return Err(Reason::Price),
            Type::Limit => (order.price, order.force),
            Type::Market if order.price != 0 => return Err(Reason::Price),
            Type::Market => (worst(order.side), at_once(order.force)),
        };
        if !is_quantity(order.quantity) {
            return Err(Reason::Quantity);
        }
        if self.names.contains_key(&(order.session, order.name)) {
            return Err(Reason::Duplicate);
        }
        if self.live.len() >= ORDERS_MAX && force == Force::Day {
            return Err(Reason::Full);
        }
        let live = Live {
            session: order.session,
            name: order.name,
            symbol: order.symbol,
            side: order.side,
            order_type: order.order_type,
            force,
            price,
            quantity: order.quantity,
            leaves: order.quantity,
            filled: 0,
            notional: 0,
            arrival: 0,
        };
        self.enter(
            at,
            order_id(at.index, at.place),
            live,
            What::New,
            Name::NONE,
        )
    }

    /// Matches an order and lets the rest rest. `first` is what its owner is told before anything else.
    fn enter(
        &mut self,
        at: Moment,
        id: u64,
        mut live: Live,
        first: What,
        original: Name,
    ) -> Result<Done, Reason> {
        self.totals.arrivals += 1;
        live.arrival = self.totals.arrivals;
        let symbol = &mut self.symbols[usize::from(live.symbol)];
        symbol.book.set_time(at.time_ns);
        let mut fills = std::mem::take(&mut self.fills);
        fills.clear();
        let incoming = Incoming {
            id,
            side: live.side,
            price: live.price,
            quantity: live.leaves,
            force: live.force,
        };
        let rests = symbol.book.submit(&incoming, &mut fills);
        let Ok(rests) = rests else {
            self.fills = fills;
            return Err(Reason::Engine);
        };
        let about = About {
            original,
            ..About::order(first, &live)
        };
        self.say(at, id, &live, about);
        for fill in &fills {
            self.fill(at, id, &mut live, fill);
        }
        let done = Done {
            fills: u32::try_from(fills.len()).unwrap_or(u32::MAX),
            order: id,
            leaves: rests,
            ..Done::refused(Verdict::Done)
        };
        self.fills = fills;
        if rests > 0 {
            self.rest(at, id, live);
        } else if live.leaves > 0 {
            live.leaves = 0;
            self.say(at, id, &live, About::order(What::Cancelled, &live));
        }
        Ok(done)
    }

    fn rest(&mut self, at: Moment, id: u64, live: Live) {
        let stock = self.symbols[usize::from(live.symbol)].stock;
        let order = (live.side, live.price, live.leaves);
        self.feed
            .added(stamp(live.symbol, at.time_ns), id, stock, order);
        self.live_sum = self.live_sum.wrapping_add(live.hash(id));
        self.names.insert((live.session, live.name), id);
        self.live.insert(id, live);
    }

    /// One fill: the maker becomes smaller, both are told.
    fn fill(&mut self, at: Moment, taker_id: u64, taker: &mut Live, fill: &Fill) {
        let Fill {
            maker: maker_id,
            price,
            quantity,
        } = *fill;
        let maker = self.live.get_mut(&maker_id);
        let maker = maker.expect("the engine matches with orders that the exchange gave it");
        self.live_sum = self.live_sum.wrapping_sub(maker.hash(maker_id));
        for live in [&mut *maker, &mut *taker] {
            live.leaves -= quantity;
            live.filled += quantity;
            live.notional += price * quantity;
        }
        let maker = *maker;
        if maker.leaves == 0 {
            self.live.remove(&maker_id);
            self.names.remove(&(maker.session, maker.name));
        } else {
            self.live_sum = self.live_sum.wrapping_add(maker.hash(maker_id));
        }
        let trade = self.trade(at, taker, &maker, price, quantity);
        self.feed.executed(
            stamp(maker.symbol, at.time_ns),
            maker_id,
            quantity,
            trade.word(),
        );
        for (id, live) in [(maker_id, &maker), (taker_id, &*taker)] {
            let about = About {
                fill: Some((price, quantity)),
                ..About::order(What::Trade, live)
            };
            self.say(at, id, live, about);
        }
    }

    /// Numbers a trade and takes it into the hash.
    fn trade(
        &mut self,
        at: Moment,
        taker: &Live,
        maker: &Live,
        price: u64,
        quantity: u64,
    ) -> TradeId {
        if self.last.0 != at.index {
            self.last = (at.index, 0);
        }
        let id = TradeId {
            index: at.index,
            fill: self.last.1,
        };
        self.last.1 += 1;
        let trade = Trade {
            symbol: taker.symbol,
            side: taker.side,
            price,
            quantity,
            taker: (taker.session, taker.name),
            maker: (maker.session, maker.name),
        };
        self.totals.trades += 1;
        self.totals.trade_hash.add(&trade.encode());
        if let Some(recorded) = &mut self.recorded {
            recorded.push((id, trade));
        }
        id
    }

    fn find(&self, order: &Order) -> Result<(u64, Live), Reason> {
        let id = self.names.get(&(order.session, order.original));
        let id = *id.ok_or(Reason::Unknown)?;
        Ok((id, self.live[&id]))
    }

    /// Takes an order out of everything but its book.
    fn forget(&mut self, id: u64, live: &Live) {
        self.live.remove(&id);
        self.names.remove(&(live.session, live.name));
        self.live_sum = self.live_sum.wrapping_sub(live.hash(id));
    }

    /// Takes an order out of its book.
    fn take_out(&mut self, at: Moment, id: u64, live: &Live) -> Result<(), Reason> {
        let book = &mut self.symbols[usize::from(live.symbol)].book;
        book.set_time(at.time_ns);
        if !book.cancel(id) {
            return Err(Reason::Engine);
        }
        self.forget(id, live);
        self.feed.deleted(stamp(live.symbol, at.time_ns), id);
        Ok(())
    }

    fn cancel(&mut self, at: Moment, order: &Order) -> Result<Done, Reason> {
        let (id, mut live) = self.find(order)?;
        self.take_out(at, id, &live)?;
        live.leaves = 0;
        let about = About {
            what: What::Cancelled,
            name: order.name,
            original: order.original,
            fill: None,
        };
        self.say(at, id, &live, about);
        Ok(Done {
            order: id,
            ..Done::refused(Verdict::Done)
        })
    }

    fn replace(&mut self, at: Moment, order: &Order) -> Result<Done, Reason> {
        let (id, old) = self.find(order)?;
        if !is_price(order.price) {
            return Err(Reason::Price);
        }
        if !is_quantity(order.quantity) {
            return Err(Reason::Quantity);
        }
        if order.quantity <= old.filled {
            return Err(Reason::TooLate);
        }
        if order.name != order.original && self.names.contains_key(&(order.session, order.name)) {
            return Err(Reason::Duplicate);
        }
        let new = Live {
            name: order.name,
            price: order.price,
            quantity: order.quantity,
            leaves: order.quantity - old.filled,
            ..old
        };
        if new.price != old.price || new.quantity > old.quantity {
            self.take_out(at, id, &old)?;
            let entered = self.enter(at, id, new, What::Replaced, order.original);
            if entered.is_err() {
                let gone = Live { leaves: 0, ..old };
                self.say(at, id, &gone, About::order(What::Cancelled, &gone));
            }
            return entered;
        }
        self.shrink(at, id, &old, new, order.original)
    }

    /// An order that only becomes smaller keeps its place.
    fn shrink(
        &mut self,
        at: Moment,
        id: u64,
        old: &Live,
        new: Live,
        original: Name,
    ) -> Result<Done, Reason> {
        let book = &mut self.symbols[usize::from(old.symbol)].book;
        book.set_time(at.time_ns);
        if !book.reduce(id, new.leaves) {
            return Err(Reason::Engine);
        }
        self.forget(id, old);
        self.live_sum = self.live_sum.wrapping_add(new.hash(id));
        self.names.insert((new.session, new.name), id);
        self.live.insert(id, new);
        if new.leaves < old.leaves {
            let less = old.leaves - new.leaves;
            self.feed.cancelled(stamp(old.symbol, at.time_ns), id, less);
        }
        let about = About {
            original,
            ..About::order(What::Replaced, &new)
        };
        self.say(at, id, &new, about);
        Ok(Done {
            order: id,
            leaves: new.leaves,
            ..Done::refused(Verdict::Done)
        })
    }

    fn say(&mut self, at: Moment, id: u64, live: &Live, about: About) {
        let nth = self.nth;
        self.nth += 1;
        let (last_price, last_quantity) = about.fill.unwrap_or((0, 0));
        self.sessions.say(live.session, || Report {
            what: about.what,
            reason: Reason::None,
            again: false,
            side: live.side,
            order_type: live.order_type,
            force: live.force,
            symbol: live.symbol,
            order: id,
            name: about.name,
            original: about.original,
            price: live.price,
            quantity: live.quantity,
            last_price,
            last_quantity,
            leaves: live.leaves,
            filled: live.filled,
            notional: live.notional,
            index: at.index,
            place: at.place,
            nth,
            time_ns: at.time_ns,
        });
    }

    /// Tells an order's owner why it is not done.
    fn refuse(&mut self, at: Moment, order: &Order, reason: Reason) {
        let what = match order.kind {
            Kind::New => What::Rejected,
            Kind::Cancel => What::CancelRejected,
            Kind::Replace => What::ReplaceRejected,
        };
        let known = self.find(order).ok();
        self.sessions.say(order.session, || Report {
            what,
            reason,
            again: false,
            side: order.side,
            order_type: order.order_type,
            force: order.force,
            symbol: order.symbol,
            order: known.map_or(0, |(id, _)| id),
            name: order.name,
            original: order.original,
            // As it was asked for, within the report's room.
            price: order.price.min(u32::MAX.into()),
            quantity: order.quantity.min(u32::MAX.into()),
            last_price: 0,
            last_quantity: 0,
            leaves: known.map_or(0, |(_, live)| live.leaves),
            filled: known.map_or(0, |(_, live)| live.filled),
            notional: known.map_or(0, |(_, live)| live.notional),
            index: at.index,
            place: at.place,
            nth: 0,
            time_ns: at.time_ns,
        });
    }
}

pub(super) fn is_price(price: u64) -> bool {
    (1..=PRICE_MAX).contains(&price)
}

pub(super) fn is_quantity(quantity: u64) -> bool {
    (1..=QUANTITY_MAX).contains(&quantity)
}

/// The price at which a market order takes all.
fn worst(side: Side) -> u64 {
    match side {
        Side::Buy => PRICE_MAX,
        Side::Sell => 1,
    }
}

/// A market order never rests.
fn at_once(force: Force) -> Force {
    match force {
        Force::Day => Force::ImmediateOrCancel,
        other => other,
    }
}
