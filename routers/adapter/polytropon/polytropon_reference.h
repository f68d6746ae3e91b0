#ifndef SLUICE_ROUTERS_ADAPTER_POLYTROPON_POLYTROPON_REFERENCE_H_
#define SLUICE_ROUTERS_ADAPTER_POLYTROPON_POLYTROPON_REFERENCE_H_
// The specification: plain loops in double precision. Nothing is merged: the skills are gone
// through for every row.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "sluice/api/weight_source.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
struct SkillBank {
  int64_t skills, heads, rank, in, out;
  std::vector<double> share;  // [heads][skills], of one task
  std::vector<float> a, b;  // [heads][skills][in / heads][rank], [heads][skills][rank][out / heads]

  double A(int64_t h, int64_t j, int64_t i, int64_t k) const {
    return a[static_cast<size_t>(((h * skills + j) * (in / heads) + i) * rank + k)];
  }
  double B(int64_t h, int64_t j, int64_t k, int64_t o) const {
    return b[static_cast<size_t>(((h * skills + j) * rank + k) * (out / heads) + o)];
  }

  // Every head's slice of x through the shares of its skills; their sum through those of each slice
  // of the output.
  std::vector<double> Before(const std::vector<double>& x, double alpha) const {
    std::vector<double> hidden(rank);
    for (int64_t k = 0; k < rank; ++k) {
      for (int64_t c = 0; c < in; ++c) {
        const int64_t h = c / (in / heads);
        for (int64_t j = 0; j < skills; ++j)
          hidden[k] += x[c] * share[h * skills + j] * A(h, j, c % (in / heads), k);
      }
    }
    std::vector<double> y(out);
    for (int64_t c = 0; c < out; ++c) {
      const int64_t h = c / (out / heads);
      for (int64_t j = 0; j < skills; ++j) {
        for (int64_t k = 0; k < rank; ++k)
          y[c] += alpha / rank * hidden[k] * share[h * skills + j] * B(h, j, k, c % (out / heads));
      }
    }
    return y;
  }
  // One head: each skill's adapter whole, then their shares.
  std::vector<double> After(const std::vector<double>& x, double alpha) const {
    std::vector<double> y(out);
    for (int64_t j = 0; j < skills; ++j) {
      for (int64_t k = 0; k < rank; ++k) {
        double hidden = 0;
        for (int64_t c = 0; c < in; ++c) hidden += x[c] * A(0, j, c, k);
        for (int64_t c = 0; c < out; ++c) y[c] += alpha / rank * share[j] * hidden * B(0, j, k, c);
      }
    }
    return y;
  }

  static std::vector<double> Shares(const std::vector<double>& logits, int64_t heads) {
    std::vector<double> share(logits.size());
    const size_t skills = logits.size() / heads;
    for (size_t h = 0; h < static_cast<size_t>(heads); ++h) {
      double sum = 0;
      for (size_t j = 0; j < skills; ++j) sum += 1 / (1 + std::exp(-logits[h * skills + j]));
      for (size_t j = 0; j < skills; ++j)
        share[h * skills + j] = 1 / (1 + std::exp(-logits[h * skills + j])) / sum;
    }
    return share;
  }
};
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ADAPTER_POLYTROPON_POLYTROPON_REFERENCE_H_
