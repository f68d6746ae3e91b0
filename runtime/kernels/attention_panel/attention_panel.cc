#include "sluice/runtime/kernels/attention_panel/attention_panel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/runtime/kernels/attention_panel/attention_panel.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "sluice/runtime/kernels/attention_panel/attention_panel-inl.h"

#if HWY_ONCE
namespace sluice_kernels {
HWY_EXPORT(AttendPanel);
HWY_EXPORT(AllFinite);
HWY_EXPORT(PanelProbabilities);
HWY_EXPORT(PackKeyPanel);
HWY_EXPORT(PackValuePanel);
}  // namespace sluice_kernels
namespace sluice::kernels {
using namespace sluice_kernels;  // the dispatch tables
void PackKeyPanel(const PanelSource& s, int64_t n, int64_t d, float* kt) {
  HWY_DYNAMIC_DISPATCH(PackKeyPanel)(s, n, d, kt);
}
void PackValuePanel(const PanelSource& s, int64_t n, int64_t dv, int64_t dv_pad, float* v) {
  HWY_DYNAMIC_DISPATCH(PackValuePanel)(s, n, dv, dv_pad, v);
}
bool AllFinite(const PanelSource& values, int64_t n, int64_t dim) {
  return HWY_DYNAMIC_DISPATCH(AllFinite)(values, n, dim);
}
float AttendPanel(const AttentionPanel& p) { return HWY_DYNAMIC_DISPATCH(AttendPanel)(p); }
void PanelProbabilities(const AttentionPanel& p, float* prob, int64_t prob_stride) {
  HWY_DYNAMIC_DISPATCH(PanelProbabilities)(p, prob, prob_stride);
}
const Bf16Attention* GetBf16Attention(Bf16Unit unit) {
  switch (unit) {
    case Bf16Unit::kAmx:
      return bf16_internal::Amx();
    case Bf16Unit::kAvx512:
      return bf16_internal::Avx512();
    case Bf16Unit::kNone:
      return nullptr;
    case Bf16Unit::kBest:
      break;
  }
  if (const Bf16Attention* amx = bf16_internal::Amx(); amx != nullptr) return amx;
  const Bf16Attention* dots = bf16_internal::Avx512();
  return dots != nullptr && bf16_internal::Avx512OutrunsFp32() ? dots : nullptr;
}
}  // namespace sluice::kernels
#endif
