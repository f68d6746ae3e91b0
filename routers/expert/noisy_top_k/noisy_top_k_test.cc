#include "sluice/routers/expert/noisy_top_k/noisy_top_k.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "sluice/routers/expert/noisy_top_k/balance_loss.h"
#include "sluice/routers/expert/noisy_top_k/noisy_top_k_reference.h"
#include "sluice/tests/support/expert_run.h"

SLUICE_BEGIN_NAMESPACE
namespace noisy_top_k_test {
constexpr int64_t kItems = 150;
constexpr int64_t kDim = 20;
constexpr int64_t kUnits = 9;

// Two layers of normal weights, or of zeros.
class Gates final : public WeightSource {
 public:
  explicit Gates(double scale = 0.5) : scale_(scale) {}
  absl::StatusOr<int64_t> Int(const std::string& key) const override {
    if (key == "sluice.noisy_top_k.layers") return 2;
    return key == "sluice.noisy_top_k.dim" ? dim : kUnits;
  }
  absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                             absl::Span<const uint64_t>) const override {
    if (name == missing) return absl::NotFoundError(absl::StrCat("no tensor '", name, "'"));
    return Matrix(name);
  }
  std::vector<float> Matrix(const std::string& name) const {
    return NormalRows(kUnits, kDim, name.find("noise") == std::string::npos ? 21 : 22, scale_);
  }
  int64_t dim = kDim;
  std::string missing;

 private:
  double scale_;
};

ExpertRun Route(const std::string& options, const std::vector<float>& x, const Gates& w = Gates(),
                int threads = 1, absl::Span<const int64_t> positions = {}) {
  RouteInputs in;
  in.items = std::ssize(x) / kDim;
  in.hidden = RowsOf(x, kDim);
  in.layer = 1;
  in.step = 5;
  in.positions = positions;
  return RunExperts("expert/noisy_top_k:layer=1," + options, in, 0, &w, threads);
}
std::vector<double> Token(const std::vector<float>& x, int64_t i) {
  return {x.begin() + i * kDim, x.begin() + (i + 1) * kDim};
}
// The documented coordinates of the draw.
std::vector<double> Normals(uint64_t seed, uint64_t position) {
  std::vector<double> z;
  for (uint64_t u = 0; u < kUnits; ++u)
    z.push_back(RandomNormal({.seed = seed, .step = 5, .layer = 1, .unit = u, .item = position}));
  return z;
}

TEST(NoisyTopK, AgreesWithTheReferenceWithAndWithoutNoise) {
  const Gates w;
  const std::vector<float> x = NormalRows(kItems, kDim, 1);
  for (bool noise : {false, true}) {
    const ExpertRun r = Route(noise ? "k=3,noise=true,seed=7" : "k=3", x, w);
    ASSERT_TRUE(r.status.ok()) << r.status;
    for (int64_t i = 0; i < kItems; ++i) {
      const auto normals = noise ? Normals(7, i) : std::vector<double>();
      const auto gate =
          reference::NoisyLogits(Token(x, i), w.Matrix("blk.1.noisy_top_k.gate.weight"),
                                 w.Matrix("blk.1.noisy_top_k.noise.weight"), normals);
      const std::vector<double> want = reference::WeightsOfTopK(gate.noisy, 3);
      std::vector<double> got(kUnits);
      for (int64_t e = r.a().row_ptr[i]; e < r.a().row_ptr[i + 1]; ++e) {
        got[r.a().unit[e]] = r.a().weight[e];
        EXPECT_NEAR(r.a().score[e], gate.noisy[r.a().unit[e]], 1e-4);
      }
      for (int64_t u = 0; u < kUnits; ++u) EXPECT_NEAR(got[u], want[u], 1e-4) << i;
    }
  }
}
TEST(NoisyTopK, NoiseIsAFunctionOfItsCoordinates) {
  const std::vector<float> x = NormalRows(kItems, kDim, 2);
  std::vector<int64_t> positions(kItems);
  std::iota(positions.begin(), positions.end(), 0);
  const ExpertRun whole = Route("noise=true", x, Gates(), 1, positions);
  const std::vector<float> tail(x.begin() + 40 * kDim, x.end());
  const ExpertRun chunk =
      Route("noise=true", tail, Gates(), 2, absl::MakeConstSpan(positions).subspan(40));
  for (int64_t i = 40; i < kItems; ++i) EXPECT_EQ(chunk.Units(i - 40), whole.Units(i)) << i;

  EXPECT_NE(Route("noise=true,seed=1", x).AllUnits(), Route("noise=true", x).AllUnits());
  EXPECT_NE(Route("noise=true", x).AllUnits(), Route("k=2", x).AllUnits());
}
// Both matrices start at zero: no expert is better, so the first ones win, each with 1 / k.
TEST(NoisyTopK, AFreshGateTiesAndTakesTheFirst) {
  const ExpertRun r = Route("k=3", NormalRows(4, kDim, 3), Gates(0));
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(r.Units(i), (std::vector<int32_t>{0, 1, 2}));
    EXPECT_THAT(r.Weights(i), testing::Each(testing::FloatEq(1.0f / 3)));
  }
}
TEST(NoisyTopK, NaNIsCountedAndNeverChosen) {
  std::vector<float> x = NormalRows(3, kDim, 4);
  x[kDim + 2] = NAN;
  const ExpertRun r = Route("k=2", x);
  EXPECT_TRUE(r.Units(1).empty());
  EXPECT_EQ(r.Units(2).size(), 2u);
  EXPECT_EQ(r.a().nan_scores, kUnits);
}

