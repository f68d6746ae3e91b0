#ifndef SLUICE_RUNTIME_HOST_UNIT_ROUTING_H_
#define SLUICE_RUNTIME_HOST_UNIT_ROUTING_H_
// What this host decides beside attention, and which of that goes together.
#include <optional>

#include "sluice/runtime/host/attention_sessions.h"
#include "sluice/runtime/host/expert_routing.h"
#include "sluice/runtime/host/layer_routing.h"
#include "sluice/runtime/host/token_pruning.h"
#include "sluice/runtime/host/token_routing.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
struct UnitRouting {
  std::optional<LayerRouter> layers;
  std::optional<TokenRouter> tokens;
  std::optional<TokenPruner> pruning;
  std::optional<ExpertRouter> experts;  // of a Mixture of Experts, or instead of a dense FFN

  static absl::StatusOr<UnitRouting> Create(const ModelShape& shape, const LayerRouting& layers,
                                            const TokenRouting& tokens, const TokenPruning& pruning,
                                            const ExpertRouting& experts,
                                            const AttentionSessions& attention,
                                            const AttentionSessions::Limits& limits);
};
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_UNIT_ROUTING_H_
