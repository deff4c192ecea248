// mu.hpp: what is thrown out of a callback does not reach the library, a replica moves and closes itself.
#include <cstdlib>
#include <iostream>
#include <type_traits>

#include "mu.hpp"

using namespace std::chrono_literals;

#define EXPECT(holds)                                                               \
  do {                                                                              \
    if (!(holds)) {                                                                 \
      std::cerr << "line " << __LINE__ << ": " << #holds << ": " << mu_last_error() << '\n'; \
      std::exit(1);                                                                 \
    }                                                                               \
  } while (false)

namespace {

class Machine : public mu::StateMachine {
 public:
  void apply(const mu::Command& command, mu::Sink& reply) override {
    if (command.bytes == "throw") throw std::runtime_error("as asked");
    if (command.bytes == "misuse") {
      // The sink of this callback, kept for later.
      kept = reply;
      try {
        replica->stop();
      } catch (const mu::Error& error) {
        refused = error.code();
      }
    }
    count++;
    reply.write(std::string(command.bytes) + '!');
  }
  void save(mu::Sink& out) override { out.write(std::to_string(count)); }
  void load(mu::Source& in) override { count = std::stoull(in.all()); }
  void fatal(mu_result code, const char* text) noexcept override {
    fatal_code = code;
    fatal_text = text;
  }

  std::uint64_t count = 0;
  mu::Replica* replica = nullptr;
  mu::Sink kept{0};
  mu_result refused = MU_OK, fatal_code = MU_OK;
  std::string fatal_text;
};

mu::Outcome propose(const mu::Replica& replica, std::uint64_t sequence, std::string_view command) {
  for (;;) {
    mu::Outcome outcome = replica.propose(1, sequence, command, 5s);
    if (outcome.code != MU_NOT_LEADER) return outcome;
    EXPECT(replica.step(1ms) == MU_OK);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  static_assert(!std::is_copy_constructible_v<mu::Replica> && std::is_nothrow_move_constructible_v<mu::Replica>);
  Machine machine;
  try {
    mu::Replica::open_file("nowhere.toml", mu::Options(), machine);
    return 3;
  } catch (const mu::Error& error) {
    EXPECT(error.code() == MU_CONFIG && std::string(error.what()).find("nowhere") != std::string::npos);
  }
  mu_handle closed = 0;
  {
    mu::Replica first = mu::Replica::open_file(argv[1], mu::Options().form(true).step(true), machine);
    mu::Replica replica = std::move(first);
    machine.replica = &replica;
    closed = replica.handle();
    EXPECT(first.handle() == 0);
    const mu::Outcome outcome = propose(replica, 1, "hello");
    EXPECT(outcome.committed() && outcome.reply == "hello!" && outcome.index > 0);
    EXPECT(replica.propose(1, 1, "hello").reply == "hello!" && machine.count == 1);
    EXPECT(propose(replica, 2, "misuse").committed() && machine.refused == MU_MISUSE);
    try {
      machine.kept.write("late");
      return 4;
    } catch (const mu::Error& error) {
      EXPECT(error.code() == MU_MISUSE);
    }
    replica.reply_capacity(3);
    const mu::Outcome cut = propose(replica, 3, "long");
    EXPECT(cut.code == MU_TRUNCATED && cut.committed() && cut.reply == "lon");
    const mu_ticket ticket = replica.submit(1, 4, "x");
    EXPECT(replica.poll(ticket, 5s).committed());
    EXPECT(replica.barrier(5s) == MU_OK && replica.leader() == 0);
    EXPECT(replica.metrics().find("mu_commit_index") != std::string::npos);
    EXPECT(replica.status().role == MU_ROLE_LEADER && replica.address(0).empty());
    EXPECT(propose(replica, 5, "throw").unknown());
    mu::Outcome fault;
    fault.code = MU_INTERNAL;
    EXPECT(fault.unknown() && !fault.committed());
    EXPECT(machine.fatal_code == MU_STOPPED && machine.fatal_text == "the apply callback returned 1");
    EXPECT(replica.propose(1, 6, "x").code == MU_STOPPED);
  }
  EXPECT(mu_close(closed) == MU_CLOSED);
  std::cout << machine.count << " applied\n";
}
