#include "sluice/routers/expert/spt/spt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "sluice/routers/expert/spt/clusters.h"
#include "sluice/routers/expert/spt/split.h"
#include "sluice/routers/expert/spt/spt_reference.h"
#include "sluice/tests/support/expert_run.h"
#include "sluice/tests/support/synthetic_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace spt_test {
using testing::HasSubstr;
constexpr int64_t kItems = 41;

struct Network {
  int64_t dim = 20, neurons = 24, blocks = 4;
  int activation = 0;
  bool gated = false;

  SyntheticWeights Weights(int64_t layers = 2) const {
    WeightKeys w;
    w.ints = {{"sluice.spt.layers", layers},         {"sluice.spt.dim", dim},
              {"sluice.spt.neurons", neurons},       {"sluice.spt.blocks", blocks},
              {"sluice.spt.activation", activation}, {"sluice.spt.gated", gated}};
    w.AddLinear("blk.1.spt.router", dim, blocks);
    w.AddLinear("blk.1.spt.up", dim, neurons);
    if (gated) w.AddLinear("blk.1.spt.gate", dim, neurons);
    w.AddLinear("blk.1.spt.down", neurons, dim);
    return SyntheticWeights(w);
  }
};
std::string Policy(const std::string& options) {
  return absl::StrCat("expert/spt:layer=1", options.empty() ? "" : ",", options);
}
std::vector<double> Token(const std::vector<float>& x, int64_t i, int64_t dim) {
  return {x.begin() + i * dim, x.begin() + (i + 1) * dim};
}
ExpertRun Route(const Network& n, const std::string& options, const std::vector<float>& x,
                int threads = 1) {
  RouteInputs in;
  in.items = std::ssize(x) / n.dim;
  in.hidden = RowsOf(x, n.dim);
  const SyntheticWeights w = n.Weights();
  return RunExperts(Policy(options), in, 0, &w, threads);
}
// The blocks of every token computed and combined.
std::vector<double> Execute(const Network& n, const std::string& options,
                            const std::vector<float>& x, const ExpertRun& r) {
  const SyntheticWeights w = n.Weights();
  auto router = BuiltinRouters().routers.Create(Policy(options), &w);
  EXPECT_TRUE(router.ok()) << router.status();
  const int64_t items = std::ssize(x) / n.dim;
  auto plan = (*router)->MakePlan({.items = items, .hidden = n.dim});
  EXPECT_TRUE(plan.ok()) << plan.status();
  OwnedWorkspace memory((*plan)->info().unit_workspace_bytes);
  std::vector<double> out(x.size());
  std::vector<float> y(n.dim);
  for (int64_t i = 0; i < items; ++i) {
    for (int64_t e = r.a().row_ptr[i]; e < r.a().row_ptr[i + 1]; ++e) {
      const UnitRows rows = {.unit = r.a().unit[e],
                             .in = {&x[i * n.dim], 1, n.dim, n.dim},
                             .out = {y.data(), 1, n.dim, n.dim}};
      const absl::Status s = (*router)->RunUnit(**plan, rows, {memory.workspace(), nullptr});
      EXPECT_TRUE(s.ok()) << s;
      for (int64_t c = 0; c < n.dim; ++c)
        out[i * n.dim + c] += static_cast<double>(r.a().weight[e] * y[c]);
    }
  }
  return out;
}
reference::RoutedFfn Reference(const Network& n, const WeightSource& w, bool trained) {
  return {w, "blk.1.spt.", n.neurons, n.blocks, n.activation, n.gated, trained};
}

