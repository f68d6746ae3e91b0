// Models that throw: the exception must stay inside and come out as an error.
#include <stdexcept>

#include "sluice/api/plugin.h"

namespace {
using namespace sluice;
struct Throwing {
  static constexpr RouteTraits kTraits = {.name = "token/throwing", .domain = Domain::kToken};
  struct Config {
    int64_t when = 0;
    template <class V>
    void VisitFields(V&& v) {
      v("when", when, Range<int64_t>{0, 2}, "0: create, 1: plan, 2: run");
    }
  };
  struct Plan : RoutePlanInfo {};
  static absl::StatusOr<Throwing> Create(const Config& c) {
    if (c.when == 0) throw std::runtime_error("thrown by create");
    return Throwing{c.when};
  }
  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    if (when == 1) throw std::bad_alloc();
    Plan p;
    p.shape = s;
    p.shape.units = 2;
    return p;
  }
  absl::Status Run(const Plan&, const RouteInputs&, const RunContext&, Assignment&) const {
    throw 7;
  }
  int64_t when = 0;
};
}  // namespace
SLUICE_PLUGIN("throwing", "1.0.0", Throwing)
