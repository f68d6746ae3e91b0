#include "sluice/routers/adapter/polytropon/polytropon.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "sluice/routers/adapter/polytropon/polytropon_reference.h"
#include "sluice/tests/support/expert_run.h"

SLUICE_BEGIN_NAMESPACE
namespace adapter {
namespace polytropon_test {
constexpr int64_t kTasks = 3;
constexpr int64_t kSkills = 4;
constexpr int64_t kRank = 2;
constexpr int64_t kIn = 24;
constexpr int64_t kOut = 36;
constexpr int64_t kRows = 64;

// Normal weights; some tests put others in their place.
class Bank final : public WeightSource {
 public:
  explicit Bank(int64_t heads = 1)
      : ints{{"layers", 2},   {"tasks", kTasks}, {"skills", kSkills}, {"heads", heads},
             {"rank", kRank}, {"in", kIn},       {"out", kOut}},
        logits(NormalRows(kTasks, heads * kSkills, 1)),
        a(NormalRows(kSkills, kIn * kRank, 2)),
        b(NormalRows(kSkills, kOut * kRank, 3)) {}
  absl::StatusOr<int64_t> Int(const std::string& key) const override {
    return ints.at(key.substr(key.rfind('.') + 1));
  }
  absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                             absl::Span<const uint64_t>) const override {
    if (name == missing) return absl::NotFoundError(absl::StrCat("no tensor '", name, "'"));
    if (name == "blk.1.polytropon.logits") return logits;
    return name == "blk.1.polytropon.a" ? a : b;
  }
  reference::SkillBank Reference(int64_t task) const {
    const int64_t heads = ints.at("heads");
    const auto* z = &logits[task * heads * kSkills];
    return {kSkills, heads, kRank,
            kIn,     kOut,  reference::SkillBank::Shares({z, z + heads * kSkills}, heads),
            a,       b};
  }
  std::map<std::string, int64_t> ints;
  std::vector<float> logits;
  std::vector<float> a;
  std::vector<float> b;
  std::string missing;
};
Polytropon Make(const Bank& bank, Polytropon::Config c = {}) {
  c.layer = 1;
  auto made = Polytropon::Create(c, bank);
  EXPECT_TRUE(made.ok()) << made.status();
  return *std::move(made);
}
// What the adapter of a task adds, row by row of x.
std::vector<float> Added(const Polytropon& r, int64_t task, const std::vector<float>& x) {
  auto plan = r.MakePlan({.items = kRows});
  EXPECT_TRUE(plan.ok()) << plan.status();
  OwnedWorkspace memory(plan->unit_workspace_bytes);
  const int64_t n = std::ssize(x) / kIn;
  std::vector<float> y(n * kOut);
  const UnitRows rows = {
      .unit = task, .in = RowsOf(x, kIn), .items = {}, .out = {y.data(), n, kOut, kOut}};
  EXPECT_TRUE(r.RunUnit(*plan, rows, {memory.workspace(), nullptr}).ok());
  return y;
}
std::vector<double> Row(const std::vector<float>& x, int64_t i) {
  return {x.begin() + i * kIn, x.begin() + (i + 1) * kIn};
}
void ExpectNear(const std::vector<float>& a, const std::vector<float>& b, double by) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], by) << i;
}

