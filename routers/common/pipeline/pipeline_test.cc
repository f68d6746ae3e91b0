// The parts of the pipeline, each against plain loops, and the neutral setting of each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "sluice/routers/common/pipeline/analyzer.h"
#include "sluice/routers/common/pipeline/combine.h"
#include "sluice/routers/common/pipeline/coupling.h"
#include "sluice/routers/common/pipeline/gate.h"
#include "sluice/routers/common/pipeline/residency.h"
#include "sluice/routers/common/pipeline/selector.h"

SLUICE_BEGIN_NAMESPACE
namespace pipeline_test {
using pipeline::kNever;

std::vector<float> Normal(int64_t n, uint64_t seed) {
  std::vector<float> x(n);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(RandomNormal({seed, 0, 0, 0, i}));
  return x;
}
MatrixView<float> Rows(std::vector<float>& x, int64_t cols) {
  return {x.data(), std::ssize(x) / cols, cols, cols};
}

MatrixView<const float> Read(const std::vector<float>& x, int64_t cols) {
  return {x.data(), std::ssize(x) / cols, cols, cols};
}

TEST(Gate, ScoresAreThoseOfTheDefinition) {
  using pipeline::ScoreKind;
  const std::vector<float> z = {1.5f, -2, 0.25f, 40, -90}, bias = {0, 3, 0, 0, -1};
  double sum = 0;
  for (float v : z) sum += std::exp(static_cast<double>(v));
  for (ScoreKind kind :
       {ScoreKind::kSoftmax, ScoreKind::kSigmoid, ScoreKind::kSqrtSoftplus, ScoreKind::kLogit}) {
    std::vector<float> rank(5), weight(5);
    pipeline::ScoreRow(kind, z.data(), bias, {absl::MakeSpan(rank), absl::MakeSpan(weight)});
    for (size_t u = 0; u < 5; ++u) {
      const double v = z[u];
      double want = v;
      if (kind == ScoreKind::kSoftmax) want = std::exp(v) / sum;
      if (kind == ScoreKind::kSigmoid) want = 1 / (1 + std::exp(-v));
      if (kind == ScoreKind::kSqrtSoftplus) want = std::sqrt(std::log1p(std::exp(v)));
      EXPECT_NEAR(weight[u], want, 1e-5 * (1 + std::abs(want)));
      EXPECT_FLOAT_EQ(rank[u], weight[u] + bias[u]);
    }
  }
}
TEST(Gate, TasksAndConstants) {
  const std::vector<float> table = {1, 2, 3, 4};
  const pipeline::TableGate gate = {{table.data(), 2, 2, 2}};
  EXPECT_EQ(gate.Row(1)[0], 3);
  EXPECT_EQ(gate.Row(2), nullptr);
  EXPECT_EQ(pipeline::ConstantGate{table}.Row()[3], 4);
}

TEST(Coupling, BalanceRaisesTheUnderused) {
  std::vector<float> bias = {0, 0, 0.5f};
  pipeline::BalanceBias balance = {absl::MakeSpan(bias), 0.25};
  const std::vector<int64_t> counts = {9, 1, 5};
  balance.Observe(counts);
  EXPECT_THAT(bias, testing::ElementsAre(-0.25f, 0.25f, 0.5f));
}
TEST(Coupling, NeutralSettingsChangeNothing) {
  std::vector<float> x = Normal(12, 1), state(12, 7.0f), out(12);
  const std::vector<float> before = x;
  pipeline::Ema(Rows(x, 3), Rows(state, 3), 0);
  EXPECT_EQ(x, before);
  EXPECT_EQ(state, before);
  const std::vector<int64_t> row_ptr = {0, 1, 2, 3, 4};
  const std::vector<int32_t> item = {0, 1, 2, 3};
  const std::vector<float> one(4, 1.0f);
  pipeline::MixItems(Read(x, 3), {row_ptr, item, one}, 0, Rows(out, 3));
  EXPECT_EQ(out, before);
  pipeline::MixItems(Read(x, 3), {row_ptr, item, one}, 1, Rows(out, 3));
  EXPECT_EQ(out, before);  // S = I
}
TEST(Coupling, MixingIsAnAverageAndEmaRemembers) {
  std::vector<float> x = {1, 0, 0, 1}, out(4), state = {0, 0, 2, 2};
  const std::vector<int64_t> row_ptr = {0, 2, 4};
  const std::vector<int32_t> item = {0, 1, 0, 1};
  const std::vector<float> half(4, 0.5f);
  pipeline::MixItems(Read(x, 2), {row_ptr, item, half}, 1, Rows(out, 2));
  EXPECT_THAT(out, testing::Each(0.5f));
  pipeline::Ema(Rows(x, 2), Rows(state, 2), 0.75f);
  EXPECT_THAT(x, testing::ElementsAre(0.25f, 0, 1.5f, 1.75f));
  EXPECT_EQ(x, state);
}
// Item 0 alone, item 1 with an edge to each, item 2 without edges.
TEST(Coupling, MixingByHand) {
  const std::vector<float> x = {4, 8, 0, -4, 1, 1};
  const std::vector<int64_t> row_ptr = {0, 1, 3, 3};
  const std::vector<int32_t> item = {0, 0, 1};
  const std::vector<float> weight = {1, 0.75f, 0.25f};
  std::vector<float> out(6);
  pipeline::MixItems(Read(x, 2), {row_ptr, item, weight}, 0.5f, Rows(out, 2));
  EXPECT_THAT(out, testing::ElementsAre(4, 8, 1.5f, 0.5f, 1, 1));

  // Identity with any alpha; and one row of S alone, as for a new token.
  const std::vector<int64_t> one_each = {0, 1, 2, 3};
  const std::vector<int32_t> self = {0, 1, 2};
  const std::vector<float> ones(3, 1.0f);
  pipeline::MixItems(Read(x, 2), {one_each, self, ones}, 0.3f, Rows(out, 2));
  EXPECT_EQ(out, x);
  const std::vector<int64_t> last = {0, 2};
  std::vector<float> row(2);
  pipeline::MixItems(Read(x, 2), {last, item, weight}, 1, Rows(row, 2), 2);
  EXPECT_THAT(row, testing::ElementsAre(7, 14));  // (1 + 0.75) of item 0
}
TEST(Coupling, SinkhornBalancesRowsAndColumns) {
  constexpr int64_t kItems = 40, kUnits = 5;
  std::vector<float> z = Normal(kItems * kUnits, 3);
  std::vector<double> d0(kItems), d1(kUnits);
  EXPECT_LT(pipeline::Sinkhorn(Rows(z, kUnits), absl::MakeSpan(d0), absl::MakeSpan(d1), 1e-7), 100);
  for (int64_t i = 0; i < kItems; ++i)
    EXPECT_NEAR(std::accumulate(&z[i * kUnits], &z[i * kUnits] + kUnits, 0.0), 1, 1e-3);
  for (int64_t u = 0; u < kUnits; ++u) {
    double sum = 0;
    for (int64_t i = 0; i < kItems; ++i) sum += z[i * kUnits + u];
    EXPECT_NEAR(sum, 8, 1e-2);
  }
}

struct Chooser {
  pipeline::RowScratch scratch;
  std::vector<std::byte> memory;
  std::vector<int32_t> out;
  explicit Chooser(int64_t n) : scratch(n), memory(scratch.bytes() + 64), out(n) {}
  std::vector<int32_t> Take(int64_t n) const { return {out.begin(), out.begin() + n}; }
};
TEST(Selector, RowsAgreeWithPlainLoops) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    std::vector<float> rank = Normal(24, seed);
    for (float& x : rank) x = std::abs(std::round(4 * x) / 4);  // with ties
    rank[5] = NAN;
    rank[6] = kNever;
    Chooser c(24);
    const auto ahead = [&](size_t u) {
      int64_t n = 0;
      for (size_t v = 0; v < 24; ++v) n += rank[v] > rank[u] || (rank[v] == rank[u] && v < u);
      return n;
    };
    std::vector<int32_t> top, over;
    double total = 0;
    for (size_t u = 0; u < 24; ++u) {
      if (!(rank[u] > kNever)) continue;
      if (ahead(u) < 6) top.push_back(static_cast<int32_t>(u));
      if (rank[u] >= 0.75f) over.push_back(static_cast<int32_t>(u));
      total += static_cast<double>(rank[u]);
    }
    EXPECT_EQ(c.Take(pipeline::TopK(rank, 6, c.scratch, c.memory.data(), c.out.data())), top);
    EXPECT_EQ(c.Take(pipeline::Threshold(rank, 0.75f, c.out.data())), over);

