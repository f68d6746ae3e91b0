#ifndef SLUICE_RUNTIME_HOST_GENERATE_H_
#define SLUICE_RUNTIME_HOST_GENERATE_H_
// Text from an engine, token by token.
#include <cstdint>
#include <functional>
#include <vector>

#include "sluice/runtime/host/engine.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
struct Sampling {
  double temperature = 0;  // 0: greedy, ties to the lowest id
  int64_t top_k = 40;
  uint64_t seed = 1;
};
// Appends the prompt and generates up to `count` tokens; stops at end of text. on_token may stop it
// by returning false.
absl::StatusOr<std::vector<int32_t>> Generate(Engine& engine, const std::vector<int32_t>& prompt,
                                              int64_t count, const Sampling& sampling = {},
                                              const std::function<bool(int32_t)>& on_token = {});
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_GENERATE_H_
