#ifndef SLUICE_ROUTERS_LAYER_FLUX_ATTENTION_FLUX_ATTENTION_H_
#define SLUICE_ROUTERS_LAYER_FLUX_ATTENTION_FLUX_ATTENTION_H_
// One decision per (prompt, layer), full or sparse attention for the whole layer, from pooled
// queries: "Flux Attention" (arXiv 2604.07394). Made once at prefill, frozen for decode.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "sluice/api/one_unit.h"
#include "sluice/api/router.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
namespace layer {
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
  // q [rows, heads, dim]; row 0 stands at `begin`. Rows that the pool does not want are not read,
  // nor are those before or behind the prompt: padding.
  void Add(const HeadsView<const float>& q, int64_t begin) {
    for (int64_t i = 0; i < q.rows; ++i) {
      const int64_t p = begin + i;
      if (p >= 0 && p < pool_) AddRow(q, i, sums_);
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

// Items are sequences (prompts), one decision each: units {0: sparse, 1: full}. Full wins only if
// its logit is greater; a tie is sparse; a logit that is not a number is full, the exact side.
//
//   SUM     queries before RoPE over heads and over the first and last `pool` tokens
//   SCORE   an encoder d -> 8d -> 2d and a head 2d -> 4d -> d -> 2
//   SELECT  the greater logit
//
// Reads the queries of the first and last `pool` tokens of each item (plan head_rows, tail_rows):
// give these rows with their positions and the prompt's length, or all rows without. O(58 d^2) an
// item beside the pooling.
class FluxAttention {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "layer/flux_attention",
      .title = "Flux Attention",
      .arxiv = "2604.07394",
      .domain = Domain::kLayer,
      .combine = Combine::kReplace,
      .decides = Decides::kPrompt,
      .learned = true,
      .causal = false,  // the prompt's end decides for its beginning
      .reads = kReadsQueries,
      .may_read = kReadsPositions,
      .full_budget = "offset=1000000",
      .small_budget = "offset=-1000000",
  };
  enum Unit : int32_t { kSparse = 0, kFull = 1 };

  struct Config {
    int64_t layer = 0;
    double offset = 0;
    template <class V>
    void VisitFields(V&& v) {
      v("layer", layer, Range<int64_t>{0, 1 << 16}, "decoder layer whose router this is");
      v("offset", offset, Range<double>{-1e6, 1e6},
        "added to the logit of full attention, to serve another budget");
    }
  };
  struct Plan : RoutePlanInfo {
    size_t sums = 0, feature = 0, scratch = 0;
  };

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
    // The bias of the full logit takes the offset, so that serving costs nothing more.
    r.head2_.bias[kFull] += static_cast<float>(c.offset);
    return r;
  }
  static WeightKeys Weights(const Config& c, const RouteShape& s) {
    const int64_t d = s.head_dim;
    WeightKeys w;
    w.ints = {
        {"sluice.flux.layers", c.layer + 1}, {"sluice.flux.dim", d}, {"sluice.flux.pool", 10}};
    const std::string at = absl::StrCat("blk.", c.layer, ".flux.");
    w.AddLinear(at + "enc0", d, 8 * d);
    w.AddLinear(at + "enc1", 8 * d, 2 * d);
    w.AddLinear(at + "head0", 2 * d, 4 * d);
    w.AddLinear(at + "head1", 4 * d, d);
    w.AddLinear(at + "head2", d, 2);
    return w;
  }
  int64_t dim() const { return dim_; }
  int64_t pool() const { return pool_; }
  size_t scratch_floats() const { return static_cast<size_t>(10 * dim_); }

  // logits [2] = (sparse, full) of one feature [d]; scratch: scratch_floats(). O(58 d^2).
  void Logits(const float* feature, float* scratch, float* logits) const {
    float* wide = scratch;
    float* narrow = scratch + 8 * dim_;
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

  // Both modes are the host's. What a sparse layer costs depends on its pattern and on the length:
  // a quarter stands for it where budgets are compared.
  UnitInfo DescribeUnit(const Plan&, int64_t unit) const {
    return {UnitKind::kHost, unit == kFull ? 1.0 : 0.25, Concurrency::kAlone};
  }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    Plan p;
    SLUICE_ASSIGN_OR_RETURN(p.shape, one_unit::Shape(s, 2, "head width", s.head_dim, dim_));
    WorkspaceLayout w;
    p.sums = w.Add<double>(2 * dim_);
    p.feature = w.Add<float>(dim_);
    p.scratch = w.Add<float>(static_cast<int64_t>(scratch_floats()));
    p.workspace_bytes = w.bytes();
    p.max_entries = s.items;
    p.head_rows = pool_;
    p.tail_rows = pool_;
    return p;
  }

  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    float* feature = ctx.workspace.At<float>(p.feature);
    float* scratch = ctx.workspace.At<float>(p.scratch);
    for (int64_t i = 0; i < in.items; ++i) SLUICE_RETURN_IF_ERROR(CheckRows(in, i));

    one_unit::Assign(in.items, 2, out, [&](int64_t i) -> one_unit::Choice {
      Pool(in, i, ctx.workspace.At<double>(p.sums), feature);
      float logits[2];
      Logits(feature, scratch, logits);
      const Unit u = Decide(logits);
      return {u, std::isnan(logits[0]) || std::isnan(logits[1]) ? NAN : logits[u]};
    });
    return absl::OkStatus();
  }

 private:
  // The mean query [dim] of item i.
  void Pool(const RouteInputs& in, int64_t i, double* sums, float* mean) const {
    PrefixSuffixPool pool(in.length(i), pool_, dim_, sums);
    HeadsView<const float> row = in.queries;
    row.rows = 1;
    for (int64_t r = in.row_begin(i); r < in.row_end(i); ++r) {
      row.data = in.queries.at(r, 0);
      pool.Add(row, in.position(i, r));
    }
    pool.Finish(in.queries.heads, mean);
  }

  // Are all rows there that the pool counts?
  absl::Status CheckRows(const RouteInputs& in, int64_t i) const {
    const int64_t length = in.length(i);
    const int64_t want = std::min(pool_, length);
    int64_t head = 0;
    int64_t tail = 0;
    for (int64_t r = in.row_begin(i); r < in.row_end(i); ++r) {
      const int64_t p = in.position(i, r);
      head += p >= 0 && p < want;
      tail += p >= length - want && p < length;
    }
    if (head == want && tail == want) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        kTraits.name, ": item ", i, " of ", length, " tokens came with queries of ", head,
        " of its first and ", tail, " of its last ", want, " tokens; wanted all of them"));
  }

  int64_t dim_ = 0;
  int64_t pool_ = 0;
  Linear enc0_, enc1_, head0_, head1_, head2_;
};
}  // namespace layer
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_LAYER_FLUX_ATTENTION_FLUX_ATTENTION_H_
