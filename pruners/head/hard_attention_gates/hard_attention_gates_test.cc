#include "sluice/pruners/head/hard_attention_gates/hard_attention_gates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "sluice/pruners/builtin.h"
#include "sluice/pruners/common/freeze.h"
#include "sluice/pruners/head/hard_attention_gates/hard_attention_gates_reference.h"
#include "sluice/tests/support/random_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace hard_attention_gates_test {
using head::HardAttentionGates;
using head::hard_attention_gates::FoldGates;
using head::hard_attention_gates::GateMask;
using testing::HasSubstr;

// Gates that a test chose.
class Chosen final : public WeightSource {
 public:
  explicit Chosen(std::vector<float> a) : a_(std::move(a)) {}
  absl::StatusOr<int64_t> Int(const std::string&) const override { return std::ssize(a_); }
  absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                             absl::Span<const uint64_t>) const override {
    asked = name;
    return a_;
  }
  mutable std::string asked;

 private:
  std::vector<float> a_;
};

struct Branch {
  int64_t rows, cols;
  std::vector<float> a, w, b, x;
  Branch(int64_t r, int64_t c)
      : rows(r),
        cols(c),
        a(RandomFeatures(1, r, 1)),
        w(RandomFeatures(r, c, 2)),
        b(RandomFeatures(1, r, 3)),
        x(RandomFeatures(1, c, 4)) {}
  std::vector<float> Gates() const { return Gates(a); }
  static std::vector<float> Gates(const std::vector<float>& a) {
    const auto r = HardAttentionGates::Create({}, Chosen(a));
    EXPECT_TRUE(r.ok()) << r.status();
    return {r->gates().begin(), r->gates().end()};
  }
  static std::vector<float> Linear(const std::vector<float>& w, const std::vector<float>& b,
                                   const std::vector<float>& x) {
    std::vector<float> y = b;
    for (size_t r = 0; r < b.size(); ++r) {
      for (size_t c = 0; c < x.size(); ++c) y[r] += w[r * x.size() + c] * x[c];
    }
    return y;
  }
  // What the folded branch gives.
  std::vector<float> Folded(const std::vector<float>& gates, float threshold) const {
    std::vector<float> fw = w;
    std::vector<float> fb = b;
    EXPECT_TRUE(
        FoldGates(gates, threshold, {fw.data(), rows, cols, cols}, absl::MakeSpan(fb)).ok());
    return Linear(fw, fb, x);
  }
  std::vector<double> Reference(double threshold) const {
    std::vector<std::vector<double>> rows_of_w;
    for (int64_t r = 0; r < rows; ++r)
      rows_of_w.emplace_back(w.begin() + r * cols, w.begin() + (r + 1) * cols);
    return reference::Gated({a.begin(), a.end()}, threshold, rows_of_w, {b.begin(), b.end()},
                            {x.begin(), x.end()});
  }
};

TEST(HardAttentionGates, FoldedIsGated) {
  for (const auto& [rows, cols] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {7, 5}, {64, 33}, {3, 0}}) {
    for (float threshold : {0.0f, 0.3f, 0.6f, 1.0f}) {
      const Branch p(rows, cols);
      const std::vector<float> got = p.Folded(p.Gates(), threshold);
      const std::vector<double> want = p.Reference(static_cast<double>(threshold));
      for (int64_t r = 0; r < rows; ++r) EXPECT_NEAR(got[r], want[r], 2e-5) << rows << " " << r;
    }
  }
}
// Where a product with the gate rounds nothing, to the bit.
TEST(HardAttentionGates, FoldedIsGatedToTheBitForPowersOfTwo) {
  const Branch p(12, 40);
  const std::vector<float> gates = {1, 0.5, 0.25, 0, 1, 0.125, 0.5, 1, 0, 0.5, 0.25, 1};
  const std::vector<float> plain = Branch::Linear(p.w, p.b, p.x);
  const std::vector<float> got = p.Folded(gates, 0);
  for (size_t r = 0; r < gates.size(); ++r) EXPECT_EQ(got[r], gates[r] * plain[r]) << r;
}
TEST(HardAttentionGates, OpenGatesAreNoneAndClosedOnesAreNoBranch) {
  const Branch p(9, 20);
  const std::vector<float> open = Branch::Gates(std::vector<float>(9, HUGE_VALF));
  EXPECT_THAT(open, testing::Each(1.0f));
  EXPECT_EQ(p.Folded(open, 1), Branch::Linear(p.w, p.b, p.x));  // the identity, twice too
  const std::vector<float> closed = Branch::Gates(std::vector<float>(9, -HUGE_VALF));
  EXPECT_THAT(p.Folded(closed, 0), testing::Each(0.0f));
  EXPECT_NEAR(Branch::Gates({-100})[0], reference::Gate(-100), 1e-37);
}
TEST(HardAttentionGates, RowsBelowTheThresholdAreExactlyZero) {
  Branch p(4, 3);
  const std::vector<float> gates = {0.4f, 0.5f, 0.49f, 0.9f};
  p.w[0] = NAN;
  p.w[7] = INFINITY;
  std::vector<float> w = p.w;
  std::vector<float> b = p.b;
  ASSERT_TRUE(FoldGates(gates, 0.5f, {w.data(), 4, 3, 3}, absl::MakeSpan(b)).ok());
  EXPECT_THAT(std::vector<float>(w.begin(), w.begin() + 3), testing::Each(0.0f));
  EXPECT_THAT(std::vector<float>(w.begin() + 6, w.begin() + 9), testing::Each(0.0f));
  EXPECT_EQ(b[0], 0);
  EXPECT_EQ(b[1], 0.5f * p.b[1]);  // a gate that equals the threshold stays
  const Mask mask = GateMask(gates, 0.5f, 3);
  for (int64_t r = 0; r < 4; ++r) EXPECT_EQ(mask.CountKept(r), r % 2 == 1 ? 3 : 0) << r;
}

