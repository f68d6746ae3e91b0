#include "sluice/routers/expert/small_thinker/small_thinker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "sluice/routers/common/pipeline/residency.h"
#include "sluice/routers/expert/common/relu_ffn.h"
#include "sluice/routers/expert/small_thinker/early_gate.h"
#include "sluice/routers/expert/small_thinker/small_thinker_reference.h"
#include "sluice/routers/expert/small_thinker/sparse_head.h"
#include "sluice/tests/support/expert_run.h"

SLUICE_BEGIN_NAMESPACE
namespace small_thinker_test {
using testing::ElementsAre;
using testing::HasSubstr;
constexpr int64_t kItems = 77;

// The gate of one layer, under the names of the model's file.
class Gate final : public WeightSource {
 public:
  Gate(int64_t dim, int64_t experts, uint64_t seed = 1)
      : ints{{"smallthinker.block_count", 2},
             {"smallthinker.embedding_length", dim},
             {"smallthinker.expert_count", experts}},
        weight(NormalRows(experts, dim, seed, 0.4)) {}
  absl::StatusOr<int64_t> Int(const std::string& key) const override {
    const auto it = ints.find(key);
    if (it == ints.end()) return absl::NotFoundError(key);
    return it->second;
  }
  absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                             absl::Span<const uint64_t> shape) const override {
    if (name != "blk.1.ffn_gate_inp.weight" || shape[0] * shape[1] != weight.size())
      return absl::NotFoundError(name);
    return weight;
  }
  int64_t dim() const { return ints.at("smallthinker.embedding_length"); }

  std::map<std::string, int64_t> ints;
  std::vector<float> weight;
};

reference::Rows Double(const std::vector<float>& x, int64_t cols) {
  reference::Rows rows;
  for (size_t i = 0; i < x.size(); i += cols) rows.push_back({&x[i], &x[i] + cols});
  return rows;
}
ExpertRun Route(const std::string& options, const std::vector<float>& h, const Gate& gate,
                int threads = 1) {
  RouteInputs in;
  in.items = std::ssize(h) / gate.dim();
  in.hidden = RowsOf(h, gate.dim());
  return RunExperts("expert/small_thinker:layer=1," + options, in, 0, &gate, threads);
}

