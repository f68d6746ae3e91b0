#include "sluice/routers/token/cog_vla/cog_vla.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/token/cog_vla/cog_vla_reference.h"
#include "sluice/routers/token/cog_vla/encoder_mixer.h"
#include "sluice/tests/support/expert_run.h"
#include "sluice/tests/support/synthetic_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace cog_vla_test {
using testing::HasSubstr;
using token::CogVla;
constexpr int64_t kDim = 14;
constexpr int64_t kLayers = 32;

WeightKeys Keys(int64_t layer) {
  WeightKeys keys = CogVla::Weights({.layer = layer}, {.hidden = kDim});
  keys.ints[0].value = kLayers;
  return keys;
}
std::vector<std::vector<double>> Double(const std::vector<float>& x) {
  std::vector<std::vector<double>> rows;
  for (size_t i = 0; i < x.size(); i += kDim) rows.push_back({&x[i], &x[i] + kDim});
  return rows;
}
ExpertRun Route(const std::string& options, const std::vector<float>& h, int64_t layer = 20,
                absl::Span<const int64_t> positions = {}, int threads = 1) {
  RouteInputs in;
  in.items = std::ssize(h) / kDim;
  in.hidden = RowsOf(h, kDim);
  in.positions = positions;
  const SyntheticWeights w(Keys(layer));
  return RunExperts(
      absl::StrCat("token/cog_vla:layer=", layer, options.empty() ? "" : ",", options), in, 0, &w,
      threads);
}
std::vector<bool> Runs(const ExpertRun& r) {
  std::vector<bool> runs;
  for (int64_t i = 0; i < r.a().items; ++i) runs.push_back(r.a().unit[i] == CogVla::kRun);
  return runs;
}
// The published schedule, by hand.
double Share(int64_t layer, double most = 0.85, double least = 0.15) {
  const double cosine = std::cos(M_PI * static_cast<double>(layer) / (kLayers - 1));
  const double rho = std::max(cosine / 2 + 0.5, least);
  return rho > most ? 1 : rho;
}

