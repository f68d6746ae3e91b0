#include "sluice/pruners/token/ftp/ftp.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/pruners/builtin.h"
#include "sluice/pruners/token/ftp/ftp_reference.h"
#include "sluice/tests/support/random_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace token {
namespace ftp_test {
const RandomWeights& Weights() {
  static const auto* w = new RandomWeights({{"hidden", 64}});
  return *w;
}
std::vector<float> Scores(size_t n, uint64_t seed) {
  std::vector<float> s(n);
  for (size_t i = 0; i < n; ++i)
    s[i] = static_cast<float>(std::floor(8 * RandomUniform({seed, 0, 0, 0, i})));  // ties
  return s;
}
std::vector<int32_t> Route(const std::string& spec, const std::vector<float>& feedback,
                           absl::Span<const int64_t> positions = {}) {
  auto r = BuiltinPruners().routers.Create(spec, &Weights());
  EXPECT_TRUE(r.ok()) << r.status();
  const int64_t n = std::ssize(feedback);
  auto plan = (*r)->MakePlan({.items = n});
  EXPECT_TRUE(plan.ok()) << plan.status();
  OwnedWorkspace memory((*plan)->info().workspace_bytes);
  AssignmentBuffer out;
  out.Reserve(n, (*plan)->info().max_entries);
  RouteInputs in;
  in.items = n;
  in.feedback = feedback;
  in.positions = positions;
  const absl::Status s = (*r)->Run(**plan, in, {memory.workspace(), nullptr}, out.view());
  EXPECT_TRUE(s.ok()) << s;
  EXPECT_TRUE(ValidateAssignment(out.view()).ok());
  return {out.view().unit.begin(), out.view().unit.end()};
}
TEST(Ftp, FactorsAgreeWithTheReference) {
  for (size_t n : {1u, 2u, 3u, 70u}) {
    for (bool causal : {false, true}) {
      const std::vector<float> s = Scores(n, 5);
      std::vector<int32_t> order(n);
      std::vector<float> got(4 * n);
      ftp::Factors(s, 0.3, causal, absl::MakeSpan(order), got.data());
      const auto want = reference::FtpFactors({s.begin(), s.end()}, 0.3, causal);
      for (size_t t = 0; t < n; ++t)
        for (size_t f = 0; f < 4; ++f)
          EXPECT_NEAR(got[4 * t + f], want[t][f], 1e-6) << n << " " << t << " " << f;
    }
  }
}
TEST(Ftp, NaNScoresRankLast) {
  const std::vector<float> s = {1, NAN, 2};
  std::vector<int32_t> order(3);
  std::vector<float> f(12);
  ftp::Factors(s, 0, false, absl::MakeSpan(order), f.data());
  EXPECT_FLOAT_EQ(f[4 + 2], 2.0f / 3);
  for (float x : f) EXPECT_TRUE(std::isfinite(x));
}
TEST(Ftp, RouterAgreesWithTheReference) {
  const size_t n = 50;
  const std::vector<float> s = Scores(n, 9);
  std::vector<int32_t> order(n);
  std::vector<float> f(4 * n);
  ftp::Factors(s, 0.3, false, absl::MakeSpan(order), f.data());
  const std::vector<int32_t> unit = Route("token/ftp:sparsity=0.3", s);
  EXPECT_EQ(unit[0], ftp::kCompute);
  for (size_t t = 1; t < n; ++t) {
    const auto want = reference::FtpLogits(
        Weights(),
        {f.begin() + 4 * static_cast<int64_t>(t), f.begin() + 4 * static_cast<int64_t>(t) + 4}, 64);
    if (std::abs(want[0] - want[1]) > 1e-5) {
      EXPECT_EQ(unit[t], want[1] > want[0] ? ftp::kSkip : ftp::kCompute);
    }
  }
}
TEST(Ftp, PositionsAreThePlacesOfTheTokensThatAreThere) {
  const std::vector<float> s = Scores(5, 3);
  const std::vector<int64_t> positions = {0, 4, 5, 7, 16};
  std::vector<int32_t> order(5);
  std::vector<float> f(20);
  ftp::Factors(s, 0.3, false, absl::MakeSpan(order), f.data(), positions);
  for (size_t t = 0; t < 5; ++t)
    EXPECT_FLOAT_EQ(f[4 * t], static_cast<float>(positions[t]) / 16) << t;
  const std::vector<int64_t> all = {0, 1, 2, 3, 4};
  EXPECT_EQ(Route("ftp", s, all), Route("ftp", s));
}
TEST(Ftp, TopKKeepsExactlyTheBudget) {
  const std::vector<float> f = RandomFeatures(41, 1, 3);
  for (double s : {0.0, 0.3, 0.5, 1.0}) {
    for (const char* name : {"ftp:topk=1,sparsity=", "ftp_static:sparsity="}) {
      const std::vector<int32_t> unit = Route(absl::StrCat(name, s), f);
      EXPECT_EQ(std::count(unit.begin(), unit.end(), ftp::kCompute), quota::Kept(s, 41));
      EXPECT_EQ(unit[0], ftp::kCompute);
    }
  }
  EXPECT_EQ(quota::Kept(1, 41), 1);
  EXPECT_EQ(quota::Kept(0.5, 0), 0);
  EXPECT_TRUE(Route("ftp", {}).empty());
  // Ties go to the lowest index.
  std::vector<int32_t> order(10), unit(10);
  AssignmentBuffer tied;
  tied.Reserve(10, 10);
  quota::AssignTop(10, 3, absl::MakeSpan(order), tied.view(), [](int64_t) { return 0.5; });
  EXPECT_EQ((std::vector<int32_t>(tied.view().unit.begin(), tied.view().unit.end())),
            (std::vector<int32_t>{0, 0, 0, 1, 1, 1, 1, 1, 1, 1}));
}
TEST(Ftp, StaticKeepsSinkAndRecent) {
  const std::vector<float> f(6);
  EXPECT_EQ(Route("ftp_static:sparsity=0.5", f), (std::vector<int32_t>{0, 1, 1, 1, 0, 0}));
}
TEST(Ftp, ErrorsSayWhatIsWrong) {
  const auto message = [](const auto& made) { return std::string(made.status().message()); };
  EXPECT_THAT(message(BuiltinPruners().routers.Create("ftp")),
              testing::HasSubstr("needs trained weights"));
  EXPECT_THAT(message(BuiltinPruners().routers.Create("ftp_static:sparsity=2")),
              testing::HasSubstr("sparsity"));
  RandomWeights w = Weights();
  w.missing = "ftp.router1.bias";
  EXPECT_THAT(message(BuiltinPruners().routers.Create("ftp", &w)),
              testing::HasSubstr("router1.bias"));
  auto r = BuiltinPruners().routers.Create("ftp", &Weights());
  EXPECT_THAT(message((*r)->MakePlan({.items = 4, .units = 3})), testing::HasSubstr("3 units"));
  auto plan = (*r)->MakePlan({.items = 4});
  AssignmentBuffer out;
  out.Reserve(4, 4);
  RouteInputs in;
  in.items = 4;
  OwnedWorkspace memory((*plan)->info().workspace_bytes);
  EXPECT_THAT((*r)->Run(**plan, in, {memory.workspace(), nullptr}, out.view()).message(),
              testing::HasSubstr("token/ftp reads attention feedback and was given none"));
}
}  // namespace ftp_test
}  // namespace token
SLUICE_END_NAMESPACE
