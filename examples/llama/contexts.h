#ifndef SLUICE_EXAMPLES_LLAMA_CONTEXTS_H_
#define SLUICE_EXAMPLES_LLAMA_CONTEXTS_H_
// Speed alone, over contexts: one process and one copy of the weights, in which a context that was
// made before the backend was loaded and one that was made after it take turns.
#include "absl/status/status.h"
#include "sluice/examples/llama/options.h"

SLUICE_BEGIN_NAMESPACE
namespace llama {
// A table of prefill and decode with and without the backend. Of a random model, its file is
// written first and goes with the process. InvalidArgument, before anything is measured, for a
// policy or a random model that is not there.
absl::Status CompareContexts(const Options& options);

// The table's steps alone: each prompt is read once, by the backend's policy, and both sides step
// from there on. Unimplemented where llama.cpp does not copy a model's cache.
absl::Status CompareSteps(const Options& options);

// What handing a step over to the backend costs a layer: the difference of steps in which attention
// has next to nothing to do, over few keys and by a policy that reads two of them.
absl::Status MeasureOverhead(const Options& options);
}  // namespace llama
SLUICE_END_NAMESPACE
#endif  // SLUICE_EXAMPLES_LLAMA_CONTEXTS_H_