TEST(SmallThinker, ChoosesAndWeighsAsTheReference) {
  struct Shape {
    int64_t dim, experts, k;
  };
  for (const Shape s : {Shape{20, 6, 2}, {33, 32, 4}, {64, 64, 6}, {7, 1, 1}, {16, 9, 9}}) {
    const Gate gate(s.dim, s.experts);
    const std::vector<float> h = NormalRows(kItems, s.dim, 2, 3);  // not normed
    for (const bool softmax : {false, true}) {
      for (const bool renormalise : {false, true}) {
        const ExpertRun r =
            Route(absl::StrCat("k=", s.k, ",score=", softmax ? "softmax" : "sigmoid",
                               ",renormalise=", renormalise ? "true" : "false"),
                  h, gate);
        ASSERT_TRUE(r.status.ok()) << r.status;
        for (int64_t i = 0; i < kItems; ++i) {
          const auto want = reference::EarlyWeights(Double(gate.weight, s.dim), Double(h, s.dim)[i],
                                                    static_cast<size_t>(s.k), softmax, renormalise);
          std::vector<double> got(want.size());
          for (int64_t e = r.a().row_ptr[i]; e < r.a().row_ptr[i + 1]; ++e)
            got[r.a().unit[e]] = r.a().weight[e];
          for (size_t u = 0; u < want.size(); ++u) ASSERT_NEAR(got[u], want[u], 1e-5) << i;
        }
      }
    }
  }
}
// The residual stream is taken as it comes: a norm would make these rows equal.
TEST(SmallThinker, TheStateIsNotNormed) {
  const Gate gate(24, 8);
  std::vector<float> h = NormalRows(1, 24, 3);
  for (int64_t c = 0; c < 24; ++c) h.push_back(2 * h[c]);
  const ExpertRun r = Route("k=3,renormalise=false", h, gate);
  EXPECT_EQ(r.Units(0), r.Units(1));
  EXPECT_NE(r.Weights(0), r.Weights(1));
}
TEST(SmallThinker, TiesAndNaN) {
  Gate gate(4, 5);
  gate.weight.assign(20, 0.25f);
  EXPECT_THAT(Route("k=2", {1, 1, 1, 1}, gate).Units(0), ElementsAre(0, 1));
  gate.weight[4] = NAN;
  const ExpertRun r = Route("k=2", {1, 1, 1, 1}, gate);
  EXPECT_THAT(r.Units(0), ElementsAre(0, 2));
  EXPECT_EQ(r.a().nan_scores, 1);
  EXPECT_TRUE(Route("k=2", {1, NAN, 1, 1}, gate).Units(0).empty());
  EXPECT_EQ(Route("k=2", {}, gate).a().entries(), 0);
}
TEST(SmallThinker, TheSameForAnyNumberOfThreads) {
  const Gate gate(24, 16);
  const std::vector<float> h = NormalRows(1000, 24, 4);
  const ExpertRun one = Route("k=3", h, gate);
  for (int threads : {2, 8}) {
    const ExpertRun many = Route("k=3", h, gate, threads);
    EXPECT_EQ(many.AllUnits(), one.AllUnits());
    EXPECT_EQ(many.AllWeights(), one.AllWeights());
  }
}
TEST(SmallThinker, ErrorsSayWhatIsWrong) {
  const std::vector<float> h = NormalRows(2, 24, 5);
  const auto error = [&](const std::string& options, const Gate& gate) {
    return std::string(Route(options, h, gate).status.message());
  };
  EXPECT_THAT(error("k=9", Gate(24, 8)), HasSubstr("k=9 of 8 experts"));
  EXPECT_THAT(error("score=logit", Gate(24, 8)), HasSubstr("sigmoid"));
  Gate gate(24, 8);
  gate.ints["smallthinker.block_count"] = 1;
  EXPECT_THAT(error("k=2", gate), HasSubstr("layer=1, but the weights have 1 layers"));
  gate = Gate(24, 8);
  gate.ints["smallthinker.expert_count"] = 0;
  EXPECT_THAT(error("k=2", gate), HasSubstr("allowed 1 to 65536"));
  gate.ints.erase("smallthinker.expert_count");
  EXPECT_THAT(error("k=2", gate), HasSubstr("smallthinker.expert_count"));
  RouteInputs in;
  in.items = 2;
  in.hidden = RowsOf(h, 24);
  EXPECT_THAT(
      RunExperts("expert/small_thinker:layer=1", in, 7, &static_cast<const Gate&>(Gate(24, 8)))
          .status.message(),
      HasSubstr("wanted 8 units (or 0)"));
}
// What was chosen is what a prefetch asks for, in order of rank, and a full hint stays.
TEST(SmallThinker, PrefetchesWhatItChose) {
  const Gate gate(24, 16);
  const std::vector<float> h = NormalRows(4, 24, 6);
  const ExpertRun r = Route("k=3", h, gate);
  pipeline::RankMajor order;
  const absl::Span<const int32_t> units = order.Order(r.a(), 12);
  std::vector<int32_t> loaded;
  pipeline::LruResidency cache(
      12, [&](int64_t, int32_t u) { loaded.push_back(u); }, [](int64_t, int32_t) {});
  cache.Hint(1, units);
  EXPECT_EQ(loaded, std::vector<int32_t>(units.begin(), units.end()));
  const auto best = std::max_element(r.a().score.begin(), r.a().score.begin() + 3);
  EXPECT_EQ(loaded[0], r.a().unit[best - r.a().score.begin()]);
  for (int64_t e = 0; e < r.a().entries(); ++e) ASSERT_TRUE(cache.Pin(1, r.a().unit[e]).ok());
  EXPECT_EQ(cache.counters().misses, 0);
}

struct Ffn {
  int64_t dim, neurons;
  std::vector<float> gate, up, down;
  Ffn(int64_t d, int64_t n, double bias = 0)
      : dim(d),
        neurons(n),
        gate(NormalRows(n, d, 11)),
        up(NormalRows(n, d, 12)),
        down(NormalRows(n, d, 13)) {
    for (float& g : gate) g += static_cast<float>(bias);
  }
  expert::ReluFfn View() const { return {RowsOf(gate, dim), RowsOf(up, dim), RowsOf(down, dim)}; }
};
struct FfnRun {
  std::vector<float> y;
  int64_t fired;
};
FfnRun RunFfn(const Ffn& f, const std::vector<float>& x) {
  FfnRun r{std::vector<float>(x.size(), NAN), 0};
  r.fired = f.View().Run(RowsOf(x, f.dim), {r.y.data(), std::ssize(x) / f.dim, f.dim, f.dim});
  return r;
}

