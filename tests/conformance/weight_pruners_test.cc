// What every registered pruner of weights must do: exact counts by pattern, rows alone, the same
// mask from any threads and through the plug-in, errors that say what was given.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "sluice/pruners/builtin.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/tests/support/plugin_registry.h"
#include "sluice/tests/support/random_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using Kind = PruneTarget::Kind;
using Scope = PruneTarget::Scope;
using testing::HasSubstr;
constexpr int64_t kRows = 12, kCols = 96, kTokens = 200;

struct Problem {
  std::vector<float> w = RandomFeatures(kRows, kCols, 1);
  std::vector<float> x = RandomFeatures(kTokens, kCols, 2);
  std::vector<float> mean, squares, gram;
  Problem() : mean(kCols), squares(kCols), gram(kCols * kCols) {
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t i = 0; i < kCols; ++i) {
        mean[i] += x[t * kCols + i] / kTokens;
        squares[i] += x[t * kCols + i] * x[t * kCols + i];
        for (int64_t j = 0; j < kCols; ++j)
          gram[i * kCols + j] += x[t * kCols + i] * x[t * kCols + j];
      }
    }
  }
  PruneInputs Inputs(const PruneTarget& t) const {
    PruneInputs in;
    in.weights = {w.data(), kRows, kCols, kCols};
    in.stats = {.tokens = kTokens,
                .mean = mean,
                .sum_squares = squares,
                .gram = {gram.data(), kCols, kCols, kCols}};
    in.target = t;
    return in;
  }
};

class WeightPruners : public testing::TestWithParam<std::string> {
 protected:
  WeightPruners()
      : plugin_(GetParam().rfind("plugin ", 0) == 0),
        name_(plugin_ ? GetParam().substr(7) : GetParam()),
        factory_(plugin_ ? **PluginRouters().pruners.Find(name_)
                         : **BuiltinPruners().pruners.Find(name_)),
        traits_(factory_.traits()) {
    auto made = factory_.Create({}, nullptr);
    EXPECT_TRUE(made.ok()) << made.status();
    pruner_ = *std::move(made);
  }
  bool Serves(const PruneTarget& t) const {
    return (traits_.kinds >> static_cast<int>(t.kind) & 1) != 0 &&
           (traits_.scopes >> static_cast<int>(t.scope) & 1) != 0;
  }
  // Repairs start from a mask of the target's pattern, made by magnitude.
  absl::StatusOr<Mask> Prune(const PruneTarget& t, Executor* executor = nullptr) {
    PruneInputs in = problem_.Inputs(t);
    Mask start;
    if (traits_.repairs) {
      start = *(*BuiltinPruners().pruners.Create("weight/magnitude"))->Prune(in, {});
      in.start = &start;
    }
    return pruner_->Prune(in, {{}, executor});
  }
  std::vector<PruneTarget> Targets() const {
    std::vector<PruneTarget> all;
    for (double ratio : {0.0, 0.25, 0.5, 0.9, 1.0}) {
      for (Scope scope : {Scope::kRow, Scope::kLayer, Scope::kBlock})
        all.push_back({.scope = scope, .ratio = ratio, .block_rows = 4, .block_cols = 8});
    }
    all.push_back({.kind = Kind::kNofM, .n = 2, .m = 4});
    all.push_back({.kind = Kind::kNofM, .n = 4, .m = 8});
    all.push_back({.kind = Kind::kCount, .count = 5});
    std::vector<PruneTarget> served;
    for (const PruneTarget& t : all) {
      if (Serves(t)) served.push_back(t);
    }
    return served;
  }

  bool plugin_;
  std::string name_;
  const WeightPrunerFactory& factory_;
  PrunerTraits traits_;
  std::unique_ptr<const WeightPruner> pruner_;
  Problem problem_;
};
// What only makes sense out of a plug-in.
class WeightPrunerPlugins : public WeightPruners {};

INSTANTIATE_TEST_SUITE_P(All, WeightPruners,
                         testing::ValuesIn(AllNames(PluginRouters().pruners,
                                                    BuiltinPruners().pruners)),
                         MethodTestName);
