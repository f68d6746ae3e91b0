#include "sluice/runtime/host/token_routing.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
absl::StatusOr<TokenRouter> TokenRouter::Create(const TokenRouting& options,
                                                const ModelShape& shape, int64_t max_rows,
                                                Executor* executor) {
  TokenRouter r(options, shape, executor);
  const size_t units = static_cast<size_t>(2 * shape.layers);
  if (options.random.size() > 1 && options.random.size() != units)
    return absl::InvalidArgumentError(absl::StrCat(
        options.random.size(), " shares to draw, wanted one, or one a layer and unit: ", units));
  for (double share : options.random) {
    if (!(share >= 0 && share <= 1))
      return absl::InvalidArgumentError(
          absl::StrCat("share to draw ", share, " is outside [0, 1]"));
  }

  SLUICE_ASSIGN_OR_RETURN(const RouteTraits traits, TraitsOf(options.router));
  if (traits.domain != Domain::kToken || traits.combine != Combine::kWeightedSum ||
      (traits.reads & ~(kReadsHidden | kReadsPositions)) != 0)
    return absl::InvalidArgumentError(absl::StrCat(
        traits.name,
        " cannot route tokens here; allowed: token routers that read hidden states and "
        "positions at most, and whose units add to the residual stream"));

  size_t memory = 0;
  for (size_t at = 0; at < units; ++at) {
    SLUICE_RETURN_IF_ERROR(r.routers_.Add(
        options.router,
        {{"layer", absl::StrCat(at / 2), true}, {"unit", absl::StrCat(at % 2), true}},
        options.weights, {.items = max_rows, .hidden = shape.width}));
    const RoutePlanInfo& info = r.routers_.info(at);
    SLUICE_ASSIGN_OR_RETURN(Dispatch dispatch,
                            Dispatch::Create({.max_items = max_rows,
                                              .in_width = shape.width,
                                              .out_width = shape.width,
                                              .max_entries = info.max_entries,
                                              .max_units = info.shape.units,
                                              .unit_workspace_bytes = info.unit_workspace_bytes,
                                              .workers = executor->num_workers()}));
    memory = std::max(memory, dispatch.workspace_bytes());
    r.dispatch_.push_back(std::move(dispatch));
  }

  SLUICE_ASSIGN_OR_RETURN(r.execute_, r.routers_.HostUnit(0));
  const int64_t choices = r.routers_.info(0).shape.units;
  if (!options.random.empty() && choices != 2)
    return absl::InvalidArgumentError(
        absl::StrCat(traits.name, " has ", choices, " units; drawn at random are routers of two"));

  r.routers_.Reserve();
  r.drawn_.Reserve(max_rows, max_rows);
  r.workspace_.Resize(memory);
  r.sum_.resize(static_cast<size_t>(max_rows * shape.width));
  r.positions_.resize(static_cast<size_t>(max_rows));
  return r;
}

void TokenRouter::Draw(size_t at, int64_t begin, int64_t n) {
  const double share = options_.random[options_.random.size() > 1 ? at : 0];
  drawn_.Clear();
  assigned_ = &drawn_.view();
  assigned_->items = n;
  assigned_->units = 2;
  for (int64_t i = 0; i < n; ++i) {
    const RngKey key = {options_.seed, 0, at / 2, at % 2, static_cast<uint64_t>(begin + i)};
    assigned_->unit[i] = RandomUniform(key) < share ? 1 - execute_ : execute_;
    assigned_->weight[i] = 1;
    assigned_->score[i] = 0;
    assigned_->row_ptr[i + 1] = i + 1;
  }
}

absl::StatusOr<int64_t> TokenRouter::Route(int64_t layer, int64_t unit, int64_t begin, int64_t n,
                                           const float* h) {
  const size_t at = static_cast<size_t>(2 * layer + unit);
  if (options_.random.empty()) {
    RouteInputs in;
    in.items = n;
    in.hidden = {h, n, width_, width_};
    in.layer = layer;
    if (routers_.use_positions()) {
      std::iota(positions_.begin(), positions_.begin() + n, begin);
      in.positions = {positions_.data(), static_cast<size_t>(n)};
    }
    SLUICE_ASSIGN_OR_RETURN(assigned_, routers_.Run(at, in));
  } else {
    Draw(at, begin, n);
  }
  if (assigned_->entries() != n)
    return absl::InvalidArgumentError(absl::StrCat(routers_.traits().name, " gave ", n, " tokens ",
                                                   assigned_->entries(),
                                                   " units, wanted one each"));
  if (options_.pin_first && begin == 0) assigned_->unit[0] = execute_;

  int64_t left = 0;
  for (int64_t i = 0; i < n; ++i) left += !executes(i);
  return left;
}

absl::StatusOr<TokenRouter::OwnWork> TokenRouter::Run(int64_t layer, int64_t unit, int64_t n,
                                                      const float* h, float* x,
                                                      const Execute& execute) {
  const size_t at = static_cast<size_t>(2 * layer + unit);
  DispatchCounters counted;
  SLUICE_RETURN_IF_ERROR(dispatch_[at].Run(routers_.router(at), routers_.plan(at), *assigned_,
                                           {h, n, width_, width_}, {sum_.data(), n, width_, width_},
                                           {{workspace_.data(), workspace_.bytes()}, executor_},
                                           execute, &counted));
  for (int64_t i = 0; i < n * width_; ++i) x[i] += sum_[i];

  // A row of the host's unit costs 1.
  const int64_t executed = counted.executed_rows - counted.own_rows;
  return OwnWork{counted.own_rows, counted.cost - static_cast<double>(executed)};
}
}  // namespace host
SLUICE_END_NAMESPACE
