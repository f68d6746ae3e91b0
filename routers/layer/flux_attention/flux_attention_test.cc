#include "sluice/routers/layer/flux_attention/flux_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/builtin.h"
#include "sluice/routers/layer/flux_attention/flux_attention_reference.h"
#include "sluice/tests/support/random_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace {
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
TEST(FluxAttention, DecisionsAreSoloDecisions) {
  const RandomWeights w = Weights(16);
  auto made = BuiltinRouters().routers.Create("flux_attention:layer=1", &w);
  ASSERT_TRUE(made.ok()) << made.status();
  constexpr int64_t kItems = 64;
  auto plan = (*made)->MakePlan({kItems, 2, 16, 1});
  ASSERT_TRUE(plan.ok()) << plan.status();
  const std::vector<float> x = RandomFeatures(kItems, 16, 3);
  OwnedWorkspace memory((*plan)->info().workspace_bytes);
  RunContext ctx;
  ctx.workspace = {memory.data(), (*plan)->info().workspace_bytes};
  const auto run = [&](const float* from, int64_t items) {
    std::vector<int32_t> ptr(static_cast<size_t>(items) + 1), unit(items);
    std::vector<float> weight(items);
    Assignment a;
    a.row_ptr = absl::MakeSpan(ptr);
    a.unit = absl::MakeSpan(unit);
    a.weight = absl::MakeSpan(weight);
    RouteInputs in;
    in.features = {from, items, 16, 16};
    EXPECT_TRUE((*made)->Run(**plan, in, ctx, a).ok());
    EXPECT_TRUE(ValidateAssignment(a).ok());
    return unit;
  };
  const std::vector<int32_t> all = run(x.data(), kItems);
  for (int64_t i = 0; i < kItems; ++i) EXPECT_EQ(run(&x[i * 16], 1)[0], all[i]);
  EXPECT_TRUE(run(x.data(), 0).empty());
  RouteInputs wide;
  wide.features = {x.data(), 4, 8, 8};
  Assignment none;
  EXPECT_THAT(std::string((*made)->Run(**plan, wide, ctx, none).message()),
              testing::HasSubstr("planned for at most"));
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
}  // namespace
SLUICE_END_NAMESPACE
