#include "sluice/routers/layer/flux_attention/flux_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/builtin.h"
#include "sluice/routers/layer/flux_attention/flux_attention_reference.h"
#include "sluice/tests/support/random_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace layer {
namespace flux_attention_test {
RandomWeights Weights(int64_t dim) {
  return RandomWeights({{"dim", dim}, {"layers", 2}, {"pool", 10}});
}

TEST(FluxAttention, LogitsMatchTheReference) {
  const RandomWeights w = Weights(32);
  for (int64_t layer : {0, 1}) {
    auto r = FluxAttention::Create({layer}, w);
    ASSERT_TRUE(r.ok()) << r.status();
    const std::vector<float> x = RandomFeatures(20, 32, 5);
    std::vector<float> scratch(r->scratch_floats());
    for (int64_t i = 0; i < 20; ++i) {
      float got[2];
      r->Logits(&x[i * 32], scratch.data(), got);
      const std::vector<double> want =
          reference::FluxLogits(w, layer, {x.begin() + i * 32, x.begin() + (i + 1) * 32});
      EXPECT_NEAR(got[0], want[0], 1e-5);
      EXPECT_NEAR(got[1], want[1], 1e-5);
    }
  }
}
TEST(FluxAttention, PoolMatchesTheReferenceInAnyChunks) {
  constexpr int64_t kHeads = 3, kDim = 8;
  for (int64_t n : {1, 2, 9, 10, 19, 20, 21, 127, 128, 129}) {
    const std::vector<float> x = RandomFeatures(n, kHeads * kDim, static_cast<uint64_t>(n));
    const auto rows = [&](int64_t begin, int64_t count) {
      return HeadsView<const float>{
          x.data() + begin * kHeads * kDim, count, kHeads, kDim, kHeads * kDim, kDim};
    };
    const std::vector<double> want = reference::PrefixSuffixPool(rows(0, n), 10);
    std::vector<float> whole(kDim);
    for (int64_t chunk : {n, int64_t{1}, int64_t{7}}) {
      std::vector<double> sums(2 * kDim);
      PrefixSuffixPool pool(n, 10, kDim, sums.data());
      for (int64_t at = 0; at < n; at += chunk) pool.Add(rows(at, std::min(chunk, n - at)), at);
      std::vector<float> got(kDim);
      pool.Finish(kHeads, got.data());
      if (chunk == n) whole = got;
      EXPECT_EQ(got, whole);
      for (size_t i = 0; i < kDim; ++i) EXPECT_NEAR(got[i], want[i], 1e-6);
    }
  }
  double sums[2 * kDim];
  float none[kDim];
  PrefixSuffixPool(0, 10, kDim, sums).Finish(kHeads, none);
  EXPECT_EQ(none[0], 0.0f);
}
// Prompts of several lengths through the seam: the decision of the reference, whether the host
// gives all rows or only those that the plan names, alone or in a batch.
TEST(FluxAttention, DecidesPromptsByTheRowsThatThePlanNames) {
  constexpr int64_t kHeads = 2, kDim = 16;
  const RandomWeights w = Weights(kDim);
  auto made = BuiltinRouters().routers.Create("layer/flux_attention:layer=1", &w);
  ASSERT_TRUE(made.ok()) << made.status();
  const std::vector<int64_t> lengths = {1, 7, 10, 19, 20, 21, 64, 130};
  const int64_t n = std::ssize(lengths);
  const RouteShape shape = {.items = n, .rows = 1000, .heads = kHeads, .head_dim = kDim};
  auto plan = (*made)->MakePlan(shape);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const RoutePlanInfo& info = (*plan)->info();
  EXPECT_EQ(info.shape.units, 2);
  EXPECT_EQ(info.head_rows, 10);
  EXPECT_EQ(info.tail_rows, 10);
  OwnedWorkspace memory(info.workspace_bytes);
  AssignmentBuffer out;
  out.Reserve(n, info.max_entries);

  struct Given {
    std::vector<float> q;
    std::vector<int64_t> positions, item_rows = {0}, lengths;
  };
  const auto give = [&](Given& g, int64_t item, bool all) {
    const int64_t tokens = lengths[item];
    const auto x = RandomFeatures(tokens, kHeads * kDim, static_cast<uint64_t>(item));
    for (int64_t t = 0; t < tokens; ++t) {
      if (!all && t >= info.head_rows && t < tokens - info.tail_rows) continue;
      g.q.insert(g.q.end(), x.begin() + t * kHeads * kDim, x.begin() + (t + 1) * kHeads * kDim);
      g.positions.push_back(t);
    }
    g.item_rows.push_back(std::ssize(g.positions));
    g.lengths.push_back(tokens);
  };
  const auto run = [&](const Given& g) {
    RouteInputs in;
    in.items = std::ssize(g.lengths);
    in.queries = {g.q.data(), g.item_rows.back(), kHeads, kDim, kHeads * kDim, kDim};
    in.positions = g.positions;
    in.item_rows = g.item_rows;
    in.lengths = g.lengths;
    const absl::Status s = (*made)->Run(**plan, in, {memory.workspace(), nullptr}, out.view());
    EXPECT_TRUE(s.ok()) << s;
    EXPECT_TRUE(ValidateAssignment(out.view()).ok());
    return std::vector<int32_t>(out.view().unit.begin(), out.view().unit.begin() + in.items);
  };

  Given all, few;
  for (int64_t i = 0; i < n; ++i) {
    give(all, i, true);
    give(few, i, false);
  }
  EXPECT_LT(few.q.size(), all.q.size());
  const std::vector<int32_t> units = run(all);
  EXPECT_EQ(run(few), units);
  for (int64_t i = 0; i < n; ++i) {
    Given one;
    give(one, i, false);
    EXPECT_EQ(run(one)[0], units[i]);
    const auto x = RandomFeatures(lengths[i], kHeads * kDim, static_cast<uint64_t>(i));
    const HeadsView<const float> rows = {x.data(), lengths[i], kHeads, kDim, kHeads * kDim, kDim};
    const std::vector<double> want =
        reference::FluxLogits(w, 1, reference::PrefixSuffixPool(rows, 10));
    EXPECT_EQ(units[i], want[1] > want[0] ? 1 : 0) << lengths[i];
  }
}
// A batch whose prompts were padded to one length, on the left and on the right: the rows of the
// padding are there, at places outside the prompt, and decide nothing.
TEST(FluxAttention, PaddingIsNotPooled) {
  constexpr int64_t kHeads = 2, kDim = 16, kPadded = 40;
  const RandomWeights w = Weights(kDim);
  auto made = BuiltinRouters().routers.Create("layer/flux_attention", &w);
  ASSERT_TRUE(made.ok()) << made.status();
  const std::vector<int64_t> lengths = {1, 5, 12, 25, 40};
  const int64_t n = std::ssize(lengths);
  auto plan =
      (*made)->MakePlan({.items = n, .rows = n * kPadded, .heads = kHeads, .head_dim = kDim});
  ASSERT_TRUE(plan.ok()) << plan.status();
  OwnedWorkspace memory((*plan)->info().workspace_bytes);
  AssignmentBuffer out;
  out.Reserve(n, (*plan)->info().max_entries);

  for (bool left : {true, false}) {
    std::vector<float> q;
    std::vector<int64_t> positions, item_rows = {0};
    for (int64_t i = 0; i < n; ++i) {
      const auto x = RandomFeatures(lengths[i], kHeads * kDim, static_cast<uint64_t>(i));
      const std::vector<float> padding((kPadded - lengths[i]) * kHeads * kDim, 1e3f);
      if (left) q.insert(q.end(), padding.begin(), padding.end());
      q.insert(q.end(), x.begin(), x.end());
      if (!left) q.insert(q.end(), padding.begin(), padding.end());
      for (int64_t t = 0; t < kPadded; ++t)
        positions.push_back(left ? t - (kPadded - lengths[i]) : t);
      item_rows.push_back(std::ssize(positions));
    }
    RouteInputs in;
    in.items = n;
    in.queries = {q.data(), n * kPadded, kHeads, kDim, kHeads * kDim, kDim};
    in.positions = positions;
    in.item_rows = item_rows;
    in.lengths = lengths;
    const absl::Status s = (*made)->Run(**plan, in, {memory.workspace(), nullptr}, out.view());
    ASSERT_TRUE(s.ok()) << s;
    for (int64_t i = 0; i < n; ++i) {
      const auto x = RandomFeatures(lengths[i], kHeads * kDim, static_cast<uint64_t>(i));
      const HeadsView<const float> rows = {x.data(), lengths[i], kHeads, kDim, kHeads * kDim, kDim};
      const std::vector<double> want =
          reference::FluxLogits(w, 0, reference::PrefixSuffixPool(rows, 10));
      EXPECT_NEAR(out.view().score[i], std::max(want[0], want[1]), 1e-4) << left << lengths[i];
      EXPECT_EQ(out.view().unit[i], want[1] > want[0] ? 1 : 0) << left << lengths[i];
    }
  }
}
TEST(FluxAttention, MissingRowsAndOtherWidthsAreErrors) {
  const RandomWeights w = Weights(16);
  auto made = BuiltinRouters().routers.Create("flux_attention", &w);
  EXPECT_THAT((*made)->MakePlan({.items = 1, .heads = 2, .head_dim = 8}).status().message(),
              testing::HasSubstr("head width 8; wanted 2 units (or 0) and head width 16"));
  auto plan = (*made)->MakePlan({.items = 1, .rows = 50, .heads = 2, .head_dim = 16});
  ASSERT_TRUE(plan.ok()) << plan.status();
  OwnedWorkspace memory((*plan)->info().workspace_bytes);
  AssignmentBuffer out;
  out.Reserve(1, 1);
  const std::vector<float> x = RandomFeatures(50, 32, 1);
  const std::vector<int64_t> item_rows = {0, 50}, lengths = {60};
  RouteInputs in;
  in.items = 1;
  in.item_rows = item_rows;
  in.lengths = lengths;
  const RunContext ctx = {memory.workspace(), nullptr};
  EXPECT_THAT((*made)->Run(**plan, in, ctx, out.view()).message(),
              testing::HasSubstr("reads queries before RoPE and was given none"));
  in.queries = {x.data(), 50, 2, 16, 32, 16};  // positions 0 to 49 of 60
  EXPECT_THAT((*made)->Run(**plan, in, ctx, out.view()).message(),
              testing::HasSubstr("10 of its first and 0 of its last 10 tokens"));
  in.lengths = {};
  EXPECT_TRUE((*made)->Run(**plan, in, ctx, out.view()).ok());
}
TEST(FluxAttention, TiesAndNaN) {
  const float tie[] = {1, 1}, full[] = {1, 2}, odd[] = {NAN, 0}, odd2[] = {0, NAN};
  EXPECT_EQ(FluxAttention::Decide(tie), FluxAttention::kSparse);
  EXPECT_EQ(FluxAttention::Decide(full), FluxAttention::kFull);
  EXPECT_EQ(FluxAttention::Decide(odd), FluxAttention::kFull);
  EXPECT_EQ(FluxAttention::Decide(odd2), FluxAttention::kFull);
}
TEST(FluxAttention, ErrorsSayWhatIsWrong) {
  RandomWeights w = Weights(16);
  const auto message = [](const auto& made) { return std::string(made.status().message()); };
  EXPECT_THAT(message(BuiltinRouters().routers.Create("flux_attention")),
              testing::HasSubstr("needs trained weights"));
  EXPECT_THAT(message(BuiltinRouters().routers.Create("flux_attention:layer=2", &w)),
              testing::HasSubstr("2 layers"));
  EXPECT_THAT(message(BuiltinRouters().routers.Create("flux_attention:layers=2", &w)),
              testing::HasSubstr("unknown key"));
  const RandomWeights empty = Weights(0);
  w.missing = "blk.0.flux.head1.bias";
  EXPECT_THAT(message(BuiltinRouters().routers.Create("flux_attention", &w)),
              testing::HasSubstr("head1.bias"));
  EXPECT_THAT(message(BuiltinRouters().routers.Create("flux_attention", &empty)),
              testing::HasSubstr("must be positive"));
}
}  // namespace flux_attention_test
}  // namespace layer
SLUICE_END_NAMESPACE
