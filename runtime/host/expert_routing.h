#ifndef SLUICE_RUNTIME_HOST_EXPERT_ROUTING_H_
#define SLUICE_RUNTIME_HOST_EXPERT_ROUTING_H_
// The FFN of a Mixture of Experts: the model's own gate scores every token's experts, a router
// chooses among them by these scores, and only the chosen run.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sluice/runtime/dispatch/dispatch.h"
#include "sluice/runtime/host/item_routers.h"
#include "sluice/runtime/host/layer_math.h"
#include "sluice/runtime/host/model.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
struct ExpertRouting {
  // An expert router by name, made once a layer, with `k` and `layer` added to its options where it
  // has such. Empty: as the model was trained, the best of the softmax, renormalised.
  std::string router;
  const WeightSource* weights = nullptr;  // of the router, unless its text names a file
  bool on() const { return !router.empty(); }
};

class ExpertRouter {
 public:
  // `max_rows`: tokens of one pass. InvalidArgument for a router that reads what is not here.
  static absl::StatusOr<ExpertRouter> Create(const ExpertRouting& options, const ModelShape& shape,
                                             int64_t max_rows, Executor* executor);

  // x [n, width] += the chosen experts of every token, weighted, of the normalised states h. The
  // tokens stand one behind another in a sequence, the first at `begin`; what a router that
  // decides by places must know.
  absl::Status Run(int64_t layer, const Layer& weights, int64_t begin, int64_t n, const float* h,
                   float* x, LayerMath& math);
  // Whether places matter to it: tokens that stand apart cannot be routed then.
  bool reads_positions() const { return routers_.use_positions(); }

  // Tokens that an expert computed.
  int64_t rows(int64_t layer, int64_t expert) const { return rows_[layer * experts_ + expert]; }
  void ResetCounters();

 private:
  ExpertRouter(const ModelShape& shape, Executor* executor)
      : width_(shape.width), experts_(shape.experts), executor_(executor), routers_(executor) {}

  int64_t width_;
  int64_t experts_;
  Executor* executor_;
  ItemRouters routers_;
  std::optional<Dispatch> dispatch_;  // of all layers, which reserve alike
  OwnedWorkspace workspace_;
  std::vector<float> scores_;  // [max_rows, experts]
  std::vector<float> sum_;     // [max_rows, width]
  std::vector<int64_t> positions_;
  std::vector<int64_t> rows_;  // [layers, experts]
};
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_EXPERT_ROUTING_H_
