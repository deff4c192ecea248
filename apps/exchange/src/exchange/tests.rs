use super::*;
use crate::engine::OrderBookRs;
use crate::flow::{Flow, Mix};
use crate::order::Kind;

type Ours = Exchange<OrderBookRs>;

fn exchange() -> Ours {
    Ours::new(SYMBOLS)
        .expect("sound symbols")
        .with_trades()
        .with_news()
}

/// Commands as a log gives them: entries with several places each.
fn run(exchange: &mut Ours, flow: &mut Flow, from: u64, count: u64) -> Vec<(TradeId, Trade)> {
    let mut trades = Vec::new();
    for n in from..from + count {
        let (index, place) = (1 + n / 3, (n % 3) as u16);
        exchange.order(index, place, n * 1000, &flow.next_order());
        trades.append(&mut exchange.take_trades());
    }
    trades
}

fn bytes(exchange: &Ours) -> Vec<u8> {
    let mut bytes = Vec::new();
    exchange.snapshot(&mut bytes);
    bytes
}

fn order(session: u64, name: &str, side: Side, price: u64, quantity: u64) -> Order {
    Order {
        kind: Kind::New,
        side,
        order_type: Type::Limit,
        force: Force::Day,
        symbol: 0,
        session,
        price,
        quantity,
        name: Name::text(name.as_bytes()).expect("a name"),
        original: Name::NONE,
        number: 0,
    }
}

fn about(kind: Kind, name: &str, original: &str, price: u64, quantity: u64) -> Order {
    Order {
        kind,
        original: Name::text(original.as_bytes()).expect("a name"),
        ..order(1, name, Side::Buy, price, quantity)
    }
}

/// A session `comp`, logged on.
fn open(exchange: &mut Ours, comp: &str) -> u64 {
    let number = session_number(comp);
    let command = SessionCommand::Open { comp, reset: false };
    let taken = exchange.sessions.run(&command.encode(number, 1));
    assert_eq!(taken.verdict, Verdict::Done);
    number
}

fn whats(exchange: &Ours, session: u64) -> Vec<(What, u64, u64, u64)> {
    let reports = exchange.session(session).expect("opened").reports.iter();
    reports
        .map(|(_, r)| (r.what, r.last_quantity, r.leaves, r.filled))
        .collect()
}

#[test]
fn the_same_orders_give_the_same_trades_books_and_bytes() {
    let mut runs = [7, 7, 8].map(|seed| {
        let mut exchange = exchange();
        let trades = run(&mut exchange, &mut Flow::new(seed, 8, Mix::ALL), 0, 50_000);
        let news = exchange.news();
        (
            trades,
            exchange.books_hash(),
            exchange.digest(),
            news,
            bytes(&exchange),
        )
    });
    assert!(runs[0].0.len() > 5000, "{} trades", runs[0].0.len());
    assert!(runs[0] == runs[1], "two runs of one seed differ");
    assert_ne!(runs[0].1, runs[2].1, "another seed is another book");
    runs[0].0.dedup_by_key(|(id, _)| *id);
    assert_eq!(runs[0].0.len(), runs[1].0.len(), "ids are unique");
}

#[test]
fn a_restored_exchange_goes_on_the_same_ids_included() {
    let mut flow = Flow::new(3, 8, Mix::ALL);
    let mut one = exchange();
    open(&mut one, "A");
    run(&mut one, &mut flow, 0, 40_000);
    let mut other = exchange();
    let snapshot = bytes(&one);
    other.restore(&snapshot).expect("its own snapshot");
    assert_eq!(bytes(&other), snapshot);
    assert_eq!(
        (other.books_hash(), other.digest()),
        (one.books_hash(), one.digest())
    );
    let orders: Vec<Order> = (0..40_000).map(|_| flow.next_order()).collect();
    let mut later = [&mut one, &mut other].map(|exchange| {
        let mut trades = Vec::new();
        exchange.news();
        for (n, order) in (40_000..).zip(&orders) {
            exchange.order(1 + n / 3, (n % 3) as u16, n * 1000, order);
            trades.append(&mut exchange.take_trades());
        }
        (
            trades,
            exchange.books_hash(),
            exchange.digest(),
            exchange.news(),
        )
    });
    assert!(later[0].0.len() > 5000);
    assert!(later[0] == later[1], "what follows a restore differs");
    // The control: one order less in the snapshot's place shows.
    later[1].0.pop();
    assert!(later[0] != later[1]);
}

