#ifndef SLUICE_PRUNERS_HEAD_SHRP_SHRP_H_
#define SLUICE_PRUNERS_HEAD_SHRP_SHRP_H_
// SHRP, specialized head routing and pruning (arXiv 2512.20635). Every attention head of an encoder
// layer is an expert, one shared expander takes the place of output projection and FFN, a router
// picks the top expert. Training leaves usage counts; Freeze turns them into one kept head a layer,
// and the router and all other heads go. Only the abstract of the paper is at hand: what is pooled
// for the router, and the width of the expander, are inferred.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "sluice/api/one_unit.h"
#include "sluice/api/router.h"
#include "sluice/pruners/common/freeze.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
namespace head {
namespace shrp {
// The item of one sequence: the mean over its tokens, without padding. x [n, width] -> out [width].
// O(n width).
inline void PoolSequence(const float* x, int64_t n, int64_t width, float* out) {
  std::fill(out, out + width, 0.0f);
  for (int64_t t = 0; t < n; ++t)
    for (int64_t c = 0; c < width; ++c) out[c] += x[t * width + c];
  for (int64_t c = 0; c < width && n > 0; ++c) out[c] /= static_cast<float>(n);
}

// How often each expert of a layer was picked.
class Usage {
 public:
  explicit Usage(int64_t experts) : count_(experts) {}
  void Add(const Assignment& a) {
    for (int64_t i = 0; i < a.entries(); ++i) ++count_[a.unit[i]];
  }
  void Add(int32_t expert) { ++count_[expert]; }
  // Sums to 1; all 0 when nothing was counted.
  std::vector<double> shares() const {
    double all = 0;
    for (int64_t c : count_) all += static_cast<double>(c);
    std::vector<double> s;
    for (int64_t c : count_) s.push_back(all > 0 ? static_cast<double>(c) / all : 0);
    return s;
  }

 private:
  std::vector<int64_t> count_;
};

// Parameters and multiply-adds a token, of sequences of n tokens.
struct Cost {
  double parameters = 0, macs = 0;
};
inline Cost DenseLayer(double width, double ffn, double n) {
  return {4 * width * (width + 1) + 2 * width * ffn + width + ffn + 4 * width,
          4 * width * width + 2 * width * ffn + 2 * n * width};
}
inline Cost PrunedLayer(double width, double head, double expand, double n) {
  return {3 * head * (width + 1) + expand * (head + 1) + width * (expand + 1) + 2 * width,
          3 * width * head + expand * (head + width) + 2 * n * head};
}
}  // namespace shrp

// The router of one converted layer. Items: sequences, whose rows of `hidden` it pools, or tokens
// (one row an item); units: the heads; exactly one an item, weight 1. Ties go to the lowest head; a
// logit that is not a number is never picked, and an item with no number at all goes to head 0.
// O(rows width + items width heads).
class Shrp {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "head/shrp",
      .title = "SHRP: Specialized Head Routing and Pruning",
      .arxiv = "2512.20635",
      .domain = Domain::kHead,
      .combine = Combine::kReplace,
      .decides = Decides::kPrompt,
      .learned = true,
      .causal = false,  // of an encoder: a sequence's end decides for its beginning
      .reads = kReadsHidden,
      .full_budget = "",  // one head is all that an item ever gets
      .small_budget = "layer=0",
  };
  struct Config {
    int64_t layer = 0;
    template <class V>
    void VisitFields(V&& v) {
      v("layer", layer, Range<int64_t>{0, 1 << 16}, "encoder layer, from 0");
    }
  };
  struct Plan : RoutePlanInfo {
    size_t pooled = 0, logits = 0, gemm = 0;
  };

