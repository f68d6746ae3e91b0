#ifndef SLUICE_PRUNERS_COMMON_CHAIN_H_
#define SLUICE_PRUNERS_COMMON_CHAIN_H_
// Stages of pruning in a row: each starts from the mask that the one before it left.
#include <memory>
#include <vector>

#include "sluice/api/weight_pruner.h"

SLUICE_BEGIN_NAMESPACE
namespace pruning {
// The mask of the last stage. Errors: no stage, or what a stage says.
inline absl::StatusOr<Mask> PruneInStages(
    absl::Span<const std::unique_ptr<const WeightPruner>> stages, PruneInputs in,
    const RunContext& ctx) {
  if (stages.empty()) return absl::InvalidArgumentError("pruning: no stage was given");
  Mask mask;
  for (const auto& stage : stages) {
    SLUICE_ASSIGN_OR_RETURN(mask, stage->Prune(in, ctx));
    in.start = &mask;
  }
  return mask;
}
}  // namespace pruning
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_COMMON_CHAIN_H_
