#ifndef SLUICE_API_ROUTER_H_
#define SLUICE_API_ROUTER_H_
// Assignment routers: items -> units. An author writes a plain struct that satisfies RouterModel;
// RouterOf makes it virtual. Plan, then run: MakePlan may fail and allocate; Run is const and never
// allocates, locks or logs.
#include <concepts>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "sluice/api/assignment.h"
#include "sluice/api/check.h"
#include "sluice/api/config.h"
#include "sluice/api/executor.h"
#include "sluice/api/tensor_view.h"
#include "sluice/api/version.h"
#include "sluice/api/weight_source.h"
#include "sluice/api/workspace.h"

SLUICE_BEGIN_NAMESPACE
enum class Domain : uint8_t { kLayer = 1, kToken, kHead, kAttention, kExpert, kAdapter, kAgent };

// Earlier plans that a host lends to compositions: one builder a layer, kept between calls.
class PlanBuilder;
class PlanLender {
 public:
  virtual ~PlanLender() = default;
  virtual PlanBuilder* Kept(int64_t layer) const = 0;  // null: no such layer
};

// Everything a Run borrows.
struct RunContext {
  Workspace workspace;
  Executor* executor = nullptr;
  const PlanLender* plans = nullptr;
};

struct RouteShape {
  int64_t items = 0;  // upper bounds, known before the data
  int64_t units = 0;
  int64_t width = 0;  // columns of `features`, 0 when scores are given
  int workers = 1;
};
struct RoutePlanInfo {
  RouteShape shape;
  size_t workspace_bytes = 0;
  int64_t max_entries = 0;
};
struct RouteInputs {  // laid out as sluice_route_inputs
  size_t struct_size = sizeof(RouteInputs);
  MatrixView<const float> scores;    // [items, units]; or
  MatrixView<const float> features;  // [items, width], for routers that score
};
static_assert(sizeof(RouteInputs) == sizeof(sluice_route_inputs) &&
              offsetof(RouteInputs, scores) == offsetof(sluice_route_inputs, scores) &&
              offsetof(RouteInputs, features) == offsetof(sluice_route_inputs, features) &&
              sizeof(MatrixView<const float>) == sizeof(sluice_matrix) &&
              offsetof(MatrixView<const float>, row_stride) == offsetof(sluice_matrix, row_stride));

template <class R>
concept RouterModel =
    (LearnedModel<R> || MadeFromConfig<R>)&&std::default_initializable<typename R::Config> &&
    std::derived_from<typename R::Plan, RoutePlanInfo> &&
    requires(const R& r, const typename R::Plan& p, const RouteShape& s, const RouteInputs& in,
             const RunContext& ctx, Assignment& out) {
      { R::kName } -> std::convertible_to<absl::string_view>;
      { R::kDomain } -> std::convertible_to<Domain>;
      { r.MakePlan(s) } -> std::same_as<absl::StatusOr<typename R::Plan>>;
      { r.Run(p, in, ctx, out) } -> std::same_as<absl::Status>;
    };

// What a host holds. One virtual call a batch, never one an item.
class Router {
 public:
  class Plan {
   public:
    virtual ~Plan() = default;
    virtual const RoutePlanInfo& info() const = 0;
  };
  virtual ~Router() = default;
  virtual absl::string_view name() const = 0;
  virtual Domain domain() const = 0;
  virtual absl::StatusOr<std::unique_ptr<const Plan>> MakePlan(const RouteShape&) const = 0;
  virtual absl::Status Run(const Plan&, const RouteInputs&, const RunContext&,
                           Assignment&) const = 0;
};

template <RouterModel R>
class RouterOf final : public Router {
 public:
  explicit RouterOf(R r) : r_(std::move(r)) {}
  absl::string_view name() const override { return R::kName; }
  Domain domain() const override { return R::kDomain; }
  absl::StatusOr<std::unique_ptr<const Plan>> MakePlan(const RouteShape& s) const override {
    SLUICE_ASSIGN_OR_RETURN(auto plan, r_.MakePlan(s));
    return std::make_unique<const PlanOf>(std::move(plan));
  }
  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const override {
    return r_.Run(static_cast<const PlanOf&>(p).plan, in, ctx, out);
  }

 private:
  struct PlanOf final : Plan {
    explicit PlanOf(typename R::Plan p) : plan(std::move(p)) {}
    const RoutePlanInfo& info() const override { return plan; }
    typename R::Plan plan;
  };
  R r_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_ROUTER_H_
