#include "sluice/runtime/kernels/pool/pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/runtime/kernels/pool/pool.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "sluice/runtime/kernels/pool/pool-inl.h"

#if HWY_ONCE
namespace sluice_kernels {
HWY_EXPORT(Pool);
}  // namespace sluice_kernels
namespace sluice::kernels {
using namespace sluice_kernels;  // the dispatch tables
void Pool(PoolKind kind, const void* in, DType type, int64_t stride, int64_t n, int64_t d,
          float* out) {
  HWY_DYNAMIC_DISPATCH(Pool)(kind, in, type, stride, n, d, out);
}
}  // namespace sluice::kernels
#endif
