#include "sluice/routers/agent/random/random.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "sluice/tests/support/agent_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
namespace random_test {
TEST(Random, DrawsEveryOpenAgentAlike) {
  AgentUnderTest a("random", MakeGraph(1, {4}));
  const std::vector<Block> blocked = {Block::kNone, Block::kUnhealthy, Block::kNone, Block::kNone};
  std::vector<int> seen(4);
  for (uint64_t id = 0; id < 3000; ++id) ++seen[a.Route(id, {1}, nullptr, blocked).path[0]];
  EXPECT_EQ(seen[1], 0);
  for (int j : {0, 2, 3}) EXPECT_NEAR(seen[j], 1000, 100);
  EXPECT_NEAR(a.Route(7, {1}, nullptr, blocked).propensity, 1.0 / 3, 1e-12);
}

// The draw all agent routers share, candidate by candidate and as it is said: the probabilities of
// `w` into `p`, and who holds u.
int PlainDraw(const std::vector<uint8_t>& open, double explore, double u, const Weights& w,
              std::vector<double>& p) {
  const size_t n = open.size();
  double total = 0, available = 0;
  int best = -1;
  for (size_t j = 0; j < n; ++j) {
    p[j] = open[j] != 0 && std::isfinite(w.p[j]) && w.p[j] > 0 ? w.p[j] : 0.0;
    total += p[j];
    available += open[j];
    if (open[j] != 0 && (best < 0 || p[j] > p[static_cast<size_t>(best)]))
      best = static_cast<int>(j);
  }
  if (w.greedy >= 0) best = w.greedy;
  const bool usable = total > 0 && std::isfinite(total);
  double upto = 0;
  int pick = -1, last = 0;
  for (size_t j = 0; j < n; ++j) {
    const double even = open[j] != 0 ? 1 / available : 0;
    const double drawn = usable ? p[j] / total : even;
    const double own = (1 - w.q0) * drawn + (static_cast<int>(j) == best ? w.q0 : 0);
    p[j] = explore > 0 ? (1 - explore) * own + explore * even : own;
    upto += p[j];
    if (p[j] > 0) last = static_cast<int>(j);
    if (pick < 0 && p[j] > 0 && u < upto) pick = static_cast<int>(j);
  }
  return pick < 0 ? last : pick;
}
TEST(Draw, IsThePlainOneBitForBit) {
  const auto number = [](uint64_t i, uint64_t what) { return RandomUniform({3, i, what, 0, 0}); };
  const auto few = [&](uint64_t i, uint64_t what, uint64_t of) {
    return RandomBits({3, i, what, 1, 0}) % of;
  };
  const double odd[] = {0, -0.0, -1, NAN, INFINITY, -INFINITY, 1e308, 1e-320, 1};
  auto w = std::make_unique<Weights>();
  for (uint64_t i = 0; i < 20000; ++i) {
    const size_t n = 1 + few(i, 0, 14);
    std::vector<uint8_t> open(n);
    std::vector<double> p(n);
    int available = 0;
    for (size_t j = 0; j < n; ++j) {
      open[j] = few(i, 100 + j, 4) > 0 || i % 2 == 0;
      available += open[j];
      w->p[j] = few(i, 200 + j, 1 + i % 4) > 0 ? odd[few(i, 300 + j, 9)] : number(i, 400 + j);
    }
    if (available == 0) continue;
    w->q0 = i % 3 == 0 ? number(i, 1) : i % 3 == 1 ? 0 : 1;
    w->greedy = -1;
    if (i % 5 == 0) w->greedy = static_cast<int>(few(i, 2, n));
    if (w->greedy >= 0 && open[static_cast<size_t>(w->greedy)] == 0) w->greedy = -1;
    const double explore = i % 4 == 0 ? 0 : i % 4 == 1 ? 0.02 : i % 4 == 2 ? 1 : number(i, 3);
    const double u = i % 7 == 0 ? 0 : i % 7 == 1 ? 1 - 0x1p-53 : number(i, 4);
    const int wanted = PlainDraw(open, explore, u, *w, p);
    const int drawn = Draw(reinterpret_cast<const bool*>(open.data()), static_cast<int>(n),
                           available, explore, u, *w);
    ASSERT_EQ(drawn, wanted) << i;
    for (size_t j = 0; j < n; ++j) ASSERT_EQ(w->p[j], p[j]) << i << " " << j;
  }
}
}  // namespace random_test
}  // namespace agent
SLUICE_END_NAMESPACE
