#include "sluice/pruners/token/random/random.h"

#include <gtest/gtest.h>

#include "sluice/pruners/builtin.h"
#include "sluice/pruners/token/random/random_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace token {
namespace random_test {
std::vector<int32_t> Route(const std::string& spec, int64_t n) {
  auto router = BuiltinPruners().routers.Create(spec);
  EXPECT_TRUE(router.ok()) << router.status();
  auto plan = (*router)->MakePlan({.items = n});
  EXPECT_TRUE(plan.ok()) << plan.status();
  OwnedWorkspace memory((*plan)->info().workspace_bytes);
  AssignmentBuffer out;
  out.Reserve(n, (*plan)->info().max_entries);
  RouteInputs in;
  in.items = n;
  const absl::Status run = (*router)->Run(**plan, in, {memory.workspace(), nullptr}, out.view());
  EXPECT_TRUE(run.ok()) << run;
  const Assignment& a = out.view();
  return {a.unit.begin(), a.unit.begin() + a.entries()};
}

TEST(RandomTokens, AgreesWithTheReference) {
  for (int64_t n : {0, 1, 2, 7, 100}) {
    for (double sparsity : {0.0, 0.3, 0.5, 0.99, 1.0}) {
      for (int seed : {1, 2}) {
        const std::string spec =
            absl::StrCat("token/random:sparsity=", sparsity, ",layer=3,seed=", seed);
        EXPECT_EQ(Route(spec, n), reference::RandomTokens(n, sparsity, 3, seed))
            << spec << " " << n;
      }
    }
  }
}

TEST(RandomTokens, LayersAndSeedsDrawOnTheirOwn) {
  const std::vector<int32_t> one = Route("token/random:sparsity=0.5", 200);
  EXPECT_EQ(one, Route("token/random:sparsity=0.5", 200));
  EXPECT_NE(one, Route("token/random:sparsity=0.5,layer=1", 200));
  EXPECT_NE(one, Route("token/random:sparsity=0.5,seed=2", 200));
}
}  // namespace random_test
}  // namespace token
SLUICE_END_NAMESPACE