TEST(CogVla, RunsAndWeighsAsTheReference) {
  struct Prompt {
    int64_t tokens, first, visual;
  };
  for (const Prompt p : {Prompt{40, 1, 25},
                         {61, 1, 50},
                         {12, 0, 12},
                         {30, 3, 64},
                         {1, 1, 8},
                         {9, 20, 5},
                         {20, 1, 0}}) {
    const std::vector<float> h = NormalRows(p.tokens, kDim, 1, 3);
    for (const int64_t layer : {0, 7, 8, 16, 31}) {
      const SyntheticWeights w(Keys(layer));
      const reference::PruningRouting reference = {w, absl::StrCat("blk.", layer, ".cog_vla.")};
      const ExpertRun r =
          Route(absl::StrCat("weight=trained,first=", p.first, ",visual=", p.visual), h, layer);
      ASSERT_TRUE(r.status.ok()) << r.status;
      const std::vector<bool> want = reference.Runs(Double(h), static_cast<size_t>(p.first),
                                                    static_cast<size_t>(p.visual), Share(layer));
      EXPECT_EQ(Runs(r), want) << p.tokens << " " << layer;
      for (int64_t i = 0; i < p.tokens; ++i) {
        const double s = want[i] ? reference.Probability(Double(h)[i]) : 1;
        EXPECT_NEAR(r.Weights(i)[0], s, 1e-5) << i;  // forced tokens too
      }
      const ExpertRun one = Route(absl::StrCat("first=", p.first, ",visual=", p.visual), h, layer);
      EXPECT_EQ(one.AllUnits(), r.AllUnits());
      for (float weight : one.AllWeights()) EXPECT_EQ(weight, 1);
    }
  }
}
// As many as the formula says in every layer; the others are forced.
TEST(CogVla, TheQuotaIsExactAndTheScheduleFalls) {
  constexpr int64_t kTokens = 80;
  constexpr int64_t kVisual = 61;
  const std::vector<float> h = NormalRows(kTokens, kDim, 2);
  double before = 1;
  double all = 0;
  double routed = 0;
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const double share = CogVla::CosineShare({.layer = layer}, kLayers);
    EXPECT_NEAR(share, Share(layer), 1e-12);
    EXPECT_LE(share, before) << layer;
    EXPECT_EQ(share == 1, layer < 8) << layer;
    before = share;
    all += share / kLayers;
    if (layer >= 8) routed += share / 24;

    const std::vector<bool> runs = Runs(Route("visual=61", h, layer));
    const auto kept = std::count(runs.begin() + 1, runs.begin() + 1 + kVisual, true);
    EXPECT_EQ(kept, static_cast<int64_t>(std::floor(Share(layer) * kVisual))) << layer;
    EXPECT_TRUE(runs[0]);
    for (int64_t i = 1 + kVisual; i < kTokens; ++i) EXPECT_TRUE(runs[i]) << i;
  }
  EXPECT_NEAR(routed, 0.383, 1e-3);
  EXPECT_NEAR(all, 0.538, 1e-3);
}
TEST(CogVla, AllOrNone) {
  const std::vector<float> h = NormalRows(50, kDim, 3);
  EXPECT_EQ(Runs(Route("schedule=constant,rho=1", h)), std::vector<bool>(50, true));
  const std::vector<bool> none = Runs(Route("schedule=constant,rho=0,visual=30", h));
  EXPECT_EQ(std::count(none.begin(), none.end(), true), 20);
  // A step of decoding stands behind the visual tokens.
  const std::vector<int64_t> at = {300};
  EXPECT_TRUE(Runs(Route("", NormalRows(1, kDim, 4), 31, at))[0]);
}
// Two prompts in a batch decide as each would alone.
TEST(CogVla, SequencesHaveQuotasOfTheirOwn) {
  const std::vector<float> h = NormalRows(70, kDim, 5);
  std::vector<int64_t> positions;
  for (int64_t i = 0; i < 70; ++i) positions.push_back(i < 30 ? i : i - 30);
  const std::vector<bool> both = Runs(Route("visual=20", h, 20, positions));
  std::vector<bool> each = Runs(Route("visual=20", {h.begin(), h.begin() + 30 * kDim}));
  const std::vector<bool> second = Runs(Route("visual=20", {h.begin() + 30 * kDim, h.end()}));
  each.insert(each.end(), second.begin(), second.end());
  EXPECT_EQ(both, each);
}
TEST(CogVla, TiesAndNaN) {
  const std::vector<float> one = NormalRows(1, kDim, 6);
  std::vector<float> h;
  for (int i = 0; i < 10; ++i) h.insert(h.end(), one.begin(), one.end());
  std::vector<bool> runs = Runs(Route("schedule=constant,rho=0.5,visual=6", h));
  EXPECT_THAT(runs,
              testing::ElementsAre(true, true, true, true, false, false, false, true, true, true));
  h[2 * kDim] = NAN;
  h[8 * kDim] = NAN;  // forced, and its weight is a number
  const ExpertRun r = Route("schedule=constant,rho=0.5,visual=6,weight=trained", h);
  runs = Runs(r);
  EXPECT_THAT(runs,
              testing::ElementsAre(true, true, false, true, true, false, false, true, true, true));
  EXPECT_EQ(r.a().nan_scores, 2);
  EXPECT_EQ(Route("", {}).a().entries(), 0);
}
TEST(CogVla, TheSameForAnyNumberOfThreads) {
  const std::vector<float> h = NormalRows(700, kDim, 7);
  const ExpertRun one = Route("weight=trained,visual=600", h);
  for (int threads : {2, 8}) {
    const ExpertRun many = Route("weight=trained,visual=600", h, 20, {}, threads);
    EXPECT_EQ(many.AllUnits(), one.AllUnits());
    EXPECT_EQ(many.AllWeights(), one.AllWeights());
  }
}
TEST(CogVla, ErrorsSayWhatIsWrong) {
  const std::vector<float> h = NormalRows(2, kDim, 8);
  const auto error = [&](const std::string& options) {
    return std::string(Route(options, h).status.message());
  };
  EXPECT_THAT(error("rho=0.3"), HasSubstr("without schedule=constant would be ignored"));
  EXPECT_THAT(error("schedule=constant,min=0.3"), HasSubstr("with schedule=constant"));
  EXPECT_THAT(error("schedule=constant,rho=1.1"), HasSubstr("outside [0, 1]"));
  WeightKeys keys = Keys(0);
  const auto refusal = [&] {
    return std::string(CogVla::Create({}, SyntheticWeights(keys)).status().message());
  };
  keys.ints[2].value = 1;
  EXPECT_THAT(refusal(), HasSubstr("film is 1; implemented: 0"));
  keys.ints[1].value = 0;
  EXPECT_THAT(refusal(), HasSubstr("dim 0; allowed 1 to"));
  keys.ints[0].value = 0;
  EXPECT_THAT(refusal(), HasSubstr("layer=0, but the weights have 0 layers"));
}

