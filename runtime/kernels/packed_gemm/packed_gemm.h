#ifndef SLUICE_RUNTIME_KERNELS_PACKED_GEMM_PACKED_GEMM_H_
#define SLUICE_RUNTIME_KERNELS_PACKED_GEMM_PACKED_GEMM_H_
// Products with weights that are packed once and used often, fp32: a layer of experts. What stands
// before and after such a product is done with it: rows are read where they lie, gated halves are
// multiplied, results are added to the rows they belong to.
//
// Every output is one sum in rising k: its bits depend neither on the other rows nor on how rows
// are cut into calls.
#include <cstddef>
#include <cstdint>

#include "sluice/runtime/kernels/common/panel.h"

namespace sluice::kernels {
// Row j of A [m, k] at base + (ids ? ids[j] : j) * stride, in elements.
struct RowsAt {
  const float* base = nullptr;
  int64_t stride = 0;
  const int32_t* ids = nullptr;
};

// B [n, k], row stride ldb, as panels of 64 of its rows, each [k, 64]; what n lacks to whole panels
// is 0. Loads are fastest where `packed` is aligned to 64 bytes. O(n k).
inline constexpr int64_t PackedFloats(int64_t n, int64_t k) {
  return (n + kPanelKeys - 1) / kPanelKeys * kPanelKeys * k;
}
void PackRows(const float* b, int64_t ldb, int64_t n, int64_t k, float* packed);

// C [m, n] = A B^T, row stride ldc. O(m n k), as the two below.
void GemmPacked(const RowsAt& a, const float* packed, int64_t m, int64_t n, int64_t k, float* c,
                int64_t ldc);
// out[ids[j]] += weight[j] * (A B^T)[j]; no two ids are the same, rows of `out` lie `stride` apart.
// The same bits as GemmPacked and ScatterAddRows.
void GemmPackedAdd(const RowsAt& a, const float* packed, int64_t m, int64_t n, int64_t k,
                   const int32_t* ids, const float* weight, float* out, int64_t stride);
// H [m, n] = SiLU(A gate^T) * (A up^T), two matrices of n rows; row stride ldh. The same bits as
// two products and GateRows.
void GatedPacked(const RowsAt& a, const float* gate, const float* up, int64_t m, int64_t n,
                 int64_t k, float* h, int64_t ldh);

// out = SiLU(gate) * up, n of each. SiLU(z) = z / (1 + e^-z) to a relative 2e-7 (1 + |z|). O(n).
void GateRows(const float* gate, const float* up, int64_t n, float* out);
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_PACKED_GEMM_PACKED_GEMM_H_
