//! Orders of the common subset of all engines, and the trades that orderbook-rs makes of them: what another engine is
//! compared with.
//!
//!     common SEED ORDERS FILE
//!
//! writes the orders to the file and prints one JSON object: orders, trades, their hash, and a hash over the books.

use std::fs::File;
use std::io::{BufWriter, Write};

use mu_exchange::engine::OrderBookRs;
use mu_exchange::exchange::{Exchange, SYMBOLS};
use mu_exchange::flow::{Flow, Mix};

/// FNV-1a.
fn hash(bytes: &[u8], from: u64) -> u64 {
    bytes.iter().fold(from, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().collect();
    let [_, seed, orders, path] = &words[..] else {
        return Err("usage: common SEED ORDERS FILE".into());
    };
    let orders: u64 = orders.parse()?;
    let symbols = u16::try_from(SYMBOLS.len())?;
    let mut flow = Flow::new(seed.parse()?, symbols, Mix::COMMON);
    let mut exchange = Exchange::<OrderBookRs>::new(SYMBOLS)?;
    let mut file = BufWriter::new(File::create(path)?);
    for index in 1..=orders {
        let order = flow.next_order();
        file.write_all(&order.encode())?;
        exchange.order(index, 0, index, &order);
    }
    file.flush()?;
    let mut books = 0xcbf2_9ce4_8422_2325;
    for symbol in 0..symbols {
        for line in exchange.book_text(symbol).lines() {
            // The last word is the engine's own number of the order.
            let told = line.rsplit_once(' ').map_or(line, |(told, _)| told);
            books = hash(format!("{symbol} {told}\n").as_bytes(), books);
        }
    }
    let totals = exchange.totals();
    println!(
        "{{\"orders\":{orders},\"trades\":{},\"trade_hash\":\"{:x}\",\"book_hash\":\"{books:x}\",\"resting\":{}}}",
        totals.trades,
        totals.trade_hash.0,
        exchange.resting()
    );
    Ok(())
}
