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
HWY_MAYBE_UNUSED static HWY_NOINLINE void GatherRows(const float* in, size_t stride, const int32_t* ids, size_t n,
                                                     size_t width, float* out) {
  for (size_t j = 0; j < n; ++j)
    std::memcpy(out + j * width, in + static_cast<size_t>(ids[j]) * stride, width * sizeof(float));
}
HWY_MAYBE_UNUSED static HWY_NOINLINE void ScatterAddRows(const float* in, const int32_t* ids, const float* weight,
                                                         size_t n, size_t width, float* out, size_t stride) {
  const DF d;
  const size_t N = hn::Lanes(d);
  for (size_t j = 0; j < n; ++j) {
    float* HWY_RESTRICT o = out + static_cast<size_t>(ids[j]) * stride;
    const float* HWY_RESTRICT x = in + j * width;
    const VF w = hn::Set(d, weight[j]);
    size_t i = 0;
    for (; i + N <= width; i += N) hn::StoreU(hn::MulAdd(w, hn::LoadU(d, x + i), hn::LoadU(d, o + i)), d, o + i);
    for (; i < width; ++i) o[i] += weight[j] * x[i];
  }
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