TEST(Polytropon, TheMergedAdapterIsTheRoutedOne) {
  const std::vector<float> x = NormalRows(kRows, kIn, 4, 0.3);
  for (int64_t heads : {1, 3, 12}) {
    const Bank bank(heads);
    const Polytropon r = Make(bank, {.alpha = 0.5});
    for (int64_t task = 0; task < kTasks; ++task) {
      const std::vector<float> y = Added(r, task, x);
      for (int64_t i = 0; i < kRows; ++i) {
        const std::vector<double> want = bank.Reference(task).Before(Row(x, i), 0.5);
        for (int64_t c = 0; c < kOut; ++c) ASSERT_NEAR(y[i * kOut + c], want[c], 1e-5) << heads;
      }
    }
  }
}
// Merging before the product has cross terms, merging after has none: two functions, one name each.
TEST(Polytropon, MergedAfterThereAreNoCrossTerms) {
  const std::vector<float> x = NormalRows(kRows, kIn, 5, 0.3);
  const Bank bank;
  const std::vector<float> after = Added(Make(bank, {.merge = Polytropon::Merge::kAfter}), 1, x);
  for (int64_t i = 0; i < kRows; ++i) {
    const std::vector<double> want = bank.Reference(1).After(Row(x, i), 1);
    for (int64_t c = 0; c < kOut; ++c) ASSERT_NEAR(after[i * kOut + c], want[c], 1e-5);
  }
  const std::vector<float> before = Added(Make(bank), 1, x);
  float apart = 0;
  for (size_t i = 0; i < after.size(); ++i) apart = std::max(apart, std::abs(after[i] - before[i]));
  EXPECT_GT(apart, 0.1f);
}
TEST(Polytropon, FoldedIntoTheWeightsIsTheSame) {
  const std::vector<float> x = NormalRows(kRows, kIn, 6, 0.3);
  const std::vector<float> w = NormalRows(kOut, kIn, 7, 0.3);
  const Polytropon r = Make(Bank(3));
  std::vector<float> folded = w;
  ASSERT_TRUE(r.Fold(2, {folded.data(), kOut, kIn, kIn}).ok());
  const std::vector<float> added = Added(r, 2, x);
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t c = 0; c < kOut; ++c) {
      double want = added[i * kOut + c];
      double got = 0;
      for (int64_t k = 0; k < kIn; ++k) {
        want += static_cast<double>(w[c * kIn + k]) * x[i * kIn + k];
        got += static_cast<double>(folded[c * kIn + k]) * x[i * kIn + k];
      }
      ASSERT_NEAR(got, want, 1e-5);
    }
  }
  EXPECT_THAT(r.Fold(3, {folded.data(), kOut, kIn, kIn}).message(),
              testing::HasSubstr("task 3 of 3"));
  EXPECT_THAT(r.Fold(0, {folded.data(), kIn, kOut, kOut}).message(),
              testing::HasSubstr("wanted [36, 24]"));
}
TEST(Polytropon, EqualSharesAreTheUniformMean) {
  const std::vector<float> x = NormalRows(kRows, kIn, 8, 0.3);
  Bank bank(3);
  const std::vector<float> uniform =
      Added(Make(bank, {.share = Polytropon::Share::kUniform}), 0, x);
  bank.logits.assign(bank.logits.size(), 0.7f);
  ExpectNear(Added(Make(bank), 0, x), uniform, 1e-5);
}
TEST(Polytropon, OneSkillAloneIsItsAdapter) {
  const std::vector<float> x = NormalRows(kRows, kIn, 9, 0.3);
  Bank bank;
  for (int64_t j = 0; j < kSkills; ++j) bank.logits[j] = j == 2 ? 40.0f : -40.0f;
  const std::vector<float> y = Added(Make(bank), 0, x);
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t c = 0; c < kOut; ++c) {
      double want = 0;
      for (int64_t k = 0; k < kRank; ++k) {
        double hidden = 0;
        for (int64_t d = 0; d < kIn; ++d)
          hidden += static_cast<double>(bank.a[(2 * kIn + d) * kRank + k]) * x[i * kIn + d];
        want += hidden * static_cast<double>(bank.b[(2 * kRank + k) * kOut + c]) / kRank;
      }
      ASSERT_NEAR(y[i * kOut + c], want, 1e-5);
    }
  }
}
// Heads that all mix alike are one head that does: the same inventory, cut along its widths.
TEST(Polytropon, HeadsThatAgreeAreOneHead) {
  constexpr int64_t kHeads = 3;
  const std::vector<float> x = NormalRows(kRows, kIn, 10, 0.3);
  const Bank one;
  Bank cut(kHeads);
  for (int64_t h = 0; h < kHeads; ++h) {
    for (int64_t j = 0; j < kSkills; ++j) {
      for (int64_t t = 0; t < kTasks; ++t)
        cut.logits[(t * kHeads + h) * kSkills + j] = one.logits[t * kSkills + j];
      constexpr int64_t kInSlice = kIn / kHeads;
      constexpr int64_t kOutSlice = kOut / kHeads;
      for (int64_t k = 0; k < kRank; ++k) {
        for (int64_t i = 0; i < kInSlice; ++i)
          cut.a[((h * kSkills + j) * kInSlice + i) * kRank + k] =
              one.a[(j * kIn + h * kInSlice + i) * kRank + k];
        for (int64_t o = 0; o < kOutSlice; ++o)
          cut.b[((h * kSkills + j) * kRank + k) * kOutSlice + o] =
              one.b[(j * kRank + k) * kOut + h * kOutSlice + o];
      }
    }
  }
  for (int64_t t = 0; t < kTasks; ++t)
    ExpectNear(Added(Make(cut), t, x), Added(Make(one), t, x), 1e-5);
}
TEST(Polytropon, WithoutBNothingIsAdded) {
  Bank bank(3);
  bank.b.assign(bank.b.size(), 0.0f);
  EXPECT_THAT(Added(Make(bank), 0, NormalRows(5, kIn, 11)), testing::Each(0.0f));
}
TEST(Polytropon, EveryItemGoesToItsTask) {
  const Bank bank(3);
  RouteInputs in;
  in.items = 5;
  in.task = 2;
  const ExpertRun r = RunExperts("adapter/polytropon:layer=1", in, 0, &bank);
  ASSERT_TRUE(r.status.ok()) << r.status;
  EXPECT_EQ(r.a().units, kTasks);
  EXPECT_THAT(r.AllUnits(), testing::Each(testing::ElementsAre(2)));
  EXPECT_THAT(r.AllWeights(), testing::Each(1.0f));
  in.task = 3;
  EXPECT_THAT(RunExperts("polytropon:layer=1", in, 0, &bank).status.message(),
              testing::HasSubstr("task 3; the weights have 3 tasks"));
}
TEST(Polytropon, ErrorsSayWhatIsWrong) {
  using testing::HasSubstr;
  const auto error = [](const std::string& options, const Bank& bank) {
    auto made = BuiltinRouters().routers.Create("polytropon:" + options, &bank);
    return std::string(made.status().message());
  };
  EXPECT_THAT(error("layer=2", Bank()), HasSubstr("2 layers"));
  EXPECT_THAT(error("layer=1,merge=after", Bank(3)), HasSubstr("merge=after of 3 heads"));
  EXPECT_THAT(error("layer=1", Bank(5)), HasSubstr("heads 5 do not divide the widths 24 and 36"));
  Bank hostile;
  hostile.ints["skills"] = 0;
  EXPECT_THAT(error("layer=1", hostile), HasSubstr("allowed 1 to 65536"));
  hostile.ints["skills"] = 65536;
  EXPECT_THAT(error("layer=1", hostile), HasSubstr("allowed 2^32 numbers"));
  Bank lacks;
  lacks.missing = "blk.1.polytropon.b";
  EXPECT_THAT(error("layer=1", lacks), HasSubstr("polytropon.b"));
  const Polytropon r = Make(Bank());
  EXPECT_THAT(r.MakePlan({.items = 1, .units = 2}).status().message(),
              HasSubstr("wanted 3, one a task"));
}
}  // namespace polytropon_test
}  // namespace adapter
SLUICE_END_NAMESPACE
