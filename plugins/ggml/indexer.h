#ifndef SLUICE_PLUGINS_GGML_INDEXER_H_
#define SLUICE_PLUGINS_GGML_INDEXER_H_
// Token scores as ggml's LIGHTNING_INDEXER asks for them (DeepSeek-V3.2, arXiv 2512.02556). Knows
// nothing of ggml's types, so it is tested without them.
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "sluice/api/executor.h"
#include "sluice/api/tensor_view.h"

SLUICE_BEGIN_NAMESPACE
namespace ggml {
struct IndexerCall {
  HeadsView<const float> q;        // [n_q, heads, d]
  KvView k;                        // [n_kv, 1, d], any type but int8
  HeadsView<const float> weights;  // [n_q, 1, heads]
  const uint16_t* mask = nullptr;  // f16 [n_q, n_kv]
  int64_t mask_stride = 0;         // elements a row
  HeadsView<float> out;            // [n_q, 1, n_kv]
};

// Not for concurrent use.
class Indexer {
 public:
  //   out[i, s] = mask[i, s] + sum_h weights[i, h] * max(0, q[i, h] . k[s])
  //
  // and -inf where the mask is, whatever keys hold there: panels of 64 keys that a query does not
  // see are not read. Elsewhere a NaN shows. Bits do not depend on the executor's threads.
  // O(n_q * n_kv + visible panels * 64 * heads * d).
  absl::Status Run(const IndexerCall& call, Executor& executor);

 private:
  std::vector<float> scratch_;  // of each worker
};
}  // namespace ggml
SLUICE_END_NAMESPACE
#endif  // SLUICE_PLUGINS_GGML_INDEXER_H_
