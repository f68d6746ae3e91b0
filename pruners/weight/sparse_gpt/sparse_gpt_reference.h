#ifndef SLUICE_PRUNERS_WEIGHT_SPARSE_GPT_SPARSE_GPT_REFERENCE_H_
#define SLUICE_PRUNERS_WEIGHT_SPARSE_GPT_SPARSE_GPT_REFERENCE_H_
// The specification: plain loops in double precision. Every column asks anew for the inverse of
// what H still has of its own and the columns to its right, by Gauss and Jordan; no factor is kept.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
using Matrix = std::vector<std::vector<double>>;

inline Matrix Inverse(Matrix a) {
  const size_t n = a.size();
  Matrix inverse(n, std::vector<double>(n));
  for (size_t i = 0; i < n; ++i) inverse[i][i] = 1;
  for (size_t i = 0; i < n; ++i) {
    size_t pivot = i;
    for (size_t r = i; r < n; ++r) pivot = std::fabs(a[r][i]) > std::fabs(a[pivot][i]) ? r : pivot;
    std::swap(a[i], a[pivot]);
    std::swap(inverse[i], inverse[pivot]);
    const double by = a[i][i];
    for (size_t c = 0; c < n; ++c) a[i][c] /= by;
    for (size_t c = 0; c < n; ++c) inverse[i][c] /= by;
    for (size_t r = 0; r < n; ++r) {
      if (r == i) continue;
      const double f = a[r][i];
      for (size_t c = 0; c < n; ++c) a[r][c] -= f * a[i][c];
      for (size_t c = 0; c < n; ++c) inverse[r][c] -= f * inverse[i][c];
    }
  }
  return inverse;
}
// Of H with its diagonal raised, from column `first` on.
inline Matrix InverseFrom(const Matrix& h, size_t first) {
  Matrix part;
  for (size_t r = first; r < h.size(); ++r)
    part.emplace_back(h[r].begin() + static_cast<int64_t>(first), h[r].end());
  return Inverse(part);
}
inline Matrix Damped(Matrix h, double damp) {
  double sum = 0;
  double alive = 0;
  for (size_t i = 0; i < h.size(); ++i) {
    sum += h[i][i];
    alive += h[i][i] > 0 ? 1 : 0;
  }
  const double mean = sum / alive;
  for (size_t i = 0; i < h.size(); ++i) h[i][i] = (h[i][i] == 0 ? mean : h[i][i]) + damp * mean;
  return h;
}

struct SparseGptResult {
  std::vector<std::vector<bool>> kept;
  Matrix w;
};
// `gone` of a row go, or of all rows together; `group` > 0: `stay` of every group of a row instead.
struct SparseGptOptions {
  size_t block = 128, group = 0;
  int64_t gone = 0, stay = 0;
  bool together = false;
  double damp = 0.01;
};
inline SparseGptResult SparseGpt(const Matrix& given, const Matrix& gram,
                                 const SparseGptOptions& o) {
  const size_t rows = given.size();
  const size_t cols = gram.size();
  const Matrix h = Damped(gram, o.damp);
  SparseGptResult out = {std::vector<std::vector<bool>>(rows, std::vector<bool>(cols)), given};
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < cols; ++c) out.w[r][c] = gram[c][c] > 0 ? given[r][c] : 0;
  }
  const size_t width = o.group > 0 ? o.group : o.block;
  for (size_t b = 0; b < cols; b += width) {
    const size_t e = b + width < cols ? b + width : cols;
    Matrix worth(rows, std::vector<double>(e - b));
    for (size_t c = b; c < e; ++c) {
      const double variance = InverseFrom(h, c)[0][0];
      for (size_t r = 0; r < rows; ++r) worth[r][c - b] = out.w[r][c] * out.w[r][c] / variance;
    }
    const auto up_to = [&](size_t c) {
      return o.gone * static_cast<int64_t>(c) / static_cast<int64_t>(cols);
    };
    const size_t in_area = (e - b) * (o.together ? rows : 1);
    const int64_t stay =
        o.group > 0 ? o.stay : static_cast<int64_t>(in_area) - (up_to(e) - up_to(b));
    for (size_t r = 0; r < rows; ++r) {
      for (size_t c = 0; c < e - b; ++c) {
        int64_t ahead = 0;
        for (size_t s = o.together ? 0 : r; s < (o.together ? rows : r + 1); ++s) {
          for (size_t k = 0; k < e - b; ++k) {
            const bool before = s < r || (s == r && k < c);
            ahead += worth[s][k] > worth[r][c] || (worth[s][k] == worth[r][c] && before);
          }
        }
        out.kept[r][b + c] = ahead < stay;
      }
    }
    for (size_t c = b; c < e; ++c) {
      const Matrix inverse = InverseFrom(h, c);
      for (size_t r = 0; r < rows; ++r) {
        if (out.kept[r][c]) continue;
        const double step = out.w[r][c] / inverse[0][0];
        for (size_t k = c; k < cols; ++k) out.w[r][k] -= step * inverse[0][k - c];
        out.w[r][c] = 0;
      }
    }
  }
  return out;
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_WEIGHT_SPARSE_GPT_SPARSE_GPT_REFERENCE_H_
