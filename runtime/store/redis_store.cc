// Outcomes lie in a stream whose ids are their sequence numbers (N-0): trimming it shifts nothing,
// and the last number stays when all are trimmed. Their ids lie in a sorted set by sequence.
// Scripts change both or neither, so a repeated append is harmless and every server reads the same
// order. All keys carry the hash tag {prefix}.
#include <hiredis/hiredis.h>

#include <algorithm>
#include <atomic>
#include <mutex>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "sluice/api/check.h"
#include "sluice/runtime/store/redis_link.h"
#include "sluice/runtime/store/store.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr int kTimeoutMs = 2000;
constexpr int kExchangeTimeoutMs = 500;
constexpr int kMigrateTimeoutMs = 600'000;  // one script over a log of millions
constexpr uint64_t kPage = 512;

// newest and oldest sequence of a log; without a readable outcome oldest is newest + 1.
#define SLUICE_LUA_ENDS                                       \
  "local function ends(log) "                                 \
  "  if redis.call('EXISTS', log) == 0 then return 0, 1 end " \
  "  local info = redis.call('XINFO', 'STREAM', log) "        \
  "  local newest, oldest "                                   \
  "  for i = 1, #info, 2 do "                                 \
  "    local value = info[i + 1] "                            \
  "    if info[i] == 'last-generated-id' then "               \
  "      newest = tonumber(string.match(value, '^%d+')) "     \
  "    elseif info[i] == 'first-entry' and value then "       \
  "      oldest = tonumber(string.match(value[1], '^%d+')) "  \
  "    end "                                                  \
  "  end "                                                    \
  "  return newest, oldest or newest + 1 "                    \
  "end "

constexpr char kEnds[] = SLUICE_LUA_ENDS "return {ends(KEYS[1])}";

// KEYS: counter. ARGV: how many, the last number that this server has got. A counter that went back
// was lost: what others got of it is jumped over.
constexpr char kLease[] = R"(
  local last = tonumber(redis.call('GET', KEYS[1]) or '0')
  local ours = tonumber(ARGV[2])
  if last < ours then
    redis.call('SET', KEYS[1], string.format('%.0f', ours + 1000000))
  end
  return redis.call('INCRBY', KEYS[1], ARGV[1]))";

// KEYS: log, ids. ARGV: decision id, record, ...
constexpr char kAppend[] = SLUICE_LUA_ENDS R"(
  local newest = ends(KEYS[1])
  local fresh = {}
  for i = 1, #ARGV, 2 do
    local is_new = redis.call('ZADD', KEYS[2], 'NX', newest + 1, ARGV[i])
    if is_new == 1 then
      newest = newest + 1
      redis.call('XADD', KEYS[1], string.format('%.0f-0', newest), 'r', ARGV[i + 1])
    end
    fresh[#fresh + 1] = is_new
  end
  return fresh)";

// KEYS: log. ARGV: first, how many. Gives newest, oldest, entries.
constexpr char kRead[] = SLUICE_LUA_ENDS R"(
  local newest, oldest = ends(KEYS[1])
  local from = math.max(tonumber(ARGV[1]), oldest)
  local entries = {}
  if from <= newest then
    entries = redis.call('XRANGE', KEYS[1], string.format('%.0f-0', from), '+', 'COUNT', ARGV[2])
  end
  return {newest, oldest, entries})";

// KEYS: log, ids. ARGV: before, how many ids are kept.
constexpr char kTrim[] = SLUICE_LUA_ENDS R"(
  local newest = ends(KEYS[1])
  if newest == 0 then return 0 end
  local before = math.min(tonumber(ARGV[1]), newest + 1)
  redis.call('XTRIM', KEYS[1], 'MINID', string.format('%.0f-0', before))
  local forget = math.min(before, newest - tonumber(ARGV[2]) + 1)
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('(%.0f', forget))
  return 0)";

