#ifndef SLUICE_ROUTERS_TOKEN_INFORMED_ROUTING_INFORMED_ROUTING_H_
#define SLUICE_ROUTERS_TOKEN_INFORMED_ROUTING_INFORMED_ROUTING_H_
// Execute or approximate, per token and per residual unit: "Informed Routing" with the Lightweight
// Feature Forecaster (arXiv 2510.13831). Weights without a forecaster (rank 0) are the
// execute-or-skip baseline in the style of SkipGPT.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "sluice/api/one_unit.h"
#include "sluice/api/router.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
namespace token {
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

// Items are tokens, hidden [items, dim] their normalised input of the unit; units {0: execute, the
// host's; 1: approximate, the router's own forecaster}. A tie executes; a logit that is not a
// number executes.
//
//   SCORE   a two-layer ReLU network over the token's hidden state
//   SELECT  approximate where its logit is the greater; eval_mode=sampled: where it is the greater
//           after Gumbel noise of temperature 1, drawn by seed, layer, unit and position (the
//           place in the call, where none are given), as the paper's released evaluation decides
//   own     y = W2 SiLU(W1 h + b1) + b2: what the unit would have added to the residual stream
//
// O(items dim hidden), and O(dim rank) a forecast.
class InformedRouting {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "token/informed_routing",
      .title = "Informed Routing",
      .arxiv = "2510.13831",
      .domain = Domain::kToken,
      .combine = Combine::kWeightedSum,  // of what the residual stream gains
      .decides = Decides::kToken,
      .learned = true,
      .reads = kReadsHidden,
      .may_read = kReadsPositions,  // names the tokens whose noise is drawn
      .full_budget = "offset=1000000",
      .small_budget = "offset=-1000000",
  };
  enum Unit : int32_t { kExecute = 0, kApproximate = 1 };
  enum class EvalMode : uint8_t { kArgmax, kSampled };

  struct Config {
    int64_t layer = 0;
    int64_t unit = 0;
    double offset = 0;
    EvalMode eval_mode = EvalMode::kArgmax;
    int64_t seed = 1;
    template <class V>
    void VisitFields(V&& v) {
      v("layer", layer, Range<int64_t>{0, 1 << 16}, "decoder layer");
      v("unit", unit, Range<int64_t>{0, 1}, "0: attention, 1: FFN");
      v("offset", offset, Range<double>{-1e6, 1e6},
        "added to the logit of executing, to serve another budget");
      v("eval_mode", eval_mode, Choices{"argmax", "sampled"},
        "the greater logit, or the greater after Gumbel noise, as the released evaluation has it");
      v("seed", seed, Range<int64_t>{0, int64_t{1} << 62}, "of the noise");
    }
  };
  struct Plan : RoutePlanInfo {
    ReluPair::Scratch router;
    size_t logits = 0;
  };

  static absl::StatusOr<InformedRouting> Create(const Config& c, const WeightSource& w) {
    InformedRouting r;
    r.layer_ = c.layer;
    r.unit_ = c.unit;
    r.eval_mode_ = c.eval_mode;
    r.seed_ = static_cast<uint64_t>(c.seed);
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

    const std::string at = Prefix(c);
    SLUICE_ASSIGN_OR_RETURN(r.router_.first, Linear::Read(w, at + "router0", r.dim_, hidden));
    SLUICE_ASSIGN_OR_RETURN(r.router_.second, Linear::Read(w, at + "router1", hidden, 2));
    // The bias of the execute logit takes the offset, so that serving costs nothing more.
    r.router_.second.bias[kExecute] += static_cast<float>(c.offset);

    r.forecaster_.silu = silu != 0;
    r.forecaster_.down.in = r.dim_;
    r.forecaster_.up.out = r.dim_;
    if (rank > 0) {
      SLUICE_ASSIGN_OR_RETURN(r.forecaster_.down, Linear::Read(w, at + "down", r.dim_, rank));
      SLUICE_ASSIGN_OR_RETURN(r.forecaster_.up, Linear::Read(w, at + "up", rank, r.dim_));
    }
    return r;
  }
  static WeightKeys Weights(const Config& c, const RouteShape& s) {
    constexpr int64_t kHidden = 12;
    constexpr int64_t kRank = 8;
    WeightKeys w;
    w.ints = {{"sluice.informed.layers", c.layer + 1},
              {"sluice.informed.dim", s.hidden},
              {"sluice.informed.hidden", kHidden},
              {"sluice.informed.rank", kRank},
              {"sluice.informed.silu", 1}};
    const std::string at = Prefix(c);
    w.AddLinear(at + "router0", s.hidden, kHidden);
    w.AddLinear(at + "router1", kHidden, 2);
    w.AddLinear(at + "down", s.hidden, kRank);
    w.AddLinear(at + "up", kRank, s.hidden);
    return w;
  }
  int64_t dim() const { return dim_; }
  const FeatureForecaster& forecaster() const { return forecaster_; }
  // Multiply-adds of the forecaster a token.
  int64_t forecast_macs() const { return 2 * dim_ * forecaster_.down.out; }

