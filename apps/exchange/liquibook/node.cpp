// One replica of the exchange on Liquibook, told what to do by lines on standard input.
//
//   node ORDERS CONFIG ID [form]
//
//   run FROM TO   proposes the records FROM to TO - 1 of the file ORDERS, many in flight, as client 1 with the record's
//                 number for its sequence; prints "acked N" on the way: everything before record N is applied. Ends
//                 with "done N", or with "ended N CODE" when this replica does not lead (any more)
//   state         prints whether it has a vote, its last applied entry, orders, trades, and hashes of trades and books
//   leader        prints which replica leads, 255 if that is not known
//
// The one thread replicates, in step mode.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <deque>
#include <fstream>
#include <iterator>
#include <sstream>

#include "exchange.hpp"

using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t CLIENT = 1;
constexpr std::size_t WINDOW = 256;
constexpr std::uint64_t REPORT = 4096;

class Node {
 public:
  Node(mu::Replica& replica, exchange::Exchange& exchange, std::string orders)
      : replica_(replica), exchange_(exchange), orders_(std::move(orders)) {}

  void serve() {
    std::string input;
    for (;;) {
      if (replica_.step(1ms, STDIN_FILENO) != MU_OK) throw mu::Error(MU_STOPPED);
      char buffer[4096];
      const ssize_t count = ::read(STDIN_FILENO, buffer, sizeof buffer);
      if (count == 0) return;
      if (count > 0) input.append(buffer, static_cast<std::size_t>(count));
      for (std::size_t end; (end = input.find('\n')) != std::string::npos; input.erase(0, end + 1)) {
        answer(input.substr(0, end));
      }
    }
  }

 private:
  void answer(const std::string& line) {
    std::istringstream words{line};
    std::string verb;
    std::uint64_t from = 0, to = 0;
    words >> verb;
    if (verb == "run" && words >> from >> to) {
      run(from, to);
    } else if (verb == "state") {
      const mu_status status = replica_.status();
      std::cout << unsigned{status.voter} << ' ' << status.applied << ' ' << exchange_.orders() << ' '
                << exchange_.trades() << ' ' << std::hex << exchange_.trade_hash() << ' ' << exchange_.book_hash()
                << std::dec << std::endl;
    } else if (verb == "leader") {
      std::cout << unsigned{replica_.leader().value_or(MU_NO_LEADER)} << std::endl;
    } else {
      std::cout << '?' << std::endl;
    }
  }

  // Whatever of it was applied by an earlier leader is applied once, for it is retried in order.
  void run(std::uint64_t from, std::uint64_t to) {
    to = std::min<std::uint64_t>(to, orders_.size() / exchange::ORDER_BYTES);
    std::deque<mu_ticket> tickets;
    std::uint64_t sent = from, acked = from;
    while (acked < to) {
      while (sent < to && tickets.size() < WINDOW) {
        const std::string_view record(&orders_[sent * exchange::ORDER_BYTES], exchange::ORDER_BYTES);
        mu_ticket ticket = 0;
        const mu_result code = mu_submit(replica_.handle(), CLIENT, sent + 1, mu::bytes_of(record), record.size(),
                                         &ticket);
        if (code == MU_BUSY) break;
        if (code != MU_OK) return ended(acked, code, tickets);
        tickets.push_back(ticket);
        sent++;
      }
      if (const mu_result code = replica_.step(); code != MU_OK) return ended(acked, code, tickets);
      for (; !tickets.empty(); tickets.pop_front()) {
        const mu_result code = mu_poll(replica_.handle(), tickets.front(), 0, nullptr);
        if (code == MU_TIMED_OUT) break;
        if (code != MU_OK && code != MU_SUPERSEDED && code != MU_REPLY_GONE) {
          tickets.pop_front();
          return ended(acked, code, tickets);
        }
        if (++acked % REPORT == 0) std::cout << "acked " << acked << std::endl;
      }
    }
    std::cout << "done " << acked << std::endl;
  }

  void ended(std::uint64_t acked, mu_result code, const std::deque<mu_ticket>& tickets) {
    for (const mu_ticket ticket : tickets) replica_.forget(ticket);
    std::cout << "ended " << acked << ' ' << code << std::endl;
  }

  mu::Replica& replica_;
  exchange::Exchange& exchange_;
  const std::string orders_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: node ORDERS CONFIG ID [form]\n";
    return 2;
  }
  try {
    std::ifstream file(argv[1], std::ios::binary);
    std::string orders{std::istreambuf_iterator<char>(file), {}};
    if (!file || orders.size() % exchange::ORDER_BYTES != 0) throw std::runtime_error("not a file of orders");
    exchange::Exchange exchange;
    mu::Options options;
    options.id(static_cast<std::uint8_t>(std::stoi(argv[3])));
    options.form(argc > 4 && std::string_view(argv[4]) == "form").step(true);
    mu::Replica replica = mu::Replica::open_file(argv[2], options, exchange);
    ::fcntl(STDIN_FILENO, F_SETFL, ::fcntl(STDIN_FILENO, F_GETFL) | O_NONBLOCK);
    std::cout << "ready" << std::endl;
    Node(replica, exchange, std::move(orders)).serve();
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
