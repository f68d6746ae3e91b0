#ifndef SLUICE_RUNTIME_LAB_PRUNE_PRUNE_NEURONS_H_
#define SLUICE_RUNTIME_LAB_PRUNE_PRUNE_NEURONS_H_
// Whole neurons of the feed-forward parts: a column of ffn_down with the rows of ffn_gate and
// ffn_up that feed it, as many in every layer.
#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "sluice/api/weight_pruner.h"
#include "sluice/runtime/weights/gguf.h"
#include "sluice/runtime/weights/gguf_writer.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
// Of `neurons`, how many stay when the share `ratio` goes: rounded up to whole blocks of 32, as
// quantised rows of ffn_down have to be.
int64_t NeuronsThatStay(int64_t neurons, double ratio);

// The file without the neurons whose columns the masks drop, which are by the names of all layers'
// ffn_down and keep whole columns, as many in each: InvalidArgument else.
absl::StatusOr<GgufWriter> WithoutNeurons(const Gguf& file,
                                          const std::map<std::string, Mask>& masks);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_PRUNE_PRUNE_NEURONS_H_
