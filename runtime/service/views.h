#ifndef SLUICE_RUNTIME_SERVICE_VIEWS_H_
#define SLUICE_RUNTIME_SERVICE_VIEWS_H_
// What a server shows of itself. Each reads, and changes nothing.
#include "sluice/runtime/service/decisions.h"
#include "sluice/runtime/service/learner.h"
#include "sluice/runtime/service/tally.h"
#include "sluice/runtime/service/team.h"
#include "sluice/v1/sidecar.pb.h"

SLUICE_BEGIN_NAMESPACE
namespace views {
void Explain(const Decisions& decisions, uint64_t id, v1::Response& r);
void Counters(const Tally& tally, v1::StatsResponse& s);
void Agents(const Team& team, v1::StatsResponse& s);
void Budgets(const Team& team, v1::StatsResponse& s);
// The most travelled ones.
void Paths(const Decisions& decisions, v1::StatsResponse& s);
void Policies(const LearnedState& state, int active, v1::ListPoliciesResponse& out);
void Snapshot(const LearnedState& state, bool include_state, v1::SnapshotResponse& out);
// How the active policy would weigh every candidate for each task.
void HeatMap(const LearnedState& state, int active, const Team& team, v1::HeatMapResponse& out);
void History(const Tally& tally, v1::HistoryResponse& out);
}  // namespace views
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_VIEWS_H_