// KEYS: a hash of what each server shows: when it ends, a space, the text. ARGV: who, text, ttl.
// It goes to no file and no replica: it ends in a moment, and a synced file costs milliseconds.
constexpr char kExchange[] = R"(
  pcall(redis.set_repl, redis.REPL_NONE)
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f ', now + ARGV[3]) .. ARGV[2])
  local all = redis.call('HGETALL', KEYS[1])
  local others = {}
  for i = 1, #all, 2 do
    local space = string.find(all[i + 1], ' ', 1, true)
    if tonumber(string.sub(all[i + 1], 1, space - 1)) <= now then
      redis.call('HDEL', KEYS[1], all[i])
    elseif all[i] ~= ARGV[1] then
      others[#others + 1] = string.sub(all[i + 1], space + 1)
    end
  end
  return others)";

// An earlier version kept a list, whose numbers were positions, and a plain set of ids, in keys
// without a hash tag. KEYS: its log, ids, next_id, snapshot, meta, then ours in the same order.
// What was trimmed from the list's head is told by the ids. They count as old as the newest
// outcome. A text stays in the list's place, on which a server of that version fails.
constexpr char kMigrate[] = R"(
  if redis.call('TYPE', KEYS[1]).ok == 'string' then return 0 end
  local old = 0
  for i = 1, 5 do old = old + redis.call('EXISTS', KEYS[i]) end
  if old == 0 then return 0 end
  for i = 6, 10 do
    if redis.call('EXISTS', KEYS[i]) == 1 then
      return redis.error_reply('ERR both ' .. KEYS[1] .. ', of an earlier version, and ' .. KEYS[6]
          .. ' are there: delete the keys of one')
    end
  end
  local size = redis.call('LLEN', KEYS[1])
  local sequence = math.max(0, redis.call('SCARD', KEYS[2]) - size)
  for from = 0, size - 1, 512 do
    for _, record in ipairs(redis.call('LRANGE', KEYS[1], from, from + 511)) do
      sequence = sequence + 1
      redis.call('XADD', KEYS[6], string.format('%.0f-0', sequence), 'r', record)
    end
  end
  if redis.call('EXISTS', KEYS[2]) == 1 then
    redis.call('ZUNIONSTORE', KEYS[7], 1, KEYS[2], 'WEIGHTS', string.format('%.0f', sequence))
  end
  for i = 3, 5 do
    if redis.call('EXISTS', KEYS[i]) == 1 then redis.call('RENAME', KEYS[i], KEYS[i + 5]) end
  end
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('SET', KEYS[1], 'moved to ' .. KEYS[6])
  return sequence)";

constexpr const char* kParts[] = {"log", "ids", "next_id", "snapshot", "meta"};

// Of the log, as a reply holds it.
struct Entry {
  uint64_t sequence = 0;
  absl::string_view bytes;
};

absl::Status Nonsense(absl::string_view command) {
  return absl::InternalError(absl::StrCat("redis: ", command, " answered nonsense"));
}

RedisOptions Impatient(RedisOptions options) {
  options.patience_ms = 0;
  return options;
}

class RedisStore final : public Store {
 public:
  explicit RedisStore(const RedisOptions& options)
      : options_(options),
        link_(options, kTimeoutMs),
        exchange_link_(Impatient(options), kExchangeTimeoutMs) {}
  absl::string_view name() const override { return "redis"; }
  bool shared() const override { return true; }
  bool durable() const override { return link_.persistence().durable; }
  std::string durability() const override { return link_.persistence().text; }

