// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_GATHER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_GATHER_INL_H_
#undef SLUICE_RUNTIME_KERNELS_GATHER_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_GATHER_INL_H_
#endif
#include "sluice/runtime/kernels/common/panel-inl.h"
#include "sluice/runtime/kernels/gather/gather.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
HWY_MAYBE_UNUSED static HWY_NOINLINE void GatherRows(const float* in, int64_t stride,
                                                     const int32_t* ids, int64_t n, int64_t width,
                                                     float* out) {
  for (int64_t j = 0; j < n; ++j)
    std::memcpy(out + j * width, in + static_cast<int64_t>(ids[j]) * stride, width * sizeof(float));
}
HWY_MAYBE_UNUSED static HWY_NOINLINE void ScatterAddRows(const float* in, const int32_t* ids,
                                                         const float* weight, int64_t n,
                                                         int64_t width, float* out,
                                                         int64_t stride) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  for (int64_t j = 0; j < n; ++j) {
    float* HWY_RESTRICT o = out + static_cast<int64_t>(ids[j]) * stride;
    const float* HWY_RESTRICT x = in + j * width;
    const VF w = hn::Set(d, weight[j]);
    int64_t i = 0;
    for (; i + N <= width; i += N)
      hn::StoreU(hn::MulAdd(w, hn::LoadU(d, x + i), hn::LoadU(d, o + i)), d, o + i);
    for (; i < width; ++i) o[i] += weight[j] * x[i];
  }
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
