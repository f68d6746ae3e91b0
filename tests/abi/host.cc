// A host as small as it can be, built by every compiler at hand: host PLUGIN prints the plan of the
// router "strided".
#include <cstdio>
#include <vector>

#include "sluice/api/one_unit.h"
#include "sluice/runtime/dynload/plugin_library.h"

namespace {
int Fail(const absl::Status& s) {
  std::fprintf(stderr, "%s\n", s.ToString().c_str());
  return 1;
}
}  // namespace

int main(int argc, char** argv) {
  using namespace sluice;
  Registry r;
  const auto info = LoadPlugin(argc > 1 ? argv[1] : "", r);
  if (!info.ok()) return Fail(info.status());
  const auto router = r.attention.Create("strided:stride=3,local=2");
  if (!router.ok()) return Fail(router.status());
  AttentionShape s;
  s.max_queries = s.max_kv = 1000;
  s.heads = 4;
  s.kv_heads = 2;
  s.head_dim = s.value_dim = 8;
  const auto plan = (*router)->MakePlan(s);
  const std::vector<float> x(1000 * 4 * 8);
  AttentionInputs in;
  in.q = {x.data(), 1000, 4, 8, 32, 8};
  in.k = in.v = AsKv({x.data(), 1000, 2, 8, 16, 8});
  const auto out = *PlanStorage::Create((*plan)->info().layout);
  RouterState state;
  InlineExecutor one;
  const absl::Status run = (*router)->Run(**plan, in, state, {{}, &one}, *out);
  if (!run.ok()) return Fail(run);
  const AttentionBranch& branch = out->plan().branches[0];
  for (size_t row = 0; row < branch.rows.count.size(); ++row) {
    std::printf("%zu:", row);
    for (uint32_t i = 0; i < branch.rows.count[row]; ++i)
      std::printf(" %u", branch.entries[branch.rows.begin[row] + i].start);
    std::printf("\n");
  }
  std::printf("%s\n", r.attention.Create("strided:stride=0").status().ToString().c_str());
}
