#include "sluice/runtime/store/redis_connection.h"

#include <hiredis/hiredis.h>
#include <pthread.h>
#include <signal.h>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "sluice/api/check.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr int kConfirmMs = 1000;

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

timeval Milliseconds(int ms) { return {ms / 1000, ms % 1000 * 1000}; }
}  // namespace

void FreeRedisReply::operator()(redisReply* r) const { freeReplyObject(r); }

RedisConnection::~RedisConnection() {
  if (context_ != nullptr) redisFree(context_);
}

absl::StatusOr<std::unique_ptr<RedisConnection>> RedisConnection::Open(const std::string& address,
                                                                       const RedisOptions& options,
                                                                       int timeout_ms) {
  std::unique_ptr<RedisConnection> c(new RedisConnection(address, timeout_ms));
  SLUICE_RETURN_IF_ERROR(c->Connect());
  SLUICE_RETURN_IF_ERROR(c->Introduce(options));
  return c;
}

absl::Status RedisConnection::Connect() {
  const timeval timeout = Milliseconds(timeout_ms_);
  if (absl::StartsWith(address_, "/")) {
    context_ = redisConnectUnixWithTimeout(address_.c_str(), timeout);
  } else {
    const size_t colon = address_.rfind(':');
    int port = 6379;
    if (colon != std::string::npos &&
        (!absl::SimpleAtoi(absl::string_view(address_).substr(colon + 1), &port) || port < 1 ||
         port > 65535)) {
      return absl::InvalidArgumentError(
          absl::StrCat("redis address '", address_, "' is not host:port or /path"));
    }
    absl::string_view host = absl::string_view(address_).substr(0, colon);
    if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
    context_ = redisConnectWithTimeout(std::string(host).c_str(), port, timeout);
  }
  if (context_ == nullptr) return Over("no memory");
  if (context_->err != 0) return Over(context_->errstr);
  return absl::OkStatus();
}

absl::Status RedisConnection::Introduce(const RedisOptions& options) {
  const bool named = !options.user.empty() || !options.password.empty();
  RedisCommand command = {"PING"};
  if (named) {
    command = {"AUTH"};
    if (!options.user.empty()) command.push_back(options.user);
    command.push_back(options.password);
  }
  SLUICE_ASSIGN_OR_RETURN(const RedisReply r, Send(command, timeout_ms_));
  if (r->type != REDIS_REPLY_ERROR) return absl::OkStatus();
  std::string text(r->str, r->len);
  if (!named && !absl::StartsWith(text, "NOAUTH")) return absl::OkStatus();  // later calls will say
  // A server that does not know the command repeats what it was told.
  if (!options.password.empty()) text = absl::StrReplaceAll(text, {{options.password, "***"}});
  return absl::UnauthenticatedError(absl::StrCat(
      "redis at ", address_,
      named ? " refuses the user or the password: " : " wants a password, and none was given: ",
      text));
}

absl::Status RedisConnection::Over(absl::string_view why) {
  over_ = true;
  return absl::UnavailableError(absl::StrCat("redis at ", address_, ": ", why));
}

absl::StatusOr<RedisReply> RedisConnection::Send(const RedisCommand& command, int timeout_ms) {
  const NoSigPipe quiet;
  std::vector<const char*> texts;
  std::vector<size_t> lengths;
  for (const std::string& word : command) {
    texts.push_back(word.data());
    lengths.push_back(word.size());
  }
  redisSetTimeout(context_, Milliseconds(timeout_ms));
  RedisReply r(static_cast<redisReply*>(
      redisCommandArgv(context_, static_cast<int>(texts.size()), texts.data(), lengths.data())));
  if (r == nullptr) return Over(context_->errstr);
  return r;
}

absl::Status RedisConnection::Confirm() {
  // Not ROLE: it leaves out a replica that still copies. Once that is done the cluster may put it
  // in this server's place, and it would lack what was sent here meanwhile.
  SLUICE_ASSIGN_OR_RETURN(const RedisReply info, Send({"INFO", "replication"}, timeout_ms_));
  SLUICE_RETURN_IF_ERROR(StatusOf(*info));
  const absl::string_view text(info->str, info->len);
  if (!absl::StrContains(text, "role:master")) return Over("it is no master any more");
  if (absl::StrContains(text, "connected_slaves:0\r\n")) return absl::OkStatus();
  SLUICE_ASSIGN_OR_RETURN(const RedisReply have,
                          Send({"WAIT", "1", absl::StrCat(kConfirmMs)}, timeout_ms_ + kConfirmMs));
  SLUICE_RETURN_IF_ERROR(StatusOf(*have));
  if (have->integer >= 1) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("redis at ", address_, ": no replica confirmed the write within ", kConfirmMs,
                   " ms. It may have been kept: repeating it does no harm"));
}

absl::Status RedisConnection::StatusOf(const redisReply& reply) const {
  if (reply.type != REDIS_REPLY_ERROR) return absl::OkStatus();
  const absl::string_view text(reply.str, reply.len);
  const std::string said = absl::StrCat("redis at ", address_, ": ", text);
  if (absl::StartsWith(text, "NOAUTH")) return absl::UnauthenticatedError(said);
  if (absl::StartsWith(text, "NOPERM") || absl::StrContains(text, "can't run this command"))
    return absl::PermissionDeniedError(said);  // the second: from a script
  return absl::UnavailableError(said);
}
SLUICE_END_NAMESPACE
