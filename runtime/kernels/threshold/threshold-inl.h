// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_THRESHOLD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_THRESHOLD_INL_H_
#undef SLUICE_RUNTIME_KERNELS_THRESHOLD_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_THRESHOLD_INL_H_
#endif
#include "sluice/runtime/kernels/common/panel-inl.h"
#include "sluice/runtime/kernels/threshold/threshold.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
HWY_MAYBE_UNUSED static HWY_NOINLINE int64_t ThresholdCompress(const float* HWY_RESTRICT x,
                                                               int64_t n, float tau,
                                                               uint32_t* HWY_RESTRICT index) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  const VF t = hn::Set(d, tau);
  int64_t count = 0, i = 0;
  for (; i + N <= n; i += N) {
    uint8_t bytes[8] = {0};
    hn::StoreMaskBits(d, hn::Ge(hn::LoadU(d, x + i), t), bytes);
    uint64_t bits;
    std::memcpy(&bits, bytes, 8);
    for (; bits != 0; bits &= bits - 1)
      index[count++] = static_cast<uint32_t>(i + hwy::Num0BitsBelowLS1Bit_Nonzero64(bits));
  }
  for (; i < n; ++i) {
    if (x[i] >= tau) index[count++] = static_cast<uint32_t>(i);
  }
  return count;
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