#[test]
fn replicas_with_other_symbols_or_orders_elsewhere_have_other_digests() {
    let digest = |symbols: &[&'static str], symbol, side| {
        let mut exchange = Ours::new(symbols.iter().copied()).expect("sound symbols");
        let order = Order {
            symbol,
            ..order(1, "a", side, 100, 1)
        };
        exchange.order(1, 0, 0, &order);
        exchange.digest()
    };
    let one = digest(&["A", "B"], 0, Side::Buy);
    assert_eq!(one, digest(&["A", "B"], 0, Side::Buy));
    let others = [
        digest(&["B", "A"], 0, Side::Buy),
        digest(&["A", "C"], 0, Side::Buy),
        digest(&["A", "B", "C"], 0, Side::Buy),
        digest(&["A", "B"], 1, Side::Buy),
        digest(&["A", "B"], 0, Side::Sell),
    ];
    assert!(!others.contains(&one), "{one} {others:?}");
}

#[test]
fn a_snapshot_that_is_none_is_refused_whole() {
    let mut one = exchange();
    open(&mut one, "A");
    run(&mut one, &mut Flow::new(3, 8, Mix::ALL), 0, 500);
    let snapshot = bytes(&one);
    let before = one.digest();
    for len in (0..snapshot.len()).step_by(97) {
        one.restore(&snapshot[..len]).expect_err("cut short");
    }
    let other = Ours::new(["X"])
        .map(|exchange| bytes(&exchange))
        .expect("a symbol");
    let error = one.restore(&other).expect_err("other symbols");
    assert!(
        error.to_string().contains("start all with the same"),
        "{error}"
    );
    assert_eq!(one.digest(), before);
}

#[test]
fn what_cannot_be_an_order_is_refused_with_the_reason() {
    let mut exchange = exchange();
    let good = order(1, "a", Side::Buy, 100, 10);
    assert_eq!(exchange.order(1, 0, 0, &good).verdict, Verdict::Done);
    let bad = [
        (Order { symbol: 8, ..good }, Reason::Symbol),
        (Order { price: 0, ..good }, Reason::Price),
        (
            Order {
                price: crate::order::PRICE_MAX + 1,
                ..good
            },
            Reason::Price,
        ),
        (
            Order {
                order_type: Type::Market,
                ..good
            },
            Reason::Price,
        ),
        (
            Order {
                quantity: 0,
                ..good
            },
            Reason::Quantity,
        ),
        (
            Order {
                quantity: u64::MAX,
                ..good
            },
            Reason::Quantity,
        ),
        (good, Reason::Duplicate),
        (about(Kind::Cancel, "c", "none", 0, 0), Reason::Unknown),
        (about(Kind::Replace, "c", "a", 0, 1), Reason::Price),
        (about(Kind::Replace, "c", "a", 1, 0), Reason::Quantity),
    ];
    for (place, (order, reason)) in (1..).zip(bad) {
        let done = exchange.order(1, place, 0, &order);
        assert_eq!(
            (done.verdict, done.reason),
            (Verdict::Rejected, reason),
            "{order:?}"
        );
    }
    assert_eq!(exchange.resting(), 1);
}

