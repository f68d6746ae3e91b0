#ifndef SLUICE_ROUTERS_ATTENTION_SINK_WINDOW_SINK_WINDOW_H_
#define SLUICE_ROUTERS_ATTENTION_SINK_WINDOW_SINK_WINDOW_H_
// The first keys and a sliding window, whatever the scores: the lower anchor of every density
// curve. With last_dense, the prompt's last queries see everything: the triangle shape of
// TriangleMix and of Flux Attention's `triangle` mode (arXiv 2604.07394).
#include "sluice/routers/attention/common/plan.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class SinkWindow {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "sink_window",
      .title = "Efficient Streaming Language Models with Attention Sinks",
      .arxiv = "2309.17453",
      .token_causal = true,
      .scattered_queries = true,
      .full_budget = "sink=0,window=2147483648",
      .small_budget = "sink=4,window=32"};

  struct Config {
    int64_t sink = 64;
    int64_t window = 1024;
    int64_t last_dense = 0;
    template <class V>
    void VisitFields(V&& v) {
      v("sink", sink, Range<int64_t>{0, 1 << 20}, "first keys that every query sees");
      v("window", window, Range<int64_t>{1, kEverything},
        "last keys that a query sees, itself included");
      v("last_dense", last_dense, Range<int64_t>{0, 1 << 20},
        "last prompt queries that see every key, rounded up to tiles of 64; needs a host that "
        "gives "
        "prompt_end");
    }
  };
  using Plan = RouterPlan;

  static absl::StatusOr<SinkWindow> Create(const Config& c) { return SinkWindow(c); }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    plan.layout.max_tile = kTile;
    plan.layout.AddBranch({.rows = MaxTiles(s, kTile), .entry_slots = 2});
    if (config_.last_dense == 0) {
      plan.reach_first = config_.sink;
      plan.reach_last = config_.window;
    }
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState&, const RunContext&,
                   PlanBuilder& out) const {
    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch, out.AddBranch({.scope = ListScope::kAllHeads,
                                                                .window = config_.window}));

    for (int64_t tile = 0; tile < branch.num_tiles(); ++tile)
      branch.set_count(tile, Row(branch.Queries(tile), in.prompt_end, branch.entries(tile)));
    return absl::OkStatus();
  }

 private:
  explicit SinkWindow(const Config& c) : config_(c) {}

  int64_t Row(const TileQueries& q, int64_t prompt_end, PlanEntry* out) const {
    if (q.last >= prompt_end - config_.last_dense && q.last < prompt_end) {
      out[0] = ExactEntry(0, q.last + 1, MaskClass::kCausal, true);
      return 1;
    }

    int64_t n = 0;
    const int64_t sink = std::min(config_.sink, q.last + 1);
    if (sink > 0) out[n++] = ExactEntry(0, sink, MaskClass::kCausal, true);

    const int64_t lo = std::max(sink, q.first - config_.window + 1);
    if (lo <= q.last) out[n++] = ExactEntry(lo, q.last + 1 - lo, MaskClass::kLowerBound, true);
    return n;
  }

  Config config_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_SINK_WINDOW_SINK_WINDOW_H_
