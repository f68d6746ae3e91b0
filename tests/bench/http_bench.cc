// Decisions over HTTP against an empty cpp-httplib handler, both with connections that stay open:
// time of one, and how many a second from several connections at once.
// Usage: http_bench [SECONDS] [CONNECTIONS...]
#include <httplib.h>
#include <netinet/tcp.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "sluice/tests/support/raw_socket.h"
#include "sluice/tests/support/running_server.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using Clock = std::chrono::steady_clock;

// What a client costs is no part of what is measured: written at once, read until the body is
// there.
class Connection {
 public:
  Connection(int port, const std::string& request)
      : fd_(socket(AF_INET, SOCK_STREAM, 0)), request_(request) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int yes = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) std::abort();
  }
  ~Connection() { close(fd_); }
  void RoundTrip() {
    if (send(fd_, request_.data(), request_.size(), MSG_NOSIGNAL) < 0) std::abort();
    size_t have = 0;
    for (size_t wanted = sizeof buffer_; have < wanted;) {
      const ssize_t n = recv(fd_, buffer_ + have, sizeof buffer_ - have, 0);
      if (n <= 0) std::abort();
      have += static_cast<size_t>(n);
      const std::string_view all(buffer_, have);
      const size_t head = all.find("\r\n\r\n");
      const size_t length = all.find("Content-Length: ");
      if (head == all.npos || length == all.npos) continue;
      wanted = head + 4 + static_cast<size_t>(std::atoi(buffer_ + length + 16));
    }
    if (std::string_view(buffer_, have).find(" 200 ") == std::string_view::npos) std::abort();
  }

 private:
  int fd_;
  const std::string request_;
  char buffer_[16384];
};

struct Measured {
  double p50_us = 0, p99_us = 0, per_second = 0;
  double cpu_us = 0;  // of one request, clients included: says more than time on a shared machine
};
double CpuSeconds() {
  rusage used = {};
  getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}
Measured Measure(int port, const std::string& request, int connections, double seconds) {
  std::vector<std::vector<double>> times(static_cast<size_t>(connections));
  std::vector<std::thread> threads;
  const double cpu = CpuSeconds();
  const auto began = Clock::now();
  for (std::vector<double>& mine : times) {
    threads.emplace_back([&mine, &request, port, began, seconds] {
      Connection c(port, request);
      for (auto at = Clock::now(); at - began < std::chrono::duration<double>(seconds);) {
        c.RoundTrip();
        const auto now = Clock::now();
        mine.push_back(std::chrono::duration<double, std::micro>(now - at).count());
        at = now;
      }
    });
  }
  for (std::thread& t : threads) t.join();
  const double took = std::chrono::duration<double>(Clock::now() - began).count();
  std::vector<double> all;
  for (const std::vector<double>& mine : times) all.insert(all.end(), mine.begin(), mine.end());
  std::sort(all.begin(), all.end());
  const double n = static_cast<double>(all.size());
  return {all[all.size() / 2], all[all.size() * 99 / 100], n / took,
          (CpuSeconds() - cpu) / n * 1e6};
}
std::string Post(const std::string& path, const std::string& body) {
  return absl::StrCat("POST ", path,
                      " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                      "Content-Length: ",
                      body.size(), "\r\n\r\n", body);
}
}  // namespace
SLUICE_END_NAMESPACE

int main(int argc, char** argv) {
  using namespace sluice;
  std::vector<double> numbers;
  for (int i = 1; i < argc; ++i) {
    if (argv[i][0] != '-') numbers.push_back(std::atof(argv[i]));  // others are Google Benchmark's
  }
  const double seconds = numbers.empty() ? 3 : numbers[0];
  std::vector<int> connections;
  for (size_t i = 1; i < numbers.size(); ++i) connections.push_back(static_cast<int>(numbers[i]));
  if (connections.empty()) connections = {1, 4, 16, 64};

  const int port = FreePort();
  RunningServer sidecar(absl::StrCat("http { port: ", port, " }", kTwoStages));
  httplib::Server empty;
  empty.new_task_queue = [] { return new httplib::ThreadPool(64); };
  empty.set_tcp_nodelay(true);
  empty.set_keep_alive_max_count(1u << 31);
  empty.Post("/v1/route", [](const httplib::Request&, httplib::Response& r) {
    r.set_content("{}", "application/json");
  });
  const int empty_port = empty.bind_to_any_port("127.0.0.1");
  std::thread serving([&] { empty.listen_after_bind(); });

  const std::string route = Post("/v1/route", "{\"task\": \"math\", \"unit\": \"u-17\"}");
  const std::string chat =
      Post("/v1/decide",
           "{\"model\": \"auto\", \"user\": \"u-17\", \"metadata\": {\"task\": \"math\"}, "
           "\"messages\": [{\"role\": \"system\", \"content\": \"Be short.\"}, {\"role\": "
           "\"user\", \"content\": \"What is 17 * 4?\"}]}");
  const std::string health = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
  std::printf("%-28s %12s %10s %10s %10s %10s\n", "", "connections", "p50, us", "p99, us",
              "a second", "CPU, us");
  for (int n : connections) {
    const struct {
      const char* name;
      int port;
      const std::string& request;
    } kinds[] = {{"empty handler, cpp-httplib", empty_port, route},
                 {"/healthz", port, health},
                 {"/v1/route", port, route},
                 {"/v1/decide", port, chat}};
    for (const auto& [name, at, request] : kinds) {
      const Measured m = Measure(at, request, n, seconds);
      std::printf("%-28s %12d %10.1f %10.1f %10.0f %10.1f\n", name, n, m.p50_us, m.p99_us,
                  m.per_second, m.cpu_us);
      std::fflush(stdout);
    }
  }
  empty.stop();
  serving.join();
}
