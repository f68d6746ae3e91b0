#include "sluice/routers/expert/hydra/hydra.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "sluice/routers/common/pipeline/analyzer.h"
#include "sluice/routers/expert/hydra/hydra_reference.h"
#include "sluice/tests/support/expert_run.h"

SLUICE_BEGIN_NAMESPACE
namespace hydra_test {
constexpr int64_t kItems = 150;
constexpr int64_t kUnits = 6;
constexpr int64_t kDim = 12;
constexpr const char* kMean = "pool=mean,non_causal_ok=true";
constexpr const char* kCausal[] = {"pool=first", "pool=prefix", "pool=previous"};

ExpertRun Route(const std::string& options, const std::vector<float>& z,
                absl::Span<const int64_t> positions = {}, int threads = 1) {
  RouteInputs in;
  in.items = std::ssize(z) / kUnits;
  in.scores = RowsOf(z, kUnits);
  in.positions = positions;
  return RunExperts("expert/hydra:" + options, in, kUnits, nullptr, threads);
}
std::vector<std::vector<double>> Table(const std::vector<float>& x, int64_t cols) {
  std::vector<std::vector<double>> t;
  for (size_t i = 0; i < x.size(); i += cols) t.push_back({x.begin() + i, x.begin() + i + cols});
  return t;
}
std::vector<float> Head(const std::vector<float>& z, int64_t items) {
  return {z.begin(), z.begin() + items * kUnits};
}

// The reference pools tokens and then applies the gate; the router pools what the gate gave.
TEST(Hydra, PoolingLogitsIsPoolingTokens) {
  const std::vector<float> x = NormalRows(kItems, kDim, 1);
  const std::vector<float> gate = NormalRows(kUnits, kDim, 2);
  std::vector<float> z(kItems * kUnits);
  for (int64_t i = 0; i < kItems; ++i) {
    for (int64_t u = 0; u < kUnits; ++u)
      z[i * kUnits + u] =
          std::inner_product(&x[i * kDim], &x[i * kDim] + kDim, &gate[u * kDim], 0.0f);
  }
  for (const char* pool : {"first", "prefix", "previous", "mean"}) {
    for (int64_t chunk : {1, 7, 32, 1000}) {  // 150 is a multiple of none of the last three
      const ExpertRun r = Route(
          absl::StrCat("k=3,temperature=1.5,non_causal_ok=true,chunk=", chunk, ",pool=", pool), z);
      ASSERT_TRUE(r.status.ok()) << r.status;
      for (int64_t i = 0; i < kItems; ++i) {
        const auto want =
            reference::ChunkWeights(Table(x, kDim), Table(gate, kDim), i, chunk, pool, 3, 1.5);
        std::vector<double> got(kUnits);
        for (int64_t e = r.a().row_ptr[i]; e < r.a().row_ptr[i + 1]; ++e)
          got[r.a().unit[e]] = r.a().weight[e];
        for (int64_t u = 0; u < kUnits; ++u)
          ASSERT_NEAR(got[u], want[u], 2e-5) << pool << chunk << " " << i;
      }
    }
  }
}
TEST(Hydra, OneTokenAChunkIsTheTokenRouter) {
  const std::vector<float> z = NormalRows(kItems, kUnits, 3);
  RouteInputs in;
  in.items = kItems;
  in.scores = RowsOf(z, kUnits);
  const ExpertRun plain =
      RunExperts("expert/top_k:k=2,score=logit,renormalise=softmax", in, kUnits);
  for (const char* pool : {"pool=first", "pool=prefix", "pool=mean"}) {
    const ExpertRun r = Route(absl::StrCat("chunk=1,", pool), z);
    EXPECT_EQ(r.AllUnits(), plain.AllUnits()) << pool;
    EXPECT_EQ(r.AllWeights(), plain.AllWeights()) << pool;
  }
}
TEST(Hydra, EqualTokensOfAChunkChooseAsEachWould) {
  std::vector<float> z;
  const std::vector<float> rows = NormalRows(5, kUnits, 4);
  for (int64_t i = 0; i < kItems; ++i)
    z.insert(z.end(), &rows[i / 32 * kUnits], &rows[i / 32 * kUnits] + kUnits);
  const ExpertRun token = Route("chunk=1", z);
  for (const char* options : {"pool=first", "pool=prefix", kMean})
    EXPECT_EQ(Route(options, z).AllUnits(), token.AllUnits()) << options;
}
TEST(Hydra, AChunkDecidesOnce) {
  const std::vector<float> z = NormalRows(kItems, kUnits, 5);
  for (const char* options : {"pool=first", kMean}) {
    const ExpertRun r = Route(options, z);
    for (int64_t i = 0; i < kItems; ++i) {
      EXPECT_EQ(r.Units(i), r.Units(i / 32 * 32));
      EXPECT_EQ(r.Weights(i), r.Weights(i / 32 * 32));
    }
  }
}
// A mean sees the rest of its chunk; whatever else decides does not.
TEST(Hydra, OnlyTheMeanSeesTheFuture) {
  const std::vector<float> z = NormalRows(kItems, kUnits, 6);
  std::vector<float> other = z;
  for (int64_t i = 70; i < kItems; ++i) {
    for (int64_t u = 0; u < kUnits; ++u) other[i * kUnits + u] = u == 4 ? 30.0f : 0.0f;
  }
  for (const char* options : kCausal) {
    const ExpertRun a = Route(options, z);
    const ExpertRun b = Route(options, other);
    for (int64_t i = 0; i < 70; ++i) EXPECT_EQ(a.Units(i), b.Units(i)) << options << i;
  }
  EXPECT_NE(Route(kMean, z).Units(64), Route(kMean, other).Units(64));
}
// The last chunk has 150 - 128 = 22 tokens. Zeros that fill it up change its mean, and with it,
// where a logit is negative, its choice; the real length does not.
TEST(Hydra, TheLastChunkIsAsLongAsItIs) {
  std::vector<float> z = NormalRows(kItems, kUnits, 7);
  const std::vector<float> tail(z.begin() + 128 * kUnits, z.end());
  const ExpertRun whole = Route(kMean, z);
  const ExpertRun alone = Route(kMean, tail);
  EXPECT_EQ(whole.Weights(128), alone.Weights(0));
  double mean[kUnits] = {};
  for (int64_t i = 0; i < 22; ++i) {
    for (int64_t u = 0; u < kUnits; ++u) mean[u] += tail[i * kUnits + u] / 22.0;
  }
  const auto units = alone.Units(0);
  EXPECT_NEAR(alone.Weights(0)[0], 1 / (1 + std::exp(mean[units[1]] - mean[units[0]])), 1e-5);
}
// The share of an expert is of what was chosen, one number whoever computes the experts.
TEST(Hydra, UsageIsCounted) {
  const ExpertRun r = Route(kMean, NormalRows(kItems, kUnits, 8));
  pipeline::LoadAnalyzer load(kUnits);
  load.See(r.a());
  std::vector<int64_t> count(kUnits);
  for (const auto& units : r.AllUnits()) {
    for (int32_t u : units) ++count[u];
  }
  EXPECT_EQ(load.counts(), count);
  EXPECT_EQ(std::accumulate(count.begin(), count.end(), int64_t{0}), 2 * kItems);
}
TEST(Hydra, SequencesAndCallsBeginTheirOwnChunks) {
  const std::vector<float> z = NormalRows(kItems, kUnits, 9);
  std::vector<int64_t> positions;
  for (int64_t i = 0; i < kItems; ++i) positions.push_back(i < 50 ? i + 64 : i - 50);
  for (const char* options : {"pool=first", "pool=prefix", "pool=previous", kMean}) {
    const ExpertRun both = Route(options, z, positions);
    ASSERT_TRUE(both.status.ok()) << both.status;
    const ExpertRun second = Route(options, {z.begin() + 50 * kUnits, z.end()});
    for (int64_t i = 50; i < kItems; ++i) EXPECT_EQ(both.Units(i), second.Units(i - 50));
    // A prefix of whole chunks decides as the whole.
    const ExpertRun all = Route(options, z);
    const ExpertRun prefix = Route(options, Head(z, 96));
    for (int64_t i = 0; i < 96; ++i) EXPECT_EQ(prefix.Units(i), all.Units(i));
  }
  positions[0] = 60;
  EXPECT_THAT(Route("", z, positions).status.message(),
              testing::HasSubstr("begins at position 60, inside a chunk of 32"));
}
TEST(Hydra, NaNIsNeverChosen) {
  std::vector<float> z = NormalRows(64, kUnits, 10);
  z[40 * kUnits + 1] = NAN;  // inside the second chunk
  const ExpertRun r = Route(absl::StrCat("k=0,", kMean), z);
  EXPECT_EQ(r.a().nan_scores, 1);
  EXPECT_EQ(r.Units(0).size(), size_t{kUnits});
  for (int64_t i = 32; i < 64; ++i) EXPECT_THAT(r.Units(i), testing::ElementsAre(0, 2, 3, 4, 5));
  EXPECT_EQ(Route("k=0", z).a().nan_scores, 0);  // the first token decides, and it has none
  EXPECT_EQ(Route("", {}).a().entries(), 0);
}
TEST(Hydra, TheSameForAnyNumberOfThreads) {
  const std::vector<float> z = NormalRows(3000, kUnits, 11);
  for (const char* options : {"pool=prefix", "chunk=3"}) {
    const ExpertRun one = Route(options, z);
    for (int threads : {2, 8}) {
      const ExpertRun many = Route(options, z, {}, threads);
      EXPECT_EQ(many.AllUnits(), one.AllUnits());
      EXPECT_EQ(many.AllWeights(), one.AllWeights());
    }
  }
}
TEST(Hydra, ErrorsSayWhatIsWrong) {
  using testing::HasSubstr;
  const std::vector<float> z = NormalRows(4, kUnits, 12);
  const auto error = [&](const std::string& options) {
    return std::string(Route(options, z).status.message());
  };
  EXPECT_THAT(error("pool=mean"), HasSubstr("say non_causal_ok=true"));
  EXPECT_THAT(error("k=7"), HasSubstr("k=7 of 6 experts"));
  EXPECT_THAT(error("chunk=0"), HasSubstr("outside [1, 1048576]"));
  EXPECT_THAT(error("temperature=0"), HasSubstr("outside [1e-06, 1e+06]"));
}

// A stream of topics: the tokens of one like the same expert, each with noise of its own. What a
// chunk costs: logit that its tokens lose against their own best expert (none at chunk 1), and how
// often the first choice is the topic's expert. Seeds 2000 to 2019.
struct Stream {
  std::vector<float> z;
  std::vector<int32_t> best;
  explicit Stream(uint64_t seed) {
    constexpr int64_t kTokens = 960;
    z = NormalRows(kTokens, kUnits, seed);
    for (uint64_t topic = 0; std::ssize(best) < kTokens; ++topic) {
      const uint64_t length = 24 + RandomBits({seed, topic, 1, 0, 0}) % 73;
      const auto liked = static_cast<int32_t>(RandomBits({seed, topic, 2, 0, 0}) % kUnits);
      best.insert(best.end(), length, liked);
    }
    best.resize(kTokens);
    for (int64_t i = 0; i < kTokens; ++i) z[i * kUnits + best[i]] += 2;
  }
};
TEST(Hydra, LongerChunksLoseMore) {
  constexpr int kSeeds = 20;
  for (const char* pool : {"first", "prefix", "previous", "mean"}) {
    std::vector<double> lost;
    for (int64_t chunk : {1, 4, 16, 64, 256}) {
      double loss = 0;
      double hits = 0;
      for (uint64_t s = 0; s < kSeeds; ++s) {
        const Stream stream(2000 + s);
        const ExpertRun r =
            Route(absl::StrCat("k=1,non_causal_ok=true,pool=", pool, ",chunk=", chunk), stream.z);
        const double n = kSeeds * static_cast<double>(stream.best.size());
        for (size_t i = 0; i < stream.best.size(); ++i) {
          const float* z = &stream.z[i * kUnits];
          const int32_t unit = r.Units(i)[0];
          loss += static_cast<double>(*std::max_element(z, z + kUnits) - z[unit]) / n;
          hits += (unit == stream.best[i]) / n;
        }
      }
      std::printf("pool %-8s chunk %3d: logit lost %.3f, topic's expert %.3f\n", pool,
                  static_cast<int>(chunk), loss, hits);
      lost.push_back(loss);
    }
    if (std::string(pool) != "previous") {
      EXPECT_EQ(lost.front(), 0) << pool;
    }
    EXPECT_GT(lost.back(), lost[2]) << pool;
  }
}
}  // namespace hydra_test
SLUICE_END_NAMESPACE