// A marked token among the visual ones, which the router was given a direction to see by: how often
// it runs, beside the same quota drawn at random.
TEST(CogVla, FindsAMarkedToken) {
  class Marked final : public WeightSource {
   public:
    absl::StatusOr<int64_t> Int(const std::string& key) const override {
      if (key == "sluice.cog_vla.film") return 0;
      return key == "sluice.cog_vla.dim" ? kDim : kLayers;
    }
    absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                               absl::Span<const uint64_t> shape) const override {
      if (shape.size() == 1 && name.find("norm") != std::string::npos)
        return std::vector<float>(kDim, 1.0f);
      std::vector<float> w(shape.size() == 1 ? 2 : 2 * kDim);
      if (shape.size() == 2) w[kDim] = 1;  // running likes the first coordinate
      return w;
    }
  };
  const Marked w;
  for (const int64_t layer : {10, 20, 31}) {
    constexpr int kPrompts = 200;
    double found = 0;
    for (uint64_t seed = 0; seed < kPrompts; ++seed) {
      std::vector<float> h = NormalRows(70, kDim, 100 + seed);
      const auto marked = static_cast<int64_t>(1 + RandomBits({seed, 0, 0, 0, 1}) % 64);
      h[marked * kDim] += 2;
      RouteInputs in;
      in.items = 70;
      in.hidden = RowsOf(h, kDim);
      const ExpertRun r =
          RunExperts(absl::StrCat("token/cog_vla:visual=64,layer=", layer), in, 0, &w);
      found += Runs(r)[marked] / static_cast<double>(kPrompts);
    }
    const double random = std::floor(64 * Share(layer)) / 64;
    std::printf("layer %2d: the marked token runs in %.3f of prompts, at random %.3f\n",
                static_cast<int>(layer), found, random);
    EXPECT_GT(found, random + 0.15);
  }
}

TEST(EncoderMixer, SharesAndMixesAsByHand) {
  token::EncoderMixer mixer;
  mixer.first = {4, 6, NormalRows(6, 4, 31), NormalRows(1, 6, 32)};
  mixer.second = {6, 2, NormalRows(2, 6, 33), NormalRows(1, 2, 34)};
  const std::vector<float> t = NormalRows(1, 4, 35);
  double z[2];
  for (int e = 0; e < 2; ++e) {
    z[e] = static_cast<double>(mixer.second.bias[e]);
    for (int j = 0; j < 6; ++j) {
      double h = static_cast<double>(mixer.first.bias[j]);
      for (int c = 0; c < 4; ++c) h += static_cast<double>(mixer.first.weight[j * 4 + c] * t[c]);
      z[e] += static_cast<double>(mixer.second.weight[e * 6 + j]) * h *
              (0.5 * std::erfc(-h / std::sqrt(2.0)));
    }
  }
  float share[2];
  float hidden[6];
  mixer.Shares(t.data(), hidden, share);
  EXPECT_NEAR(share[1], 1 / (1 + std::exp(z[0] - z[1])), 1e-5);
  EXPECT_NEAR(share[0] + share[1], 1, 1e-6);

  const std::vector<float> a = NormalRows(3, 5, 36);
  const std::vector<float> b = NormalRows(3, 5, 37);
  const std::vector<MatrixView<const float>> tokens = {RowsOf(a, 5), RowsOf(b, 5)};
  std::vector<float> out(15);
  mixer.Run(share, tokens, {out.data(), 3, 5, 5});
  for (int i = 0; i < 15; ++i) EXPECT_NEAR(out[i], share[0] * a[i] + share[1] * b[i], 1e-6);

  mixer.mix = token::Mix::kAdd;
  mixer.Shares(t.data(), hidden, share);
  mixer.Run(share, tokens, {out.data(), 3, 5, 5});
  for (int i = 0; i < 15; ++i) EXPECT_EQ(out[i], a[i] + b[i]);
  mixer.mix = token::Mix::kSoftmax;
  mixer.Shares(std::vector<float>(4, NAN).data(), hidden, share);
  EXPECT_TRUE(std::isnan(share[0]) && std::isnan(share[1]));
}
}  // namespace cog_vla_test
SLUICE_END_NAMESPACE
