#ifndef SLUICE_ROUTERS_ATTENTION_HIP_HIP_H_
#define SLUICE_ROUTERS_ATTENTION_HIP_HIP_H_
// HiP: per query block, a binary search over the history. Training-free; a representative may miss
// a spike. Sink and window lie outside the budget.
//
//   REFINE  the range between sink and window, cut into mask_k / block_k groups; each round halves
//           every group, until they are single blocks of block_k keys
//   SUM     a group's centre block stands for it
//   SCORE   the largest product of the centre block's keys with the block's (strided) queries
//   SELECT  the best half of the halves
//
// O(log(keys / mask_k) * mask_k) key reads per query block and head.
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/runtime/kernels/top_k/top_k.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class Hip {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "hip",
      .title =
          "A Training-free Sub-quadratic Cost Transformer Model Serving Framework With "
          "Hierarchically Pruned Attention",
      .arxiv = "2406.09827",
      .full_budget = "mask_k=2147483648",
      .small_budget = "mask_k=16,block_q=16,sink=4,window=16"};

  struct Config {
    int64_t mask_k = 512;
    int64_t block_q = 64;
    int64_t stride_q = 2;
    int64_t block_k = 2;
    int64_t sink = 16;
    int64_t window = 256;
    template <class V>
    void VisitFields(V&& v) {
      v("mask_k", mask_k, Range<int64_t>{2, kEverything},
        "keys kept per query block, besides sink and window");
      v("block_q", block_q, Range<int64_t>{1, 64}, "queries that share a list");
      v("stride_q", stride_q, Range<int64_t>{1, 64}, "every how many queries of a block score");
      v("block_k", block_k, Range<int64_t>{1, 64}, "keys per selected run");
      v("sink", sink, Range<int64_t>{0, 1 << 20}, "first keys always kept");
      v("window", window, Range<int64_t>{1, kEverything},
        "keys before the first query of a block always kept, itself included");
    }
  };
  struct Group {
    int64_t start = 0;  // in blocks of block_k after the sink
    int64_t len = 0;
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    Scratch<float> queries, keys, scores, best, gemm;
    Scratch<Group> groups, halves;
    Scratch<uint32_t> picked;
    Scratch<std::byte> top;
  };

  static absl::StatusOr<Hip> Create(const Config& c) {
    if (c.mask_k % c.block_k != 0)
      return absl::InvalidArgumentError(
          absl::StrCat("mask_k=", c.mask_k, " is not a multiple of block_k=", c.block_k));
    return Hip(c);
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    const int64_t groups = std::min(config_.mask_k, s.max_kv) / config_.block_k + 1;
    const int64_t rows = CeilDiv(config_.block_q, config_.stride_q);
    plan.queries = plan.AddScratch<float>(rows * s.head_dim);
    plan.keys = plan.AddScratch<float>(kBatch * config_.block_k * s.head_dim);
    plan.scores = plan.AddScratch<float>(rows * kBatch * config_.block_k);
    plan.best = plan.AddScratch<float>(2 * groups);
    plan.groups = plan.AddScratch<Group>(2 * groups);
    plan.halves = plan.AddScratch<Group>(2 * groups);
    plan.picked = plan.AddScratch<uint32_t>(2 * groups);
    plan.gemm = AddGemmScratch(plan, s.head_dim);
    plan.top = plan.AddScratch<std::byte>(kernels::TopKScratchBytes(2 * groups));
    plan.layout.max_tile = config_.block_q;
    plan.layout.AddBranch(
        {.rows = s.heads * MaxTiles(s, config_.block_q), .entry_slots = groups + 3});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState&, const RunContext& ctx,
                   PlanBuilder& out) const {
    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch, out.AddBranch({.scope = ListScope::kQueryHead,
                                                                .tile = config_.block_q}));
    ForEachRow(branch, plan, ctx, [&](int64_t head, int64_t tile, WorkerScratch scratch) {
      const TileQueries q = branch.Queries(tile);
      const int64_t sink = std::min(config_.sink, q.last + 1);
      const int64_t before_window = std::max(sink, q.first - config_.window + 1);
      const int64_t units = (before_window - sink) / config_.block_k;
      const int64_t local = sink + units * config_.block_k;

      const int64_t row = branch.row_of(head, tile);
      PlanEntry* entries = branch.entries(row);
      int64_t n = 0;
      if (sink > 0) entries[n++] = ExactEntry(0, sink, MaskClass::kCausal, true);
      if (units > 0)
        n += Search({plan, in, RowsOf(branch, tile), head, sink, scratch}, units, entries + n);
      if (local <= q.last)
        entries[n++] = ExactEntry(local, q.last + 1 - local, MaskClass::kCausal, true);
      branch.set_count(row, n);
    });
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kBatch = 64;  // groups whose keys are scored together
  struct Call {
    const Plan& plan;
    const AttentionInputs& in;
    TileRows rows;
    int64_t head;
    int64_t sink;
    WorkerScratch scratch;
  };
  explicit Hip(const Config& c) : config_(c) {}

  // Finds the kept blocks among `units`, ascending; returns how many entries were written.
  int64_t Search(const Call& c, int64_t units, PlanEntry* out) const {
    const int64_t budget = std::min(config_.mask_k / config_.block_k, units);
    Group* groups = c.scratch[c.plan.groups];
    Group* halves = c.scratch[c.plan.halves];
    ScaledQueries(c.in.q, c.rows, c.head, 1, c.scratch[c.plan.queries], config_.stride_q);

    int64_t live = budget;
    int64_t longest = 0;
    for (int64_t i = 0; i < budget; ++i) {
      const int64_t start = i * units / budget;
      groups[i] = {start, (i + 1) * units / budget - start};
      longest = std::max(longest, groups[i].len);
    }
    while (longest > 1) {
      const int64_t n = Halve(groups, live, halves);
      ScoreCentres(c, halves, n);
      uint32_t* picked = c.scratch[c.plan.picked];
      live = kernels::TopK(c.scratch[c.plan.best], n, std::min(budget, n), picked,
                           c.scratch[c.plan.top])
                 .count;
      longest = 0;
      for (int64_t i = 0; i < live; ++i) {
        groups[i] = halves[picked[i]];
        longest = std::max(longest, groups[i].len);
      }
    }

    for (int64_t i = 0; i < live; ++i)
      out[i] = ExactEntry(c.sink + groups[i].start * config_.block_k, config_.block_k);
    return live;
  }

  static int64_t Halve(const Group* groups, int64_t n, Group* out) {
    int64_t c = 0;
    for (int64_t i = 0; i < n; ++i) {
      const Group g = groups[i];
      const int64_t half = (g.len + 1) / 2;
      out[c++] = {g.start, half};
      if (g.len > 1) out[c++] = {g.start + half, g.len - half};
    }
    return c;
  }

  // plan.best [n] = the largest product of any query with any key of a group's centre block.
  void ScoreCentres(const Call& c, const Group* groups, int64_t n) const {
    const int64_t d = c.in.q.dim;
    const int64_t rows = CeilDiv(c.rows.count, config_.stride_q);
    const int64_t kv = c.head / GroupSize(c.plan.shape);
    float* keys = c.scratch[c.plan.keys];
    float* scores = c.scratch[c.plan.scores];
    float* best = c.scratch[c.plan.best];
    for (int64_t at = 0; at < n; at += kBatch) {
      const int64_t some = std::min(kBatch, n - at);
      const int64_t columns = some * config_.block_k;
      for (int64_t i = 0; i < some; ++i) {
        const Group g = groups[at + i];
        const int64_t centre = c.sink + (g.start + g.len / 2) * config_.block_k;
        KeysAsFloat(c.in.k, kv, centre, config_.block_k, keys + i * config_.block_k * d);
      }
      ScoreDot(c.scratch[c.plan.queries], rows, keys, columns, d, scores, c.scratch[c.plan.gemm]);
      for (int64_t i = 0; i < some; ++i) {
        float most = -HUGE_VALF;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t j = 0; j < config_.block_k; ++j)
            most = std::max(most, scores[r * columns + i * config_.block_k + j]);
        }
        best[at + i] = most;
      }
    }
  }

  Config config_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_HIP_HIP_H_
