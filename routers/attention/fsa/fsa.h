#ifndef SLUICE_ROUTERS_ATTENTION_FSA_FSA_H_
#define SLUICE_ROUTERS_ATTENTION_FSA_FSA_H_
// Flash Sparse Attention (FSA): the selected branch of NSA, walked by blocks of keys. Each block is
// loaded once for all queries that chose it, instead of once for each of them, which pays where few
// query heads share a KV head. Learned; nothing beyond NSA's own weights, whose files it reads.
//
//   SELECT  NSA's blocks, a list a query and KV head (common/nsa_selection.h)
//   ATTEND  the selected blocks, causal, in one softmax
//
// Who walks is the executor's business: AttendMode::kKvMajor inverts the lists for 256 queries at a
// time and keeps their running state {m, l, o} beside the block. With tile > 1 the plan itself
// lists the union of so many queries' blocks under masks of who chose them, which the query-major
// executor walks in the same order. The paper writes a partial result for every (query, block) and
// reduces them in a further pass, because its workers own blocks; ours own queries and need neither
// buffer. Outputs are those of NSA's branch to the bit where blocks are of whole 64 keys.
//
// Ties go to the first block; a NaN among a head's scores leaves the group the forced blocks. The
// compressed branch, the window and the gates are NSA's (`nsa:tile=64` runs all three so).
#include "sluice/routers/attention/common/nsa_selection.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class Fsa {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "fsa",
      .title =
          "Flash Sparse Attention: An Alternative Efficient Implementation of Native Sparse "
          "Attention Kernel",
      .arxiv = "2508.18224",
      .token_causal = true,
      .reads_pre_rope = true,
      .full_budget = "n=2147483648",
      .small_budget = "l=8,stride=4,block=16,n=3,local=1"};

  struct Config {
    NsaRule rule;
    int64_t tile = 1;
    template <class V>
    void VisitFields(V&& v) {
      rule.VisitFields(v);
      v("tile", tile, Range<int64_t>{1, 64},
        "queries whose plan is one list under row masks; 1: a list a query, for either executor");
    }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    NsaSelection::Layout selection;
    Scratch<uint64_t> mask;  // of lists of single queries, which need none
  };

  static WeightKeys Weights(const Config& c, const AttentionShape& s) {
    WeightKeys keys;
    if (!c.rule.Learns()) return keys;
    const NsaDims dims = NsaDims::Of(s);
    dims.AddTo(keys);
    for (int64_t layer = 0; layer < s.layers; ++layer) {
      DeclareTensors(NsaKeyTensors<NsaKeyWeights>(c.rule, dims, layer), keys);
    }
    return keys;
  }

  static absl::StatusOr<Fsa> Create(const Config& c) {
    SLUICE_RETURN_IF_ERROR(c.rule.Check());
    if (!c.rule.Learns()) return Fsa(c);
    return absl::FailedPreconditionError(
        "needs trained weights and got none: give weights=FILE, or phi=mean,position=false");
  }
  static absl::StatusOr<Fsa> Create(const Config& c, const WeightSource& w) {
    SLUICE_RETURN_IF_ERROR(c.rule.Check());
    Fsa r(c);
    if (!c.rule.Learns()) return r;
    SLUICE_ASSIGN_OR_RETURN(r.dims_, NsaDims::Read(w));
    for (int64_t layer = 0; layer < r.dims_.layers; ++layer) {
      NsaKeyWeights& to = r.layers_.emplace_back();
      SLUICE_RETURN_IF_ERROR(
          ReadTensors(w, NsaKeyTensors<NsaKeyWeights>(c.rule, r.dims_, layer), to));
    }
    return r;
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    if (config_.rule.Learns()) SLUICE_RETURN_IF_ERROR(dims_.Check(s, /*with_width=*/false));
    Plan plan(s);
    const int64_t tile = config_.tile;
    plan.selection = selection_.AddTo(plan, tile);
    const int64_t slots = selection_.MaxBlocks(plan.selection, tile);
    plan.mask = plan.AddScratch<uint64_t>(slots);
    plan.layout.max_tile = tile;
    plan.layout.AddBranch({.rows = s.kv_heads * MaxTiles(s, tile),
                           .entry_slots = slots,
                           .mask = static_cast<uint8_t>(Masked())});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const {
    if (!layers_.empty() && (in.layer < 0 || in.layer >= std::ssize(layers_)))
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", in.layer, " of ", layers_.size(), " with weights"));
    const NsaKeyWeights& layer = layers_.empty() ? no_weights_ : layers_[in.layer];
    const auto compress = [&](int64_t kv, int64_t row, int64_t, WorkerScratch scratch) {
      selection_.CompressKey(plan.selection, in, layer, state, kv, row, scratch);
    };
    selection_.ForEachNewRow(plan, in, state, ctx, compress);

    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch, out.AddBranch({.encoding = Encoding::kBlocks,
                                                                .tile = config_.tile,
                                                                .block = config_.rule.block,
                                                                .mask = Masked()}));
    ForEachRow(branch, plan, ctx, [&](int64_t kv, int64_t tile, WorkerScratch scratch) {
      const int64_t row = branch.row_of(kv, tile);
      uint64_t* mask = Masked() ? branch.mask(row) : scratch[plan.mask];
      branch.set_count(row,
                       selection_.Select(plan.selection, in, state, kv, RowsOf(branch, tile),
                                         branch.Queries(tile), scratch, branch.entries(row), mask));
    });
    return absl::OkStatus();
  }

 private:
  explicit Fsa(const Config& c) : config_(c), selection_(c.rule) {}
  bool Masked() const { return config_.tile > 1; }

  Config config_;
  NsaSelection selection_;
  NsaDims dims_;
  std::vector<NsaKeyWeights> layers_;  // empty where the rule needs no weights
  NsaKeyWeights no_weights_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_FSA_FSA_H_
