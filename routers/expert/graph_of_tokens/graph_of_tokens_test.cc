#include "sluice/routers/expert/graph_of_tokens/graph_of_tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "sluice/routers/common/pipeline/analyzer.h"
#include "sluice/routers/expert/graph_of_tokens/graph_of_tokens_reference.h"
#include "sluice/tests/support/expert_run.h"

SLUICE_BEGIN_NAMESPACE
namespace graph_of_tokens_test {
using reference::TokenGraph;
constexpr int64_t kItems = 90;
constexpr int64_t kUnits = 8;
constexpr int64_t kDim = 16;

struct Problem {
  std::vector<float> logits;
  std::vector<float> hidden;
  std::vector<float> attention;  // [items, width], or empty
  std::vector<int64_t> positions;

  explicit Problem(uint64_t seed, int64_t items = kItems)
      : logits(NormalRows(items, kUnits, seed)), hidden(NormalRows(items, kDim, seed + 1)) {}
  int64_t items() const { return std::ssize(logits) / kUnits; }
  ExpertRun Route(const std::string& options, int threads = 1, int64_t first = -1) const {
    const int64_t n = first < 0 ? items() : first;
    RouteInputs in;
    in.items = n;
    in.scores = {logits.data(), n, kUnits, kUnits};
    in.hidden = {hidden.data(), n, kDim, kDim};
    const int64_t width = std::ssize(attention) / items();
    if (width > 0) in.features = {attention.data(), n, width, width};
    in.positions = absl::MakeConstSpan(positions).subspan(0, positions.empty() ? 0 : n);
    return RunExperts("expert/graph_of_tokens:" + options, in, kUnits, nullptr, threads);
  }
};
TokenGraph::Matrix MatrixOf(const std::vector<float>& x, int64_t cols) {
  TokenGraph::Matrix m;
  for (size_t i = 0; i < x.size(); i += cols) m.push_back({x.begin() + i, x.begin() + i + cols});
  return m;
}
void ExpectWeights(const ExpertRun& r, const TokenGraph::Matrix& want) {
  ASSERT_TRUE(r.status.ok()) << r.status;
  for (int64_t i = 0; i < r.a().items; ++i) {
    std::vector<double> got(kUnits);
    for (int64_t e = r.a().row_ptr[i]; e < r.a().row_ptr[i + 1]; ++e)
      got[r.a().unit[e]] = r.a().weight[e];
    for (int64_t u = 0; u < kUnits; ++u) EXPECT_NEAR(got[u], want[i][u], 2e-5) << i << " " << u;
  }
}
// Rows that sum to 1, a few entries 0.
std::vector<float> Attention(int64_t items, uint64_t seed) {
  std::vector<float> s(items * items);
  for (int64_t i = 0; i < items; ++i) {
    float sum = 0;
    for (int64_t j = 0; j < items; ++j) {
      const double u = RandomUniform({seed, 0, 0, uint64_t(i), uint64_t(j)});
      s[i * items + j] = u < 0.2 ? 0 : static_cast<float>(u);
      sum += s[i * items + j];
    }
    for (int64_t j = 0; j < items; ++j) s[i * items + j] /= sum;
  }
  return s;
}

TEST(GraphOfTokens, SimilarityAgreesWithTheReference) {
  const Problem p(1);
  const auto x = MatrixOf(p.hidden, kDim);
  const auto z = MatrixOf(p.logits, kUnits);
  for (double tau : {0.0, 1.0, 7.0}) {
    for (size_t neighbours : {0, 5}) {
      for (bool causal : {true, false}) {
        for (double alpha : {0.3, 1.0}) {
          const auto s =
              TokenGraph::Limit(TokenGraph::Similarity(x, tau == 0 ? 4 : tau), neighbours, causal);
          const std::string options =
              absl::StrCat("tau=", tau, ",neighbours=", neighbours, ",alpha=", alpha,
                           ",causal=", causal ? "true" : "false");
          SCOPED_TRACE(options);
          ExpectWeights(p.Route(options),
                        TokenGraph::Choose(TokenGraph::Mix(TokenGraph::Softmax(z), s, alpha), 2));
          ExpectWeights(p.Route(options + ",k=3,space=logit"),
                        TokenGraph::Choose(TokenGraph::Softmax(TokenGraph::Mix(z, s, alpha)), 3));
        }
      }
    }
  }
}
TEST(GraphOfTokens, AttentionAgreesWithTheReference) {
  Problem p(2);
  p.attention = Attention(kItems, 3);
  const auto r = TokenGraph::Softmax(MatrixOf(p.logits, kUnits));
  for (size_t neighbours : {0, 4}) {
    for (bool causal : {true, false}) {
      const auto s = TokenGraph::Limit(MatrixOf(p.attention, kItems), neighbours, causal);
      ExpectWeights(p.Route(absl::StrCat("coupling=attention,neighbours=", neighbours,
                                         ",causal=", causal ? "true" : "false")),
                    TokenGraph::Choose(TokenGraph::Mix(r, s, 1), 2));
    }
  }
}
// No share of the others, and no others: the bits of the standard router.
TEST(GraphOfTokens, NeutralSettingsAreTheStandardRouter) {
  Problem p(4);
  RouteInputs in;
  in.items = kItems;
  in.scores = RowsOf(p.logits, kUnits);
  const ExpertRun plain = RunExperts("expert/top_k:k=2", in, kUnits);
  p.attention.assign(kItems * kItems, 0.0f);
  for (int64_t i = 0; i < kItems; ++i) p.attention[i * kItems + i] = 1;
  for (const char* options :
       {"alpha=0", "alpha=0,causal=false", "coupling=attention", "coupling=attention,alpha=0.3",
        "coupling=attention,neighbours=3,causal=false"}) {
    const ExpertRun r = p.Route(options);
    EXPECT_EQ(r.AllUnits(), plain.AllUnits()) << options;
    EXPECT_EQ(r.AllWeights(), plain.AllWeights()) << options;
  }
  EXPECT_NE(p.Route("").AllUnits(), plain.AllUnits());
}
TEST(GraphOfTokens, EvenAttentionMakesAllTokensAlike) {
  Problem p(5);
  p.attention.assign(kItems * kItems, 1.0f / kItems);
  const ExpertRun r = p.Route("coupling=attention,causal=false");
  for (int64_t i = 1; i < kItems; ++i) {
    EXPECT_EQ(r.Units(i), r.Units(0));
    EXPECT_EQ(r.Weights(i), r.Weights(0));
  }
}
// All experts, so that the mixed scores come out whole: each token's sum to 1.
TEST(GraphOfTokens, MixedProbabilitiesSumToOne) {
  for (const char* options : {"k=0,alpha=0.5", "k=0,neighbours=3", "k=0,causal=false"}) {
    const ExpertRun r = Problem(6).Route(options);
    for (int64_t i = 0; i < kItems; ++i) {
      double sum = 0;
      for (int64_t e = r.a().row_ptr[i]; e < r.a().row_ptr[i + 1]; ++e) sum += r.a().score[e];
      EXPECT_NEAR(sum, 1, 1e-5) << options;
    }
  }
}
TEST(GraphOfTokens, LaterTokensCountOnlyWhereTheyMay) {
  Problem p(7);
  p.attention = Attention(kItems, 8);
  for (const char* options : {"", "neighbours=3", "coupling=attention", "space=logit,alpha=0.5"}) {
    const ExpertRun all = p.Route(options);
    for (int64_t n : {1, 40, 64, 65}) {
      const ExpertRun prefix = p.Route(options, 1, n);
      for (int64_t i = 0; i < n; ++i) {
        EXPECT_EQ(prefix.Units(i), all.Units(i)) << options;
        EXPECT_EQ(prefix.Weights(i), all.Weights(i)) << options;
      }
    }
  }
  const ExpertRun full = p.Route("causal=false");
  const ExpertRun half = p.Route("causal=false", 1, kItems / 2);
  int64_t changed = 0;
  for (int64_t i = 0; i < kItems / 2; ++i) changed += half.Units(i) != full.Units(i);
  EXPECT_GT(changed, 0);
}
TEST(GraphOfTokens, PermutedTokensArePermutedDecisions) {
  const Problem p(9);
  Problem reversed = p;
  for (int64_t i = 0; i < kItems; ++i) {
    const int64_t to = kItems - 1 - i;
    std::copy_n(&p.logits[i * kUnits], kUnits, &reversed.logits[to * kUnits]);
    std::copy_n(&p.hidden[i * kDim], kDim, &reversed.hidden[to * kDim]);
  }
  const ExpertRun a = p.Route("causal=false");
  const ExpertRun b = reversed.Route("causal=false");
  for (int64_t i = 0; i < kItems; ++i) EXPECT_EQ(a.Units(i), b.Units(kItems - 1 - i));
}
TEST(GraphOfTokens, SequencesDoNotCouple) {
  Problem both(10);
  for (int64_t i = 0; i < kItems; ++i) both.positions.push_back(i < 50 ? i + 3 : i - 50);
  Problem second(11, kItems - 50);
  second.logits.assign(both.logits.begin() + 50 * kUnits, both.logits.end());
  second.hidden.assign(both.hidden.begin() + 50 * kDim, both.hidden.end());
  for (const char* options : {"", "causal=false", "neighbours=2"}) {
    const ExpertRun a = both.Route(options);
    const ExpertRun b = second.Route(options);
    for (int64_t i = 50; i < kItems; ++i) {
      EXPECT_EQ(a.Units(i), b.Units(i - 50)) << options;
      EXPECT_EQ(a.Weights(i), b.Weights(i - 50)) << options;
    }
  }
}
TEST(GraphOfTokens, NaN) {
  Problem p(12);
  p.hidden[3 * kDim] = NAN;        // token 3 is like nobody
  p.logits[5 * kUnits + 2] = NAN;  // expert 2 of token 5, and of all that mix it in
  const ExpertRun r = p.Route("");
  RouteInputs in;
  in.items = kItems;
  in.scores = RowsOf(p.logits, kUnits);
  const ExpertRun plain = RunExperts("expert/top_k:k=2", in, kUnits);
  EXPECT_EQ(r.Units(3), plain.Units(3));
  EXPECT_EQ(r.a().nan_scores, kItems - 5);
  for (int64_t i = 5; i < kItems; ++i) EXPECT_THAT(r.Units(i), testing::Not(testing::Contains(2)));
}
TEST(GraphOfTokens, TheSameForAnyNumberOfThreads) {
  const Problem p(13, 700);
  for (const char* options : {"", "causal=false,neighbours=9"}) {
    const ExpertRun one = p.Route(options);
    for (int threads : {2, 8}) {
      const ExpertRun many = p.Route(options, threads);
      EXPECT_EQ(many.AllUnits(), one.AllUnits());
      EXPECT_EQ(many.AllWeights(), one.AllWeights());
    }
  }
}
TEST(GraphOfTokens, ErrorsSayWhatIsWrong) {
  using testing::HasSubstr;
  Problem p(14);
  const auto error = [&](const std::string& options) {
    return std::string(p.Route(options).status.message());
  };
  EXPECT_THAT(error("tau=2,coupling=attention"), HasSubstr("would be ignored"));
  EXPECT_THAT(error("coupling=attention"), HasSubstr("given [0, 0] for 90 items"));
  EXPECT_THAT(error("k=9"), HasSubstr("k=9 of 8 experts"));
  EXPECT_THAT(error("alpha=2"), HasSubstr("outside [0, 1]"));
  auto router = BuiltinRouters().routers.Create("graph_of_tokens");
  EXPECT_THAT((*router)->MakePlan({.items = 4, .units = 2}).status().message(),
              HasSubstr("hidden 0"));
  const RouteShape large = {.items = int64_t{1} << 35, .units = 8, .hidden = 16};
  EXPECT_THAT((*router)->MakePlan(large).status().message(), HasSubstr("allowed 2^31 - 1"));
}

// ---- What coupling does to tokens that come in clusters ----

// Four clusters of eight tokens; every draw adds noise to what gate and similarity see.
struct Clusters {
  static constexpr int64_t kClusters = 4;
  static constexpr int64_t kEach = 8;
  static constexpr int64_t kTokens = kClusters * kEach;
  std::vector<float> clean;
  std::vector<float> gate;

