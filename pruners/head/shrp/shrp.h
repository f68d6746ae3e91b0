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
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
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
    for (int64_t i = 0; i < a.row_ptr[a.items]; ++i) ++count_[a.unit[i]];
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

// The expert that stays: the most used; ties to the lowest index, NaN never. Empty: -1.
template <class T>
int64_t Freeze(absl::Span<const T> usage) {
  int64_t best = -1;
  for (size_t e = 0; e < usage.size(); ++e) {
    if (std::isnan(static_cast<double>(usage[e]))) continue;
    if (best < 0 || usage[e] > usage[best]) best = static_cast<int64_t>(e);
  }
  return best;
}

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

// The router of one converted layer. Items: sequences (shrp::PoolSequence of the layer's input) or
// tokens; features [items, width]; units: the heads; exactly one a item, weight 1. Ties go to the
// lowest head; a logit that is not a number is never picked, and an item with no number at all goes
// to head 0.
class Shrp {
 public:
  static constexpr absl::string_view kName = "shrp";
  static constexpr Domain kDomain = Domain::kHead;
  struct Config {
    int64_t layer = 0;
    template <class V>
    void VisitFields(V&& v) {
      v("layer", layer, Range<int64_t>{0, 1 << 16}, "encoder layer, from 0");
    }
  };
  struct Plan : RoutePlanInfo {
    size_t logits = 0, gemm = 0;
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
  int64_t width() const { return router_.in; }
  int64_t heads() const { return router_.out; }
  static int32_t Decide(const float* logits, int64_t heads) {
    return static_cast<int32_t>(
        std::max<int64_t>(0, shrp::Freeze(absl::MakeConstSpan(logits, heads))));
  }
  // Head of one item. O(width heads). `logits` [heads].
  int32_t Pick(const float* feature, float* logits) const {
    router_.Apply(feature, logits);
    return Decide(logits, router_.out);
  }
  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    SLUICE_RETURN_IF_ERROR(one_unit::CheckShape(s, router_.in, router_.out));
    Plan p;
    p.shape = s;
    WorkspaceLayout w;
    p.logits = w.Add<float>(s.items * router_.out);
    p.gemm = w.Add<float>(static_cast<int64_t>(kernels::GemmScratchFloats(router_.in)));
    p.workspace_bytes = w.bytes();
    p.max_entries = s.items;
    return p;
  }
  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    SLUICE_RETURN_IF_ERROR(one_unit::CheckRun(p, in, ctx, out));
    if (in.features.row_stride != router_.in)
      return absl::InvalidArgumentError(absl::StrCat("features of row stride ",
                                                     in.features.row_stride,
                                                     ", wanted packed rows of ", router_.in));
    float* logits = ctx.workspace.At<float>(p.logits);
    router_.ApplyRows(in.features.data, in.features.rows, logits, ctx.workspace.At<float>(p.gemm));
    one_unit::Assign(in.features.rows, out,
                     [&](int64_t i) { return Decide(logits + i * router_.out, router_.out); });
    out.units = router_.out;
    return absl::OkStatus();
  }

 private:
  Linear router_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_HEAD_SHRP_SHRP_H_
