#include "sluice/runtime/service/http_connections.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "sluice/runtime/service/clock.h"
#include "sluice/runtime/service/http_json.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr size_t kMostHead = 16 << 10;
constexpr size_t kMostBody = 1 << 20;
constexpr size_t kMostBuffered = 64 << 20;  // bodies that are not answered yet, all connections
constexpr size_t kMostConnections = 4096;
constexpr size_t kMostQueued = 1024;  // requests of one lane
constexpr double kIdleSeconds = 30;
constexpr double kRequestSeconds = 10;  // for the whole of a request
constexpr double kClosingSeconds = 2;
constexpr double kQueueSeconds = 1;  // then who asked has given up
constexpr int kWriteMs = 5000;
constexpr int kStayMs = 2;
constexpr int kBacklog = 4096;

// Bytes of kMostBuffered that a connection holds.
class Reserved {
 public:
  explicit Reserved(std::atomic<size_t>& all) : all_(all) {}
  ~Reserved() { Release(); }
  // False: there are not so many left.
  bool Hold(size_t bytes) {
    if (held_ > 0 || bytes == 0) return true;
    held_ = bytes;
    return (all_ += bytes) <= kMostBuffered;
  }
  void Release() { all_ -= std::exchange(held_, 0); }
  size_t held() const { return held_; }

 private:
  std::atomic<size_t>& all_;
  size_t held_ = 0;
};
struct Connection {
  Connection(int socket, std::atomic<size_t>& buffered, std::atomic<size_t>& all)
      : fd(socket), open(all), reserved(buffered) {
    ++open;
  }
  ~Connection() {
    close(fd);
    --open;
  }
  const int fd;
  std::atomic<size_t>& open;  // how many there are
  std::string peer;
  std::string in;
  double since = 0;   // when it began to be idle, to ask or to close
  double queued = 0;  // when its request began to wait for a thread
  bool told = false;  // to go on
  // Its last answer is on the way. What it still says is thrown away: closing at once would reset
  // the connection and lose the answer.
  bool closing = false;
  Reserved reserved;
};
using ConnectionPtr = std::unique_ptr<Connection>;

// A request and its answer in memory, as the library's stream.
class Exchange final : public httplib::Stream {
 public:
  Exchange(absl::string_view in, const std::string& peer) : in_(in), peer_(peer) {}
  bool is_readable() const override { return !in_.empty(); }
  bool is_writable() const override { return true; }
  ssize_t read(char* to, size_t size) override {
    const size_t n = std::min(size, in_.size());
    std::copy_n(in_.data(), n, to);
    in_.remove_prefix(n);
    return static_cast<ssize_t>(n);
  }
  ssize_t write(const char* from, size_t size) override {
    out_.append(from, size);
    return static_cast<ssize_t>(size);
  }
  void get_remote_ip_and_port(std::string& ip, int& port) const override {
    ip = peer_;
    port = 0;
  }
  void get_local_ip_and_port(std::string& ip, int& port) const override {
    ip.clear();
    port = 0;
  }
  // The library turns away descriptors that select() could not hold; nothing selects here.
  socket_t socket() const override { return INVALID_SOCKET; }
  const std::string& out() const { return out_; }

 private:
  absl::string_view in_;
  const std::string& peer_;
  std::string out_;
};

