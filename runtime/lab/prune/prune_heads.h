#ifndef SLUICE_RUNTIME_LAB_PRUNE_PRUNE_HEADS_H_
#define SLUICE_RUNTIME_LAB_PRUNE_PRUNE_HEADS_H_
// Whole attention heads, as many in every layer: KV heads with the query heads that share them, or
// of every KV head as many of its query heads; the rows of attn_q, attn_k and attn_v and the
// columns of attn_output. Hosts of the format take other numbers of heads than the width divided by
// their length, as long as the length is said; a KV head takes the same number of query heads as
// another, those that stand beside each other.
#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "sluice/api/weight_pruner.h"
#include "sluice/runtime/host/model.h"
#include "sluice/runtime/weights/gguf.h"
#include "sluice/runtime/weights/gguf_writer.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
// Of `groups` KV heads, how many stay when the share `ratio` goes: floor(ratio groups) go.
// InvalidArgument where none would go or none would stay.
absl::StatusOr<int64_t> GroupsThatStay(int64_t groups, double ratio);

// Of the `shared` query heads of each of `groups` KV heads, how many stay when the share `ratio`
// goes: floor(ratio shared) go. InvalidArgument where none would go or none would stay.
absl::StatusOr<int64_t> QueryHeadsThatStay(int64_t shared, int64_t groups, double ratio);

// The file without the query heads whose columns the masks of attn_output drop, and without the KV
// heads that lose all of theirs. The masks are by the names of all layers and keep whole heads: of
// every KV head that stays as many, and as many KV heads in each layer; InvalidArgument else.
absl::StatusOr<GgufWriter> WithoutHeads(const Gguf& file, const host::ModelShape& shape,
                                        const std::map<std::string, Mask>& masks);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_PRUNE_PRUNE_HEADS_H_
