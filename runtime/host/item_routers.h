#ifndef SLUICE_RUNTIME_HOST_ITEM_ROUTERS_H_
#define SLUICE_RUNTIME_HOST_ITEM_ROUTERS_H_
// Routers of items (layers, tokens) as this host holds them: one a layer or a unit of a layer, all
// made from one text by their registered name, with one memory for their runs.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sluice/api/method_keys.h"
#include "sluice/api/router.h"
#include "sluice/api/workspace.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
// What the method says of itself that a text names; the text's options are not looked at.
absl::StatusOr<RouteTraits> TraitsOf(const std::string& text);

class ItemRouters {
 public:
  explicit ItemRouters(Executor* executor) : executor_(executor) {}

  // Makes the next router, of `text` and the host's keys, and plans it. `weights` (learned methods,
  // unless the text names a file) must outlive the call only. A key that the text gives already is
  // left as it is.
  absl::Status Add(const std::string& text, const std::vector<AddedKey>& keys,
                   const WeightSource* weights, const RouteShape& shape);
  // Room for the decisions of any of them; call it once, after the last Add.
  void Reserve();

  size_t size() const { return held_.size(); }
  bool empty() const { return held_.empty(); }
  const RouteTraits& traits() const { return held_[0].router->traits(); }
  // Whether they use positions where they are given.
  bool use_positions() const {
    return ((traits().reads | traits().may_read) & kReadsPositions) != 0;
  }
  const RoutePlanInfo& info(size_t i) const { return held_[i].plan->info(); }
  const Router& router(size_t i) const { return *held_[i].router; }
  const Router::Plan& plan(size_t i) const { return *held_[i].plan; }
  UnitInfo unit(size_t i, int64_t unit) const {
    return held_[i].router->DescribeUnit(*held_[i].plan, unit);
  }
  // The one unit that is the host's to run; an error where there are none or several.
  absl::StatusOr<int32_t> HostUnit(size_t i) const;

  // Decides; the assignment stays until the next Run.
  absl::StatusOr<Assignment*> Run(size_t i, const RouteInputs& in);

 private:
  struct Held {
    std::unique_ptr<const Router> router;
    std::unique_ptr<const Router::Plan> plan;
  };
  Executor* executor_;
  std::vector<Held> held_;
  OwnedWorkspace workspace_;
  AssignmentBuffer assigned_;
};
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_ITEM_ROUTERS_H_
