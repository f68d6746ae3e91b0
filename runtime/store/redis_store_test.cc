#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hiredis/hiredis.h>

#include <atomic>
#include <chrono>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/store/redis_connection.h"
#include "sluice/runtime/store/store.h"
#include "sluice/tests/support/redis_cluster.h"
#include "sluice/tests/support/redis_server.h"
#include "sluice/tests/support/store_checks.h"

SLUICE_BEGIN_NAMESPACE
namespace redis_store_test {
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// What redis-cli would print, of a line of its own.
std::string Print(const redisReply& r) {
  if (r.type == REDIS_REPLY_INTEGER) return absl::StrCat(r.integer);
  if (r.type != REDIS_REPLY_ARRAY) return std::string(r.str == nullptr ? "" : r.str, r.len);
  std::string out;
  for (size_t i = 0; i < r.elements; ++i)
    absl::StrAppend(&out, i > 0 ? " " : "", Print(*r.element[i]));
  return out;
}
std::string Raw(const RedisOptions& options, const RedisCommand& command) {
  auto c = RedisConnection::Open(options.address, options, 5000);
  if (!c.ok()) return c.status().ToString();
  const auto r = (*c)->Send(command, 5000);
  return r.ok() ? Print(**r) : r.status().ToString();
}
std::string Raw(const RedisServer& server, const RedisCommand& command) {
  return Raw(RedisOptions{.address = server.address()}, command);
}
RedisOptions At(const RedisServer& server, const std::string& user = "",
                const std::string& password = "") {
  RedisOptions o;
  o.address = server.address();
  o.prefix = "test";
  o.user = user;
  o.password = password;
  return o;
}

TEST(RedisStore, DoesWhatEveryStoreDoes) {
  RedisServer server;
  if (!server.running()) GTEST_SKIP() << "redis-server is not installed";
  auto s = OpenRedisStore(server.address(), "test");
  ASSERT_TRUE(s.ok()) << s.status();
  ExerciseStore(**s);
  EXPECT_TRUE((*s)->shared());
  ExerciseTrim(**s);
  std::vector<StoredOutcome> many;
  for (uint64_t i = 100; i < 2000; ++i) many.push_back({i, "x"});
  ASSERT_TRUE((*s)->Append(many).ok());
  EXPECT_EQ(AllOutcomes(**s, 6).size(), 1u + 1900u);
}

TEST(RedisStore, ForgetsIdsOfLongAgo) {
  RedisServer server;
  if (!server.running()) GTEST_SKIP() << "redis-server is not installed";
  RedisOptions options = At(server);
  options.ids_kept = 4;
  auto s = OpenRedisStore(options);
  ASSERT_TRUE(s.ok()) << s.status();
  ExerciseForgetting(**s);
}

TEST(RedisStore, ServersShareOneLogAndReconnect) {
  RedisServer server;
  if (!server.running()) GTEST_SKIP() << "redis-server is not installed";
  auto a = OpenRedisStore(server.address(), "two");
  auto b = OpenRedisStore(server.address(), "two");
  ASSERT_TRUE(a.ok() && b.ok());
  const uint64_t first = *(*a)->LeaseIds(100);
  const uint64_t second = *(*b)->LeaseIds(100);
  EXPECT_EQ(second, first + 100);
  EXPECT_THAT(*(*a)->Append({{1, "a"}}), ElementsAre(true));
  EXPECT_THAT(*(*b)->Append({{1, "b"}, {2, "b"}}), ElementsAre(false, true));
  EXPECT_EQ(AllOutcomes(**a), AllOutcomes(**b));
  server.Restart();  // kept in its append-only file
  EXPECT_THAT(*(*a)->Append({{2, "late"}, {3, "c"}}), ElementsAre(false, true));
  EXPECT_EQ(AllOutcomes(**b).size(), 3u);
}

TEST(RedisStore, SaysWhereItCannotReach) {
  EXPECT_THAT(OpenRedisStore("127.0.0.1:1", "x").status().message(), HasSubstr("127.0.0.1:1"));
  EXPECT_THAT(OpenRedisStore("localhost:port", "x").status().message(), HasSubstr("not host:port"));
  EXPECT_THAT(OpenRedisStore("localhost:1", "{x}").status().message(), HasSubstr("'{x}'"));
}

// Appends in a row while the server is killed: what was acknowledged is there when it is back.
TEST(RedisStore, KeepsWhatItAcknowledgedThroughKill) {
  RedisServer server;
  if (!server.running()) GTEST_SKIP() << "redis-server is not installed";
  auto s = OpenRedisStore(At(server));
  ASSERT_TRUE(s.ok()) << s.status();
  EXPECT_TRUE((*s)->durable());
  EXPECT_EQ((*s)->durability(), "redis, appendfsync always");
  std::atomic<uint64_t> acknowledged = 0;
  std::atomic<bool> stop = false;
  std::thread appends([&] {
    for (uint64_t id = 1; !stop;) {
      if (!(*s)->Append({{id, absl::StrCat("outcome ", id)}}).ok()) continue;
      acknowledged = id++;
    }
  });
  for (int round = 0; round < 3; ++round) {
    const uint64_t before = acknowledged;
    while (acknowledged < before + 50) usleep(1000);
    server.Restart(SIGKILL);
  }
  stop = true;
  appends.join();
  const std::vector<std::string> all = AllOutcomes(**s);
  ASSERT_GE(all.size(), acknowledged);
  for (size_t i = 0; i < all.size(); ++i)
    EXPECT_EQ(all[i], absl::StrCat(i + 1, "=outcome ", i + 1));
}

TEST(RedisStore, SaysWhatItsServerKeeps) {
  RedisServer server({"--appendfsync", "everysec"});
  if (!server.running()) GTEST_SKIP() << "redis-server is not installed";
  auto s = OpenRedisStore(At(server));
  ASSERT_TRUE(s.ok()) << s.status();
  EXPECT_FALSE((*s)->durable());
  EXPECT_EQ((*s)->durability(), "redis, appendfsync everysec: up to a second may be lost");

  // Asked again at every connection.
  for (const auto& [fsync, durable] : {std::pair("always", true), std::pair("no", false)}) {
    EXPECT_EQ(Raw(server, {"CONFIG", "SET", "appendfsync", fsync}), "OK");
    Raw(server, {"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"});
    ASSERT_TRUE((*s)->Newest().ok());
    EXPECT_EQ((*s)->durable(), durable);
    EXPECT_THAT((*s)->durability(), HasSubstr(absl::StrCat("appendfsync ", fsync)));
  }

  // A server that does not let us ask.
  EXPECT_EQ(Raw(server, {"ACL", "SETUSER", "half", "on", ">pw", "~*", "+@all", "-config"}), "OK");
  EXPECT_EQ(Raw(server, {"ACL", "SETUSER", "none", "on", ">pw", "~*", "+@all", "-config", "-info"}),
            "OK");
  auto half = OpenRedisStore(At(server, "half", "pw"));
  ASSERT_TRUE(half.ok()) << half.status();
  EXPECT_FALSE((*half)->durable());
  EXPECT_THAT((*half)->durability(),
              AllOf(HasSubstr("appendfsync could not be checked"), HasSubstr("NOPERM")));
  auto none = OpenRedisStore(At(server, "none", "pw"));
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_FALSE((*none)->durable());
  EXPECT_THAT((*none)->durability(), HasSubstr("whether it persists could not be checked"));
}

TEST(RedisStore, NoticesThatTheLogLostItsEnd) {
  RedisServer server({"--appendonly", "no"});
  if (!server.running()) GTEST_SKIP() << "redis-server is not installed";
  auto s = OpenRedisStore(At(server));
  ASSERT_TRUE(s.ok()) << s.status();
  EXPECT_FALSE((*s)->durable());
  EXPECT_THAT((*s)->durability(), HasSubstr("NOT durable"));
  ASSERT_TRUE((*s)->Append({{1, "a"}, {2, "b"}, {3, "c"}}).ok());
  EXPECT_EQ(Raw(server, {"SAVE"}), "OK");
  ASSERT_TRUE((*s)->Append({{4, "d"}, {5, "e"}}).ok());
  auto other = OpenRedisStore(At(server));
  ASSERT_TRUE(other.ok()) << other.status();
  const uint64_t ours = *(*s)->LeaseIds(100);
  const uint64_t theirs = *(*other)->LeaseIds(100);
  server.Restart(SIGKILL);
  const absl::Status lost = ReadNothing(**s, 5);
  EXPECT_EQ(lost.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(lost.message()), HasSubstr("newest outcome is 3, but 5"));
  EXPECT_EQ(AllOutcomes(**s).size(), 3u);
  EXPECT_THAT(*(*s)->Append({{5, "e"}}), ElementsAre(true));  // its id was lost as well

  // Numbers that were leased are not leased again.
  EXPECT_GT(*(*s)->LeaseIds(100), theirs + 99);
  EXPECT_GT(theirs, ours);

  EXPECT_EQ(Raw(server, {"FLUSHALL"}), "OK");
  EXPECT_THAT(std::string(ReadNothing(**s, 4).message()), HasSubstr("is 0, but 4"));
  EXPECT_THAT(AllOutcomes(**s), testing::IsEmpty());
}

// Two servers read all; the log loses its end, and one of them appends more than was lost before
// the other one looks.
TEST(RedisStore, NoticesALogThatGrewAgain) {
  RedisServer server({"--appendonly", "no"});
  if (!server.running()) GTEST_SKIP() << "redis-server is not installed";
  auto slow = OpenRedisStore(At(server));
  auto quick = OpenRedisStore(At(server));
  ASSERT_TRUE(slow.ok() && quick.ok());
  ASSERT_TRUE((*slow)->Append({{1, "a"}, {2, "b"}, {3, "c"}}).ok());
  EXPECT_EQ(Raw(server, {"SAVE"}), "OK");
  ASSERT_TRUE((*slow)->Append({{4, "d"}, {5, "e"}}).ok());
  EXPECT_EQ(AllOutcomes(**slow).size(), 5u);
  EXPECT_THAT(AllOutcomes(**slow, 5), testing::IsEmpty());  // the same one in its place
  ASSERT_TRUE((*slow)->Trim(6).ok());
  EXPECT_THAT(AllOutcomes(**slow, 5), testing::IsEmpty());  // nor is a trimmed one another
  server.Restart(SIGKILL);
  ASSERT_TRUE((*quick)->Append({{6, "f"}, {7, "g"}, {8, "h"}, {9, "i"}}).ok());
  EXPECT_EQ(*(*quick)->Newest(), 7u);
  const absl::Status lost = ReadNothing(**slow, 5);
  EXPECT_EQ(lost.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(lost.message()), HasSubstr("outcome 5 of 7 is another one"));
  EXPECT_EQ(AllOutcomes(**slow).size(), 7u);  // from the start
}

// An operator's hand: from the front it is a gap for whoever was slow, inside it is always one.
TEST(RedisStore, NoticesWhatAnOperatorDeleted) {
  RedisServer server;
  if (!server.running()) GTEST_SKIP() << "redis-server is not installed";
  auto s = OpenRedisStore(At(server));
  ASSERT_TRUE(s.ok()) << s.status();
  for (uint64_t id = 1; id <= 6; ++id) ASSERT_TRUE((*s)->Append({{id, absl::StrCat(id)}}).ok());
  EXPECT_EQ(Raw(server, {"XTRIM", "{test}:log", "MAXLEN", "4"}), "2");
  EXPECT_EQ(*(*s)->Oldest(), 3u);
  EXPECT_THAT(AllOutcomes(**s, 4), ElementsAre("5=5", "6=6"));
  EXPECT_THAT(std::string(ReadNothing(**s, 0).message()), HasSubstr("outcomes 1 to 2"));
  EXPECT_EQ(Raw(server, {"XDEL", "{test}:log", "5-0"}), "1");
  const absl::Status hole = ReadNothing(**s, 4);
  EXPECT_EQ(hole.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(hole.message()), HasSubstr("after outcome 4 comes 6:"));
  EXPECT_EQ(Raw(server, {"XDEL", "{test}:log", "6-0"}), "1");
  EXPECT_THAT(std::string(ReadNothing(**s, 4).message()), HasSubstr("comes none of 6"));
}

// As the previous version did it.
constexpr char kEarlierAppend[] =
    "local r = {} for i = 1, #ARGV, 2 do if redis.call('SADD', KEYS[1], ARGV[i]) == 1 then "
    "redis.call('RPUSH', KEYS[2], ARGV[i + 1]); r[#r + 1] = 1 else r[#r + 1] = 0 end end return r";
std::string EarlierAppend(const RedisServer& server, uint64_t id, const std::string& bytes) {
  return Raw(server,
             {"EVAL", kEarlierAppend, "2", "test:ids", "test:log", absl::StrCat(id), bytes});
}

TEST(RedisStore, MovesALogOfTheEarlierVersion) {
  RedisServer server;
  if (!server.running()) GTEST_SKIP() << "redis-server is not installed";
  const std::string binary("\0\xff\n", 3);
  for (uint64_t id = 1; id <= 1500; ++id)
    ASSERT_EQ(EarlierAppend(server, id * 10, absl::StrCat(id, binary)), "1");
  Raw(server, {"INCRBY", "test:next_id", "20000"});
  Raw(server, {"HSET", "test:snapshot", "ants", "1400 state"});
  Raw(server, {"HSET", "test:meta", "receipt_key", binary});
  Raw(server, {"LTRIM", "test:log", "2", "-1"});  // numbers do not follow

  RedisOptions reading = At(server);
  reading.access = StoreAccess::kRead;
  EXPECT_THAT(std::string(OpenRedisStore(reading).status().message()),
              HasSubstr("test:log is of an earlier version"));
  for (int i = 0; i < 2; ++i) {  // once, whoever opens it how often
    auto s = OpenRedisStore(At(server));
    ASSERT_TRUE(s.ok()) << s.status();
    EXPECT_EQ(*(*s)->Oldest(), 3u);
    EXPECT_EQ(*(*s)->Newest(), 1500u);
    const std::vector<std::string> all = AllOutcomes(**s, 2);
    ASSERT_EQ(all.size(), 1498u);
    for (size_t n = 0; n < all.size(); ++n)
      EXPECT_EQ(all[n], absl::StrCat(n + 3, "=", n + 3, binary));
    EXPECT_THAT(*(*s)->Append({{10, "again"}, {15000, "again"}}), ElementsAre(false, false));
    EXPECT_EQ(*(*s)->LeaseIds(1), 20001u + i);
    EXPECT_EQ((*s)->LoadSnapshot("ants")->through, 1400u);
    EXPECT_EQ((*s)->LoadSnapshot("ants")->bytes, "state");
    EXPECT_EQ(*(*s)->GetOrPut("receipt_key", "another"), binary);
  }
  EXPECT_TRUE(OpenRedisStore(reading).ok());
  RedisOptions forgetful = At(server);
  forgetful.ids_kept = 4;
  auto trims = OpenRedisStore(forgetful);
  ASSERT_TRUE(trims.ok()) << trims.status();
  ASSERT_TRUE((*trims)->Trim(1000).ok());
  EXPECT_EQ(*(*trims)->Oldest(), 1000u);
  EXPECT_THAT(*(*trims)->Append({{20, "again"}}), ElementsAre(false));  // as old as the newest

  // A server of that version does not write beside it unseen.
  EXPECT_THAT(EarlierAppend(server, 7, "x"), HasSubstr("WRONGTYPE"));
  EXPECT_THAT(Raw(server, {"LLEN", "test:log"}), HasSubstr("WRONGTYPE"));
  EXPECT_TRUE(OpenRedisStore(At(server)).ok());
  Raw(server, {"DEL", "test:log"});
  EXPECT_EQ(EarlierAppend(server, 8, "x"), "1");
  EXPECT_THAT(std::string(OpenRedisStore(At(server)).status().message()),
              AllOf(HasSubstr("test:log"), HasSubstr("{test}:log")));
}

TEST(RedisStore, ServersShowEachOtherNumbers) {
  RedisServer server;
  if (!server.running()) GTEST_SKIP() << "redis-server is not installed";
  auto a = OpenRedisStore(At(server));
  auto b = OpenRedisStore(At(server));
  ASSERT_TRUE(a.ok() && b.ok());
  const std::string binary("\0 \xff 1", 5);
  EXPECT_THAT(*(*a)->Exchange("a", "of a", 60'000), testing::IsEmpty());
  EXPECT_THAT(*(*b)->Exchange("b", binary, 60'000), ElementsAre("of a"));
  EXPECT_THAT(*(*a)->Exchange("a", "newer", 60'000), ElementsAre(binary));
  EXPECT_THAT(*(*b)->Exchange("b", "", 60'000), ElementsAre("newer"));
  EXPECT_THAT(*(*a)->Exchange("a", "newer", 60'000), ElementsAre(""));

  // Numbers that are not shown again disappear.
  EXPECT_THAT(*(*b)->Exchange("b", "short", 50), ElementsAre("newer"));
  EXPECT_THAT(*(*a)->Exchange("a", "x", 60'000), ElementsAre("short"));
  usleep(80'000);
  EXPECT_THAT(*(*a)->Exchange("a", "x", 60'000), testing::IsEmpty());
  EXPECT_EQ(Raw(server, {"HLEN", "{test}:live"}), "1");

  // Nothing of it is written to the file, which is synced at every write.
  auto written = [&] {
    const std::string info = Raw(server, {"INFO", "persistence"});
    const size_t at = info.find("aof_current_size:");
    return info.substr(at, info.find('\r', at) - at);
  };
  const std::string before = written();
  for (int i = 0; i < 100; ++i) EXPECT_TRUE((*a)->Exchange("a", absl::StrCat(i), 1000).ok());
  EXPECT_EQ(written(), before);
  ASSERT_TRUE((*a)->Append({{1, "x"}}).ok());
  EXPECT_NE(written(), before);
  server.Restart(SIGKILL);
  EXPECT_THAT(*(*b)->Exchange("b", "y", 1000), testing::IsEmpty());
}

TEST(RedisStore, SaysWhoItIs) {
  RedisServer server({"--requirepass", "open-sesame"});
  if (!server.running()) GTEST_SKIP() << "redis-server is not installed";
  const absl::Status missing = OpenRedisStore(At(server)).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(std::string(missing.message()),
              AllOf(HasSubstr(server.address()), HasSubstr("none was given")));
  const absl::Status wrong = OpenRedisStore(At(server, "", "open-barley")).status();
  EXPECT_EQ(wrong.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(std::string(wrong.message()),
              AllOf(HasSubstr(server.address()), HasSubstr("refuses the user or the password"),
                    Not(HasSubstr("barley")), Not(HasSubstr("sesame"))));

  const RedisOptions right = At(server, "", "open-sesame");
  auto s = OpenRedisStore(right);
  ASSERT_TRUE(s.ok()) << s.status();
  ASSERT_TRUE((*s)->Append({{1, "one"}}).ok());
  server.Restart();  // the password is told again
  ASSERT_TRUE((*s)->Append({{2, "two"}}).ok());

  EXPECT_EQ(Raw(right, {"ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-@dangerous"}), "OK");
  auto app = OpenRedisStore(At(server, "app", "pw"));
  ASSERT_TRUE(app.ok()) << app.status();
  EXPECT_EQ(AllOutcomes(**app).size(), 2u);
  EXPECT_EQ(OpenRedisStore(At(server, "nobody", "pw")).status().code(),
            absl::StatusCode::kUnauthenticated);

  // A server that does not know the command says what it was told.
  RedisServer renamed({"--rename-command", "AUTH", "KNOCK"});
  const absl::Status echoed = OpenRedisStore(At(renamed, "", "open-sesame")).status();
  EXPECT_THAT(std::string(echoed.message()),
              AllOf(HasSubstr("unknown command"), Not(HasSubstr("sesame"))));
}

TEST(RedisStore, ReaderBesideServers) {
  RedisServer server;
  if (!server.running()) GTEST_SKIP() << "redis-server is not installed";
  EXPECT_EQ(Raw(server,
                {"ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@read", "+@connection", "+eval"}),
            "OK");
  auto writer = OpenRedisStore(At(server));
  ASSERT_TRUE(writer.ok()) << writer.status();
  RedisOptions options = At(server, "reader", "pw");
  options.access = StoreAccess::kRead;
  auto reader = OpenRedisStore(options);
  ASSERT_TRUE(reader.ok()) << reader.status();
  Store& r = **reader;
  EXPECT_THAT(AllOutcomes(r), testing::IsEmpty());
  ASSERT_TRUE((*writer)->Append({{1, "one"}}).ok());
  EXPECT_THAT(AllOutcomes(r), ElementsAre("1=one"));
  for (const absl::Status& status :
       {r.Append({{2, "two"}}).status(), r.LeaseIds(1).status(), r.Trim(2),
        r.SaveSnapshot("a", {1, "x"}), r.GetOrPut("a", "b").status(),
        r.Exchange("a", "b", 10).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  }
  options.access = StoreAccess::kServe;  // then Redis refuses
  auto forward = OpenRedisStore(options);
  ASSERT_TRUE(forward.ok()) << forward.status();
  EXPECT_EQ((*forward)->Append({{3, "x"}}).status().code(), absl::StatusCode::kPermissionDenied);
}

RedisOptions InCluster(const std::string& address) {
  RedisOptions o;
  o.address = address;
  o.prefix = "test";
  o.cluster = true;
  return o;
}
#define SLUICE_NEED(cluster)                                                                \
  if (!(cluster).installed()) GTEST_SKIP() << "redis-server or redis-cli is not installed"; \
  ASSERT_TRUE((cluster).running())

TEST(RedisCluster, FollowsTheKeysWhereverTheyGo) {
  RedisCluster cluster;
  SLUICE_NEED(cluster);
  const int slot = cluster.SlotOf("{test}:log");
  const int from = cluster.OwnerOf("{test}:log");
  ASSERT_GE(from, 0);
  const int to = (from + 1) % 3;  // masters are the first three

  // Whichever node is named, dead ones too.
  auto s = OpenRedisStore(InCluster(absl::StrCat("127.0.0.1:1, ", cluster.address(to))));
  ASSERT_TRUE(s.ok()) << s.status();
  ExerciseStore(**s);
  ExerciseTrim(**s);
  EXPECT_TRUE((*s)->durable());
  EXPECT_THAT((*s)->durability(), HasSubstr("a replica has each write"));
  auto other = OpenRedisStore(InCluster(cluster.address(5)));
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(AllOutcomes(**other, 6), AllOutcomes(**s, 6));
  EXPECT_THAT(*(*s)->Exchange("a", "of a", 60'000), testing::IsEmpty());
  EXPECT_THAT(*(*other)->Exchange("b", "of b", 60'000), ElementsAre("of a"));

  // The slot moves to another node, key by key, under a server that goes on appending.
  std::atomic<bool> stop = false;
  std::atomic<uint64_t> kept = 0;
  std::thread appends([&] {
    for (uint64_t id = 1000; !stop; ++id) {
      const auto fresh = (*s)->Append({{id, "moving"}});
      ASSERT_TRUE(fresh.ok()) << fresh.status();
      EXPECT_TRUE((*fresh)[0]);
      ++kept;
    }
  });
  auto passes = [&] {
    const uint64_t before = kept;
    for (int i = 0; i < 500 && kept < before + 5; ++i) usleep(10'000);
    EXPECT_GE(kept, before + 5);
  };
  passes();
  const std::string source = cluster.IdOf(from);
  const std::string target = cluster.IdOf(to);
  const std::string set = absl::StrCat("CLUSTER SETSLOT ", slot);
  EXPECT_THAT(cluster.Cli(to, absl::StrCat(set, " IMPORTING ", source)), HasSubstr("OK"));
  EXPECT_THAT(cluster.Cli(from, absl::StrCat(set, " MIGRATING ", target)), HasSubstr("OK"));
  passes();
  const auto [host, port] =
      std::pair<std::string, std::string>(absl::StrSplit(cluster.address(to), ':'));
  for (const char* part : {"log", "ids"}) {
    EXPECT_THAT(
        cluster.Cli(from, absl::StrCat("MIGRATE ", host, " ", port, " '{test}:", part, "' 0 5000")),
        HasSubstr("OK"));
    usleep(100'000);  // one is here, one there: TRYAGAIN
  }
  passes();  // ASK
  for (const char* part : {"next_id", "snapshot", "meta", "live"}) {
    cluster.Cli(from, absl::StrCat("MIGRATE ", host, " ", port, " '{test}:", part, "' 0 5000"));
  }
  EXPECT_EQ(*(*other)->LeaseIds(1), 17u);
  for (int node : {to, from, (to + 1) % 3}) cluster.Cli(node, absl::StrCat(set, " NODE ", target));
  passes();  // MOVED
  stop = true;
  appends.join();
  EXPECT_EQ(cluster.OwnerOf("{test}:log"), to);
  EXPECT_EQ(AllOutcomes(**other, 7).size(), kept);
  EXPECT_EQ(*(*other)->Newest(), 7 + kept);
}

// The owner of the keys is killed again and again. What was acknowledged is there, once and in
// order, whoever owns the keys in the end.
TEST(RedisCluster, KeepsWhatItAcknowledgedThroughFailover) {
  RedisCluster cluster;
  SLUICE_NEED(cluster);
  // Told of no node but the one that dies first.
  auto s = OpenRedisStore(InCluster(cluster.address(cluster.OwnerOf("{test}:log"))));
  ASSERT_TRUE(s.ok()) << s.status();
  std::atomic<bool> stop = false;
  std::atomic<uint64_t> acknowledged = 0;
  std::atomic<int> failures = 0;
  std::thread appends([&] {
    for (uint64_t id = 1; !stop;) {
      const auto fresh = (*s)->Append({{id, absl::StrCat("outcome ", id)}});
      if (!fresh.ok()) {
        ++failures;
        continue;  // to be repeated, as a caller does
      }
      acknowledged = id++;
    }
  });
  auto passes = [&] {
    const uint64_t before = acknowledged;
    for (int i = 0; i < 3000 && acknowledged < before + 100; ++i) usleep(10'000);
    return acknowledged >= before + 100;
  };
  EXPECT_TRUE(passes());
  std::vector<uint64_t> leases = {*(*s)->LeaseIds(10)};
  for (int round = 0; round < 2; ++round) {
    const int owner = cluster.OwnerOf("{test}:log");
    ASSERT_GE(owner, 0);
    for (int i = 0; i < 200 && cluster.ReplicaOf(owner) < 0; ++i) usleep(50'000);
    ASSERT_GE(cluster.ReplicaOf(owner), 0);
    cluster.process(owner).End(SIGKILL);
    EXPECT_TRUE(passes()) << "no append after the death of node " << owner;
    EXPECT_NE(cluster.OwnerOf("{test}:log"), owner);
    leases.push_back(*(*s)->LeaseIds(10));
    EXPECT_GE(leases[round + 1], leases[round] + 10);
    cluster.Start(owner);
    EXPECT_TRUE(cluster.WaitFor(owner, "INFO replication", "master_link_status:up"));
  }
  stop = true;
  appends.join();
  const std::vector<std::string> all = AllOutcomes(**s);
  ASSERT_GE(all.size(), acknowledged);
  for (size_t i = 0; i < all.size(); ++i)
    ASSERT_EQ(all[i], absl::StrCat(i + 1, "=outcome ", i + 1));
  auto fresh = OpenRedisStore(InCluster(cluster.address(3)));
  ASSERT_TRUE(fresh.ok()) << fresh.status();
  EXPECT_EQ(AllOutcomes(**fresh).size(), all.size());
  std::cerr << acknowledged << " appends, " << failures << " had to be repeated\n";
}

TEST(RedisCluster, AcknowledgesNothingThatNoReplicaHas) {
  RedisCluster cluster;
  SLUICE_NEED(cluster);
  auto s = OpenRedisStore(InCluster(cluster.address(0)));
  ASSERT_TRUE(s.ok()) << s.status();
  ASSERT_TRUE((*s)->Append({{1, "one"}}).ok());
  const int replica = cluster.ReplicaOf(cluster.OwnerOf("{test}:log"));
  ASSERT_GE(replica, 0);
  cluster.process(replica).Signal(SIGSTOP);  // connected, and silent
  absl::Status unconfirmed;
  std::atomic<bool> waits = true;
  std::thread append([&] {
    unconfirmed = (*s)->Append({{2, "two"}}).status();
    waits = false;
  });
  usleep(200'000);
  EXPECT_THAT(*(*s)->Exchange("a", "x", 1000), testing::IsEmpty());
  EXPECT_TRUE(waits) << "the exchange waited for the append";
  append.join();
  EXPECT_EQ(unconfirmed.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(unconfirmed.message()), HasSubstr("no replica confirmed"));
  EXPECT_FALSE((*s)->LeaseIds(1).ok());
  cluster.process(replica).Signal(SIGCONT);
  EXPECT_TRUE((*s)->Append({{2, "two"}}).ok());
  EXPECT_THAT(AllOutcomes(**s), ElementsAre("1=one", "2=two"));

  // Without one that is connected the node is alone, and goes on.
  cluster.process(replica).End(SIGKILL);
  EXPECT_TRUE((*s)->Append({{3, "three"}}).ok());
}

TEST(RedisCluster, SaysWhichKindOfServerItNeeds) {
  RedisServer single;
  if (!single.running()) GTEST_SKIP() << "redis-server is not installed";
  RedisOptions options = At(single);
  options.cluster = true;
  EXPECT_THAT(std::string(OpenRedisStore(options).status().message()),
              AllOf(HasSubstr(single.address()), HasSubstr("is no cluster")));
  RedisCluster cluster;
  SLUICE_NEED(cluster);
  const int owner = cluster.OwnerOf("{test}:log");
  options = InCluster(cluster.address((owner + 1) % 3));
  options.cluster = false;
  EXPECT_THAT(std::string(OpenRedisStore(options).status().message()), HasSubstr("a cluster"));
  options = InCluster("127.0.0.1:1,127.0.0.1:2");
  options.patience_ms = 200;
  const absl::Status nobody = OpenRedisStore(options).status();
  EXPECT_EQ(nobody.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(nobody.message()), HasSubstr("127.0.0.1:"));
}
}  // namespace redis_store_test
SLUICE_END_NAMESPACE
