#ifndef SLUICE_ROUTERS_ADAPTER_POLYTROPON_POLYTROPON_H_
#define SLUICE_ROUTERS_ADAPTER_POLYTROPON_POLYTROPON_H_
// An adapter a task, mixed from an inventory of skills that all tasks share: Polytropon (arXiv
// 2202.13914), and multi-head adapter routing (MHR, arXiv 2211.03831), where every slice of the
// input and of the output has a mixture of its own.
//
//   GATE     share[head, skill] = sigmoid(logits[task, head, skill]), divided by the head's sum
//            (share=task); 1 / skills (share=uniform, MHR-mu)
//   MERGE    A* = the heads' sums of share A, side by side along the input     (merge=before)
//            B* = the heads' sums of share B, side by side along the output
//            or the sum of share A B, which has no cross terms                 (merge=after)
//   own      y = alpha / rank (x A*) B*: what the adapter adds to W x
//
// One head is Polytropon. A task is a unit, merged once, when the router is made. merge=after is
// defined for one head only: with more, slices of the input would meet slices of the output that
// share no skill. Dropout, rounding and noise belong to training.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "sluice/api/one_unit.h"
#include "sluice/api/router.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
namespace adapter {
// Items are tokens or sequences of one task; units are the tasks, all the router's own: rows of
// width `in` give rows of width `out`. O(items), and O((in + out) rank) a row.
class Polytropon {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "adapter/polytropon",
      .title = "Multi-Head Adapter Routing for Cross-Task Generalization",
      .arxiv = "2211.03831",
      .domain = Domain::kAdapter,
      .combine = Combine::kWeightedSum,  // of what is added to W x
      .decides = Decides::kPrompt,
      .learned = true,
      .reads = kReadsTask,
      .small_budget = "share=uniform",
  };

  enum class Share : uint8_t { kTask, kUniform };
  enum class Merge : uint8_t { kBefore, kAfter };
  struct Config {
    int64_t layer = 0;
    Share share = Share::kTask;
    Merge merge = Merge::kBefore;
    double alpha = 1;

    template <class V>
    void VisitFields(V&& v) {
      v("layer", layer, Range<int64_t>{0, 1 << 16}, "decoder layer whose adapter it is");
      v("share", share, Choices{"task", "uniform"}, "of a skill: the task's own, or equal");
      v("merge", merge, Choices{"before", "after"}, "the product of A and B, or of each skill's");
      v("alpha", alpha, Range<double>{0, 1e6}, "factor of the adapter, divided by its rank");
    }
  };
  struct Plan : RoutePlanInfo {};

  static absl::StatusOr<Polytropon> Create(const Config& c, const WeightSource& w) {
    Polytropon r;
    Inventory i;
    SLUICE_ASSIGN_OR_RETURN(const int64_t layers, w.Int("sluice.polytropon.layers"));
    SLUICE_ASSIGN_OR_RETURN(r.tasks_, w.Int("sluice.polytropon.tasks"));
    SLUICE_ASSIGN_OR_RETURN(i.skills, w.Int("sluice.polytropon.skills"));
    SLUICE_ASSIGN_OR_RETURN(i.heads, w.Int("sluice.polytropon.heads"));
    SLUICE_ASSIGN_OR_RETURN(i.rank, w.Int("sluice.polytropon.rank"));
    SLUICE_ASSIGN_OR_RETURN(i.in, w.Int("sluice.polytropon.in"));
    SLUICE_ASSIGN_OR_RETURN(i.out, w.Int("sluice.polytropon.out"));
    if (c.layer >= layers)
      return absl::OutOfRangeError(
          absl::StrCat("layer=", c.layer, ", but the weights have ", layers, " layers"));
    SLUICE_RETURN_IF_ERROR(i.Check(r.tasks_));
    if (c.merge == Merge::kAfter && i.heads > 1)
      return absl::InvalidArgumentError(
          absl::StrCat("merge=after of ", i.heads, " heads; it is defined for one"));

    const auto u = [](int64_t n) { return static_cast<uint64_t>(n); };
    const std::string at = Prefix(c);
    const uint64_t logits_shape[] = {u(i.heads * i.skills), u(r.tasks_)};
    const uint64_t a_shape[] = {u(i.rank), u(i.in / i.heads), u(i.skills), u(i.heads)};
    const uint64_t b_shape[] = {u(i.out / i.heads), u(i.rank), u(i.skills), u(i.heads)};
    SLUICE_ASSIGN_OR_RETURN(const auto logits, w.ReadF32(at + "logits", logits_shape));
    SLUICE_ASSIGN_OR_RETURN(i.a, w.ReadF32(at + "a", a_shape));
    SLUICE_ASSIGN_OR_RETURN(i.b, w.ReadF32(at + "b", b_shape));
    for (int64_t t = 0; t < r.tasks_; ++t) {
      const std::vector<float> share = Shares(c, i, &logits[t * i.heads * i.skills]);
      r.merged_.push_back(c.merge == Merge::kBefore ? MergeBefore(c, i, share)
                                                    : MergeAfter(c, i, share));
    }
    return r;
  }
  static WeightKeys Weights(const Config& c, const RouteShape& s) {
    constexpr int64_t kTasks = 3;
    constexpr int64_t kSkills = 4;
    constexpr int64_t kRank = 2;
    constexpr int64_t kWidth = 32;
    const int64_t width = s.hidden > 0 ? s.hidden : kWidth;
    const int64_t heads = c.merge == Merge::kAfter || width % 2 != 0 ? 1 : 2;
    WeightKeys w;
    w.ints = {{"sluice.polytropon.layers", c.layer + 1}, {"sluice.polytropon.tasks", kTasks},
              {"sluice.polytropon.skills", kSkills},     {"sluice.polytropon.heads", heads},
              {"sluice.polytropon.rank", kRank},         {"sluice.polytropon.in", width},
              {"sluice.polytropon.out", width}};
    w.tensors = {{Prefix(c) + "logits", {heads * kSkills, kTasks}},
                 {Prefix(c) + "a", {kRank, width / heads, kSkills, heads}},
                 {Prefix(c) + "b", {width / heads, kRank, kSkills, heads}}};
    return w;
  }
  int64_t tasks() const { return tasks_; }