    const auto few = c.Take(pipeline::TopP(rank, 0.5f, c.scratch, c.memory.data(), c.out.data()));
    double sum = 0, least = 1e9;
    for (int32_t u : few) {
      sum += static_cast<double>(rank[u]);
      least = std::min(least, static_cast<double>(rank[u]));
      EXPECT_LT(ahead(u), std::ssize(few));
    }
    EXPECT_GE(sum, 0.5 * total - 1e-6);
    EXPECT_LT(sum - least, 0.5 * total);
  }
}
TEST(Selector, ForcedUnitsAreIn) {
  std::vector<float> rank = {5, 4, 3, kNever, 1};
  const std::vector<int32_t> forced = {3, 4};
  pipeline::Force(absl::MakeSpan(rank), forced);
  Chooser c(5);
  EXPECT_THAT(c.Take(pipeline::TopK(rank, 3, c.scratch, c.memory.data(), c.out.data())),
              testing::ElementsAre(0, 3, 4));
}
TEST(Selector, OnlyTheBestGroupsStay) {
  // Groups {9, 0}, {5, 5}, {6, 1}: by the best one 9, 5, 6; by the best two 9, 10, 7.
  const std::vector<float> from = {9, 0, 5, 5, 6, 1};
  std::vector<float> rank = from, scratch(3);
  pipeline::LimitGroups(absl::MakeSpan(rank), 3, 2, 1, absl::MakeSpan(scratch));
  EXPECT_THAT(rank, testing::ElementsAre(9, 0, kNever, kNever, 6, 1));
  rank = from;
  pipeline::LimitGroups(absl::MakeSpan(rank), 3, 1, 2, absl::MakeSpan(scratch));
  EXPECT_THAT(rank, testing::ElementsAre(kNever, kNever, 5, 5, kNever, kNever));
}
TEST(Selector, SamplesAreSoftmax) {
  const std::vector<float> rank = {0, 1, 2, kNever};
  std::vector<float> noisy(4);
  std::vector<double> share(4);
  Chooser c(4);
  constexpr int kDraws = 20000;
  for (uint64_t i = 0; i < kDraws; ++i) {
    ASSERT_EQ(pipeline::Sample(rank, 1, {.seed = 1, .item = i}, absl::MakeSpan(noisy), c.scratch,
                               c.memory.data(), c.out.data()),
              1);
    share[c.out[0]] += 1.0 / kDraws;
  }
  const double sum = 1 + std::exp(1.0) + std::exp(2.0);
  for (int u = 0; u < 3; ++u) EXPECT_NEAR(share[u], std::exp(u) / sum, 0.01);
  EXPECT_EQ(share[3], 0);
}
TEST(Selector, ExpertsChooseExactlyTheirCapacity) {
  constexpr int64_t kItems = 30, kUnits = 4, kCapacity = 7;
  std::vector<float> z = Normal(kItems * kUnits, 9);
  z[3 * kUnits + 1] = NAN;
  AssignmentBuffer buffer;
  buffer.Reserve(kItems, kUnits * kCapacity);
  Assignment& a = buffer.view();
  std::vector<float> column(kItems);
  std::vector<int32_t> chosen(kUnits * kCapacity);
  Chooser c(kItems);
  const MatrixView<const float> rank = {z.data(), kItems, kUnits, kUnits};
  pipeline::ExpertChoice(rank, rank, kCapacity, absl::MakeSpan(column), absl::MakeSpan(chosen),
                         c.scratch, c.memory.data(), a);
  ASSERT_TRUE(ValidateAssignment(a).ok()) << ValidateAssignment(a);
  EXPECT_EQ(a.entries(), kUnits * kCapacity);
  EXPECT_EQ(a.nan_scores, 1);
  for (int64_t i = 0; i < kItems; ++i) {
    std::vector<int32_t> want;
    for (int64_t u = 0; u < kUnits; ++u) {
      int64_t ahead = 0;
      for (int64_t j = 0; j < kItems; ++j) ahead += rank.row(j)[u] > rank.row(i)[u];
      if (!std::isnan(rank.row(i)[u]) && ahead < kCapacity) want.push_back(static_cast<int32_t>(u));
    }
    EXPECT_EQ(
        (std::vector<int32_t>(a.unit.begin() + a.row_ptr[i], a.unit.begin() + a.row_ptr[i + 1])),
        want);
  }
}
TEST(Selector, CapacityCountsKOrDoesNot) {
  EXPECT_EQ(pipeline::Capacity(1.0, true, 100, 2, 16, 0), 13);   // ceil(12.5)
  EXPECT_EQ(pipeline::Capacity(1.0, false, 100, 2, 16, 0), 6);   // round(6.25)
  EXPECT_EQ(pipeline::Capacity(1.25, true, 100, 2, 16, 0), 16);  // ceil(15.6)
  EXPECT_EQ(pipeline::Capacity(0.1, false, 100, 2, 16, 4), 4);
}
TEST(Selector, WeightsOfTheChosen) {
  using pipeline::Renormalise;
  std::vector<float> w = {1, 3};
  pipeline::NormaliseRow(Renormalise::kSum, 2, absl::MakeSpan(w));
  EXPECT_THAT(w, testing::ElementsAre(0.5f, 1.5f));
  pipeline::NormaliseRow(Renormalise::kNone, 2, absl::MakeSpan(w));
  EXPECT_THAT(w, testing::ElementsAre(1, 3));
  pipeline::NormaliseRow(Renormalise::kSoftmax, 1, absl::MakeSpan(w));
  EXPECT_NEAR(w[1], 1 / (1 + std::exp(-2.0)), 1e-6);
}

