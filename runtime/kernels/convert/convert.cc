#include "sluice/runtime/kernels/convert/convert.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/runtime/kernels/convert/convert.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "sluice/runtime/kernels/convert/convert-inl.h"

#if HWY_ONCE
namespace sluice_kernels {
HWY_EXPORT(ConvertToF32);
HWY_EXPORT(ConvertFromF32);
}  // namespace sluice_kernels
namespace sluice::kernels {
using namespace sluice_kernels;  // the dispatch tables
void ConvertToF32(const void* in, DType type, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(ConvertToF32)(in, type, n, out);
}
void ConvertFromF32(const float* in, int64_t n, DType type, void* out) {
  HWY_DYNAMIC_DISPATCH(ConvertFromF32)(in, n, type, out);
}
}  // namespace sluice::kernels
#endif
