#ifndef SLUICE_RUNTIME_HOST_TOKEN_ROUTING_H_
#define SLUICE_RUNTIME_HOST_TOKEN_ROUTING_H_
// Per token, the attention and the FFN of every layer are executed or left to the router, which
// forecasts or skips. Keys and values are computed for every token.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "sluice/runtime/dispatch/dispatch.h"
#include "sluice/runtime/host/item_routers.h"
#include "sluice/runtime/host/model.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
// Attention routers must take scattered queries.
struct TokenRouting {
  // A token router by name, made once a layer and unit with `layer` and `unit` (0: attention, 1:
  // FFN) added to its options. It has one unit of the host's.
  std::string router;
  const WeightSource* weights = nullptr;  // of the router, unless its text names a file
  // The control: tokens are drawn instead of chosen, the router's units stay. Share that is not
  // executed, one a layer and unit, or one for all; empty: the router chooses.
  std::vector<double> random;
  uint64_t seed = 1;
  bool pin_first = true;  // the first token, the attention sink, always executes
  bool mask_approximated =
      false;  // later tokens do not see keys of tokens whose attention was not executed
  bool on() const { return !router.empty(); }
};

class TokenRouter {
 public:
  // rows.in [n, width] -> rows.out [n, width]: the host's own unit.
  using Execute = Dispatch::RunUnit;

  // `max_rows`: tokens of one pass.
  static absl::StatusOr<TokenRouter> Create(const TokenRouting& options, const ModelShape& shape,
                                            int64_t max_rows, Executor* executor);

  // Decides for tokens [begin, begin + n), whose normalised states are h [n, width]. How many do
  // not execute.
  absl::StatusOr<int64_t> Route(int64_t layer, int64_t unit, int64_t begin, int64_t n,
                                const float* h);
  // Whether the decision lets token i of it execute.
  bool executes(int64_t i) const { return assigned_->unit[i] == execute_; }
  // What the router computed itself, its cost in rows of the host's unit.
  struct OwnWork {
    int64_t rows = 0;
    double cost = 0;
  };
  // x [n, width] += the chosen unit of every token.
  absl::StatusOr<OwnWork> Run(int64_t layer, int64_t unit, int64_t n, const float* h, float* x,
                              const Execute& execute);

 private:
  TokenRouter(const TokenRouting& options, const ModelShape& shape, Executor* executor)
      : options_(options), width_(shape.width), executor_(executor), routers_(executor) {}
  // As if the router had chosen: one unit a token, weight 1.
  void Draw(size_t at, int64_t begin, int64_t n);

  TokenRouting options_;
  int64_t width_;
  Executor* executor_;
  ItemRouters routers_;
  int32_t execute_ = 0;
  Assignment* assigned_ = nullptr;
  AssignmentBuffer drawn_;
  std::vector<Dispatch> dispatch_;  // one a router
  OwnedWorkspace workspace_;
  std::vector<float> sum_;
  std::vector<int64_t> positions_;  // of a pass
};
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_TOKEN_ROUTING_H_
