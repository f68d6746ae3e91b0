// The sidecar through its socket.
#include "sluice/runtime/service/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/service/learner.h"
#include "sluice/tests/support/ask_server.h"
#include "sluice/tests/support/redis_server.h"
#include "sluice/tests/support/running_server.h"

SLUICE_BEGIN_NAMESPACE
namespace server_test {
using testing::HasSubstr;

v1::Outcome Good(const v1::Decision& d, double quality = 1) {
  v1::Outcome o;
  o.set_receipt(d.receipt());
  o.set_quality(quality);
  o.set_cost_usd(0.01);
  o.set_latency_s(0.5);
  return o;
}
v1::SnapshotResponse SnapshotOf(Client& c) {
  return Ask(c, [](v1::Request& q) { q.mutable_snapshot()->set_include_state(true); }).snapshot();
}

TEST(Server, RoutesLearnsAndExplains) {
  RunningServer s;
  auto c = s.Connect();
  const auto d = c->Route(Task("math"));
  ASSERT_TRUE(d.ok()) << d.status();
  ASSERT_EQ(d->agents_size(), 2);
  EXPECT_THAT(d->agents(0), HasSubstr("plan-"));
  EXPECT_GT(d->propensity(), 0);
  EXPECT_EQ(d->policy(), "amro_s");
  const auto f = c->Feedback(Good(*d));
  ASSERT_TRUE(f.ok()) << f.status();
  EXPECT_EQ(f->status(), v1::FeedbackResult::APPLIED);
  EXPECT_EQ(f->decision_id(), d->id());
  EXPECT_EQ(c->Feedback(Good(*d, 0))->status(), v1::FeedbackResult::DUPLICATE);
  const auto why =
      Ask(*c, [&](v1::Request& q) { q.mutable_explain()->set_decision_id(d->id()); }).explain();
  ASSERT_EQ(why.stages_size(), 2);
  EXPECT_EQ(why.stages(1).candidates_size(), 3);
  EXPECT_EQ(why.intent(0).task(), "math");
  EXPECT_EQ(why.intent(0).weight(), 1);
  double p = 1;
  for (int i = 0; i < 2; ++i) {
    for (const auto& candidate : why.stages(i).candidates()) {
      if (candidate.chosen()) {
        EXPECT_EQ(candidate.agent(), d->agents(i));
        p *= candidate.p();
      }
    }
  }
  EXPECT_NEAR(p, d->propensity(), 1e-6);
  const auto stats = StatsOf(*c);
  EXPECT_EQ(stats.decisions(), 1u);
  EXPECT_EQ(stats.feedbacks(), 1u);
  EXPECT_EQ(stats.duplicates(), 1u);
  ASSERT_EQ(stats.paths_size(), 1);
  EXPECT_EQ(stats.paths(0).agents(1), d->agents(1));
  EXPECT_EQ(stats.paths(0).chosen(), 1u);
}

TEST(Server, LearnsWhatItIsTold) {
  RunningServer s;
  auto c = s.Connect();
  for (int i = 0; i < 400; ++i) {
    const auto d = c->Route(Task("code"));
    ASSERT_TRUE(d.ok());
    ASSERT_TRUE(c->Feedback(Good(*d, d->agents(0) == "plan-b" && d->agents(1) == "solve-c")).ok());
  }
  int right = 0;
  for (int i = 0; i < 100; ++i) right += c->Route(Task("code"))->agents(1) == "solve-c";
  EXPECT_GT(right, 60);
  const auto heat = Ask(*c, [](v1::Request& q) { q.mutable_heat_map(); }).heat_map();
  ASSERT_EQ(heat.tasks_size(), 2);
  EXPECT_GT(heat.tasks(1).stages(0).candidates(1).p(), 0.6);
  // Of the other task nothing was told: what this one lends leans there, and no more.
  EXPECT_LT(heat.tasks(0).stages(0).candidates(1).p(), 0.999);
}

TEST(Server, LabelledDataWarmsItUp) {
  RunningServer s;
  auto c = s.Connect();
  auto labelled = [](int i, const std::string& plan, const std::string& solve) {
    v1::Outcome o;
    v1::Labelled& l = *o.mutable_labelled();
    l.set_key(absl::StrCat("query ", i, " by ", plan, ", ", solve));
    l.add_agents(plan);
    l.add_agents(solve);
    l.set_task("math");
    o.set_quality(plan == "plan-a" && solve == "solve-b");
    return o;
  };
  for (int round = 0; round < 2; ++round) {
    v1::Request q;
    for (int i = 0; i < 40; ++i) {
      for (const char* plan : {"plan-a", "plan-b"}) {
        for (const char* solve : {"solve-a", "solve-b", "solve-c"})
          *q.mutable_feedback()->add_outcomes() = labelled(i, plan, solve);
      }
    }
    const auto r = c->Call(q);
    ASSERT_TRUE(r.ok()) << r.status();
    for (const auto& f : r->feedback().results()) {
      EXPECT_EQ(f.status(),
                round == 0 ? v1::FeedbackResult::APPLIED : v1::FeedbackResult::DUPLICATE)
          << f.reason();
    }
  }
  EXPECT_EQ(SnapshotOf(*c).policies(0).outcomes(), 240u);
  int right = 0;
  for (int i = 0; i < 100; ++i) right += c->Route(Task("math"))->agents(1) == "solve-b";
  EXPECT_GT(right, 60);
  v1::Outcome bad = labelled(1, "solve-a", "plan-a");
  EXPECT_THAT(c->Feedback(bad)->reason(), HasSubstr("stage 0 has no agent 'solve-a'"));
  bad = labelled(1, "plan-a", "solve-a");
  bad.mutable_labelled()->clear_task();
  for (double w : {0.5, 0.7}) bad.mutable_labelled()->add_intent(w);
  EXPECT_THAT(c->Feedback(bad)->reason(), HasSubstr("sum to 1.2"));
}

TEST(Server, AnExperimentSplitsUnitsAndFindsTheBetterArm) {
  RunningServer s(absl::StrCat(kTwoStages, R"(
    policy { name: "control" spec: "random" }
    policy { name: "learned" spec: "best_single:prior=1" }
    policy { name: "third" spec: "weighted" }
    experiment {
      name: "spring"
      arm { policy: "control" }
      arm { policy: "learned" }
      shadow: "third"
      effect: 0.1
    })"));
  auto c = s.Connect();
  std::map<std::string, std::string> policy_of;
  for (int i = 0; i < 3000; ++i) {
    v1::Query q = Task("math");
    q.set_unit(absl::StrCat("user ", i % 1500));
    const auto d = c->Route(q);
    ASSERT_TRUE(d.ok()) << d.status();
    EXPECT_EQ(policy_of.emplace(q.unit(), d->policy()).first->second, d->policy());
    v1::Request tell;  // answers are not waited for
    *tell.mutable_feedback()->add_outcomes() =
        Good(*d, d->agents(0) == "plan-a" && d->agents(1) == "solve-b" ? 1 : 0.1);
    ASSERT_TRUE(c->Send(tell).ok());
  }
  EXPECT_EQ(c->Route(Task("math"))->policy(), "control");  // without a unit: the active policy
  v1::ExperimentResponse e;
  for (int i = 0; i < 1000; ++i) {
    e = Ask(*c, [](v1::Request& q) { q.mutable_experiment(); }).experiment();
    if (e.arms(0).outcomes() + e.arms(1).outcomes() == 3000) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(e.arms(0).outcomes() + e.arms(1).outcomes(), 3000u);
  EXPECT_EQ(e.arms(0).units() + e.arms(1).units(), 1500u);
  EXPECT_TRUE(e.readable());
  EXPECT_GT(e.arms(1).metrics(v1::QUALITY).gain() - e.arms(1).metrics(v1::QUALITY).half_interval(),
            0);
  EXPECT_LT(e.arms(1).p(), 0.05);
  EXPECT_EQ(e.shadows(0).decisions(), 3001u);
  EXPECT_GT(e.shadows(0).same(), 0u);
  EXPECT_LT(e.shadows(0).same(), 2000u);
}

TEST(Server, ShadowsNeedNoArms) {
  RunningServer s(absl::StrCat(kTwoStages, R"(
    policy { name: "control" spec: "random" }
    policy { name: "other" spec: "weighted" }
    experiment { shadow: "other" })"));
  auto c = s.Connect();
  for (int i = 0; i < 20; ++i) EXPECT_EQ(c->Route(Task("math"))->policy(), "control");
  const v1::ExperimentResponse e =
      Ask(*c, [](v1::Request& q) { q.mutable_experiment(); }).experiment();
  EXPECT_EQ(e.arms_size(), 0);
  ASSERT_EQ(e.shadows_size(), 1);
  EXPECT_EQ(e.shadows(0).decisions(), 20u);
}

// Sends `n` decisions of `units` users with what the arms earn; waits until all outcomes are in the
// books.
v1::ExperimentResponse RunExperiment(
    Client& c, int n, int units, uint64_t have,
    const std::function<double(const v1::Decision&, int unit)>& quality) {
  for (int i = 0; i < n; ++i) {
    v1::Query q = Task("math");
    q.set_unit(absl::StrCat("user ", i % units));
    const auto d = c.Route(q);
    EXPECT_TRUE(d.ok()) << d.status();
    v1::Request tell;
    *tell.mutable_feedback()->add_outcomes() = Good(*d, quality(*d, i % units));
    EXPECT_TRUE(c.Send(tell).ok());
  }
  v1::ExperimentResponse e;
  for (int i = 0; i < 1000; ++i) {
    e = Ask(c, [](v1::Request& q) { q.mutable_experiment(); }).experiment();
    uint64_t outcomes = 0;
    for (const v1::ArmResult& a : e.arms()) outcomes += a.outcomes();
    if (outcomes >= have) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return e;
}

TEST(Server, AGuardrailStopsAnArmAndItsUnitsGetTheControl) {
  RunningServer s(absl::StrCat(kTwoStages, R"(
    policy { name: "control" spec: "best_single:prior=1" }
    policy { name: "worse" spec: "random" }
    experiment {
      name: "spring"
      arm { policy: "control" }
      arm { policy: "worse" }
      guardrail { metric: QUALITY worse_by: 0.05 }
    })"));
  auto c = s.Connect();
  const auto quality = [](const v1::Decision& d, int unit) {
    return (d.policy() == "control" ? 0.9 : 0.4) + (unit % 10) / 100.0;
  };
  const v1::ExperimentResponse e = RunExperiment(*c, 2000, 1000, 1000, quality);
  EXPECT_THAT(e.arms(1).stopped(), HasSubstr("QUALITY worse by 0."));
  EXPECT_EQ(e.arms(0).stopped(), "");
  EXPECT_LT(e.arms(1).outcomes(), 900u);  // of about 1000, had it gone on
  EXPECT_TRUE(e.readable());              // the stopped arm's share is not held against the split
  for (int i = 0; i < 50; ++i) {
    v1::Query q = Task("math");
    q.set_unit(absl::StrCat("user ", i));
    EXPECT_EQ(c->Route(q)->policy(), "control");
  }
  s.Stop();
  EXPECT_THAT(s.log(), HasSubstr("experiment arm stopped"));
}

TEST(Server, AnExperimentOutlivesTheServerAndUsesWhatWasKnownBefore) {
  const std::string state =
      absl::StrCat(kTwoStages, "state { sqlite: \"", MakeTempDir(), "/state.db\" }", R"(
    policy { name: "control" spec: "random" }
    policy { name: "other" spec: "weighted" }
)");
  const std::string experiment =
      R"(experiment { name: "spring" arm { policy: "control" } arm { policy: "other" } })";
  // Users differ for ever, arms do not.
  const auto quality = [](const v1::Decision& d, int unit) {
    return 0.1 + 0.8 * (unit * 37 % 100) / 100.0 + static_cast<double>(d.id() % 7) / 100.0;
  };
  {
    RunningServer before(state);
    auto c = before.Connect();
    for (int i = 0; i < 1000; ++i) {
      v1::Query q = Task("math");
      q.set_unit(absl::StrCat("user ", i % 200));
      const auto d = c->Route(q);
      ASSERT_TRUE(d.ok());
      ASSERT_TRUE(c->Feedback(Good(*d, quality(*d, i % 200))).ok());
    }
  }
  v1::ExperimentResponse first, second;
  {
    RunningServer running(state + experiment);
    auto c = running.Connect();
    first = RunExperiment(*c, 1000, 200, 1000, quality);
    EXPECT_LT(first.arms(1).metrics(v1::QUALITY).variance_kept(), 0.2);
    EXPECT_EQ(first.arms(0).outcomes() + first.arms(1).outcomes(), 1000u);
  }
  {
    RunningServer again(state + experiment);
    auto c = again.Connect();
    second = Ask(*c, [](v1::Request& q) { q.mutable_experiment(); }).experiment();
  }
  EXPECT_EQ(first.SerializeAsString(), second.SerializeAsString());
  {  // other arms are another experiment, whatever its name
    RunningServer other(state + R"(experiment {
      name: "spring"
      arm { policy: "control" }
      arm { policy: "other" weight: 2 }
    })");
    auto c = other.Connect();
    EXPECT_EQ(
        Ask(*c, [](v1::Request& q) { q.mutable_experiment(); }).experiment().arms(0).outcomes(),
        0u);
  }
}

TEST(Server, BatchesAnswerEachQuery) {
  RunningServer s;
  auto c = s.Connect();
  const auto r = Ask(*c, [](v1::Request& q) {
    for (int i = 0; i < 32; ++i)
      *q.mutable_route()->add_queries() = Task(i == 5 ? "poetry" : "math");
  });
  ASSERT_EQ(r.route().decisions_size(), 32);
  std::set<uint64_t> ids;
  for (int i = 0; i < 32; ++i) {
    const v1::Decision& d = r.route().decisions(i);
    if (i == 5) {
      EXPECT_EQ(d.error().code(), v1::INVALID_ARGUMENT);
      EXPECT_THAT(d.error().text(), HasSubstr("no task 'poetry'; known: math, code"));
    } else {
      EXPECT_FALSE(d.has_error());
      ids.insert(d.id());
    }
  }
  EXPECT_EQ(ids.size(), 31u);
}

TEST(Server, ErrorsSayWhatIsWrong) {
  RunningServer s(absl::StrCat(kTwoStages, "limits { max_batch: 4 }"));
  auto c = s.Connect();
  auto refused = [&](const std::function<void(v1::Request&)>& fill) {
    v1::Request q;
    fill(q);
    const auto r = c->Call(q);
    return r.ok() ? std::string("no error") : std::string(r.status().message());
  };
  EXPECT_THAT(refused([](v1::Request&) {}), HasSubstr("no body"));
  EXPECT_THAT(refused([](v1::Request& q) { q.mutable_route(); }),
              HasSubstr("0 queries, allowed 1 to 4"));
  EXPECT_THAT(refused([](v1::Request& q) {
                for (int i = 0; i < 5; ++i) q.mutable_route()->add_queries();
              }),
              HasSubstr("5 queries, allowed 1 to 4"));
  EXPECT_THAT(refused([](v1::Request& q) { q.mutable_explain()->set_decision_id(99); }),
              HasSubstr("decision 99 is not among the last"));
  EXPECT_THAT(refused([](v1::Request& q) { q.mutable_set_policy()->set_name("best"); }),
              HasSubstr("no policy 'best'; known: amro_s"));
  EXPECT_THAT(refused([](v1::Request& q) {
                q.set_deadline_unix_ms(1);
                q.mutable_health();
              }),
              HasSubstr("the deadline passed"));
  v1::Query text;
  text.set_text("what is 2 + 2");
  EXPECT_THAT(c->Route(text).status().message(), HasSubstr("no intent model"));
  v1::Query intent;
  intent.add_intent(0.5);
  EXPECT_THAT(c->Route(intent).status().message(),
              HasSubstr("intent has 1 entries, wanted one a task = 2"));
  v1::Query nobody = Task("math");
  nobody.add_exclude("plan-a");
  nobody.add_exclude("plan-b");
  const auto none = c->Route(nobody);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(none.status().message(), HasSubstr("stage 0: none of its 2 agents"));
  v1::Query cheap = Task("math");
  cheap.set_max_cost_usd(0.005);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(c->Route(cheap)->agents(1), "solve-a");
  const auto d = c->Route(Task("math"));
  v1::Outcome forged = Good(*d);
  forged.mutable_receipt()->back() ^= 1;
  EXPECT_THAT(c->Feedback(forged)->reason(), HasSubstr("was changed"));
  EXPECT_THAT(c->Feedback(Good(*d, 1.5))->reason(), HasSubstr("quality 1.5 is outside [0, 1]"));
  v1::Outcome nan = Good(*d);
  nan.set_cost_usd(std::nan(""));
  EXPECT_EQ(c->Feedback(nan)->status(), v1::FeedbackResult::REJECTED);
  v1::Outcome stranger = Good(*d);
  stranger.add_agents()->set_agent("nobody");
  EXPECT_THAT(c->Feedback(stranger)->reason(), HasSubstr("no agent 'nobody'"));
}

TEST(Server, AReqSocketWorksToo) {
  RunningServer s;
  zmq::context_t context(1);
  zmq::socket_t req(context, zmq::socket_type::req);
  req.set(zmq::sockopt::linger, 0);
  req.connect(s.endpoint());
  v1::Request q;
  q.set_version(1);
  q.set_request_id(77);
  *q.mutable_route()->add_queries() = Task("math");
  for (int feedback = 0; feedback < 2; ++feedback) {
    const std::string bytes = q.SerializeAsString();
    req.send(zmq::buffer(bytes));
    zmq::message_t m;
    ASSERT_TRUE(req.recv(m));
    v1::Response r;
    ASSERT_TRUE(r.ParseFromArray(m.data(), static_cast<int>(m.size())));
    EXPECT_EQ(r.request_id(), 77u);
    if (feedback == 0) {
      *q.mutable_feedback()->add_outcomes() = Good(r.route().decisions(0));
    } else {
      EXPECT_EQ(r.feedback().results(0).status(), v1::FeedbackResult::APPLIED);
    }
  }
}

TEST(Server, MalformedMessagesLeaveItServing) {
  RunningServer s;
  auto c = s.Connect();
  const auto d = c->Route(Task("math"));
  v1::Request valid;
  valid.set_version(1);
  *valid.mutable_route()->add_queries() = Task("math");
  *valid.mutable_feedback()->add_outcomes() = Good(*d);
  const std::string seed = valid.SerializeAsString();
  zmq::context_t context(1);
  zmq::socket_t dealer(context, zmq::socket_type::dealer);
  dealer.set(zmq::sockopt::linger, 0);
  dealer.connect(s.endpoint());
  constexpr uint64_t kMessages = 100000;
  uint64_t answered = 0;
  auto drain = [&](int wait_ms) {
    zmq::message_t m;
    zmq::pollitem_t item{dealer.handle(), 0, ZMQ_POLLIN, 0};
    while (zmq::poll(&item, 1, std::chrono::milliseconds(wait_ms)) > 0) {
      while (dealer.recv(m, zmq::recv_flags::dontwait))
        answered += !m.more();  // frames are not messages
    }
  };
  for (uint64_t i = 0; i < kMessages; ++i) {
    auto draw = [&](uint64_t unit) { return RandomBits({9, i, 0, unit, 0}); };
    std::string bytes = seed;
    if (draw(0) % 3 == 0) {
      bytes.resize(draw(1) % 64);
      for (size_t k = 0; k < bytes.size(); ++k) bytes[k] = static_cast<char>(draw(10 + k));
    } else {
      for (uint64_t k = 0; k < 1 + draw(2) % 8; ++k)
        bytes[draw(100 + k) % bytes.size()] = static_cast<char>(draw(200 + k));
      if (draw(3) % 4 == 0) bytes.resize(draw(4) % (bytes.size() + 1));
    }
    if (i % 1000 == 7) dealer.send(zmq::buffer(bytes), zmq::send_flags::sndmore);  // several frames
    dealer.send(zmq::buffer(bytes));
    if (i % 512 == 511) drain(0);
  }
  drain(1000);
  // Whoever reads more slowly than it asks may lose answers, which are counted.
  EXPECT_EQ(answered + StatsOf(*c).undeliverable(), kMessages);
  EXPECT_GT(answered, kMessages * 9 / 10);
  EXPECT_TRUE(c->Route(Task("code")).ok());
  EXPECT_GT(StatsOf(*c).malformed(), 10000u);
}

TEST(Server, RestartsWithWhatItLearned) {
  const std::string path = MakeTempDir() + "/state.db",
                    config = absl::StrCat(kTwoStages, "state { sqlite: \"", path, "\" }");
  std::vector<v1::Decision> open;
  v1::SnapshotResponse before;
  uint64_t last_id = 0;
  {
    RunningServer s(config);
    auto c = s.Connect();
    for (int i = 0; i < 100; ++i) {
      const auto d = c->Route(Task(i % 2 == 0 ? "math" : "code"));
      ASSERT_TRUE(d.ok());
      if (i % 5 == 0)
        open.push_back(*d);
      else
        ASSERT_TRUE(c->Feedback(Good(*d, i % 3 == 0 ? 0 : 1)).ok());
      last_id = d->id();
    }
    before = SnapshotOf(*c);
    EXPECT_EQ(before.sequence(), 80u);
  }
  RunningServer s(config);
  auto c = s.Connect();
  EXPECT_EQ(SnapshotOf(*c).policies(0).digest(), before.policies(0).digest());
  EXPECT_GT(c->Route(Task("math"))->id(), last_id);
  for (const v1::Decision& d : open) {  // decided before, ended after
    const auto f = c->Feedback(Good(d));
    ASSERT_TRUE(f.ok()) << f.status();
    EXPECT_EQ(f->status(), v1::FeedbackResult::APPLIED) << f->reason();
  }
  EXPECT_EQ(SnapshotOf(*c).policies(0).outcomes(), 100u);
}

TEST(Server, TwoServersOnOneRedisConverge) {
  RedisServer redis;
  if (!redis.running()) GTEST_SKIP() << "redis-server is not installed";
  const std::string config = absl::StrCat(kTwoStages,
                                          "policy { spec: \"amro_s:ability=measured\" } policy { "
                                          "spec: \"thompson\" } state { redis: \"",
                                          redis.address(), "\" }");
  RunningServer a(config), b(config);
  auto ca = a.Connect(), cb = b.Connect();
  std::vector<v1::Outcome> outcomes;
  for (int i = 0; i < 150; ++i) {
    Client& c = i % 2 == 0 ? *ca : *cb;
    const auto d = c.Route(Task(i % 3 == 0 ? "math" : "code"));
    ASSERT_TRUE(d.ok()) << d.status();
    outcomes.push_back(Good(*d, i % 4 == 0 ? 0.2 : 0.9));
    // Feedback may reach the other one, and both.
    Client& to = i % 5 == 0 ? *cb : *ca;
    EXPECT_EQ(to.Feedback(outcomes.back())->status(), v1::FeedbackResult::APPLIED);
    if (i % 7 == 0) {
      EXPECT_EQ(cb->Feedback(outcomes.back())->status(), v1::FeedbackResult::DUPLICATE);
    }
  }
  v1::SnapshotResponse sa, sb;
  for (int i = 0; i < 1000; ++i) {
    sa = SnapshotOf(*ca);
    sb = SnapshotOf(*cb);
    if (sa.sequence() == 150 && sb.sequence() == 150) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  ASSERT_EQ(sa.policies_size(), 2);
  for (int p = 0; p < 2; ++p) {
    EXPECT_EQ(sa.policies(p).outcomes(), 150u);
    EXPECT_EQ(sa.policies(p).digest(), sb.policies(p).digest());
  }
}

TEST(Server, BreakersOpenAndProbe) {
  RunningServer s(absl::StrCat(kTwoStages, "breaker { failures: 3 cooldown_s: 1.5 probes: 1 }"));
  auto c = s.Connect();
  auto report = [&](const v1::Decision& d, bool failed) {
    v1::Outcome o = Good(d, failed ? 0 : 1);
    for (const std::string& id : d.agents()) {
      v1::AgentReport& a = *o.add_agents();
      a.set_agent(id);
      a.set_failed(failed && id == "plan-a");
      a.set_latency_s(0.1);
    }
    ASSERT_TRUE(c->Feedback(o).ok());
  };
  int failures = 0;
  for (int i = 0; i < 200 && failures < 3; ++i) {
    const auto d = c->Route(Task("math"));
    failures += d->agents(0) == "plan-a";
    report(*d, true);
  }
  ASSERT_EQ(failures, 3);
  EXPECT_EQ(StatsOf(*c).agents(0).breaker(), "open");
  for (int i = 0; i < 50; ++i) EXPECT_EQ(c->Route(Task("math"))->agents(0), "plan-b");
  std::this_thread::sleep_for(std::chrono::milliseconds(1600));
  EXPECT_EQ(StatsOf(*c).agents(0).breaker(), "half-open");
  bool closed = false;
  for (int i = 0; i < 200 && !closed; ++i) {
    const auto d = c->Route(Task("math"));
    report(*d, false);
    closed = StatsOf(*c).agents(0).breaker() == "closed";
  }
  EXPECT_TRUE(closed);
}

TEST(Server, BudgetsBlockAnAgent) {
  std::string config = kTwoStages;
  config.replace(config.find("id: \"plan-a\""), 12, "id: \"plan-a\" budget_usd_per_hour: 0.05");
  RunningServer s(config);
  auto c = s.Connect();
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(c->Feedback(Good(*c->Route(Task("math")))).ok());
  EXPECT_TRUE(StatsOf(*c).agents(0).over_budget());
  const auto d = c->Route(Task("math"));
  EXPECT_EQ(d->agents(0), "plan-b");
  const auto why =
      Ask(*c, [&](v1::Request& q) { q.mutable_explain()->set_decision_id(d->id()); }).explain();
  EXPECT_EQ(why.stages(0).candidates(0).blocked(), "over budget");
}

TEST(Server, RateLimitIsPerKey) {
  const CurveFiles files;
  const CurveKeys keys[] = {*NewCurveKeys(), *NewCurveKeys()};
  files.Allow({keys[0], keys[1]});
  RunningServer s(
      absl::StrCat(kTwoStages, "limits { requests_per_s: 1 burst: 5 } ", files.Config()));
  auto a = s.Connect(files.Options(keys[0]));
  auto b = s.Connect(files.Options(keys[1]));
  int served = 0;
  absl::Status refused;
  for (int i = 0; i < 12; ++i) {
    const auto d = a->Route(Task("math"));
    d.ok() ? void(++served) : void(refused = d.status());
  }
  EXPECT_GE(served, 5);
  EXPECT_LE(served, 7);
  EXPECT_THAT(refused.message(), HasSubstr("more than 1 requests a second"));
  EXPECT_TRUE(b->Route(Task("math")).ok());
}

TEST(Server, AFullFeedbackQueueIsAnsweredAndKeepsNothing) {
  RunningServer s(absl::StrCat(kTwoStages, "limits { feedback_queue: 8 }"));
  auto c = s.Connect();
  v1::Request q;
  std::vector<v1::Outcome> all;
  for (int i = 0; i < 9; ++i) all.push_back(Good(*c->Route(Task("math"))));
  for (const v1::Outcome& o : all) *q.mutable_feedback()->add_outcomes() = o;
  // Nine never fit, so nobody is told to send them again.
  EXPECT_THAT(c->Call(q).status().message(),
              HasSubstr("9 outcomes in one request; the feedback queue holds 8"));
  for (const v1::Outcome& o : all) EXPECT_EQ(c->Feedback(o)->status(), v1::FeedbackResult::APPLIED);
}

// The buffer between serving and learning, while the learner waits for more: what does not fit is
// left with the caller at once, what was taken is kept, and reading what is learned goes on.
TEST(Learner, AFullBufferDropsAndNeverBlocks) {
  auto settings = ParseSettings(kTwoStages, "test");
  ASSERT_TRUE(settings.ok()) << settings.status();
  const std::unique_ptr<Store> store = MakeMemoryStore();
  Learner::Options options;
  options.queue = 8;
  options.commit_ms = int64_t{1} << 20;
  uint64_t id = 0;
  const auto job = [&](size_t outcomes) {
    auto j = std::make_unique<FeedbackJob>();
    for (size_t i = 0; i < outcomes; ++i) {
      OutcomeRecord o;
      o.decision.id = ++id;
      j->outcomes.push_back(std::move(o));
      j->slot.push_back(static_cast<int>(i));
    }
    j->reasons.resize(outcomes);
    j->results.resize(outcomes);
    return j;
  };
  {
    auto learner = Learner::Start(std::make_shared<const ServerSettings>(*std::move(settings)),
                                  *store, options, [] {});
    ASSERT_TRUE(learner.ok()) << learner.status();
    auto first = job(5);
    auto second = job(4);
    auto third = job(3);
    EXPECT_TRUE((*learner)->Submit(first));
    for (int i = 0; i < 100; ++i) {
      ASSERT_FALSE((*learner)->Submit(second)) << "nine outcomes, room for eight";
      ASSERT_NE(second, nullptr);
      ASSERT_NE(Published<LearnedState>::Guard((*learner)->published(), 0).get(), nullptr);
    }
    EXPECT_EQ((*learner)->queued(), 5u);
    EXPECT_TRUE((*learner)->Submit(third));
    EXPECT_EQ((*learner)->queued(), 8u);
    auto last = job(1);
    EXPECT_FALSE((*learner)->Submit(last));
    EXPECT_EQ(*store->Newest(), 0u);
  }
  EXPECT_EQ(*store->Newest(), 8u);  // drained at the end
}

TEST(Server, ReloadsOrKeepsWhatItHad) {
  const std::string folder = MakeTempDir(), path = folder + "/sluice.textproto";
  auto write = [&](const std::string& more, const std::string& base = kTwoStages) {
    std::ofstream(path) << "endpoint: \"ipc://" << folder << "/s\"\n" << base << more;
  };
  write("policy { name: \"a\" spec: \"amro_s\" } policy { name: \"b\" spec: \"random\" }");
  RunningServer s("", path);
  auto c = s.Connect();
  for (int i = 0; i < 30; ++i) ASSERT_TRUE(c->Feedback(Good(*c->Route(Task("math")))).ok());
  EXPECT_EQ(Ask(*c, [](v1::Request& q) { q.mutable_set_policy()->set_name("b"); })
                .set_policy()
                .previous(),
            "a");
  EXPECT_EQ(c->Route(Task("math"))->policy(), "b");
  auto reload = [&](uint64_t good, uint64_t bad) {
    s.server().Reload();
    v1::StatsResponse stats;
    for (int i = 0; i < 2000; ++i) {
      stats = StatsOf(*c);
      if (stats.reloads() == good && stats.failed_reloads() == bad) break;
      EXPECT_TRUE(c->Route(Task("math")).ok());  // it serves meanwhile
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    EXPECT_EQ(stats.reloads(), good);
    EXPECT_EQ(stats.failed_reloads(), bad);
    return stats.last_reload_error();
  };
  write(
      "policy { name: \"a\" spec: \"amro_s:beta=5\" } policy { name: \"c\" spec: \"thompson\" } "
      "active_policy: \"c\"");
  reload(1, 0);
  for (int i = 0; i < 1000 && c->Route(Task("math"))->policy() != "c"; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(c->Route(Task("math"))->policy(), "c");
  const auto list = Ask(*c, [](v1::Request& q) { q.mutable_list_policies(); }).list_policies();
  EXPECT_EQ(list.policies(0).spec(), "amro_s:beta=5");
  EXPECT_EQ(list.policies(0).outcomes(), 30u);
  EXPECT_EQ(list.policies(1).outcomes(), 30u);  // a new one learns from all that is stored
  write("policy { spec: \"amro_s:beta=-1\" }");
  EXPECT_THAT(reload(1, 1), HasSubstr("beta=-1 is outside"));
  write("polcy { }");
  EXPECT_THAT(reload(1, 2), HasSubstr("polcy"));
  EXPECT_EQ(c->Route(Task("math"))->policy(), "c");
  EXPECT_THAT(s.log(), HasSubstr("reload refused"));
}

TEST(Server, CurveLetsOnlyKnownClientsIn) {
  const CurveFiles files;
  const CurveKeys friendly = *NewCurveKeys(), stranger = *NewCurveKeys();
  files.Allow({friendly});
  RunningServer s(absl::StrCat("endpoint: \"tcp://127.0.0.1:*\"\n", kTwoStages, files.Config()));
  Client::Options options = files.Options(friendly);
  options.timeout = std::chrono::milliseconds(5000);
  options.tries = 1;
  EXPECT_TRUE(s.Connect(options)->Route(Task("math")).ok());
  options.keys = stranger;
  options.timeout = std::chrono::milliseconds(500);
  EXPECT_EQ(s.Connect(options)->Route(Task("math")).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  Client::Options plain;
  plain.timeout = std::chrono::milliseconds(300);
  plain.tries = 1;
  EXPECT_EQ(s.Connect(plain)->Route(Task("math")).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST(Server, ReadsAQuerysTextWithAnEncoder) {
  const std::string config = absl::StrCat(
      "task: \"math\" task: \"tool_use\" stage { agent { id: \"a\" } agent { id: \"b\" } } "
      "intent { model: \"",
      SLUICE_SOURCE_DIR,
      "/examples/models/intent-encoder-q8_0.gguf\" label { name: \"math*\" task: \"math\" } "
      "label { name: \"tool_use\" task: \"tool_use\" } label { name: \"*\" } }");
  RunningServer s(config);
  auto c = s.Connect();
  v1::Query q;
  q.set_text("Tom has 5 apples and buys 7 more at 2 dollars each. How much did he pay?");
  const auto d = c->Route(q);
  ASSERT_TRUE(d.ok()) << d.status();
  const auto why =
      Ask(*c, [&](v1::Request& r) { r.mutable_explain()->set_decision_id(d->id()); }).explain();
  EXPECT_EQ(why.intent(0).task(), "math");
  EXPECT_GT(why.intent(0).weight(), 0.9);
}

TEST(Server, ConfigurationErrorsNameTheirPlace) {
  auto error = [](const std::string& text) {
    return std::string(ParseSettings(text, "s.textproto").status().message());
  };
  EXPECT_THAT(error("task: \"a\"\nstag { }"), HasSubstr("s.textproto:2:6"));
  EXPECT_THAT(error("task: \"a\""), HasSubstr("0 stages"));
  const std::string base = "task: \"a\" stage { agent { id: \"x\" } } ";
  EXPECT_THAT(error(base + "policy { spec: \"amro\" }"), HasSubstr("no method 'amro'"));
  EXPECT_THAT(error(base + "policy { spec: \"random\" } policy { spec: \"random\" }"),
              HasSubstr("two policies"));
  EXPECT_THAT(error(base + "active_policy: \"y\""), HasSubstr("no policy 'y'; known: amro_s"));
  EXPECT_THAT(error(base + "state { sqlite: \"a\" redis: \"b\" }"), HasSubstr("sqlite and redis"));
  EXPECT_THAT(error(base + "experiment { name: \"x\" arm { policy: \"amro_s\" } }"),
              HasSubstr("1 arms, allowed 2"));
  EXPECT_THAT(error(base + "experiment { name: \"x\" guardrail { worse_by: -1 } }"),
              HasSubstr("worse_by: -1"));
  EXPECT_THAT(
      error(base + "experiment { name: \"x\" arm { policy: \"b\" } arm { policy: \"c\" } }"),
      HasSubstr("experiment: no policy 'b'"));
  EXPECT_THAT(error(base + "learning { gate: 2 }"), HasSubstr("gate: 2 is outside [0, 1]"));
  EXPECT_THAT(error(base + "curve { secret_key_file: \"k\" }"), HasSubstr("without allow_file"));
  EXPECT_THAT(error(base + "policy { spec: \"knn\" weights: \"/none.gguf\" }"),
              HasSubstr("/none.gguf"));
}
}  // namespace server_test
SLUICE_END_NAMESPACE
