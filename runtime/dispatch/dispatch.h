#ifndef SLUICE_RUNTIME_DISPATCH_DISPATCH_H_
#define SLUICE_RUNTIME_DISPATCH_DISPATCH_H_
// The executor of Assignment: gather the items of a unit, run the unit on them, combine the
// results. Seen from the units through one transpose; units that say so run beside each other, or
// in pieces of their rows. An item's contributions are added in rising unit order, and pieces are
// cut alike for any number of workers: the bits never depend on the machine.
//
// Units that can read rows where they lie and add to rows where they lie (kernels/packed_gemm) are
// run by RunAdding instead: nothing is gathered and no unit's result is kept.
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sluice/api/assignment.h"
#include "sluice/api/router.h"
#include "sluice/api/tensor_view.h"
#include "sluice/api/workspace.h"

SLUICE_BEGIN_NAMESPACE
struct DispatchShape {
  int64_t max_items = 0, in_width = 0, out_width = 0, max_entries = 0;
  int64_t max_units = 0;
  int64_t piece_rows = 64;          // rows of one call of a kRows unit
  size_t unit_workspace_bytes = 0;  // lent to every call, one block a worker
  int workers = 1;
  // For RunAdding, which takes no room for rows, instead of Run.
  bool adds = false;
  int64_t tile_items = 1024;  // of RunAdding: items that one worker takes at a time
};

// The share of one unit in a result: for every j,
//   out[items[j]] += weight[j] * unit(in[items[j]])
// in [all items, in_width] and out [all items, out_width] whole; items ascending. The sums of other
// items are not to be touched, and an item's may not depend on which others are in the call.
struct UnitShare {
  int64_t unit = 0;
  absl::Span<const int32_t> items = {};
  absl::Span<const float> weight = {};
  MatrixView<const float> in = {};
  MatrixView<float> out = {};
};

// Measured: what ran, not what was planned.
struct DispatchCounters {
  int64_t executed_rows = 0;  // of host and own units
  int64_t own_rows = 0;       // of them, the router's own
  int64_t skipped_items = 0;  // that no unit computed
  int64_t dropped_pairs = 0;
  int64_t units_run = 0;
  double cost = 0;  // sum of the executed rows' unit costs
};

class Dispatch {
 public:
  // Computes rows.in [n, in_width] -> rows.out [n, out_width], packed. Called for units with rows
  // only, never for kSkip, from several threads at once where the unit's concurrency allows it.
  using RunUnit = absl::FunctionRef<absl::Status(const UnitRows& rows, const RunContext& ctx)>;
  using AddUnit = absl::FunctionRef<absl::Status(const UnitShare& share, const RunContext& ctx)>;
  using DescribeUnit = absl::FunctionRef<UnitInfo(int64_t unit)>;

  static absl::StatusOr<Dispatch> Create(const DispatchShape& shape);
  size_t workspace_bytes() const { return layout_.bytes(); }

  // in [items, in_width] -> out [items, out_width]; they may not overlap. Errors: an assignment
  // that is not valid or larger than the shape; other widths; kReplace with two units that compute
  // for one item; what a unit returns (of several, that of the lowest unit and row); `out` is
  // unspecified then. Allocation-free when it succeeds (the unit's own behaviour aside).
  // O(entries width + units) besides the units.
  absl::Status Run(const Assignment& a, Combine combine, MatrixView<const float> in,
                   MatrixView<float> out, const RunContext& ctx, DescribeUnit describe, RunUnit run,
                   DispatchCounters* counters = nullptr) const;

  // The same result from units that add their shares themselves. Tiles of items run beside each
  // other where all units are kRows (else one tile, in the calling thread), and every tile goes
  // through its units in rising order: an item's contributions are added in the order of Run, and
  // with the same operations the bits are the same, whatever the tiles. max_rows is kept to.
  // Errors as Run's, of several units' that of the first tile; kReplace is refused: it adds
  // nothing. O(entries + units tiles log entries) besides the units and the first fill of `out`.
  absl::Status RunAdding(const Assignment& a, Combine combine, MatrixView<const float> in,
                         MatrixView<float> out, const RunContext& ctx, DescribeUnit describe,
                         AddUnit add, DispatchCounters* counters = nullptr) const;

  // Run with a router's own account: its combine, its units; what is its own it computes
  // itself, `host` computes the rest, with `host_concurrency`: the router cannot know what the host
  // does in parallel already.
  absl::Status Run(const Router& router, const Router::Plan& plan, const Assignment& a,
                   MatrixView<const float> in, MatrixView<float> out, const RunContext& ctx,
                   RunUnit host, DispatchCounters* counters = nullptr,
                   Concurrency host_concurrency = Concurrency::kAlone) const;

 private:
  friend class DispatchRun;
  // Rows are gathered where the worker's last ones lay, which are still in its cache; where that
  // takes more room than all entries do, every entry has a place of its own.
  bool reuses_rows() const { return shape_.workers * shape_.max_items < shape_.max_entries; }
  absl::Status Check(const Assignment& a, Combine combine, MatrixView<const float> in,
                     MatrixView<float> out, const RunContext& ctx) const;

  DispatchShape shape_;
  WorkspaceLayout layout_;
  size_t units_ = 0, begin_ = 0, item_ = 0, slot_ = 0, tasks_ = 0, weight_ = 0;
  size_t rows_in_ = 0, rows_out_ = 0, unit_workspace_ = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_DISPATCH_DISPATCH_H_