// Every neuron computed, its gate cut off at 0, in the same order: the same bits.
TEST(ReluFfn, SkippingIsDense) {
  for (const auto& [dim, neurons] : {std::pair{20, 7}, {64, 48}, {33, 130}, {1, 1}}) {
    const Ffn f(dim, neurons);
    const std::vector<float> x = NormalRows(9, dim, 14);
    const FfnRun got = RunFfn(f, x);
    std::vector<float> dense(x.size());
    int64_t positive = 0;
    for (int64_t r = 0; r < 9; ++r) {
      for (int64_t j = 0; j < neurons; ++j) {
        const int32_t row = 0;
        const float g = kernels::Dot(&x[r * dim], &f.gate[j * dim], DType::kF32, dim);
        const float u = kernels::Dot(&x[r * dim], &f.up[j * dim], DType::kF32, dim);
        const float h = std::max(g, 0.0f) * u;
        kernels::ScatterAddRows(&f.down[j * dim], &row, &h, 1, dim, &dense[r * dim], dim);
        positive += g > 0;
      }
      const auto want = reference::ReluGated(Double(f.gate, dim), Double(f.up, dim),
                                             Double(f.down, dim), Double(x, dim)[r]);
      for (int64_t c = 0; c < dim; ++c)
        ASSERT_NEAR(got.y[r * dim + c], want[c], 1e-4 * neurons) << dim << " " << r;
    }
    EXPECT_EQ(got.y, dense);
    EXPECT_EQ(got.fired, positive);
  }
}
TEST(ReluFfn, RowsDoNotDependOnEachOther) {
  const Ffn f(24, 40);
  const std::vector<float> x = NormalRows(8, 24, 15);
  const FfnRun all = RunFfn(f, x);
  for (int64_t r = 0; r < 8; ++r) {
    const FfnRun one = RunFfn(f, {x.begin() + r * 24, x.begin() + (r + 1) * 24});
    EXPECT_TRUE(std::equal(one.y.begin(), one.y.end(), &all.y[r * 24]));
  }
}
TEST(ReluFfn, SilentNeuronsAreNotReadAndNaNFires) {
  Ffn f(8, 6);
  f.gate.assign(f.gate.size(), -1.0f);
  f.up.assign(f.up.size(), NAN);
  const FfnRun silent = RunFfn(f, std::vector<float>(8, 1.0f));
  EXPECT_EQ(silent.fired, 0);
  for (float y : silent.y) EXPECT_EQ(y, 0);
  f.gate.assign(f.gate.size(), 0.0f);  // 0 is not above 0
  EXPECT_EQ(RunFfn(f, std::vector<float>(8, 1.0f)).fired, 0);
  EXPECT_TRUE(std::isnan(RunFfn(Ffn(8, 6), {1, 1, NAN, 1, 1, 1, 1, 1}).y[0]));
}

struct Head {
  static constexpr int64_t kDim = 12, kTokens = 75, kRank = 5;  // 75 is no multiple of 32
  std::vector<float> matrix = NormalRows(kTokens, kDim, 21);
  expert::SparseHead head;
  Head() {
    head.first = {kDim, kRank, NormalRows(kRank, kDim, 22), std::vector<float>(kRank)};
    head.second = {kRank, kTokens, NormalRows(kTokens, kRank, 23), std::vector<float>(kTokens)};
    head.head = RowsOf(matrix, kDim);
  }
  std::vector<double> Scores(const std::vector<float>& x) const {
    std::vector<double> h;
    for (const auto& row : Double(head.first.weight, kDim))
      h.push_back(reference::Product(row, {x.begin(), x.end()}));
    std::vector<double> s;
    for (const auto& row : Double(head.second.weight, kRank))
      s.push_back(reference::Product(row, h));
    return s;
  }
  int64_t Run(const std::vector<float>& x, std::vector<float>& logits) const {
    std::vector<float> hidden(kRank);
    logits.assign(kTokens, NAN);
    return head.Logits(x.data(), hidden.data(), logits.data());
  }
};

