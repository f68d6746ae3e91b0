#include "sluice/routers/expert/roma/roma.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/expert/roma/refit.h"
#include "sluice/routers/expert/roma/roma_reference.h"
#include "sluice/tests/support/expert_run.h"
#include "sluice/tests/support/synthetic_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace roma_test {
using testing::HasSubstr;
constexpr int64_t kDim = 18;
constexpr int64_t kExperts = 6;
constexpr int64_t kWidth = 5;
constexpr int64_t kSamples = 40;

reference::Matrix Double(const std::vector<float>& x, int64_t cols) {
  reference::Matrix rows;
  for (size_t i = 0; i < x.size(); i += cols) rows.push_back({&x[i], &x[i] + cols});
  return rows;
}
WeightKeys Keys() {
  WeightKeys w;
  w.ints = {{"sluice.roma.layers", 2},
            {"sluice.roma.dim", kDim},
            {"sluice.roma.experts", kExperts},
            {"sluice.roma.width", kWidth},
            {"sluice.roma.samples", 12}};
  w.tensors = {{"blk.1.roma.gate.weight", {kDim, kExperts}},
               {"sluice.roma.embeddings", {kWidth, 12}},
               {"blk.1.roma.routes", {kExperts, 12}}};
  return w;
}
std::vector<float> Read(const std::string& name, int64_t cols, int64_t rows) {
  const uint64_t shape[] = {static_cast<uint64_t>(cols), static_cast<uint64_t>(rows)};
  return *SyntheticWeights(Keys()).ReadF32(name, shape);
}
ExpertRun Route(const std::string& options, const std::vector<float>& h,
                const std::vector<float>& embedding = {}, int threads = 1,
                const WeightKeys& keys = Keys()) {
  RouteInputs in;
  in.items = std::ssize(h) / kDim;
  in.hidden = RowsOf(h, kDim);
  if (!embedding.empty()) in.features = RowsOf(embedding, kWidth);
  const SyntheticWeights w(keys);
  return RunExperts("expert/roma:layer=1," + options, in, 0, &w, threads);
}