  // W + what the task's adapter adds, w [out, in] row-major: the host multiplies by it and runs no
  // unit. O(in out rank).
  absl::Status Fold(int64_t task, MatrixView<float> w) const {
    if (task < 0 || task >= tasks_)
      return absl::OutOfRangeError(absl::StrCat("task ", task, " of ", tasks_));
    const Merged& m = merged_[static_cast<size_t>(task)];
    if (w.rows != m.up.out || w.cols != m.down.in)
      return absl::InvalidArgumentError(absl::StrCat(
          "fold into [", w.rows, ", ", w.cols, "], wanted [", m.up.out, ", ", m.down.in, "]"));
    for (int64_t o = 0; o < w.rows; ++o) {
      for (int64_t k = 0; k < m.down.out; ++k) {
        const float up = m.up.weight[o * m.down.out + k];
        for (int64_t c = 0; c < w.cols; ++c) w.row(o)[c] += up * m.down.weight[k * w.cols + c];
      }
    }
    return absl::OkStatus();
  }

  // In what W x costs.
  UnitInfo DescribeUnit(const Plan&, int64_t) const {
    const Merged& m = merged_[0];
    const auto in = static_cast<double>(m.down.in);
    const auto out = static_cast<double>(m.up.out);
    return {.kind = UnitKind::kOwn,
            .cost = std::min(1.0, static_cast<double>(m.down.out) * (in + out) / (in * out)),
            .concurrency = Concurrency::kRows,
            .max_rows = kRows};
  }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    if (s.units != 0 && s.units != tasks_)
      return absl::InvalidArgumentError(
          absl::StrCat("shape: ", s.units, " units; wanted ", tasks_, ", one a task, or 0"));
    Plan p;
    p.shape = s;
    p.shape.units = tasks_;
    p.max_entries = s.items;
    const Merged& m = merged_[0];
    p.unit_workspace_bytes =
        static_cast<size_t>(kRows * m.down.out +
                            kernels::GemmScratchFloats(std::max(m.down.in, m.down.out))) *
        sizeof(float);
    return p;
  }

  absl::Status Run(const Plan&, const RouteInputs& in, const RunContext&, Assignment& out) const {
    if (in.task >= static_cast<uint64_t>(tasks_))
      return absl::OutOfRangeError(
          absl::StrCat("task ", in.task, "; the weights have ", tasks_, " tasks"));
    const auto task = static_cast<int32_t>(in.task);
    one_unit::Assign(in.items, tasks_, out, [&](int64_t) -> one_unit::Choice {
      return {task, 0.0f};
    });
    return absl::OkStatus();
  }

  absl::Status RunUnit(const Plan&, const UnitRows& rows, const RunContext& ctx) const {
    const Merged& m = merged_[static_cast<size_t>(rows.unit)];
    if (rows.in.rows > kRows || rows.in.cols != m.down.in || rows.out.cols != m.up.out)
      return absl::InvalidArgumentError(absl::StrCat(
          kTraits.name, ": [", rows.in.rows, ", ", rows.in.cols, "] to width ", rows.out.cols,
          "; at most ", kRows, " rows of width ", m.down.in, " to width ", m.up.out));
    float* hidden = ctx.workspace.At<float>(0);
    float* gemm = hidden + kRows * m.down.out;
    m.down.ApplyRows(rows.in.data, rows.in.rows, hidden, gemm);
    m.up.ApplyRows(hidden, rows.in.rows, rows.out.data, gemm);
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kRows = 64;

  // A task's adapter: y = up (down x), alpha / rank in `up`.
  struct Merged {
    Linear down;
    Linear up;
  };
  // a [heads, skills, in / heads, rank], b [heads, skills, rank, out / heads].
  struct Inventory {
    int64_t skills = 0;
    int64_t heads = 0;
    int64_t rank = 0;
    int64_t in = 0;
    int64_t out = 0;
    std::vector<float> a;
    std::vector<float> b;

    absl::Status Check(int64_t tasks) const {
      constexpr int64_t kMost = 1 << 16;
      constexpr int64_t kMostFloats = int64_t{1} << 32;
      for (int64_t n : {tasks, skills, heads, rank, in, out}) {
        if (n <= 0 || n > kMost)
          return absl::InvalidArgumentError(absl::StrCat(
              "sluice.polytropon.tasks ", tasks, ", skills ", skills, ", heads ", heads, ", rank ",
              rank, ", in ", in, ", out ", out, "; allowed 1 to ", kMost));
      }
      if (in % heads != 0 || out % heads != 0)
        return absl::InvalidArgumentError(absl::StrCat(
            "sluice.polytropon.heads ", heads, " do not divide the widths ", in, " and ", out));
      if (skills * rank > kMost || tasks > kMostFloats / ((in + out) * skills * rank))
        return absl::InvalidArgumentError(absl::StrCat(tasks, " tasks of ", skills,
                                                       " skills of rank ", rank, " and widths ", in,
                                                       " and ", out, "; allowed 2^32 numbers"));
      return absl::OkStatus();
    }
    float A(int64_t head, int64_t skill, int64_t column, int64_t k) const {
      return a[((head * skills + skill) * (in / heads) + column) * rank + k];
    }
    float B(int64_t head, int64_t skill, int64_t k, int64_t column) const {
      return b[((head * skills + skill) * rank + k) * (out / heads) + column];
    }
  };

  static std::string Prefix(const Config& c) {
    return absl::StrCat("blk.", c.layer, ".polytropon.");
  }

  // share [heads, skills].
  static std::vector<float> Shares(const Config& c, const Inventory& v, const float* logits) {
    std::vector<float> share(static_cast<size_t>(v.heads * v.skills));
    for (int64_t h = 0; h < v.heads; ++h) {
      float* head = &share[h * v.skills];
      float sum = 0;
      for (int64_t j = 0; j < v.skills; ++j) {
        const float z = c.share == Share::kUniform ? 0.0f : logits[h * v.skills + j];
        head[j] = 1 / (1 + std::exp(-z));
        sum += head[j];
      }
      for (int64_t j = 0; j < v.skills; ++j) head[j] /= sum + 1e-12f;
    }
    return share;
  }
  static Merged Empty(const Inventory& v, int64_t rank) {
    const auto zeros = [](int64_t n) { return std::vector<float>(static_cast<size_t>(n)); };
    return {.down = {v.in, rank, zeros(rank * v.in), zeros(rank)},
            .up = {rank, v.out, zeros(v.out * rank), zeros(v.out)}};
  }
  static Merged MergeBefore(const Config& c, const Inventory& v, const std::vector<float>& share) {
    const float scale = static_cast<float>(c.alpha / static_cast<double>(v.rank));
    const int64_t in_slice = v.in / v.heads;
    const int64_t out_slice = v.out / v.heads;
    Merged m = Empty(v, v.rank);
    for (int64_t h = 0; h < v.heads; ++h) {
      for (int64_t j = 0; j < v.skills; ++j) {
        const float s = share[h * v.skills + j];
        for (int64_t k = 0; k < v.rank; ++k) {
          for (int64_t i = 0; i < in_slice; ++i)
            m.down.weight[k * v.in + h * in_slice + i] += s * v.A(h, j, i, k);
          for (int64_t o = 0; o < out_slice; ++o)
            m.up.weight[(h * out_slice + o) * v.rank + k] += scale * s * v.B(h, j, k, o);
        }
      }
    }
    return m;
  }
  // The skills' adapters beside each other, as one of rank skills * rank.
  static Merged MergeAfter(const Config& c, const Inventory& v, const std::vector<float>& share) {
    const float scale = static_cast<float>(c.alpha / static_cast<double>(v.rank));
    const int64_t ranks = v.skills * v.rank;
    Merged m = Empty(v, ranks);
    for (int64_t j = 0; j < v.skills; ++j) {
      for (int64_t k = 0; k < v.rank; ++k) {
        const int64_t at = j * v.rank + k;
        for (int64_t i = 0; i < v.in; ++i) m.down.weight[at * v.in + i] = v.A(0, j, i, k);
        for (int64_t o = 0; o < v.out; ++o)
          m.up.weight[o * ranks + at] = scale * share[j] * v.B(0, j, k, o);
      }
    }
    return m;
  }

  int64_t tasks_ = 0;
  std::vector<Merged> merged_;  // one a task
};
}  // namespace adapter
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ADAPTER_POLYTROPON_POLYTROPON_H_