INSTANTIATE_TEST_SUITE_P(All, WeightPrunerPlugins,
                         testing::ValuesIn(PluginNames(PluginRouters().pruners)), MethodTestName);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(WeightPrunerPlugins);

TEST_P(WeightPruners, CountsAreExactWhateverThePattern) {
  for (const PruneTarget& t : Targets()) {
    const auto mask = Prune(t);
    ASSERT_TRUE(mask.ok()) << mask.status();
    if (t.kind == Kind::kNofM) {
      for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t b = 0; b < kCols; b += t.m) {
          int64_t kept = 0;
          for (int64_t c = b; c < b + t.m; ++c) kept += mask->kept(r, c);
          ASSERT_EQ(kept, t.n) << r << " " << b;
        }
      }
      continue;
    }
    if (t.scope == Scope::kRow) {
      const int64_t want = t.kind == Kind::kCount
                               ? t.count
                               : kCols - static_cast<int64_t>(std::floor(t.ratio * kCols));
      for (int64_t r = 0; r < kRows; ++r) EXPECT_EQ(mask->CountKept(r), want) << t.ratio;
    } else if (t.scope == Scope::kLayer) {
      EXPECT_EQ(mask->CountKept(),
                kRows * kCols - static_cast<int64_t>(std::floor(t.ratio * kRows * kCols)));
    } else {
      const int64_t blocks = kRows / t.block_rows * (kCols / t.block_cols);
      const auto gone = static_cast<int64_t>(std::floor(t.ratio * static_cast<double>(blocks)));
      EXPECT_EQ(mask->CountKept(), (blocks - gone) * t.block_rows * t.block_cols);
    }
  }
}
TEST_P(WeightPruners, IsIdempotent) {
  for (const PruneTarget& t : Targets()) {
    const auto once = Prune(t);
    ASSERT_TRUE(once.ok()) << once.status();
    PruneInputs in = problem_.Inputs(t);
    in.start = &*once;
    const auto twice = pruner_->Prune(in, {});
    ASSERT_TRUE(twice.ok()) << twice.status();
    EXPECT_EQ(twice->CountKept(), once->CountKept());
    if (!traits_.repairs) {
      EXPECT_EQ(*twice, *once);
    }
  }
}
TEST_P(WeightPruners, RowsStandForThemselves) {
  const PruneTarget t = {.ratio = 0.5};
  if (!Serves(t)) GTEST_SKIP() << "no ratio a row";
  const auto all = Prune(t);
  ASSERT_TRUE(all.ok()) << all.status();
  for (int64_t r = 0; r < kRows; ++r) {
    PruneInputs in = problem_.Inputs(t);
    in.weights = {&problem_.w[r * kCols], 1, kCols, kCols};
    Mask start;
    if (traits_.repairs) {
      start = *(*BuiltinPruners().pruners.Create("weight/magnitude"))->Prune(in, {});
      in.start = &start;
    }
    const auto one = pruner_->Prune(in, {});
    ASSERT_TRUE(one.ok()) << one.status();
    for (int64_t c = 0; c < kCols; ++c) EXPECT_EQ(one->kept(0, c), all->kept(r, c));
  }
}
TEST_P(WeightPruners, ThreadsDoNotMatter) {
  for (const PruneTarget& t : Targets()) {
    const auto want = Prune(t);
    for (int threads : {2, 8}) {
      const auto executor = MakeTbbExecutor(threads);
      EXPECT_EQ(*Prune(t, executor.get()), *want);
    }
  }
}
// Applied, a mask leaves 0 where it dropped and, of a pruner that does not update, the weights as
// they were where it kept.
TEST_P(WeightPruners, AppliesMasks) {
  for (const PruneTarget& t : Targets()) {
    const auto mask = Prune(t);
    ASSERT_TRUE(mask.ok()) << mask.status();
    std::vector<float> want;
    for (int threads : {0, 2, 8}) {
      const auto executor = threads > 0 ? MakeTbbExecutor(threads) : nullptr;
      std::vector<float> w(kRows * kCols, NAN);
      const absl::Status s = pruner_->Apply(problem_.Inputs(t), *mask, {{}, executor.get()},
                                            {w.data(), kRows, kCols, kCols});
      ASSERT_TRUE(s.ok()) << s;
      for (int64_t i = 0; i < kRows * kCols; ++i) {
        const bool kept = mask->kept(i / kCols, i % kCols);
        if (!kept) {
          EXPECT_EQ(w[i], 0) << i;
        }
        if (kept && !traits_.updates) {
          EXPECT_EQ(w[i], problem_.w[i]) << i;
        }
      }
      if (threads == 0) want = w;
      EXPECT_EQ(w, want) << threads;
    }
  }
}
TEST_P(WeightPrunerPlugins, GiveTheSameMask) {
  auto built_in = *BuiltinPruners().pruners.Create(name_);
  EXPECT_EQ(traits_.title, built_in->traits().title);
  EXPECT_EQ(traits_.kinds, built_in->traits().kinds);
  for (const PruneTarget& t : Targets()) {
    const auto remote = Prune(t);
    std::swap(pruner_, built_in);
    EXPECT_EQ(*remote, *Prune(t));
    std::swap(pruner_, built_in);
  }
}
TEST_P(WeightPruners, ItsHelpReadsBack) {
  std::vector<KeyValue> options;
  const std::string help = factory_.Describe();
  for (absl::string_view line : absl::StrSplit(help, '\n', absl::SkipEmpty())) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    const std::pair<absl::string_view, absl::string_view> kv =
        absl::StrSplit(words[0], absl::MaxSplits('=', 1));
    options.push_back(kv);
  }
  auto made = factory_.Create(options, nullptr);
  ASSERT_TRUE(made.ok()) << made.status();
  const auto want = Prune(Targets()[0]);
  pruner_ = *std::move(made);
  EXPECT_EQ(*Prune(Targets()[0]), *want);
}
TEST_P(WeightPruners, ErrorsSayWhatWasGiven) {
  const auto error = [&](PruneInputs in) {
    return std::string(pruner_->Prune(in, {}).status().message());
  };
  PruneInputs in = problem_.Inputs({.ratio = NAN});
  if (Serves(in.target)) {
    EXPECT_THAT(error(in), HasSubstr("ratio nan is outside [0, 1]"));
  }
  in.target = {.kind = Kind::kNofM, .n = 2, .m = 7};
  if (Serves(in.target)) {
    EXPECT_THAT(error(in), HasSubstr("width 96 is no multiple of M = 7"));
  }
  const Mask wrong(kRows + 1, kCols, true);
  in = problem_.Inputs(Targets()[0]);
  in.start = &wrong;
  EXPECT_THAT(error(in), HasSubstr("start mask [13, 96] for weights [12, 96]"));
  in = problem_.Inputs(Targets()[0]);
  in.stats.sum_squares = in.stats.sum_squares.first(3);
  EXPECT_THAT(error(in), HasSubstr("sum_squares has 3 entries, wanted 96"));
  std::vector<float> odd = problem_.mean;
  odd[7] = NAN;
  in.stats.sum_squares = problem_.squares;
  in.stats.mean = odd;
  EXPECT_THAT(error(in), HasSubstr("mean of column 7 is nan; allowed are finite numbers"));
  in = problem_.Inputs(Targets()[0]);
  const Mask narrow(kRows, kCols - 1, true);
  std::vector<float> room(kRows * kCols);
  EXPECT_THAT(
      std::string(pruner_->Apply(in, narrow, {}, {room.data(), kRows, kCols, kCols}).message()),
      HasSubstr("mask [12, 95] for weights [12, 96]"));
  const Mask all(kRows, kCols, true);
  EXPECT_THAT(std::string(pruner_->Apply(in, all, {}, {room.data(), kRows, 8, kCols}).message()),
              HasSubstr("room for [12, 8]"));
  in = problem_.Inputs(Targets()[0]);
  in.weights.row_stride = 5;
  EXPECT_THAT(error(in), HasSubstr("row stride 5"));
  const std::vector<KeyValue> unknown = {{"no_such_key", "1"}};
  EXPECT_THAT(factory_.Create(unknown, nullptr).status().message(),
              HasSubstr("unknown key 'no_such_key'"));
}
}  // namespace
SLUICE_END_NAMESPACE
