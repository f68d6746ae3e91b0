#include "sluice/runtime/kernels/gather/gather.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/runtime/kernels/gather/gather.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "sluice/runtime/kernels/gather/gather-inl.h"

#if HWY_ONCE
namespace sluice_kernels {
HWY_EXPORT(GatherRows);
HWY_EXPORT(ScatterAddRows);
HWY_EXPORT(AddRows);
}  // namespace sluice_kernels
namespace sluice::kernels {
using namespace sluice_kernels;  // the dispatch tables
void GatherRows(const float* in, int64_t stride, const int32_t* ids, int64_t n, int64_t width,
                float* out) {
  HWY_DYNAMIC_DISPATCH(GatherRows)(in, stride, ids, n, width, out);
}
void ScatterAddRows(const float* in, const int32_t* ids, const float* weight, int64_t n,
                    int64_t width, float* out, int64_t stride) {
  HWY_DYNAMIC_DISPATCH(ScatterAddRows)(in, ids, weight, n, width, out, stride);
}
void AddRows(const float* rows, const int64_t* slot, const float* weight, int64_t n, int64_t width,
             float* out) {
  HWY_DYNAMIC_DISPATCH(AddRows)(rows, slot, weight, n, width, out);
}
}  // namespace sluice::kernels
#endif