// Routed is dense with the hidden neurons that were not chosen zeroed after the activation.
TEST(Spt, IsTheMaskedNetwork) {
  for (const Network& n : {Network{}, Network{33, 70, 7, 1}, Network{16, 16, 16, 2},
                           Network{20, 24, 4, 1, true}, Network{9, 30, 1, 0}}) {
    const std::vector<float> x = NormalRows(kItems, n.dim, 1, 2);
    const SyntheticWeights w = n.Weights();
    for (const int64_t m : {int64_t{1}, (n.blocks + 1) / 2, n.blocks}) {
      for (const bool trained : {false, true}) {
        if (n.gated && trained) continue;
        const std::string options =
            absl::StrCat("m=", m, ",coefficient=", trained ? "trained" : "one");
        const ExpertRun r = Route(n, options, x);
        ASSERT_TRUE(r.status.ok()) << r.status;
        const std::vector<double> got = Execute(n, options, x, r);
        const auto reference = Reference(n, w, trained);
        for (int64_t i = 0; i < kItems; ++i) {
          const std::vector<bool> chosen = reference.Chosen(Token(x, i, n.dim), m);
          std::vector<int32_t> units;
          for (int32_t b = 0; b < n.blocks; ++b) {
            if (chosen[b]) units.push_back(b);
          }
          units.push_back(static_cast<int32_t>(n.blocks));
          ASSERT_EQ(r.Units(i), units) << i;
          const std::vector<double> want = reference.Run(Token(x, i, n.dim), chosen);
          for (int64_t c = 0; c < n.dim; ++c)
            ASSERT_NEAR(got[i * n.dim + c], want[c], 2e-5) << options << " " << i;
        }
      }
    }
  }
}
// m=0, and m = blocks: the network as if it were not cut, its bias once.
TEST(Spt, AllBlocksAreTheDenseNetwork) {
  const Network n;
  const std::vector<float> x = NormalRows(kItems, n.dim, 2);
  const SyntheticWeights w = n.Weights();
  for (const char* options : {"m=0", "m=4"}) {
    const std::vector<double> got = Execute(n, options, x, Route(n, options, x));
    for (int64_t i = 0; i < kItems; ++i) {
      std::vector<double> h = reference::Affine(w, "blk.1.spt.up", Token(x, i, n.dim), n.neurons);
      for (double& v : h) v = std::max(v, 0.0);
      const std::vector<double> want = reference::Affine(w, "blk.1.spt.down", h, n.dim);
      for (int64_t c = 0; c < n.dim; ++c) ASSERT_NEAR(got[i * n.dim + c], want[c], 2e-5);
    }
  }
}
// Half of the blocks, not a quarter, and the same for networks with a gate.
TEST(Spt, OneConstantForAllNetworks) {
  for (const Network& n : {Network{}, Network{20, 24, 4, 1, true}}) {
    const std::vector<float> x = NormalRows(3, n.dim, 3);
    const ExpertRun r = Route(n, "", x);
    for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(r.Units(i).size(), 3u);  // two and the bias
  }
}
// A probability of a half is a coefficient of 1.
TEST(Spt, AtEvenOddsTheCoefficientIsOne) {
  const Network n;
  const std::vector<float> x(n.dim, 0.0f);  // the router's logits are its biases
  const ExpertRun r = Route(n, "m=0,coefficient=trained", x);
  const auto p = Reference(n, n.Weights(), true).Probabilities(Token(x, 0, n.dim));
  for (int64_t b = 0; b < n.blocks; ++b) EXPECT_NEAR(r.Weights(0)[b], 2 * p[b], 1e-6);
  EXPECT_EQ(r.Weights(0)[n.blocks], 1);
  for (float v : Route(n, "m=0", x).Weights(0)) EXPECT_EQ(v, 1);
}
TEST(Spt, NaNTakesTheBiasAlone) {
  const Network n;
  std::vector<float> x = NormalRows(3, n.dim, 4);
  x[n.dim] = NAN;
  const ExpertRun r = Route(n, "m=2", x);
  EXPECT_THAT(r.Units(1), testing::ElementsAre(4));
  EXPECT_EQ(r.a().nan_scores, 4);
  EXPECT_EQ(r.Units(0).size(), 3u);
  EXPECT_EQ(Route(n, "m=2", {}).a().entries(), 0);
}
TEST(Spt, TokensDecideAloneWhateverTheThreads) {
  const Network n;
  const std::vector<float> x = NormalRows(500, n.dim, 5);
  const ExpertRun one = Route(n, "coefficient=trained", x);
  for (int threads : {2, 8}) {
    const ExpertRun many = Route(n, "coefficient=trained", x, threads);
    EXPECT_EQ(many.AllUnits(), one.AllUnits());
    EXPECT_EQ(many.AllWeights(), one.AllWeights());
  }
  std::vector<float> reversed;
  for (int64_t i = 499; i >= 0; --i)
    reversed.insert(reversed.end(), &x[i * n.dim], &x[i * n.dim] + n.dim);
  const ExpertRun back = Route(n, "coefficient=trained", reversed);
  for (int64_t i = 0; i < 500; ++i) EXPECT_EQ(back.Units(i), one.Units(499 - i));
}
TEST(Spt, ErrorsSayWhatIsWrong) {
  const auto error = [](const Network& n, const std::string& options) {
    return std::string(Route(n, options, NormalRows(2, n.dim, 6)).status.message());
  };
  EXPECT_THAT(error({}, "m=5"), HasSubstr("m=5 of 4 blocks"));
  EXPECT_THAT(error({20, 25, 4}, ""), HasSubstr("4 blocks do not divide 25 neurons"));
  EXPECT_THAT(error({20, 24, 0}, ""), HasSubstr("allowed 1 to"));
  EXPECT_THAT(error({20, 24, 4, 3}, ""), HasSubstr("sluice.spt.activation 3"));
  EXPECT_THAT(error({20, 24, 4, 1, true}, "coefficient=trained"), HasSubstr("without a gate"));
  const std::vector<float> x = NormalRows(2, 20, 6);
  RouteInputs in;
  in.items = 2;
  in.hidden = RowsOf(x, 20);
  const SyntheticWeights few = Network{}.Weights(1);
  EXPECT_THAT(RunExperts("expert/spt:layer=1", in, 0, &few).status.message(),
              HasSubstr("layer=1, but the weights have 1 layers"));
  const SyntheticWeights w = Network{}.Weights();
  EXPECT_THAT(RunExperts("expert/spt:layer=1", in, 4, &w).status.message(),
              HasSubstr("wanted 5 units (or 0)"));
}

