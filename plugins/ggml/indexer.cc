#include "sluice/plugins/ggml/indexer.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "sluice/api/dtype.h"
#include "sluice/plugins/ggml/mask.h"
#include "sluice/runtime/attend/attend.h"
#include "sluice/runtime/kernels/index_score/index_score.h"

SLUICE_BEGIN_NAMESPACE
namespace ggml {
namespace {
constexpr int64_t kPanel = kernels::kPanelKeys;
constexpr int64_t kPiece = 8 * kPanel;  // of a query's keys; one worker's

// Keys [lo, hi) of one query.
void ScorePiece(const IndexerCall& c, int64_t query, int64_t lo, int64_t hi, float* scratch) {
  const uint16_t* mask = c.mask + query * c.mask_stride;
  float* out = c.out.at(query, 0);
  const auto sees = [&](int64_t at) { return !AllHidden(mask + at, std::min(kPanel, hi - at)); };
  for (int64_t begin = lo; begin < hi;) {
    const bool seen = sees(begin);
    int64_t end = begin + kPanel;
    while (end < hi && sees(end) == seen) end += kPanel;
    end = std::min(end, hi);
    if (!seen) {
      std::fill(out + begin, out + end, -HUGE_VALF);
    } else {
      kernels::IndexScore(c.q.at(query, 0), c.weights.at(query, 0), c.q.heads, c.q.dim,
                          c.k.at(begin, 0), c.k.dtype, c.k.row_bytes(), nullptr, end - begin,
                          out + begin, scratch);
      for (int64_t s = begin; s < end; ++s)
        out[s] = mask[s] == LogitMask::kHidden ? -HUGE_VALF : out[s] + F16ToF32(mask[s]);
    }
    begin = end;
  }
}
}  // namespace

absl::Status Indexer::Run(const IndexerCall& c, Executor& executor) {
  const int64_t n_q = c.q.rows;
  const int64_t n_kv = c.k.rows;
  const bool fits = n_q > 0 && n_kv > 0 && c.q.heads > 0 && c.q.dim > 0 && c.k.heads == 1 &&
                    c.k.dim == c.q.dim && c.q.head_stride == c.q.dim && c.weights.rows == n_q &&
                    c.weights.dim == c.q.heads && c.out.rows == n_q && c.out.dim == n_kv &&
                    c.mask != nullptr && c.mask_stride >= n_kv;
  if (!fits)
    return absl::InvalidArgumentError(absl::StrCat(
        "an indexer of q [", n_q, ", ", c.q.heads, ", ", c.q.dim, "], k [", n_kv, ", ", c.k.heads,
        ", ", c.k.dim, "], weights [", c.weights.rows, ", ", c.weights.dim, "], scores [",
        c.out.rows, ", ", c.out.dim, "], a mask's rows ", c.mask_stride, " apart"));
  const int64_t floats = kernels::IndexScratchFloats(c.q.heads, c.q.dim);
  scratch_.resize(static_cast<size_t>(floats * executor.num_workers()));
  const int64_t pieces = (n_kv + kPiece - 1) / kPiece;
  executor.ParallelFor(n_q * pieces, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t lo = i % pieces * kPiece;
      ScorePiece(c, i / pieces, lo, std::min(n_kv, lo + kPiece), &scratch_[worker * floats]);
    }
  });
  return absl::OkStatus();
}
}  // namespace ggml
SLUICE_END_NAMESPACE
