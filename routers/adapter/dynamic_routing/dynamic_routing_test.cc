#include "sluice/routers/adapter/dynamic_routing/dynamic_routing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/adapter/dynamic_routing/dynamic_routing_reference.h"
#include "sluice/routers/adapter/dynamic_routing/forgetting.h"
#include "sluice/tests/support/expert_run.h"
#include "sluice/tests/support/synthetic_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace adapter {
namespace dynamic_routing_test {
using testing::ElementsAre;
using testing::HasSubstr;
constexpr int64_t kItems = 60;
constexpr int64_t kIn = 20;
constexpr int64_t kOut = 12;
using Table = std::vector<std::vector<double>>;

Table Double(const std::vector<float>& x, int64_t cols) {
  Table rows;
  for (size_t i = 0; i < x.size(); i += cols) rows.push_back({&x[i], &x[i] + cols});
  return rows;
}
DynamicRouting::Adapter Make(uint64_t seed, int64_t rank = 3) {
  return {.prototype = NormalRows(1, kIn, 10 * seed),
          .down = {kIn, rank, NormalRows(rank, kIn, 10 * seed + 1), std::vector<float>(rank)},
          .up = {rank, kOut, NormalRows(kOut, rank, 10 * seed + 2), std::vector<float>(kOut)}};
}
DynamicRouting Bank(const DynamicRouting::Config& c, int adapters) {
  DynamicRouting r = *DynamicRouting::Base(c, kIn, kOut);
  for (int a = 0; a < adapters; ++a) {
    EXPECT_THAT(r.Add(Make(a + 1, 2 + a)).value(), a);
  }
  return r;
}
ExpertRun Route(const DynamicRouting& bank, const std::vector<float>& x) {
  const RouterOf<DynamicRouting> router(bank);
  RouteInputs in;
  in.hidden = RowsOf(x, kIn);
  in.items = in.hidden.rows;
  ExpertRun r;
  auto plan = router.MakePlan({.items = in.items, .hidden = kIn});
  r.status = plan.status();
  if (!r.status.ok()) return r;
  OwnedWorkspace memory((*plan)->info().workspace_bytes);
  r.buffer.Reserve(in.items, (*plan)->info().max_entries, 0);
  r.status = router.Run(**plan, in, {memory.workspace(), nullptr}, r.buffer.view());
  EXPECT_TRUE(ValidateAssignment(r.a()).ok()) << ValidateAssignment(r.a());
  return r;
}
// What is added to W x for every token.
std::vector<float> Added(const DynamicRouting& bank, const std::vector<float>& x) {
  const ExpertRun r = Route(bank, x);
  const RouterOf<DynamicRouting> router(bank);
  auto plan = router.MakePlan({.items = kItems, .hidden = kIn});
  OwnedWorkspace memory((*plan)->info().unit_workspace_bytes);
  std::vector<float> out(r.a().items * kOut);
  std::vector<float> y(kOut);
  for (int64_t i = 0; i < r.a().items; ++i) {
    for (int64_t e = r.a().row_ptr[i]; e < r.a().row_ptr[i + 1]; ++e) {
      const int32_t u = r.a().unit[e];
      if (router.DescribeUnit(**plan, u).kind == UnitKind::kSkip) continue;
      const UnitRows rows = {
          .unit = u, .in = {&x[i * kIn], 1, kIn, kIn}, .out = {y.data(), 1, kOut, kOut}};
      EXPECT_TRUE(router.RunUnit(**plan, rows, {memory.workspace(), nullptr}).ok());
      for (int64_t c = 0; c < kOut; ++c) out[i * kOut + c] += r.a().weight[e] * y[c];
    }
  }
  return out;
}

TEST(DynamicRouting, ChoosesAndAddsAsTheReference) {
  const std::vector<float> x = NormalRows(kItems, kIn, 1, 3);
  struct Case {
    int64_t k;
    double null_logit, temperature;
    bool centre;
  };
  for (const Case c : {Case{2, 0, 1, true},
                       {1, 0.5, 1, true},
                       {3, -1, 0.3, false},
                       {0, 0, 2, true},
                       {9, 0, 1, false}}) {
    const DynamicRouting bank = Bank(
        {.k = c.k, .null_logit = c.null_logit, .temperature = c.temperature, .centre = c.centre},
        4);
    Table prototypes;
    for (int a = 0; a < 4; ++a) prototypes.push_back(Double(Make(a + 1).prototype, kIn)[0]);
    const ExpertRun r = Route(bank, x);
    const std::vector<float> added = Added(bank, x);
    for (int64_t i = 0; i < kItems; ++i) {
      const std::vector<double> token = Double(x, kIn)[i];
      const auto want =
          reference::PrototypeWeights(prototypes, token, c.k == 0 ? 5 : static_cast<size_t>(c.k),
                                      c.null_logit, c.temperature, c.centre);
      std::vector<double> got(5);
      for (int64_t e = r.a().row_ptr[i]; e < r.a().row_ptr[i + 1]; ++e)
        got[r.a().unit[e]] = r.a().weight[e];
      std::vector<double> sum(kOut);
      for (int u = 0; u < 5; ++u) {
        ASSERT_NEAR(got[u], want[u], 1e-5) << c.k << " " << i;
        if (u == 0) continue;
        const auto a = Make(u, 1 + u);
        const auto y =
            reference::LowRank(Double(a.down.weight, kIn), Double(a.up.weight, a.down.out), token);
        for (int64_t o = 0; o < kOut; ++o) sum[o] += want[u] * y[o];
      }
      for (int64_t o = 0; o < kOut; ++o) ASSERT_NEAR(added[i * kOut + o], sum[o], 1e-3) << i;
    }
  }
}
// The null expert alone is the base model: nothing is added, to the bit.
TEST(DynamicRouting, TheNullExpertAloneIsTheBase) {
  const std::vector<float> x = NormalRows(kItems, kIn, 2);
  for (const DynamicRouting& bank :
       {Bank({}, 0), Bank({.k = 1, .null_logit = 1e6}, 3), Bank({.null_logit = 1e6}, 3)}) {
    for (float v : Added(bank, x)) EXPECT_EQ(v, 0);
  }
  EXPECT_THAT(Route(Bank({}, 0), x).Units(0), ElementsAre(0));
}
// Others' logits are not touched by an addition, and a removal leaves no trace.
TEST(DynamicRouting, AddingThenRemovingRestoresEveryBit) {
  const std::vector<float> x = NormalRows(kItems, kIn, 3);
  DynamicRouting bank = Bank({}, 3);
  const ExpertRun before = Route(bank, x);
  const std::vector<float> added = Added(bank, x);
  EXPECT_EQ(*bank.Add(Make(9)), 3);
  const ExpertRun grown = Route(bank, x);
  EXPECT_NE(grown.AllUnits(), before.AllUnits());
  for (int64_t i = 0; i < kItems; ++i) {
    for (int64_t e = before.a().row_ptr[i]; e < before.a().row_ptr[i + 1]; ++e) {
      for (int64_t g = grown.a().row_ptr[i]; g < grown.a().row_ptr[i + 1]; ++g) {
        if (grown.a().unit[g] != before.a().unit[e]) continue;
        EXPECT_EQ(grown.a().score[g], before.a().score[e]);
      }
    }
  }
  ASSERT_TRUE(bank.Remove(3).ok());
  const ExpertRun after = Route(bank, x);
  EXPECT_EQ(after.AllUnits(), before.AllUnits());
  EXPECT_EQ(after.AllWeights(), before.AllWeights());
  EXPECT_EQ(Added(bank, x), added);
  EXPECT_EQ(Drift(before.a(), after.a()), 0);
  EXPECT_GT(Drift(before.a(), grown.a()), 0.2);
}
// Ids stay, also over a removal in the middle; a removed adapter is in no list, whatever k.
TEST(DynamicRouting, IdsAreStable) {
  DynamicRouting bank = Bank({.k = 0}, 3);
  ASSERT_TRUE(bank.Remove(1).ok());
  EXPECT_THAT(bank.ids(), ElementsAre(0, 2));
  EXPECT_EQ(*bank.Add(Make(7)), 3);
  EXPECT_THAT(bank.ids(), ElementsAre(0, 2, 3));
  EXPECT_THAT(Route(bank, NormalRows(1, kIn, 4)).Units(0), ElementsAre(0, 1, 3, 4));
  EXPECT_THAT(bank.Remove(1).message(), HasSubstr("no adapter 1"));
  EXPECT_THAT(bank.Remove(4).message(), HasSubstr("no adapter 4"));
  EXPECT_FALSE(bank.Remove(-1).ok());
}
TEST(DynamicRouting, TiesAndNaN) {
  DynamicRouting bank = *DynamicRouting::Base({.k = 1}, kIn, kOut);
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(bank.Add(Make(1)).ok());
  const std::vector<float> own = Make(1).prototype;
  EXPECT_THAT(Route(bank, own).Units(0), ElementsAre(1));                            // not its twin
  EXPECT_THAT(Route(bank, std::vector<float>(kIn, 2.5f)).Units(0), ElementsAre(0));  // like nothing
  std::vector<float> odd = own;
  odd[3] = NAN;
  const ExpertRun r = Route(bank, odd);
  EXPECT_THAT(r.Units(0), ElementsAre(0));
  EXPECT_EQ(r.a().nan_scores, 2);
  EXPECT_EQ(Route(bank, {}).a().entries(), 0);
}
TEST(DynamicRouting, ErrorsSayWhatIsWrong) {
  DynamicRouting bank = Bank({}, 1);
  const RouterOf<DynamicRouting> old(bank);
  auto plan = bank.MakePlan({.items = 1, .hidden = kIn});
  auto narrow = Make(2);
  narrow.up.out = 3;
  EXPECT_THAT(bank.Add(narrow).status().message(), HasSubstr("wanted from 20 to 12"));
  auto flat = Make(2);
  flat.prototype.assign(kIn, 1.0f);
  EXPECT_THAT(bank.Add(flat).status().message(), HasSubstr("constant"));
  ASSERT_TRUE(bank.Add(Make(2)).ok());
  AssignmentBuffer room;
  room.Reserve(1, 4);
  RouteInputs in;
  in.items = 1;
  const std::vector<float> x = NormalRows(1, kIn, 5);
  in.hidden = RowsOf(x, kIn);
  OwnedWorkspace memory(plan->workspace_bytes);
  EXPECT_THAT(bank.Run(*plan, in, {memory.workspace(), nullptr}, room.view()).message(),
              HasSubstr("a plan of 2 units; adapters were added since, there are 3"));
  EXPECT_THAT(bank.MakePlan({.items = 1, .units = 2, .hidden = kIn}).status().message(),
              HasSubstr("wanted 3 units (or 0)"));
  EXPECT_FALSE(DynamicRouting::Base({}, 0, 4).ok());

  WeightKeys keys = DynamicRouting::Weights({}, {.hidden = kIn});
  EXPECT_TRUE(DynamicRouting::Create({}, SyntheticWeights(keys)).ok());
  EXPECT_THAT(DynamicRouting::Create({.layer = 1}, SyntheticWeights(keys)).status().message(),
              HasSubstr("layer=1, but the weights have 1 layers"));
  keys.ints[4].value = 0;
  EXPECT_THAT(DynamicRouting::Create({}, SyntheticWeights(keys)).status().message(),
              HasSubstr("rank 0"));
}
TEST(Forgetting, ByHand) {
  ForgettingMatrix m;
  EXPECT_EQ(m.Average(), 0);
  EXPECT_EQ(m.Forgetting(), 0);
  m.Add({0.9});
  EXPECT_EQ(m.Forgetting(), 0);
  m.Add({0.95, 0.8});
  m.Add({0.6, 0.85, 0.7});
  EXPECT_NEAR(m.Average(), 2.15 / 3, 1e-12);
  EXPECT_NEAR(m.Forgetting(), (0.35 - 0.05) / 2, 1e-12);
}

// Tasks in a row: clusters of tokens, each with a linear label of its own, which its adapter learns
// by least squares from its own tokens alone. The prototype is the mean of its tokens.
struct Task {
  std::vector<float> x;  // [kTokens, kIn], the last input 1
  std::vector<double> y;
  static constexpr int64_t kTokens = 200;
  Task(uint64_t seed, uint64_t number, uint64_t part) {
    const std::vector<float> mean = NormalRows(1, kIn, 1000 * seed + number);
    const std::vector<float> w = NormalRows(1, kIn, 1000 * seed + 500 + number);
    x = NormalRows(kTokens, kIn, 1000 * seed + 100 * part + number + 10000, 0.7);
    for (int64_t i = 0; i < kTokens; ++i) {
      double label = 0;
      for (int64_t c = 0; c + 1 < kIn; ++c) {
        label += static_cast<double>(w[c] * x[i * kIn + c]);
        x[i * kIn + c] += 2 * mean[c];
      }
      x[i * kIn + kIn - 1] = 1;
      y.push_back(label > 0 ? 1 : -1);
    }
  }
};
// Gradient steps on the squared error, from w on.
void Fit(const std::vector<const Task*>& tasks, std::vector<double>& w) {
  for (int step = 0; step < 300; ++step) {
    std::vector<double> gradient(kIn);
    for (const Task* t : tasks) {
      for (int64_t i = 0; i < Task::kTokens; ++i) {
        const float* x = &t->x[i * kIn];
        double off = -t->y[i];
        for (int64_t c = 0; c < kIn; ++c) off += w[c] * static_cast<double>(x[c]);
        for (int64_t c = 0; c < kIn; ++c) gradient[c] += off * static_cast<double>(x[c]);
      }
    }
    for (int64_t c = 0; c < kIn; ++c)
      w[c] -= 0.01 * gradient[c] / static_cast<double>(Task::kTokens * tasks.size());
  }
}
double Accuracy(const Task& t, const std::vector<double>& w) {
  double right = 0;
  for (int64_t i = 0; i < Task::kTokens; ++i) {
    double z = 0;
    for (int64_t c = 0; c < kIn; ++c) z += w[c] * static_cast<double>(t.x[i * kIn + c]);
    right += z * t.y[i] > 0;
  }
  return right / static_cast<double>(Task::kTokens);
}
double Accuracy(const Task& t, const DynamicRouting& bank) {
  const std::vector<float> y = Added(bank, t.x);
  double right = 0;
  for (int64_t i = 0; i < Task::kTokens; ++i)
    right += static_cast<double>(y[i * kOut]) * t.y[i] > 0;
  return right / static_cast<double>(Task::kTokens);
}
TEST(DynamicRouting, ForgetsLessThanTuningInSequence) {
  constexpr int kTasks = 6;
  double average[3] = {};
  double forgetting[2] = {};
  double confusion = 0;
  constexpr int kSeeds = 5;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    std::vector<Task> train;
    std::vector<Task> test;
    for (uint64_t t = 0; t < kTasks; ++t) {
      train.push_back(Task(seed, t, 0));
      test.push_back(Task(seed, t, 1));
    }
    DynamicRouting bank = *DynamicRouting::Base({.k = 1}, kIn, kOut);
    std::vector<double> tuned(kIn);
    ForgettingMatrix routed;
    ForgettingMatrix sequence;
    for (int t = 0; t < kTasks; ++t) {
      std::vector<double> own(kIn);
      Fit({&train[t]}, own);
      DynamicRouting::Adapter a = Make(1, 1);
      a.prototype.assign(kIn, 0.0f);
      for (size_t e = 0; e < train[t].x.size(); ++e) a.prototype[e % kIn] += train[t].x[e];
      a.down.weight.assign(own.begin(), own.end());
      a.up.weight.assign(kOut, 1.0f);
      ASSERT_TRUE(bank.Add(std::move(a)).ok());
      Fit({&train[t]}, tuned);
      std::vector<double> now[2];
      for (int j = 0; j <= t; ++j) {
        now[0].push_back(Accuracy(test[j], bank));
        now[1].push_back(Accuracy(test[j], tuned));
      }
      routed.Add(now[0]);
      sequence.Add(now[1]);
    }
    std::vector<double> joint(kIn);
    std::vector<const Task*> all;
    for (const Task& t : train) all.push_back(&t);
    Fit(all, joint);
    average[0] += routed.Average() / kSeeds;
    average[1] += sequence.Average() / kSeeds;
    forgetting[0] += routed.Forgetting() / kSeeds;
    forgetting[1] += sequence.Forgetting() / kSeeds;
    for (int t = 0; t < kTasks; ++t) {
      average[2] += Accuracy(test[t], joint) / kTasks / kSeeds;
      for (int32_t u : FirstChoices(Route(bank, test[t].x).a()))
        confusion += (u != t + 1) / static_cast<double>(Task::kTokens * kTasks * kSeeds);
    }
  }
  std::printf("accuracy: routed %.3f, tuned in sequence %.3f, one head for all %.3f\n", average[0],
              average[1], average[2]);
  std::printf("forgetting: routed %.3f, tuned in sequence %.3f; sent elsewhere %.3f\n",
              forgetting[0], forgetting[1], confusion);
  EXPECT_LT(forgetting[0], 0.02);
  EXPECT_GT(forgetting[1], 0.1);
  EXPECT_GT(average[0], average[1] + 0.1);
  EXPECT_GT(average[0], average[2]);
  EXPECT_LT(confusion, 0.05);
}
}  // namespace dynamic_routing_test
}  // namespace adapter
SLUICE_END_NAMESPACE
