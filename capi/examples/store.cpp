// A replicated store in C++, in step mode: this program's one thread replicates, reads lines and answers them. Several
// commands are in flight at a time. The lines and the answers are those of counters.c, but that a KEY is any word.
#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <iostream>
#include <map>
#include <sstream>

#include "mu.hpp"

using namespace std::chrono_literals;

namespace {

class Store : public mu::StateMachine {
 public:
  void apply(const mu::Command& command, mu::Sink& reply) override {
    std::istringstream words{std::string(command.bytes)};
    std::string key;
    std::uint64_t number = 0;
    // A command that makes no sense has to be ignored by every replica alike.
    if (!(words >> key >> number)) return;
    reply.write(std::to_string(values[key] += number));
  }
  void save(mu::Sink& out) override {
    for (const auto& [key, value] : values) out.write(key + ' ' + std::to_string(value) + '\n');
  }
  void load(mu::Source& in) override {
    std::istringstream lines{in.all()};
    std::map<std::string, std::uint64_t> loaded;
    std::string key;
    for (std::uint64_t value; lines >> key >> value;) loaded[key] = value;
    values = std::move(loaded);
  }
  std::uint64_t digest() noexcept override {
    std::uint64_t sum = 0xcbf29ce484222325;
    for (const auto& [key, value] : values) {
      for (const char c : key) sum = (sum ^ static_cast<unsigned char>(c)) * 0x100000001b3;
      sum = (sum ^ value) * 0x100000001b3;
    }
    return sum;
  }
  void role(const struct mu_role& role) noexcept override {
    std::cerr << "role " << role.role << " in epoch " << role.epoch << ", leader " << unsigned{role.leader} << '\n';
  }
  void fatal(mu_result, const char* text) noexcept override {
    std::cerr << "stopped: " << text << '\n';
    _exit(3);
  }

  std::uint64_t value(const std::string& key) const {
    const auto found = values.find(key);
    return found == values.end() ? 0 : found->second;
  }

  std::map<std::string, std::uint64_t> values;
};

// A line that waits for its outcome, or has its answer.
struct Waiting {
  mu_ticket ticket = 0;
  std::string key;
  std::string answer;
};

class Server {
 public:
  Server(mu::Replica& replica, Store& store) : replica_(replica), store_(store) {}

  // Until standard input ends.
  void run() {
    for (bool open = true; open || !waiting_.empty();) {
      if (replica_.step(1ms, open ? STDIN_FILENO : -1) != MU_OK) throw mu::Error(MU_STOPPED);
      if (open) open = read_lines();
      answer();
    }
  }

 private:
  bool read_lines() {
    char buffer[4096];
    const ssize_t count = ::read(STDIN_FILENO, buffer, sizeof buffer);
    if (count == 0) return false;
    if (count < 0) return errno == EAGAIN || errno == EINTR;
    input_.append(buffer, static_cast<std::size_t>(count));
    for (std::size_t end; (end = input_.find('\n')) != std::string::npos;) {
      take(input_.substr(0, end));
      input_.erase(0, end + 1);
    }
    return true;
  }

  void take(const std::string& line) {
    std::istringstream words{line};
    std::string verb, key;
    std::uint64_t client = 0, sequence = 0, number = 0;
    words >> verb;
    Waiting waiting;
    try {
      if (verb == "add" && words >> client >> sequence >> key >> number) {
        waiting.ticket = replica_.submit(client, sequence, key + ' ' + std::to_string(number));
      } else if (verb == "get" && words >> waiting.key) {
        mu::check(mu_submit_barrier(replica_.handle(), &waiting.ticket));
      } else if (verb == "state") {
        const mu_status status = replica_.status();
        std::ostringstream text;
        text << unsigned{status.voter} << ' ' << status.applied << ' ' << std::hex << store_.digest();
        waiting.answer = text.str();
      } else if (verb == "leader") {
        waiting.answer = std::to_string(replica_.leader().value_or(MU_NO_LEADER));
      } else {
        waiting.answer = "?";
      }
    } catch (const mu::Error& error) {
      waiting.answer = std::to_string(error.code()) + " 0";
    }
    waiting_.push_back(std::move(waiting));
  }

  // Outcomes come in the order of the lines.
  void answer() {
    for (; !waiting_.empty(); waiting_.pop_front()) {
      Waiting& first = waiting_.front();
      if (first.answer.empty()) {
        const mu::Outcome outcome = replica_.poll(first.ticket);
        if (outcome.code == MU_TIMED_OUT) break;
        const bool is_read = !first.key.empty();
        const std::string value = is_read ? std::to_string(store_.value(first.key)) : outcome.reply;
        first.answer = std::to_string(outcome.code) + ' ' + (value.empty() ? "0" : value);
      }
      std::cout << first.answer << '\n' << std::flush;
    }
  }

  mu::Replica& replica_;
  Store& store_;
  std::deque<Waiting> waiting_;
  std::string input_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: store CONFIG ID [form]\n";
    return 2;
  }
  try {
    Store store;
    mu::Options options;
    options.id(static_cast<std::uint8_t>(std::stoi(argv[2])));
    options.form(argc > 3 && std::string_view(argv[3]) == "form").step(true);
    mu::Replica replica = mu::Replica::open_file(argv[1], options, store);
    ::fcntl(STDIN_FILENO, F_SETFL, ::fcntl(STDIN_FILENO, F_GETFL) | O_NONBLOCK);
    std::cout << "ready\n" << std::flush;
    Server(replica, store).run();
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