TEST(HardAttentionGates, RoutesEveryItemToTheGatesThatStay) {
  const Chosen weights({2, -2, 0, -1, 1});
  HardAttentionGates::Config c;
  c.layer = 3;
  c.branch = HardAttentionGates::Branch::kAttention;
  c.threshold = 0.5;
  const auto router = HardAttentionGates::Create(c, weights);
  ASSERT_TRUE(router.ok()) << router.status();
  EXPECT_EQ(weights.asked, "blk.3.gates.attention");
  const auto plan = router->MakePlan({.items = 2});
  AssignmentBuffer out;
  out.Reserve(2, plan->max_entries);
  RouteInputs in;
  in.items = 2;
  ASSERT_TRUE(router->Run(*plan, in, {}, out.view()).ok());
  const Assignment& a = out.view();
  ASSERT_EQ(a.entries(), 6);
  const int32_t stay[] = {0, 2, 4};
  const double logit[] = {2, 0, 1};
  for (int64_t e = 0; e < 6; ++e) {
    EXPECT_EQ(a.unit[e], stay[e % 3]);
    EXPECT_NEAR(a.weight[e], reference::Gate(logit[e % 3]), 1e-6);
  }
}
// Pruning is routing with a constant gate.
TEST(HardAttentionGates, FreezesToTheGreatestGates) {
  const Chosen weights({0.1f, 3, -2, 0.5f, 3, -1});
  const auto router =
      *BuiltinPruners().routers.Create("head/hard_attention_gates:layer=0", &weights);
  const auto plan = *router->MakePlan({.items = 4});
  std::vector<RouteInputs> data(2);
  for (RouteInputs& in : data) in.items = 4;
  OwnedWorkspace memory(plan->info().workspace_bytes);
  const auto mask =
      pruning::Freeze(*router, *plan, data, {.kind = PruneTarget::Kind::kCount, .count = 3},
                      {memory.workspace(), nullptr});
  ASSERT_TRUE(mask.ok()) << mask.status();
  EXPECT_EQ(mask->words()[0], 0b011010u);
}
TEST(HardAttentionGates, ErrorsSayWhatWasGivenAndAllowed) {
  const auto error = [](const std::vector<float>& a) {
    return std::string(HardAttentionGates::Create({}, Chosen(a)).status().message());
  };
  EXPECT_THAT(error({1, NAN}), HasSubstr("blk.0.gates.ffn: channel 1 is nan"));
  EXPECT_THAT(error({}), HasSubstr("sluice.gates.channels 0; allowed 1 to"));
  const auto router = *HardAttentionGates::Create({}, Chosen({1, 2}));
  EXPECT_THAT(std::string(router.MakePlan({.items = 1, .units = 3}).status().message()),
              HasSubstr("3 units; wanted 2 (or 0)"));
  std::vector<float> w(6);
  std::vector<float> b(2);
  EXPECT_THAT(std::string(FoldGates(router.gates(), 0, {w.data(), 3, 2, 2}, {}).message()),
              HasSubstr("2 for a matrix of 3 rows"));
  EXPECT_THAT(
      std::string(
          BuiltinPruners().routers.Create("hard_attention_gates:threshold=1.5").status().message()),
      HasSubstr("1.5"));
}
}  // namespace hard_attention_gates_test
SLUICE_END_NAMESPACE
