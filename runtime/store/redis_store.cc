#include <hiredis/hiredis.h>
#include <pthread.h>
#include <signal.h>

#include <cstdlib>
#include <mutex>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/store/store.h"

SLUICE_BEGIN_NAMESPACE
namespace {
// Outcomes lie in one list, their ids in a set. A script adds to both or to neither, so a repeated
// append is harmless and every server reads the same order.
constexpr char kAppend[] =
    "local r = {} "
    "for i = 1, #ARGV, 2 do "
    "  if redis.call('SADD', KEYS[1], ARGV[i]) == 1 then redis.call('RPUSH', KEYS[2], ARGV[i + "
    "1]); r[#r + 1] = 1 "
    "  else r[#r + 1] = 0 end "
    "end return r";
constexpr int kPage = 512;

// hiredis writes to a socket whose server may be gone. The signal that this raises is this
// thread's, and is dropped here.
class NoSigPipe {
 public:
  NoSigPipe() {
    sigemptyset(&pipe_);
    sigaddset(&pipe_, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }
  ~NoSigPipe() {
    const timespec now{0, 0};
    if (!sigismember(&before_, SIGPIPE)) {
      while (sigtimedwait(&pipe_, nullptr, &now) > 0) {
      }
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }

 private:
  sigset_t pipe_, before_;
};

class RedisStore final : public Store {
 public:
  RedisStore(std::string address, std::string prefix)
      : address_(std::move(address)), prefix_(std::move(prefix)) {}
  ~RedisStore() override {
    if (context_ != nullptr) redisFree(context_);
  }
  absl::string_view name() const override { return "redis"; }
  bool shared() const override { return true; }

  absl::Status Connect() {
    if (context_ != nullptr) redisFree(context_);
    context_ = nullptr;
    const timeval timeout{2, 0};
    if (absl::StartsWith(address_, "/")) {
      context_ = redisConnectUnixWithTimeout(address_.c_str(), timeout);
    } else {
      const size_t colon = address_.rfind(':');
      int port = 6379;
      if (colon != std::string::npos &&
          !absl::SimpleAtoi(absl::string_view(address_).substr(colon + 1), &port)) {
        return absl::InvalidArgumentError(
            absl::StrCat("redis address '", address_, "' is not host:port or /path"));
      }
      context_ = redisConnectWithTimeout(address_.substr(0, colon).c_str(), port, timeout);
    }
    if (context_ == nullptr || context_->err != 0) {
      absl::Status status = absl::UnavailableError(absl::StrCat(
          "redis at ", address_, ": ", context_ != nullptr ? context_->errstr : "no memory"));
      if (context_ != nullptr) redisFree(context_);
      context_ = nullptr;
      return status;
    }
    redisSetTimeout(context_, timeout);
    return absl::OkStatus();
  }
  absl::StatusOr<uint64_t> LeaseIds(uint64_t count) override {
    SLUICE_ASSIGN_OR_RETURN(const Reply r, Call({"INCRBY", Key("next_id"), absl::StrCat(count)}));
    return static_cast<uint64_t>(r->integer) - count + 1;
  }
  absl::StatusOr<std::vector<bool>> Append(absl::Span<const StoredOutcome> outcomes) override {
    std::vector<std::string> args = {"EVAL", kAppend, "2", Key("ids"), Key("log")};
    for (const StoredOutcome& o : outcomes) {
      args.push_back(absl::StrCat(o.decision_id));
      args.push_back(o.bytes);
    }
    SLUICE_ASSIGN_OR_RETURN(const Reply r, Call(args));
    if (r->type != REDIS_REPLY_ARRAY || r->elements != outcomes.size())
      return absl::InternalError("redis: append answered nonsense");
    std::vector<bool> fresh;
    for (size_t i = 0; i < r->elements; ++i) fresh.push_back(r->element[i]->integer == 1);
    return fresh;
  }
  absl::StatusOr<uint64_t> Newest() override {
    SLUICE_ASSIGN_OR_RETURN(const Reply r, Call({"LLEN", Key("log")}));
    return static_cast<uint64_t>(r->integer);
  }
  absl::Status Read(uint64_t after,
                    absl::FunctionRef<void(uint64_t, absl::string_view)> visit) override {
    for (;;) {
      SLUICE_ASSIGN_OR_RETURN(const Reply r, Call({"LRANGE", Key("log"), absl::StrCat(after),
                                                   absl::StrCat(after + kPage - 1)}));
      for (size_t i = 0; i < r->elements; ++i)
        visit(++after, {r->element[i]->str, r->element[i]->len});
      if (r->elements < kPage) return absl::OkStatus();
    }
  }
  absl::Status SaveSnapshot(const std::string& key, const StoredSnapshot& s) override {
    return Call({"HSET", Key("snapshot"), key, absl::StrCat(s.through, " ", s.bytes)}).status();
  }
  absl::StatusOr<StoredSnapshot> LoadSnapshot(const std::string& key) override {
    SLUICE_ASSIGN_OR_RETURN(const Reply r, Call({"HGET", Key("snapshot"), key}));
    if (r->type == REDIS_REPLY_NIL) return absl::NotFoundError("no snapshot");
    const absl::string_view text(r->str, r->len);
    StoredSnapshot s;
    const size_t space = text.find(' ');
    if (space == absl::string_view::npos || !absl::SimpleAtoi(text.substr(0, space), &s.through)) {
      return absl::DataLossError("redis: snapshot is not one");
    }
    s.bytes = std::string(text.substr(space + 1));
    return s;
  }
  absl::StatusOr<std::string> GetOrPut(const std::string& key, const std::string& value) override {
    SLUICE_RETURN_IF_ERROR(Call({"HSETNX", Key("meta"), key, value}).status());
    SLUICE_ASSIGN_OR_RETURN(const Reply r, Call({"HGET", Key("meta"), key}));
    if (r->type != REDIS_REPLY_STRING)
      return absl::DataLossError(absl::StrCat("redis: ", Key("meta"), " is no hash of strings"));
    return std::string(r->str, r->len);
  }

 private:
  struct Free {
    void operator()(redisReply* r) const { freeReplyObject(r); }
  };
  using Reply = std::unique_ptr<redisReply, Free>;
  std::string Key(absl::string_view what) const { return absl::StrCat(prefix_, ":", what); }
  // Reconnects once: a restarted server costs nothing, since every call may be repeated.
  absl::StatusOr<Reply> Call(const std::vector<std::string>& args) {
    std::lock_guard lock(mutex_);
    const NoSigPipe quiet;
    std::vector<const char*> argv;
    std::vector<size_t> lengths;
    for (const std::string& a : args) {
      argv.push_back(a.data());
      lengths.push_back(a.size());
    }
    for (int attempt = 0;; ++attempt) {
      if (context_ == nullptr) SLUICE_RETURN_IF_ERROR(Connect());
      Reply r(static_cast<redisReply*>(
          redisCommandArgv(context_, static_cast<int>(argv.size()), argv.data(), lengths.data())));
      if (r != nullptr) {
        if (r->type == REDIS_REPLY_ERROR)
          return absl::UnavailableError(absl::StrCat("redis: ", r->str));
        return r;
      }
      const std::string why = context_->errstr;
      redisFree(context_);
      context_ = nullptr;
      if (attempt > 0)
        return absl::UnavailableError(absl::StrCat("redis at ", address_, ": ", why));
    }
  }
  std::mutex mutex_;
  std::string address_, prefix_;
  redisContext* context_ = nullptr;
};
}  // namespace

absl::StatusOr<std::unique_ptr<Store>> OpenRedisStore(const std::string& address,
                                                      const std::string& prefix) {
  auto store = std::make_unique<RedisStore>(address, prefix);
  SLUICE_RETURN_IF_ERROR(store->Connect());
  return store;
}
SLUICE_END_NAMESPACE
