#ifndef SLUICE_RUNTIME_HOST_LAYER_ROUTING_H_
#define SLUICE_RUNTIME_HOST_LAYER_ROUTING_H_
// Full or sparse attention for a whole layer, decided once a prompt.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "sluice/runtime/host/item_routers.h"
#include "sluice/runtime/host/model.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
enum class LayerMode : uint8_t { kSparse = 0, kFull = 1, kUndecided = 255 };

struct LayerRouting {
  // A layer router by name, made once a layer with `layer` added to its options. Its unit of cost 1
  // is full attention, any cheaper one sparse.
  std::string router;
  const WeightSource* weights = nullptr;  // of the router, unless its text names a file
  std::vector<LayerMode> fixed;           // instead of a router: the modes, one a layer
  // Attention routers of sparse layers, for the prompt and for what follows it.
  std::string sparse = "sink_window:sink=64,window=256";
  std::string sparse_decode = "sink_window:sink=64,window=256";
  bool evict = false;  // sparse layers keep only what their decode can reach
  bool on() const { return !router.empty() || !fixed.empty(); }
};

class LayerRouter {
 public:
  // Writes the queries [count, heads, head_dim], before RoPE, of tokens [begin, begin + count).
  using Queries = std::function<void(int64_t begin, int64_t count, float* q)>;

  // `max_tokens`: of a prompt.
  static absl::StatusOr<LayerRouter> Create(const LayerRouting& options, const ModelShape& shape,
                                            int64_t max_tokens, Executor* executor);

  // The mode of a layer for a prompt of so many tokens. Reads the queries that the router asks
  // for, nothing for fixed modes.
  absl::StatusOr<LayerMode> Decide(int64_t layer, int64_t prompt, const Queries& queries);
  // By which the last decision of a layer's router won, in the router's units; 0 for fixed modes.
  float score(int64_t layer) const { return scores_[layer]; }
  int64_t router_calls() const { return calls_; }

 private:
  LayerRouter(const ModelShape& shape, Executor* executor) : shape_(shape), routers_(executor) {}

  ModelShape shape_;
  std::vector<LayerMode> fixed_;
  ItemRouters routers_;
  std::vector<float> scores_;
  std::vector<float> queries_;
  std::vector<int64_t> positions_;
  int64_t calls_ = 0;
};
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_LAYER_ROUTING_H_
