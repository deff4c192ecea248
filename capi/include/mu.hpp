// libmu for C++17: the C ABI of mu.h with destructors and exceptions in their place. Header only; see docs/capi.md.
//
//   class Counter : public mu::StateMachine { ... apply, save, load ... };
//   Counter counter;
//   mu::Replica replica = mu::Replica::open_file("cluster.toml", mu::Options{}.id(0), counter);
//   mu::Outcome outcome = replica.propose(client, sequence, "command");
#ifndef MU_HPP
#define MU_HPP

#include <chrono>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "mu.h"

namespace mu {

/// A call that did not end well and of which no outcome has to be handled.
class Error : public std::runtime_error {
 public:
  explicit Error(mu_result code) : std::runtime_error(words(code)), code_(code) {}
  mu_result code() const noexcept { return code_; }

 private:
  static std::string words(mu_result code) {
    const char* last = mu_last_error();
    return *last != 0 ? last : mu_strerror(code);
  }
  mu_result code_;
};

inline void check(mu_result code) {
  if (code != MU_OK) throw Error(code);
}

inline const std::uint8_t* bytes_of(std::string_view text) {
  return reinterpret_cast<const std::uint8_t*>(text.data());
}

/// Where a reply or a state is written to. Good inside of the callback that got it.
class Sink {
 public:
  explicit Sink(mu_sink sink) noexcept : sink_(sink) {}
  void write(std::string_view bytes) const { check(mu_write(sink_, bytes_of(bytes), bytes.size())); }
  void write(const void* data, std::size_t len) const {
    check(mu_write(sink_, static_cast<const std::uint8_t*>(data), len));
  }

 private:
  mu_sink sink_;
};

/// Where a state is read from. Good inside of the callback that got it.
class Source {
 public:
  explicit Source(mu_source source) noexcept : source_(source) {}
  std::size_t left() const {
    std::size_t count = 0;
    check(mu_left(source_, &count));
    return count;
  }
  /// Reads at most so many bytes, and says how many.
  std::size_t read(void* data, std::size_t capacity) const {
    std::size_t count = 0;
    check(mu_read(source_, static_cast<std::uint8_t*>(data), capacity, &count));
    return count;
  }
  /// Everything that is left.
  std::string all() const {
    std::string text(left(), '\0');
    text.resize(read(text.data(), text.size()));
    return text;
  }

 private:
  mu_source source_;
};

/// A decided command.
struct Command {
  std::uint64_t index, time_ns, client, sequence;
  std::uint32_t place, flags;
  std::string_view bytes;
  /// This replica leads: what is told to the world is its to tell.
  bool leads() const noexcept { return (flags & MU_APPLY_LEADER) != 0; }
  /// This replica is catching up.
  bool replays() const noexcept { return (flags & MU_APPLY_REPLAY) != 0; }
};

/// The application. Deterministic: every replica applies every command and comes to the same state and reply. An
/// exception out of `apply` or `save` ends the replica; out of `load` it means that the state is refused.
class StateMachine {
 public:
  virtual ~StateMachine() = default;
  virtual void apply(const Command& command, Sink& reply) = 0;
  virtual void save(Sink& out) = 0;
  virtual void load(Source& in) = 0;
  virtual std::uint64_t digest() noexcept { return 0; }
  virtual void role(const struct mu_role&) noexcept {}
  virtual void fatal(mu_result, const char*) noexcept {}
};

/// How a replica is opened.
class Options {
 public:
  Options() { check(mu_options_init(&options_)); }
  Options& id(std::uint8_t id) noexcept { return options_.id = id, *this; }
  /// An operator's word, for the first start and no other.
  Options& form(bool form) noexcept { return options_.form = form ? 1 : 0, *this; }
  /// The program's own thread replicates.
  Options& step(bool step) noexcept {
    return options_.mode = step ? MU_MODE_STEP : MU_MODE_THREADED, *this;
  }
  const mu_options& get() const noexcept { return options_; }

 private:
  mu_options options_{};
};

/// How a command ended.
struct Outcome {
  mu_result code = MU_UNKNOWN;
  std::uint64_t index = 0;
  std::string reply;
  std::string error;

  /// It is decided, applied, and never lost.
  bool committed() const noexcept {
    return code == MU_OK || code == MU_TRUNCATED || code == MU_REPLY_GONE;
  }
  /// It may be decided, now or later: only a retry with the same client and sequence is safe.
  bool unknown() const noexcept { return code == MU_UNKNOWN || code == MU_TIMED_OUT || code == MU_INTERNAL; }
};

using Timeout = std::optional<std::chrono::microseconds>;

/// A replica. Closed by its destructor, after which no callback runs; not to be destroyed inside of a callback.
class Replica {
 public:
  static Replica open_file(const std::string& path, const Options& options, StateMachine& machine) {
    Replica replica;
    const mu_callbacks callbacks = callbacks_of(machine);
    check(mu_open_file(path.c_str(), &options.get(), &callbacks, &replica.handle_));
    return replica;
  }
  static Replica open_text(const std::string& config, const std::string& folder, const Options& options,
                           StateMachine& machine) {
    Replica replica;
    const mu_callbacks callbacks = callbacks_of(machine);
    check(mu_open_text(config.c_str(), folder.c_str(), &options.get(), &callbacks, &replica.handle_));
    return replica;
  }

