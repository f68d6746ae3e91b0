#ifndef SLUICE_RUNTIME_KERNELS_COMMON_PANEL_H_
#define SLUICE_RUNTIME_KERNELS_COMMON_PANEL_H_
#include <cstddef>
#include <cstdint>

#include "sluice/api/dtype.h"

namespace sluice::kernels {
// Keys are worked on in panels of this many, cut at absolute multiples of it, so that every plan
// that lists the same keys performs the same operations in the same order.
inline constexpr int64_t kPanelKeys = 64;

// Rows of one head: row j is at base + (ids ? ids[j] : j) * row_bytes.
struct PanelSource {
  const void* base = nullptr;
  DType dtype = DType::kF32;
  int64_t row_bytes = 0;
  const uint32_t* ids = nullptr;
};
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_COMMON_PANEL_H_
