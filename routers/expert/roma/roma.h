#ifndef SLUICE_ROUTERS_EXPERT_ROMA_ROMA_H_
#define SLUICE_ROUTERS_EXPERT_ROMA_ROMA_H_
// Experts by a gate that was aligned with what works for prompts alike: "Routing Manifold Alignment
// Improves Generalization of Mixture-of-Experts LLMs" (RoMA, arXiv 2511.07419).
//
//   SCORE   r = softmax(W h), W as refit.h (or a training framework) wrote it: at run time RoMA is
//           the model's own router
//           with beta > 0 (ours): r = (1 - beta) r + beta sum_j w_j r_j over the prompt's nearest
//           stored samples that the model answered correctly
//   SELECT  the best k; NaN never, ties to the lowest index; weights divided by their sum
//
// The blend is a knob of unknown quality and off unless asked for; the gains of the paper are those
// of a training that is not here.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "sluice/api/router.h"
#include "sluice/routers/common/pipeline/gate.h"
#include "sluice/routers/common/pipeline/selector.h"
#include "sluice/routers/expert/common/k_experts.h"
#include "sluice/routers/expert/common/layer_gate.h"
#include "sluice/routers/expert/roma/neighbours.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// Items are tokens, hidden [items, dim] what their gate reads, features [items, width] the
// embedding of each one's prompt, read where beta > 0; units are the experts, all the host's.
// O(items dim units), and O(items samples width) with beta > 0.
class Roma {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "expert/roma",
      .title = "Routing Manifold Alignment Improves Generalization of Mixture-of-Experts LLMs",
      .arxiv = "2511.07419",
      .domain = Domain::kExpert,
      .combine = Combine::kWeightedSum,
      .decides = Decides::kToken,
      .learned = true,
      .reads = kReadsHidden,
      .may_read = kReadsFeatures,
      .full_budget = "k=0",
      .small_budget = "k=1",
  };

  struct Config {
    int64_t layer = 0;
    int64_t k = 2;
    double beta = 0;
    int64_t neighbours = 3;
    double sigma = 0.4;

    template <class V>
    void VisitFields(V&& v) {
      v("layer", layer, Range<int64_t>{0, 1 << 16}, "decoder layer whose gate it is");
      v("k", k, Range<int64_t>{0, 65536}, "experts a token; 0: all of them");
      v("beta", beta, Range<double>{0, 1},
        "share of the stored samples' routes; 0: the gate alone");
      v("neighbours", neighbours, Range<int64_t>{1, 1024}, "stored samples that are mixed in");
      v("sigma", sigma, Range<double>{1e-6, 1e6},
        "distance of embeddings at which one weighs less");
    }
  };
  struct Plan : RoutePlanInfo {
    KExperts choose;
    size_t logits = 0;  // [workers, units]
    size_t near = 0;    // [workers, neighbours]
  };

  static absl::StatusOr<Roma> Create(const Config& c, const WeightSource& w) {
    const Config defaults;
    if (c.beta == 0 && (c.neighbours != defaults.neighbours || c.sigma != defaults.sigma))
      return absl::InvalidArgumentError("neighbours and sigma without beta would be ignored");
    Roma r;
    r.config_ = c;
    const std::string at = Prefix(c);
    SLUICE_ASSIGN_OR_RETURN(r.gate_, ReadLayerGate(w, kKeys, c.layer, at + "gate.weight"));
    if (c.beta > 0) SLUICE_RETURN_IF_ERROR(r.ReadSamples(w, at));
    return r;
  }
  static WeightKeys Weights(const Config& c, const RouteShape& s) {
    constexpr int64_t kExperts = 8;
    constexpr int64_t kSamples = 16;
    const int64_t experts = s.units > 0 ? s.units : kExperts;
    WeightKeys w;
    w.ints = {{kKeys.layers, c.layer + 1},
              {kKeys.dim, s.hidden},
              {kKeys.experts, experts},
              {"sluice.roma.width", s.width},
              {"sluice.roma.samples", kSamples}};
    w.tensors = {{Prefix(c) + "gate.weight", {s.hidden, experts}},
                 {"sluice.roma.embeddings", {s.width, kSamples}},
                 {Prefix(c) + "routes", {experts, kSamples}}};
    return w;
  }

  UnitInfo DescribeUnit(const Plan& p, int64_t) const { return DescribeExpert(p); }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    SLUICE_RETURN_IF_ERROR(CheckGateShape(gate_, s));
    if (config_.beta > 0 && s.width != width_)
      return absl::InvalidArgumentError(absl::StrCat("shape: features of width ", s.width,
                                                     "; beta=", config_.beta,
                                                     " takes embeddings of width ", width_));
    Plan p;
    p.shape = s;
    p.shape.units = gate_.out;
    WorkspaceLayout w;
    SLUICE_ASSIGN_OR_RETURN(p.choose, KExperts::Reserve(p.shape, config_.k, w));
    const int64_t workers = std::max(1, s.workers);
    p.logits = w.Add<float>(gate_.out * workers);
    p.near = w.Add<Neighbour>(config_.neighbours * workers);
    p.max_entries = p.choose.max_entries();
    p.workspace_bytes = w.bytes();
    return p;
  }

  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    SLUICE_RETURN_IF_ERROR(CheckTokens(in));
    if (config_.beta > 0 && in.items > 0 && in.features.empty())
      return absl::InvalidArgumentError(absl::StrCat(kTraits.name, ": beta=", config_.beta,
                                                     " reads embeddings and was given none"));
    p.choose.Run(
        in.items, ctx,
        [&](int64_t i, int worker, const pipeline::Scores& scores) {
          float* logits = ctx.workspace.At<float>(p.logits) + gate_.out * worker;
          gate_.Apply(in.hidden.row(i), logits);
          const int64_t nans =
              pipeline::ScoreRow(pipeline::ScoreKind::kSoftmax, logits, {}, scores);
          if (config_.beta > 0) {
            Neighbour* near = ctx.workspace.At<Neighbour>(p.near) + config_.neighbours * worker;
            Blend(in.features.row(i), {near, static_cast<size_t>(config_.neighbours)}, scores);
          }
          return nans;
        },
        [](absl::Span<float> weight) {
          pipeline::NormaliseRow(pipeline::Renormalise::kSum, 1, weight);
        },
        out);
    return absl::OkStatus();
  }

 private:
  static inline const GateKeys kKeys = {"sluice.roma.layers", "sluice.roma.dim",
                                        "sluice.roma.experts"};
  static std::string Prefix(const Config& c) { return absl::StrCat("blk.", c.layer, ".roma."); }

  absl::Status ReadSamples(const WeightSource& w, const std::string& at) {
    SLUICE_ASSIGN_OR_RETURN(width_, w.Int("sluice.roma.width"));
    SLUICE_ASSIGN_OR_RETURN(samples_, w.Int("sluice.roma.samples"));
    constexpr int64_t kMost = 1 << 20;
    if (width_ <= 0 || width_ > kMost || samples_ <= 0 || samples_ > kMost)
      return absl::InvalidArgumentError(absl::StrCat("sluice.roma.width ", width_, ", samples ",
                                                     samples_, "; allowed 1 to ", kMost));
    const auto samples = static_cast<uint64_t>(samples_);
    const uint64_t embeddings[] = {static_cast<uint64_t>(width_), samples};
    const uint64_t routes[] = {static_cast<uint64_t>(gate_.out), samples};
    SLUICE_ASSIGN_OR_RETURN(embeddings_, w.ReadF32("sluice.roma.embeddings", embeddings));
    SLUICE_ASSIGN_OR_RETURN(routes_, w.ReadF32(at + "routes", routes));
    return absl::OkStatus();
  }

  // Nothing where no stored sample has a distance.
  void Blend(const float* embedding, absl::Span<Neighbour> near,
             const pipeline::Scores& scores) const {
    const MatrixView<const float> stored = {embeddings_.data(), samples_, width_, width_};
    const int64_t n = Nearest(
        stored, embedding, config_.sigma, [](int64_t) { return true; }, near);
    if (n == 0) return;
    for (int64_t u = 0; u < gate_.out; ++u) {
      double mean = 0;
      for (int64_t e = 0; e < n; ++e)
        mean += near[e].weight * static_cast<double>(routes_[near[e].sample * gate_.out + u]);
      const auto own = static_cast<double>(scores.weight[u]);
      scores.weight[u] = static_cast<float>((1 - config_.beta) * own + config_.beta * mean);
      scores.rank[u] = scores.weight[u];
    }
  }

  Config config_;
  Linear gate_;
  int64_t width_ = 0;
  int64_t samples_ = 0;
  std::vector<float> embeddings_;  // [samples, width]
  std::vector<float> routes_;      // [samples, experts]
};
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_ROMA_ROMA_H_
