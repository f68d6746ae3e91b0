// How fast the sidecar answers, the raw ZeroMQ round trip of the same run beside it.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/cli/commands.h"
#include "sluice/runtime/cli/local_server.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
namespace {
using Clock = std::chrono::steady_clock;
double Us(Clock::duration d) { return std::chrono::duration<double, std::micro>(d).count(); }
double At(std::vector<double>& x, double q) {
  if (x.empty()) return 0;
  std::sort(x.begin(), x.end());
  return x[std::min(x.size() - 1, static_cast<size_t>(q * static_cast<double>(x.size())))];
}
double Median(std::vector<double> x) { return At(x, 0.5); }

// Sends every message back.
class Echo {
 public:
  Echo(zmq::context_t& context, const std::string& endpoint)
      : socket_(context, zmq::socket_type::router) {
    socket_.set(zmq::sockopt::linger, 0);
    socket_.set(zmq::sockopt::rcvtimeo, 50);
    socket_.bind(endpoint);
    thread_ = std::thread([this] {
      zmq::message_t id, body;
      while (!stop_) {
        if (!socket_.recv(id)) continue;
        (void)socket_.recv(body);
        socket_.send(id, zmq::send_flags::sndmore);
        socket_.send(body, zmq::send_flags::none);
      }
    });
  }
  ~Echo() {
    stop_ = true;
    thread_.join();
  }

 private:
  zmq::socket_t socket_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};
struct Latency {
  std::vector<double> us;
  double rate = 0;
};
// One request at a time, not more often than `rate` a second.
Latency Paced(zmq::socket_t& socket, const std::string& bytes, double rate, double seconds) {
  Latency out;
  const auto begin = Clock::now(), end = begin + std::chrono::duration_cast<Clock::duration>(
                                                     std::chrono::duration<double>(seconds));
  const auto gap =
      std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(1 / rate));
  auto next = begin;
  zmq::message_t answer;
  while (Clock::now() < end) {
    while (Clock::now() < next) {
    }
    const auto sent = Clock::now();
    socket.send(zmq::buffer(bytes));
    (void)socket.recv(answer);
    const auto back = Clock::now();
    out.us.push_back(Us(back - sent));
    next = std::max(next + gap, back);  // what was missed is not made up for
  }
  out.rate = static_cast<double>(out.us.size()) /
             std::chrono::duration<double>(Clock::now() - begin).count();
  return out;
}
// Requests go out on schedule whatever has come back, as from many independent callers; latency
// counts from the schedule.
Latency OnSchedule(zmq::socket_t& socket, const std::string& bytes, double rate, double seconds) {
  Latency out;
  const auto gap =
      std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(1 / rate));
  const auto begin = Clock::now(), end = begin + std::chrono::duration_cast<Clock::duration>(
                                                     std::chrono::duration<double>(seconds));
  std::deque<Clock::time_point> due;  // answers of one connection come in order
  auto next = begin;
  zmq::message_t answer;
  while (next < end || !due.empty()) {
    if (const auto now = Clock::now(); now >= next && next < end) {
      socket.send(zmq::buffer(bytes));
      due.push_back(next);
      next += gap;
    }
    if (socket.recv(answer, zmq::recv_flags::dontwait)) {
      out.us.push_back(Us(Clock::now() - due.front()));
      due.pop_front();
    } else if (Clock::now() - end > std::chrono::seconds(5)) {
      break;
    }
  }
  out.rate = static_cast<double>(out.us.size()) /
             std::chrono::duration<double>(Clock::now() - begin).count();
  return out;
}
// As many as `window` requests under way; answers a second.
double Pipelined(zmq::socket_t& socket, const std::string& bytes, int window, double seconds) {
  const auto begin = Clock::now();
  int64_t sent = 0, got = 0;
  zmq::message_t answer;
  for (; sent < window; ++sent) socket.send(zmq::buffer(bytes));
  while (Clock::now() - begin < std::chrono::duration<double>(seconds)) {
    for (int i = 0; i < 64; ++i) {
      (void)socket.recv(answer);
      ++got;
      socket.send(zmq::buffer(bytes));
      ++sent;
    }
  }
  const double rate =
      static_cast<double>(got) / std::chrono::duration<double>(Clock::now() - begin).count();
  for (; got < sent; ++got) (void)socket.recv(answer);
  return rate;
}
zmq::socket_t Dealer(zmq::context_t& context, const std::string& endpoint) {
  zmq::socket_t s(context, zmq::socket_type::dealer);
  s.set(zmq::sockopt::linger, 0);
  s.set(zmq::sockopt::rcvtimeo, 5000);
  s.connect(endpoint);
  return s;
}
std::string Queries(int n) {
  v1::Request q;
  q.set_version(1);
  q.set_request_id(1);
  for (int i = 0; i < n; ++i)
    q.mutable_route()->add_queries()->set_task(i % 2 == 0 ? "task1" : "task5");
  return q.SerializeAsString();
}

