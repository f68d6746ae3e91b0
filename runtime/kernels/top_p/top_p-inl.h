// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_TOP_P_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_TOP_P_INL_H_
#undef SLUICE_RUNTIME_KERNELS_TOP_P_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_TOP_P_INL_H_
#endif
#include <algorithm>
#include <functional>
#include "sluice/runtime/kernels/common/panel-inl.h"
#include "sluice/runtime/kernels/top_p/top_p.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
HWY_MAYBE_UNUSED static HWY_NOINLINE int64_t TopP(const float* x, int64_t n, float p,
                                                  uint32_t* index, void* scratch) {
  int64_t count = 0;
  if (!(p > 0)) return 0;
  if (p >= 1) {
    for (int64_t i = 0; i < n; ++i) {
      if (x[i] >= 0) index[count++] = static_cast<uint32_t>(i);
    }
    return count;
  }
  // Mass per bin of the top 12 bits of a positive float (sign, exponent, 3 of mantissa), then an
  // exact sort of the one bin in which the sum crosses.
  double* mass = static_cast<double*>(scratch);
  std::memset(mass, 0, 4096 * sizeof(double));
  double total = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] > 0) {
      mass[sluice::F32ToBits(x[i]) >> 20] += x[i];
      total += x[i];
    }
  }
  if (!(total > 0)) return 0;
  const double goal = static_cast<double>(p) * total;
  double sum = 0;
  int64_t bin = 4095;
  while (bin > 0 && sum + mass[bin] < goal) sum += mass[bin--];
  uint64_t* edge = reinterpret_cast<uint64_t*>(
      mass + 4096);  // value in the high half, inverted index in the low
  int64_t edges = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] > 0 && (sluice::F32ToBits(x[i]) >> 20) == bin) {
      edge[edges++] = (static_cast<uint64_t>(sluice::F32ToBits(x[i])) << 32) |
                      (0xFFFFFFFFu - static_cast<uint32_t>(i));
    }
  }
  std::sort(edge, edge + edges, std::greater<uint64_t>());
  uint64_t last = ~uint64_t{0};
  for (int64_t i = 0; i < edges && sum < goal; ++i) {
    last = edge[i];
    sum += sluice::BitsToF32(static_cast<uint32_t>(edge[i] >> 32));
  }
  for (int64_t i = 0; i < n; ++i) {
    if (!(x[i] > 0)) continue;
    const int64_t b = sluice::F32ToBits(x[i]) >> 20;
    const uint64_t key = (static_cast<uint64_t>(sluice::F32ToBits(x[i])) << 32) |
                         (0xFFFFFFFFu - static_cast<uint32_t>(i));
    if (b > bin || (b == bin && key >= last)) index[count++] = static_cast<uint32_t>(i);
  }
  return count;
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