TEST(Roma, ChoosesAndWeighsAsTheReference) {
  const std::vector<float> h = NormalRows(kSamples, kDim, 1, 4);
  const std::vector<float> x = NormalRows(kSamples, kWidth, 2, 0.3);
  const auto gate = Double(Read("blk.1.roma.gate.weight", kDim, kExperts), kDim);
  const auto stored = Double(Read("sluice.roma.embeddings", kWidth, 12), kWidth);
  const auto routes = Double(Read("blk.1.roma.routes", kExperts, 12), kExperts);
  for (const double beta : {0.0, 0.4, 1.0}) {
    for (const int k : {1, 3, 6}) {
      const std::string blend = beta > 0 ? ",neighbours=4,sigma=0.7" : "";
      const ExpertRun r = Route(absl::StrCat("k=", k, ",beta=", beta, blend), h, x);
      ASSERT_TRUE(r.status.ok()) << r.status;
      for (int64_t i = 0; i < kSamples; ++i) {
        std::vector<double> score = reference::SoftmaxOf(gate, Double(h, kDim)[i]);
        const auto near =
            reference::KernelRow(stored, std::vector<bool>(12, true), Double(x, kWidth)[i], 4, 0.7);
        for (int e = 0; e < kExperts; ++e) {
          score[e] *= 1 - beta;
          for (int j = 0; j < 12; ++j) score[e] += beta * near[j] * routes[j][e];
        }
        double sum = 0;
        std::vector<double> want(kExperts);
        for (int e = 0; e < kExperts; ++e) {
          int ahead = 0;
          for (int o = 0; o < kExperts; ++o) ahead += score[o] > score[e];
          if (ahead < k) want[e] = score[e];
          sum += want[e];
        }
        for (int64_t e = r.a().row_ptr[i]; e < r.a().row_ptr[i + 1]; ++e) {
          ASSERT_NE(want[r.a().unit[e]], 0) << i;
          // Stored routes are made up and may sum to little.
          ASSERT_NEAR(r.a().weight[e] * sum, want[r.a().unit[e]], 1e-5) << i;
        }
        EXPECT_EQ(std::ssize(r.Units(i)), k);
      }
    }
  }
}
TEST(Roma, NaNAndNoTokens) {
  std::vector<float> h = NormalRows(3, kDim, 3);
  h[kDim] = NAN;
  std::vector<float> x = NormalRows(3, kWidth, 4);
  x[2 * kWidth] = NAN;
  const ExpertRun r = Route("beta=0.5", h, x);
  EXPECT_TRUE(r.Units(1).empty());
  EXPECT_EQ(r.a().nan_scores, kExperts);
  EXPECT_EQ(r.Weights(2), Route("beta=0", h).Weights(2));  // an embedding that is near nothing
  EXPECT_EQ(Route("k=2", {}).a().entries(), 0);
}
TEST(Roma, TheSameForAnyNumberOfThreads) {
  const std::vector<float> h = NormalRows(500, kDim, 5);
  const std::vector<float> x = NormalRows(500, kWidth, 6);
  const ExpertRun one = Route("beta=0.5", h, x);
  for (int threads : {2, 8}) {
    const ExpertRun many = Route("beta=0.5", h, x, threads);
    EXPECT_EQ(many.AllUnits(), one.AllUnits());
    EXPECT_EQ(many.AllWeights(), one.AllWeights());
  }
}
TEST(Roma, ErrorsSayWhatIsWrong) {
  const std::vector<float> h = NormalRows(2, kDim, 7);
  const std::vector<float> x = NormalRows(2, kWidth, 7);
  const auto error = [&](const std::string& options, const std::vector<float>& e,
                         const WeightKeys& keys = Keys()) {
    return std::string(Route(options, h, e, 1, keys).status.message());
  };
  EXPECT_THAT(error("neighbours=4", x), HasSubstr("without beta would be ignored"));
  EXPECT_THAT(error("beta=0.5", {}), HasSubstr("takes embeddings of width 5"));
  EXPECT_THAT(error("beta=2", x), HasSubstr("outside [0, 1]"));
  EXPECT_THAT(error("k=7", x), HasSubstr("k=7 of 6 experts"));
  WeightKeys keys = Keys();
  keys.ints[4].value = 0;
  EXPECT_THAT(error("beta=0.5", x, keys), HasSubstr("samples 0; allowed 1 to"));
  EXPECT_EQ(error("beta=0", x, keys), "");  // they are not read
  keys.ints[0].value = 1;
  EXPECT_THAT(error("k=2", x, keys), HasSubstr("layer=1, but the weights have 1 layers"));
}

struct Samples {
  std::vector<float> hidden = NormalRows(kSamples, kDim, 11);
  std::vector<float> embedding = NormalRows(kSamples, kWidth, 12);
  std::vector<uint8_t> correct = std::vector<uint8_t>(kSamples, 1);
  Linear gate = {kDim, kExperts, NormalRows(kExperts, kDim, 13, 0.3), std::vector<float>(kExperts)};
  Samples() {
    for (int64_t i = 0; i < kSamples; i += 3) correct[i] = 0;
  }
  expert::AlignedSamples View() const {
    return {RowsOf(hidden, kDim), RowsOf(embedding, kWidth), correct};
  }
  std::vector<bool> Taken() const { return {correct.begin(), correct.end()}; }
  // W of the reference, [samples][samples].
  reference::Matrix Kernel(size_t k, double sigma) const {
    const auto points = Double(embedding, kWidth);
    reference::Matrix w;
    for (int64_t i = 0; i < kSamples; ++i) {
      std::vector<bool> taken = Taken();
      taken[i] = false;
      w.push_back(reference::KernelRow(points, taken, points[i], k, sigma));
    }
    return w;
  }
};
reference::Matrix Dense(const expert::NeighbourGraph& g) {
  reference::Matrix w(kSamples, std::vector<double>(kSamples));
  for (int64_t i = 0; i < kSamples; ++i) {
    for (int64_t e = g.row_ptr[i]; e < g.row_ptr[i + 1]; ++e)
      w[i][g.edge[e].sample] = g.edge[e].weight;
  }
  return w;
}