#[test]
fn a_replace_keeps_the_place_only_when_the_order_just_becomes_smaller() {
    let mut exchange = exchange();
    let session = open(&mut exchange, "A");
    let mine = |order: Order| Order { session, ..order };
    let mut place = 0;
    let mut send = |exchange: &mut Ours, order: Order| {
        place += 1;
        exchange.order(1, place, 0, &mine(order))
    };
    for name in ["a", "b", "c"] {
        send(&mut exchange, order(1, name, Side::Buy, 100, 10));
    }
    send(&mut exchange, about(Kind::Replace, "a2", "a", 100, 6));
    send(&mut exchange, about(Kind::Replace, "b2", "b", 100, 12));
    let text = exchange.book_text(0);
    let left: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(2))
        .collect();
    assert_eq!(left, ["6", "10", "12"]);
    // It fills the first one in part, which then cannot become smaller than that.
    exchange.order(2, 0, 0, &order(9, "s", Side::Sell, 100, 4));
    let refused = exchange.order(2, 1, 0, &mine(about(Kind::Replace, "a3", "a2", 100, 4)));
    assert_eq!(refused.reason, Reason::TooLate);
    exchange.order(2, 2, 0, &mine(about(Kind::Cancel, "x", "a2", 0, 0)));
    assert_eq!(
        whats(&exchange, session)[3..],
        [
            (What::Replaced, 0, 6, 0),
            (What::Replaced, 0, 12, 0),
            (What::Trade, 4, 2, 4),
            (What::ReplaceRejected, 0, 2, 4),
            (What::Cancelled, 0, 0, 4),
        ]
    );
    // Better than its price, so it trades at once.
    exchange.order(2, 3, 0, &order(9, "t", Side::Sell, 110, 3));
    let done = exchange.order(2, 4, 0, &mine(about(Kind::Replace, "c2", "c", 110, 10)));
    assert_eq!((done.fills, done.leaves), (1, 7));
}

#[test]
fn a_command_with_a_number_is_carried_out_once_also_after_a_restore() {
    let mut exchange = exchange();
    let session = open(&mut exchange, "A");
    let numbered = |name, number| Order {
        session,
        number,
        ..order(1, name, Side::Buy, 100, 10)
    };
    assert_eq!(
        exchange.order(1, 0, 0, &numbered("a", 2)).verdict,
        Verdict::Done
    );
    let snapshot = bytes(&exchange);
    let mut other = self::exchange();
    other.restore(&snapshot).expect("a snapshot");
    for exchange in [&mut exchange, &mut other] {
        assert_eq!(
            exchange.order(2, 0, 0, &numbered("a", 2)).verdict,
            Verdict::Again
        );
        assert_eq!(
            exchange.order(2, 1, 0, &numbered("c", 4)).verdict,
            Verdict::Gap
        );
        assert_eq!(
            exchange.order(2, 2, 0, &numbered("b", 3)).verdict,
            Verdict::Done
        );
        assert_eq!(exchange.resting(), 2);
        let session = exchange.session(session).expect("opened");
        assert_eq!((session.in_next(), session.out_next()), (4, 4));
        let said = session.report(2).map(|report| report.name);
        assert_eq!(said, Name::text(b"a"), "it can be said again");
        assert_eq!(session.report(1), None, "a logon is no report");
    }
    // The control: without a number the name is all that tells, and a filled order's may come again.
    assert_eq!(
        exchange.order(3, 0, 0, &numbered("z", 0)).verdict,
        Verdict::Done
    );
    let nobody = Order {
        session: 77,
        number: 1,
        ..order(1, "a", Side::Buy, 1, 1)
    };
    assert_eq!(exchange.order(3, 1, 0, &nobody).verdict, Verdict::NoSession);
}

#[test]
fn market_data_adds_up_to_the_books() {
    let mut exchange = exchange();
    run(&mut exchange, &mut Flow::new(11, 8, Mix::ALL), 0, 20_000);
    let news = exchange.news();
    assert_eq!(
        (news.first, news.count),
        (10, itch::blocks(&news.blocks).count() as u64)
    );
    let word = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0_u64, |word, byte| word << 8 | u64::from(*byte))
    };
    let mut shares: HashMap<u64, u64> = HashMap::new();
    for block in itch::blocks(&news.blocks) {
        let (kind, id) = (block[2], word(&block[13..21]));
        match kind {
            b'A' => assert_eq!(shares.insert(id, word(&block[22..26])), None, "added twice"),
            b'D' => assert!(shares.remove(&id).is_some(), "deleted and not there"),
            b'E' | b'X' => {
                let left = shares.get_mut(&id).expect("it was added");
                *left -= word(&block[21..25]);
                if *left == 0 {
                    shares.remove(&id);
                }
            }
            other => panic!("a message of kind {other}"),
        }
    }
    let live: HashMap<u64, u64> = exchange
        .live
        .iter()
        .map(|(id, live)| (*id, live.leaves))
        .collect();
    assert!(live.len() > 200);
    assert_eq!(shares, live);
}