  static Unit Decide(const float* logits) {
    return logits[kApproximate] > logits[kExecute] ? kApproximate : kExecute;
  }

  // What eval_mode=sampled adds to a logit of the token at a position: Gumbel noise.
  double Noise(Unit logit, int64_t position) const {
    constexpr double kGuard = 1e-8;
    const double u =
        RandomUniform({seed_, 0, static_cast<uint64_t>(layer_),
                       static_cast<uint64_t>(2 * unit_ + logit), static_cast<uint64_t>(position)});
    return -std::log(-std::log(u + kGuard) + kGuard);
  }
  // Sampled; a logit that is not a number executes.
  Unit Sample(const float* logits, int64_t position) const {
    const double execute = static_cast<double>(logits[kExecute]) + Noise(kExecute, position);
    const double approximate =
        static_cast<double>(logits[kApproximate]) + Noise(kApproximate, position);
    return approximate > execute ? kApproximate : kExecute;
  }

  // The cost of a forecast is in the multiply-adds of the unit that it stands for: 4 d^2 of
  // attention's projections, 8 d^2 of a feed-forward network. A forecaster of rank 0 is a skip.
  UnitInfo DescribeUnit(const Plan&, int64_t unit) const {
    if (unit == kExecute) return {UnitKind::kHost, 1.0, Concurrency::kAlone};
    if (!forecaster_.present()) return {UnitKind::kSkip, 0.0, Concurrency::kRows};
    const double dense = (unit_ == 0 ? 4.0 : 8.0) * static_cast<double>(dim_ * dim_);
    const double cost = std::min(1.0, static_cast<double>(forecast_macs()) / dense);
    return {.kind = UnitKind::kOwn,
            .cost = cost,
            .concurrency = Concurrency::kRows,
            .max_rows = kForecastRows};
  }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    Plan p;
    SLUICE_ASSIGN_OR_RETURN(p.shape, one_unit::Shape(s, 2, "hidden", s.hidden, dim_));
    WorkspaceLayout w;
    p.router = router_.Reserve(s.items, w);
    p.logits = w.Add<float>(s.items * 2);
    p.workspace_bytes = w.bytes();
    p.unit_workspace_bytes = forecaster_.scratch_floats(kForecastRows) * sizeof(float);
    p.max_entries = s.items;
    return p;
  }
  // Logits [items, 2] of (execute, approximate). O(items dim hidden).
  void Logits(const Plan& p, const MatrixView<const float>& hidden, const RunContext& ctx,
              float* logits) const {
    router_.ApplyRows(hidden.data, hidden.rows, ctx.workspace, p.router, logits);
  }
  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    if (in.items > 0 && in.hidden.row_stride != dim_)
      return absl::InvalidArgumentError(absl::StrCat("hidden of row stride ", in.hidden.row_stride,
                                                     ", wanted packed rows of ", dim_));
    float* logits = ctx.workspace.At<float>(p.logits);
    Logits(p, in.hidden, ctx, logits);
    one_unit::Assign(in.items, 2, out, [&](int64_t i) -> one_unit::Choice {
      const float* l = logits + 2 * i;
      const int64_t position = in.positions.empty() ? i : in.positions[static_cast<size_t>(i)];
      const Unit u = eval_mode_ == EvalMode::kSampled ? Sample(l, position) : Decide(l);
      return {u, std::isnan(l[0]) || std::isnan(l[1]) ? NAN : l[u]};
    });
    return absl::OkStatus();
  }
  // The forecasts of at most kForecastRows tokens.
  absl::Status RunUnit(const Plan&, const UnitRows& rows, const RunContext& ctx) const {
    if (rows.in.rows > kForecastRows || rows.in.cols != dim_ || rows.out.cols != dim_)
      return absl::InvalidArgumentError(absl::StrCat(
          kTraits.name, ": forecast of [", rows.in.rows, ", ", rows.in.cols, "] to width ",
          rows.out.cols, "; at most ", kForecastRows, " rows of width ", dim_));
    forecaster_.Apply(rows.in.data, rows.in.rows, rows.out.data, ctx.workspace.At<float>(0));
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kForecastRows = 64;
  static std::string Prefix(const Config& c) {
    return absl::StrCat("blk.", c.layer, ".informed.", c.unit == 0 ? "attn." : "ffn.");
  }

  int64_t dim_ = 0;
  int64_t layer_ = 0;
  int64_t unit_ = 0;
  EvalMode eval_mode_ = EvalMode::kArgmax;
  uint64_t seed_ = 1;
  ReluPair router_;
  FeatureForecaster forecaster_;
};
}  // namespace token
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_TOKEN_INFORMED_ROUTING_INFORMED_ROUTING_H_
