#include "sluice/runtime/host/attention_sessions.h"

#include "absl/strings/str_cat.h"
#include "sluice/runtime/dynload/installed.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
absl::StatusOr<AttentionSessions> AttentionSessions::Create(const ModelShape& shape,
                                                            const std::string& router,
                                                            const LayerRouting& layers,
                                                            const Limits& limits) {
  SessionOptions o;
  o.layers = static_cast<int>(shape.layers);
  o.heads = static_cast<int>(shape.heads);
  o.kv_heads = static_cast<int>(shape.kv_heads);
  o.head_dim = static_cast<int>(shape.head_dim);
  o.width = shape.width;
  o.max_queries = limits.max_queries;
  o.max_kv = limits.max_kv;
  o.methods = &InstalledMethods().registry;
  o.executor = limits.executor;
  const auto make = [&](const std::string& policy, std::unique_ptr<AttentionSession>& session) {
    o.policy = policy;
    auto made = AttentionSession::Create(o);
    if (!made.ok()) return WithRefused(made.status());
    session = *std::move(made);
    return absl::OkStatus();
  };

  AttentionSessions s;
  SLUICE_RETURN_IF_ERROR(make("dense", s.dense));
  SLUICE_RETURN_IF_ERROR(make(router, s.routed));
  if (shape.window > 0)
    SLUICE_RETURN_IF_ERROR(
        make(absl::StrCat("sink_window:sink=0,window=", shape.window), s.window));
  if (!layers.on()) return s;
  SLUICE_RETURN_IF_ERROR(make(layers.sparse, s.sparse));
  SLUICE_RETURN_IF_ERROR(make(layers.sparse_decode, s.sparse_decode));
  return s;
}
}  // namespace host
SLUICE_END_NAMESPACE
