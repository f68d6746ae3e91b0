#ifndef SLUICE_API_PLAN_CODEC_H_
#define SLUICE_API_PLAN_CODEC_H_
// The host's side of a plan that a plug-in wrote: all that must hold of it before anything reads
// it, in one call. Neither a kernel nor a reader of plans checks again.
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/attention_router.h"
#include "sluice/api/check.h"
#include "sluice/api/plan_builder.h"
#include "sluice/api/plan_check.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace plan_codec {
// Before the plug-in runs: one who sets nothing is found out.
inline void Offer(PlanBuilder& out) {
  out.record()->num_branches = 0;
  out.record()->num_tables = 0;
}

// After it ran: the record is a plan for these inputs, within its storage, whose lists say what
// they claim. Allocation-free when it succeeds; O(listed).
inline absl::Status Take(const AttentionInputs& in, PlanBuilder& out) {
  SLUICE_RETURN_IF_ERROR(out.Adopt(in.q_positions));
  const sluice_attention_plan& r = *out.record();
  // Another first position would let its queries see what comes after them.
  const bool moved = in.q_positions.empty() && r.q_begin != in.q_begin;
  if (moved || r.q_count != in.q.rows || r.kv_len > in.kv_len() || r.heads != in.q.heads ||
      r.kv_heads != in.k.heads) {
    return absl::InternalError(absl::StrCat(
        "the plan is for ", r.q_count, " queries from ", r.q_begin, " on, ", r.kv_len,
        " keys and heads ", r.heads, "/", r.kv_heads, "; asked were ", in.q.rows, " from ",
        in.q_begin, " on, at most ", in.kv_len(), " and ", in.q.heads, "/", in.k.heads));
  }
  return CheckPlanLists(out.plan());
}
}  // namespace plan_codec
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_PLAN_CODEC_H_
