#ifndef SLUICE_PRUNERS_TOKEN_RANDOM_RANDOM_REFERENCE_H_
#define SLUICE_PRUNERS_TOKEN_RANDOM_RANDOM_REFERENCE_H_
// The control from its definition: a full sort of one draw a token.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
// Per token 0: computed, 1: skipped.
inline std::vector<int32_t> RandomTokens(int64_t n, double sparsity, int64_t layer, int64_t seed) {
  std::vector<std::pair<double, size_t>> drawn;
  for (size_t t = 1; t < static_cast<size_t>(n); ++t)
    drawn.emplace_back(
        -RandomUniform({static_cast<uint64_t>(seed), 0, static_cast<uint64_t>(layer), 0, t}), t);
  std::sort(drawn.begin(), drawn.end());

  std::vector<int32_t> unit(static_cast<size_t>(n), 1);
  if (n > 0) unit[0] = 0;
  const int64_t more = std::llround((1 - sparsity) * static_cast<double>(n)) - 1;
  for (int64_t i = 0; i < more; ++i) unit[drawn[static_cast<size_t>(i)].second] = 0;
  return unit;
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_TOKEN_RANDOM_RANDOM_REFERENCE_H_
