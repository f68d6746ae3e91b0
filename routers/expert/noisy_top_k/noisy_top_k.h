#ifndef SLUICE_ROUTERS_EXPERT_NOISY_TOP_K_NOISY_TOP_K_H_
#define SLUICE_ROUTERS_EXPERT_NOISY_TOP_K_NOISY_TOP_K_H_
// The gate of the sparsely-gated mixture of experts (arXiv 1701.06538), with its own two weight
// matrices: one for the logits, one for how much noise each of them takes in training.
//
//   SCORE   clean = W_gate x; H = clean, in training clean + N(0, 1) (softplus(W_noise x) + 0.01)
//   SELECT  the best k of H; NaN never, ties to the lowest index
//           weights softmax(H) over the k chosen
//
// Everything is in logits: what ranks, what is compared with a threshold, and what is weighed. Code
// in use takes a softmax first and then holds raw logits against its values. What training adds to
// the loss: balance_loss.h.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "sluice/api/router.h"
#include "sluice/routers/common/pipeline/gate.h"
#include "sluice/routers/common/pipeline/selector.h"
#include "sluice/routers/expert/common/k_experts.h"
#include "sluice/routers/expert/common/layer_gate.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// Standard deviation of a logit's noise from the noise gate's output.
inline double NoiseScale(double raw) {
  return std::max(raw, 0.0) + std::log1p(std::exp(-std::abs(raw))) + 1e-2;
}

// Items are tokens, hidden [items, dim] what their gate reads; units are the experts, all the
// host's. With noise, `positions` and `layer` (where given) and `step` are coordinates of the draw,
// so that a chunk draws what the whole would. O(items dim units).
class NoisyTopK {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "expert/noisy_top_k",
      .title = "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
      .arxiv = "1701.06538",
      .domain = Domain::kExpert,
      .combine = Combine::kWeightedSum,
      .decides = Decides::kToken,
      .learned = true,
      .reads = kReadsHidden,
      .may_read = kReadsPositions | kReadsLayer | kReadsStep,
      .full_budget = "k=0",
      .small_budget = "k=1",
  };

  struct Config {
    int64_t layer = 0;
    int64_t k = 2;
    bool noise = false;
    int64_t seed = 0;

    template <class V>
    void VisitFields(V&& v) {
      v("layer", layer, Range<int64_t>{0, 1 << 16}, "decoder layer whose gate it is");
      v("k", k, Range<int64_t>{0, 65536}, "experts a token; 0: all of them");
      v("noise", noise, Range<bool>{false, true}, "as in training; false: as in inference");
      v("seed", seed, Range<int64_t>{0, INT64_MAX}, "of the noise");
    }
  };
  struct Plan : RoutePlanInfo {
    KExperts choose;
    size_t spread = 0;  // [workers, units], the noise gate's output
  };

  static absl::StatusOr<NoisyTopK> Create(const Config& c, const WeightSource& w) {
    if (c.seed != 0 && !c.noise)
      return absl::InvalidArgumentError(
          absl::StrCat("seed=", c.seed, " without noise would be ignored"));
    NoisyTopK r;
    r.config_ = c;
    SLUICE_ASSIGN_OR_RETURN(r.gate_, ReadLayerGate(w, kKeys, c.layer, Name(c, "gate")));
    SLUICE_ASSIGN_OR_RETURN(r.noise_,
                            Linear::ReadMatrix(w, Name(c, "noise"), r.gate_.in, r.gate_.out));
    return r;
  }
  static WeightKeys Weights(const Config& c, const RouteShape& s) {
    constexpr int64_t kExperts = 6;
    const int64_t experts = s.units > 0 ? s.units : kExperts;
    WeightKeys w;
    w.ints = {{kKeys.layers, c.layer + 1}, {kKeys.dim, s.hidden}, {kKeys.experts, experts}};
    w.tensors = {{Name(c, "gate"), {s.hidden, experts}}, {Name(c, "noise"), {s.hidden, experts}}};
    return w;
  }

  UnitInfo DescribeUnit(const Plan& p, int64_t) const { return DescribeExpert(p); }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    SLUICE_RETURN_IF_ERROR(CheckGateShape(gate_, s));
    Plan p;
    p.shape = s;
    p.shape.units = gate_.out;
    WorkspaceLayout w;
    SLUICE_ASSIGN_OR_RETURN(p.choose, KExperts::Reserve(p.shape, config_.k, w));
    p.spread = w.Add<float>(gate_.out * std::max(1, s.workers));
    p.max_entries = p.choose.max_entries();
    p.workspace_bytes = w.bytes();
    return p;
  }

  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    SLUICE_RETURN_IF_ERROR(CheckTokens(in));
    p.choose.Run(
        in.items, ctx,
        [&](int64_t i, int worker, const pipeline::Scores& scores) {
          gate_.Apply(in.hidden.row(i), scores.weight.data());
          if (config_.noise) {
            float* spread = ctx.workspace.At<float>(p.spread) + gate_.out * worker;
            AddNoise(in, i, spread, scores.weight);
          }
          std::copy_n(scores.weight.begin(), scores.weight.size(), scores.rank.begin());
          return std::count_if(scores.rank.begin(), scores.rank.end(),
                               [](float x) { return std::isnan(x); });
        },
        [](absl::Span<float> weight) {
          pipeline::NormaliseRow(pipeline::Renormalise::kSoftmax, 1, weight);
        },
        out);
    return absl::OkStatus();
  }

 private:
  static inline const GateKeys kKeys = {"sluice.noisy_top_k.layers", "sluice.noisy_top_k.dim",
                                        "sluice.noisy_top_k.experts"};
  static std::string Name(const Config& c, const char* matrix) {
    return absl::StrCat("blk.", c.layer, ".noisy_top_k.", matrix, ".weight");
  }

  void AddNoise(const RouteInputs& in, int64_t i, float* spread, absl::Span<float> logits) const {
    noise_.Apply(in.hidden.row(i), spread);
    const int64_t position = in.positions.empty() ? i : in.positions[i];
    RngKey key = {
        .seed = static_cast<uint64_t>(config_.seed),
        .step = static_cast<uint64_t>(in.step),
        .layer = static_cast<uint64_t>(in.layer),
        .item = static_cast<uint64_t>(position),
    };
    for (size_t u = 0; u < logits.size(); ++u) {
      key.unit = u;
      logits[u] += static_cast<float>(RandomNormal(key) * NoiseScale(spread[u]));
    }
  }

  Config config_;
  Linear gate_;
  Linear noise_;
};

}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_NOISY_TOP_K_NOISY_TOP_K_H_
