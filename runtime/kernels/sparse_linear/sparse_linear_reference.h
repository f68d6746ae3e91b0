#ifndef SLUICE_RUNTIME_KERNELS_SPARSE_LINEAR_SPARSE_LINEAR_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_SPARSE_LINEAR_SPARSE_LINEAR_REFERENCE_H_
// The specification: plain loops in double precision over a matrix that was never packed. What
// `kept` leaves out is not multiplied, whatever x holds there; what it keeps is, be it 0 or no
// number. No weight kept: 0.
#include <cstdint>
#include <vector>

namespace sluice::kernels {
// y [n, rows] = x [n, cols] W^T, kept(r, c) of W [rows, cols].
template <class Kept>
std::vector<double> SparseLinearReference(const std::vector<float>& w, int64_t rows, int64_t cols,
                                          Kept&& kept, const std::vector<float>& x, int64_t n) {
  std::vector<double> y;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (int64_t c = 0; c < cols; ++c) {
        if (kept(r, c)) sum += static_cast<double>(w[r * cols + c]) * x[i * cols + c];
      }
      y.push_back(sum);
    }
  }
  return y;
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_SPARSE_LINEAR_SPARSE_LINEAR_REFERENCE_H_