// The library's server without its threads: it binds, and makes an answer of a request.
class Protocol final : public httplib::Server {
 public:
  explicit Protocol(HttpConnections::Options options) : options_(std::move(options)) {
    set_pre_routing_handler([this](const httplib::Request& q, httplib::Response& r) {
      options_.answer(q, r);
      return HandlerResponse::Handled;
    });
    set_exception_handler([](const httplib::Request&, httplib::Response& r,
                             const std::exception_ptr&) {
      r.status = 500;
      r.set_content(ErrorBody("INTERNAL", "the request could not be answered"), "application/json");
    });
    set_keep_alive_timeout(static_cast<time_t>(kIdleSeconds));
    set_keep_alive_max_count(1000000);
    set_socket_options([this](socket_t s) {
      // No second server may share the port.
      const int yes = 1;
      setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
      socket_ = s;
    });
  }
  ~Protocol() override {
    if (bound_) close(socket_);
  }
  absl::Status Bind() {
    bound_ = bind_to_port(options_.host, options_.port);
    if (!bound_) {
      return absl::UnavailableError(absl::StrCat("http: cannot listen on ", options_.host, ":",
                                                 options_.port, "; is another server there?"));
    }
    ::listen(socket_, kBacklog);
    fcntl(socket_, F_SETFL, O_NONBLOCK);
    return absl::OkStatus();
  }
  // False: the connection ends with this answer.
  bool Answer(absl::string_view head, absl::string_view body, const std::string& peer,
              std::string* out) {
    Exchange exchange(head, peer);
    bool ends = false;
    const bool answered = process_request(exchange, false, ends, [&](httplib::Request& q) {
      q.body = std::string(body);
      q.ranges.clear();
      q.headers.erase("Accept-Encoding");  // packing a page of a kilobyte costs more than it saves
      q.headers.erase("Expect");           // was told already
    });
    *out = exchange.out();
    return answered && !ends;
  }
  int socket() const { return socket_; }
  const HttpConnections::Options& options() const { return options_; }

 private:
  HttpConnections::Options options_;
  int socket_ = -1;
  bool bound_ = false;
};

// Threads and the requests that wait for one.
class Lane {
 public:
  using Serve = std::function<void(ConnectionPtr, Lane&)>;
  Lane(size_t threads, Serve serve) : serve_(std::move(serve)) {
    for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Loop(); });
  }
  ~Lane() { Stop(); }
  void Stop() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& t : threads_) t.join();
    threads_.clear();
  }
  // False: the queue is full, and the connection is still the caller's.
  bool Push(ConnectionPtr& c) {
    {
      std::lock_guard lock(mutex_);
      if (queue_.size() >= kMostQueued) return false;
      queue_.push_back(std::move(c));
    }
    wake_.notify_one();
    return true;
  }
  // Whether somebody else is there for the next request.
  bool HasIdle() const { return idle_ > 0; }

 private:
  void Loop() {
    std::unique_lock lock(mutex_);
    for (;;) {
      ++idle_;
      wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
      --idle_;
      if (stop_) return;
      ConnectionPtr c = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      serve_(std::move(c), *this);
      lock.lock();
    }
  }
  const Serve serve_;
  std::mutex mutex_;  // guards the queue
  std::condition_variable wake_;
  std::deque<ConnectionPtr> queue_;
  bool stop_ = false;
  std::atomic<int> idle_{0};
  std::vector<std::thread> threads_;
};

std::string TextOf(const sockaddr_storage& address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address.ss_family == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(address).sin_addr, text, sizeof text);
  } else if (address.ss_family == AF_INET6) {
    inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr, text,
              sizeof text);
  }
  return std::string(absl::StripPrefix(text, "::ffff:"));
}
bool SendAll(int fd, absl::string_view bytes) {
  const double until = SteadySeconds() + kWriteMs / 1e3;
  while (!bytes.empty()) {
    const ssize_t n = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      bytes.remove_prefix(static_cast<size_t>(n));
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EAGAIN) return false;
    const int left = static_cast<int>((until - SteadySeconds()) * 1e3);
    pollfd p = {fd, POLLOUT, 0};
    if (left <= 0 || poll(&p, 1, left) == 0) return false;
  }
  return true;
}
// What is there. False: the other side is gone.
bool ReadSome(Connection& c) {
  char piece[16384];
  for (;;) {
    const ssize_t n = recv(c.fd, piece, sizeof piece, MSG_DONTWAIT);
    if (n == 0) return false;
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    if (!c.closing) c.in.append(piece, static_cast<size_t>(n));
    // What comes after this request waits in the system.
    const bool enough = c.in.size() > kMostHead + c.reserved.held();
    if (static_cast<size_t>(n) < sizeof piece || enough) return true;
  }
}
const char* Phrase(int status) {
  switch (status) {
    case 400:
      return "Bad Request";
    case 408:
      return "Request Timeout";
    case 411:
      return "Length Required";
    case 413:
      return "Payload Too Large";
    case 431:
      return "Request Header Fields Too Large";
    default:
      return "Service Unavailable";
  }
}
absl::string_view TargetOf(absl::string_view head) {
  const size_t from = head.find(' ') + 1;
  return head.substr(from, head.find(' ', from) - from);
}

