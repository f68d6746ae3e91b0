#ifndef SLUICE_POLICIES_COMMON_BOOTSTRAP_H_
#define SLUICE_POLICIES_COMMON_BOOTSTRAP_H_
// Intervals for what two policies did on the same documents, and which policies nobody beats.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/types/span.h"
#include "sluice/policies/common/quantile.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
// `statistic` of documents drawn with replacement; it gets their indices, so it is paired by
// construction: compute both policies from the same draw. A 95 % interval of percentiles, for many
// documents: with 5 it covers 84 % of the time (FewInterval is for those). Deterministic from the
// seed. O(draws * cost of statistic).
inline MeanInterval PairedBootstrap(
    int64_t documents, int64_t draws, uint64_t seed,
    const std::function<double(absl::Span<const int64_t>)>& statistic) {
  std::vector<int64_t> all(documents);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int64_t>(i);
  MeanInterval r;
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

// The mean of few numbers that may be skewed (differences by document, results by seed) and its
// 95 % interval: on either side the wider of Student's, which is exact for normal numbers, and the
// studentised bootstrap's (Efron and Tibshirani, An Introduction to the Bootstrap, 12.5), which
// follows the skew. Of 4, 5, 8 or 16 normal, exponential or log-normal (sigma 0.5) numbers it
// covers at least 93 % of the time, where Student's alone falls to 87 %. Numbers that are all
// equal have an interval of no width, which says that they agree and no more; where one is none or
// infinite the interval is Student's, which is none. Fewer than 2: the mean alone. Deterministic
// from the seed. O(draws * (n + log draws)).
inline MeanInterval FewInterval(absl::Span<const double> x, int64_t draws, uint64_t seed) {
  MeanInterval r = StudentInterval(x);
  if (x.size() < 2 || draws < 1) return r;
  const MeanAndError all = MeanAndErrorOf(x);
  if (!(all.error > 0) || std::isinf(all.error)) return r;
  std::vector<double> drawn(x.size());
  std::vector<double> t;
  t.reserve(draws);
  for (int64_t d = 0; d < draws; ++d) {
    for (size_t i = 0; i < x.size(); ++i) {
      const double u = RandomUniform({seed, static_cast<uint64_t>(d), 1, 0, i});
      drawn[i] = x[static_cast<size_t>(u * static_cast<double>(x.size()))];
    }
    const MeanAndError m = MeanAndErrorOf(drawn);
    const double off = m.mean - all.mean;
    // One number drawn throughout: as far out as can be.
    t.push_back(m.error > 1e-12 * all.error ? off / m.error
                : off == 0                  ? 0
                                            : std::copysign(INFINITY, off));
  }
  std::sort(t.begin(), t.end());
  const auto tail = std::max<int64_t>(1, (draws + 1) / 40);
  const double above = t[draws - tail];
  const double below = t[tail - 1];
  if (std::isfinite(above)) r.low = std::min(r.low, all.mean - above * all.error);
  if (std::isfinite(below)) r.high = std::max(r.high, all.mean - below * all.error);
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
#endif  // SLUICE_POLICIES_COMMON_BOOTSTRAP_H_
