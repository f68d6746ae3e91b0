#include "sluice/runtime/dispatch/dispatch.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/kernels/gather/gather.h"

SLUICE_BEGIN_NAMESPACE
namespace {
absl::Status Bad(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("dispatch: ", what));
}
}  // namespace

absl::StatusOr<Dispatch> Dispatch::Create(const DispatchShape& s) {
  if (s.max_items <= 0 || s.in_width <= 0 || s.out_width <= 0 || s.max_entries < 0) {
    return Bad(absl::StrCat("items ", s.max_items, ", widths ", s.in_width, " and ", s.out_width,
                            ", entries ", s.max_entries, "; sizes must be positive"));
  }
  Dispatch d;
  d.shape_ = s;
  // Entries sorted by unit: at most one unit's rows are gathered at a time.
  d.items_ = d.layout_.Add<int32_t>(s.max_items);
  d.weights_ = d.layout_.Add<float>(s.max_items);
  d.rows_in_ = d.layout_.Add<float>(s.max_items * s.in_width);
  d.rows_out_ = d.layout_.Add<float>(s.max_items * s.out_width);
  return d;
}

absl::Status Dispatch::Run(const Assignment& a, Combine combine, MatrixView<const float> in,
                           MatrixView<float> out, const RunContext& ctx, RunUnit unit,
                           DispatchCounters* counters) const {
  SLUICE_RETURN_IF_ERROR(ValidateAssignment(a));
  const int64_t entries = a.row_ptr[a.items];
  if (a.items > shape_.max_items || entries > shape_.max_entries)
    return Bad(absl::StrCat(a.items, " items and ", entries, " entries; made for at most ",
                            shape_.max_items, " and ", shape_.max_entries));
  if (in.rows != a.items || in.cols != shape_.in_width || out.rows != a.items ||
      out.cols != shape_.out_width) {
    return Bad(absl::StrCat("in is [", in.rows, ", ", in.cols, "] and out [", out.rows, ", ",
                            out.cols, "], wanted [", a.items, ", ", shape_.in_width, "] and [",
                            a.items, ", ", shape_.out_width, "]"));
  }
  if (combine != Combine::kWeightedSum && shape_.in_width != shape_.out_width)
    return Bad("passing items through needs equal widths");
  if (ctx.workspace.bytes < workspace_bytes())
    return Bad(
        absl::StrCat("workspace of ", ctx.workspace.bytes, " bytes, needs ", workspace_bytes()));
  int32_t* items = ctx.workspace.At<int32_t>(items_);
  float* weights = ctx.workspace.At<float>(weights_);
  float* rows_in = ctx.workspace.At<float>(rows_in_);
  float* rows_out = ctx.workspace.At<float>(rows_out_);
  for (int64_t i = 0; i < a.items; ++i) {
    const int64_t n = a.row_ptr[static_cast<size_t>(i) + 1] - a.row_ptr[i];
    if (combine == Combine::kReplace && n > 1)
      return Bad(absl::StrCat("item ", i, " has ", n, " units; replacing takes at most one"));
    if (combine == Combine::kWeightedSum) {
      std::fill(out.row(i), out.row(i) + out.cols, 0.0f);
    } else {
      std::memcpy(out.row(i), in.row(i), static_cast<size_t>(out.cols) * sizeof(float));
    }
    if (counters != nullptr) counters->skipped_items += n == 0;
  }
  for (int64_t u = 0; u < a.units; ++u) {
    int64_t n = 0;
    for (int64_t i = 0; i < a.items; ++i) {
      const auto begin = a.unit.begin() + a.row_ptr[i],
                 end = a.unit.begin() + a.row_ptr[static_cast<size_t>(i) + 1];
      const auto at = std::lower_bound(begin, end, static_cast<int32_t>(u));
      if (at == end || *at != u) continue;
      weights[n] = combine == Combine::kReplace ? 1.0f : a.weight[at - a.unit.begin()];
      items[n++] = static_cast<int32_t>(i);
    }
    if (n == 0) continue;
    kernels::GatherRows(in.data, in.row_stride, items, n, in.cols, rows_in);
    SLUICE_RETURN_IF_ERROR(
        unit(u, {rows_in, n, in.cols, in.cols}, items, {rows_out, n, out.cols, out.cols}));
    if (combine == Combine::kReplace) {
      for (int64_t j = 0; j < n; ++j)
        std::memcpy(out.row(items[j]), rows_out + j * out.cols,
                    static_cast<size_t>(out.cols) * sizeof(float));
    } else {
      kernels::ScatterAddRows(rows_out, items, weights, n, out.cols, out.data, out.row_stride);
    }
    if (counters != nullptr) {
      counters->executed_rows += n;
      ++counters->units_run;
    }
  }
  return absl::OkStatus();
}
SLUICE_END_NAMESPACE
