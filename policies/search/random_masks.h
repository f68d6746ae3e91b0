#ifndef SLUICE_POLICIES_SEARCH_RANDOM_MASKS_H_
#define SLUICE_POLICIES_SEARCH_RANDOM_MASKS_H_
// Random Search as a Baseline for Sparse Neural Network Architecture Search (arXiv 2403.08265),
// over the nodes of a network: masks of exactly so many nodes, each as likely as any other; the one
// of the least loss is kept. Inferred from the abstract, which gives no settings. What the paper
// trains afterwards is the caller's. The first mask is an unsearched one: the paper's other
// control, and it found the search no better than that.
#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
using NodeMask = std::vector<uint8_t>;  // 1: the node stays
struct RandomMasksResult {
  NodeMask mask;
  double loss = 0;
  double unsearched = 0;        // loss of the first mask
  std::vector<double> history;  // the least loss so far after each evaluation
};

// The mask of one draw: selection sampling (Knuth, volume 2, 3.4.2, algorithm S). O(nodes).
inline NodeMask RandomMask(int64_t nodes, int64_t stay, uint64_t seed, uint64_t draw) {
  NodeMask mask(static_cast<size_t>(nodes));
  for (int64_t i = 0, left = stay; i < nodes; ++i) {
    const double u = RandomUniform({seed, draw, 0, 1, static_cast<uint64_t>(i)});
    const bool taken = u * static_cast<double>(nodes - i) < static_cast<double>(left);
    mask[static_cast<size_t>(i)] = taken ? 1 : 0;
    left -= taken ? 1 : 0;
  }
  return mask;
}

// `evaluations` masks with `stay` of `nodes` nodes; of equal losses the first. A mask that was
// drawn before is not measured again and counts. A loss that is no number is never kept before one
// that is.
inline absl::StatusOr<RandomMasksResult> SearchRandomMasks(
    int64_t nodes, int64_t stay, int64_t evaluations, uint64_t seed,
    const std::function<absl::StatusOr<double>(const NodeMask&)>& loss) {
  if (nodes < 1 || stay < 0 || stay > nodes || evaluations < 1)
    return absl::InvalidArgumentError(absl::StrCat(
        "random masks: ", stay, " of ", nodes, " nodes stay, ", evaluations,
        " evaluations; allowed: 1 node or more, 0 to all of them, 1 evaluation or more"));
  RandomMasksResult r;
  std::map<NodeMask, double> known;
  for (int64_t draw = 0; draw < evaluations; ++draw) {
    const NodeMask mask = RandomMask(nodes, stay, seed, static_cast<uint64_t>(draw));
    auto at = known.find(mask);
    if (at == known.end()) {
      SLUICE_ASSIGN_OR_RETURN(const double measured, loss(mask));
      at = known.emplace(mask, std::isnan(measured) ? INFINITY : measured).first;
    }
    if (draw == 0) r.unsearched = at->second;
    if (draw == 0 || at->second < r.loss) {
      r.mask = mask;
      r.loss = at->second;
    }
    r.history.push_back(r.loss);
  }
  return r;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_SEARCH_RANDOM_MASKS_H_