// A host of two slots: what is hinted stays until it is used, what is pinned until it is released.
TEST(Residency, PinsHoldAndHintsAreCounted) {
  std::vector<int32_t> loaded, evicted;
  pipeline::LruResidency cache(
      2, [&](int64_t, int32_t u) { loaded.push_back(u); },
      [&](int64_t, int32_t u) { evicted.push_back(u); });
  const std::vector<int32_t> first = {1, 2};
  cache.Hint(0, first);
  ASSERT_TRUE(cache.Pin(0, 1).ok());
  ASSERT_TRUE(cache.Pin(0, 3).ok());  // 2 goes: 1 is pinned
  EXPECT_THAT(evicted, testing::ElementsAre(2));
  EXPECT_THAT(cache.Pin(0, 4).message(), testing::HasSubstr("all 2 resident units are pinned"));
  cache.Unpin(0, 1);
  ASSERT_TRUE(cache.Pin(1, 1).ok());  // the same unit of another layer is another
  EXPECT_THAT(evicted, testing::ElementsAre(2, 1));
  EXPECT_THAT(loaded, testing::ElementsAre(1, 2, 3, 1));
  const pipeline::ResidencyCounters& c = cache.counters();
  EXPECT_EQ(c.hints, 2);
  EXPECT_EQ(c.useful, 1);
  EXPECT_EQ(c.hits, 1);
  EXPECT_EQ(c.misses, 3);
  EXPECT_EQ(c.evictions, 2);
  EXPECT_EQ(cache.size(), 2);
}
TEST(Residency, AHintKeepsWhatIsThere) {
  pipeline::LruResidency cache(
      2, [](int64_t, int32_t) {}, [](int64_t, int32_t) {});
  for (int32_t u : {1, 2}) {
    ASSERT_TRUE(cache.Pin(0, u).ok());
    cache.Unpin(0, u);
  }
  const std::vector<int32_t> hint = {1};
  cache.Hint(0, hint);  // 1 was the next to go
  ASSERT_TRUE(cache.Pin(0, 3).ok());
  ASSERT_TRUE(cache.Pin(0, 1).ok());
  EXPECT_EQ(cache.counters().hits, 1);
}

