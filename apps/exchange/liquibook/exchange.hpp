// The replicated exchange around Liquibook's order books: limit orders, immediate or cancel, fill or kill, cancels.
//
// The rules beside the matching are those of apps/exchange: a name that is live is refused, as are prices and
// quantities out of range; a cancel of what is not there does nothing. Market orders and replaces are refused, since
// the engines do not have them alike.
#ifndef MU_EXCHANGE_EXCHANGE_HPP
#define MU_EXCHANGE_EXCHANGE_HPP

#include <book/order.h>
#include <book/order_book.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "mu.hpp"
#include "order.hpp"

namespace exchange {

// An order as Liquibook wants one.
class Resting : public liquibook::book::Order {
 public:
  Resting(const exchange::Order& order, std::uint64_t quantity) : order(order), quantity_(quantity) {}
  virtual ~Resting() = default;
  bool is_buy() const override { return order.side == Side::Buy; }
  liquibook::book::Price price() const override { return order.price; }
  liquibook::book::Quantity order_qty() const override { return quantity_; }

  const exchange::Order order;

 private:
  const std::uint64_t quantity_;
};

using OrderPtr = std::shared_ptr<Resting>;

struct Fill {
  OrderPtr maker;
  std::uint64_t price, quantity;
};

// A book that keeps the fills of the order that is being added.
class Book : public liquibook::book::OrderBook<OrderPtr> {
 public:
  virtual ~Book() = default;
  std::vector<Fill> fills;

 protected:
  // What Liquibook says of the two being filled is not looked at: its flag for both is set by either.
  void on_fill(const OrderPtr&, const OrderPtr& maker, liquibook::book::Quantity quantity,
               liquibook::book::Price price, bool, bool) override {
    fills.push_back({maker, price, quantity});
  }
};

class Exchange : public mu::StateMachine {
 public:
  static constexpr std::size_t SYMBOLS = 8;

  Exchange() { clear(); }

  // Replies with the records of the trades.
  void apply(const mu::Command& command, mu::Sink& reply) override {
    orders_++;
    const std::optional<Order> order = Order::decode(command.bytes);
    if (!order) return;
    if (order->kind == Kind::New) {
      enter(*order, reply);
    } else if (order->kind == Kind::Cancel) {
      cancel(*order);
    }
  }

  // Each book's bids, then its asks, the best first and at one price in the order of the queue.
  void save(mu::Sink& out) override {
    char head[32];
    put(head, orders_);
    put(head + 8, trades_);
    put(head + 16, hash_.value);
    put(head + 24, live_.size());
    out.write(head, sizeof head);
    each([&](const Order& order, std::uint64_t open) {
      char record[64] = {};
      record[0] = static_cast<char>(order.side);
      put(record + 2, order.symbol, 2);
      put(record + 8, order.session);
      put(record + 16, order.price);
      put(record + 24, open);
      std::memcpy(record + 32, order.name.data(), NAME_BYTES);
      out.write(record, sizeof record);
    });
  }

  void load(mu::Source& in) override {
    const std::string bytes = in.all();
    const std::size_t head = 32, record = 64;
    if (bytes.size() < head || bytes.size() != head + word(&bytes[24]) * record) {
      throw std::runtime_error("no state of this exchange");
    }
    clear();
    orders_ = word(&bytes[0]);
    trades_ = word(&bytes[8]);
    hash_.value = word(&bytes[16]);
    for (std::size_t at = head; at < bytes.size(); at += record) {
      Order order;
      order.kind = Kind::New;
      order.force = Force::Day;
      order.side = static_cast<Side>(bytes[at]);
      order.symbol = static_cast<std::uint16_t>(word(&bytes[at + 2], 2));
      order.session = word(&bytes[at + 8]);
      order.price = word(&bytes[at + 16]);
      order.quantity = word(&bytes[at + 24]);
      std::memcpy(order.name.data(), &bytes[at + 32], NAME_BYTES);
      if (order.symbol >= SYMBOLS) throw std::runtime_error("a symbol that is not there");
      const auto resting = std::make_shared<Resting>(order, order.quantity);
      live_[key(order.session, order.name)] = {resting, order.quantity};
      books_[order.symbol]->add(resting);
      if (!books_[order.symbol]->fills.empty()) throw std::runtime_error("a book that crosses itself");
    }
  }

