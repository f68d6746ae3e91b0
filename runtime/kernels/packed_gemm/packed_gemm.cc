#include "sluice/runtime/kernels/packed_gemm/packed_gemm.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/runtime/kernels/packed_gemm/packed_gemm.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "sluice/runtime/kernels/packed_gemm/packed_gemm-inl.h"

#if HWY_ONCE
namespace sluice_kernels {
HWY_EXPORT(PackRows);
HWY_EXPORT(GemmPacked);
HWY_EXPORT(GemmPackedAdd);
HWY_EXPORT(GatedPacked);
HWY_EXPORT(GateRows);
}  // namespace sluice_kernels
namespace sluice::kernels {
using namespace sluice_kernels;  // the dispatch tables
void PackRows(const float* b, int64_t ldb, int64_t n, int64_t k, float* packed) {
  HWY_DYNAMIC_DISPATCH(PackRows)(b, ldb, n, k, packed);
}
void GemmPacked(const RowsAt& a, const float* packed, int64_t m, int64_t n, int64_t k, float* c,
                int64_t ldc) {
  HWY_DYNAMIC_DISPATCH(GemmPacked)(a, packed, m, n, k, c, ldc);
}
void GemmPackedAdd(const RowsAt& a, const float* packed, int64_t m, int64_t n, int64_t k,
                   const int32_t* ids, const float* weight, float* out, int64_t stride) {
  HWY_DYNAMIC_DISPATCH(GemmPackedAdd)(a, packed, m, n, k, ids, weight, out, stride);
}
void GatedPacked(const RowsAt& a, const float* gate, const float* up, int64_t m, int64_t n,
                 int64_t k, float* h, int64_t ldh) {
  HWY_DYNAMIC_DISPATCH(GatedPacked)(a, gate, up, m, n, k, h, ldh);
}
void GateRows(const float* gate, const float* up, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(GateRows)(gate, up, n, out);
}
}  // namespace sluice::kernels
#endif
