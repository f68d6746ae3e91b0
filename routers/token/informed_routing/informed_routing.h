#ifndef SLUICE_ROUTERS_TOKEN_INFORMED_ROUTING_INFORMED_ROUTING_H_
#define SLUICE_ROUTERS_TOKEN_INFORMED_ROUTING_INFORMED_ROUTING_H_
// Execute or approximate, per token and per residual unit: "Informed Routing" with the Lightweight
// Feature Forecaster (arXiv 2510.13831). Weights without a forecaster (rank 0) are the
// execute-or-skip baseline in the style of SkipGPT.
#include <algorithm>
#include <vector>

#include "sluice/api/one_unit.h"
#include "sluice/api/router.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
// f(h) = W2 phi(W1 h + b1) + b2, phi SiLU or none: what a unit would have added to the residual
// stream.
struct FeatureForecaster {
  Linear down, up;
  bool silu = true;
  bool present() const { return down.out > 0; }
  // y [n, dim] from h [n, dim]; scratch: scratch_floats(n). A forecaster of rank 0 gives 0. O(n dim
  // rank).
  void Apply(const float* h, int64_t n, float* y, float* scratch) const {
    if (!present()) {
      std::fill(y, y + n * up.out, 0.0f);
      return;
    }
    float* hidden = scratch;
    float* gemm = scratch + n * down.out;
    down.ApplyRows(h, n, hidden, gemm);
    if (silu) SiLU(hidden, n * down.out);
    up.ApplyRows(hidden, n, y, gemm);
  }
  size_t scratch_floats(int64_t n) const {
    return static_cast<size_t>(n * down.out) +
           kernels::GemmScratchFloats(std::max(down.in, down.out));
  }
};

// Items are tokens, features [items, dim] their normalised input of the unit, units {0: execute, 1:
// approximate}. A tie executes; a logit that is not a number executes.
class InformedRouting {
 public:
  static constexpr absl::string_view kName = "informed_routing";
  static constexpr Domain kDomain = Domain::kToken;
  enum Unit : int32_t { kExecute = 0, kApproximate = 1 };
  struct Config {
    int64_t layer = 0, unit = 0;
    double offset = 0;
    template <class V>
    void VisitFields(V&& v) {
      v("layer", layer, Range<int64_t>{0, 1 << 16}, "decoder layer");
      v("unit", unit, Range<int64_t>{0, 1}, "0: attention, 1: FFN");
      v("offset", offset, Range<double>{-1e6, 1e6},
        "added to the logit of executing, to serve another budget");
    }
  };
  struct Plan : RoutePlanInfo {
    ReluPair::Scratch router;
    size_t logits = 0;
  };

  static absl::StatusOr<InformedRouting> Create(const Config& c, const WeightSource& w) {
    InformedRouting r;
    SLUICE_ASSIGN_OR_RETURN(const int64_t layers, w.Int("sluice.informed.layers"));
    SLUICE_ASSIGN_OR_RETURN(r.dim_, w.Int("sluice.informed.dim"));
    SLUICE_ASSIGN_OR_RETURN(const int64_t hidden, w.Int("sluice.informed.hidden"));
    SLUICE_ASSIGN_OR_RETURN(const int64_t rank, w.Int("sluice.informed.rank"));
    SLUICE_ASSIGN_OR_RETURN(const int64_t silu, w.Int("sluice.informed.silu"));
    constexpr int64_t kMost = 1 << 16;
    if (c.layer >= layers)
      return absl::OutOfRangeError(
          absl::StrCat("layer=", c.layer, ", but the weights have ", layers, " layers"));
    if (r.dim_ <= 0 || hidden <= 0 || rank < 0 || r.dim_ > kMost || hidden > kMost || rank > kMost)
      return absl::InvalidArgumentError(absl::StrCat("sluice.informed.dim ", r.dim_, ", hidden ",
                                                     hidden, ", rank ", rank, "; allowed 1 to ",
                                                     kMost, ", and 0 for the rank"));
    const std::string at =
        absl::StrCat("blk.", c.layer, ".informed.", c.unit == 0 ? "attn." : "ffn.");
    SLUICE_ASSIGN_OR_RETURN(r.router_.first, Linear::Read(w, at + "router0", r.dim_, hidden));
    SLUICE_ASSIGN_OR_RETURN(r.router_.second, Linear::Read(w, at + "router1", hidden, 2));
    // The bias of the execute logit takes the offset, so that serving costs nothing more.
    r.router_.second.bias[kExecute] += static_cast<float>(c.offset);
    r.forecaster_.silu = silu != 0;
    r.forecaster_.down.in = r.forecaster_.up.out = r.dim_;
    if (rank > 0) {
      SLUICE_ASSIGN_OR_RETURN(r.forecaster_.down, Linear::Read(w, at + "down", r.dim_, rank));
      SLUICE_ASSIGN_OR_RETURN(r.forecaster_.up, Linear::Read(w, at + "up", rank, r.dim_));
    }
    return r;
  }
  int64_t dim() const { return dim_; }
  const FeatureForecaster& forecaster() const { return forecaster_; }
  // Multiply-adds of router and forecaster a token.
  int64_t router_macs() const { return dim_ * router_.first.out + 2 * router_.first.out; }
  int64_t forecast_macs() const { return 2 * dim_ * forecaster_.down.out; }

  static Unit Decide(const float* logits) {
    return logits[kApproximate] > logits[kExecute] ? kApproximate : kExecute;
  }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    SLUICE_RETURN_IF_ERROR(one_unit::CheckShape(s, dim_));
    Plan p;
    p.shape = s;
    WorkspaceLayout w;
    p.router = router_.Reserve(s.items, w);
    p.logits = w.Add<float>(s.items * 2);
    p.workspace_bytes = w.bytes();
    p.max_entries = s.items;
    return p;
  }
  // Logits [items, 2] of (execute, approximate). O(items dim hidden).
  void Logits(const Plan& p, const MatrixView<const float>& features, const RunContext& ctx,
              float* logits) const {
    router_.ApplyRows(features.data, features.rows, ctx.workspace, p.router, logits);
  }
  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    SLUICE_RETURN_IF_ERROR(one_unit::CheckRun(p, in, ctx, out));
    if (in.features.row_stride != dim_)
      return absl::InvalidArgumentError(absl::StrCat(
          "features of row stride ", in.features.row_stride, ", wanted packed rows of ", dim_));
    float* logits = ctx.workspace.At<float>(p.logits);
    Logits(p, in.features, ctx, logits);
    one_unit::Assign(in.features.rows, out, [&](int64_t i) { return Decide(logits + 2 * i); });
    return absl::OkStatus();
  }

 private:
  int64_t dim_ = 0;
  ReluPair router_;
  FeatureForecaster forecaster_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_TOKEN_INFORMED_ROUTING_INFORMED_ROUTING_H_
