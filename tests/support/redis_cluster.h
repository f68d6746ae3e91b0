#ifndef SLUICE_TESTS_SUPPORT_REDIS_CLUSTER_H_
#define SLUICE_TESTS_SUPPORT_REDIS_CLUSTER_H_
// A Redis cluster of the test's own: three masters with a replica each, on free ports, every node
// syncing every write.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>

#include <array>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "sluice/tests/support/redis_server.h"

SLUICE_BEGIN_NAMESPACE
class RedisCluster {
 public:
  static constexpr int kNodes = 6;
  RedisCluster() {
    std::string folder = "/tmp/sluice-redis-XXXXXX";
    if (access(kRedisServer, X_OK) != 0 || access("/usr/bin/redis-cli", X_OK) != 0) return;
    if (mkdtemp(folder.data()) == nullptr) return;
    folder_ = folder;
    std::string create = "--cluster create";
    for (int i = 0; i < kNodes; ++i) {
      ports_[i] = FreePort();
      Start(i);
      absl::StrAppend(&create, " ", address(i));
    }
    for (int i = 0; i < kNodes; ++i) WaitFor(i, "PING", "PONG");
    Run(absl::StrCat(create, " --cluster-replicas 1 --cluster-yes"));
    running_ = true;
    for (int i = 0; i < kNodes; ++i) running_ = running_ && Settled(i);
  }
  ~RedisCluster() {
    for (RedisProcess& p : processes_) p.End(SIGKILL);
    std::error_code ignored;
    if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
  }
  bool installed() const { return !folder_.empty(); }
  bool running() const { return running_; }
  std::string address(int node) const { return absl::StrCat("127.0.0.1:", ports_[node]); }
  RedisProcess& process(int node) { return processes_[node]; }
  void Start(int i) {
    const std::string folder = absl::StrCat(folder_, "/", i);
    std::filesystem::create_directories(folder);
    processes_[i].Start({"--port", absl::StrCat(ports_[i]), "--bind", "127.0.0.1", "--dir", folder,
                         "--cluster-enabled", "yes", "--cluster-node-timeout", "1000",
                         "--appendonly", "yes", "--appendfsync", "always", "--save", "",
                         "--repl-diskless-sync-delay", "0"});
  }
  // What redis-cli prints.
  std::string Cli(int node, const std::string& command) const {
    return Run(absl::StrCat("-p ", ports_[node], " ", command));
  }
  bool WaitFor(int node, const std::string& command, const std::string& text) const {
    for (int i = 0; i < 600; ++i) {
      if (absl::StrContains(Cli(node, command), text)) return true;
      usleep(50'000);
    }
    return false;
  }
  int SlotOf(const std::string& key) const {
    int slot = -1;
    (void)absl::SimpleAtoi(Cli(Living(), absl::StrCat("CLUSTER KEYSLOT '", key, "'")), &slot);
    return slot;
  }
  // The node that answers for a key, as the living ones see it; -1: nobody.
  int OwnerOf(const std::string& key) const {
    const int slot = SlotOf(key);
    for (int i = 0; i < kNodes; ++i) {
      if (!processes_[i].running()) continue;
      for (absl::string_view line : absl::StrSplit(Cli(i, "CLUSTER NODES"), '\n')) {
        if (absl::StrContains(line, "myself,master") && Holds(line, slot)) return i;
      }
    }
    return -1;
  }
  std::string IdOf(int node) const {
    return std::string(absl::StripAsciiWhitespace(Cli(node, "CLUSTER MYID")));
  }
  // The node that replicates `master`; -1: none is connected.
  int ReplicaOf(int master) const {
    const std::string port = absl::StrCat("master_port:", ports_[master]);
    for (int i = 0; i < kNodes; ++i) {
      if (!processes_[i].running()) continue;
      const std::string info = Cli(i, "INFO replication");
      if (absl::StrContains(info, port) && absl::StrContains(info, "master_link_status:up"))
        return i;
    }
    return -1;
  }

 private:
  int Living() const {
    for (int i = 0; i < kNodes; ++i) {
      if (processes_[i].running()) return i;
    }
    return 0;
  }
  bool Settled(int i) const {
    return WaitFor(i, "CLUSTER INFO", "cluster_state:ok") &&
           (absl::StrContains(Cli(i, "ROLE"), "master")
                ? WaitFor(i, "INFO replication", "state=online")
                : WaitFor(i, "INFO replication", "master_link_status:up"));
  }
  // A line of CLUSTER NODES ends with its slots: 0-5460 7000
  static bool Holds(absl::string_view line, int slot) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    for (size_t i = 8; i < words.size(); ++i) {
      const std::vector<std::string> ends = absl::StrSplit(words[i], '-');
      int first = -1;
      int last = -1;
      if (!absl::SimpleAtoi(ends[0], &first)) continue;
      if (ends.size() < 2 || !absl::SimpleAtoi(ends[1], &last)) last = first;
      if (first <= slot && slot <= last) return true;
    }
    return false;
  }
  static std::string Run(const std::string& arguments) {
    FILE* f =
        popen(absl::StrCat("timeout 30 /usr/bin/redis-cli ", arguments, " 2>&1").c_str(), "r");
    std::string out;
    char part[4096];
    for (size_t n; (n = fread(part, 1, sizeof part, f)) > 0;) out.append(part, n);
    pclose(f);
    return out;
  }
  static bool Bindable(int port) {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(static_cast<uint16_t>(port));
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const bool bound = bind(fd, reinterpret_cast<sockaddr*>(&at), sizeof at) == 0;
    close(fd);
    return bound;
  }
  // The cluster's own line is on the port 10000 above.
  int FreePort() {
    static int next = 20000 + static_cast<int>(getpid() % 1500) * 8;
    while (!Bindable(next) || !Bindable(next + 10000)) ++next;
    return next++;
  }
  std::string folder_;
  std::array<int, kNodes> ports_{};
  std::array<RedisProcess, kNodes> processes_;
  bool running_ = false;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_REDIS_CLUSTER_H_