// The smooth load against its definition by drawing: the noise of one expert drawn anew, the others
// as they were.
TEST(NoisyTopK, SmoothLoadIsTheProbabilityOfStayingIn) {
  constexpr int64_t kK = 2;
  constexpr int kDraws = 20000;
  const std::vector<float> clean = NormalRows(3, 5, 5);
  std::vector<float> noisy = clean;
  std::vector<float> scale(15);
  for (size_t i = 0; i < 15; ++i) {
    scale[i] = 0.3f + 0.1f * static_cast<float>(i % 4);
    noisy[i] += scale[i] * static_cast<float>(RandomNormal({6, 0, 0, 0, i}));
  }
  const std::vector<double> load =
      expert::SmoothLoad(RowsOf(clean, 5), RowsOf(noisy, 5), RowsOf(scale, 5), kK);
  for (size_t u = 0; u < 5; ++u) {
    double in = 0;
    for (size_t i = 0; i < 3; ++i) {
      for (uint64_t d = 0; d < kDraws; ++d) {
        const double h = clean[i * 5 + u] + scale[i * 5 + u] * RandomNormal({7, d, i, u, 0});
        int64_t ahead = 0;
        for (size_t v = 0; v < 5; ++v) ahead += v != u && noisy[i * 5 + v] > h;
        in += ahead < kK ? 1.0 / kDraws : 0;
      }
    }
    EXPECT_NEAR(load[u], in, 0.02) << u;
  }
}
// Code in use softmaxes before the top k and then compares logits with thresholds that are
// probabilities. A constant added to a token's logits changes no choice: it may change no load.
TEST(NoisyTopK, SmoothLoadStaysInOneSpace) {
  std::vector<float> clean = NormalRows(6, 5, 8);
  std::vector<float> noisy = clean;
  for (size_t i = 0; i < noisy.size(); ++i)
    noisy[i] += 0.5f * static_cast<float>(RandomNormal({9, 0, 0, 0, i}));
  const std::vector<float> scale(30, 0.5f);
  const auto load = [&] {
    return expert::SmoothLoad(RowsOf(clean, 5), RowsOf(noisy, 5), RowsOf(scale, 5), 2);
  };
  const std::vector<double> before = load();
  for (float& v : clean) v += 4;
  for (float& v : noisy) v += 4;
  const std::vector<double> after = load();
  for (size_t u = 0; u < 5; ++u) EXPECT_NEAR(after[u], before[u], 1e-5);

  const std::vector<double> even = {3, 3, 3};
  EXPECT_EQ(expert::NoisyBalanceLoss(even, even), 0);
  const std::vector<double> odd = {1, 2, 3};  // variance 1, mean 2
  EXPECT_NEAR(expert::NoisyBalanceLoss(odd, even), 1e-2 * 0.25, 1e-9);
}
TEST(NoisyTopK, TheSameForAnyNumberOfThreads) {
  const std::vector<float> x = NormalRows(1000, kDim, 10);
  const ExpertRun one = Route("noise=true", x);
  for (int threads : {2, 8}) {
    const ExpertRun many = Route("noise=true", x, Gates(), threads);
    EXPECT_EQ(many.AllUnits(), one.AllUnits());
    EXPECT_EQ(many.AllWeights(), one.AllWeights());
  }
}
TEST(NoisyTopK, ErrorsSayWhatIsWrong) {
  using testing::HasSubstr;
  const std::vector<float> x = NormalRows(3, kDim, 1);
  const auto error = [&](const std::string& options, const Gates& w = Gates()) {
    return std::string(Route(options, x, w).status.message());
  };
  EXPECT_THAT(error("k=10"), HasSubstr("k=10 of 9 experts"));
  EXPECT_THAT(error("seed=4"), HasSubstr("seed=4 without noise would be ignored"));
  EXPECT_THAT(error("layer=2"), HasSubstr("2 layers"));
  Gates w;
  w.dim = 1 << 20;
  EXPECT_THAT(error("k=2", w), HasSubstr("allowed 1 to 65536"));
  w.dim = kDim - 1;
  EXPECT_THAT(error("k=2", w), HasSubstr("wanted 9 units (or 0) and hidden 19"));
  w.missing = "blk.1.noisy_top_k.noise.weight";
  EXPECT_THAT(error("k=2", w), HasSubstr(w.missing));

  RouteInputs in;
  in.items = 2;
  in.hidden = RowsOf(x, kDim);
  const std::vector<int64_t> rows = {0, 2, 3};
  in.item_rows = rows;
  auto router = BuiltinRouters().routers.Create("noisy_top_k", &w);
  const Gates right;
  router = BuiltinRouters().routers.Create("noisy_top_k", &right);
  auto plan = (*router)->MakePlan({.items = 2, .hidden = kDim, .rows = 3});
  ASSERT_TRUE(plan.ok()) << plan.status();
  OwnedWorkspace memory((*plan)->info().workspace_bytes);
  AssignmentBuffer out;
  out.Reserve(2, (*plan)->info().max_entries);
  EXPECT_THAT((*router)->Run(**plan, in, {memory.workspace(), nullptr}, out.view()).message(),
              HasSubstr("3 rows for 2 items"));
}
}  // namespace noisy_top_k_test
SLUICE_END_NAMESPACE
