#include "sluice/routers/expert/product_key_memory/product_key_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "sluice/routers/expert/product_key_memory/product_key_memory_reference.h"
#include "sluice/tests/support/expert_run.h"

SLUICE_BEGIN_NAMESPACE
namespace product_key_memory_test {
constexpr int64_t kItems = 80;
constexpr int64_t kDim = 20;

class Memory final : public WeightSource {
 public:
  explicit Memory(int64_t n1 = 9, int64_t n2 = 7)
      : ints{{"layers", 2}, {"dim", kDim}, {"keys1", n1}, {"keys2", n2}, {"key", 6}, {"value", 5}} {
  }
  absl::StatusOr<int64_t> Int(const std::string& key) const override {
    return ints.at(key.substr(key.rfind('.') + 1));
  }
  absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                             absl::Span<const uint64_t> shape) const override {
    if (name == missing) return absl::NotFoundError(absl::StrCat("no tensor '", name, "'"));
    int64_t n = 1;
    uint64_t seed = 7;
    for (uint64_t s : shape) n *= static_cast<int64_t>(s);
    for (char c : name) seed = seed * 131 + static_cast<unsigned char>(c);
    return NormalRows(1, n, seed, 0.4);
  }
  reference::KeyMemory Reference() const {
    return {*this, "blk.1.pkm.", ints.at("keys1"), ints.at("keys2"), 6, 5};
  }
  std::map<std::string, int64_t> ints;
  std::string missing;
};

ExpertRun Route(const std::string& options, const std::vector<float>& x, const Memory& m,
                int threads = 1) {
  RouteInputs in;
  in.items = std::ssize(x) / kDim;
  in.hidden = RowsOf(x, kDim);
  return RunExperts("expert/product_key_memory:layer=1," + options, in, 0, &m, threads);
}
std::vector<double> Token(const std::vector<float>& x, int64_t i) {
  return {x.begin() + i * kDim, x.begin() + (i + 1) * kDim};
}
void ExpectWeights(const ExpertRun& r, int64_t i, const std::vector<double>& want) {
  std::vector<double> got(want.size());
  for (int64_t e = r.a().row_ptr[i]; e < r.a().row_ptr[i + 1]; ++e)
    got[r.a().unit[e]] = r.a().weight[e];
  for (size_t u = 0; u < want.size(); ++u) ASSERT_NEAR(got[u], want[u], 1e-5) << i << " " << u;
}

