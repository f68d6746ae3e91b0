#ifndef SLUICE_TESTS_SUPPORT_INDEXER_WEIGHTS_H_
#define SLUICE_TESTS_SUPPORT_INDEXER_WEIGHTS_H_
// The reference of a trained indexer with the weights that the harness gives a method.
#include "sluice/routers/attention/common/learned_index_reference.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
inline attention::LearnedIndexReference SyntheticIndexer(const std::string& policy,
                                                         const AttentionData& a, int64_t layer) {
  const Spec spec = *ParseSpec(policy);
  const auto* factory = *BuiltinRouters().attention.Find(spec.name);
  const SyntheticWeights weights(*factory->Weights(spec.options, a.Shape()), 1);
  const auto size = [&](const char* name) {
    return *weights.Int(absl::StrCat("sluice.lightning_indexer.", name));
  };
  attention::LearnedIndexReference r;
  r.heads = size("index_heads");
  r.dim = size("index_dim");
  r.rope = size("rope");
  const auto read = [&](const char* of, std::vector<int64_t> dims) {
    const std::vector<uint64_t> as(dims.begin(), dims.end());
    return *weights.ReadF32(absl::StrCat("lightning_indexer.", layer, ".", of), as);
  };
  r.query = read("query", {a.heads * a.d, r.heads * r.dim});
  r.key = read("key", {a.kv_heads * a.d, r.dim});
  r.key_norm = read("key_norm", {r.dim});
  r.key_shift = read("key_shift", {r.dim});
  r.weight = read("weight", {a.heads * a.d, r.heads});
  return r;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_INDEXER_WEIGHTS_H_