// A queue's tail is who was used longest ago, whatever waits for it: hints must hold.
TEST(Residency, AHintIsHeldUntilItIsUsed) {
  std::vector<int32_t> evicted;
  pipeline::LruResidency cache(
      3, [](int64_t, int32_t) {}, [&](int64_t, int32_t u) { evicted.push_back(u); });
  for (int32_t u : {5, 6, 7}) {
    ASSERT_TRUE(cache.Pin(0, u).ok());
    cache.Unpin(0, u);
  }
  // 5 is the next to go, and is wanted last: loading 8 evicts 6.
  cache.Hint(0, std::vector<int32_t>{8, 5});
  EXPECT_THAT(evicted, testing::ElementsAre(6));
  // A hint of another layer takes what nobody holds, and no more than that.
  cache.Hint(1, std::vector<int32_t>{1, 2});
  EXPECT_THAT(evicted, testing::ElementsAre(6, 7));
  EXPECT_EQ(cache.size(), 3);
  // A pin takes the hinted unit of longest ago: of one hint the last named.
  ASSERT_TRUE(cache.Pin(0, 9).ok());
  EXPECT_THAT(evicted, testing::ElementsAre(6, 7, 5));
  ASSERT_TRUE(cache.Pin(0, 8).ok());
  EXPECT_EQ(cache.counters().useful, 1);
  EXPECT_EQ(cache.counters().loads, 6);
  // What is ended is held no longer.
  cache.Hint(1, {});
  cache.Hint(2, std::vector<int32_t>{4});
  EXPECT_THAT(evicted, testing::ElementsAre(6, 7, 5, 1));
}
TEST(Residency, MoreHintsThanRoomKeepTheLikeliest) {
  std::vector<int32_t> evicted;
  pipeline::LruResidency cache(
      2, [](int64_t, int32_t) {}, [&](int64_t, int32_t u) { evicted.push_back(u); });
  cache.Hint(0, std::vector<int32_t>{3, 1, 2});
  EXPECT_TRUE(evicted.empty());
  ASSERT_TRUE(cache.Pin(0, 3).ok());
  ASSERT_TRUE(cache.Pin(0, 1).ok());
  EXPECT_EQ(cache.counters().hits, 2);
  EXPECT_EQ(cache.counters().HitRate(), 0);  // both were loaded, if ahead of time
}
TEST(Residency, PrefetchIsRankMajor) {
  AssignmentBuffer buffer;
  buffer.Reserve(3, 7, 0);
  Assignment& a = buffer.view();
  a.items = 3;
  a.units = 6;
  const int32_t units[] = {0, 2, 5, 2, 3, 1, 4};
  const float scores[] = {1, 3, 2, 2, 2, 7, 8};  // orders 2 5 0 | 2 3, a tie | 4 1
  for (int64_t e = 0; e < 7; ++e) {
    a.unit[e] = units[e];
    a.score[e] = scores[e];
  }
  a.row_ptr[1] = 3;
  a.row_ptr[2] = 5;
  a.row_ptr[3] = 7;
  pipeline::RankMajor order;
  EXPECT_THAT(order.Order(a, 10), testing::ElementsAre(2, 4, 5, 3, 1, 0));
  EXPECT_THAT(order.Order(a, 3), testing::ElementsAre(2, 4, 5));
  EXPECT_TRUE(order.Order(a, 0).empty());
}

