#include "sluice/runtime/store/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/store/record.h"
#include "sluice/tests/support/redis_server.h"

SLUICE_BEGIN_NAMESPACE
namespace {
std::string TempDir() {
  std::string path = testing::TempDir() + "sluice-store-XXXXXX";
  EXPECT_NE(mkdtemp(path.data()), nullptr);
  return path;
}
std::vector<std::string> All(Store& store, uint64_t after = 0) {
  std::vector<std::string> out;
  EXPECT_TRUE(store
                  .Read(after,
                        [&](uint64_t sequence, absl::string_view bytes) {
                          out.push_back(absl::StrCat(sequence, "=", bytes));
                        })
                  .ok());
  return out;
}
void ExerciseStore(Store& s) {
  EXPECT_EQ(*s.LeaseIds(10), 1u);
  EXPECT_EQ(*s.LeaseIds(5), 11u);
  EXPECT_EQ(*s.LeaseIds(1), 16u);
  EXPECT_EQ(*s.Newest(), 0u);
  const std::string binary("\0\xff x", 4);
  EXPECT_THAT(*s.Append({{7, "seven"}, {9, binary}, {7, "again"}}),
              testing::ElementsAre(true, true, false));
  EXPECT_THAT(*s.Append({{9, "nine"}, {8, "eight"}}), testing::ElementsAre(false, true));
  EXPECT_THAT(All(s), testing::ElementsAre("1=seven", absl::StrCat("2=", binary), "3=eight"));
  EXPECT_THAT(All(s, 2), testing::ElementsAre("3=eight"));
  EXPECT_EQ(*s.Newest(), 3u);
  EXPECT_EQ(s.LoadSnapshot("a").status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(s.SaveSnapshot("a", {2, binary}).ok());
  ASSERT_TRUE(s.SaveSnapshot("a", {3, binary + binary}).ok());
  EXPECT_EQ(s.LoadSnapshot("a")->through, 3u);
  EXPECT_EQ(s.LoadSnapshot("a")->bytes, binary + binary);
  EXPECT_EQ(*s.GetOrPut("key", binary), binary);
  EXPECT_EQ(*s.GetOrPut("key", "other"), binary);
}

TEST(Store, Memory) { ExerciseStore(*MakeMemoryStore()); }

TEST(Store, Sqlite) {
  const std::string path = TempDir() + "/state.db";
  {
    auto s = OpenSqliteStore(path);
    ASSERT_TRUE(s.ok()) << s.status();
    ExerciseStore(**s);
  }
  auto again = OpenSqliteStore(path);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(All(**again).size(), 3u);
  EXPECT_EQ(*(*again)->LeaseIds(1), 17u);
  EXPECT_THAT(*(*again)->Append({{7, "again"}}), testing::ElementsAre(false));
}

TEST(Store, SqliteSaysWhatItCannotOpen) {
  EXPECT_THAT(OpenSqliteStore("/no/such/folder/x.db").status().message(),
              testing::HasSubstr("/no/such/folder/x.db"));
  const std::string path = TempDir() + "/text.db";
  FILE* f = fopen(path.c_str(), "w");
  for (int i = 0; i < 200; ++i) fputs("this is no database\n", f);
  fclose(f);
  EXPECT_THAT(OpenSqliteStore(path).status().message(), testing::HasSubstr("not a database"));
}

// A child appends in batches and reports each acknowledged batch through a pipe; it is killed
// somewhere inside. What it acknowledged is there.
TEST(Store, SqliteKeepsWhatItAcknowledgedThroughKill) {
  const std::string path = TempDir() + "/kill.db";
  uint64_t acknowledged = 0;
  for (uint64_t round = 0; round < 6; ++round) {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const pid_t child = fork();
    if (child == 0) {
      close(ends[0]);
      auto s = OpenSqliteStore(path);
      if (!s.ok()) _exit(1);
      for (uint64_t id = acknowledged + 1;; id += 16) {
        std::vector<StoredOutcome> batch;
        for (uint64_t i = 0; i < 16; ++i)
          batch.push_back({id + i, absl::StrCat("outcome ", id + i)});
        if (!(*s)->Append(batch).ok()) _exit(2);
        const uint64_t upto = id + 15;
        if (write(ends[1], &upto, sizeof upto) != sizeof upto) _exit(3);
      }
    }
    close(ends[1]);
    uint64_t seen = 0;
    while (seen < 8 + round * 3 &&
           read(ends[0], &acknowledged, sizeof acknowledged) == sizeof acknowledged)
      ++seen;
    kill(child, SIGKILL);
    while (read(ends[0], &acknowledged, sizeof acknowledged) == sizeof acknowledged) {
    }
    waitpid(child, nullptr, 0);
    close(ends[0]);
    ASSERT_GT(seen, 0u);
    auto s = OpenSqliteStore(path);
    ASSERT_TRUE(s.ok()) << s.status();
    ASSERT_GE(*(*s)->Newest(), acknowledged);
    uint64_t next = 1;
    ASSERT_TRUE((*s)->Read(0,
                           [&](uint64_t sequence, absl::string_view bytes) {
                             EXPECT_EQ(sequence, next);
                             EXPECT_EQ(bytes, absl::StrCat("outcome ", next));
                             ++next;
                           })
                    .ok());
    acknowledged = next - 1;
  }
}

TEST(Store, Redis) {
  RedisServer server;
  if (!server.running()) GTEST_SKIP() << "redis-server is not installed";
  auto s = OpenRedisStore(server.address(), "test");
  ASSERT_TRUE(s.ok()) << s.status();
  ExerciseStore(**s);
  EXPECT_TRUE((*s)->shared());
  std::vector<StoredOutcome> many;
  for (uint64_t i = 100; i < 2000; ++i) many.push_back({i, "x"});
  ASSERT_TRUE((*s)->Append(many).ok());
  EXPECT_EQ(All(**s).size(), 3u + 1900u);
}

TEST(Store, RedisServersShareOneLogAndReconnect) {
  RedisServer server;
  if (!server.running()) GTEST_SKIP() << "redis-server is not installed";
  auto a = OpenRedisStore(server.address(), "two"), b = OpenRedisStore(server.address(), "two");
  ASSERT_TRUE(a.ok() && b.ok());
  const uint64_t first = *(*a)->LeaseIds(100), second = *(*b)->LeaseIds(100);
  EXPECT_EQ(second, first + 100);
  EXPECT_THAT(*(*a)->Append({{1, "a"}}), testing::ElementsAre(true));
  EXPECT_THAT(*(*b)->Append({{1, "b"}, {2, "b"}}), testing::ElementsAre(false, true));
  EXPECT_EQ(All(**a), All(**b));
  server.Restart();  // kept in its append-only file
  EXPECT_THAT(*(*a)->Append({{2, "late"}, {3, "c"}}), testing::ElementsAre(false, true));
  EXPECT_EQ(All(**b).size(), 3u);
}

TEST(Store, RedisSaysWhereItCannotReach) {
  EXPECT_THAT(OpenRedisStore("127.0.0.1:1", "x").status().message(),
              testing::HasSubstr("127.0.0.1:1"));
  EXPECT_THAT(OpenRedisStore("localhost:port", "x").status().message(),
              testing::HasSubstr("not host:port"));
}

// Bytes as earlier versions wrote them, put together by hand.
TEST(Record, ReadsWhatEarlierVersionsWrote) {
  using record_internal::Put;
  for (uint8_t version : {1, 2}) {
    std::string old;
    Put(old, version);
    Put<uint64_t>(old, 12);
    Put<uint64_t>(old, 3);
    Put<uint64_t>(old, 77);
    Put<uint32_t>(old, 1);
    Put(old, 0.25);
    if (version > 1) {
      Put<uint64_t>(old, 99);
      Put<uint32_t>(old, 5);
      Put<uint8_t>(old, 2);
    }
    Put<uint8_t>(old, 1);
    Put<uint8_t>(old, 2);
    Put<uint16_t>(old, 1);
    Put<uint16_t>(old, 300);
    Put(old, 0.75);
    Put(old, 0.25);
    Put(old, 1.5f);
    const std::string receipt = old;
    Put(old, 0.5);
    Put<uint8_t>(old, 1);
    Put(old, 0.01);
    Put(old, 1.5);
    const auto read = ParseOutcome(old);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->decision.unit, version > 1 ? 99u : 0u);
    EXPECT_EQ(read->decision.path, std::vector<int32_t>{300});
    EXPECT_EQ(read->decision.intent, (std::vector<double>{0.75, 0.25}));
    EXPECT_EQ(read->quality, 0.5);
    EXPECT_TRUE(read->graded);
    EXPECT_TRUE(read->accepted);
    EXPECT_EQ(read->latency_s, 1.5);
    EXPECT_TRUE(ParseDecision(receipt).ok());
    EXPECT_FALSE(ParseOutcome(old + "x").ok());
  }
}

TEST(Record, ReadsBackAndRefusesDamage) {
  OutcomeRecord o;
  o.decision = {12, 3, 77, 1, 0.25, 99, 5, 2, {4, 300}, {0.5, 0.25, 0.25}, {1.5f, -2}};
  o.decision.unix_ms = 1700000000000;
  o.decision.blocked = {2, 9};
  o.decision.payers = {0xABCDEF0123456789};
  o.unix_ms = 1700000001000;
  o.calls = {{4, false, 0.004, 0.5}, {300, true, 0.006, 1.0}};
  o.quality = 0.75;
  o.accepted = true;
  o.cost_usd = 0.01;
  o.latency_s = 1.5;
  const std::string bytes = SerializeOutcome(o);
  const auto back = ParseOutcome(bytes);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(SerializeOutcome(*back), bytes);
  EXPECT_EQ(back->decision.path, o.decision.path);
  for (size_t n = 0; n < bytes.size(); ++n) EXPECT_FALSE(ParseOutcome(bytes.substr(0, n)).ok());
  EXPECT_FALSE(ParseOutcome(bytes + "x").ok());
  EXPECT_EQ(back->calls.size(), 2u);
  EXPECT_EQ(back->calls[1].cost_usd, 0.006);
  EXPECT_EQ(back->decision.blocked, o.decision.blocked);
  for (uint64_t i = 0; i < 2000; ++i) {  // any flipped byte is refused or read, never worse
    std::string bad = bytes;
    bad[RandomBits({1, i, 0, 0, 0}) % bad.size()] ^=
        static_cast<char>(1 + RandomBits({2, i, 0, 0, 0}) % 255);
    (void)ParseOutcome(bad);
    (void)ParseDecision(bad);
  }
}
}  // namespace
SLUICE_END_NAMESPACE
