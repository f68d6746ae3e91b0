#ifndef SLUICE_RUNTIME_ATTEND_MASK_ROW_H_
#define SLUICE_RUNTIME_ATTEND_MASK_ROW_H_
// What a host's mask of logits says about one query and a panel of keys.
#include <cstdint>
#include <cstring>

#include "sluice/api/dtype.h"
#include "sluice/runtime/attend/attend.h"
#include "sluice/runtime/attend/panel_cursor.h"

SLUICE_BEGIN_NAMESPACE
namespace attend_internal {
class MaskRow {
 public:
  MaskRow(const LogitMask& mask, int64_t query, const Panel& panel) {
    const uint16_t* from = mask.values + query * mask.stride;
    if (panel.ids == nullptr) {
      std::memcpy(x_, from + panel.start, static_cast<size_t>(panel.n) * sizeof *x_);
    } else {
      for (int64_t j = 0; j < panel.n; ++j) x_[j] = from[panel.ids[j]];
    }
    uint64_t words[kernels::kPanelKeys / 4];
    std::memcpy(words, x_, sizeof words);
    uint64_t any = 0;
    for (uint64_t word : words) any |= word;
    if (any != 0) Look();
  }

  // Bit j: the query sees key j.
  uint64_t Visible() const { return visible_; }
  // A visible key's value is not 0.
  bool HasValues() const { return has_values_; }
  // [64] in log2 units, 0 for hidden keys.
  void WriteBias(float* bias) const {
    for (int64_t j = 0; j < kernels::kPanelKeys; ++j)
      bias[j] = x_[j] == kHidden ? 0.0f : F16ToF32(x_[j]) * kernels::kLog2E;
  }

 private:
  static constexpr uint16_t kHidden = LogitMask::kHidden;

  void Look() {
    uint16_t values = 0;
    for (int64_t j = 0; j < kernels::kPanelKeys; ++j) {
      const bool hidden = x_[j] == kHidden;
      visible_ &= ~(static_cast<uint64_t>(hidden) << j);
      values = static_cast<uint16_t>(values | (hidden ? 0 : x_[j]));
    }
    has_values_ = values != 0;
  }

  uint16_t x_[kernels::kPanelKeys] = {};
  uint64_t visible_ = ~uint64_t{0};
  bool has_values_ = false;
};
}  // namespace attend_internal
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_ATTEND_MASK_ROW_H_
