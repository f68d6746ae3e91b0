#ifndef SLUICE_PRUNERS_TOKEN_RANDOM_RANDOM_H_
#define SLUICE_PRUNERS_TOKEN_RANDOM_RANDOM_H_
// The control that every token pruner has to beat: the same number of tokens, drawn at random.
#include "sluice/pruners/token/common/quota.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
namespace token {
// Items: the tokens of one sequence in order; units {0: compute, 1: skip}. Exactly round((1 -
// sparsity) items) compute, at least one: the first token and those with the largest of one draw a
// token, the same at any time and on any machine. O(items).
class RandomTokens {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "token/random",
      .domain = Domain::kToken,
      .combine = Combine::kReplace,
      .decides = Decides::kPrompt,
      .causal = false,
      .items_alone = false,
      .full_budget = "sparsity=0",
      .small_budget = "sparsity=0.75",
  };
  struct Config {
    double sparsity = 0;
    int64_t layer = 0;
    int64_t seed = 1;
    template <class V>
    void VisitFields(V&& v) {
      v("sparsity", sparsity, Range<double>{0, 1}, "share of the tokens that the block skips");
      v("layer", layer, Range<int64_t>{0, 1 << 16}, "of the block: each has draws of its own");
      v("seed", seed, Range<int64_t>{0, int64_t{1} << 62}, "of the draws");
    }
  };
  struct Plan : RoutePlanInfo {
    size_t order = 0;
  };

  static absl::StatusOr<RandomTokens> Create(const Config& c) {
    RandomTokens r;
    r.config_ = c;
    return r;
  }
  UnitInfo DescribeUnit(const Plan&, int64_t unit) const { return quota::DescribeUnit(unit); }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    Plan p;
    SLUICE_ASSIGN_OR_RETURN(p.shape, one_unit::Shape(s, 2, "width", 0, 0));
    WorkspaceLayout w;
    p.order = w.Add<int32_t>(s.items);
    p.workspace_bytes = w.bytes();
    p.max_entries = s.items;
    return p;
  }

  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    const int64_t n = in.items;
    const absl::Span<int32_t> order = absl::MakeSpan(ctx.workspace.At<int32_t>(p.order), n);
    quota::AssignTop(n, quota::Kept(config_.sparsity, n), order, out, [&](int64_t token) {
      return RandomUniform({static_cast<uint64_t>(config_.seed), 0,
                            static_cast<uint64_t>(config_.layer), 0, static_cast<uint64_t>(token)});
    });
    return absl::OkStatus();
  }

 private:
  Config config_;
};
}  // namespace token
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_TOKEN_RANDOM_RANDOM_H_