  explicit Clusters(uint64_t seed) : gate(NormalRows(kUnits, kDim, seed + 1)) {
    const std::vector<float> centre = NormalRows(kClusters, kDim, seed);
    clean = NormalRows(kTokens, kDim, seed + 2, 0.3);
    for (int64_t i = 0; i < kTokens; ++i) {
      for (int64_t c = 0; c < kDim; ++c) clean[i * kDim + c] += centre[i / kEach * kDim + c];
    }
  }
  Problem Draw(double noise, uint64_t seed) const {
    Problem p(0, kTokens);
    p.hidden = NormalRows(kTokens, kDim, seed, noise);
    for (size_t i = 0; i < clean.size(); ++i) p.hidden[i] += clean[i];
    p.logits = Logits(p.hidden);
    return p;
  }
  std::vector<float> Logits(const std::vector<float>& x) const {
    std::vector<float> z(kTokens * kUnits);
    for (int64_t i = 0; i < kTokens; ++i) {
      for (int64_t u = 0; u < kUnits; ++u)
        z[i * kUnits + u] =
            std::inner_product(&x[i * kDim], &x[i * kDim] + kDim, &gate[u * kDim], 0.0f);
    }
    return z;
  }
};
struct Stability {
  double flips = 0;      // share of tokens whose first choice differs between two draws
  double agreement = 0;  // share of pairs inside a cluster with one first choice
  double variation = 0;  // of the load
  double loss = 0;       // logit of the clean token's best expert less that of the chosen one
};
Stability Measure(double alpha, double tau, double noise) {
  constexpr int kSeeds = 40;
  Stability m;
  for (uint64_t s = 0; s < kSeeds; ++s) {
    const Clusters clusters(1000 + 10 * s);
    const std::vector<float> clean = clusters.Logits(clusters.clean);
    const std::string options = absl::StrCat("k=1,causal=false,alpha=", alpha, ",tau=", tau);
    const ExpertRun a = clusters.Draw(noise, 5000 + 10 * s).Route(options);
    const ExpertRun b = clusters.Draw(noise, 9000 + 10 * s).Route(options);
    pipeline::LoadAnalyzer load(kUnits);
    load.See(a.a());
    m.variation += load.LoadVariation() / kSeeds;
    constexpr double kTokens = kSeeds * Clusters::kTokens;
    for (int64_t i = 0; i < Clusters::kTokens; ++i) {
      const int32_t unit = a.Units(i)[0];
      m.flips += (unit != b.Units(i)[0]) / kTokens;
      const float* z = &clean[i * kUnits];
      m.loss += static_cast<double>(*std::max_element(z, z + kUnits) - z[unit]) / kTokens;
      const int64_t from = i / Clusters::kEach * Clusters::kEach;
      for (int64_t j = from; j < from + Clusters::kEach; ++j) {
        if (j != i) m.agreement += (unit == a.Units(j)[0]) / (kTokens * (Clusters::kEach - 1));
      }
    }
  }
  return m;
}
// Seeds 1000, 1010, ... of the clusters, 5000, ... and 9000, ... of the two draws. Where tokens of
// a kind are told apart from others, choices flip less and agree more; nothing of the kind is
// claimed of other temperatures, nor of the load or the loss, which are printed.
TEST(GraphOfTokens, ClusteredTokensFlipLess) {
  Stability plain;
  for (const auto& [tau, noise] : {std::pair{4.0, 0.3}, std::pair{1.0, 0.6}}) {
    for (double alpha : {0.0, 0.25, 0.5, 0.75, 1.0}) {
      const Stability m = Measure(alpha, tau, noise);
      std::printf(
          "tau %.0f noise %.1f alpha %.2f: flips %.3f agreement %.3f load CV %.3f loss %.3f\n", tau,
          noise, alpha, m.flips, m.agreement, m.variation, m.loss);
      if (alpha == 0) plain = m;
      if (alpha < 1 || tau < 4) continue;
      EXPECT_LT(m.flips, 0.8 * plain.flips);
      EXPECT_GT(m.agreement, plain.agreement + 0.1);
    }
  }
}
// Averages of unlike distributions have more entropy, not less: the operator alone does not give
// what was shown for trained models.
TEST(GraphOfTokens, TheOperatorLowersNoEntropy) {
  const Problem p(15);
  const auto entropies = [&](const char* options) {
    const ExpertRun r = p.Route(options);
    std::vector<double> h(kItems);
    for (int64_t i = 0; i < kItems; ++i) {
      for (float w : r.Weights(i)) h[i] -= w > 0 ? w * std::log(static_cast<double>(w)) : 0;
    }
    return h;
  };
  const auto plain = entropies("k=0,alpha=0");
  const auto mixed = entropies("k=0,causal=false,tau=100");
  int64_t higher = 0;
  for (int64_t i = 0; i < kItems; ++i) higher += mixed[i] > plain[i];
  EXPECT_GT(higher, kItems * 9 / 10);
}
}  // namespace graph_of_tokens_test
SLUICE_END_NAMESPACE