// `clients` connections, each with one request under way. What the requests are decides what the
// server does.
Latency Crowd(zmq::context_t& context, const std::string& endpoint, int clients,
              const std::string& bytes, double seconds) {
  std::vector<zmq::socket_t> sockets;
  std::vector<zmq::pollitem_t> items;
  std::vector<Clock::time_point> sent(clients);
  sockets.reserve(clients);
  items.reserve(clients);
  for (int i = 0; i < clients; ++i) sockets.push_back(Dealer(context, endpoint));
  for (zmq::socket_t& s : sockets) items.push_back({s.handle(), 0, ZMQ_POLLIN, 0});
  zmq::message_t answer;
  for (zmq::socket_t& s : sockets) {  // all are connected before the clock starts
    s.send(zmq::buffer(bytes));
    (void)s.recv(answer);
  }
  Latency out;
  const auto begin = Clock::now();
  for (size_t i = 0; i < sockets.size(); ++i) {
    sent[i] = Clock::now();
    sockets[i].send(zmq::buffer(bytes));
  }
  size_t under_way = sockets.size();
  while (under_way > 0) {
    const bool more = Clock::now() - begin < std::chrono::duration<double>(seconds);
    zmq::poll(items.data(), items.size(), std::chrono::milliseconds(1000));
    for (size_t i = 0; i < sockets.size(); ++i) {
      if (items[i].revents == 0 || !sockets[i].recv(answer, zmq::recv_flags::dontwait)) continue;
      const auto back = Clock::now();
      out.us.push_back(Us(back - sent[i]));
      if (more) {
        sent[i] = back;
        sockets[i].send(zmq::buffer(bytes));
      } else
        --under_way;
    }
  }
  out.rate = static_cast<double>(out.us.size()) /
             std::chrono::duration<double>(Clock::now() - begin).count();
  return out;
}

