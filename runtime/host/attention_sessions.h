#ifndef SLUICE_RUNTIME_HOST_ATTENTION_SESSIONS_H_
#define SLUICE_RUNTIME_HOST_ATTENTION_SESSIONS_H_
// The attention of this host's layers: one session for each way that a layer may attend.
#include <memory>
#include <string>

#include "sluice/runtime/host/layer_routing.h"
#include "sluice/runtime/host/model.h"
#include "sluice/runtime/session/attention_session.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
struct AttentionSessions {
  std::unique_ptr<AttentionSession> dense;
  std::unique_ptr<AttentionSession> routed;
  // Of layers that slide, whatever the policy; null where none does.
  std::unique_ptr<AttentionSession> window;
  // Of sparse layers, for the prompt and for what follows it; null without layer routing.
  std::unique_ptr<AttentionSession> sparse;
  std::unique_ptr<AttentionSession> sparse_decode;

  struct Limits {
    int64_t max_queries = 0;
    int64_t max_kv = 0;
    Executor* executor = nullptr;
  };
  static absl::StatusOr<AttentionSessions> Create(const ModelShape& shape,
                                                  const std::string& router,
                                                  const LayerRouting& layers, const Limits& limits);

  template <class F>
  void ForEach(const F& f) const {
    for (const auto* session : {&dense, &routed, &window, &sparse, &sparse_decode}) {
      if (*session != nullptr) f(**session);
    }
  }
  // Whether any of them reads queries and keys from before RoPE.
  bool read_pre_rope() const {
    bool reads = false;
    ForEach([&](const AttentionSession& s) { reads |= s.router().traits().reads_pre_rope; });
    return reads;
  }
};
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_ATTENTION_SESSIONS_H_