TEST(ProductKeyMemory, AgreesWithALookThroughAllSlots) {
  const Memory m;
  const std::vector<float> x = NormalRows(kItems, kDim, 1);
  for (int64_t t : {1, 4, 7}) {
    for (const char* choose : {"pairs", "best"}) {
      const bool pairs = std::string(choose) == "pairs";
      const ExpertRun r = Route(absl::StrCat("t=", t, ",choose=", choose), x, m);
      ASSERT_TRUE(r.status.ok()) << r.status;
      EXPECT_EQ(r.a().units, 63);
      EXPECT_EQ(r.a().entries(), kItems * (pairs ? t * t : t));
      for (int64_t i = 0; i < kItems; ++i)
        ExpectWeights(r, i, m.Reference().Weights(Token(x, i), t, pairs));
    }
  }
}
// x + sum of weight times what the slots give is the memory that sums values and projects the sum.
TEST(ProductKeyMemory, ItsUnitsAreTheFoldedValues) {
  const Memory m;
  const std::vector<float> x = NormalRows(kItems, kDim, 2);
  auto router = BuiltinRouters().routers.Create("product_key_memory:layer=1", &m);
  ASSERT_TRUE(router.ok()) << router.status();
  auto plan = (*router)->MakePlan({.items = kItems, .hidden = kDim});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ((*router)->DescribeUnit(**plan, 3).kind, UnitKind::kOwn);
  const ExpertRun r = Route("t=4", x, m);
  std::vector<float> y(kDim);
  for (int64_t i = 0; i < kItems; ++i) {
    std::vector<double> got = Token(x, i);
    for (int64_t e = r.a().row_ptr[i]; e < r.a().row_ptr[i + 1]; ++e) {
      const UnitRows rows = {.unit = r.a().unit[e],
                             .in = {&x[i * kDim], 1, kDim, kDim},
                             .out = {y.data(), 1, kDim, kDim}};
      ASSERT_TRUE((*router)->RunUnit(**plan, rows, {}).ok());
      for (int64_t c = 0; c < kDim; ++c) got[c] += r.a().weight[e] * y[c];
    }
    const std::vector<double> want = m.Reference().Read(Token(x, i), 4, true);
    for (int64_t c = 0; c < kDim; ++c) ASSERT_NEAR(got[c], want[c], 1e-5) << i;
  }
  const UnitRows narrow = {.unit = 0, .in = {}, .out = {y.data(), 1, 3, 3}};
  EXPECT_THAT((*router)->RunUnit(**plan, narrow, {}).message(), testing::HasSubstr("width 3"));
}
// Exact: the best t of the t * t are the best t of all. Sums of small whole numbers, with ties.
TEST(ProductKeyMemory, TheBestOfThePairsAreTheBestOfAll) {
  constexpr int64_t kFirst = 11;
  constexpr int64_t kSecond = 13;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    std::vector<float> a = NormalRows(1, kFirst, 2 * seed, 3);
    std::vector<float> b = NormalRows(1, kSecond, 2 * seed + 1, 3);
    if (seed % 2 == 0) {
      for (float& v : a) v = std::round(v);
      for (float& v : b) v = std::round(v);
    }
    const int64_t t = 1 + static_cast<int64_t>(seed % 6);
    const pipeline::TopPairs select(kFirst, kSecond, t, true);
    OwnedWorkspace memory(static_cast<size_t>(select.bytes()));
    std::vector<int32_t> unit(t);
    std::vector<float> sum(t);
    ASSERT_EQ(select.Choose(a, b, memory.data(), unit.data(), sum.data()), t);

    std::vector<std::pair<float, int32_t>> all;
    for (int32_t i = 0; i < kFirst; ++i) {
      for (int32_t j = 0; j < kSecond; ++j)
        all.push_back({-(a[i] + b[j]), i * static_cast<int32_t>(kSecond) + j});
    }
    std::sort(all.begin(), all.end());
    std::vector<int32_t> want;
    for (int64_t c = 0; c < t; ++c) want.push_back(all[c].second);
    std::sort(want.begin(), want.end());
    EXPECT_EQ(unit, want) << seed;
    for (int64_t c = 0; c < t; ++c) EXPECT_EQ(sum[c], a[unit[c] / kSecond] + b[unit[c] % kSecond]);
  }
}
// A code in use names the slot i * t + j: right only where t is the number of keys.
TEST(ProductKeyMemory, ASlotIsCountedInKeys) {
  const std::vector<float> a = {0, 0, 9, 0};
  const std::vector<float> b = {0, 0, 0, 0, 9};
  const pipeline::TopPairs select(4, 5, 2, true);
  OwnedWorkspace memory(static_cast<size_t>(select.bytes()));
  std::vector<int32_t> unit(2);
  std::vector<float> sum(2);
  ASSERT_EQ(select.Choose(a, b, memory.data(), unit.data(), sum.data()), 2);
  EXPECT_THAT(unit, testing::Contains(2 * 5 + 4));
}
TEST(ProductKeyMemory, AllKeysAreTheFullSoftmax) {
  const Memory m(6, 6);
  const std::vector<float> x = NormalRows(10, kDim, 3);
  const ExpertRun r = Route("t=0", x, m);
  EXPECT_EQ(r.a().entries(), 10 * 36);
  for (int64_t i = 0; i < 10; ++i)
    ExpectWeights(r, i, m.Reference().Weights(Token(x, i), 36, false));
}
TEST(ProductKeyMemory, NaNReadsNothing) {
  const Memory m;
  std::vector<float> x = NormalRows(3, kDim, 4);
  x[kDim] = NAN;
  const ExpertRun r = Route("t=3", x, m);
  EXPECT_EQ(r.Units(0).size(), 9u);
  EXPECT_TRUE(r.Units(1).empty());
  EXPECT_EQ(r.a().nan_scores, 16);
  EXPECT_EQ(Route("t=3", {}, m).a().entries(), 0);
}
TEST(ProductKeyMemory, TheSameForAnyNumberOfThreads) {
  const Memory m;
  const std::vector<float> x = NormalRows(1000, kDim, 5);
  const ExpertRun one = Route("choose=best", x, m);
  for (int threads : {2, 8}) {
    const ExpertRun many = Route("choose=best", x, m, threads);
    EXPECT_EQ(many.AllUnits(), one.AllUnits());
    EXPECT_EQ(many.AllWeights(), one.AllWeights());
  }
}
TEST(ProductKeyMemory, ErrorsSayWhatIsWrong) {
  using testing::HasSubstr;
  const std::vector<float> x = NormalRows(2, kDim, 6);
  const auto error = [&](const std::string& options, const Memory& m) {
    return std::string(Route(options, x, m).status.message());
  };
  EXPECT_THAT(error("t=8", Memory()), HasSubstr("t=8 of 9 and 7 keys"));
  EXPECT_THAT(error("t=0", Memory()), HasSubstr("as many keys of both halves, not 9 and 7"));
  EXPECT_THAT(error("t=2", Memory(0, 7)), HasSubstr("allowed 1 to 65536"));
  EXPECT_THAT(error("t=2", Memory(65536, 65536)), HasSubstr("allowed 2^30 numbers"));
  Memory m;
  m.ints["dim"] = 19;
  EXPECT_THAT(error("t=2", m), HasSubstr("wanted 63 units (or 0) and hidden 19"));
  m.ints["layers"] = 1;
  EXPECT_THAT(error("t=2", m), HasSubstr("layer=1, but the weights have 1 layers"));
  Memory lacks;
  lacks.missing = "blk.1.pkm.values.weight";
  EXPECT_THAT(error("t=2", lacks), HasSubstr("values.weight"));
}
}  // namespace product_key_memory_test
SLUICE_END_NAMESPACE
