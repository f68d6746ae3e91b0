// Informed Routing fitted in closed form, on the bundled model.
#include "sluice/runtime/lab/calibrate_informed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/text/token_file.h"
#include "sluice/runtime/weights/gguf.h"
#include "sluice/tests/support/host_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace calibrate_informed_test {
TEST(CalibrateInformedRouting, MeetsItsBudgetAndBeatsChance) {
  auto all =
      ReadTokens(std::string(SLUICE_SOURCE_DIR) + "/examples/models/sluice-mini-eval.u16", 0, 2048);
  ASSERT_TRUE(all.ok());
  CalibrateOptions c;
  c.rank = 16;
  c.window = 1024;
  auto bytes = CalibrateInformedRouting(host::Mini(), {all->begin() + 1024, all->end()}, c);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  auto w = Gguf::Parse({reinterpret_cast<const std::byte*>(bytes->data()), bytes->size()});
  ASSERT_TRUE(w.ok()) << w.status();
  host::EngineOptions o;
  o.max_tokens = 1024;
  o.tokens.router = "token/informed_routing";
  o.tokens.weights = &*w;
  host::EngineOptions coin = o;
  const auto e = host::Make(o);
  const std::vector<int32_t> text(all->begin(), all->begin() + 1024);
  std::vector<double> shares;
  const double learned = *host::Perplexity(*e, text);
  for (int64_t u = 0; u < 12; ++u) shares.push_back(e->token_counters(u / 2, u % 2).sparsity());
  coin.tokens.random = shares;
  double sparsity = 0;
  for (double r : shares) sparsity += r / 12;
  EXPECT_NEAR(sparsity, 0.25, 0.08);
  EXPECT_LT(learned, *host::Perplexity(*host::Make(coin), text));
  c.sparsity = 1;
  EXPECT_THAT(std::string(CalibrateInformedRouting(host::Mini(), *all, c).status().message()),
              testing::HasSubstr("outside (0, 1)"));
  EXPECT_THAT(std::string(CalibrateInformedRouting(host::Mini(), {1, 2, 3}, {}).status().message()),
              testing::HasSubstr("more than the width, 384"));
}
}  // namespace calibrate_informed_test
}  // namespace lab
SLUICE_END_NAMESPACE
