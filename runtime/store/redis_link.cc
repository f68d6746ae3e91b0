#include "sluice/runtime/store/redis_link.h"

#include <hiredis/hiredis.h>

#include <chrono>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "sluice/api/check.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using Clock = std::chrono::steady_clock;
constexpr auto kMoment = std::chrono::milliseconds(50);
constexpr int kRedirections = 4;

absl::string_view Text(const redisReply& r) {
  return r.str == nullptr ? absl::string_view() : absl::string_view(r.str, r.len);
}

// A node without a host is on the host that told of it.
std::string NodeAddress(absl::string_view host, absl::string_view port, absl::string_view teller) {
  return absl::StrCat(host.empty() ? teller.substr(0, teller.rfind(':')) : host, ":", port);
}

// Of a flat list of names and values.
absl::string_view Field(const redisReply& list, absl::string_view name) {
  for (size_t i = 0; i + 1 < list.elements; i += 2) {
    if (Text(*list.element[i]) == name) return Text(*list.element[i + 1]);
  }
  return "";
}

RedisLink::Persistence PersistenceOf(bool append_only, absl::string_view fsync) {
  RedisLink::Persistence p;
  if (!append_only) {
    p.text = "redis without append-only file: NOT durable, everything since the last save is lost";
  } else if (fsync == "always") {
    p.durable = true;
    p.text = "redis, appendfsync always";
  } else if (fsync == "everysec") {
    p.text = "redis, appendfsync everysec: up to a second may be lost";
  } else {
    p.text =
        absl::StrCat("redis, appendfsync ", fsync, ": what the system has not written is lost");
  }
  return p;
}

// CONFIG is often forbidden; INFO tells less.
RedisLink::Persistence AskPersistence(RedisConnection& c, int timeout_ms) {
  const absl::StatusOr<RedisReply> config = c.Send({"CONFIG", "GET", "append*"}, timeout_ms);
  if (!config.ok()) return {false, absl::StrCat("redis, not checked: ", config.status().message())};
  if ((*config)->type == REDIS_REPLY_ARRAY && !Field(**config, "appendonly").empty()) {
    return PersistenceOf(Field(**config, "appendonly") == "yes", Field(**config, "appendfsync"));
  }
  const std::string why((*config)->type == REDIS_REPLY_ERROR ? Text(**config)
                                                             : "CONFIG GET says nothing");
  const absl::StatusOr<RedisReply> info = c.Send({"INFO", "persistence"}, timeout_ms);
  if (info.ok() && absl::StrContains(Text(**info), "aof_enabled:0"))
    return PersistenceOf(false, "");
  if (info.ok() && absl::StrContains(Text(**info), "aof_enabled:1")) {
    return {false,
            absl::StrCat("redis with append-only file, appendfsync could not be checked: ", why)};
  }
  return {false, absl::StrCat("redis, whether it persists could not be checked: ", why)};
}
}  // namespace

RedisLink::RedisLink(const RedisOptions& options, int timeout_ms)
    : options_(options), timeout_ms_(timeout_ms) {
  if (options.cluster) {
    seeds_ = absl::StrSplit(options.address, ',', absl::SkipWhitespace());
    for (std::string& s : seeds_) s = std::string(absl::StripAsciiWhitespace(s));
  } else {
    seeds_ = {options.address};
  }
}

absl::Status RedisLink::Connect() {
  std::lock_guard lock(mutex_);
  return ConnectAnywhere();
}

absl::StatusOr<RedisReply> RedisLink::Call(const RedisCommand& command, int timeout_ms) {
  return Repeat({.command = command,
                 .confirm = false,
                 .timeout_ms = timeout_ms > 0 ? timeout_ms : timeout_ms_});
}

absl::StatusOr<RedisReply> RedisLink::Write(const RedisCommand& command) {
  return Repeat({.command = command, .confirm = options_.cluster, .timeout_ms = timeout_ms_});
}

RedisLink::Persistence RedisLink::persistence() const {
  std::lock_guard lock(persistence_mutex_);
  return persistence_;
}

absl::StatusOr<RedisReply> RedisLink::Repeat(const Task& task) {
  std::lock_guard lock(mutex_);
  const Clock::time_point until = Clock::now() + std::chrono::milliseconds(options_.patience_ms);
  const int at_once = options_.cluster ? kRedirections : 1;
  for (int attempt = 0;; ++attempt) {
    Next next = Next::kDone;
    absl::StatusOr<RedisReply> r = Attempt(task, next);
    if (next == Next::kDone) return r;
    if (next == Next::kAgain && attempt < at_once) continue;
    if (next == Next::kAgain && !options_.cluster) return r;
    if (Clock::now() >= until) return r;
    std::this_thread::sleep_for(kMoment);
  }
}