TEST(SparseHead, ComputesWhatIsPredicted) {
  Head h;
  const std::vector<float> x = NormalRows(1, Head::kDim, 24);
  const std::vector<double> scores = h.Scores(x);
  for (const auto skipped :
       {expert::Skipped::kNever, expert::Skipped::kScore, expert::Skipped::kZero}) {
    h.head.skipped = skipped;
    std::vector<float> logits;
    const int64_t computed = h.Run(x, logits);
    EXPECT_EQ(computed,
              std::count_if(scores.begin(), scores.end(), [](double s) { return s > 0; }));
    EXPECT_GT(computed, 10);
    EXPECT_LT(computed, 65);
    for (int64_t t = 0; t < Head::kTokens; ++t) {
      double want = reference::Product(Double(h.matrix, Head::kDim)[t], {x.begin(), x.end()});
      if (scores[t] <= 0 && skipped == expert::Skipped::kNever) want = -INFINITY;
      if (scores[t] <= 0 && skipped == expert::Skipped::kScore) want = scores[t];
      if (scores[t] <= 0 && skipped == expert::Skipped::kZero) want = 0;
      if (std::isinf(want)) {
        EXPECT_EQ(logits[t], -INFINITY);
      } else {
        EXPECT_NEAR(logits[t], want, 1e-4);
      }
    }
  }
  h.head.threshold = -INFINITY;
  std::vector<float> dense;
  EXPECT_EQ(h.Run(x, dense), Head::kTokens);
  for (int64_t t = 0; t < Head::kTokens; ++t)
    EXPECT_EQ(dense[t], kernels::Dot(x.data(), &h.matrix[t * Head::kDim], DType::kF32, Head::kDim));
}
// All logits that are computed are negative: zeros in the others' places win, -inf does not.
TEST(SparseHead, ZeroIsNotNeutral) {
  Head h;
  const std::vector<float> x(Head::kDim, 1.0f);
  h.matrix.assign(h.matrix.size(), -0.5f);
  std::vector<float> logits;
  const std::vector<double> scores = h.Scores(x);
  const auto winner = [&] {
    h.Run(x, logits);
    return std::max_element(logits.begin(), logits.end()) - logits.begin();
  };
  EXPECT_GT(scores[winner()], 0);
  h.head.skipped = expert::Skipped::kZero;
  EXPECT_LE(scores[winner()], 0);
}
TEST(SparseHead, SomethingIsAlwaysComputedAndNaNHidesNothing) {
  Head h;
  h.head.threshold = 1e9f;
  const std::vector<float> x = NormalRows(1, Head::kDim, 25);
  std::vector<float> logits;
  EXPECT_EQ(h.Run(x, logits), 1);
  const std::vector<double> scores = h.Scores(x);
  EXPECT_GT(logits[std::max_element(scores.begin(), scores.end()) - scores.begin()], -INFINITY);
  std::vector<float> odd = x;
  odd[3] = NAN;
  EXPECT_EQ(h.Run(odd, logits), Head::kTokens);
  EXPECT_TRUE(std::isnan(logits[0]));
}

TEST(EarlyGate, BestAndOverlap) {
  EXPECT_THAT(expert::BestExperts(std::vector<float>{0.5f, 2, 2, -1, 1}, 3), ElementsAre(1, 2, 4));
  EXPECT_THAT(expert::BestExperts(std::vector<float>{1, 1}, 5), ElementsAre(0, 1));
  const std::vector<int32_t> a = {3, 1, 7};
  const std::vector<int32_t> b = {7, 2, 3};
  EXPECT_EQ(expert::Overlap(a, b), 2);
  EXPECT_EQ(expert::Overlap(a, {}), 0);
}
// Where what the late gate reads is a linear function of what the early one does, the fitted gate
// names the same experts; a constant of all logits of a token, as any softmax ignores, is ignored.
TEST(EarlyGate, FindsAGateThatIsThere) {
  constexpr int64_t kDim = 12;
  constexpr int64_t kExperts = 6;
  constexpr int64_t kTokens = 200;
  const std::vector<float> h = NormalRows(kTokens, kDim, 31);
  const std::vector<float> w = NormalRows(kExperts, kDim, 32);
  std::vector<float> logits(kTokens * kExperts);
  expert::EarlyGateFit fit(kDim, kExperts);
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t e = 0; e < kExperts; ++e) {
      double z = 100 * std::sin(static_cast<double>(t));  // of the whole token
      for (int64_t c = 0; c < kDim; ++c)
        z += static_cast<double>(w[e * kDim + c]) * static_cast<double>(h[t * kDim + c]);
      logits[t * kExperts + e] = static_cast<float>(z);
    }
    fit.Add(&h[t * kDim], &logits[t * kExperts]);
  }
  const auto gate = fit.Solve(1e-9);
  ASSERT_TRUE(gate.ok()) << gate.status();
  // What is common to all experts is not fitted.
  for (int64_t c = 0; c < kDim; ++c) {
    double common = 0;
    for (int64_t e = 0; e < kExperts; ++e)
      common += static_cast<double>(gate->weight[e * kDim + c]);
    EXPECT_NEAR(common, 0, 1e-4) << c;
  }
  std::vector<float> early(kExperts);
  for (int64_t t = 0; t < kTokens; ++t) {
    gate->Apply(&h[t * kDim], early.data());
    EXPECT_EQ(expert::BestExperts(early, 2),
              expert::BestExperts({&logits[t * kExperts], kExperts}, 2))
        << t;
  }
}
}  // namespace small_thinker_test
SLUICE_END_NAMESPACE
