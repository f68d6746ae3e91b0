#ifndef SLUICE_RUNTIME_HOST_EXPERT_ROUTING_H_
#define SLUICE_RUNTIME_HOST_EXPERT_ROUTING_H_
// The FFN of a Mixture of Experts: the model's own gate scores every token's experts, a router
// chooses among them by these scores, and only the chosen run. A dense FFN can have a router that
// brings its units with it in its place: slices of the FFN's own matrices, say.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sluice/runtime/dispatch/dispatch.h"
#include "sluice/runtime/host/item_routers.h"
#include "sluice/runtime/host/layer_math.h"
#include "sluice/runtime/host/model.h"
#include "sluice/runtime/host/packed_experts.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
struct ExpertRouting {
  // An expert router by name, made once a layer, with `k` and `layer` added to its options where it
  // has such. Empty: as the model was trained, the best of the softmax, renormalised.
  std::string router;
  const WeightSource* weights = nullptr;  // of the router, unless its text names a file
  // A second copy of the experts' weights, as panels, for passes of many tokens.
  bool packed = false;
  bool on() const { return !router.empty(); }
};

class ExpertRouter {
 public:
  // `max_rows`: tokens of one pass. InvalidArgument for a router that reads what is not here, and
  // of a dense model for one that wants the host's experts.
  static absl::StatusOr<ExpertRouter> Create(const ExpertRouting& options, const ModelShape& shape,
                                             int64_t max_rows, Executor* executor);

  // Has the model's experts packed, as its weights are now: passes of kAddFrom tokens and more run
  // by them. InvalidArgument where PackedExperts refuses, or a router that computes units itself.
  absl::Status Pack(const Model& model);
  static constexpr int64_t kAddFrom = 32;

  // Chooses the experts of n tokens by what the gate reads of them, h [n, width]; they stand one
  // behind another in a sequence, the first at `begin`: what a router that decides by places must
  // know. The choice stays until the next.
  absl::Status Decide(int64_t layer, const Layer& weights, int64_t begin, int64_t n, const float* h,
                      LayerMath& math);
  // x [n, width] += the experts decided for every token, weighted, of the normalised states h.
  absl::Status Run(int64_t layer, const Layer& weights, int64_t n, const float* h, float* x,
                   LayerMath& math);
  // Whether places matter to it: tokens that stand apart cannot be routed then.
  bool reads_positions() const { return routers_.use_positions(); }

  // Tokens that an expert of the model computed; 0 of a dense model.
  int64_t rows(int64_t layer, int64_t expert) const {
    return experts_ > 0 ? rows_[layer * experts_ + expert] : 0;
  }
  void ResetCounters();

 private:
  ExpertRouter(const ModelShape& shape, Executor* executor)
      : width_(shape.width),
        ffn_(shape.ffn),
        experts_(shape.experts),
        executor_(executor),
        routers_(executor) {}
  absl::Status CheckUnits(size_t layer) const;
  // sum_ [n, width] = the chosen units, weighted.
  absl::Status RunPlain(int64_t layer, const Layer& weights, int64_t n, const float* h,
                        LayerMath& math);
  absl::Status RunPacked(int64_t layer, int64_t n, const float* h, LayerMath& math);

  int64_t width_;
  int64_t ffn_;
  int64_t max_rows_ = 0;
  int64_t max_entries_ = 0;
  int64_t experts_;  // of the model; 0: all units are the router's own
  Executor* executor_;
  ItemRouters routers_;
  std::optional<Dispatch> dispatch_;  // of all layers, which reserve alike
  OwnedWorkspace workspace_;
  std::optional<PackedExperts> packed_;
  std::optional<Dispatch> adding_;  // of the packed experts
  OwnedWorkspace adding_workspace_;
  const Assignment* assigned_ = nullptr;  // of the last Decide
  std::vector<float> scores_;             // [max_rows, experts]
  std::vector<float> sum_;                // [max_rows, width]
  std::vector<int64_t> positions_;
  std::vector<int64_t> rows_;  // [layers, experts]
};
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_EXPERT_ROUTING_H_