  std::uint64_t digest() noexcept override { return hash_.value ^ (trades_ << 40) ^ (live_.size() << 20) ^ orders_; }

  void fatal(mu_result, const char* text) noexcept override {
    std::cerr << "stopped: " << text << std::endl;
    std::_Exit(3);
  }

  std::uint64_t orders() const { return orders_; }
  std::uint64_t trades() const { return trades_; }
  std::uint64_t trade_hash() const { return hash_.value; }

  // Over every order that rests: side, price, quantity, in the order of the queues. As examples/common.rs makes it.
  std::uint64_t book_hash() const {
    Hash hash;
    each([&](const Order& order, std::uint64_t open) {
      char line[96];
      std::snprintf(line, sizeof line, "%u %s %llu.%04llu %llu\n", unsigned{order.symbol},
                    order.side == Side::Buy ? "buy" : "sell", static_cast<unsigned long long>(order.price / 10000),
                    static_cast<unsigned long long>(order.price % 10000), static_cast<unsigned long long>(open));
      hash.add_text(line);
    });
    return hash.value;
  }

 private:
  struct Live {
    OrderPtr order;
    std::uint64_t open;
  };
  using Key = std::pair<std::uint64_t, Name>;

  static Key key(std::uint64_t session, const Name& name) { return {session, name}; }

  void clear() {
    books_.clear();
    live_.clear();
    for (std::size_t n = 0; n < SYMBOLS; n++) books_.push_back(std::make_unique<Book>());
  }

  void enter(const Order& order, mu::Sink& reply) {
    const bool fits = order.symbol < SYMBOLS && !order.market && order.price >= 1 && order.price <= PRICE_MAX &&
                      order.quantity >= 1 && order.quantity <= QUANTITY_MAX;
    if (!fits || live_.count(key(order.session, order.name)) != 0) return;
    Book& book = *books_[order.symbol];
    const OrderPtr taker = std::make_shared<Resting>(order, order.quantity);
    book.fills.clear();
    book.add(taker, conditions(order.force));
    std::uint64_t open = order.quantity;
    for (const Fill& fill : book.fills) {
      open -= fill.quantity;
      report(order, fill, reply);
    }
    if (open > 0 && order.force == Force::Day) live_[key(order.session, order.name)] = {taker, open};
  }

  static liquibook::book::OrderConditions conditions(Force force) {
    switch (force) {
      case Force::ImmediateOrCancel: return liquibook::book::oc_immediate_or_cancel;
      case Force::FillOrKill: return liquibook::book::oc_fill_or_kill;
      case Force::Day: break;
    }
    return liquibook::book::oc_no_conditions;
  }

  void report(const Order& taker, const Fill& fill, mu::Sink& reply) {
    const Order& maker = fill.maker->order;
    const Trade trade{taker.symbol, taker.side, fill.price, fill.quantity, {taker.session, taker.name},
                      {maker.session, maker.name}};
    const auto record = trade.encode();
    trades_++;
    hash_.add_words(record);
    reply.write(record.data(), record.size());
    const auto live = live_.find(key(maker.session, maker.name));
    live->second.open -= fill.quantity;
    if (live->second.open == 0) live_.erase(live);
  }

  void cancel(const Order& order) {
    const auto live = live_.find(key(order.session, order.original));
    if (live == live_.end()) return;
    books_[live->second.order->order.symbol]->cancel(live->second.order);
    live_.erase(live);
  }

  template <class Call>
  void each(Call call) const {
    for (const auto& book : books_) {
      for (const auto* side : {&book->bids(), &book->asks()}) {
        for (const auto& [price, tracker] : *side) call(tracker.ptr()->order, tracker.open_qty());
      }
    }
  }

  std::vector<std::unique_ptr<Book>> books_;
  std::map<Key, Live> live_;
  std::uint64_t orders_ = 0, trades_ = 0;
  Hash hash_;
};

}  // namespace exchange

#endif  // MU_EXCHANGE_EXCHANGE_HPP
