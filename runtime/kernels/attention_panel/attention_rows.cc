#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/runtime/kernels/attention_panel/attention_rows.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "sluice/runtime/kernels/attention_panel/attention_rows-inl.h"

#if HWY_ONCE
namespace sluice_kernels {
HWY_EXPORT(AttendRows);
}  // namespace sluice_kernels
namespace sluice::kernels {
using namespace sluice_kernels;  // the dispatch tables
float AttendRows(const AttentionPanel& p, const PanelSource& keys, const PanelSource& values,
                 const PanelAhead& ahead) {
  return HWY_DYNAMIC_DISPATCH(AttendRows)(p, keys, values, ahead);
}
}  // namespace sluice::kernels
#endif
