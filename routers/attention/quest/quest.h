#ifndef SLUICE_ROUTERS_ATTENTION_QUEST_QUEST_H_
#define SLUICE_ROUTERS_ATTENTION_QUEST_QUEST_H_
// Quest: pages of keys by the highest logit that any of their keys could have. Training-free, meant
// for decode.
//
//   SUM     element-wise maximum and minimum of each page of keys, appended as keys arrive; of a
//           tile's last page, of the keys up to the tile's last query
//   SCORE   sum over elements of max(q min, q max) * scale, summed over the group's heads; the
//           largest over the tile's queries
//   SELECT  the best k pages; the last ones, up to the tile's own, are kept beside them
//   ATTEND  the selected pages, causal
//
// The bound is never below the logit of a key of the page. The group's sum, the page and the budget
// are those of public source. A prompt's tile takes the largest over its queries, which the paper,
// of single queries, has no need of; nor has it the share p, here of the softmax of the bounds.
// Recalled, not checked: the paper leaves two layers dense, per_layer(2*dense | N*quest). Keys or
// queries of NaN make NaN of their bounds, which nobody chooses; ties go to the lowest page.
//
// A query's positive elements meet the maxima and its negative ones the minima, so the bound is one
// product of twice the width, and the sum over a group is the bound of the summed parts. Planning
// costs 2 / page of QK^T, a group's sum counting as one head. State: two keys a page and KV head.
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/routers/attention/common/select.h"
#include "sluice/routers/attention/common/sum.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class Quest {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "quest",
      .title = "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference",
      .arxiv = "2406.10774",
      .full_budget = "k=2147483648",
      .small_budget = "page=16,k=4"};

  enum class Group : uint8_t { kSum, kMax };
  struct Config {
    int64_t page = 16;
    BlockBudget budget = {.k = 64, .sink = 0, .local = 1, .count_forced = false};
    Group group = Group::kSum;
    template <class V>
    void VisitFields(V&& v) {
      v("page", page, Range<int64_t>{1, 1024}, "keys per page, the blocks of the settings below");
      budget.VisitFields(v);
      v("group", group, Choices{"sum", "max"},
        "what the bounds of a group's heads become: their sum, or the largest");
    }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    BlockBounds::Layout bounds;
    Scratch<float> queries, last, scores, best, gemm;
    Scratch<std::byte> select;
  };

  static absl::StatusOr<Quest> Create(const Config& c) {
    SLUICE_RETURN_IF_ERROR(c.budget.Check());
    return Quest(c);
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    const int64_t width = 2 * int64_t{s.head_dim};
    plan.bounds = BlockBounds::AddTo(plan, s.kv_heads, config_.page, s.head_dim);
    const int64_t pages = plan.bounds.blocks;
    plan.queries = plan.AddScratch<float>(kTile * width);
    plan.last = plan.AddScratch<float>(width);
    plan.scores = plan.AddScratch<float>(kTile * pages);
    plan.best = plan.AddScratch<float>(pages);
    plan.gemm = AddGemmScratch(plan, width);
    plan.select = AddSelectScratch(plan, pages);
    plan.layout.max_tile = kTile;
    plan.layout.AddBranch({.rows = s.kv_heads * MaxTiles(s, kTile), .entry_slots = pages});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const {
    BlockBounds bounds(state, plan.bounds);
    bounds.Append(in.k, *ctx.executor);

    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch,
                            out.AddBranch({.encoding = Encoding::kBlocks, .block = config_.page}));
    ForEachRow(branch, plan, ctx, [&](int64_t kv, int64_t tile, WorkerScratch scratch) {
      const TileQueries q = branch.Queries(tile);
      const int64_t pages = q.last / config_.page + 1;
      float* best = scratch[plan.best];
      std::fill(best, best + pages, -HUGE_VALF);  // what only NaN speaks for is never chosen

      // What comes after the tile has no say, and chunks give the lists of one call.
      float* last = scratch[plan.last];
      bounds.Before(in.k, kv, pages - 1, q.last + 1, last);

      const TileRows rows = RowsOf(branch, tile);
      const int64_t group = GroupSize(plan.shape);
      const int64_t together = config_.group == Group::kSum ? group : 1;
      for (int64_t head = kv * group; head < (kv + 1) * group; head += together) {
        SplitQueries(in, rows, head, together, scratch[plan.queries]);
        ScoreDotLast(scratch[plan.queries], rows.count, bounds.At(kv, 0), last, pages, 2 * in.q.dim,
                     scratch[plan.scores], scratch[plan.gemm]);
        MaxOverRows(scratch[plan.scores], rows.count, pages, best);
      }
      if (config_.budget.k == 0) kernels::Softmax(best, pages);

      const int64_t row = branch.row_of(kv, tile);
      branch.set_count(row, SelectBlocks(config_.budget, best, pages, q.first / config_.page,
                                         scratch[plan.select], branch.entries(row)));
    });
    return absl::OkStatus();
  }

 private:
  explicit Quest(const Config& c) : config_(c) {}

  // out [rows, 2, d]: the tile's scaled queries split by sign, of `together` heads summed.
  static void SplitQueries(const AttentionInputs& in, TileRows rows, int64_t head, int64_t together,
                           float* out) {
    const int64_t d = in.q.dim;
    std::fill(out, out + rows.count * 2 * d, 0.0f);
    for (int64_t i = 0; i < rows.count; ++i) {
      for (int64_t h = head; h < head + together; ++h)
        AddSplitBySign(in.q.at(rows.begin + i, h), d, in.scale, out + i * 2 * d);
    }
  }

  Config config_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_QUEST_QUEST_H_
