#include "sluice/runtime/dispatch/dispatch.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/routers/common/pipeline/combine.h"
#include "sluice/runtime/dispatch/unit_major.h"
#include "sluice/runtime/kernels/gather/gather.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr int64_t kCombineRows = 32;  // items of one piece of the combination

absl::Status Bad(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("dispatch: ", what));
}

// One call of a unit: the slots [begin, end) of the unit-major view.
struct Task {
  int64_t unit, begin, end;
};

size_t Aligned(size_t bytes) {
  return (bytes + kWorkspaceAlign - 1) / kWorkspaceAlign * kWorkspaceAlign;
}
}  // namespace

// One Run: its views into the workspace, and the steps in their order.
class DispatchRun {
 public:
  DispatchRun(const Dispatch& d, const Assignment& a, Combine combine, MatrixView<const float> in,
              MatrixView<float> out, const RunContext& ctx)
      : d_(d), a_(a), combine_(combine), in_(in), out_(out), ctx_(ctx) {
    const Workspace& w = ctx.workspace;
    const auto entries = static_cast<size_t>(d.shape_.max_entries);
    units_ = w.At<UnitInfo>(d.units_);
    view_.begin = {w.At<int64_t>(d.begin_), static_cast<size_t>(d.shape_.max_units) + 1};
    view_.item = {w.At<int32_t>(d.item_), entries};
    view_.slot = {w.At<int64_t>(d.slot_), entries};
    tasks_ = w.At<Task>(d.tasks_);
    weight_ = w.At<float>(d.weight_);
    rows_in_ = w.At<float>(d.rows_in_);
    rows_out_ = w.At<float>(d.rows_out_);
  }

  absl::Status Check(Dispatch::DescribeUnit describe) {
    for (int64_t u = 0; u < a_.units; ++u) {
      units_[u] = describe(u);
      skips_ = skips_ || !Computes(u);
    }
    if (combine_ != Combine::kReplace) return absl::OkStatus();
    for (int64_t i = 0; i < a_.items; ++i) {
      int64_t live = 0;
      for (int64_t e = a_.row_ptr[i]; e < a_.row_ptr[i + 1]; ++e) live += Computes(a_.unit[e]);
      if (live > 1)
        return Bad(absl::StrCat("item ", i, " has ", live, " units; replacing takes at most one"));
    }
    return absl::OkStatus();
  }