  Replica(Replica&& other) noexcept
      : handle_(std::exchange(other.handle_, 0)), capacity_(other.capacity_) {}
  Replica& operator=(Replica&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(capacity_, other.capacity_);
    return *this;
  }
  Replica(const Replica&) = delete;
  Replica& operator=(const Replica&) = delete;
  ~Replica() {
    if (handle_ != 0) mu_close(handle_);
  }

  /// The longest reply that is expected; a longer one is cut, with the code MU_TRUNCATED.
  void reply_capacity(std::size_t bytes) noexcept { capacity_ = bytes; }

  Outcome propose(std::uint64_t client, std::uint64_t sequence, std::string_view command,
                  Timeout timeout = std::nullopt) const {
    return outcome([&](mu_reply* reply) {
      return mu_propose(handle_, client, sequence, bytes_of(command), command.size(), us(timeout), reply);
    });
  }
  /// Throws what says that it was not taken: MU_BUSY, MU_NOT_LEADER and so on.
  mu_ticket submit(std::uint64_t client, std::uint64_t sequence, std::string_view command) const {
    mu_ticket ticket = 0;
    check(mu_submit(handle_, client, sequence, bytes_of(command), command.size(), &ticket));
    return ticket;
  }
  /// MU_TIMED_OUT: there is no outcome yet.
  Outcome poll(mu_ticket ticket, Timeout timeout = std::chrono::microseconds(0)) const {
    return outcome([&](mu_reply* reply) { return mu_poll(handle_, ticket, us(timeout), reply); });
  }
  void forget(mu_ticket ticket) const { check(mu_forget(handle_, ticket)); }

  mu_result barrier(Timeout timeout = std::nullopt) const { return mu_barrier(handle_, us(timeout)); }
  mu_result step(Timeout timeout = std::chrono::microseconds(0), int fd = -1) const {
    return mu_step(handle_, us(timeout), fd);
  }
  void wake() const { check(mu_wake(handle_)); }

  /// Gives the successor.
  std::uint8_t transfer(std::uint8_t to = MU_NO_LEADER) const {
    std::uint8_t chosen = MU_NO_LEADER;
    check(mu_transfer(handle_, to, &chosen));
    return chosen;
  }
  std::optional<std::uint8_t> leader() const {
    std::uint8_t leader = MU_NO_LEADER;
    check(mu_get_leader(handle_, &leader));
    return leader == MU_NO_LEADER ? std::nullopt : std::optional<std::uint8_t>(leader);
  }
  /// The client address of a member; empty if the configuration has none.
  std::string address(std::uint8_t member) const {
    char text[64] = "";
    check(mu_get_address(handle_, member, text, sizeof text));
    return text;
  }
  mu_status status() const {
    mu_status status{};
    check(mu_get_status(handle_, &status));
    return status;
  }
  std::string metrics() const {
    std::string text(1 << 16, '\0');
    std::size_t len = 0;
    mu_result code;
    while ((code = mu_get_metrics(handle_, text.data(), text.size(), &len)) == MU_TRUNCATED) text.resize(len * 2);
    check(code);
    text.resize(len);
    return text;
  }
  void stop() const { check(mu_stop(handle_)); }
  mu_handle handle() const noexcept { return handle_; }

 private:
  Replica() = default;

  static std::int64_t us(Timeout timeout) noexcept { return timeout ? timeout->count() : -1; }

  template <class Call>
  Outcome outcome(Call call) const {
    Outcome outcome;
    outcome.reply.resize(capacity_);
    mu_reply reply{};
    reply.data = reinterpret_cast<std::uint8_t*>(outcome.reply.data());
    reply.capacity = capacity_;
    outcome.code = call(&reply);
    outcome.index = reply.index;
    outcome.reply.resize(reply.len < capacity_ ? reply.len : capacity_);
    if (outcome.code != MU_OK) outcome.error = Error(outcome.code).what();
    return outcome;
  }

  static StateMachine& machine_of(void* user) noexcept { return *static_cast<StateMachine*>(user); }

  /// Nothing is thrown into the library.
  template <class Call>
  static int guarded(Call call) noexcept {
    try {
      call();
      return 0;
    } catch (...) {
      return 1;
    }
  }

  static mu_callbacks callbacks_of(StateMachine& machine) noexcept {
    mu_callbacks callbacks{};
    callbacks.size = sizeof callbacks;
    callbacks.user = &machine;
    callbacks.apply = [](void* user, const mu_command* c, mu_sink sink) {
      return guarded([&] {
        const char* data = reinterpret_cast<const char*>(c->data);
        const Command command{c->index, c->time_ns, c->client, c->sequence,
                              c->place, c->flags,   std::string_view(data, c->len)};
        Sink reply(sink);
        machine_of(user).apply(command, reply);
      });
    };
    callbacks.save = [](void* user, mu_sink sink) {
      return guarded([&] {
        Sink out(sink);
        machine_of(user).save(out);
      });
    };
    callbacks.load = [](void* user, mu_source source) {
      return guarded([&] {
        Source in(source);
        machine_of(user).load(in);
      });
    };
    callbacks.digest = [](void* user) { return machine_of(user).digest(); };
    callbacks.role = [](void* user, const struct mu_role* role) { machine_of(user).role(*role); };
    callbacks.fatal = [](void* user, mu_result code, const char* text) { machine_of(user).fatal(code, text); };
    return callbacks;
  }

  mu_handle handle_ = 0;
  std::size_t capacity_ = 4096;
};

}  // namespace mu

#endif  // MU_HPP