class HttpConnectionsImpl final : public HttpConnections {
 public:
  explicit HttpConnectionsImpl(Options options) : protocol_(std::move(options)) {}
  ~HttpConnectionsImpl() override {
    stop_ = true;
    const uint64_t one = 1;
    if (wake_ >= 0 && write(wake_, &one, sizeof one) < 0) {  // awake already
    }
    if (thread_.joinable()) thread_.join();
    for (auto& lane : lanes_) {
      if (lane) lane->Stop();
    }
    for (int fd : {wake_, epoll_}) {
      if (fd >= 0) close(fd);
    }
  }
  absl::Status Start() {
    absl::Status bound = protocol_.Bind();
    if (!bound.ok()) return bound;
    rlimit files = {};
    if (getrlimit(RLIMIT_NOFILE, &files) == 0)
      most_ = std::min<size_t>(kMostConnections, files.rlim_cur / 2);
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
    wake_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    for (int fd : {protocol_.socket(), wake_}) {
      epoll_event e = {EPOLLIN, {.fd = fd}};
      if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &e) != 0)
        return absl::InternalError(absl::StrCat("http: epoll: ", strerror(errno)));
    }
    const auto serve = [this](ConnectionPtr c, Lane& lane) { Serve(std::move(c), lane); };
    constexpr size_t kThreads[] = {2, 4, 16};
    for (size_t i = 0; i < lanes_.size(); ++i)
      lanes_[i] = std::make_unique<Lane>(kThreads[i], serve);
    thread_ = std::thread([this] { Watch(); });
    return absl::OkStatus();
  }

 private:
  Lane& LaneOf(absl::string_view in) {
    return *lanes_[static_cast<size_t>(protocol_.options().lane(TargetOf(in)))];
  }
  // The thread that holds those who have said nothing whole.
  void Watch() {
    double swept = SteadySeconds();
    std::array<epoll_event, 256> events;
    while (!stop_) {
      const int n = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), 250);
      for (int i = 0; i < n; ++i) {
        const int fd = events[i].data.fd;
        if (fd == wake_) continue;
        if (fd == protocol_.socket()) {
          Accept();
        } else if (ConnectionPtr c = Take(fd)) {
          if (c->in.empty() && !c->closing) c->since = SteadySeconds();
          if (ReadSome(*c)) Enter(std::move(c));
        }
      }
      if (SteadySeconds() - swept > 0.25) {
        swept = SteadySeconds();
        Sweep(swept);
      }
    }
  }
  void Accept() {
    for (;;) {
      sockaddr_storage address = {};
      socklen_t size = sizeof address;
      const int fd = accept4(protocol_.socket(), reinterpret_cast<sockaddr*>(&address), &size,
                             SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0) return;
      const int yes = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
      auto c = std::make_unique<Connection>(fd, buffered_, open_);
      c->peer = TextOf(address);
      c->since = SteadySeconds();
      if (open_ <= most_ || MakeRoom()) Park(std::move(c), EPOLL_CTL_ADD);
    }
  }
  // Where there are too many, the one that has waited longest goes. False: all are being answered.
  bool MakeRoom() {
    std::lock_guard lock(mutex_);
    if (parked_.empty()) return false;
    auto oldest = parked_.begin();
    for (auto it = parked_.begin(); it != parked_.end(); ++it) {
      if (it->second->since < oldest->second->since) oldest = it;
    }
    parked_.erase(oldest);
    return true;
  }
  void Park(ConnectionPtr c, int how = EPOLL_CTL_MOD) {
    std::lock_guard lock(mutex_);
    const int fd = c->fd;
    // Once it is heard it is nobody's until it is parked again.
    epoll_event e = {EPOLLIN | EPOLLRDHUP | EPOLLONESHOT, {.fd = fd}};
    parked_[fd] = std::move(c);
    if (epoll_ctl(epoll_, how, fd, &e) != 0) parked_.erase(fd);
  }
  ConnectionPtr Take(int fd) {
    std::lock_guard lock(mutex_);
    const auto at = parked_.find(fd);
    if (at == parked_.end()) return nullptr;
    ConnectionPtr c = std::move(at->second);
    parked_.erase(at);
    return c;
  }

  // Late ones: the idle go, and who still asks is told.
  void Sweep(double now) {
    std::vector<ConnectionPtr> late;
    {
      std::lock_guard lock(mutex_);
      for (auto it = parked_.begin(); it != parked_.end();) {
        const Connection& c = *it->second;
        const double most = c.closing      ? kClosingSeconds
                            : c.in.empty() ? kIdleSeconds
                                           : kRequestSeconds;
        if (now - c.since < most) {
          ++it;
          continue;
        }
        late.push_back(std::move(it->second));
        it = parked_.erase(it);
      }
    }
    for (ConnectionPtr& c : late) {
      if (!c->closing && !c->in.empty())
        Refuse(std::move(c), 408, absl::StrCat("no whole request in ", kRequestSeconds, " s"));
    }
  }
  // Where a connection goes that has said something.
  void Enter(ConnectionPtr c) {
    if (c->closing) return Park(std::move(c));
    const HttpShape shape = MeasureHttp(c->in);
    if (shape.state == HttpShape::kBad) return Refuse(std::move(c), shape.status, shape.why);
    if (!c->reserved.Hold(shape.body))
      return Refuse(std::move(c), 503, "too many bodies wait; send again later");
    if (shape.state == HttpShape::kIncomplete) {
      if (shape.expects && !c->told) {
        c->told = true;
        // Not waited for: this thread holds all the others.
        constexpr absl::string_view kGoOn = "HTTP/1.1 100 Continue\r\n\r\n";
        if (send(c->fd, kGoOn.data(), kGoOn.size(), MSG_NOSIGNAL | MSG_DONTWAIT) < 0) return;
      }
      return Park(std::move(c));
    }
    c->queued = SteadySeconds();
    if (!LaneOf(c->in).Push(c))
      Refuse(std::move(c), 503, "too many requests wait; send again later");
  }
  // An answer that needs no request, and the end of the connection.
  void Refuse(ConnectionPtr c, int status, const std::string& why) {
    c->reserved.Release();
    const char* code = status == 503   ? "OVERLOADED"
                       : status == 408 ? "DEADLINE_EXCEEDED"
                                       : "INVALID_ARGUMENT";
    const std::string body = ErrorBody(code, why, status == 503 ? 1 : 0);
    const std::string answer =
        absl::StrCat("HTTP/1.1 ", status, " ", Phrase(status),
                     "\r\nConnection: close\r\nContent-Type: application/json\r\n",
                     status == 503 ? "Retry-After: 1\r\n" : "", "Content-Length: ", body.size(),
                     "\r\n\r\n", body);
    // Not waited for: this may be the thread that holds all the others.
    if (send(c->fd, answer.data(), answer.size(), MSG_NOSIGNAL | MSG_DONTWAIT) < 0) return;
    Close(std::move(c));
  }
  void Close(ConnectionPtr c) {
    shutdown(c->fd, SHUT_WR);
    c->closing = true;
    c->in.clear();
    c->since = SteadySeconds();
    Park(std::move(c));
  }
  void Serve(ConnectionPtr c, Lane& lane) {
    if (SteadySeconds() - c->queued > kQueueSeconds)
      return Refuse(std::move(c), 503, "no thread came free in time; send again later");
    while (!stop_) {
      const HttpShape shape = MeasureHttp(c->in);
      const absl::string_view in = c->in;
      std::string out;
      const bool stays = protocol_.Answer(in.substr(0, shape.head),
                                          in.substr(shape.head, shape.body), c->peer, &out);
      const bool sent = SendAll(c->fd, out);
      c->reserved.Release();
      if (!sent) return;
      if (!stays) return Close(std::move(c));
      c->in.erase(0, shape.head + shape.body);
      c->told = false;
      c->since = SteadySeconds();
      if (!c->in.empty()) return Enter(std::move(c));
      // Who asks again at once finds this thread still here, if others have one.
      pollfd p = {c->fd, POLLIN, 0};
      if (!lane.HasIdle() || poll(&p, 1, kStayMs) <= 0) return Park(std::move(c));
      if (!ReadSome(*c)) return;
      const bool whole = MeasureHttp(c->in).state == HttpShape::kWhole;
      if (!whole || &LaneOf(c->in) != &lane) return Enter(std::move(c));
    }
  }

  Protocol protocol_;
  int epoll_ = -1, wake_ = -1;
  size_t most_ = kMostConnections;
  std::atomic<bool> stop_{false};
  std::atomic<size_t> buffered_{0};
  std::atomic<size_t> open_{0};
  std::mutex mutex_;  // guards those that are parked
  std::unordered_map<int, ConnectionPtr> parked_;
  std::array<std::unique_ptr<Lane>, 3> lanes_;
  std::thread thread_;
};