TEST(Analyzer, EvenLoadAndOneUnit) {
  AssignmentBuffer buffer;
  buffer.Reserve(4, 8, 2);
  Assignment& a = buffer.view();
  a.items = 4;
  a.units = 4;
  for (int32_t i = 0; i < 4; ++i) {
    a.row_ptr[i + 1] = 2 * (i + 1);
    a.unit[2 * i] = std::min(i, (i + 1) % 4);
    a.unit[2 * i + 1] = std::max(i, (i + 1) % 4);
  }
  const std::vector<float> even(16, 0.25f);
  pipeline::LoadAnalyzer load(4);
  load.See(a);
  load.SeeProbabilities({even.data(), 4, 4, 4});
  EXPECT_THAT(load.counts(), testing::ElementsAre(2, 2, 2, 2));
  EXPECT_NEAR(load.Entropy(), std::log(4.0), 1e-12);
  EXPECT_EQ(load.LoadVariation(), 0);
  EXPECT_NEAR(load.Balance(pipeline::BalanceOf::kChoices), 1, 1e-12);
  EXPECT_NEAR(load.Balance(pipeline::BalanceOf::kItems), 2, 1e-12);  // two choices an item
  a.num_dropped = 2;
  load.See(a);
  EXPECT_NEAR(load.DropRate(), 2.0 / 18, 1e-12);

  pipeline::LoadAnalyzer one(2);
  a.num_dropped = 0;
  a.items = 3;
  for (int64_t i = 0; i < 3; ++i) {
    a.row_ptr[i + 1] = i + 1;
    a.unit[i] = 1;
  }
  one.See(a);
  EXPECT_EQ(one.Entropy(), 0);
  EXPECT_EQ(one.LoadVariation(), 1);
}
TEST(Analyzer, LossesOfAGateByHand) {
  const std::vector<float> z = {0, 0, 1000, -1000};  // logsumexp log 2 and 1000
  const double log2 = std::log(2.0);
  EXPECT_NEAR(pipeline::ZLoss(Read(z, 2)), (log2 * log2 + 1e6) / 2, 1e-6);
  EXPECT_EQ(pipeline::ZLoss({}), 0);
  const std::vector<float> odd = {NAN, 1};
  EXPECT_TRUE(std::isnan(pipeline::ZLoss(Read(odd, 2))));

  const std::vector<double> load = {1, 2, 3, 6};  // mean 3, squares 4 + 1 + 0 + 9 over 3
  EXPECT_NEAR(pipeline::SquaredVariation(load), 14.0 / 3 / 9, 1e-9);
  const std::vector<double> even(5, 2.5);
  EXPECT_EQ(pipeline::SquaredVariation(even), 0);
  EXPECT_EQ(pipeline::SquaredVariation({}), 0);
}
// A bias that only ranks, moved against the load, evens out a gate that favours some units, and
// never enters a weight.
TEST(Coupling, BalanceBiasEvensTheLoad) {
  constexpr int64_t kItems = 400;
  constexpr int64_t kUnits = 8;
  std::vector<float> bias(kUnits);
  pipeline::BalanceBias balance = {absl::MakeSpan(bias), 0.02};
  double first = 0;
  double last = 0;
  for (uint64_t step = 0; step < 200; ++step) {
    std::vector<float> z = Normal(kItems * kUnits, 100 + step);
    for (int64_t i = 0; i < kItems; ++i) z[i * kUnits] += 2;  // unit 0 is liked best
    std::vector<int64_t> count(kUnits);
    Chooser c(kUnits);
    for (int64_t i = 0; i < kItems; ++i) {
      std::vector<float> rank(kUnits);
      std::vector<float> weight(kUnits);
      pipeline::ScoreRow(pipeline::ScoreKind::kSigmoid, &z[i * kUnits], bias,
                         {absl::MakeSpan(rank), absl::MakeSpan(weight)});
      EXPECT_NEAR(weight[1], 1 / (1 + std::exp(-z[i * kUnits + 1])), 1e-6);
      const int64_t n = pipeline::TopK(rank, 2, c.scratch, c.memory.data(), c.out.data());
      for (int32_t u : c.Take(n)) ++count[u];
    }
    balance.Observe(count);
    last = static_cast<double>(*std::max_element(count.begin(), count.end())) / (kItems / 4.0);
    if (step == 0) first = last;
  }
  EXPECT_GT(first, 2.5);
  EXPECT_LT(last, 1.4);
}
TEST(Selector, CapacityByPosition) {
  AssignmentBuffer buffer;
  buffer.Reserve(3, 6, 6);
  Assignment& a = buffer.view();
  a.items = 3;
  a.units = 3;
  const int32_t units[] = {0, 1, 0, 2, 0, 1};
  const float scores[] = {1, 5, 2, 6, 9, 3};  // what a position is blind to
  for (int64_t e = 0; e < 6; ++e) {
    a.unit[e] = units[e];
    a.score[e] = scores[e];
    a.row_ptr[e / 2 + 1] = 2 * (e / 2 + 1);
  }
  std::vector<int32_t> order(6), items(3);
  std::vector<int64_t> count(3);
  std::vector<uint8_t> keep(6);
  pipeline::LimitCapacity(
      1, pipeline::CapacityOrder::kPosition,
      {absl::MakeSpan(order), absl::MakeSpan(items), absl::MakeSpan(count), absl::MakeSpan(keep)},
      a);
  EXPECT_THAT((std::vector<int64_t>(a.row_ptr.begin(), a.row_ptr.begin() + 4)),
              testing::ElementsAre(0, 2, 3, 3));
  EXPECT_EQ(a.num_dropped, 3);
  EXPECT_EQ(a.dropped[0], (DroppedPair{1, 0}));
  EXPECT_EQ(a.dropped[1], (DroppedPair{2, 0}));
  EXPECT_EQ(a.dropped[2], (DroppedPair{2, 1}));
}
}  // namespace pipeline_test
SLUICE_END_NAMESPACE