// What a block choice costs, on a random network: the best blocks by what they add, the same number
// at random, and by a router that was not trained.
TEST(Spt, ErrorByShareOfBlocks) {
  const Network n{32, 128, 8, 0};
  const std::vector<float> x = NormalRows(kItems, n.dim, 7);
  const SyntheticWeights w = n.Weights();
  const auto reference = Reference(n, w, false);
  double last = 10;
  for (int64_t m : {1, 2, 4, 6, 8}) {
    double wrong[2] = {};
    double all = 0;
    for (int64_t i = 0; i < kItems; ++i) {
      const std::vector<double> t = Token(x, i, n.dim);
      const std::vector<double> dense = reference.Run(t, std::vector<bool>(n.blocks, true));
      const std::vector<double> none = reference.Run(t, std::vector<bool>(n.blocks, false));
      std::vector<std::pair<double, int64_t>> energy;
      for (int64_t b = 0; b < n.blocks; ++b) {
        std::vector<bool> only(n.blocks);
        only[b] = true;
        const std::vector<double> y = reference.Run(t, only);
        double e = 0;
        for (int64_t c = 0; c < n.dim; ++c) e -= (y[c] - none[c]) * (y[c] - none[c]);
        energy.push_back({e, b});
      }
      std::sort(energy.begin(), energy.end());
      std::vector<bool> best(n.blocks);
      for (int64_t b = 0; b < m; ++b) best[energy[b].second] = true;
      const std::vector<double> y[2] = {reference.Run(t, reference.Chosen(t, m)),
                                        reference.Run(t, best)};
      for (int64_t c = 0; c < n.dim; ++c) {
        for (int k = 0; k < 2; ++k) wrong[k] += (y[k][c] - dense[c]) * (y[k][c] - dense[c]);
        all += (dense[c] - none[c]) * (dense[c] - none[c]);
      }
    }
    std::printf("%d of 8 blocks: relative error %.3f by the router, %.3f by energy\n",
                static_cast<int>(m), std::sqrt(wrong[0] / all), std::sqrt(wrong[1] / all));
    EXPECT_LE(wrong[1], wrong[0]);
    EXPECT_LT(wrong[1] / all, last);
    last = wrong[1] / all;
  }
  EXPECT_NEAR(last, 0, 1e-12);
}

