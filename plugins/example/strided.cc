// A router as a plug-in, complete: every query sees the first block, its own neighbourhood, and
// every stride-th block.
#include "sluice/api/plugin.h"

namespace {
using namespace sluice;

class Strided {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "strided",  // one list a tile of 64 queries: not token-causal
      .full_budget = "stride=1",
      .small_budget = "stride=4,local=1"};

  struct Config {
    int64_t stride = 8;
    int64_t local = 4;
    template <class V>
    void VisitFields(V&& v) {
      v("stride", stride, Range<int64_t>{1, 1 << 20},
        "every how many blocks of 64 keys one is kept");
      v("local", local, Range<int64_t>{1, 1 << 20}, "last blocks always kept");
    }
  };
  struct Plan : AttentionPlanInfo {};

  static absl::StatusOr<Strided> Create(const Config& c) { return Strided{c}; }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan;
    plan.layout.max_tile = kBlock;
    plan.layout.AddBranch({.rows = (s.max_queries + kBlock - 1) / kBlock,
                           .entry_slots = (s.max_kv + kBlock - 1) / kBlock});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState&, const RunContext&,
                   PlanBuilder& out) const {
    out.Begin(in.q_begin, in.q.rows, in.kv_len(), plan.shape.heads, plan.shape.kv_heads);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch, out.AddBranch({.encoding = Encoding::kBlocks,
                                                                .scope = ListScope::kAllHeads,
                                                                .block = kBlock}));
    for (int64_t tile = 0; tile < branch.num_tiles(); ++tile) {
      const TileQueries q = branch.Queries(tile);
      int64_t n = 0;
      for (int64_t b = 0; b <= q.last / kBlock; ++b) {
        if (b % config.stride != 0 && b <= q.first / kBlock - config.local) continue;
        branch.entries(tile)[n++] = {.start = static_cast<uint32_t>(b), .len = 1};
      }
      branch.set_count(tile, n);
    }
    return absl::OkStatus();
  }
  Config config;

 private:
  static constexpr int64_t kBlock = 64;
};
}  // namespace
SLUICE_PLUGIN("strided", "2.0.0", Strided)
