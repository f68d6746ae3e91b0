// A dense model's FFN in blocks, fitted on the bundled model.
#include "sluice/runtime/lab/calibrate_spt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/text/token_file.h"
#include "sluice/runtime/weights/gguf.h"
#include "sluice/tests/support/host_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace calibrate_spt_test {
using testing::HasSubstr;

std::vector<int32_t> Text(int64_t from, int64_t n) {
  auto tokens =
      ReadTokens(std::string(SLUICE_SOURCE_DIR) + "/examples/models/sluice-mini-eval.u16", from, n);
  EXPECT_TRUE(tokens.ok()) << tokens.status();
  return *tokens;
}
struct Routed {
  double perplexity = 0;
  int64_t macs = 0;
};
Routed RunSpt(const SptOptions& o, int64_t m) {
  const auto bytes = CalibrateSpt(host::Mini(), Text(4096, 512), o);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  const auto w = Gguf::Parse({reinterpret_cast<const std::byte*>(bytes->data()), bytes->size()});
  EXPECT_TRUE(w.ok()) << w.status();
  host::EngineOptions e;
  e.max_tokens = 400;
  e.chunk = 150;
  e.experts.router = absl::StrCat("expert/spt:m=", m);
  e.experts.weights = &*w;
  const auto engine = host::Make(e);
  const auto perplexity = host::Perplexity(*engine, Text(0, 400));
  EXPECT_TRUE(perplexity.ok()) << perplexity.status();
  EXPECT_EQ(engine->expert_rows(0, 0), 0);  // none of the model's
  return {*perplexity, engine->linear().macs};
}

TEST(CalibrateSpt, AllBlocksAreTheDenseModelAndHalfCostHalf) {
  SptOptions o;
  o.turns = 4;
  host::EngineOptions plain;
  plain.max_tokens = 400;
  plain.chunk = 150;
  const auto engine = host::Make(plain);
  const double dense = *host::Perplexity(*engine, Text(0, 400));
  const Routed all = RunSpt(o, 0);
  EXPECT_NEAR(all.perplexity, dense, 1e-3 * dense);
  EXPECT_EQ(all.macs, engine->linear().macs);
  const Routed half = RunSpt(o, 2);
  EXPECT_GT(half.perplexity, dense);
  const host::ModelShape& s = host::Mini().shape;
  EXPECT_EQ(all.macs - half.macs, s.layers * 400 * 3 * s.width * s.ffn / 2);
  o.random_router = true;
  EXPECT_LT(half.perplexity, RunSpt(o, 2).perplexity);
}
TEST(CalibrateSpt, EveryOrderIsAPermutation) {
  const auto seen = ObserveFfn(host::Mini(), Text(0, 450), 200, 1);
  ASSERT_TRUE(seen.ok()) << seen.status();
  for (const BlockOrder order :
       {BlockOrder::kClustered, BlockOrder::kAsTheyStand, BlockOrder::kRandom}) {
    SptOptions o;
    o.order = order;
    o.turns = 2;
    const auto split = SplitFfn(host::Mini(), 1, (*seen)[1], o);
    ASSERT_TRUE(split.ok()) << split.status();
    EXPECT_EQ((*seen)[1].tokens, 450);
    std::vector<int32_t> sorted = split->order;
    EXPECT_EQ(std::is_sorted(sorted.begin(), sorted.end()), order == BlockOrder::kAsTheyStand);
    std::sort(sorted.begin(), sorted.end());
    std::vector<int32_t> all(sorted.size());
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(sorted, all);
    EXPECT_EQ(std::ssize(all), host::Mini().shape.ffn);
  }
}
TEST(CalibrateSpt, ErrorsSayWhatIsWrong) {
  const auto said = [](const SptOptions& o, int64_t tokens) {
    return std::string(CalibrateSpt(host::Mini(), Text(0, tokens), o).status().message());
  };
  EXPECT_THAT(said({.blocks = 5}, 400), HasSubstr("5 blocks of 896 neurons"));
  EXPECT_THAT(said({.blocks = 0}, 400), HasSubstr("0 blocks"));
  EXPECT_THAT(said({}, 384), HasSubstr("more than the width, 384"));
  EXPECT_THAT(said({.window = 0}, 400), HasSubstr("windows of 0"));
  const auto moe = host::LoadModel(std::string(SLUICE_SOURCE_DIR) +
                                   "/examples/models/sluice-mini-moe-q8_0.gguf");
  ASSERT_TRUE(moe.ok()) << moe.status();
  EXPECT_THAT(CalibrateSpt(*moe, Text(0, 400), {}).status().message(),
              HasSubstr("a Mixture of 8 experts already"));
  EXPECT_THAT(host::CreateWithPolicy(host::Mini(), {}, "expert/top_k:k=1").status().message(),
              HasSubstr("the model has no experts and no gate"));
}
}  // namespace calibrate_spt_test
}  // namespace lab
SLUICE_END_NAMESPACE
