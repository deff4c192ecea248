//! The whole state as bytes: the same on every replica with the same state.
//!
//! Orders stand in the order of their arrival, which at one price is the order of the queue. A book is made again by
//! submitting what is left of each in that order: none of them can match, since they rested together.

use mu::RestoreError;

use super::matching::{is_price, is_quantity};
use super::report::{REPORT_BYTES, Report};
use super::session::{COMP_BYTES_MAX, REPORTS_KEPT, SESSIONS_MAX, Session, session_number};
use super::{Exchange, Feed, Live, ORDERS_MAX, Totals};
use crate::engine::{Engine, Incoming};
use crate::order::{Force, Kind, Name, ORDER_BYTES, Order, TradeHash};

const VERSION: u64 = 0x6d75_6578_0001;
/// Bytes of an order: itself as a command, its id, what is left and filled, the notional, the arrival.
const LIVE_BYTES: usize = ORDER_BYTES + 40;
/// Bytes that snapshots may have without being told.
const DEFAULT_MAX: usize = 64 << 20;

const _: () = {
    let session = COMP_BYTES_MAX + 64 + REPORTS_KEPT * (REPORT_BYTES + 8);
    assert!(
        ORDERS_MAX * LIVE_BYTES + SESSIONS_MAX * session + (1 << 20) < DEFAULT_MAX,
        "a full exchange has a snapshot of at most the default limit"
    );
};

