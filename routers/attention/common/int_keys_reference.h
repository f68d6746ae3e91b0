#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_INT_KEYS_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_INT_KEYS_REFERENCE_H_
// What is left of rotated queries and keys in few bits, in plain loops.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention::reference {
// A vector turned by the Hadamard matrix of the largest power of two that divides its length, in
// single precision, since what is rounded afterwards is the single-precision value: by halves, each
// element is the sum or the difference of a pair.
inline std::vector<float> Rotated(const Vector& x) {
  std::vector<float> y(x.begin(), x.end());
  int64_t block = 1;
  while (std::ssize(y) % (2 * block) == 0 && !y.empty()) block *= 2;
  for (int64_t half = 1; half < block; half *= 2) {
    std::vector<float> next(y.size());
    for (int64_t i = 0; i < std::ssize(y); ++i) {
      const int64_t other = i ^ half;
      next[i] = (i & half) == 0 ? y[i] + y[other] : y[other] - y[i];
    }
    y = next;
  }
  for (float& e : y) e *= 1 / std::sqrt(static_cast<float>(block));
  return y;
}
// A vector of whole numbers up to limit and its scale, in single precision.
struct Whole {
  std::vector<int> x;
  float scale = 0;
};
inline Whole Rounded(const std::vector<float>& y, int limit) {
  Whole r{.x = std::vector<int>(y.size()), .scale = 0};
  for (float e : y) {
    if (!std::isfinite(e)) {
      r.scale = NAN;
      return r;
    }
    r.scale = std::max(r.scale, std::fabs(e));
  }
  r.scale /= static_cast<float>(limit);
  for (size_t i = 0; i < y.size() && r.scale > 0; ++i)
    r.x[i] = static_cast<int>(std::nearbyint(y[i] / r.scale));
  return r;
}
// q . k, after both were rotated and rounded, keys to `limit` and queries to 127; 0: as they are.
inline double ProductIn(int limit, const Vector& q, const Vector& k) {
  if (limit == 0) return Product(q, k);
  const Whole a = Rounded(Rotated(q), 127);
  const Whole b = Rounded(Rotated(k), limit);
  int64_t sum = 0;
  for (size_t i = 0; i < a.x.size(); ++i) sum += int64_t{a.x[i]} * b.x[i];
  return static_cast<double>(sum) * a.scale * b.scale;
}
// The k best of n units by a rounded score; with margin > 0 the best k - margin stay so, and of the
// next 2 margin those that are best by an exact score. Ascending.
template <class RoundedScore, class ExactScore>
std::vector<int64_t> BestInDoubt(int64_t n, int64_t k, double rescore, RoundedScore&& rounded,
                                 ExactScore&& exact) {
  Vector by(n);
  for (int64_t u = 0; u < n; ++u) by[u] = rounded(u);
  k = std::min(k, n);
  if (rescore == 0 || k == n) return Best(by, k);
  const auto margin = static_cast<int64_t>(std::ceil(rescore * static_cast<double>(k)));
  const std::vector<int64_t> ranked = Ranked(by);
  std::vector<int64_t> kept;
  Vector again(n, -HUGE_VAL);
  for (int64_t rank = 0; rank < std::min<int64_t>(std::ssize(ranked), k + margin); ++rank) {
    const int64_t u = ranked[rank];
    if (rank < k - margin) {
      kept.push_back(u);
    } else {
      again[u] = exact(u);
    }
  }
  for (int64_t u : Best(again, k - std::ssize(kept))) kept.push_back(u);
  std::sort(kept.begin(), kept.end());
  return kept;
}
}  // namespace attention::reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_INT_KEYS_REFERENCE_H_
