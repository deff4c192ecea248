// What the log carries and what trades are compared by: the records of apps/exchange/src/order.rs, which explains them.
#ifndef MU_EXCHANGE_ORDER_HPP
#define MU_EXCHANGE_ORDER_HPP

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

namespace exchange {

constexpr std::size_t ORDER_BYTES = 80;
constexpr std::size_t TRADE_BYTES = 80;
constexpr std::size_t NAME_BYTES = 20;
constexpr std::uint64_t PRICE_MAX = 1999999999;
constexpr std::uint64_t QUANTITY_MAX = 1000000;

using Name = std::array<char, NAME_BYTES>;

enum class Kind : std::uint8_t { New = 1, Cancel = 2, Replace = 3 };
enum class Side : std::uint8_t { Buy = 1, Sell = 2 };
enum class Force : std::uint8_t { Day = 1, ImmediateOrCancel = 2, FillOrKill = 3 };

inline std::uint64_t word(const char* at, std::size_t bytes = 8) {
  std::uint64_t value = 0;
  for (std::size_t n = bytes; n-- > 0;) value = value << 8 | static_cast<unsigned char>(at[n]);
  return value;
}

inline void put(char* at, std::uint64_t value, std::size_t bytes = 8) {
  for (std::size_t n = 0; n < bytes; n++) at[n] = static_cast<char>(value >> (8 * n));
}

struct Order {
  Kind kind{};
  Side side{};
  bool market = false;
  Force force{};
  std::uint16_t symbol = 0;
  std::uint64_t session = 0, price = 0, quantity = 0;
  Name name{}, original{};

  // Nothing if the bytes are no order.
  static std::optional<Order> decode(std::string_view bytes) {
    if (bytes.size() != ORDER_BYTES) return std::nullopt;
    const char* at = bytes.data();
    const auto within = [&](std::size_t offset, char most) { return at[offset] >= 1 && at[offset] <= most; };
    if (!within(0, 3) || !within(1, 2) || !within(2, 2) || !within(3, 3)) return std::nullopt;
    Order order;
    order.kind = static_cast<Kind>(at[0]);
    order.side = static_cast<Side>(at[1]);
    order.market = at[2] == 2;
    order.force = static_cast<Force>(at[3]);
    order.symbol = static_cast<std::uint16_t>(word(at + 4, 2));
    order.session = word(at + 8);
    order.price = word(at + 16);
    order.quantity = word(at + 24);
    std::memcpy(order.name.data(), at + 32, NAME_BYTES);
    std::memcpy(order.original.data(), at + 52, NAME_BYTES);
    return order;
  }
};

// Who trades: a session and its name for the order.
struct Party {
  std::uint64_t session;
  Name name;
};

struct Trade {
  std::uint16_t symbol;
  Side side;  // of the taker
  std::uint64_t price, quantity;
  Party taker, maker;

  std::array<char, TRADE_BYTES> encode() const {
    std::array<char, TRADE_BYTES> out{};
    put(&out[0], symbol, 2);
    out[2] = static_cast<char>(side);
    put(&out[8], price);
    put(&out[16], quantity);
    put(&out[24], taker.session);
    std::memcpy(&out[32], taker.name.data(), NAME_BYTES);
    put(&out[52], maker.session);
    std::memcpy(&out[60], maker.name.data(), NAME_BYTES);
    return out;
  }
};

// FNV-1a over 64-bit words for trades, over bytes for texts.
struct Hash {
  std::uint64_t value = 0xcbf29ce484222325;
  void add(std::uint64_t more) { value = (value ^ more) * 0x100000001b3; }
  void add_words(const std::array<char, TRADE_BYTES>& record) {
    for (std::size_t at = 0; at < TRADE_BYTES; at += 8) add(word(&record[at]));
  }
  void add_text(std::string_view text) {
    for (const char c : text) add(static_cast<unsigned char>(c));
  }
};

}  // namespace exchange

#endif  // MU_EXCHANGE_ORDER_HPP