  absl::Status RunUnits(Dispatch::RunUnit run) {
    Transpose(a_, view_);
    SLUICE_RETURN_IF_ERROR(RunAlone(run));

    // Everything else at once, in pieces that do not depend on the number of workers.
    int64_t count = 0;
    for (int64_t u = 0; u < a_.units; ++u) {
      if (!Computes(u) || units_[u].concurrency == Concurrency::kAlone) continue;
      const bool cut = units_[u].concurrency == Concurrency::kRows;
      const int64_t most = cut ? std::max<int64_t>(1, d_.shape_.piece_rows) : Rows(u);
      for (int64_t b = view_.begin[u]; b < view_.begin[u + 1]; b += most)
        tasks_[count++] = {u, b, std::min(b + most, view_.begin[u + 1])};
    }
    ParallelFor(count, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t t = begin; t < end; ++t) {
        if (absl::Status s = RunTask(tasks_[t], worker, run); !s.ok()) Fail(t, std::move(s));
      }
    });
    return std::move(error_);
  }

  absl::Status AddShares(Dispatch::AddUnit add) {
    Transpose(a_, view_);
    const int64_t entries = a_.entries();
    for (int64_t e = 0; e < entries; ++e) weight_[view_.slot[e]] = a_.weight[e];

    bool beside = true;
    for (int64_t u = 0; u < a_.units; ++u)
      beside = beside && (!Computes(u) || units_[u].concurrency == Concurrency::kRows);
    if (!beside) return AddTile(0, a_.items, 0, ctx_.executor, add);

    const int64_t most = d_.shape_.tile_items;
    const int64_t tiles = (a_.items + most - 1) / most;
    ParallelFor(tiles, 1, [&](int64_t first, int64_t last, int worker) {
      for (int64_t t = first; t < last; ++t) {
        const int64_t end = std::min((t + 1) * most, a_.items);
        absl::Status s = AddTile(t * most, end, worker, nullptr, add);
        if (!s.ok()) Fail(t, std::move(s));
      }
    });
    return std::move(error_);
  }

  void CombineItems() {
    ParallelFor(a_.items, kCombineRows, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) CombineItem(i);
    });
  }

  void Count(DispatchCounters& c) const {
    for (int64_t u = 0; u < a_.units; ++u) {
      const int64_t n = Rows(u);
      if (n == 0 || !Computes(u)) continue;
      c.executed_rows += n;
      if (units_[u].kind == UnitKind::kOwn) c.own_rows += n;
      ++c.units_run;
      c.cost += units_[u].cost * static_cast<double>(n);
    }
    for (int64_t i = 0; i < a_.items; ++i) {
      int64_t live = 0;
      for (int64_t e = a_.row_ptr[i]; e < a_.row_ptr[i + 1]; ++e) live += Computes(a_.unit[e]);
      c.skipped_items += live == 0;
    }
    c.dropped_pairs += a_.num_dropped;
  }

 private:
  bool Computes(int64_t unit) const { return units_[unit].kind != UnitKind::kSkip; }
  int64_t Rows(int64_t unit) const { return view_.begin[unit + 1] - view_.begin[unit]; }

  template <class Body>
  void ParallelFor(int64_t n, int64_t grain, const Body& body) {
    if (ctx_.executor != nullptr && d_.shape_.workers > 1) {
      ctx_.executor->ParallelFor(n, grain, body);
    } else if (n > 0) {
      body(0, n, 0);
    }
  }

  absl::Status RunAlone(Dispatch::RunUnit run) {
    for (int64_t u = 0; u < a_.units; ++u) {
      if (!Computes(u) || units_[u].concurrency != Concurrency::kAlone || Rows(u) == 0) continue;
      SLUICE_RETURN_IF_ERROR(RunTask({u, view_.begin[u], view_.begin[u + 1]}, 0, run));
    }
    return absl::OkStatus();
  }

  // Gathers and computes the slots of a task, in calls of at most the unit's max_rows.
  absl::Status RunTask(const Task& t, int worker, Dispatch::RunUnit run) {
    // A unit that runs beside others has its thread and no more.
    const bool alone = units_[t.unit].concurrency == Concurrency::kAlone;
    const RunContext ctx = UnitContext(worker, alone ? ctx_.executor : nullptr);
    const int64_t most = RowsAtOnce(t);
    for (int64_t b = t.begin; b < t.end; b += most) {
      const int64_t n = std::min(most, t.end - b);
      const UnitRows rows = {
          .unit = t.unit,
          .in = Gather(b, n, worker),
          .items = absl::MakeConstSpan(&view_.item[b], static_cast<size_t>(n)),
          .out = {rows_out_ + b * out_.cols, n, out_.cols, out_.cols},
      };
      SLUICE_RETURN_IF_ERROR(run(rows, ctx));
    }
    return absl::OkStatus();
  }

  // The items [begin, end), from their first values on, through all units in rising order.
  absl::Status AddTile(int64_t begin, int64_t end, int worker, Executor* executor,
                       Dispatch::AddUnit add) {
    for (int64_t i = begin; i < end; ++i) BeginItem(i);
    const RunContext ctx = UnitContext(worker, executor);
    const int32_t* items = view_.item.data();
    for (int64_t u = 0; u < a_.units; ++u) {
      if (!Computes(u)) continue;
      const int32_t* mine = items + view_.begin[u];
      const int32_t* past = items + view_.begin[u + 1];
      mine = std::lower_bound(mine, past, begin);
      past = std::lower_bound(mine, past, end);
      const Task t = {u, mine - items, past - items};
      const int64_t most = RowsAtOnce(t);
      for (int64_t b = t.begin; b < t.end; b += most) {
        const auto n = static_cast<size_t>(std::min(most, t.end - b));
        SLUICE_RETURN_IF_ERROR(add({u, {items + b, n}, {weight_ + b, n}, in_, out_}, ctx));
      }
    }
    return absl::OkStatus();
  }

  // What a unit gets: its worker's memory, and threads where it may use them.
  RunContext UnitContext(int worker, Executor* executor) const {
    RunContext ctx = ctx_;
    const size_t bytes = d_.shape_.unit_workspace_bytes;
    ctx.workspace.data =
        ctx_.workspace.data + d_.unit_workspace_ + static_cast<size_t>(worker) * Aligned(bytes);
    ctx.workspace.bytes = bytes;
    ctx.executor = executor;
    return ctx;
  }
  int64_t RowsAtOnce(const Task& t) const {
    const int64_t limit = units_[t.unit].max_rows;
    const int64_t all = t.end - t.begin;
    return limit > 0 ? std::min(limit, all) : all;
  }

  MatrixView<const float> Gather(int64_t begin, int64_t n, int worker) {
    const int32_t* items = &view_.item[begin];
    // Neighbours lie packed already.
    if (items[n - 1] - items[0] == n - 1 && in_.row_stride == in_.cols)
      return {in_.row(items[0]), n, in_.cols, in_.cols};
    float* to = rows_in_ + (d_.reuses_rows() ? worker * d_.shape_.max_items : begin) * in_.cols;
    kernels::GatherRows(in_.data, in_.row_stride, items, n, in_.cols, to);
    return {to, n, in_.cols, in_.cols};
  }

  void BeginItem(int64_t i) {
    float sum = 0;
    for (int64_t e = a_.row_ptr[i]; e < a_.row_ptr[i + 1]; ++e)
      sum += Computes(a_.unit[e]) ? a_.weight[e] : 0.0f;
    const float* x = pipeline::ReadsItem(combine_) ? in_.row(i) : nullptr;
    pipeline::CombineBegin(combine_, x, sum, out_.cols, out_.row(i));
  }

  void CombineItem(int64_t i) {
    BeginItem(i);
    const int64_t begin = a_.row_ptr[i];
    const int64_t end = a_.row_ptr[i + 1];
    if (!skips_ && combine_ != Combine::kReplace) {
      kernels::AddRows(rows_out_, view_.slot.data() + begin, a_.weight.data() + begin, end - begin,
                       out_.cols, out_.row(i));
      return;
    }
    for (int64_t e = begin; e < end; ++e) {
      if (!Computes(a_.unit[e])) continue;
      const float* y = rows_out_ + view_.slot[e] * out_.cols;
      pipeline::CombineAdd(combine_, y, a_.weight[e], out_.cols, out_.row(i));
    }
  }

  // Keeps the error of the lowest task: which one it is does not depend on the threads. Locks on
  // the failing path only.
  void Fail(int64_t task, absl::Status s) {
    std::lock_guard lock(mutex_);
    if (task >= failed_) return;
    failed_ = task;
    error_ = std::move(s);
  }

  const Dispatch& d_;
  const Assignment& a_;
  Combine combine_;
  MatrixView<const float> in_;
  MatrixView<float> out_;
  const RunContext& ctx_;
  UnitInfo* units_;
  bool skips_ = false;  // some unit computes nothing
  UnitMajor view_;
  Task* tasks_;
  float* weight_;  // of RunAdding: beside view_.item
  float* rows_in_;
  float* rows_out_;
  std::mutex mutex_;
  int64_t failed_ = std::numeric_limits<int64_t>::max();
  absl::Status error_;
};

