#ifndef SLUICE_ROUTERS_EXPERT_SMALL_THINKER_SMALL_THINKER_H_
#define SLUICE_ROUTERS_EXPERT_SMALL_THINKER_SMALL_THINKER_H_
// Experts chosen before attention, so that their weights can be read while it runs: SmallThinker
// (arXiv 2507.20984).
//
//   SCORE   sigmoid (or softmax) of W_gate h, h the residual stream that enters the layer: before
//           its attention, and before any norm
//   SELECT  the best k; NaN never, ties to the lowest index; weights divided by their sum. Ranked
//           by the logit, which orders as its score does: of a state without a norm logits are
//           large, and in single precision the sigmoid of all above 17 is 1
//   REUSE   hint the chosen experts by rank, attend, pin, run the experts on the normed state after
//           attention, unpin: common/pipeline/residency.h, runtime/weights/unit_cache.h
//
// The experts are ReLU-gated and skip their silent neurons: expert/common/relu_ffn.h. What stands
// for the vocabulary: sparse_head.h. A model that was not trained with a gate at this place cannot
// be given one for free. In the published runtime prefetched weights may be evicted before their
// use; here they are held. Its unit of caching is one matrix, ours an expert's three.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "sluice/api/router.h"
#include "sluice/routers/common/pipeline/gate.h"
#include "sluice/routers/common/pipeline/selector.h"
#include "sluice/routers/expert/common/k_experts.h"
#include "sluice/routers/expert/common/layer_gate.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// Items are tokens, hidden [items, dim] the state that enters their layer; units are the experts,
// all the host's, run on another state: Dispatch takes it as its input. Weights are read by the
// names of the model's own GGUF file. O(items dim units).
class SmallThinker {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "expert/small_thinker",
      .title =
          "SmallThinker: A Family of Efficient Large Language Models Natively Trained for "
          "Local Deployment",
      .arxiv = "2507.20984",
      .domain = Domain::kExpert,
      .combine = Combine::kWeightedSum,
      .decides = Decides::kToken,
      .learned = true,
      .reads = kReadsHidden,
      .full_budget = "k=0",
      .small_budget = "k=1",
  };

  enum class Score : uint8_t { kSigmoid, kSoftmax };
  struct Config {
    int64_t layer = 0;
    int64_t k = 4;
    Score score = Score::kSigmoid;
    bool renormalise = true;

    template <class V>
    void VisitFields(V&& v) {
      v("layer", layer, Range<int64_t>{0, 1 << 16}, "decoder layer whose gate it is");
      v("k", k, Range<int64_t>{0, 65536}, "experts a token; 0: all of them");
      v("score", score, Choices{"sigmoid", "softmax"}, "what a logit becomes");
      v("renormalise", renormalise, Range<bool>{false, true},
        "the weights of the chosen are divided by their sum");
    }
  };
  struct Plan : RoutePlanInfo {
    KExperts choose;
    size_t logits = 0;  // [workers, units]
  };

  static absl::StatusOr<SmallThinker> Create(const Config& c, const WeightSource& w) {
    SmallThinker r;
    r.config_ = c;
    SLUICE_ASSIGN_OR_RETURN(r.gate_, ReadLayerGate(w, kKeys, c.layer, GateName(c)));
    return r;
  }
  static WeightKeys Weights(const Config& c, const RouteShape& s) {
    constexpr int64_t kExperts = 8;
    const int64_t experts = s.units > 0 ? s.units : kExperts;
    WeightKeys w;
    w.ints = {{kKeys.layers, c.layer + 1}, {kKeys.dim, s.hidden}, {kKeys.experts, experts}};
    w.tensors = {{GateName(c), {s.hidden, experts}}};
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
    p.logits = w.Add<float>(gate_.out * std::max(1, s.workers));
    p.max_entries = p.choose.max_entries();
    p.workspace_bytes = w.bytes();
    return p;
  }

  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    SLUICE_RETURN_IF_ERROR(CheckTokens(in));
    const auto score = config_.score == Score::kSigmoid ? pipeline::ScoreKind::kSigmoid
                                                        : pipeline::ScoreKind::kSoftmax;
    const auto renormalise =
        config_.renormalise ? pipeline::Renormalise::kSum : pipeline::Renormalise::kNone;
    p.choose.Run(
        in.items, ctx,
        [&](int64_t i, int worker, const pipeline::Scores& scores) {
          float* logits = ctx.workspace.At<float>(p.logits) + gate_.out * worker;
          gate_.Apply(in.hidden.row(i), logits);
          const int64_t nans = pipeline::ScoreRow(score, logits, {}, scores);
          for (int64_t u = 0; u < gate_.out; ++u) {
            if (!std::isnan(scores.rank[u])) scores.rank[u] = logits[u];
          }
          return nans;
        },
        [&](absl::Span<float> weight) { pipeline::NormaliseRow(renormalise, 1, weight); }, out);
    return absl::OkStatus();
  }

 private:
  static inline const GateKeys kKeys = {"smallthinker.block_count", "smallthinker.embedding_length",
                                        "smallthinker.expert_count"};
  static std::string GateName(const Config& c) {
    return absl::StrCat("blk.", c.layer, ".ffn_gate_inp.weight");
  }

  Config config_;
  Linear gate_;
};
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_SMALL_THINKER_SMALL_THINKER_H_
