// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_GEMM_INL_H_
#undef SLUICE_RUNTIME_KERNELS_GEMM_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_GEMM_INL_H_
#endif
#include "sluice/runtime/kernels/common/panel-inl.h"
#include "sluice/runtime/kernels/gemm/gemm.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
HWY_MAYBE_UNUSED static HWY_NOINLINE void GemmNT(const float* a, int64_t lda, const float* b,
                                                 int64_t ldb, int64_t m, int64_t n, int64_t k,
                                                 float* c, int64_t ldc, float* scratch) {
  float* kt = scratch;
  float* edge = scratch + kPanelKeys * k;
  for (int64_t j = 0; j < n; j += kPanelKeys) {
    const int64_t cols = HWY_MIN(n - j, kPanelKeys);
    PackKeys({b + j * ldb, DType::kF32, ldb * int64_t{sizeof(float)}, nullptr}, cols, k, kt);
    if (cols == kPanelKeys) {
      PanelGemm<false>(m, a, lda, kt, kPanelKeys, k, kPanelKeys, c + j, ldc);
      continue;
    }
    for (int64_t i = 0; i < m; i += 64) {
      const int64_t rows = HWY_MIN(m - i, int64_t{64});
      PanelGemm<false>(rows, a + i * lda, lda, kt, kPanelKeys, k, kPanelKeys, edge, kPanelKeys);
      for (int64_t r = 0; r < rows; ++r)
        std::memcpy(c + (i + r) * ldc + j, edge + r * kPanelKeys, cols * sizeof(float));
    }
  }
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