  absl::Status Open() {
    if (options_.prefix.empty() || options_.prefix.find_first_of("{}") != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("redis prefix '", options_.prefix,
                       "': any text without braces is allowed, but not none"));
    }
    SLUICE_RETURN_IF_ERROR(link_.Connect());
    // A cluster cannot have a log of the earlier version: its scripts were not legal there.
    if (options_.cluster) return absl::OkStatus();
    return options_.access == StoreAccess::kServe ? Migrate() : CheckMigrated();
  }
  absl::StatusOr<uint64_t> LeaseIds(uint64_t count) override {
    SLUICE_ASSIGN_OR_RETURN(const RedisReply r,
                            Write({"EVAL", kLease, "1", Key("next_id"), absl::StrCat(count),
                                   absl::StrCat(last_id_.load())}));
    const uint64_t last = static_cast<uint64_t>(r->integer);
    last_id_ = std::max<uint64_t>(last_id_, last);
    return last - count + 1;
  }
  absl::StatusOr<std::vector<bool>> Append(absl::Span<const StoredOutcome> outcomes) override {
    RedisCommand command = {"EVAL", kAppend, "2", Key("log"), Key("ids")};
    for (const StoredOutcome& o : outcomes) {
      command.push_back(absl::StrCat(o.decision_id));
      command.push_back(o.bytes);
    }
    SLUICE_ASSIGN_OR_RETURN(const RedisReply r, Write(command));
    if (r->type != REDIS_REPLY_ARRAY || r->elements != outcomes.size()) return Nonsense("append");
    std::vector<bool> fresh;
    for (size_t i = 0; i < r->elements; ++i) fresh.push_back(r->element[i]->integer == 1);
    return fresh;
  }
  absl::StatusOr<uint64_t> Newest() override {
    SLUICE_ASSIGN_OR_RETURN(const auto ends, Ends());
    return ends.first;
  }
  absl::StatusOr<uint64_t> Oldest() override {
    SLUICE_ASSIGN_OR_RETURN(const auto ends, Ends());
    return ends.second;
  }
  absl::Status Read(uint64_t after,
                    absl::FunctionRef<void(uint64_t, absl::string_view)> visit) override {
    std::lock_guard lock(read_mutex_);
    uint64_t newest = 0;
    do {
      SLUICE_ASSIGN_OR_RETURN(newest, ReadPage(after, visit));
    } while (after < newest);
    return absl::OkStatus();
  }
  absl::Status Trim(uint64_t before) override {
    return Write({"EVAL", kTrim, "2", Key("log"), Key("ids"), absl::StrCat(before),
                  absl::StrCat(options_.ids_kept)})
        .status();
  }
  absl::Status SaveSnapshot(const std::string& key, const StoredSnapshot& s) override {
    return Write({"HSET", Key("snapshot"), key, absl::StrCat(s.through, " ", s.bytes)}).status();
  }
  absl::StatusOr<StoredSnapshot> LoadSnapshot(const std::string& key) override {
    SLUICE_ASSIGN_OR_RETURN(const RedisReply r, link_.Call({"HGET", Key("snapshot"), key}));
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
    SLUICE_RETURN_IF_ERROR(Write({"HSETNX", Key("meta"), key, value}).status());
    SLUICE_ASSIGN_OR_RETURN(const RedisReply r, link_.Call({"HGET", Key("meta"), key}));
    if (r->type != REDIS_REPLY_STRING)
      return absl::DataLossError(absl::StrCat("redis: ", Key("meta"), " is no hash of strings"));
    return std::string(r->str, r->len);
  }
  absl::StatusOr<std::vector<std::string>> Exchange(const std::string& who, const std::string& mine,
                                                    int ttl_ms) override {
    SLUICE_RETURN_IF_ERROR(Writable());
    SLUICE_ASSIGN_OR_RETURN(const RedisReply r,
                            exchange_link_.Call({"EVAL", kExchange, "1", Key("live"), who, mine,
                                                 absl::StrCat(ttl_ms)}));
    if (r->type != REDIS_REPLY_ARRAY) return Nonsense("exchange");
    std::vector<std::string> others;
    for (size_t i = 0; i < r->elements; ++i)
      others.emplace_back(r->element[i]->str, r->element[i]->len);
    return others;
  }

 private:
  std::string Key(absl::string_view part) const {
    return absl::StrCat("{", options_.prefix, "}:", part);
  }
  std::string EarlierKey(absl::string_view part) const {
    return absl::StrCat(options_.prefix, ":", part);
  }
  std::string What() const { return absl::StrCat("redis ", Key("log")); }
  absl::Status Writable() const {
    if (options_.access == StoreAccess::kServe) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("redis at ", options_.address, ": it was opened for reading"));
  }
  absl::StatusOr<RedisReply> Write(const RedisCommand& command) {
    SLUICE_RETURN_IF_ERROR(Writable());
    return link_.Write(command);
  }
  // newest, oldest
  absl::StatusOr<std::pair<uint64_t, uint64_t>> Ends() {
    SLUICE_ASSIGN_OR_RETURN(const RedisReply r, link_.Call({"EVAL", kEnds, "1", Key("log")}));
    if (r->type != REDIS_REPLY_ARRAY || r->elements != 2) return Nonsense("ends");
    return std::pair(static_cast<uint64_t>(r->element[0]->integer),
                     static_cast<uint64_t>(r->element[1]->integer));
  }
  // Moves `after` on and returns the newest sequence. The outcome that was read last is read again:
  // a log that lost its end and grew beyond it has another one in its place.
  absl::StatusOr<uint64_t> ReadPage(uint64_t& after,
                                    absl::FunctionRef<void(uint64_t, absl::string_view)> visit) {
    const bool again = after > 0 && after == last_read_.sequence;
    SLUICE_ASSIGN_OR_RETURN(const RedisReply r, link_.Call({"EVAL", kRead, "1", Key("log"),
                                                            absl::StrCat(again ? after : after + 1),
                                                            absl::StrCat(kPage)}));
    if (r->type != REDIS_REPLY_ARRAY || r->elements != 3) return Nonsense("read");
    const uint64_t newest = static_cast<uint64_t>(r->element[0]->integer);
    const uint64_t oldest = static_cast<uint64_t>(r->element[1]->integer);
    SLUICE_RETURN_IF_ERROR(CheckCursor(What(), after, oldest, newest));
    const redisReply& page = *r->element[2];
    const uint64_t before = after;
    for (size_t i = 0; i < page.elements; ++i) {
      SLUICE_ASSIGN_OR_RETURN(const Entry entry, EntryOf(*page.element[i]));
      if (again && i == 0 && entry.sequence == before) {
        if (entry.bytes == last_read_.bytes) continue;
        return absl::DataLossError(
            absl::StrCat(What(), ": outcome ", before, " of ", newest,
                         " is another one than was read before: the log lost its end"));
      }
      if (entry.sequence != after + 1) return Hole(after, absl::StrCat(entry.sequence));
      visit(entry.sequence, entry.bytes);
      last_read_ = {entry.sequence, std::string(entry.bytes)};
      ++after;
    }
    if (after == before && after < newest) return Hole(after, absl::StrCat("none of ", newest));
    return newest;
  }
  // An id, N-0, then field and record.
  static absl::StatusOr<Entry> EntryOf(const redisReply& reply) {
    if (reply.elements != 2 || reply.element[1]->elements != 2) return Nonsense("read");
    absl::string_view id(reply.element[0]->str, reply.element[0]->len);
    const redisReply& record = *reply.element[1]->element[1];
    Entry entry;
    if (!absl::ConsumeSuffix(&id, "-0") || !absl::SimpleAtoi(id, &entry.sequence))
      return Nonsense("read");
    entry.bytes = absl::string_view(record.str, record.len);
    return entry;
  }
  absl::Status Hole(uint64_t after, absl::string_view what) const {
    return absl::DataLossError(
        absl::StrCat(What(), ": after outcome ", after, " comes ", what, ": some were deleted"));
  }
  absl::Status Migrate() {
    RedisCommand command = {"EVAL", kMigrate, absl::StrCat(2 * std::size(kParts))};
    for (const char* part : kParts) command.push_back(EarlierKey(part));
    for (const char* part : kParts) command.push_back(Key(part));
    return link_.Call(command, kMigrateTimeoutMs).status();
  }
  absl::Status CheckMigrated() {
    SLUICE_ASSIGN_OR_RETURN(const RedisReply r, link_.Call({"TYPE", EarlierKey("log")}));
    if (r->str != absl::string_view("list")) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("redis at ", options_.address, ": ", EarlierKey("log"),
                     " is of an earlier version; a server that starts moves it"));
  }

  const RedisOptions options_;
  RedisLink link_;
  RedisLink exchange_link_;  // of its own: it must not wait for an Append
  std::mutex read_mutex_;
  struct {
    uint64_t sequence = 0;
    std::string bytes;
  } last_read_;
  std::atomic<uint64_t> last_id_ = 0;  // a race only makes it smaller for a moment
};
}  // namespace

absl::StatusOr<std::unique_ptr<Store>> OpenRedisStore(const RedisOptions& options) {
  auto store = std::make_unique<RedisStore>(options);
  SLUICE_RETURN_IF_ERROR(store->Open());
  return store;
}
absl::StatusOr<std::unique_ptr<Store>> OpenRedisStore(const std::string& address,
                                                      const std::string& prefix) {
  return OpenRedisStore(RedisOptions{.address = address, .prefix = prefix});
}
SLUICE_END_NAMESPACE