// Neurons of `groups` groups, in turn: those of a group are active for the same tokens.
std::vector<float> Planted(int64_t tokens, int64_t neurons, int64_t groups, double noise) {
  std::vector<float> h = NormalRows(tokens, neurons, 31, noise);
  const std::vector<float> active = NormalRows(tokens, groups, 32);
  const std::vector<float> sign = NormalRows(tokens, neurons, 33);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < neurons; ++j) {
      const float size = std::max(0.0f, active[t * groups + j % groups]);
      h[t * neurons + j] += sign[t * neurons + j] > 0 ? size : -size;
    }
  }
  return h;
}
std::vector<int64_t> BlockOf(const std::vector<int32_t>& order, int64_t blocks) {
  std::vector<int64_t> block(order.size());
  for (size_t i = 0; i < order.size(); ++i)
    block[order[i]] = static_cast<int64_t>(i) * blocks / std::ssize(order);
  return block;
}
TEST(SptClusters, AreThoseOfPlainLoops) {
  struct Case {
    int64_t tokens, neurons, blocks, turns, groups;  // groups: of the neurons; 0: none
  };
  int64_t moved = 0;  // cases in which a turn after the first changes something
  // Blocks of three and more: of two, both are as near to their mean, and rounding chooses.
  const std::vector<Case> cases = {{40, 24, 4, 20, 0}, {7, 30, 5, 1, 0},   {60, 12, 4, 3, 0},
                                   {9, 8, 1, 2, 0},    {50, 32, 2, 20, 0}, {40, 48, 4, 20, 3},
                                   {30, 60, 6, 20, 5}, {25, 60, 3, 2, 7}};
  for (const Case& c : cases) {
    std::vector<float> h = c.groups > 0 ? Planted(c.tokens, c.neurons, c.groups, 0.6)
                                        : NormalRows(c.tokens, c.neurons, 21);
    for (int64_t t = 0; t < c.tokens; ++t) h[t * c.neurons + 1] = 0.1f;  // never varies
    std::vector<std::vector<double>> activity(c.neurons);
    for (int64_t j = 0; j < c.neurons; ++j) {
      for (int64_t t = 0; t < c.tokens; ++t) activity[j].push_back(h[t * c.neurons + j]);
    }
    const auto order = expert::NeuronClusters::Order(RowsOf(h, c.neurons), c.blocks, c.turns);
    ASSERT_TRUE(order.ok()) << order.status();
    const auto want = reference::Clusters(activity, c.blocks, c.turns);
    EXPECT_EQ(BlockOf(*order, c.blocks), want) << c.neurons << " neurons of " << c.groups;
    moved += want != reference::Clusters(activity, c.blocks, 1);
    for (int64_t b = 0; b < c.blocks; ++b) {
      const auto begin = order->begin() + b * c.neurons / c.blocks;
      EXPECT_TRUE(std::is_sorted(begin, begin + c.neurons / c.blocks)) << b;
    }
  }
  EXPECT_GE(moved, 3);
}
TEST(SptClusters, NeuronsThatAreActiveTogetherStandTogether) {
  constexpr int64_t kNeurons = 60;
  constexpr int64_t kGroups = 5;
  const std::vector<float> h = Planted(200, kNeurons, kGroups, 0.1);
  const auto order = expert::NeuronClusters::Order(RowsOf(h, kNeurons), kGroups);
  ASSERT_TRUE(order.ok()) << order.status();
  const std::vector<int64_t> block = BlockOf(*order, kGroups);
  for (int64_t j = 0; j < kNeurons; ++j) EXPECT_EQ(block[j], block[j % kGroups]) << j;
}
// The hidden activations keep their bits, each in its new place; the output is the same sum in
// another order.
TEST(SptClusters, TheDenseFunctionStays) {
  constexpr int64_t kDim = 37;
  constexpr int64_t kNeurons = 96;
  const std::vector<float> x = NormalRows(kItems, kDim, 41);
  const std::vector<float> up = NormalRows(kNeurons, kDim, 42, 0.2);
  const std::vector<float> down = NormalRows(kDim, kNeurons, 43, 0.2);
  const auto product = [](const std::vector<float>& a, const std::vector<float>& b, int64_t cols) {
    const int64_t m = std::ssize(a) / cols;
    const int64_t n = std::ssize(b) / cols;
    std::vector<float> y(m * n);
    std::vector<float> scratch(kernels::GemmScratchFloats(cols));
    kernels::GemmNT(a.data(), cols, b.data(), cols, m, n, cols, y.data(), n, scratch.data());
    return y;
  };
  const std::vector<float> h = product(x, up, kDim);
  const auto order = expert::NeuronClusters::Order(RowsOf(h, kNeurons), 8);
  ASSERT_TRUE(order.ok()) << order.status();
  EXPECT_FALSE(std::is_sorted(order->begin(), order->end()));
  const std::vector<float> up_there = expert::RowsInOrder(RowsOf(up, kDim), *order);
  const std::vector<float> down_there = expert::ColumnsInOrder(RowsOf(down, kNeurons), *order);
  const std::vector<float> h_there = product(x, up_there, kDim);
  EXPECT_EQ(h_there, expert::ColumnsInOrder(RowsOf(h, kNeurons), *order));
  const std::vector<float> y = product(h, down, kNeurons);
  const std::vector<float> y_there = product(h_there, down_there, kNeurons);
  for (size_t i = 0; i < y.size(); ++i) ASSERT_NEAR(y[i], y_there[i], 2e-5) << i;
}
TEST(SptSplit, BlocksAddUpToTheDenseOutput) {
  constexpr int64_t kDim = 11;
  constexpr int64_t kNeurons = 24;
  constexpr int64_t kBlocks = 6;
  const std::vector<float> h = NormalRows(kItems, kNeurons, 51);
  const std::vector<float> down = NormalRows(kDim, kNeurons, 52);
  std::vector<int32_t> order(kNeurons);
  for (int32_t i = 0; i < kNeurons; ++i) order[i] = (7 * i + 3) % kNeurons;
  const std::vector<float> y =
      expert::BlockOutputs(RowsOf(h, kNeurons), RowsOf(down, kNeurons), order, kBlocks);
  const std::vector<double> energy = expert::BlockEnergies(y, kDim);
  for (int64_t t = 0; t < kItems; ++t) {
    for (int64_t b = 0; b < kBlocks; ++b) {
      double square = 0;
      for (int64_t c = 0; c < kDim; ++c) {
        double want = 0;
        for (int64_t j = b * 4; j < b * 4 + 4; ++j)
          want += static_cast<double>(h[t * kNeurons + order[j]]) *
                  static_cast<double>(down[c * kNeurons + order[j]]);
        ASSERT_NEAR(y[(t * kBlocks + b) * kDim + c], want, 1e-4);
        square += want * want;
      }
      ASSERT_NEAR(energy[t * kBlocks + b], square, 1e-3 * (1 + square));
    }
  }
}
// Energies that are exponentials of linear functions of the input are found.
TEST(SptSplit, TheRouterSeesWhichBlocksAddMost) {
  constexpr int64_t kDim = 9;
  constexpr int64_t kBlocks = 4;
  const std::vector<float> x = NormalRows(120, kDim, 61);
  const std::vector<float> w = NormalRows(kBlocks, kDim, 62);
  std::vector<double> energy;
  for (int64_t t = 0; t < 120; ++t) {
    for (int64_t b = 0; b < kBlocks; ++b) {
      double z = 0.3 * static_cast<double>(b);
      for (int64_t c = 0; c < kDim; ++c)
        z += static_cast<double>(w[b * kDim + c] * x[t * kDim + c]);
      energy.push_back(std::exp(2 * z));
    }
  }
  const auto router = expert::FitBlockRouter(RowsOf(x, kDim), energy, kBlocks, 1e-9);
  ASSERT_TRUE(router.ok()) << router.status();
  for (size_t i = 0; i < w.size(); ++i) EXPECT_NEAR(router->weight[i], w[i], 1e-4);
  for (int64_t b = 0; b < kBlocks; ++b) EXPECT_NEAR(router->bias[b], 0.3 * b, 1e-4);
}
TEST(SptSplit, ErrorsSayWhatIsWrong) {
  std::vector<float> h = NormalRows(5, 24, 71);
  const auto said = [&](int64_t blocks, int64_t turns, int64_t tokens) {
    const MatrixView<const float> seen = {h.data(), tokens, 24, 24};
    return std::string(expert::NeuronClusters::Order(seen, blocks, turns).status().message());
  };
  EXPECT_THAT(said(5, 1, 5), HasSubstr("5 blocks of 24 neurons"));
  EXPECT_THAT(said(0, 1, 5), HasSubstr("0 blocks"));
  EXPECT_THAT(said(4, 0, 5), HasSubstr("0 turns"));
  EXPECT_THAT(said(4, 1, 1), HasSubstr("1 tokens"));
  h[24 + 3] = NAN;
  EXPECT_THAT(said(4, 1, 5), HasSubstr("neuron 3 at token 1 is not finite"));
  const std::vector<double> energy(9);
  EXPECT_THAT(expert::FitBlockRouter(RowsOf(h, 24), energy, 2).status().message(),
              HasSubstr("9 energies of 5 tokens and 2 blocks"));
}
}  // namespace spt_test
SLUICE_END_NAMESPACE