HttpShape Bad(int status, std::string why) {
  HttpShape shape;
  shape.state = HttpShape::kBad;
  shape.status = status;
  shape.why = std::move(why);
  return shape;
}
}  // namespace

HttpShape MeasureHttp(absl::string_view bytes) {
  const absl::string_view window = bytes.substr(0, kMostHead);
  const size_t end = window.find("\r\n\r\n");
  // Bytes that others could read as another request are refused, not understood.
  const absl::string_view seen = window.substr(0, end == window.npos ? end : end + 4);
  for (size_t i = 0; i < seen.size(); ++i) {
    if (seen[i] == '\0' || (seen[i] == '\n' && (i == 0 || seen[i - 1] != '\r')))
      return Bad(400, "a head with bytes that no head has");
  }
  if (end == window.npos) {
    if (window.size() == kMostHead)
      return Bad(431, absl::StrCat("a head above ", kMostHead, " bytes"));
    return {};
  }
  HttpShape shape;
  shape.head = end + 4;
  size_t lengths = 0;
  for (size_t at = window.find("\r\n") + 2; at < end + 2;) {
    const size_t stop = window.find("\r\n", at);
    const absl::string_view line = window.substr(at, stop - at);
    at = stop + 2;
    const size_t colon = line.find(':');
    if (colon == line.npos || colon == 0) return Bad(400, "a header without a name");
    const absl::string_view name = line.substr(0, colon);
    const absl::string_view value = absl::StripAsciiWhitespace(line.substr(colon + 1));
    if (name.find_first_of(" \t") != name.npos) return Bad(400, "a header's name with a space");
    if (absl::EqualsIgnoreCase(name, "Transfer-Encoding"))
      return Bad(411, "Transfer-Encoding; allowed: Content-Length");
    if (absl::EqualsIgnoreCase(name, "Expect"))
      shape.expects = absl::EqualsIgnoreCase(value, "100-continue");
    if (!absl::EqualsIgnoreCase(name, "Content-Length")) continue;
    uint64_t length = 0;
    const bool digits = !value.empty() && value.find_first_not_of("0123456789") == value.npos;
    if (++lengths > 1 || !digits) return Bad(400, "Content-Length; allowed: one number");
    if (!absl::SimpleAtoi(value, &length) || length > kMostBody)
      return Bad(413, absl::StrCat("a body of ", value, " bytes; allowed: up to ", kMostBody));
    shape.body = static_cast<size_t>(length);
  }
  if (bytes.size() >= shape.head + shape.body) shape.state = HttpShape::kWhole;
  return shape;
}

absl::StatusOr<std::unique_ptr<HttpConnections>> HttpConnections::Open(Options options) {
  auto connections = std::make_unique<HttpConnectionsImpl>(std::move(options));
  const absl::Status started = connections->Start();
  if (!started.ok()) return started;
  return connections;
}
SLUICE_END_NAMESPACE
