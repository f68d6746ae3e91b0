// Who may be chosen: breakers, budgets, sessions, and a team that changes while it serves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <set>

#include "sluice/runtime/service/budgets.h"
#include "sluice/runtime/service/epochs.h"
#include "sluice/runtime/service/health.h"
#include "sluice/runtime/service/sessions.h"
#include "sluice/tests/support/ask_server.h"
#include "sluice/tests/support/running_server.h"

SLUICE_BEGIN_NAMESPACE
namespace team_test {
using testing::ElementsAre;
using testing::HasSubstr;

v1::Outcome Ended(const v1::Decision& d, double quality, double cost_usd) {
  v1::Outcome o;
  o.set_receipt(d.receipt());
  o.set_quality(quality);
  o.set_cost_usd(cost_usd);
  return o;
}
std::map<std::string, v1::AgentStats> AgentsOf(Client& c) {
  std::map<std::string, v1::AgentStats> all;
  const v1::StatsResponse stats = StatsOf(c);
  for (const v1::AgentStats& a : stats.agents()) all[a.agent()] = a;
  return all;
}

// --- breakers

constexpr BreakerSettings kThree = {3, 10, 2};
AgentHealth::Call CallAt(int64_t decided_ms, bool failed) {
  AgentHealth::Call c;
  c.failed = failed;
  c.decided_ms = decided_ms;
  return c;
}
Instant At(double s) { return {s, static_cast<int64_t>(s * 1000)}; }

TEST(Breaker, LateFailuresDoNotKeepItOpen) {
  AgentHealth h(1);
  for (int i = 0; i < 3; ++i) h.Called(0, CallAt(500, true), kThree, At(1));
  EXPECT_FALSE(h.MayBeChosen(0, kThree));
  // Decided before it opened, told while it is.
  for (double s : {4.0, 8.0, 10.5}) h.Called(0, CallAt(900, true), kThree, At(s));
  h.Refresh(kThree, At(11.1));
  EXPECT_TRUE(h.MayBeChosen(0, kThree));
}

TEST(Breaker, SuccessesDecidedBeforeItOpenedAreNoProbes) {
  AgentHealth h(1);
  for (int i = 0; i < 3; ++i) h.Called(0, CallAt(500, true), kThree, At(1));
  h.Refresh(kThree, At(12));
  ASSERT_EQ(h.state(0).breaker, AgentHealth::Breaker::kHalfOpen);
  for (int i = 0; i < 5; ++i) h.Called(0, CallAt(900, false), kThree, At(12.1));
  EXPECT_EQ(h.state(0).breaker, AgentHealth::Breaker::kHalfOpen);
  // Nor does a failure of that time open it again.
  h.Called(0, CallAt(950, true), kThree, At(12.2));
  EXPECT_EQ(h.state(0).breaker, AgentHealth::Breaker::kHalfOpen);
  for (int i = 0; i < 2; ++i) h.Called(0, CallAt(12300, false), kThree, At(13));
  EXPECT_EQ(h.state(0).breaker, AgentHealth::Breaker::kClosed);
}

TEST(Breaker, FailuresOfBeforeItClosedDoNotCountAgain) {
  AgentHealth h(1);
  for (int i = 0; i < 3; ++i) h.Called(0, CallAt(500, true), kThree, At(1));
  h.Refresh(kThree, At(12));
  for (int i = 0; i < 2; ++i) h.Called(0, CallAt(12100, false), kThree, At(13));
  for (int i = 0; i < 9; ++i) h.Called(0, CallAt(700, true), kThree, At(14));
  EXPECT_EQ(h.state(0).breaker, AgentHealth::Breaker::kClosed);
}

TEST(Breaker, WhoeverWasNotCalledDidNotSucceed) {
  RunningServer s(
      "task: \"math\" stage { agent { id: \"a\" } } stage { agent { id: \"b\" ability: 1 } agent { "
      "id: \"c\" "
      "} }"
      "breaker { failures: 2 cooldown_s: 60 probes: 1 } learning { publish_ms: 1 explore: 0 }"
      "policy { spec: \"best_single\" }");
  auto c = s.Connect();
  // b fails, then a decision is reported in which only `a` was called, then b fails again: two in a
  // row.
  for (int round = 0; round < 3; ++round) {
    const auto d = c->Route(Math());
    ASSERT_TRUE(d.ok()) << d.status();
    ASSERT_EQ(d->agents(1), "b");
    v1::Outcome o = Ended(*d, 0, 0);
    o.add_agents()->set_agent("a");
    if (round != 1) {
      v1::AgentReport& b = *o.add_agents();
      b.set_agent("b");
      b.set_failed(true);
      b.set_why("HTTP 529");
    }
    ASSERT_EQ(c->Feedback(o)->status(), v1::FeedbackResult::APPLIED);
  }
  const v1::AgentStats b = AgentsOf(*c)["b"];
  EXPECT_EQ(b.breaker(), "open");
  EXPECT_EQ(b.breaker_why(), "HTTP 529");
  EXPECT_GT(b.breaker_ends_in_s(), 50);
  EXPECT_LE(b.breaker_ends_in_s(), 60);
  // Explain says the same of a decision that could not take it.
  const auto d = c->Route(Math());
  EXPECT_EQ(d->agents(1), "c");
  const auto why =
      Ask(*c, [&](v1::Request& q) { q.mutable_explain()->set_decision_id(d->id()); }).explain();
  EXPECT_EQ(why.stages(1).candidates(0).blocked(), "breaker open");
  EXPECT_EQ(why.stages(1).candidates(0).why(), "HTTP 529");
  EXPECT_GT(why.stages(1).candidates(0).free_in_s(), 50);
}

TEST(Breaker, WhenNobodyIsLeftTheAnswerSaysWhenToAskAgain) {
  RunningServer s(
      "task: \"math\" stage { agent { id: \"a\" } } breaker { failures: 1 cooldown_s: 40 }");
  auto c = s.Connect();
  const auto d = c->Route(Math());
  v1::Outcome o = Ended(*d, 0, 0);
  v1::AgentReport& a = *o.add_agents();
  a.set_agent("a");
  a.set_failed(true);
  ASSERT_TRUE(c->Feedback(o).ok());
  const auto r = Ask(*c, [](v1::Request& q) { *q.mutable_route()->add_queries() = Math(); });
  const v1::Error& e = r.route().decisions(0).error();
  EXPECT_EQ(e.code(), v1::UNAVAILABLE);
  EXPECT_GT(e.retry_after_s(), 35);
  EXPECT_LE(e.retry_after_s(), 40);
}

// --- budgets

TEST(Budget, PeriodsAreThoseOfTheCalendar) {
  using C = v1::BudgetConfig;
  const int64_t leap = 1709251199000;  // 2024-02-29T23:59:59Z
  EXPECT_EQ(EndOfPeriodMs(C::MONTH, leap), leap + 1000);
  EXPECT_EQ(PeriodOf(C::MONTH, leap) + 1, PeriodOf(C::MONTH, leap + 1000));
  EXPECT_EQ(EndOfPeriodMs(C::DAY, leap), leap + 1000);
  EXPECT_EQ(EndOfPeriodMs(C::HOUR, leap), leap + 1000);
  const int64_t december = 1735689599999;  // 2024-12-31T23:59:59.999Z
  EXPECT_EQ(EndOfPeriodMs(C::MONTH, december), december + 1);
  EXPECT_EQ(PeriodOf(C::MONTH, december), 2024 * 12 + 11);
  EXPECT_EQ(PeriodOf(C::MONTH, december + 1), 2025 * 12);
}

TEST(Budget, ReservationsAreExactAndExpire) {
  Reservations r;
  r.Reset(2, 160);
  for (int i = 0; i < 100; ++i) r.Hold(0, NanoUsd(0.01), 1000000);
  EXPECT_EQ(r.held(0), NanoUsd(1));
  r.Release(0, NanoUsd(0.25), 1000000);
  EXPECT_EQ(r.held(0), NanoUsd(0.75));
  r.Release(0, NanoUsd(5), 1000000);  // never below nothing
  EXPECT_EQ(r.held(0), 0);
  r.Hold(1, 7, 1000000);
  r.Expire(1000000 + 150000);
  EXPECT_EQ(r.held(1), 7);
  r.Expire(1000000 + 200000);
  EXPECT_EQ(r.held(1), 0);
  r.Release(1, 7, 1000000);  // its outcome comes after all
  EXPECT_EQ(r.held(1), 0);
}

TEST(Budget, AHundredDecisionsAtOnceSpendNoMoreThanThereIs) {
  RunningServer s(
      "task: \"math\" stage { agent { id: \"dear\" cost_usd: 0.01 } }"
      "budget { agent: \"dear\" usd: 1 per: DAY }");
  auto c = s.Connect();
  int served = 0;
  v1::Error last;
  const auto r = Ask(*c, [](v1::Request& q) {
    for (int i = 0; i < 200; ++i) *q.mutable_route()->add_queries() = Math();
  });
  for (const v1::Decision& d : r.route().decisions()) {
    served += !d.has_error();
    if (d.has_error()) last = d.error();
  }
  EXPECT_EQ(served, 100);
  EXPECT_GT(last.retry_after_s(), 0);
  EXPECT_LE(last.retry_after_s(), 86400);
  const auto budget = StatsOf(*c).budgets(0);
  EXPECT_EQ(budget.name(), "dear per day");
  EXPECT_DOUBLE_EQ(budget.reserved_usd(), 1);
  EXPECT_EQ(budget.spent_usd(), 0);
}

TEST(Budget, OutcomesSettleWhatWasReserved) {
  RunningServer s(
      "task: \"math\" stage { agent { id: \"dear\" cost_usd: 0.5 } agent { id: \"cheap\" } }"
      "budget { agent: \"dear\" usd: 1 per: HOUR name: \"cap\" } learning { publish_ms: 1 }");
  auto c = s.Connect();
  v1::Query q = Math();
  q.add_exclude("cheap");
  const auto first = c->Route(q);
  const auto second = c->Route(q);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_FALSE(c->Route(q).ok());
  // It cost a tenth of what was thought: there is room again, exactly for one.
  ASSERT_TRUE(c->Feedback(Ended(*first, 1, 0.05)).ok());
  auto budget = StatsOf(*c).budgets(0);
  EXPECT_DOUBLE_EQ(budget.spent_usd(), 0.05);
  EXPECT_DOUBLE_EQ(budget.reserved_usd(), 0.5);
  // 0.05 spent, 0.5 held: 0.45 are left, and a call is thought to cost 0.5.
  EXPECT_FALSE(c->Route(q).ok());
  ASSERT_TRUE(c->Feedback(Ended(*second, 1, 0.05)).ok());
  EXPECT_TRUE(c->Route(q).ok());
  const auto explained = c->Route(Math());  // of the two only the cheap one fits now
  ASSERT_TRUE(explained.ok());
}

TEST(Budget, AFreePlannerPaysNothingOfTheSolver) {
  RunningServer s(
      "task: \"math\" stage { agent { id: \"plan\" budget_usd_per_hour: 0.01 } }"
      "stage { agent { id: \"solve\" cost_usd: 0.1 } } learning { publish_ms: 1 }");
  auto c = s.Connect();
  for (int i = 0; i < 5; ++i) {
    const auto d = c->Route(Math());
    ASSERT_TRUE(d.ok()) << d.status();
    ASSERT_EQ(c->Feedback(Ended(*d, 1, 0.1))->status(), v1::FeedbackResult::APPLIED);
  }
  EXPECT_EQ(AgentsOf(*c)["plan"].cost_usd(), 0);
  EXPECT_NEAR(AgentsOf(*c)["solve"].cost_usd(), 0.5, 1e-12);
  // Reports say it by call, whatever is expected.
  const auto d = c->Route(Math());
  v1::Outcome o = Ended(*d, 1, 0);
  for (const auto& [agent, usd] : {std::pair("plan", 0.009), std::pair("solve", 0.02)}) {
    v1::AgentReport& a = *o.add_agents();
    a.set_agent(agent);
    a.set_cost_usd(usd);
  }
  ASSERT_EQ(c->Feedback(o)->status(), v1::FeedbackResult::APPLIED);
  EXPECT_NEAR(AgentsOf(*c)["plan"].cost_usd(), 0.009, 1e-12);
}

TEST(Budget, IsByTagAndByWholePath) {
  RunningServer s(
      "task: \"math\" stage { agent { id: \"p\" cost_usd: 0.1 } agent { id: \"q\" cost_usd: 0.6 } }"
      "stage { agent { id: \"r\" cost_usd: 0.1 } agent { id: \"s\" cost_usd: 0.6 } }"
      "budget { tag: \"team-a\" usd: 1 per: MONTH } policy { spec: \"random\" }");
  auto c = s.Connect();
  v1::Query q = Math();
  q.add_tag("team-a");
  double worst = 0;
  int served = 0;
  const std::map<std::string, double> cost = {{"p", 0.1}, {"q", 0.6}, {"r", 0.1}, {"s", 0.6}};
  double sum = 0;
  for (int i = 0; i < 20; ++i) {
    const auto d = c->Route(q);
    if (!d.ok()) continue;
    ++served;
    for (const std::string& a : d->agents()) sum += cost.at(a);
    worst = std::max(worst, sum);
  }
  EXPECT_GE(served, 1);
  EXPECT_LE(worst, 1 + 1e-9);
  // What the cheapest path costs fits no more, and others are not held back.
  EXPECT_GT(worst, 0.8);
  v1::Query other = Math();
  other.add_tag("team-b");
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(c->Route(other).ok());
}

TEST(Budget, IsRememberedAfterARestart) {
  const std::string folder = MakeTempDir();
  const std::string config = absl::StrCat(
      "task: \"math\" stage { agent { id: \"dear\" cost_usd: 0.5 } agent { id: \"cheap\" } }"
      "budget { agent: \"dear\" usd: 1 per: DAY } learning { publish_ms: 1 }"
      "state { sqlite: \"",
      folder, "/s.db\" }");
  v1::Query q = Math();
  q.add_exclude("cheap");
  {
    RunningServer s(config);
    auto c = s.Connect();
    for (int i = 0; i < 2; ++i)
      ASSERT_EQ(c->Feedback(Ended(*c->Route(q), 1, 0.5))->status(), v1::FeedbackResult::APPLIED);
    EXPECT_FALSE(c->Route(q).ok());
  }
  RunningServer s(config);
  auto c = s.Connect();
  EXPECT_DOUBLE_EQ(StatsOf(*c).budgets(0).spent_usd(), 1);
  EXPECT_FALSE(c->Route(q).ok());
}

TEST(Budget, NothingInvalidMeansNone) {
  const std::string team = "task: \"math\" stage { agent { id: \"a\" } } ";
  const auto error = [&](const std::string& more) {
    return std::string(ParseSettings(team + more, "t").status().message());
  };
  EXPECT_THAT(error("budget { agent: \"a\" usd: -1 }"), HasSubstr("-1 USD; allowed: above 0"));
  EXPECT_THAT(error("budget { agent: \"a\" usd: nan }"), HasSubstr("nan USD"));
  EXPECT_THAT(error("budget { agent: \"a\" usd: inf }"), HasSubstr("inf USD"));
  EXPECT_THAT(error("budget { agent: \"a\" }"), HasSubstr("0 USD"));
  EXPECT_THAT(error("budget { usd: 1 }"), HasSubstr("names 0 of agent, key and tag"));
  EXPECT_THAT(error("budget { agent: \"a\" tag: \"t\" usd: 1 }"), HasSubstr("names 2"));
  EXPECT_THAT(error("budget { agent: \"b\" usd: 1 }"), HasSubstr("no agent 'b'"));
  EXPECT_THAT(error("budget { tag: \"t\" usd: 1 } budget { tag: \"t\" usd: 2 }"),
              HasSubstr("given twice"));
  EXPECT_EQ(error("budget { tag: \"t\" usd: 1 } budget { tag: \"t\" usd: 2 per: DAY }"), "");
}

// --- what is told without a grade

TEST(Outcome, WithoutQualityIsNotOfQualityZero) {
  RunningServer s(
      "task: \"math\" stage { agent { id: \"a\" cost_usd: 0.1 } } learning { publish_ms: 1 }");
  auto c = s.Connect();
  const auto d = c->Route(Math());
  v1::Outcome told;
  told.set_receipt(d->receipt());
  told.set_cost_usd(0.2);
  ASSERT_EQ(c->Feedback(told)->status(), v1::FeedbackResult::APPLIED);
  EXPECT_EQ(c->Feedback(told)->status(), v1::FeedbackResult::DUPLICATE);
  const auto policies = Ask(*c, [](v1::Request& q) { q.mutable_list_policies(); }).list_policies();
  EXPECT_EQ(policies.policies(0).outcomes(), 0u);
  // The grade may follow, and costs nothing twice.
  ASSERT_EQ(c->Feedback(Ended(*d, 0.75, 0))->status(), v1::FeedbackResult::APPLIED);
  EXPECT_EQ(c->Feedback(Ended(*d, 0.75, 0))->status(), v1::FeedbackResult::DUPLICATE);
  const v1::StatsResponse stats = StatsOf(*c);
  EXPECT_DOUBLE_EQ(stats.mean_quality(), 0.75);
  EXPECT_NEAR(AgentsOf(*c)["a"].cost_usd(), 0.2, 1e-12);
  told.set_accepted(true);
  EXPECT_THAT(c->Feedback(told)->reason(), HasSubstr("without a quality"));
}

TEST(Outcome, WithoutAReceiptNeedsPermission) {
  RunningServer s("task: \"math\" stage { agent { id: \"a\" } }");
  auto c = s.Connect();
  v1::Outcome o;
  o.mutable_labelled()->set_key("k");
  o.mutable_labelled()->add_agents("a");
  o.mutable_labelled()->set_task("math");
  o.set_quality(1);
  const auto r = c->Feedback(o);
  EXPECT_EQ(r->status(), v1::FeedbackResult::REJECTED);
  EXPECT_THAT(r->reason(), HasSubstr("learning { labelled: true }"));
}

TEST(Epochs, RepeatedOutcomesDoNotMoveThem) {
  Epochs e;
  e.Set(5, 4);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(e.Labelled(), 5u);
  EXPECT_EQ(e.Labelled(), 6u);  // a batch as long as an epoch fills it
  for (int i = 0; i < 5; ++i) e.LabelledDone(true);
  EXPECT_EQ(e.now(), 6u);
  for (int round = 0; round < 1000; ++round) {
    (void)e.Labelled();
    e.LabelledDone(false);
  }
  EXPECT_EQ(e.now(), 6u);
  for (int i = 0; i < 3; ++i) e.Decided();
  EXPECT_EQ(e.now(), 7u);
}

// --- sessions

constexpr char kSessions[] =
    "task: \"math\" stage { agent { id: \"a\" } agent { id: \"b\" } agent { id: \"c\" } }"
    "policy { spec: \"random\" } affinity { price: 0.2 }"
    "learning { publish_ms: 1 epoch_decisions: 1 }";

TEST(Affinity, ASessionKeepsItsAgentsByNameOrReceipt) {
  RunningServer s(kSessions);
  auto c = s.Connect();
  for (const bool stateless : {false, true}) {
    v1::Query q = Math();
    if (!stateless) q.set_session("chat-7");
    const auto first = c->Route(q);
    EXPECT_FALSE(first->kept());
    std::set<std::string> seen = {first->agents(0)};
    std::string receipt = first->receipt();
    for (int i = 0; i < 30; ++i) {
      if (stateless) q.set_previous(receipt);
      const auto next = c->Route(q);
      ASSERT_TRUE(next.ok()) << next.status();
      EXPECT_TRUE(next->kept());
      EXPECT_EQ(next->propensity(), 1);
      seen.insert(next->agents(0));
      receipt = next->receipt();
    }
    EXPECT_EQ(seen.size(), 1u);
  }
  std::set<std::string> without;
  for (int i = 0; i < 30; ++i) without.insert(c->Route(Math())->agents(0));
  EXPECT_GT(without.size(), 1u);
  v1::Query forged = Math();
  forged.set_previous("no receipt");
  EXPECT_THAT(c->Route(forged).status().message(), HasSubstr("previous: receipt"));
}

TEST(Affinity, MovesWhenMovingIsWorthItOrNobodyIsThere) {
  RunningServer s(kSessions);
  auto c = s.Connect();
  v1::Query q = Math();
  q.set_session("chat");
  const std::string mine = c->Route(q)->agents(0);
  // The session's agent turns out bad, all others good.
  for (int i = 0; i < 60; ++i) {
    const auto d = c->Route(Math());
    ASSERT_TRUE(c->Feedback(Ended(*d, d->agents(0) == mine ? 0 : 1, 0)).ok());
  }
  auto moved = c->Route(q);
  for (int i = 0; i < 100 && moved->kept(); ++i) moved = c->Route(q);
  EXPECT_FALSE(moved->kept());
  // One that may not be chosen is left at once.
  const std::string now = moved->agents(0);
  v1::Query barred = q;
  barred.add_exclude(now);
  EXPECT_NE(c->Route(barred)->agents(0), now);
}

TEST(Sessions, ForgetsThoseLongestNotSeen) {
  Sessions s;
  s.SetMost(2);
  s.Remember("a", 1, {1});
  s.Remember("b", 1, {2});
  EXPECT_NE(s.Find("a"), nullptr);
  s.Remember("c", 1, {3});
  EXPECT_EQ(s.Find("b"), nullptr);
  EXPECT_EQ(s.Find("a")->path, std::vector<int32_t>{1});
  EXPECT_EQ(s.Find("c")->path, std::vector<int32_t>{3});
}

TEST(Fallbacks, AreRankedAndMayBeChosen) {
  RunningServer s(
      "task: \"math\" stage { agent { id: \"a\" ability: 0.9 } agent { id: \"b\" ability: 0.5 }"
      "agent { id: \"c\" ability: 0.7 } agent { id: \"d\" ability: 0.6 } agent { id: \"e\" "
      "ability: 0.1 } }"
      "policy { spec: \"best_single\" } learning { explore: 0 }");
  auto c = s.Connect();
  const auto d = c->Route(Math());
  ASSERT_EQ(d->fallbacks_size(), 1);
  EXPECT_EQ(d->agents(0), "a");
  EXPECT_THAT(d->fallbacks(0).agents(), ElementsAre("c", "d", "b"));
  v1::Query q = Math();
  q.add_exclude("c");
  EXPECT_THAT(c->Route(q)->fallbacks(0).agents(), ElementsAre("d", "b", "e"));
}

// --- exploration

TEST(Explore, TheServedPolicyNeverStopsLooking) {
  RunningServer s(
      "task: \"math\" stage { agent { id: \"a\" ability: 0.9 } agent { id: \"b\" ability: 0.1 } }"
      "policy { spec: \"best_single\" }");
  auto c = s.Connect();
  int b = 0;
  constexpr int kAll = 4000;
  for (int i = 0; i < kAll / 1000; ++i) {
    const auto r = Ask(*c, [](v1::Request& q) {
      for (int k = 0; k < 1000; ++k) *q.mutable_route()->add_queries() = Math();
    });
    for (const v1::Decision& d : r.route().decisions()) {
      b += d.agents(0) == "b";
      EXPECT_NEAR(d.propensity(), d.agents(0) == "b" ? 0.01 : 0.99, 1e-9);
    }
  }
  EXPECT_NEAR(b, 0.01 * kAll, 4 * std::sqrt(0.01 * kAll));
}

// --- a team that changes

class Reloading {
 public:
  explicit Reloading(const std::string& config) {
    Write(config);
    server_ = std::make_unique<RunningServer>("", path_);
    client_ = server_->Connect();
  }
  void Write(const std::string& config) {
    std::ofstream(path_) << "endpoint: \"ipc://" << folder_ << "/s\"\n" << config;
  }
  // The statistics when it is done, one way or the other.
  v1::StatsResponse Reload() {
    const v1::StatsResponse before = StatsOf(*client_);
    server_->server().Reload();
    for (int i = 0; i < 2000; ++i) {
      const v1::StatsResponse now = StatsOf(*client_);
      if (now.reloads() + now.failed_reloads() > before.reloads() + before.failed_reloads())
        return now;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    ADD_FAILURE() << "no reload: " << server_->log();
    return {};
  }
  Client& client() { return *client_; }
  RunningServer& server() { return *server_; }

 private:
  std::string folder_ = MakeTempDir();
  std::string path_ = folder_ + "/c.textproto";
  std::unique_ptr<RunningServer> server_;
  std::unique_ptr<Client> client_;
};
std::string Joined(const google::protobuf::RepeatedPtrField<std::string>& lines) {
  std::string all;
  for (const std::string& l : lines) absl::StrAppend(&all, l, "\n");
  return all;
}

TEST(TeamChange, WhatWasLearnedOfTheRestStays) {
  const std::string more =
      "policy { spec: \"thompson\" } learning { publish_ms: 1 epoch_decisions: 4 labelled: true }";
  Reloading r(
      "task: \"math\" task: \"code\" stage { agent { id: \"good\" } agent { id: \"bad\" } "
      "agent { id: \"gone\" } }" +
      more);
  for (int i = 0; i < 90; ++i) {
    v1::Outcome o;
    o.mutable_labelled()->set_key(absl::StrCat("k", i));
    o.mutable_labelled()->set_task(i % 2 == 0 ? "math" : "code");
    const std::string agent = i % 3 == 0 ? "good" : i % 3 == 1 ? "bad" : "gone";
    o.mutable_labelled()->add_agents(agent);
    o.set_quality(agent == "good" ? 1 : 0);
    ASSERT_EQ(r.client().Feedback(o)->status(), v1::FeedbackResult::APPLIED);
  }
  const auto open = r.client().Route(Math());  // its outcome comes when the team has changed
  // One is renamed, one leaves, one comes first so that all numbers move; so do the tasks.
  r.Write(
      "task: \"poetry\" task: \"math\" task: \"code\" stage { agent { id: \"new\" } agent { id: "
      "\"bad\" } agent { id: \"great\" was: \"good\" } }" +
      more);
  const v1::StatsResponse stats = r.Reload();
  ASSERT_EQ(stats.reloads(), 1u) << stats.last_reload_error();
  EXPECT_THAT(Joined(stats.last_reload()), HasSubstr("poetry"));
  const auto policies =
      Ask(r.client(), [](v1::Request& q) { q.mutable_list_policies(); }).list_policies();
  EXPECT_EQ(policies.policies(0).outcomes(), 60u);
  std::map<std::string, int> chosen;
  for (int i = 0; i < 200; ++i) {
    v1::Query q = Math();
    q.add_exclude("new");
    ++chosen[r.client().Route(q)->agents(0)];
  }
  EXPECT_GT(chosen["great"], 180);
  EXPECT_EQ(r.client().Feedback(Ended(*open, 1, 0))->status(), v1::FeedbackResult::APPLIED);
}

// Of a path with an agent that left, the others' part is still worth knowing.
TEST(TeamChange, ALeavingAgentTakesOnlyItsOwnWithIt) {
  const std::string solve = "stage { agent { id: \"s\" } agent { id: \"t\" } } ";
  const std::string more =
      "policy { spec: \"thompson\" } learning { publish_ms: 1 epoch_decisions: 4 labelled: true }";
  Reloading r("task: \"math\" stage { agent { id: \"p\" } agent { id: \"q\" } } " + solve + more);
  for (int i = 0; i < 80; ++i) {
    v1::Outcome o;
    o.mutable_labelled()->set_key(absl::StrCat("k", i));
    o.mutable_labelled()->set_task("math");
    o.mutable_labelled()->add_agents("q");
    o.mutable_labelled()->add_agents(i % 2 == 0 ? "s" : "t");
    o.set_quality(i % 2);
    ASSERT_EQ(r.client().Feedback(o)->status(), v1::FeedbackResult::APPLIED);
  }
  const auto open = r.client().Route(Math());
  r.Write("task: \"math\" stage { agent { id: \"p\" } } " + solve + more);
  ASSERT_EQ(r.Reload().reloads(), 1u);
  std::map<std::string, int> chosen;
  for (int i = 0; i < 200; ++i) ++chosen[r.client().Route(Math())->agents(1)];
  EXPECT_GT(chosen["t"], 180);
  EXPECT_EQ(r.client().Feedback(Ended(*open, 1, 0))->status(), v1::FeedbackResult::APPLIED);
}

TEST(Outcome, EachAgentLearnsItsOwnCost) {
  RunningServer s(
      "task: \"math\" stage { agent { id: \"plan\" } agent { id: \"plan-2\" } }"
      "stage { agent { id: \"solve\" } } policy { spec: \"best_single:cost_weight=1,prior=0.001\" }"
      "learning { publish_ms: 1 epoch_decisions: 1 explore: 0 }");
  auto c = s.Connect();
  for (const char* other : {"plan", "plan-2"}) {
    v1::Query q = Math();
    q.add_exclude(other);
    const auto d = c->Route(q);
    v1::Outcome o = Ended(*d, 1, 0);
    for (const std::string& agent : d->agents()) {
      v1::AgentReport& a = *o.add_agents();
      a.set_agent(agent);
      // The planners cost as much as each other; one was only there when solving was dear.
      a.set_cost_usd(agent != "solve" ? 0.1 : d->agents(0) == "plan" ? 0.8 : 0.01);
    }
    ASSERT_EQ(c->Feedback(o)->status(), v1::FeedbackResult::APPLIED);
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const auto d = c->Route(Math());
  const auto why =
      Ask(*c, [&](v1::Request& q) { q.mutable_explain()->set_decision_id(d->id()); }).explain();
  const auto& planners = why.stages(0).candidates();
  EXPECT_NEAR(planners.Get(0).eta(), 0.9, 0.01);
  EXPECT_NEAR(planners.Get(1).eta(), 0.9, 0.01);
}

TEST(Reload, AnOperatorsPolicyStaysUntilTheFileSaysOtherwise) {
  const std::string base =
      "task: \"math\" stage { agent { id: \"a\" } } policy { name: \"x\" spec: \"random\" } "
      "policy { name: \"y\" spec: \"thompson\" } policy { name: \"z\" spec: \"best_single\" } ";
  Reloading r(base + "active_policy: \"x\"");
  (void)Ask(r.client(), [](v1::Request& q) { q.mutable_set_policy()->set_name("y"); });
  r.Write(base + "active_policy: \"x\" limits { max_batch: 7 }");
  v1::StatsResponse stats = r.Reload();
  EXPECT_EQ(stats.policy(), "y");
  EXPECT_THAT(Joined(stats.last_reload()), HasSubstr("limits.max_batch: 1024 -> 7"));
  EXPECT_THAT(Joined(stats.last_reload()), HasSubstr("'y' stays active"));
  r.Write(base + "active_policy: \"z\"");
  stats = r.Reload();
  EXPECT_EQ(stats.policy(), "z");
}

TEST(Reload, SaysWhatNeedsARestartAndAppliesTheRest) {
  const std::string base = "task: \"math\" stage { agent { id: \"a\" } } ";
  Reloading r(base);
  r.Write(base + "limits { max_message_bytes: 4096 feedback_queue: 2 } learning { commit_ms: 9 }");
  const v1::StatsResponse stats = r.Reload();
  const std::string said = Joined(stats.last_reload());
  EXPECT_THAT(said, HasSubstr("needs a restart: limits.max_message_bytes: 1048576 -> 4096"));
  EXPECT_THAT(said, HasSubstr("needs a restart: learning.commit_ms: 2 -> 9"));
  EXPECT_THAT(said, HasSubstr("limits.feedback_queue: 65536 -> 2"));
  v1::Request q;
  for (int i = 0; i < 3; ++i) q.mutable_feedback()->add_outcomes();
  EXPECT_THAT(r.client().Call(q).status().message(), HasSubstr("the feedback queue holds 2"));
}

TEST(Reload, APolicysTextDecidesWhatItLearned) {
  const std::string folder = MakeTempDir();
  const std::string base = absl::StrCat(
      "task: \"math\" stage { agent { id: \"a\" } agent { id: \"b\" } } state { sqlite: \"", folder,
      "/s.db\" } learning { publish_ms: 1 epoch_decisions: 4 } ");
  const auto digest = [](Client& c) {
    return Ask(c, [](v1::Request& q) { q.mutable_snapshot(); }).snapshot().policies(0).digest();
  };
  uint64_t before = 0;
  uint64_t reloaded = 0;
  {
    Reloading r(base + "policy { name: \"p\" spec: \"amro_s:rho=0.1\" }");
    for (int i = 0; i < 40; ++i)
      ASSERT_TRUE(r.client().Feedback(Ended(*r.client().Route(Math()), 1, 0)).ok());
    before = digest(r.client());
    // Another text under the same name has the same shape, and must not inherit the old one's
    // state.
    r.Write(base + "policy { name: \"p\" spec: \"amro_s:rho=0.5\" }");
    EXPECT_EQ(r.Reload().reloads(), 1u);
    reloaded = digest(r.client());
    EXPECT_NE(reloaded, before);
    // The old text under a new name learned what it had learned.
    r.Write(base + "policy { name: \"renamed\" spec: \"amro_s:rho=0.1\" }");
    EXPECT_EQ(r.Reload().reloads(), 2u);
    EXPECT_EQ(digest(r.client()), before);
  }
  RunningServer fresh(base + "policy { name: \"p\" spec: \"amro_s:rho=0.5\" }");
  auto c = fresh.Connect();
  EXPECT_EQ(digest(*c), reloaded);
}

// A file that may not grow stands for a full disk: what was learned cannot be written down under
// the new name, and is served all the same.
TEST(Reload, ARenamedPolicyOnAFullDiskKeepsWhatItLearned) {
  const std::string folder = MakeTempDir();
  const std::string base = absl::StrCat(
      "task: \"math\" stage { agent { id: \"a\" } agent { id: \"b\" } } state { sqlite: \"", folder,
      "/s.db\" } learning { publish_ms: 1 epoch_decisions: 4 } ");
  const auto learned = [](Client& c) {
    return Ask(c, [](v1::Request& q) { q.mutable_snapshot(); }).snapshot().policies(0);
  };
  Reloading r(base + "policy { name: \"p\" spec: \"amro_s:rho=0.1\" }");
  for (int i = 0; i < 40; ++i)
    ASSERT_TRUE(r.client().Feedback(Ended(*r.client().Route(Math()), 1, 0)).ok());
  const uint64_t before = learned(r.client()).digest();
  r.Write(base + "policy { name: \"renamed\" spec: \"amro_s:rho=0.1\" }");

  const auto handler = signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  const rlimit full = {.rlim_cur = 1, .rlim_max = limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &full), 0);
  const v1::StatsResponse stats = r.Reload();
  const auto decision = r.client().Route(Math());
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  signal(SIGXFSZ, handler);

  EXPECT_EQ(stats.reloads(), 1u) << stats.last_reload_error();
  ASSERT_TRUE(decision.ok()) << decision.status();
  EXPECT_EQ(decision->policy(), "renamed");
  EXPECT_EQ(learned(r.client()).name(), "renamed");
  EXPECT_EQ(learned(r.client()).digest(), before);
  EXPECT_EQ(r.client().Feedback(Ended(*decision, 1, 0))->status(), v1::FeedbackResult::APPLIED);
}

TEST(State, ABareNameLiesInTheUsersFolderWhichOnlyServingMakes) {
  const std::string home = MakeTempDir();
  const char* set = getenv("XDG_STATE_HOME");
  const std::string before = set != nullptr ? set : "";
  setenv("XDG_STATE_HOME", home.c_str(), 1);
  const std::string config =
      "task: \"math\" stage { agent { id: \"a\" } } state { sqlite: \"mine.db\" } ";
  const auto settings = ParseSettings(config, "t");
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(settings->config.state().sqlite(), home + "/sluice/mine.db");
  EXPECT_FALSE(std::filesystem::exists(home + "/sluice"));
  {
    RunningServer s(config);
    EXPECT_TRUE(std::filesystem::exists(home + "/sluice/mine.db"));
  }
  set != nullptr ? setenv("XDG_STATE_HOME", before.c_str(), 1) : unsetenv("XDG_STATE_HOME");
}

TEST(Names, ThatWouldBreakAnswersAreRefused) {
  const auto error = [](const std::string& id) {
    return std::string(ParseSettings("task: \"math\" stage { agent { id: \"" + id + "\" } }", "t")
                           .status()
                           .message());
  };
  EXPECT_EQ(error("gr\\303\\274n"), "");
  EXPECT_THAT(error("\\377\\376"), HasSubstr("no UTF-8"));
  EXPECT_THAT(error("\\355\\240\\200"), HasSubstr("no UTF-8"));
  EXPECT_THAT(error("a\\nb"), HasSubstr("control character"));
  EXPECT_THAT(error("a\\177"), HasSubstr("control character"));
  EXPECT_THAT(error(std::string(300, 'x')), HasSubstr("300 bytes"));
}

TEST(Names, ALabelOfTheIntentModelMustBeATask) {
  const std::string model = absl::StrCat("intent { model: \"", SLUICE_SOURCE_DIR,
                                         "/examples/models/intent-encoder-q8_0.gguf\" ");
  const std::string team = "task: \"maths\" task: \"tool_use\" stage { agent { id: \"a\" } } ";
  const auto wrong = ParseSettings(team + model + "}", "t");
  EXPECT_THAT(wrong.status().message(), HasSubstr("the model's label '"));
  EXPECT_THAT(wrong.status().message(), HasSubstr("the tasks are maths, tool_use"));
  const auto mapped =
      ParseSettings(team + model +
                        "label { name: \"math*\" task: \"maths\" } label { name: \"*\" } "
                        "label { name: \"tool_use\" task: \"tool_use\" } }",
                    "t");
  EXPECT_TRUE(mapped.ok()) << mapped.status();
  const auto unknown =
      ParseSettings(team + model + "label { name: \"nothing\" task: \"maths\" } }", "t");
  EXPECT_THAT(unknown.status().message(), HasSubstr("no label 'nothing'"));
}

// --- the end of a server

TEST(Draining, HasADeadlineWhateverClientsDo) {
  RunningServer s(
      "task: \"math\" stage { agent { id: \"a\" } } limits { drain_s: 1 shutdown_delay_s: 0.5 }");
  auto c = s.Connect();
  auto health = s.Connect();
  std::atomic<bool> stop{false};
  std::atomic<int> refused{0};
  std::thread busy([&] {
    for (int i = 0; i < 32; ++i) {
      v1::Request q;
      *q.mutable_route()->add_queries() = Math();
      (void)c->Send(q);
    }
    while (!stop) {
      const auto r = c->Receive(std::chrono::milliseconds(50));
      if (r.ok() && r->error().code() == v1::UNAVAILABLE) ++refused;
      v1::Request q;
      *q.mutable_route()->add_queries() = Math();
      (void)c->Send(q);
    }
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const auto begin = std::chrono::steady_clock::now();
  s.server().Stop();
  // First it only says that it leaves.
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_FALSE(Ask(*health, [](v1::Request& q) { q.mutable_health(); }).health().ready());
  EXPECT_TRUE(health->Route(Math()).ok());
  s.Stop();
  const auto took = std::chrono::steady_clock::now() - begin;
  stop = true;
  busy.join();
  EXPECT_LT(took, std::chrono::seconds(5));
  EXPECT_GT(refused, 0);
}
}  // namespace team_test
SLUICE_END_NAMESPACE