fn word(out: &mut Vec<u8>, word: u64) {
    out.extend_from_slice(&word.to_le_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    word(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn write<E: Engine>(exchange: &Exchange<E>, out: &mut Vec<u8>) {
    word(out, VERSION);
    word(out, exchange.symbols.len() as u64);
    for symbol in &exchange.symbols {
        text(out, &symbol.name);
    }
    let Totals {
        orders,
        arrivals,
        trades,
        trade_hash,
    } = exchange.totals;
    let last = exchange.last;
    for number in [
        orders,
        arrivals,
        trades,
        trade_hash.0,
        exchange.session_sum,
        exchange.feed.next,
        last.0,
        last.1.into(),
    ] {
        word(out, number);
    }
    let mut live: Vec<(&u64, &Live)> = exchange.live.iter().collect();
    live.sort_unstable_by_key(|(_, live)| live.arrival);
    word(out, live.len() as u64);
    for (id, live) in live {
        write_live(out, *id, live);
    }
    word(out, exchange.sessions.list.len() as u64);
    for session in &exchange.sessions.list {
        text(out, &session.comp);
        word(out, session.in_next);
        word(out, session.out_next);
        word(out, session.reports.len() as u64);
        for (number, report) in &session.reports {
            word(out, *number);
            report.encode(out);
        }
    }
}

fn write_live(out: &mut Vec<u8>, id: u64, live: &Live) {
    let order = Order {
        kind: Kind::New,
        side: live.side,
        order_type: live.order_type,
        force: live.force,
        symbol: live.symbol,
        session: live.session,
        price: live.price,
        quantity: live.quantity,
        name: live.name,
        original: Name::NONE,
        number: 0,
    };
    out.extend_from_slice(&order.encode());
    for number in [id, live.leaves, live.filled, live.notional, live.arrival] {
        word(out, number);
    }
}

/// What is still to be read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], RestoreError> {
        let (bytes, rest) = self
            .0
            .split_at_checked(len)
            .ok_or_else(|| bad("it ends too early"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn word(&mut self) -> Result<u64, RestoreError> {
        Ok(u64::from_le_bytes(
            self.bytes(8)?.try_into().expect("eight bytes"),
        ))
    }

    fn count(&mut self, max: usize, what: &str) -> Result<usize, RestoreError> {
        let count = self.word()?;
        match usize::try_from(count) {
            Ok(count) if count <= max => Ok(count),
            _ => Err(bad(&format!("{count} {what}, more than {max}"))),
        }
    }

    fn text(&mut self) -> Result<&'a str, RestoreError> {
        let len = self.count(COMP_BYTES_MAX, "bytes of a name")?;
        std::str::from_utf8(self.bytes(len)?).map_err(|_| bad("a name is no text"))
    }
}

fn bad(what: &str) -> RestoreError {
    RestoreError(format!("{what} (the state of an exchange)"))
}

/// The state in the bytes, hosted as `old` is.
pub(super) fn read<E: Engine>(
    old: &Exchange<E>,
    bytes: &[u8],
) -> Result<Exchange<E>, RestoreError> {
    let mut rest = Rest(bytes);
    if rest.word()? != VERSION {
        return Err(bad("it is none of this version"));
    }
    let count = rest.count(super::SYMBOLS_MAX, "symbols")?;
    let names: Result<Vec<&str>, RestoreError> = (0..count).map(|_| rest.text()).collect();
    let names = names?;
    let ours: Vec<&str> = old.symbols.iter().map(|symbol| &*symbol.name).collect();
    if names != ours {
        return Err(bad(&format!(
            "its symbols are {}; this replica was started with {}: start all with the same",
            names.join(","),
            ours.join(",")
        )));
    }
    let mut new = Exchange::<E>::new(names).map_err(|error| bad(&error.to_string()))?;
    new.totals = Totals {
        orders: rest.word()?,
        arrivals: rest.word()?,
        trades: rest.word()?,
        trade_hash: TradeHash(rest.word()?),
    };
    new.session_sum = rest.word()?;
    let wanted = old.feed.wanted;
    new.feed = Feed::new(rest.word()?);
    new.feed.wanted = wanted;
    new.last.0 = rest.word()?;
    new.last.1 = u32::try_from(rest.word()?).map_err(|_| bad("too many fills in an entry"))?;
    let orders = rest.count(ORDERS_MAX, "orders")?;
    let mut arrival = 0;
    for _ in 0..orders {
        let (id, live) = read_live(&mut rest)?;
        if live.arrival <= arrival {
            return Err(bad("orders do not stand in the order of their arrival"));
        }
        arrival = live.arrival;
        put(&mut new, id, live)?;
    }
    let sessions = rest.count(SESSIONS_MAX, "sessions")?;
    for _ in 0..sessions {
        let session = read_session(&mut rest)?;
        new.sessions.push(session);
    }
    if !rest.0.is_empty() {
        return Err(bad("something follows"));
    }
    new.generation = old.generation + 1;
    new.recorded = old.recorded.as_ref().map(|_| Vec::new());
    Ok(new)
}

fn read_live(rest: &mut Rest<'_>) -> Result<(u64, Live), RestoreError> {
    let order = Order::decode(rest.bytes(ORDER_BYTES)?).ok_or_else(|| bad("an order is none"))?;
    let id = rest.word()?;
    Ok((
        id,
        Live {
            session: order.session,
            name: order.name,
            symbol: order.symbol,
            side: order.side,
            order_type: order.order_type,
            force: order.force,
            price: order.price,
            quantity: order.quantity,
            leaves: rest.word()?,
            filled: rest.word()?,
            notional: rest.word()?,
            arrival: rest.word()?,
        },
    ))
}

/// Lets an order rest again.
fn put<E: Engine>(new: &mut Exchange<E>, id: u64, live: Live) -> Result<(), RestoreError> {
    let symbol = new.symbols.get_mut(usize::from(live.symbol));
    let symbol = symbol.ok_or_else(|| bad("an order of no symbol"))?;
    if !is_price(live.price) || !is_quantity(live.leaves) {
        return Err(bad("an order with no price or no quantity"));
    }
    let incoming = Incoming {
        id,
        side: live.side,
        price: live.price,
        quantity: live.leaves,
        force: Force::Day,
    };
    let mut fills = Vec::new();
    match symbol.book.submit(&incoming, &mut fills) {
        Ok(rests) if rests == live.leaves && fills.is_empty() => {}
        _ => return Err(bad("an order that rested does not rest again")),
    }
    new.live_sum = new.live_sum.wrapping_add(live.hash(id));
    let again = new.names.insert((live.session, live.name), id);
    if again.is_some() || new.live.insert(id, live).is_some() {
        return Err(bad("an order stands twice"));
    }
    Ok(())
}

fn read_session(rest: &mut Rest<'_>) -> Result<Session, RestoreError> {
    let comp = rest.text()?;
    let mut session = Session::new(session_number(comp), comp);
    session.in_next = rest.word()?;
    session.out_next = rest.word()?;
    for _ in 0..rest.count(REPORTS_KEPT, "reports")? {
        let number = rest.word()?;
        let bytes = rest.bytes(REPORT_BYTES)?.try_into().expect("its length");
        let report = Report::decode(bytes).ok_or_else(|| bad("a report is none"))?;
        session.reports.push_back((number, report));
    }
    Ok(session)
}
