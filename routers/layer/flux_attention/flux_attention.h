#ifndef SLUICE_ROUTERS_LAYER_FLUX_ATTENTION_FLUX_ATTENTION_H_
#define SLUICE_ROUTERS_LAYER_FLUX_ATTENTION_FLUX_ATTENTION_H_
// One decision per (prompt, layer), full or sparse attention for the whole layer, from pooled
// queries: "Flux Attention" (arXiv 2604.07394). Made once at prefill, frozen for decode.
#include <algorithm>
#include <vector>

#include "sluice/api/one_unit.h"
#include "sluice/api/router.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
// The feature: mean over heads and over the first and last `pool` tokens of the queries BEFORE
// RoPE. Queries arrive in any chunks, in order of position; the result does not depend on the
// chunks. Prompts shorter than 2 * pool count tokens twice, as the published code does.
class PrefixSuffixPool {
 public:
  // `sums`: 2 * dim doubles of the caller's.
  PrefixSuffixPool(int64_t prompt, int64_t pool, int64_t dim, double* sums)
      : prompt_(prompt), pool_(std::min(pool, prompt)), dim_(dim), sums_(sums) {
    std::fill(sums, sums + 2 * dim, 0.0);
  }
  // q [rows, heads, dim]; row 0 stands at `begin`. Rows that the pool does not want are not read.
  void Add(const HeadsView<const float>& q, int64_t begin) {
    for (int64_t i = 0; i < q.rows; ++i) {
      const int64_t p = begin + i;
      if (p < pool_) AddRow(q, i, sums_);
      if (p >= prompt_ - pool_ && p < prompt_) AddRow(q, i, sums_ + dim_);
    }
  }
  // Writes the mean [dim]; all zero for an empty prompt.
  void Finish(int64_t heads, float* mean) const {
    const double n = static_cast<double>(2 * pool_ * heads);
    for (int64_t i = 0; i < dim_; ++i)
      mean[i] = n > 0 ? static_cast<float>((sums_[i] + sums_[dim_ + i]) / n) : 0.0f;
  }

 private:
  void AddRow(const HeadsView<const float>& q, int64_t row, double* sum) {
    for (int64_t h = 0; h < q.heads; ++h) {
      const float* x = q.at(row, h);
      for (int64_t i = 0; i < dim_; ++i) sum[i] += static_cast<double>(x[i]);
    }
  }
  int64_t prompt_, pool_, dim_;
  double* sums_;
};

// Items are sequences, features [items, d] from PrefixSuffixPool, units {0: sparse, 1: full}. Full
// wins only if its logit is greater; a tie is sparse; a logit that is not a number is full, the
// exact side.
class FluxAttention {
 public:
  static constexpr absl::string_view kName = "flux_attention";
  static constexpr Domain kDomain = Domain::kLayer;
  enum Unit : int32_t { kSparse = 0, kFull = 1 };
  struct Config {
    int64_t layer = 0;
    template <class V>
    void VisitFields(V&& v) {
      v("layer", layer, Range<int64_t>{0, 1 << 16}, "decoder layer whose router this is");
    }
  };
  struct Plan : RoutePlanInfo {};

  static absl::StatusOr<FluxAttention> Create(const Config& c, const WeightSource& w) {
    SLUICE_ASSIGN_OR_RETURN(const int64_t layers, w.Int("sluice.flux.layers"));
    if (c.layer >= layers)
      return absl::OutOfRangeError(
          absl::StrCat("layer=", c.layer, ", but the weights have ", layers, " layers"));
    FluxAttention r;
    SLUICE_ASSIGN_OR_RETURN(r.dim_, w.Int("sluice.flux.dim"));
    SLUICE_ASSIGN_OR_RETURN(r.pool_, w.Int("sluice.flux.pool"));
    if (r.dim_ <= 0 || r.dim_ > 1 << 16 || r.pool_ <= 0)
      return absl::InvalidArgumentError(absl::StrCat(
          "sluice.flux.dim ", r.dim_, " and sluice.flux.pool ", r.pool_, " must be positive"));
    const int64_t d = r.dim_;
    const std::string at = absl::StrCat("blk.", c.layer, ".flux.");
    SLUICE_ASSIGN_OR_RETURN(r.enc0_, Linear::Read(w, at + "enc0", d, 8 * d));
    SLUICE_ASSIGN_OR_RETURN(r.enc1_, Linear::Read(w, at + "enc1", 8 * d, 2 * d));
    SLUICE_ASSIGN_OR_RETURN(r.head0_, Linear::Read(w, at + "head0", 2 * d, 4 * d));
    SLUICE_ASSIGN_OR_RETURN(r.head1_, Linear::Read(w, at + "head1", 4 * d, d));
    SLUICE_ASSIGN_OR_RETURN(r.head2_, Linear::Read(w, at + "head2", d, 2));
    return r;
  }
  int64_t dim() const { return dim_; }
  int64_t pool() const { return pool_; }
  size_t scratch_floats() const { return static_cast<size_t>(10 * dim_); }

  // logits [2] = (sparse, full) of one feature [d]; scratch: scratch_floats(). O(58 d^2).
  void Logits(const float* feature, float* scratch, float* logits) const {
    float *wide = scratch, *narrow = scratch + 8 * dim_;
    enc0_.Apply(feature, wide);
    SiLU(wide, 8 * dim_);
    enc1_.Apply(wide, narrow);
    head0_.Apply(narrow, wide);
    SiLU(wide, 4 * dim_);
    head1_.Apply(wide, narrow);
    SiLU(narrow, dim_);
    head2_.Apply(narrow, logits);
  }
  static Unit Decide(const float* logits) {
    return logits[kFull] > logits[kSparse] || std::isnan(logits[0]) || std::isnan(logits[1])
               ? kFull
               : kSparse;
  }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    SLUICE_RETURN_IF_ERROR(one_unit::CheckShape(s, dim_));
    Plan p;
    p.shape = s;
    p.workspace_bytes = scratch_floats() * sizeof(float);
    p.max_entries = s.items;
    return p;
  }
  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    SLUICE_RETURN_IF_ERROR(one_unit::CheckRun(p, in, ctx, out));
    float* scratch = ctx.workspace.At<float>(0);
    one_unit::Assign(in.features.rows, out, [&](int64_t i) {
      float logits[2];
      Logits(in.features.row(i), scratch, logits);
      return Decide(logits);
    });
    return absl::OkStatus();
  }

 private:
  int64_t dim_ = 0, pool_ = 0;
  Linear enc0_, enc1_, head0_, head1_, head2_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_LAYER_FLUX_ATTENTION_FLUX_ATTENTION_H_