absl::StatusOr<RedisReply> RedisLink::Attempt(const Task& task, Next& next) {
  if (connection_ == nullptr) {
    const absl::Status status = ConnectAnywhere();
    if (!status.ok()) {
      if (options_.cluster && absl::IsUnavailable(status)) next = Next::kLater;
      return status;
    }
  }
  absl::StatusOr<RedisReply> r = SendTo(*connection_, task);
  if (connection_->over()) {
    connection_ = nullptr;
    next = Next::kAgain;
    return r.status();
  }
  if (!r.ok() || (*r)->type != REDIS_REPLY_ERROR) return r;
  if (options_.cluster) return Redirect(**r, task, next);
  const absl::Status status = connection_->StatusOf(**r);
  if (absl::StartsWith(Text(**r), "LOADING")) next = Next::kLater;
  if (!absl::StartsWith(Text(**r), "MOVED") && !absl::StartsWith(Text(**r), "CROSSSLOT"))
    return status;
  return absl::FailedPreconditionError(
      absl::StrCat(status.message(), ". It is a node of a cluster: redis_cluster: true"));
}

absl::StatusOr<RedisReply> RedisLink::SendTo(RedisConnection& c, const Task& task) const {
  SLUICE_ASSIGN_OR_RETURN(RedisReply r, c.Send(task.command, task.timeout_ms));
  if (task.confirm && r->type != REDIS_REPLY_ERROR) SLUICE_RETURN_IF_ERROR(c.Confirm());
  return r;
}

absl::StatusOr<RedisReply> RedisLink::Redirect(const redisReply& error, const Task& task,
                                               Next& next) {
  const absl::Status status = connection_->StatusOf(error);
  const std::vector<std::string> words = absl::StrSplit(Text(error), ' ');  // MOVED 3999 host:port
  const std::string& kind = words[0];
  if ((kind == "MOVED" || kind == "ASK") && words.size() >= 3) {
    const size_t colon = words[2].rfind(':');
    if (colon == std::string::npos) return status;
    const absl::string_view where = words[2];
    const std::string to =
        NodeAddress(where.substr(0, colon), where.substr(colon + 1), connection_->address());
    if (kind == "ASK") return Ask(to, task, next);
    const absl::Status there = ConnectTo(to);
    next = there.ok() ? Next::kAgain : Next::kLater;
    return there.ok() ? status : there;
  }
  if (kind == "TRYAGAIN") {  // some keys have moved, some not yet
    next = Next::kLater;
    return status;
  }
  if (kind == "CLUSTERDOWN" || kind == "LOADING" || kind == "MASTERDOWN" || kind == "READONLY") {
    connection_ = nullptr;  // another node may know better
    next = Next::kLater;
  }
  return status;
}

// Once, while the slot is on its way there.
absl::StatusOr<RedisReply> RedisLink::Ask(const std::string& address, const Task& task,
                                          Next& next) {
  next = Next::kLater;
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<RedisConnection> there,
                          RedisConnection::Open(address, options_, timeout_ms_));
  SLUICE_RETURN_IF_ERROR(there->Send({"ASKING"}, timeout_ms_).status());
  SLUICE_ASSIGN_OR_RETURN(RedisReply r, SendTo(*there, task));
  const absl::Status status = there->StatusOf(*r);
  if (status.ok()) {
    next = Next::kDone;
    return r;
  }
  return status;
}

absl::Status RedisLink::ConnectTo(const std::string& address) {
  connection_ = nullptr;
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<RedisConnection> c,
                          RedisConnection::Open(address, options_, timeout_ms_));
  if (options_.cluster) SLUICE_RETURN_IF_ERROR(LearnNodes(*c));
  Persistence p = AskPersistence(*c, timeout_ms_);
  if (options_.cluster) absl::StrAppend(&p.text, "; a replica has each write if its node has any");
  {
    std::lock_guard lock(persistence_mutex_);
    persistence_ = std::move(p);
  }
  connection_ = std::move(c);
  return absl::OkStatus();
}

absl::Status RedisLink::ConnectAnywhere() {
  std::vector<std::string> all = seeds_;
  for (const std::string& node : nodes_) all.push_back(node);
  absl::Status status = absl::InvalidArgumentError("redis: no address is given");
  ++turn_;
  for (size_t i = 0; i < all.size(); ++i) {
    status = ConnectTo(all[(turn_ + i) % all.size()]);
    if (!absl::IsUnavailable(status)) return status;
  }
  return status;
}

absl::Status RedisLink::LearnNodes(RedisConnection& c) {
  SLUICE_ASSIGN_OR_RETURN(const RedisReply r, c.Send({"CLUSTER", "SLOTS"}, timeout_ms_));
  if (r->type == REDIS_REPLY_ERROR && absl::StrContains(Text(*r), "cluster support disabled")) {
    return absl::FailedPreconditionError(
        absl::StrCat("redis at ", c.address(), " is no cluster, redis_cluster: true is for one"));
  }
  SLUICE_RETURN_IF_ERROR(c.StatusOf(*r));
  std::set<std::string> nodes;
  for (size_t i = 0; i < r->elements; ++i) {
    const redisReply& range = *r->element[i];  // first slot, last slot, master, replicas
    for (size_t n = 2; n < range.elements; ++n) {
      const redisReply& node = *range.element[n];
      if (node.elements < 2) continue;
      const absl::string_view host = Text(*node.element[0]);
      if (host == "?") continue;  // not known yet
      nodes.insert(NodeAddress(host, absl::StrCat(node.element[1]->integer), c.address()));
    }
  }
  if (!nodes.empty()) nodes_ = std::move(nodes);
  return absl::OkStatus();
}

SLUICE_END_NAMESPACE
