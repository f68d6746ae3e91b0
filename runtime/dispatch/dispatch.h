#ifndef SLUICE_RUNTIME_DISPATCH_DISPATCH_H_
#define SLUICE_RUNTIME_DISPATCH_DISPATCH_H_
// The executor of Assignment: gather the items of a unit, run the unit once on all of them, combine
// the results. Units run in rising order, so an item's contributions are added in rising unit order
// whatever the machine.
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sluice/api/assignment.h"
#include "sluice/api/router.h"
#include "sluice/api/tensor_view.h"
#include "sluice/api/workspace.h"

SLUICE_BEGIN_NAMESPACE
enum class Combine : uint8_t {
  kWeightedSum,  // out = sum_u weight * unit_u(in); items without entries give 0
  kResidual,     // out = in + sum_u weight * unit_u(in)
  kReplace,      // out = unit_u(in) of the one entry (weight ignored); items without entries pass
                 // through
};
struct DispatchShape {
  int64_t max_items = 0, in_width = 0, out_width = 0, max_entries = 0;
};
struct DispatchCounters {
  int64_t executed_rows = 0, skipped_items = 0, units_run = 0;
};

class Dispatch {
 public:
  // Rows handed to a unit: `in` [n, in_width] -> `out` [n, out_width]; `items` [n] say which they
  // are. A unit is not called when it has no rows.
  using RunUnit = absl::FunctionRef<absl::Status(int64_t unit, MatrixView<const float> in,
                                                 const int32_t* items, MatrixView<float> out)>;

  static absl::StatusOr<Dispatch> Create(const DispatchShape& shape);
  size_t workspace_bytes() const { return layout_.bytes(); }
  // Allocation-free when it succeeds (the unit's own behaviour aside). O(entries * width) besides
  // the units. On an error of a unit `out` is unspecified.
  absl::Status Run(const Assignment& a, Combine combine, MatrixView<const float> in,
                   MatrixView<float> out, const RunContext& ctx, RunUnit unit,
                   DispatchCounters* counters = nullptr) const;

 private:
  DispatchShape shape_;
  WorkspaceLayout layout_;
  size_t items_ = 0, weights_ = 0, rows_in_ = 0, rows_out_ = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_DISPATCH_DISPATCH_H_