TEST(Neighbours, AreCorrectOthersWithWeightsOfOne) {
  const Samples s;
  for (const int64_t k : {int64_t{1}, int64_t{3}, kSamples}) {  // the last: all of them
    const reference::Matrix got = Dense(expert::NeighbourGraph::Of(s.View(), k, 0.8));
    const reference::Matrix want = s.Kernel(static_cast<size_t>(k), 0.8);
    for (int64_t i = 0; i < kSamples; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < kSamples; ++j) {
        ASSERT_NEAR(got[i][j], want[i][j], 1e-9) << k << " " << i << " " << j;
        sum += got[i][j];
        if (s.correct[j] == 0) {
          EXPECT_EQ(got[i][j], 0);
        }
      }
      EXPECT_EQ(got[i][i], 0);  // its own distance is 0, and it is still not its neighbour
      EXPECT_NEAR(sum, 1, 1e-12);
    }
  }
  Samples far;
  for (float& x : far.embedding) x *= 1e4f;  // every Gaussian is 0 in double precision
  const expert::NeighbourGraph g = expert::NeighbourGraph::Of(far.View(), 3, 0.4);
  for (const expert::Neighbour& e : g.edge) EXPECT_TRUE(std::isfinite(e.weight));
}
TEST(Neighbours, TiesGoToTheLowestAndNaNIsNoNeighbour) {
  Samples s;
  s.embedding.assign(s.embedding.size(), 0.0f);
  s.embedding[kWidth] = NAN;
  const expert::NeighbourGraph g = expert::NeighbourGraph::Of(s.View(), 2, 1);
  EXPECT_EQ(g.edge[g.row_ptr[5]].sample, 2);  // 0 and 3 are not correct, 1 is no number
  EXPECT_EQ(g.edge[g.row_ptr[5] + 1].sample, 4);
  EXPECT_EQ(g.row_ptr[1], g.row_ptr[2]);
}
// sum w |r_i - r_j|^2 = |r_i - mean|^2 + sum w |r_j - mean|^2.
TEST(Refit, MisalignmentIsTheDistanceToTheMeanAndTheSpread) {
  const Samples s;
  const expert::NeighbourGraph g = expert::NeighbourGraph::Of(s.View(), 3, 0.8);
  const std::vector<double> r = expert::Routes(s.gate, s.View().hidden);
  const reference::Matrix w = s.Kernel(3, 0.8);
  double want = 0;
  for (int64_t i = 0; i < kSamples; ++i) {
    const double* own = &r[i * kExperts];
    std::vector<double> mean(kExperts);
    for (int64_t j = 0; j < kSamples; ++j) {
      for (int64_t e = 0; e < kExperts; ++e) mean[e] += w[i][j] * r[j * kExperts + e];
    }
    for (int64_t e = 0; e < kExperts; ++e) {
      want += (own[e] - mean[e]) * (own[e] - mean[e]) / kSamples;
      for (int64_t j = 0; j < kSamples; ++j) {
        const double off = r[j * kExperts + e] - mean[e];
        want += w[i][j] * off * off / kSamples;
      }
    }
  }
  EXPECT_NEAR(expert::Misalignment(g, r, r, kExperts), want, 1e-9);
}
// No change of the gate is better: the loss, computed independently, rises in every direction.
TEST(Refit, IsTheLeastSquaresSolution) {
  const Samples s;
  const auto refit = expert::GateRefit::Run(s.gate, s.View(), {.sigma = 0.8, .ridge = 0.02});
  ASSERT_TRUE(refit.ok()) << refit.status();
  reference::Matrix change = Double(refit->weight, kDim);
  const auto gate = Double(s.gate.weight, kDim);
  for (int64_t e = 0; e < kExperts; ++e) {
    for (int64_t c = 0; c < kDim; ++c) change[e][c] -= gate[e][c];
  }
  const auto hidden = Double(s.hidden, kDim);
  const reference::Matrix w = s.Kernel(3, 0.8);
  const auto loss = [&](const reference::Matrix& d) {
    return reference::RefitLoss(gate, d, hidden, w, 0.8, 0.02);
  };
  const double least = loss(change);
  EXPECT_LT(least, loss(reference::Matrix(kExperts, std::vector<double>(kDim))));
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const std::vector<float> step = NormalRows(kExperts, kDim, 100 + seed, 0.01);
    double rises[2];
    for (int sign : {0, 1}) {
      reference::Matrix other = change;
      for (size_t i = 0; i < step.size(); ++i)
        other[i / kDim][i % kDim] += (sign == 0 ? 1 : -1) * static_cast<double>(step[i]);
      rises[sign] = loss(other) - least;
      EXPECT_GT(rises[sign], 0) << seed;
    }
    EXPECT_NEAR(rises[0], rises[1], 1e-2 * (rises[0] + rises[1])) << seed;  // no slope
  }
}
TEST(Refit, NothingToAlignLeavesTheGate) {
  Samples s;
  EXPECT_EQ(expert::GateRefit::Run(s.gate, s.View(), {.lambda = 0})->weight, s.gate.weight);
  Samples none;
  none.correct.assign(kSamples, 0);
  EXPECT_EQ(expert::GateRefit::Run(none.gate, none.View(), {})->weight, none.gate.weight);
  Samples equal;  // all routes are even
  equal.gate.weight.assign(equal.gate.weight.size(), 0.0f);
  const auto even = expert::GateRefit::Run(equal.gate, equal.View(), {});
  ASSERT_TRUE(even.ok()) << even.status();
  for (float w : even->weight) EXPECT_NEAR(w, 0, 1e-12);
}
// Routes of the gate as it is now: with those of a file, every turn would take the same step again.
TEST(Refit, TurnsConverge) {
  const Samples s;
  const auto after = [&](int64_t turns) {
    return expert::GateRefit::Run(s.gate, s.View(), {.lambda = 1, .turns = turns})->weight;
  };
  const auto distance = [](const std::vector<float>& a, const std::vector<float>& b) {
    double d = 0;
    for (size_t i = 0; i < a.size(); ++i)
      d += static_cast<double>(a[i] - b[i]) * static_cast<double>(a[i] - b[i]);
    return std::sqrt(d);
  };
  const double first = distance(after(1), s.gate.weight);
  EXPECT_GT(first, 0.1);
  EXPECT_LT(distance(after(7), after(6)), 0.01 * first);

  const expert::NeighbourGraph g = expert::NeighbourGraph::Of(s.View(), 3, 0.4);
  const std::vector<double> before = expert::Routes(s.gate, s.View().hidden);
  Linear moved = s.gate;
  moved.weight = after(7);
  EXPECT_LT(expert::Misalignment(g, expert::Routes(moved, s.View().hidden), before, kExperts),
            expert::Misalignment(g, before, before, kExperts));
}
TEST(Refit, ErrorsSayWhatIsWrong) {
  Samples s;
  const auto error = [&](const expert::AlignOptions& o) {
    return std::string(expert::GateRefit::Run(s.gate, s.View(), o).status().message());
  };
  EXPECT_THAT(error({.k = 0}), HasSubstr("allowed k and turns from 1"));
  EXPECT_THAT(error({.lambda = 1.5}), HasSubstr("lambda 0 to 1"));
  EXPECT_THAT(error({.sigma = NAN}), HasSubstr("sigma above 0"));
  s.hidden[3] = INFINITY;
  EXPECT_THAT(error({}), HasSubstr("sample 0 is not finite"));
  s.hidden[3] = 0;
  for (int64_t i = 0; i < kSamples; ++i) s.hidden[i * kDim] = 0;
  EXPECT_THAT(error({.ridge = 0}), HasSubstr("use ridge > 0"));
  s.correct.pop_back();
  EXPECT_THAT(error({}), HasSubstr("39 answers"));
}