absl::StatusOr<Dispatch> Dispatch::Create(const DispatchShape& s) {
  if (s.max_items <= 0 || s.in_width <= 0 || s.out_width <= 0 || s.max_entries < 0 ||
      s.max_units <= 0 || s.piece_rows <= 0 || s.tile_items <= 0 || s.workers <= 0) {
    return Bad(absl::StrCat("items ", s.max_items, ", widths ", s.in_width, " and ", s.out_width,
                            ", entries ", s.max_entries, ", units ", s.max_units, ", pieces of ",
                            s.piece_rows, " rows, tiles of ", s.tile_items, " items, workers ",
                            s.workers, "; sizes must be positive"));
  }
  constexpr int64_t kMost = int64_t{1} << 40;
  if (s.max_items > std::numeric_limits<int32_t>::max() ||
      s.max_entries > kMost / std::max(s.in_width, s.out_width))
    return Bad(absl::StrCat(s.max_items, " items and ", s.max_entries, " entries of widths ",
                            s.in_width, " and ", s.out_width,
                            "; allowed 2^31 - 1 items and 2^40 floats"));

  Dispatch d;
  d.shape_ = s;
  d.units_ = d.layout_.Add<UnitInfo>(s.max_units);
  d.begin_ = d.layout_.Add<int64_t>(s.max_units + 1);
  d.item_ = d.layout_.Add<int32_t>(s.max_entries);
  d.slot_ = d.layout_.Add<int64_t>(s.max_entries);
  if (s.adds) {
    d.weight_ = d.layout_.Add<float>(s.max_entries);
  } else {
    d.tasks_ = d.layout_.Add<Task>(s.max_units + s.max_entries / s.piece_rows);
    const int64_t rows = d.reuses_rows() ? s.workers * s.max_items : s.max_entries;
    d.rows_in_ = d.layout_.Add<float>(rows * s.in_width);
    d.rows_out_ = d.layout_.Add<float>(s.max_entries * s.out_width);
  }
  d.unit_workspace_ =
      d.layout_.Add<std::byte>(static_cast<int64_t>(Aligned(s.unit_workspace_bytes)) * s.workers);
  return d;
}

