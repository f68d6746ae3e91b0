#include "sluice/routers/attention/oracle_block_topk/oracle_block_topk.h"

#include <gtest/gtest.h>

#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace {
TEST(OracleBlockTopK, PicksTheBlocksOfMostMass) {
  const AttentionData a = MakeAttentionData(DataKind::kClustered, 600, 64, 2, 1, 32, 32, 1);
  HarnessOptions o;
  o.quality = true;
  o.chunk = 1;  // one query a list: no other choice of as many blocks can carry more, so regret is
                // the two heads' sharing
  const RoutedRun r = RunRouter("oracle_block_topk:block=64,k=3,sink=0,local=1", a, o);
  const RoutedRun pool = RunRouter("mean_pool:block=64,k=3,sink=0,local=1", a, o);
  EXPECT_LE(r.quality.regret.mean(), pool.quality.regret.mean() + 1e-9);
}
}  // namespace
SLUICE_END_NAMESPACE
