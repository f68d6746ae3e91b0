#include "sluice/runtime/host/expert_routing.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
absl::StatusOr<ExpertRouter> ExpertRouter::Create(const ExpertRouting& options,
                                                  const ModelShape& shape, int64_t max_rows,
                                                  Executor* executor) {
  // A sigmoid's weights are shares of their sum even where it is one; top_k leaves that one as it
  // is, and one of a softmax becomes 1.
  const bool sigmoid = shape.sigmoid_gate && shape.experts_used > 1;
  const std::string own = sigmoid ? "expert/top_k:score=sigmoid" : "expert/top_k";
  const std::string text = options.on() ? options.router : own;
  SLUICE_ASSIGN_OR_RETURN(const RouteTraits traits, TraitsOf(text));
  const auto readable = shape.experts > 0 ? kReadsScores | kReadsHidden : kReadsHidden;
  if (traits.domain != Domain::kExpert || traits.combine != Combine::kWeightedSum ||
      (traits.reads & ~readable) != 0)
    return absl::InvalidArgumentError(
        absl::StrCat(traits.name, " cannot route experts here; allowed: expert routers that read ",
                     shape.experts > 0 ? "the gate's scores and hidden states"
                                       : "hidden states (the model has no experts and no gate)",
                     " at most, and whose units are added up"));

  ExpertRouter r(shape, executor);
  const RouteShape route = {.items = max_rows,
                            .units = shape.experts,
                            .workers = executor->num_workers(),
                            .hidden = shape.width};
  int64_t entries = 0;
  int64_t units = 0;
  size_t unit_bytes = 0;
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    std::vector<AddedKey> keys = {{"layer", absl::StrCat(layer), true}};
    if (shape.experts > 0) keys.push_back({"k", absl::StrCat(shape.experts_used), true});
    SLUICE_RETURN_IF_ERROR(r.routers_.Add(text, keys, options.weights, route));
    SLUICE_RETURN_IF_ERROR(r.CheckUnits(static_cast<size_t>(layer)));
    const RoutePlanInfo& info = r.routers_.info(static_cast<size_t>(layer));
    units = std::max(units, info.shape.units);
    entries = std::max(entries, info.max_entries);
    unit_bytes = std::max(unit_bytes, info.unit_workspace_bytes);
  }
  r.routers_.Reserve();
  r.max_rows_ = max_rows;
  r.max_entries_ = entries;

  SLUICE_ASSIGN_OR_RETURN(Dispatch dispatch,
                          Dispatch::Create({.max_items = max_rows,
                                            .in_width = shape.width,
                                            .out_width = shape.width,
                                            .max_entries = entries,
                                            .max_units = units,
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

absl::Status ExpertRouter::Pack(const Model& model) {
  for (int64_t layer = 0; layer < model.shape.layers; ++layer) {
    for (int64_t u = 0; u < experts_; ++u) {
      if (routers_.unit(static_cast<size_t>(layer), u).kind != UnitKind::kHost)
        return absl::InvalidArgumentError(
            absl::StrCat("packed experts under ", routers_.traits().name,
                         ", which computes units itself; allowed: routers that only choose"));
    }
  }
  SLUICE_ASSIGN_OR_RETURN(packed_, PackedExperts::Create(model));
  const int workers = executor_->num_workers();
  SLUICE_ASSIGN_OR_RETURN(adding_,
                          Dispatch::Create({.max_items = max_rows_,
                                            .in_width = width_,
                                            .out_width = width_,
                                            .max_entries = max_entries_,
                                            .max_units = experts_,
                                            .unit_workspace_bytes = packed_->workspace_bytes(),
                                            .workers = workers,
                                            .adds = true,
                                            // Every worker's share of the largest pass.
                                            .tile_items = (max_rows_ + workers - 1) / workers}));
  adding_workspace_.Resize(adding_->workspace_bytes());
  return absl::OkStatus();
}

// The units are the model's experts, or all of them are computed by the router.
absl::Status ExpertRouter::CheckUnits(size_t layer) const {
  const int64_t units = routers_.info(layer).shape.units;
  if (experts_ > 0 && units != experts_)
    return absl::InvalidArgumentError(absl::StrCat(routers_.traits().name, " has ", units,
                                                   " units, the model ", experts_, " experts"));
  for (int64_t u = 0; experts_ == 0 && u < units; ++u) {
    if (routers_.unit(layer, u).kind == UnitKind::kHost)
      return absl::InvalidArgumentError(
          absl::StrCat(routers_.traits().name, " chooses among a model's experts, and the model ",
                       "has none; allowed: routers whose units are all their own"));
  }
  return absl::OkStatus();
}

absl::Status ExpertRouter::Decide(int64_t layer, const Layer& weights, int64_t begin, int64_t n,
                                  const float* h, LayerMath& math) {
  RouteInputs in;
  in.items = n;
  if (experts_ > 0) {
    math.MatMul(h, weights.expert_gate.data(), n, width_, experts_, scores_.data());
    in.scores = {scores_.data(), n, experts_, experts_};
  }
  in.hidden = {h, n, width_, width_};
  in.layer = layer;
  if (routers_.use_positions()) {
    std::iota(positions_.begin(), positions_.begin() + n, begin);
    in.positions = {positions_.data(), static_cast<size_t>(n)};
  }
  SLUICE_ASSIGN_OR_RETURN(assigned_, routers_.Run(static_cast<size_t>(layer), in));
  return absl::OkStatus();
}

absl::Status ExpertRouter::Run(int64_t layer, const Layer& weights, int64_t n, const float* h,
                               float* x, LayerMath& math) {
  const bool packed = packed_.has_value() && n >= kAddFrom;
  SLUICE_RETURN_IF_ERROR(packed ? RunPacked(layer, n, h, math)
                                : RunPlain(layer, weights, n, h, math));
  for (int64_t i = 0; i < n * width_; ++i) x[i] += sum_[i];
  return absl::OkStatus();
}

absl::Status ExpertRouter::RunPlain(int64_t layer, const Layer& weights, int64_t n, const float* h,
                                    LayerMath& math) {
  const size_t at = static_cast<size_t>(layer);
  const auto expert = [&](const UnitRows& rows, const RunContext&) {
    math.Ffn(weights, rows.unit, rows.in.data, rows.in.rows, rows.out.data, false);
    rows_[layer * experts_ + rows.unit] += rows.in.rows;
    return absl::OkStatus();
  };
  DispatchCounters counted;
  SLUICE_RETURN_IF_ERROR(dispatch_->Run(routers_.router(at), routers_.plan(at), *assigned_,
                                        {h, n, width_, width_}, {sum_.data(), n, width_, width_},
                                        {{workspace_.data(), workspace_.bytes()}, executor_},
                                        expert, &counted));
  // What the router computed itself, by the cost that it declares; a row of the model's own FFN
  // costs 1.
  if (counted.own_rows > 0) {
    const int64_t executed = counted.executed_rows - counted.own_rows;
    const double cost = counted.cost - static_cast<double>(executed);
    const auto weights_of_one = static_cast<double>(3 * width_ * ffn_);
    math.Count(std::llround(cost * weights_of_one),
               std::llround(cost / static_cast<double>(n) * weights_of_one));
  }
  return absl::OkStatus();
}

absl::Status ExpertRouter::RunPacked(int64_t layer, int64_t n, const float* h, LayerMath& math) {
  const auto describe = [](int64_t) -> UnitInfo {
    return {UnitKind::kHost, 1, Concurrency::kRows, PackedExperts::kRows};
  };
  const auto add = [&](const UnitShare& share, const RunContext& ctx) {
    packed_->Add(layer, share, ctx.workspace);
    return absl::OkStatus();
  };
  DispatchCounters counted;
  SLUICE_RETURN_IF_ERROR(adding_->RunAdding(
      *assigned_, Combine::kWeightedSum, {h, n, width_, width_}, {sum_.data(), n, width_, width_},
      {adding_workspace_.workspace(), executor_}, describe, add, &counted));
  for (int64_t e = 0; e < assigned_->entries(); ++e)
    ++rows_[layer * experts_ + assigned_->unit[static_cast<size_t>(e)]];
  const int64_t weights_of_one = 3 * width_ * ffn_;
  math.Count(counted.executed_rows * weights_of_one, counted.units_run * weights_of_one);
  return absl::OkStatus();
}

void ExpertRouter::ResetCounters() { std::fill(rows_.begin(), rows_.end(), 0); }
}  // namespace host
SLUICE_END_NAMESPACE
