#include "sluice/runtime/host/item_routers.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/dynload/installed.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
absl::StatusOr<RouteTraits> TraitsOf(const std::string& text) {
  SLUICE_ASSIGN_OR_RETURN(const Spec spec, ParseSpec(text));
  const auto factory = InstalledMethods().registry.routers.Find(spec.name);
  if (!factory.ok()) return WithRefused(factory.status());
  return (*factory)->traits();
}

absl::Status ItemRouters::Add(const std::string& text, const std::vector<AddedKey>& keys,
                              const WeightSource* weights, const RouteShape& shape) {
  const FactoryMap<Router>& methods = InstalledMethods().registry.routers;
  SLUICE_ASSIGN_OR_RETURN(const Spec spec, ParseSpec(text));
  const auto factory = methods.Find(spec.name);
  if (!factory.ok()) return WithRefused(factory.status());

  SLUICE_ASSIGN_OR_RETURN(const std::string full, WithKeys(text, (*factory)->Describe(), keys));
  Held held;
  SLUICE_ASSIGN_OR_RETURN(held.router, methods.Create(full, weights));
  SLUICE_ASSIGN_OR_RETURN(held.plan, held.router->MakePlan(shape));
  if (held.plan->info().state_bytes > 0)
    return absl::UnimplementedError(absl::StrCat(
        held.router->name(),
        " remembers earlier steps of the same items, and this host feeds a token once; "
        "allowed: routers, or settings of this one, that remember none"));
  held_.push_back(std::move(held));
  return absl::OkStatus();
}

void ItemRouters::Reserve() {
  size_t bytes = 0;
  int64_t items = 0;
  int64_t entries = 0;
  int64_t dropped = 0;
  for (const Held& h : held_) {
    const RoutePlanInfo& info = h.plan->info();
    bytes = std::max(bytes, info.workspace_bytes);
    items = std::max(items, info.shape.items);
    entries = std::max(entries, info.max_entries);
    dropped = std::max(dropped, info.max_dropped);
  }
  workspace_.Resize(bytes);
  assigned_.Reserve(items, entries, dropped);
}

absl::StatusOr<int32_t> ItemRouters::HostUnit(size_t i) const {
  int64_t host_units = 0;
  int32_t found = 0;
  for (int64_t u = 0; u < info(i).shape.units; ++u) {
    if (unit(i, u).kind != UnitKind::kHost) continue;
    ++host_units;
    found = static_cast<int32_t>(u);
  }
  if (host_units != 1)
    return absl::UnimplementedError(
        absl::StrCat(traits().name, " has ", host_units,
                     " units for the host to run; this host runs routers "
                     "that execute a block or leave it out"));
  return found;
}

absl::StatusOr<Assignment*> ItemRouters::Run(size_t i, const RouteInputs& in) {
  assigned_.Clear();
  const RunContext ctx = {{workspace_.data(), workspace_.bytes()}, executor_};
  Assignment& out = assigned_.view();
  SLUICE_RETURN_IF_ERROR(held_[i].router->Run(*held_[i].plan, in, ctx, out));
  SLUICE_RETURN_IF_ERROR(ValidateAssignment(out));
  if (out.items != in.items)
    return absl::InternalError(
        absl::StrCat(traits().name, " decided for ", out.items, " of ", in.items, " items"));
  return &out;
}
}  // namespace host
SLUICE_END_NAMESPACE
