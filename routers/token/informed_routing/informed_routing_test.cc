#include "sluice/routers/token/informed_routing/informed_routing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "sluice/routers/builtin.h"
#include "sluice/routers/token/informed_routing/informed_routing_reference.h"
#include "sluice/routers/token/informed_routing/ridge_fit.h"
#include "sluice/tests/support/random_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace token {
namespace informed_routing_test {
RandomWeights Weights(int64_t rank = 8, int64_t silu = 1) {
  return RandomWeights(
      {{"dim", 32}, {"layers", 2}, {"hidden", 12}, {"rank", rank}, {"silu", silu}});
}
struct Ran {
  std::vector<int32_t> unit;
  std::vector<float> logits;
};
Ran Route(const InformedRouting& r, const std::vector<float>& x,
          const std::vector<int64_t>& positions = {}) {
  const int64_t n = static_cast<int64_t>(x.size()) / r.dim();
  auto plan = r.MakePlan({.items = n, .hidden = r.dim()});
  EXPECT_TRUE(plan.ok()) << plan.status();
  OwnedWorkspace memory(plan->workspace_bytes);
  RunContext ctx;
  ctx.workspace = {memory.data(), plan->workspace_bytes};
  AssignmentBuffer buffer;
  buffer.Reserve(n, plan->max_entries);
  RouteInputs in;
  in.items = n;
  in.hidden = {x.data(), n, r.dim(), r.dim()};
  in.positions = positions;
  EXPECT_TRUE(r.Run(*plan, in, ctx, buffer.view()).ok());
  EXPECT_TRUE(ValidateAssignment(buffer.view()).ok());
  Ran out{{buffer.view().unit.begin(), buffer.view().unit.end()}, std::vector<float>(2 * n)};
  r.Logits(*plan, in.hidden, ctx, out.logits.data());
  return out;
}

TEST(InformedRouting, LogitsAndForecastsMatchTheReference) {
  for (int64_t silu : {0, 1}) {
    const RandomWeights w = Weights(8, silu);
    for (int64_t unit : {0, 1}) {
      auto r = InformedRouting::Create({1, unit}, w);
      ASSERT_TRUE(r.ok()) << r.status();
      const std::string at = unit == 0 ? "blk.1.informed.attn." : "blk.1.informed.ffn.";
      const std::vector<float> x = RandomFeatures(70, 32, 5);
      const Ran got = Route(*r, x);
      std::vector<float> forecast(x.size()), scratch(r->forecaster().scratch_floats(70));
      r->forecaster().Apply(x.data(), 70, forecast.data(), scratch.data());
      for (size_t i = 0; i < 70; ++i) {
        const std::vector<double> h(x.begin() + static_cast<long>(i * 32),
                                    x.begin() + static_cast<long>(i * 32 + 32));
        const std::vector<double> want = reference::InformedLogits(w, at, h, 12);
        EXPECT_NEAR(got.logits[2 * i], want[0], 1e-5);
        EXPECT_NEAR(got.logits[2 * i + 1], want[1], 1e-5);
        EXPECT_EQ(got.unit[i], want[1] > want[0] ? 1 : 0);
        const std::vector<double> f = reference::Forecast(w, at, h, 8, silu != 0);
        for (size_t j = 0; j < 32; ++j) EXPECT_NEAR(forecast[i * 32 + j], f[j], 1e-5);
      }
    }
  }
}
InformedRouting Sampled(int64_t layer, int64_t unit, int64_t seed, double offset = 0) {
  return *InformedRouting::Create({layer, unit, offset, InformedRouting::EvalMode::kSampled, seed},
                                  Weights());
}
TEST(InformedRouting, SampledMatchesTheReference) {
  constexpr size_t kTokens = 200;
  const std::vector<float> x = RandomFeatures(kTokens, 32, 5);
  for (int64_t layer : {0, 1}) {
    for (int64_t unit : {0, 1}) {
      for (int64_t seed : {1, 9}) {
        const Ran got = Route(Sampled(layer, unit, seed), x);
        const std::string at =
            absl::StrCat("blk.", layer, unit == 0 ? ".informed.attn." : ".informed.ffn.");
        size_t against_argmax = 0;
        for (size_t i = 0; i < kTokens; ++i) {
          const std::vector<double> h(x.begin() + static_cast<long>(i * 32),
                                      x.begin() + static_cast<long>(i * 32 + 32));
          const std::vector<double> logits = reference::InformedLogits(Weights(), at, h, 12);
          EXPECT_EQ(got.unit[i], reference::InformedSample(logits, static_cast<uint64_t>(seed),
                                                           static_cast<uint64_t>(layer),
                                                           static_cast<uint64_t>(unit), i));
          against_argmax += got.unit[i] != (logits[1] > logits[0]);
        }
        EXPECT_GT(against_argmax, 5u);
      }
    }
  }
}
// The noise belongs to the token, wherever the pass that brings it begins.
TEST(InformedRouting, SampledDecisionsBelongToPositions) {
  const InformedRouting r = Sampled(1, 1, 3);
  const std::vector<float> x = RandomFeatures(90, 32, 7);
  const Ran all = Route(r, x);
  std::vector<int64_t> positions(50);
  std::iota(positions.begin(), positions.end(), 40);
  const std::vector<float> later(x.begin() + 40 * 32, x.end());
  EXPECT_EQ(Route(r, later, positions).unit,
            std::vector<int32_t>(all.unit.begin() + 40, all.unit.end()));
  EXPECT_NE(Route(r, later).unit, std::vector<int32_t>(all.unit.begin() + 40, all.unit.end()));
}
// A token is approximated as often as the softmax of its logits says.
TEST(InformedRouting, SampledRatesAreTheSoftmax) {
  const InformedRouting r = Sampled(0, 0, 2);
  constexpr int kDraws = 20000;
  for (float margin : {-2.0f, 0.0f, 1.0f}) {
    const float logits[] = {0.5f, 0.5f + margin};
    int approximated = 0;
    for (int i = 0; i < kDraws; ++i)
      approximated += r.Sample(logits, i) == InformedRouting::kApproximate;
    const double want = 1 / (1 + std::exp(-static_cast<double>(margin)));
    EXPECT_NEAR(approximated / double{kDraws}, want, 4 * 0.5 / std::sqrt(kDraws)) << margin;
  }
  const float odd[] = {0, NAN};
  for (int i = 0; i < 20; ++i) EXPECT_EQ(r.Sample(odd, i), InformedRouting::kExecute);
}
TEST(InformedRouting, DecisionsDoNotDependOnNeighbours) {
  auto r = InformedRouting::Create({0, 0}, Weights());
  ASSERT_TRUE(r.ok());
  const std::vector<float> x = RandomFeatures(65, 32, 9);
  const Ran all = Route(*r, x);
  for (size_t i = 0; i < 65; ++i) {
    const Ran one = Route(
        *r, {x.begin() + static_cast<long>(i * 32), x.begin() + static_cast<long>(i * 32 + 32)});
    EXPECT_EQ(one.unit[0], all.unit[i]);
  }
  EXPECT_TRUE(Route(*r, {}).unit.empty());
}
TEST(InformedRouting, RankZeroForecastsNothing) {
  auto r = InformedRouting::Create({0, 1}, Weights(0));
  ASSERT_TRUE(r.ok()) << r.status();
  EXPECT_FALSE(r->forecaster().present());
  EXPECT_EQ(r->forecast_macs(), 0);
  std::vector<float> y(64, 3.0f), x(64, 1.0f), scratch(r->forecaster().scratch_floats(2));
  r->forecaster().Apply(x.data(), 2, y.data(), scratch.data());
  EXPECT_THAT(y, testing::Each(0.0f));
}
// What the host does not compute the router does, in pieces of any size and with the same bits.
TEST(InformedRouting, ItsOwnUnitIsTheForecaster) {
  const RandomWeights w = Weights();
  auto made = BuiltinRouters().routers.Create("token/informed_routing:layer=1,unit=1", &w);
  ASSERT_TRUE(made.ok()) << made.status();
  auto plan = (*made)->MakePlan({.items = 70, .hidden = 32});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ((*made)->DescribeUnit(**plan, 0).kind, UnitKind::kHost);
  const UnitInfo own = (*made)->DescribeUnit(**plan, 1);
  EXPECT_EQ(own.kind, UnitKind::kOwn);
  EXPECT_DOUBLE_EQ(own.cost, 2.0 * 32 * 8 / (8 * 32 * 32));

  const std::vector<float> x = RandomFeatures(70, 32, 5);
  const RoutePlanInfo& info = (*plan)->info();
  OwnedWorkspace memory(info.unit_workspace_bytes);
  std::vector<float> y(x.size());
  for (int64_t at = 0; at < 70; at += own.max_rows) {
    const int64_t n = std::min<int64_t>(own.max_rows, 70 - at);
    const UnitRows rows = {
        .unit = 1, .in = {&x[at * 32], n, 32, 32}, .items = {}, .out = {&y[at * 32], n, 32, 32}};
    ASSERT_TRUE((*made)->RunUnit(**plan, rows, {memory.workspace(), nullptr}).ok());
  }
  for (int64_t i = 0; i < 70; ++i) {
    const std::vector<double> h(x.begin() + i * 32, x.begin() + i * 32 + 32);
    const std::vector<double> f = reference::Forecast(w, "blk.1.informed.ffn.", h, 8, true);
    for (int64_t j = 0; j < 32; ++j) EXPECT_NEAR(y[i * 32 + j], f[j], 1e-5);
  }

  const UnitRows executed = {
      .unit = 0, .in = {x.data(), 1, 32, 32}, .items = {}, .out = {y.data(), 1, 32, 32}};
  EXPECT_THAT((*made)->RunUnit(**plan, executed, {memory.workspace(), nullptr}).message(),
              testing::HasSubstr("unit 0 is not the router's own"));
  const RandomWeights skip = Weights(0);
  auto skipper = BuiltinRouters().routers.Create("informed_routing", &skip);
  auto skip_plan = (*skipper)->MakePlan({.items = 1, .hidden = 32});
  EXPECT_EQ((*skipper)->DescribeUnit(**skip_plan, 1).kind, UnitKind::kSkip);
}
TEST(InformedRouting, TiesAndNaNExecute) {
  const float tie[] = {1, 1}, skip[] = {1, 2}, odd[] = {0, NAN};
  EXPECT_EQ(InformedRouting::Decide(tie), InformedRouting::kExecute);
  EXPECT_EQ(InformedRouting::Decide(skip), InformedRouting::kApproximate);
  EXPECT_EQ(InformedRouting::Decide(odd), InformedRouting::kExecute);
}
// Mean square error of a forecaster over the rows of a linear map of rank 6 plus noise.
struct FitData {
  static constexpr int64_t kDim = 24, kRows = 600;
  std::vector<float> x = RandomFeatures(kRows, kDim, 1), y;
  explicit FitData(double noise) : y(x.size()) {
    const std::vector<float> a = RandomFeatures(6, kDim, 2), b = RandomFeatures(kDim, 6, 3);
    for (size_t t = 0; t < kRows; ++t) {
      for (size_t o = 0; o < kDim; ++o) {
        double sum = 0.5;
        for (size_t r = 0; r < 6; ++r) {
          double inner = 0;
          for (size_t i = 0; i < kDim; ++i)
            inner += static_cast<double>(a[r * kDim + i] * x[t * kDim + i]);
          sum += inner * static_cast<double>(b[o * 6 + r]);
        }
        y[t * kDim + o] = static_cast<float>(sum + noise * RandomNormal({5, 0, 0, t, o}));
      }
    }
  }
  RidgeFit Fit() const {
    RidgeFit fit(kDim);
    for (size_t t = 0; t < kRows; ++t) fit.Add(&x[t * kDim], &y[t * kDim]);
    return fit;
  }
  double Error(const FeatureForecaster& f) const {
    std::vector<float> got(y.size()), scratch(f.scratch_floats(kRows));
    f.Apply(x.data(), kRows, got.data(), scratch.data());
    double e = 0;
    for (size_t i = 0; i < y.size(); ++i)
      e += (static_cast<double>(got[i]) - static_cast<double>(y[i])) *
           (static_cast<double>(got[i]) - static_cast<double>(y[i]));
    return e / static_cast<double>(y.size());
  }
};
TEST(RidgeFit, FindsALowRankMapAndDegradesInOrder) {
  const FitData exact(0);
  EXPECT_LT(exact.Error(*exact.Fit().Solve(6, 1e-9)), 1e-6);
  double last = 0;
  for (int64_t rank : {24, 6, 5, 3, 1}) {
    const double e = exact.Error(*exact.Fit().Solve(rank, 1e-9));
    EXPECT_GE(e, last - 1e-6) << rank;
    last = e;
  }
}
TEST(RidgeFit, FullRankAgreesWithGradientDescent) {
  const FitData data(0.5);
  const double closed = data.Error(*data.Fit().Solve(FitData::kDim, 1e-6));
  // Plain gradient descent on the same least squares.
  constexpr size_t d = FitData::kDim;
  std::vector<double> w(d * d), bias(d);
  double error = 0;
  for (int step = 0; step < 400; ++step) {
    std::vector<double> gw(d * d), gb(d);
    error = 0;
    for (size_t t = 0; t < FitData::kRows; ++t) {
      for (size_t o = 0; o < d; ++o) {
        double e = bias[o] - static_cast<double>(data.y[t * d + o]);
        for (size_t i = 0; i < d; ++i) e += w[o * d + i] * static_cast<double>(data.x[t * d + i]);
        for (size_t i = 0; i < d; ++i)
          gw[o * d + i] += e * static_cast<double>(data.x[t * d + i]) / FitData::kRows;
        gb[o] += e / FitData::kRows;
        error += e * e / static_cast<double>(FitData::kRows * d);
      }
    }
    for (size_t i = 0; i < w.size(); ++i) w[i] -= 0.4 * gw[i];
    for (size_t i = 0; i < d; ++i) bias[i] -= 0.4 * gb[i];
  }
  EXPECT_NEAR(error / closed, 1.0, 0.05);
}
TEST(RidgeFit, ErrorsAndRankZero) {
  const FitData data(0);
  EXPECT_FALSE(RidgeFit(4).Solve(2).ok());
  EXPECT_FALSE(data.Fit().Solve(25).ok());
  RidgeFit flat(2);
  const float h[] = {1, 1}, u[] = {2, 3};
  for (int i = 0; i < 5; ++i) flat.Add(h, u);
  EXPECT_THAT(std::string(flat.Solve(1, 0).status().message()),
              testing::HasSubstr("use ridge > 0"));
  EXPECT_FALSE(data.Fit().Solve(0)->present());
}
TEST(InformedRouting, ErrorsSayWhatIsWrong) {
  RandomWeights w = Weights();
  const auto message = [](const auto& made) { return std::string(made.status().message()); };
  const auto& routers = BuiltinRouters().routers;
  EXPECT_THAT(message(routers.Create("informed_routing:layer=0")),
              testing::HasSubstr("needs trained weights"));
  EXPECT_THAT(message(routers.Create("informed_routing:layer=2", &w)),
              testing::HasSubstr("2 layers"));
  EXPECT_THAT(message(routers.Create("informed_routing:unit=2", &w)),
              testing::HasSubstr("outside [0, 1]"));
  const RandomWeights hostile(
      {{"dim", 1 << 20}, {"layers", 2}, {"hidden", 12}, {"rank", 0}, {"silu", 1}});
  EXPECT_THAT(message(routers.Create("informed_routing", &hostile)),
              testing::HasSubstr("allowed 1 to 65536"));
  EXPECT_THAT(message(routers.Create("informed_routing:eval_mode=soft", &w)),
              testing::HasSubstr("argmax"));
  w.missing = "blk.0.informed.attn.up.weight";
  EXPECT_THAT(message(routers.Create("informed_routing", &w)),
              testing::HasSubstr("attn.up.weight"));
}
}  // namespace informed_routing_test
}  // namespace token
SLUICE_END_NAMESPACE
