#include "sluice/runtime/host/unit_routing.h"

#include "absl/strings/str_cat.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
absl::StatusOr<UnitRouting> UnitRouting::Create(const ModelShape& shape, const LayerRouting& layers,
                                                const TokenRouting& tokens,
                                                const TokenPruning& pruning,
                                                const ExpertRouting& experts,
                                                const AttentionSessions& attention,
                                                const AttentionSessions::Limits& limits) {
  UnitRouting r;
  if (shape.window > 0 && (layers.on() || pruning.on()))
    return absl::InvalidArgumentError(
        absl::StrCat("layers of this model slide over ", shape.window,
                     " keys, which layer routing and token pruning would change; allowed: routers "
                     "of attention, tokens and experts"));
  if (shape.early_gate() && (tokens.on() || pruning.on()))
    return absl::InvalidArgumentError(
        "this model's experts are chosen for every token before attention, and token routing or "
        "pruning leaves some out; allowed: routers of attention and experts");
  if (layers.on()) {
    SLUICE_ASSIGN_OR_RETURN(r.layers,
                            LayerRouter::Create(layers, shape, limits.max_kv, limits.executor));
  }
  if (layers.on() && layers.evict) {
    if (attention.read_pre_rope())
      return absl::InvalidArgumentError(
          "evicting keys needs routers that do not summarise keys before RoPE");
    if (attention.sparse_decode->info().reach_last < 0)
      return absl::InvalidArgumentError(absl::StrCat(
          "evicting keys needs a router of sparse steps whose queries see the first and the last "
          "keys only; '",
          layers.sparse_decode, "' may come back to any"));
  }

  if (tokens.on()) {
    SLUICE_ASSIGN_OR_RETURN(
        r.tokens, TokenRouter::Create(tokens, shape, limits.max_queries, limits.executor));
  }

  if (shape.experts > 0 || experts.on()) {
    SLUICE_ASSIGN_OR_RETURN(
        r.experts, ExpertRouter::Create(experts, shape, limits.max_queries, limits.executor));
    if (r.experts->reads_positions() && (tokens.on() || pruning.on()))
      return absl::InvalidArgumentError(absl::StrCat(
          "'", experts.router,
          "' decides by the tokens' places, and token routing or pruning leaves some out"));
  }

  if (!pruning.on()) return r;
  if (layers.on() || tokens.on() || attention.read_pre_rope())
    return absl::InvalidArgumentError(
        "token pruning runs without layer routing, token routing and routers that summarise keys "
        "before RoPE");
  SLUICE_ASSIGN_OR_RETURN(r.pruning,
                          TokenPruner::Create(pruning, shape, limits.max_kv, limits.executor));
  return r;
}
}  // namespace host
SLUICE_END_NAMESPACE
