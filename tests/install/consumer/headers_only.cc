// A router by its header alone: nothing of Sluice is linked.
#include "sluice/api/plan_check.h"
#include "sluice/routers/attention/sink_window/sink_window.h"

int main() {
  const sluice::AttentionRouterOf<sluice::attention::SinkWindow> router(
      *sluice::attention::SinkWindow::Create({4, 16, 0}));
  sluice::AttentionShape shape;
  shape.max_queries = 64;
  shape.max_kv = 256;
  shape.heads = shape.kv_heads = 1;
  shape.head_dim = shape.value_dim = 8;
  const auto plan = router.MakePlan(shape);
  if (!plan.ok()) return 1;
  const auto storage = *sluice::PlanStorage::Create((*plan)->info().layout);
  sluice::RouterState state;
  float x[64 * 8] = {}, keys[256 * 8] = {};
  sluice::AttentionInputs in;
  in.q = {x, 64, 1, 8, 8, 8};
  in.k = in.v = {keys, sluice::DType::kF32, 256, 1, 8, 8, 8};
  in.q_begin = 192;
  sluice::InlineExecutor one;
  if (!router.Run(**plan, in, state, {{}, &one}, *storage).ok()) return 2;
  return sluice::ValidateAttentionPlan(storage->plan()).ok() ? 0 : 3;
}
