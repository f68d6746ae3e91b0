// Servers that share a store, and stores that forget.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <thread>

#include "sluice/runtime/service/retention.h"
#include "sluice/runtime/store/store.h"
#include "sluice/tests/support/ask_server.h"
#include "sluice/tests/support/redis_server.h"
#include "sluice/tests/support/running_server.h"

SLUICE_BEGIN_NAMESPACE
namespace shared_test {
using testing::HasSubstr;
using testing::Not;

constexpr char kTeam[] =
    "task: \"math\" stage { agent { id: \"a\" cost_usd: 0.1 } agent { id: \"b\" } } "
    "learning { publish_ms: 1 epoch_decisions: 4 } ";
v1::Query OnlyA() {
  v1::Query q = Math();
  q.add_exclude("b");
  return q;
}
v1::Outcome Good(const v1::Decision& d) {
  v1::Outcome o;
  o.set_receipt(d.receipt());
  o.set_quality(1);
  o.set_cost_usd(0.1);
  return o;
}
uint64_t Learned(Client& c) {
  return Ask(c, [](v1::Request& q) { q.mutable_list_policies(); })
      .list_policies()
      .policies(0)
      .outcomes();
}
// Whether it becomes true within ten seconds.
bool Soon(const std::function<bool()>& what) {
  for (int i = 0; i < 1000; ++i) {
    if (what()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}
std::string On(const RedisServer& redis, const std::string& more = "") {
  return absl::StrCat(kTeam, "state { redis: \"", redis.address(), "\" ", more, " } ");
}

TEST(Shared, TwoServersSpendOneBudget) {
  RedisServer redis;
  if (!redis.running()) GTEST_SKIP() << "redis-server is not installed";
  const std::string config = On(redis) + "budget { agent: \"a\" usd: 1 per: DAY }";
  RunningServer a(config), b(config);
  auto ca = a.Connect(), cb = b.Connect();
  std::vector<v1::Decision> open;
  for (int i = 0; i < 5; ++i) open.push_back(*ca->Route(OnlyA()));
  // The other one hears of what is held, and has as much less.
  ASSERT_TRUE(Soon([&] { return StatsOf(*cb).budgets(0).reserved_usd() > 0.49; }));
  int more = 0;
  for (int i = 0; i < 20; ++i) more += cb->Route(OnlyA()).ok();
  EXPECT_EQ(more, 5);
  // Paid at the other one: spent for both, held by nobody.
  for (const v1::Decision& d : open)
    ASSERT_EQ(cb->Feedback(Good(d))->status(), v1::FeedbackResult::APPLIED);
  for (Client* c : {ca.get(), cb.get()}) {
    EXPECT_TRUE(Soon([&] {
      const v1::BudgetStats s = StatsOf(*c).budgets(0);
      return s.spent_usd() > 0.499 && s.spent_usd() < 0.501 && s.reserved_usd() < 0.501;
    })) << StatsOf(*c).DebugString();
  }
}

TEST(Shared, ARedisThatForgetsIsSaidToAndNoticed) {
  RedisServer redis({"--appendonly", "no"});
  if (!redis.running()) GTEST_SKIP() << "redis-server is not installed";
  RunningServer s(On(redis));
  auto c = s.Connect();
  EXPECT_THAT(StatsOf(*c).durability(), HasSubstr("NOT durable"));
  EXPECT_THAT(s.log(), HasSubstr("NOT durable"));
  const auto d = c->Route(Math());
  for (int i = 0; i < 31; ++i)
    ASSERT_EQ(c->Feedback(Good(*c->Route(Math())))->status(), v1::FeedbackResult::APPLIED);
  ASSERT_TRUE(Soon([&] { return Learned(*c) == 31; }));
  redis.Restart(SIGKILL);
  // It says so, starts over, and learns on.
  ASSERT_TRUE(Soon([&] { return Learned(*c) == 0; }));
  EXPECT_TRUE(Soon([&] { return s.log().find("the store lost outcomes") != std::string::npos; }))
      << s.log();
  for (int i = 0; i < 3; ++i) {
    const auto next = c->Route(Math());
    ASSERT_TRUE(next.ok()) << next.status();
    ASSERT_EQ(c->Feedback(Good(*next))->status(), v1::FeedbackResult::APPLIED);
  }
  EXPECT_TRUE(Soon([&] { return Learned(*c) == 3; }));
}

TEST(Shared, ADurableRedisIsCalledThat) {
  RedisServer redis;
  if (!redis.running()) GTEST_SKIP() << "redis-server is not installed";
  RunningServer s(On(redis));
  auto c = s.Connect();
  EXPECT_THAT(StatsOf(*c).durability(), HasSubstr("appendfsync always"));
  EXPECT_THAT(StatsOf(*c).durability(), Not(HasSubstr("NOT")));
}

TEST(Shared, APasswordIsReadFromItsFile) {
  RedisServer redis({"--requirepass", "quite secret"});
  if (!redis.running()) GTEST_SKIP() << "redis-server is not installed";
  const std::string file = MakeTempDir() + "/password";
  std::ofstream(file) << "quite secret\n";
  RunningServer s(On(redis, absl::StrCat("redis_password_file: \"", file, "\"")));
  auto c = s.Connect();
  EXPECT_EQ(c->Feedback(Good(*c->Route(Math())))->status(), v1::FeedbackResult::APPLIED);
  std::ofstream(file) << "wrong\n";
  auto settings = ParseSettings("endpoint: \"ipc:///tmp/none\" " +
                                    On(redis, absl::StrCat("redis_password_file: \"", file, "\"")),
                                "test");
  const auto refused = Server::Create(*std::move(settings), {});
  EXPECT_THAT(refused.status().message(), HasSubstr(redis.address()));
  EXPECT_THAT(refused.status().message(), Not(HasSubstr("wrong\n")));
}

TEST(Retention, KeepsSoManyAndWhatWasLearned) {
  const std::string folder = MakeTempDir();
  const std::string config =
      absl::StrCat(kTeam, "state { sqlite: \"", folder, "/s.db\" keep_outcomes: 10 }");
  uint64_t digest = 0;
  const auto snapshot = [](Client& c) {
    return Ask(c, [](v1::Request& q) { q.mutable_snapshot(); }).snapshot();
  };
  {
    RunningServer s(config);
    auto c = s.Connect();
    for (int i = 0; i < 50; ++i)
      ASSERT_EQ(c->Feedback(Good(*c->Route(Math())))->status(), v1::FeedbackResult::APPLIED);
    digest = snapshot(*c).policies(0).digest();
    const auto reader = OpenSqliteStore(folder + "/s.db", StoreAccess::kRead);
    ASSERT_TRUE(reader.ok()) << reader.status();
    EXPECT_EQ(*(*reader)->Oldest(), 41u);
    EXPECT_EQ(*(*reader)->Newest(), 50u);
  }
  RunningServer again(config);
  auto c = again.Connect();
  EXPECT_EQ(snapshot(*c).policies(0).digest(), digest);
  EXPECT_EQ(Learned(*c), 50u);
}

TEST(Retention, DaysAreMarkedByTheirFirstOutcome) {
  DayMarks days;
  constexpr int64_t kDay = 24 * 3600 * int64_t{1000};
  days.Note(10 * kDay, 1);
  days.Note(10 * kDay + 5, 2);
  days.Note(12 * kDay, 3);
  days.Note(11 * kDay, 4);  // told late
  EXPECT_EQ(days.FirstSince(10, 99), 1u);
  EXPECT_EQ(days.FirstSince(11, 99), 3u);
  EXPECT_EQ(days.FirstSince(13, 99), 99u);
  DayMarks read;
  read.Parse(days.Serialize());
  EXPECT_EQ(read.FirstSince(11, 99), 3u);
  read.Parse("cut");
  EXPECT_EQ(read.FirstSince(11, 99), 99u);
}
}  // namespace shared_test
SLUICE_END_NAMESPACE