  // Reads blk.<layer>.shrp.router of the keys sluice.shrp.width and sluice.shrp.heads.
  static absl::StatusOr<Shrp> Create(const Config& c, const WeightSource& w) {
    SLUICE_ASSIGN_OR_RETURN(const int64_t width, w.Int("sluice.shrp.width"));
    SLUICE_ASSIGN_OR_RETURN(const int64_t heads, w.Int("sluice.shrp.heads"));
    constexpr int64_t kMost = 1 << 16;
    if (width < 1 || heads < 1 || width > kMost || heads > kMost)
      return absl::InvalidArgumentError(
          absl::StrCat("sluice.shrp.width ", width, ", heads ", heads, "; allowed 1 to ", kMost));
    Shrp r;
    SLUICE_ASSIGN_OR_RETURN(
        r.router_, Linear::Read(w, absl::StrCat("blk.", c.layer, ".shrp.router"), width, heads));
    return r;
  }
  static WeightKeys Weights(const Config& c, const RouteShape& s) {
    const int64_t heads = s.units > 0 ? s.units : 12;
    WeightKeys w;
    w.ints = {{"sluice.shrp.width", s.hidden}, {"sluice.shrp.heads", heads}};
    w.AddLinear(absl::StrCat("blk.", c.layer, ".shrp.router"), s.hidden, heads);
    return w;
  }
  int64_t width() const { return router_.in; }
  int64_t heads() const { return router_.out; }
  static int32_t Decide(const float* logits, int64_t heads) {
    return static_cast<int32_t>(
        std::max<int64_t>(0, pruning::MostUsed(absl::MakeConstSpan(logits, heads))));
  }
  // Head of one item. O(width heads). `logits` [heads].
  int32_t Pick(const float* feature, float* logits) const {
    router_.Apply(feature, logits);
    return Decide(logits, router_.out);
  }
  UnitInfo DescribeUnit(const Plan&, int64_t) const {
    return {UnitKind::kHost, 1.0 / static_cast<double>(router_.out), Concurrency::kAlone};
  }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    Plan p;
    SLUICE_ASSIGN_OR_RETURN(p.shape,
                            one_unit::Shape(s, router_.out, "hidden", s.hidden, router_.in));
    WorkspaceLayout w;
    p.pooled = w.Add<float>(s.items * router_.in);
    p.logits = w.Add<float>(s.items * router_.out);
    p.gemm = w.Add<float>(kernels::GemmScratchFloats(router_.in));
    p.workspace_bytes = w.bytes();
    p.max_entries = s.items;
    return p;
  }
  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    if (in.rows() > 0 && in.hidden.row_stride != router_.in)
      return absl::InvalidArgumentError(absl::StrCat("hidden of row stride ", in.hidden.row_stride,
                                                     ", wanted packed rows of ", router_.in));
    const float* pooled = in.hidden.data;
    if (!in.item_rows.empty()) {
      float* to = ctx.workspace.At<float>(p.pooled);
      for (int64_t i = 0; i < in.items; ++i)
        shrp::PoolSequence(in.hidden.row(in.row_begin(i)), in.row_end(i) - in.row_begin(i),
                           router_.in, to + i * router_.in);
      pooled = to;
    }

    float* logits = ctx.workspace.At<float>(p.logits);
    router_.ApplyRows(pooled, in.items, logits, ctx.workspace.At<float>(p.gemm));
    const int64_t heads = router_.out;
    one_unit::Assign(in.items, heads, out, [&](int64_t i) -> one_unit::Choice {
      const int32_t head = Decide(logits + i * heads, heads);
      return {head, logits[i * heads + head]};
    });
    for (int64_t i = 0; i < in.items * heads; ++i) out.nan_scores += std::isnan(logits[i]);
    for (int64_t i = 0; i < in.items; ++i)  // Assign has counted those it had to pick
      out.nan_scores -= std::isnan(logits[i * heads + out.unit[static_cast<size_t>(i)]]);
    return absl::OkStatus();
  }

 private:
  Linear router_;
};
}  // namespace head
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_HEAD_SHRP_SHRP_H_
