#ifndef SLUICE_RUNTIME_HOST_ENGINE_IMPL_H_
#define SLUICE_RUNTIME_HOST_ENGINE_IMPL_H_
// What the files of the engine share, and no one else includes.
#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/kv_cache.h"
#include "sluice/runtime/host/layer_math.h"
#include "sluice/runtime/host/unit_routing.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
using Clock = std::chrono::steady_clock;
inline double Seconds(Clock::time_point from) {
  return std::chrono::duration<double>(Clock::now() - from).count();
}

struct Engine::Impl {
  std::unique_ptr<Executor> executor;
  std::optional<LayerMath> math;
  AttentionSessions attention;
  UnitRouting routing;

  int64_t capacity = 0;   // tokens of a sequence
  int64_t rows = 0;       // tokens of one pass
  bool keep_pre = false;  // queries and keys from before RoPE
  std::vector<KvCache> cache;
  // x [tokens, width] holds a whole feed; the others one pass.
  std::vector<float> x, h, qkv, q_pre, o, logits, key_bias;
  std::vector<int32_t> positions;
  // Pruning: the tokens that a block computes, and their states.
  std::vector<int32_t> chosen;
  std::vector<float> gathered;
};

// Tokens of a feed that go through a layer together.
struct Engine::Pass {
  int64_t layer = 0;
  float* x = nullptr;  // [n, width], the residual stream
  int64_t begin = 0;   // the first token's place: in the sequence, or among those of a pruned block
  int64_t n = 0;
  int64_t end = 0;                           // of the whole feed, in the same places
  absl::Span<const int32_t> positions = {};  // of a pruned block's tokens; empty: their places
};

}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_ENGINE_IMPL_H_
