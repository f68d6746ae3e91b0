#ifndef SLUICE_RUNTIME_KERNELS_GATHER_GATHER_H_
#define SLUICE_RUNTIME_KERNELS_GATHER_GATHER_H_
#include <cstddef>
#include <cstdint>

#include "sluice/api/dtype.h"

namespace sluice::kernels {
// Row stride and width in elements. out[j] = in[ids[j]].
void GatherRows(const float* in, int64_t stride, const int32_t* ids, int64_t n, int64_t width,
                float* out);
// out[ids[j]] += weight[j] * in[j], j ascending. ids may repeat. O(n width).
void ScatterAddRows(const float* in, const int32_t* ids, const float* weight, int64_t n,
                    int64_t width, float* out, int64_t stride);
// out += the sum over j of weight[j] * rows[slot[j]], j ascending, rows packed: the bits of a
// ScatterAddRows for each, in one pass over out. O(n width).
void AddRows(const float* rows, const int64_t* slot, const float* weight, int64_t n, int64_t width,
             float* out);
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_GATHER_GATHER_H_