// A client that has decisions in store and, while it is told to, sends 5,000 outcomes a second,
// five a message.
class Teacher {
 public:
  Teacher(const std::string& endpoint, double seconds)
      : most_(5000 * seconds * 1.2), thread_([this, endpoint] { Run(endpoint); }) {}
  ~Teacher() {
    mode_ = kEnd;
    thread_.join();
  }
  // Fills the store and waits until it is full; no outcome is sent meanwhile, nor after.
  void Rest() {
    mode_ = kRest;
    ready_ = false;
    while (!ready_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  void Teach() { mode_ = kTeach; }
  int64_t applied() const { return applied_; }

 private:
  enum Mode { kRest, kTeach, kEnd };

  void Run(const std::string& endpoint) {
    auto client = Client::Connect(endpoint);
    auto next = Clock::now();
    while (mode_ != kEnd) {
      if (mode_ == kRest) {
        Store(**client);
        next = Clock::now();
        continue;
      }
      SendOutcomes(**client);
      next += std::chrono::milliseconds(1);
      std::this_thread::sleep_until(next);
    }
  }
  void Store(Client& client) {
    if (static_cast<double>(receipts_.size()) >= most_) {
      ready_ = true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      return;
    }
    v1::Request q;
    for (int i = 0; i < 50; ++i) q.mutable_route()->add_queries()->set_task("task3");
    const auto r = client.Call(q);
    if (!r.ok()) return;
    for (const v1::Decision& d : r->route().decisions()) receipts_.push_back(d.receipt());
    ready_ = false;
  }
  void SendOutcomes(Client& client) {
    constexpr int kMessage = 5;
    v1::Request f;
    for (int i = 0; i < kMessage && !receipts_.empty(); ++i) {
      v1::Outcome& o = *f.mutable_feedback()->add_outcomes();
      o.set_receipt(receipts_.back());
      o.set_quality(receipts_.size() % 3 == 0 ? 0 : 1);
      o.set_cost_usd(0.001);
      receipts_.pop_back();
    }
    if (f.feedback().outcomes_size() > 0) (void)client.Send(f);
    for (auto done = client.Receive(std::chrono::milliseconds(0)); done.ok();
         done = client.Receive(std::chrono::milliseconds(0))) {
      applied_ += done->feedback().results_size();
    }
  }

  const double most_;  // decisions in store
  std::atomic<bool> ready_{false};
  std::atomic<Mode> mode_{kRest};
  std::atomic<int64_t> applied_{0};
  std::vector<std::string> receipts_;  // the thread's own
  std::thread thread_;
};

struct BenchOptions {
  double seconds = 1;
  int repeats = 7;
  std::string transport = "ipc";
  std::string part = "all";
  bool memory = false;

  bool Wants(absl::string_view one) const { return part == "all" || part == one; }
};

absl::StatusOr<std::unique_ptr<LocalServer>> StartServer(const BenchOptions& o,
                                                         absl::string_view more) {
  return LocalServer::Start([&](const std::string& folder) {
    std::string config = absl::StrCat(
        "endpoint: \"",
        o.transport == "tcp" ? "tcp://127.0.0.1:*" : absl::StrCat("ipc://", folder, "/sluice"),
        "\" policy { spec: \"amro_s:ability=measured\" }", more);
    if (!o.memory) absl::StrAppend(&config, " state { sqlite: \"", folder, "/state.db\" }");
    for (int t = 0; t < 8; ++t) absl::StrAppend(&config, " task: \"task", t, "\"");
    for (int s = 0; s < 3; ++s) {
      absl::StrAppend(&config, " stage {");
      for (int a = 0; a < 12; ++a)
        absl::StrAppend(&config, " agent { id: \"stage", s, "-agent", a, "\" }");
      absl::StrAppend(&config, " }");
    }
    return config;
  });
}
absl::StatusOr<double> DecideMicroseconds(const LocalServer& server) {
  auto client = Client::Connect(server.endpoint());
  if (!client.ok()) return client.status();
  v1::Request ask;
  ask.mutable_stats();
  const auto said = (*client)->Call(ask);
  if (!said.ok()) return said.status();
  return said->stats().decide_p50_us();
}

// The measurements, in the order of the report; raw and sluice in turn.
class BenchRun {
 public:
  BenchRun(const BenchOptions& o, const LocalServer& server)
      : o_(o),
        server_(server),
        echo_at_(o.transport == "tcp" ? "tcp://127.0.0.1:15771"
                                      : absl::StrCat("ipc://", server.folder(), "/echo")),
        echo_context_(1),
        client_context_(1) {
    client_context_.set(zmq::ctxopt::max_sockets, 4096);
    echo_.emplace(echo_context_, echo_at_);
    raw_ = Dealer(client_context_, echo_at_);
    sluice_ = Dealer(client_context_, server.endpoint());
  }
  absl::Status Run() {
    std::printf(
        "3 stages of 12 agents, 8 tasks; %s, %s; medians of %d repeats of %.1f s, raw and sluice "
        "in turn; %u CPUs\n\n",
        o_.transport.c_str(), o_.memory ? "state in memory" : "feedback to SQLite", o_.repeats,
        o_.seconds, std::thread::hardware_concurrency());
    if (o_.Wants("rate")) AtFixedRate();
    if (o_.Wants("throughput")) Throughput();
    if (o_.Wants("shadow")) SLUICE_RETURN_IF_ERROR(BesideShadow());
    if (!o_.Wants("learning") && !o_.Wants("crowds")) return absl::OkStatus();
    Teacher teacher(server_.endpoint(), o_.seconds);
    if (o_.Wants("learning")) WhileLearning(teacher);
    if (o_.Wants("crowds")) Crowds(teacher);
    return absl::OkStatus();
  }

 private:
  void AtFixedRate() {
    (void)OnSchedule(raw_, one_, 20000, 0.3);
    (void)OnSchedule(sluice_, one_, 20000, 0.3);
    std::vector<double> raw50, raw99, our50, our99, ratio, raw_rate, our_rate;
    for (int i = 0; i < o_.repeats; ++i) {
      Latency r = OnSchedule(raw_, one_, 20000, o_.seconds);
      Latency o = OnSchedule(sluice_, one_, 20000, o_.seconds);
      raw50.push_back(At(r.us, 0.5));
      raw99.push_back(At(r.us, 0.99));
      our50.push_back(At(o.us, 0.5));
      our99.push_back(At(o.us, 0.99));
      ratio.push_back(our50.back() / raw50.back());
      raw_rate.push_back(r.rate);
      our_rate.push_back(o.rate);
    }
    std::printf(
        "20,000/s on schedule          raw p50 %.1f us p99 %.1f us (%.0f/s)   sluice p50 %.1f us "
        "p99 %.1f us (%.0f/s)   p50 ratio %.2f\n",
        Median(raw50), Median(raw99), Median(raw_rate), Median(our50), Median(our99),
        Median(our_rate), Median(ratio));
  }

  void Throughput() {
    const std::string batch = Queries(32);
    std::vector<double> raw_single, our_single, raw_batch, our_batch;
    for (int i = 0; i < o_.repeats; ++i) {
      raw_single.push_back(Pipelined(raw_, one_, 64, o_.seconds));
      our_single.push_back(Pipelined(sluice_, one_, 64, o_.seconds));
      raw_batch.push_back(32 * Pipelined(raw_, batch, 16, o_.seconds));
      our_batch.push_back(32 * Pipelined(sluice_, batch, 16, o_.seconds));
    }
    const auto row = [](const char* name, const std::vector<double>& raw,
                        const std::vector<double>& our) {
      std::printf("%-29s raw %.0f /s   sluice %.0f decisions/s   ratio %.2f\n", name, Median(raw),
                  Median(our), Median(our) / Median(raw));
    };
    row("one a request, 64 under way", raw_single, our_single);
    row("32 a request, 16 under way", raw_batch, our_batch);
  }

  // What a policy that only decides beside costs the caller: the same policy twice, in many short
  // turns.
  absl::Status BesideShadow() {
    const std::string other = " policy { name: \"beside\" spec: \"amro_s:beta=4\" } ";
    SLUICE_ASSIGN_OR_RETURN(const auto plain, StartServer(o_, other));
    SLUICE_ASSIGN_OR_RETURN(
        const auto shadowed,
        StartServer(o_, absl::StrCat(other, "experiment { shadow: \"beside\" }")));
    zmq::socket_t by_itself = Dealer(client_context_, plain->endpoint());
    zmq::socket_t beside = Dealer(client_context_, shadowed->endpoint());
    std::vector<double> alone, with, more;
    for (int i = 0; i < 8 * o_.repeats; ++i) {
      Latency a, b;
      for (const bool first : {i % 2 == 0, i % 2 != 0}) {
        Latency& l = first ? a : b;
        l = Paced(first ? by_itself : beside, one_, 5000, o_.seconds / 8);
      }
      alone.push_back(At(a.us, 0.5));
      with.push_back(At(b.us, 0.5));
      more.push_back(with.back() - alone.back());
    }
    SLUICE_ASSIGN_OR_RETURN(const double decide_alone, DecideMicroseconds(*plain));
    SLUICE_ASSIGN_OR_RETURN(const double decide_beside, DecideMicroseconds(*shadowed));
    std::printf(
        "p50 at 5,000/s                sluice %.1f us, with a shadow policy %.1f us   median "
        "difference %+.2f us (quartiles %+.2f, %+.2f); the deciding itself %.2f us and %.2f us\n",
        Median(alone), Median(with), Median(more), At(more, 0.25), At(more, 0.75), decide_alone,
        decide_beside);
    return absl::OkStatus();
  }

  // With 5,000 outcomes a second coming in beside, and without.
  void WhileLearning(Teacher& teacher) {
    std::vector<double> quiet, busy, raw_quiet, raw_busy, change, ratios;
    for (int i = 0; i < o_.repeats; ++i) {
      teacher.Rest();
      Latency raw_rests = Paced(raw_, one_, 10000, o_.seconds);
      Latency rests = Paced(sluice_, one_, 10000, o_.seconds);
      teacher.Teach();
      const int64_t before = teacher.applied();
      Latency learns = Paced(sluice_, one_, 10000, o_.seconds);
      change.push_back(static_cast<double>(teacher.applied() - before) / o_.seconds);
      // The teacher has outcomes left for so long.
      Latency raw_beside = Paced(raw_, one_, 10000, o_.seconds / 8);
      quiet.push_back(At(rests.us, 0.99));
      busy.push_back(At(learns.us, 0.99));
      raw_quiet.push_back(At(raw_rests.us, 0.99));
      raw_busy.push_back(At(raw_beside.us, 0.99));
      ratios.push_back(busy.back() / quiet.back());
    }
    std::printf(
        "p99 at 10,000/s               raw %.1f us, beside the teacher %.1f us   sluice %.1f us, "
        "while it learns %.0f outcomes/s %.1f us   ratio %.2f\n",
        Median(raw_quiet), Median(raw_busy), Median(quiet), Median(change), Median(busy),
        Median(ratios));
  }

  void Crowds(Teacher& teacher) {
    std::printf("\n%-8s %28s %34s %40s\n", "clients", "raw", "sluice", "sluice while it learns");
    for (int clients : {1, 10, 100, 1000}) {
      std::vector<double> rate[3], p50[3], p99[3], ratio_p99;
      for (int i = 0; i < o_.repeats; ++i) {
        teacher.Rest();
        for (int which = 0; which < 3; ++which) {
          if (which == 2) teacher.Teach();
          Latency l = Crowd(client_context_, which == 0 ? echo_at_ : server_.endpoint(), clients,
                            one_, o_.seconds);
          rate[which].push_back(l.rate);
          p50[which].push_back(At(l.us, 0.5));
          p99[which].push_back(At(l.us, 0.99));
        }
        ratio_p99.push_back(p99[2].back() / p99[1].back());
      }
      std::printf("%-8d", clients);
      for (int which = 0; which < 3; ++which)
        std::printf("  %8.0f/s p50 %6.0f p99 %6.0f us", Median(rate[which]), Median(p50[which]),
                    Median(p99[which]));
      std::printf("   p99 ratio %.2f\n", Median(ratio_p99));
      std::fflush(stdout);
    }
  }

  const BenchOptions& o_;
  const LocalServer& server_;
  const std::string echo_at_;
  const std::string one_ = Queries(1);
  zmq::context_t echo_context_, client_context_;
  std::optional<Echo> echo_;
  zmq::socket_t raw_, sluice_;  // closed before their context
};

int Bench(const BenchOptions& o) {
  rlimit files{};  // a thousand clients need some thousands of descriptors
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  const auto server = StartServer(o, "");
  if (!server.ok()) return Fail(server.status());
  return Done(BenchRun(o, **server).Run());
}
}  // namespace

void AddBench(CLI::App& app, const Exit& exit) {
  auto* s =
      app.add_subcommand("bench", "Latency and throughput on this machine, raw ZeroMQ beside");
  auto a = std::make_shared<BenchOptions>();
  s->add_option("--seconds", a->seconds, "of one measurement")
      ->capture_default_str()
      ->check(CLI::Range(0.05, 600.0));
  s->add_option("--repeats", a->repeats, "of each; medians are printed")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  s->add_option("--transport", a->transport, "ipc or tcp")
      ->capture_default_str()
      ->check(CLI::IsMember({"ipc", "tcp"}));
  s->add_option("--part", a->part, "which measurement alone, or all")
      ->capture_default_str()
      ->check(CLI::IsMember({"all", "rate", "throughput", "shadow", "learning", "crowds"}));
  s->add_flag("--memory", a->memory, "state in memory instead of SQLite");
  s->footer("Example: sluice bench --repeats 7");
  s->callback([=] { exit(Bench(*a)); });
}
}  // namespace cli
SLUICE_END_NAMESPACE
