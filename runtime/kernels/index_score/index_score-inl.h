// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_INDEX_SCORE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_INDEX_SCORE_INL_H_
#undef SLUICE_RUNTIME_KERNELS_INDEX_SCORE_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_INDEX_SCORE_INL_H_
#endif
#include "sluice/runtime/kernels/common/panel-inl.h"
#include "sluice/runtime/kernels/index_score/index_score.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
// The greater of 0 and x, NaN where x is NaN.
HWY_MAYBE_UNUSED static HWY_INLINE VF ReluKeepingNaN(DF d, VF x) {
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128
  return hn::Max(hn::Zero(d), x);  // x86 returns the second operand where either is NaN
#else
  return hn::IfThenZeroElse(hn::Lt(x, hn::Zero(d)), x);
#endif
}

HWY_MAYBE_UNUSED static HWY_NOINLINE void IndexScore(const float* q, const float* weight,
                                                     int64_t heads, int64_t dim, const void* keys,
                                                     DType type, int64_t row_bytes,
                                                     const uint32_t* ids, int64_t n, float* score,
                                                     float* scratch) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  float* kt = scratch;
  float* s = scratch + kPanelKeys * dim;
  HWY_ALIGN float sum[kPanelKeys];
  for (int64_t at = 0; at < n; at += kPanelKeys) {
    const int64_t cols = HWY_MIN(n - at, kPanelKeys);
    const uint8_t* base = static_cast<const uint8_t*>(keys) + (ids == nullptr ? at * row_bytes : 0);
    PackKeys({base, type, row_bytes, ids == nullptr ? nullptr : ids + at}, cols, dim, kt);
    PanelGemm<false>(heads, q, dim, kt, kPanelKeys, dim, kPanelKeys, s, kPanelKeys);
    for (int64_t c = 0; c < kPanelKeys; c += N) {
      VF acc = hn::Zero(d);
      for (int64_t j = 0; j < heads; ++j) {
        const VF dot = hn::LoadU(d, s + j * kPanelKeys + c);
        const VF relu = ReluKeepingNaN(d, dot);
        acc = hn::MulAdd(hn::Set(d, weight[j]), relu, acc);
      }
      hn::Store(acc, d, sum + c);
    }
    std::memcpy(score + at, sum, cols * sizeof(float));
  }
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
