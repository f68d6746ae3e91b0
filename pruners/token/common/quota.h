#ifndef SLUICE_PRUNERS_TOKEN_COMMON_QUOTA_H_
#define SLUICE_PRUNERS_TOKEN_COMMON_QUOTA_H_
// What pruners share that compute a given share of the tokens: units {0: compute, 1: skip}.
#include <algorithm>
#include <cmath>

#include "absl/types/span.h"
#include "sluice/api/one_unit.h"
#include "sluice/api/router.h"

SLUICE_BEGIN_NAMESPACE
namespace token {
namespace quota {
enum Unit : int32_t { kCompute = 0, kSkip = 1 };

// Tokens that a block with this sparsity computes when it computes an exact number: round((1 - s)
// n), at least 1.
inline int64_t Kept(double sparsity, int64_t n) {
  return std::clamp<int64_t>(std::llround((1 - sparsity) * static_cast<double>(n)),
                             std::min<int64_t>(1, n), n);
}

// The k items with the largest value compute, the first item always does; ties to the lowest index,
// NaN last.
template <class Value>
void AssignTop(int64_t items, int64_t k, absl::Span<int32_t> order, Assignment& out,
               const Value& value) {
  for (int64_t i = 0; i < items; ++i) order[i] = static_cast<int32_t>(i);
  const auto before = [&](int32_t a, int32_t b) {
    if ((a == 0) != (b == 0)) return a == 0;
    const double x = value(a), y = value(b);
    if (std::isnan(x) || std::isnan(y))
      return std::isnan(x) == std::isnan(y) ? a < b : std::isnan(y);
    return x != y ? x > y : a < b;
  };
  std::nth_element(order.begin(), order.begin() + std::min(k, items), order.begin() + items,
                   before);
  one_unit::Assign(items, 2, out, [&](int64_t i) -> one_unit::Choice {
    return {kSkip, static_cast<float>(value(static_cast<int32_t>(i)))};
  });
  for (int64_t r = 0; r < std::min(k, items); ++r) out.unit[order[r]] = kCompute;
}

// What the two units are.
inline UnitInfo DescribeUnit(int64_t unit) {
  if (unit == kSkip) return {UnitKind::kSkip, 0.0, Concurrency::kRows};
  return {UnitKind::kHost, 1.0, Concurrency::kAlone};
}
}  // namespace quota
}  // namespace token
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_TOKEN_COMMON_QUOTA_H_