// Clusters of prompts with one right expert each, and a gate that was disturbed: how often the
// first choice is the right expert, on prompts that were not seen.
TEST(Refit, MovesADisturbedGateTowardsTheRightExperts) {
  constexpr int kSeeds = 5;
  double frozen = 0;
  double refitted = 0;
  double oracle = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    constexpr int64_t kClusters = 12;
    const std::vector<float> centres = NormalRows(kClusters, kDim, 1000 * seed);
    const std::vector<float> places = NormalRows(kClusters, kWidth, 1000 * seed + 1, 2);
    const auto draw = [&](int64_t n, uint64_t part, std::vector<float>& h, std::vector<float>& x) {
      h = NormalRows(n, kDim, 1000 * seed + 10 * part + 2, 0.5);
      x = NormalRows(n, kWidth, 1000 * seed + 10 * part + 3, 0.2);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t k = i % kClusters;
        for (int64_t c = 0; c < kDim; ++c) h[i * kDim + c] += centres[k * kDim + c];
        for (int64_t c = 0; c < kWidth; ++c) x[i * kWidth + c] += places[k * kWidth + c];
      }
    };
    // The undisturbed gate likes the mean of its clusters; cluster k's expert is k mod kExperts.
    Linear right = {kDim, kExperts, std::vector<float>(kExperts * kDim),
                    std::vector<float>(kExperts)};
    for (int64_t k = 0; k < kClusters; ++k) {
      for (int64_t c = 0; c < kDim; ++c)
        right.weight[k % kExperts * kDim + c] += 0.3f * centres[k * kDim + c];
    }
    Linear disturbed = right;
    const std::vector<float> noise = NormalRows(kExperts, kDim, 1000 * seed + 7, 0.5);
    for (size_t i = 0; i < noise.size(); ++i) disturbed.weight[i] += noise[i];

    const auto first = [&](const Linear& gate, const std::vector<float>& h) {
      const std::vector<double> r = expert::Routes(gate, RowsOf(h, kDim));
      std::vector<uint8_t> hit;
      for (int64_t i = 0; i * kExperts < std::ssize(r); ++i) {
        const double* row = &r[i * kExperts];
        const int64_t best = std::max_element(row, row + kExperts) - row;
        hit.push_back(best == i % kClusters % kExperts);
      }
      return hit;
    };
    const auto share = [](const std::vector<uint8_t>& hit) {
      return std::count(hit.begin(), hit.end(), 1) / static_cast<double>(hit.size() * kSeeds);
    };
    std::vector<float> h;
    std::vector<float> x;
    draw(300, 0, h, x);
    const std::vector<uint8_t> correct = first(disturbed, h);
    const auto refit = expert::GateRefit::Run(
        disturbed, {RowsOf(h, kDim), RowsOf(x, kWidth), correct}, {.ridge = 0.05, .turns = 5});
    ASSERT_TRUE(refit.ok()) << refit.status();
    draw(300, 1, h, x);
    frozen += share(first(disturbed, h));
    refitted += share(first(*refit, h));
    oracle += share(first(right, h));
  }
  std::printf("right expert first: disturbed gate %.3f, refitted %.3f, undisturbed %.3f\n", frozen,
              refitted, oracle);
  EXPECT_GT(refitted, frozen + 0.02);
  EXPECT_LE(refitted, oracle);
}
}  // namespace roma_test
SLUICE_END_NAMESPACE
