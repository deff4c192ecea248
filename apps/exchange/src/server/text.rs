//! Lines of text for people and tests, at the same port: `status`, `index`, `hash`, `book SYMBOL`, `quit`.
//!
//! `hash` and `book` look at every order, which takes a while. So each client has one line answered in a turn, and the
//! replica goes on with its log in between.

use mu::host::Direct;
use mu_verbs::Context;
use serde::Serialize;

use super::conn::Conn;
use crate::engine::Engine;
use crate::exchange::Exchange;

/// Bytes of the longest line.
const LINE_BYTES_MAX: usize = 256;

/// What a replica of the exchange says of itself. Hashes are hexadecimal, since JSON has no 64-bit numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Picture {
    /// The replica.
    pub id: u8,
    /// Its role.
    pub role: String,
    /// Who leads.
    pub leader: Option<u8>,
    /// The last entry applied.
    pub index: u64,
    /// Orders, refused ones included.
    pub orders: u64,
    /// Trades.
    pub trades: u64,
    /// Over the trades' records.
    pub trade_hash: String,
    /// Orders that rest.
    pub resting: usize,
}

/// The picture of a replica.
pub fn picture<C: Context, E: Engine>(direct: &Direct<C, Exchange<E>>) -> Picture {
    let (status, exchange) = (direct.status(), direct.app());
    let totals = exchange.totals();
    Picture {
        id: status.id,
        role: status.role,
        leader: status.leader,
        index: direct.applied(),
        orders: totals.orders,
        trades: totals.trades,
        trade_hash: format!("{:016x}", totals.trade_hash.0),
        resting: exchange.resting(),
    }
}

/// What `hash` answers: over the books with every order's position in its queue.
pub fn books_hash<E: Engine>(exchange: &Exchange<E>) -> String {
    format!("{:016x}", exchange.books_hash())
}

/// Where a line ends.
pub(super) fn end_of_line(waiting: &[u8]) -> Option<usize> {
    let longest = waiting.iter().take(LINE_BYTES_MAX);
    longest.copied().position(|byte| byte == b'\n')
}

/// Answers a line, if there is a whole one and room for the answer. Whether there was.
pub(super) fn line<C: Context, E: Engine>(
    conn: &mut Conn,
    direct: &Direct<C, Exchange<E>>,
) -> bool {
    if !conn.may_go_on() {
        return false;
    }
    let waiting = conn.frames.waiting();
    let Some(end) = end_of_line(waiting) else {
        conn.closing |= waiting.len() >= LINE_BYTES_MAX;
        return false;
    };
    let line = String::from_utf8_lossy(&waiting[..end]).trim().to_owned();
    conn.frames.skip(end + 1);
    let answer = match line.split_once(' ') {
        None if line == "status" => {
            serde_json::to_string(&picture(direct)).expect("plain fields") + "\n"
        }
        None if line == "hash" => books_hash(direct.app()) + "\n",
        None if line == "index" => format!("{}\n", direct.applied()),
        Some(("book", symbol)) => match direct.app().symbol(symbol) {
            Some(number) => direct.app().book_text(number) + "end\n",
            None => "no such symbol\n".into(),
        },
        None if line == "quit" => {
            conn.closing = true;
            String::new()
        }
        _ => "status, index, hash, book SYMBOL, quit; or FIX 4.4\n".into(),
    };
    conn.out.extend_from_slice(answer.as_bytes());
    true
}
