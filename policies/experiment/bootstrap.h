#ifndef SLUICE_POLICIES_EXPERIMENT_BOOTSTRAP_H_
#define SLUICE_POLICIES_EXPERIMENT_BOOTSTRAP_H_
// Intervals for what two policies did on the same documents, and which policies nobody beats.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/types/span.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
struct BootstrapInterval {
  double value = 0, low = 0, high = 0;  // 95 %, percentiles
};
// `statistic` of documents drawn with replacement; it gets their indices, so it is paired by
// construction: compute both policies from the same draw. With few documents (below about 8)
// percentile intervals are too narrow; say how many. Deterministic from the seed. O(draws * cost of
// statistic).
inline BootstrapInterval PairedBootstrap(
    int64_t documents, int64_t draws, uint64_t seed,
    const std::function<double(absl::Span<const int64_t>)>& statistic) {
  std::vector<int64_t> all(documents);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int64_t>(i);
  BootstrapInterval r;
  r.value = r.low = r.high = statistic(all);
  if (documents < 2 || draws < 1) return r;
  std::vector<double> values;
  for (int64_t d = 0; d < draws; ++d) {
    for (size_t i = 0; i < all.size(); ++i)
      all[i] = static_cast<int64_t>(RandomUniform({seed, static_cast<uint64_t>(d), 0, 0, i}) *
                                    static_cast<double>(documents));
    values.push_back(statistic(all));
  }
  std::sort(values.begin(), values.end());
  const auto at = [&](double q) {
    const double x = q * static_cast<double>(values.size() - 1);
    const auto i = static_cast<size_t>(x);
    return values[i] +
           (i + 1 < values.size() ? (x - static_cast<double>(i)) * (values[i + 1] - values[i]) : 0);
  };
  r.low = at(0.025);
  r.high = at(0.975);
  return r;
}

// One candidate: lower cost and higher quality are better.
struct Tradeoff {
  double cost = 0, quality = 0;
};
// Who is not beaten: nobody has at most the cost and at least the quality, and one of them
// strictly. Numbers that are none are never on the front. O(n^2).
inline std::vector<bool> ParetoFront(absl::Span<const Tradeoff> x) {
  std::vector<bool> front(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    front[i] = x[i].cost == x[i].cost && x[i].quality == x[i].quality;
    for (size_t k = 0; k < x.size() && front[i]; ++k) {
      front[i] = !(x[k].cost <= x[i].cost && x[k].quality >= x[i].quality &&
                   (x[k].cost < x[i].cost || x[k].quality > x[i].quality));
    }
  }
  return front;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_EXPERIMENT_BOOTSTRAP_H_