absl::Status Dispatch::Check(const Assignment& a, Combine combine, MatrixView<const float> in,
                             MatrixView<float> out, const RunContext& ctx) const {
  SLUICE_RETURN_IF_ERROR(ValidateAssignment(a));
  if (a.items > shape_.max_items || a.entries() > shape_.max_entries || a.units > shape_.max_units)
    return Bad(absl::StrCat(a.items, " items, ", a.entries(), " entries and ", a.units,
                            " units; made for at most ", shape_.max_items, ", ", shape_.max_entries,
                            " and ", shape_.max_units));
  if (in.rows != a.items || in.cols != shape_.in_width || out.rows != a.items ||
      out.cols != shape_.out_width) {
    return Bad(absl::StrCat("in is [", in.rows, ", ", in.cols, "] and out [", out.rows, ", ",
                            out.cols, "], wanted [", a.items, ", ", shape_.in_width, "] and [",
                            a.items, ", ", shape_.out_width, "]"));
  }
  if (pipeline::ReadsItem(combine) && shape_.in_width != shape_.out_width)
    return Bad(absl::StrCat("passing items through needs equal widths, not ", shape_.in_width,
                            " and ", shape_.out_width));
  if (ctx.workspace.bytes < workspace_bytes())
    return Bad(
        absl::StrCat("workspace of ", ctx.workspace.bytes, " bytes, needs ", workspace_bytes()));
  if (shape_.workers > 1 && ctx.executor != nullptr && ctx.executor->num_workers() > shape_.workers)
    return Bad(absl::StrCat("an executor of ", ctx.executor->num_workers(),
                            " workers; made for at most ", shape_.workers));
  return absl::OkStatus();
}

absl::Status Dispatch::Run(const Assignment& a, Combine combine, MatrixView<const float> in,
                           MatrixView<float> out, const RunContext& ctx, DescribeUnit describe,
                           RunUnit run, DispatchCounters* counters) const {
  if (shape_.adds) return Bad("made with adds = true, for RunAdding, not for Run");
  SLUICE_RETURN_IF_ERROR(Check(a, combine, in, out, ctx));
  DispatchRun r(*this, a, combine, in, out, ctx);
  SLUICE_RETURN_IF_ERROR(r.Check(describe));
  SLUICE_RETURN_IF_ERROR(r.RunUnits(run));
  r.CombineItems();
  if (counters != nullptr) r.Count(*counters);
  return absl::OkStatus();
}

absl::Status Dispatch::RunAdding(const Assignment& a, Combine combine, MatrixView<const float> in,
                                 MatrixView<float> out, const RunContext& ctx,
                                 DescribeUnit describe, AddUnit add,
                                 DispatchCounters* counters) const {
  if (!shape_.adds) return Bad("made with adds = false, for Run, not for RunAdding");
  if (combine == Combine::kReplace)
    return Bad("replacing adds nothing: Run takes it, RunAdding sums, residuals and blends");
  SLUICE_RETURN_IF_ERROR(Check(a, combine, in, out, ctx));
  DispatchRun r(*this, a, combine, in, out, ctx);
  SLUICE_RETURN_IF_ERROR(r.Check(describe));
  SLUICE_RETURN_IF_ERROR(r.AddShares(add));
  if (counters != nullptr) r.Count(*counters);
  return absl::OkStatus();
}

absl::Status Dispatch::Run(const Router& router, const Router::Plan& plan, const Assignment& a,
                           MatrixView<const float> in, MatrixView<float> out, const RunContext& ctx,
                           RunUnit host, DispatchCounters* counters,
                           Concurrency host_concurrency) const {
  if (shape_.unit_workspace_bytes < plan.info().unit_workspace_bytes)
    return Bad(absl::StrCat("made with ", shape_.unit_workspace_bytes, " bytes for a unit, ",
                            router.name(), " planned ", plan.info().unit_workspace_bytes));
  const auto describe = [&](int64_t u) {
    UnitInfo info = router.DescribeUnit(plan, u);
    if (info.kind == UnitKind::kHost) info.concurrency = host_concurrency;
    return info;
  };
  const auto run = [&](const UnitRows& rows, const RunContext& unit_ctx) -> absl::Status {
    if (router.DescribeUnit(plan, rows.unit).kind == UnitKind::kOwn)
      return router.RunUnit(plan, rows, unit_ctx);
    return host(rows, unit_ctx);
  };
  return Run(a, router.traits().combine, in, out, ctx, describe, run, counters);
}
SLUICE_END_NAMESPACE
