#include "sluice/runtime/host/expert_routing.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
absl::StatusOr<ExpertRouter> ExpertRouter::Create(const ExpertRouting& options,
                                                  const ModelShape& shape, int64_t max_rows,
                                                  Executor* executor) {
  const std::string text = options.on() ? options.router : "expert/top_k";
  SLUICE_ASSIGN_OR_RETURN(const RouteTraits traits, TraitsOf(text));
  if (traits.domain != Domain::kExpert || traits.combine != Combine::kWeightedSum ||
      (traits.reads & ~(kReadsScores | kReadsHidden)) != 0)
    return absl::InvalidArgumentError(
        absl::StrCat(traits.name,
                     " cannot route experts here; allowed: expert routers that read the gate's "
                     "scores and hidden states at most, and whose units are added up"));

  ExpertRouter r(shape, executor);
  const RouteShape route = {.items = max_rows,
                            .units = shape.experts,
                            .workers = executor->num_workers(),
                            .hidden = shape.width};
  int64_t entries = 0;
  size_t unit_bytes = 0;
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    SLUICE_RETURN_IF_ERROR(r.routers_.Add(
        text, {{"k", absl::StrCat(shape.experts_used), true}, {"layer", absl::StrCat(layer), true}},
        options.weights, route));
    const RoutePlanInfo& info = r.routers_.info(static_cast<size_t>(layer));
    if (info.shape.units != shape.experts)
      return absl::InvalidArgumentError(absl::StrCat(
          traits.name, " has ", info.shape.units, " units, the model ", shape.experts, " experts"));
    entries = std::max(entries, info.max_entries);
    unit_bytes = std::max(unit_bytes, info.unit_workspace_bytes);
  }
  r.routers_.Reserve();

  SLUICE_ASSIGN_OR_RETURN(Dispatch dispatch,
                          Dispatch::Create({.max_items = max_rows,
                                            .in_width = shape.width,
                                            .out_width = shape.width,
                                            .max_entries = entries,
                                            .max_units = shape.experts,
                                            .unit_workspace_bytes = unit_bytes,
                                            .workers = executor->num_workers()}));
  r.workspace_.Resize(dispatch.workspace_bytes());
  r.dispatch_ = std::move(dispatch);
  r.scores_.resize(static_cast<size_t>(max_rows * shape.experts));
  r.sum_.resize(static_cast<size_t>(max_rows * shape.width));
  r.positions_.resize(static_cast<size_t>(max_rows));
  r.rows_.resize(static_cast<size_t>(shape.layers * shape.experts));
  return r;
}

absl::Status ExpertRouter::Run(int64_t layer, const Layer& weights, int64_t begin, int64_t n,
                               const float* h, float* x, LayerMath& math) {
  const size_t at = static_cast<size_t>(layer);
  math.MatMul(h, weights.expert_gate.data(), n, width_, experts_, scores_.data());
  RouteInputs in;
  in.items = n;
  in.scores = {scores_.data(), n, experts_, experts_};
  in.hidden = {h, n, width_, width_};
  in.layer = layer;
  if (routers_.use_positions()) {
    std::iota(positions_.begin(), positions_.begin() + n, begin);
    in.positions = {positions_.data(), static_cast<size_t>(n)};
  }
  SLUICE_ASSIGN_OR_RETURN(const Assignment* assigned, routers_.Run(at, in));

  const auto expert = [&](const UnitRows& rows, const RunContext&) {
    math.Ffn(weights, rows.unit, rows.in.data, rows.in.rows, rows.out.data, false);
    rows_[layer * experts_ + rows.unit] += rows.in.rows;
    return absl::OkStatus();
  };
  SLUICE_RETURN_IF_ERROR(dispatch_->Run(routers_.router(at), routers_.plan(at), *assigned,
                                        {h, n, width_, width_}, {sum_.data(), n, width_, width_},
                                        {{workspace_.data(), workspace_.bytes()}, executor_},
                                        expert));
  for (int64_t i = 0; i < n * width_; ++i) x[i] += sum_[i];
  return absl::OkStatus();
}

void ExpertRouter::ResetCounters() { std::fill(rows_.begin(), rows_.end(), 0); }
}  // namespace host
SLUICE_END_NAMESPACE
