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
// Four vectors of the sum stay in registers while all rows are read beside each other, which hides
// the memory that they come from.
HWY_MAYBE_UNUSED static HWY_NOINLINE void AddRows(const float* rows, const int64_t* slot,
                                                  const float* weight, int64_t n, int64_t width,
                                                  float* out) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  int64_t i = 0;
  for (; i + 4 * N <= width; i += 4 * N) {
    VF s0 = hn::LoadU(d, out + i);
    VF s1 = hn::LoadU(d, out + i + N);
    VF s2 = hn::LoadU(d, out + i + 2 * N);
    VF s3 = hn::LoadU(d, out + i + 3 * N);
    for (int64_t j = 0; j < n; ++j) {
      const float* HWY_RESTRICT x = rows + slot[j] * width + i;
      const VF w = hn::Set(d, weight[j]);
      s0 = hn::MulAdd(w, hn::LoadU(d, x), s0);
      s1 = hn::MulAdd(w, hn::LoadU(d, x + N), s1);
      s2 = hn::MulAdd(w, hn::LoadU(d, x + 2 * N), s2);
      s3 = hn::MulAdd(w, hn::LoadU(d, x + 3 * N), s3);
    }
    hn::StoreU(s0, d, out + i);
    hn::StoreU(s1, d, out + i + N);
    hn::StoreU(s2, d, out + i + 2 * N);
    hn::StoreU(s3, d, out + i + 3 * N);
  }
  for (; i + N <= width; i += N) {
    VF sum = hn::LoadU(d, out + i);
    for (int64_t j = 0; j < n; ++j)
      sum = hn::MulAdd(hn::Set(d, weight[j]), hn::LoadU(d, rows + slot[j] * width + i), sum);
    hn::StoreU(sum, d, out + i);
  }
  for (; i < width; ++i) {
    for (int64_t j = 0; j < n; ++j) out[i] += weight[j] * rows[slot[j] * width + i];
  }
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
