#ifndef SLUICE_ROUTERS_EXPERT_CARE_EDIT_CARE_EDIT_H_
#define SLUICE_ROUTERS_EXPERT_CARE_EDIT_CARE_EDIT_H_
// Tokens of a diffusion step to experts of different kinds (text, mask, reference, base), by what
// the edit is conditioned on and by the step: CARE-Edit. The body of the paper was not read: the
// form is that of its abstract and of notes on it.
//
//   SCORE   z = W2 relu(W1 [key; query] + b1) + b2, key = K h of the token, query = C c + S[step] +
//           T[task] of all of them
//   MERGE   z with its neighbours' on the tokens' grid (smooth), where asked for
//   REUSE   z = (1 - ema) z + ema z of the step before
//   SELECT  the best k, by z + unit bias; a fixed share of the tokens always takes the shared
//   expert MERGE   softmax(z / temperature) over the chosen, times gamma, and 1 - gamma more on the
//   base
//           expert: gamma of the step, learned or given
//
// An expert whose condition is absent is barred by a unit bias of -inf. Where the base is barred
// the blend is left out. A logit that is not finite is never selected, and counted; it spoils no
// later step. Which tokens are the share: spread evenly over the positions, inferred. The paper
// smooths the weights by a loss in training; smooth does it while running, ours. Its Mask Repaint
// is mask_repaint.h; the experts are the host's. No claim of the paper's figures goes with this.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "sluice/api/router.h"
#include "sluice/routers/common/pipeline/coupling.h"
#include "sluice/routers/common/pipeline/selector.h"
#include "sluice/routers/expert/common/k_experts.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// Items are the tokens of one picture, hidden [items, dim], the same ones at every step, all of
// them in one call; positions say which tokens they are (else 0, 1, 2, ...). Conditions
// [conditions] hold for all. Remembers the logits of the step before, items * experts floats of
// state, unless ema=0. O(items (dim key + (key + experts) mlp)).
class CareEdit {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "expert/care_edit",
      .title = "CARE-Edit: Condition-Aware Routing of Experts for Contextual Image Editing",
      .domain = Domain::kExpert,
      .combine = Combine::kWeightedSum,
      .decides = Decides::kToken,
      .learned = true,
      .causal = false,  // with smooth
      .items_alone = false,
      .reads = kReadsHidden | kReadsConditions | kReadsStep | kReadsTask,
      .may_read = kReadsPositions | kReadsUnitBias,
      .full_budget = "k=0",
      .small_budget = "k=1,share=0,gamma=1",
  };

  struct Config {
    int64_t layer = 0;
    int64_t k = 3;
    double temperature = 1;
    double ema = 0.5;
    double share = 0.1;
    int64_t shared = -1;
    int64_t base = -1;
    double gamma = -1;
    double smooth = 0;
    int64_t grid = 0;

    template <class V>
    void VisitFields(V&& v) {
      v("layer", layer, Range<int64_t>{0, 1 << 16}, "block whose router it is");
      v("k", k, Range<int64_t>{0, 65536}, "experts a token; 0: all of them");
      v("temperature", temperature, Range<double>{1e-3, 1e3}, "of the weights' softmax");
      v("ema", ema, Range<double>{0, 0.999},
        "share of the step before in the logits; 0: no memory");
      v("share", share, Range<double>{0, 1}, "of the tokens that always take the shared expert");
      v("shared", shared, Range<int64_t>{-1, 65536}, "the shared expert; -1: the base");
      v("base", base, Range<int64_t>{-1, 65536}, "the base expert; -1: the last");
      v("gamma", gamma, Range<double>{-1, 1},
        "share of the chosen experts, the rest is the base's; -1: as learned for the step");
      v("smooth", smooth, Range<double>{0, 1}, "share of the four neighbours in the logits");
      v("grid", grid, Range<int64_t>{0, 1 << 30}, "tokens a row of the picture, for smooth");
    }
  };
  struct Plan : RoutePlanInfo {
    size_t query = 0;            // [query], then its part of the hidden layer [mlp]
    size_t logits = 0;           // [items, experts]
    size_t smoothed = 0;         // [items, experts], with smooth
    size_t floats = 0;           // of the workers: key, hidden layer, ranks
    size_t select = 0;           // of the workers
    size_t count = 0, nans = 0;  // [items]
    int64_t floats_each = 0, select_each = 0;
    int64_t k = 0, places = 0;  // chosen; room for the base beside them
    pipeline::RowScratch row;
  };

  static absl::StatusOr<CareEdit> Create(const Config& c, const WeightSource& w) {
    CareEdit r;
    r.config_ = c;
    const std::string name = "sluice.care_edit.";
    SLUICE_ASSIGN_OR_RETURN(const int64_t layers, w.Int(name + "layers"));
    SLUICE_ASSIGN_OR_RETURN(r.dim_, w.Int(name + "dim"));
    SLUICE_ASSIGN_OR_RETURN(r.conditions_, w.Int(name + "conditions"));
    SLUICE_ASSIGN_OR_RETURN(const int64_t key, w.Int(name + "key"));
    SLUICE_ASSIGN_OR_RETURN(r.query_, w.Int(name + "query"));
    SLUICE_ASSIGN_OR_RETURN(const int64_t mlp, w.Int(name + "mlp"));
    SLUICE_ASSIGN_OR_RETURN(r.experts_, w.Int(name + "experts"));
    SLUICE_ASSIGN_OR_RETURN(r.steps_, w.Int(name + "steps"));
    SLUICE_ASSIGN_OR_RETURN(r.tasks_, w.Int(name + "tasks"));
    if (c.layer >= layers)
      return absl::OutOfRangeError(
          absl::StrCat("layer=", c.layer, ", but the weights have ", layers, " layers"));
    SLUICE_RETURN_IF_ERROR(r.Check(key, mlp));

    const std::string at = Prefix(c);
    SLUICE_ASSIGN_OR_RETURN(r.key_, Linear::Read(w, at + "key", r.dim_, key));
    SLUICE_ASSIGN_OR_RETURN(r.condition_,
                            Linear::Read(w, at + "condition", r.conditions_, r.query_));
    SLUICE_ASSIGN_OR_RETURN(r.step_, Linear::ReadMatrix(w, at + "step", r.query_, r.steps_));
    SLUICE_ASSIGN_OR_RETURN(r.task_, Linear::ReadMatrix(w, at + "task", r.query_, r.tasks_));
    SLUICE_ASSIGN_OR_RETURN(r.mlp_, Linear::Read(w, at + "mlp", key + r.query_, mlp));
    SLUICE_ASSIGN_OR_RETURN(r.logits_, Linear::Read(w, at + "logits", mlp, r.experts_));
    SLUICE_ASSIGN_OR_RETURN(r.gamma_, Linear::ReadMatrix(w, at + "gamma", 1, r.steps_));
    return r;
  }
  static WeightKeys Weights(const Config& c, const RouteShape& s) {
    constexpr int64_t kKey = 8;
    constexpr int64_t kQuery = 6;
    constexpr int64_t kMlp = 12;
    constexpr int64_t kExperts = 8;
    constexpr int64_t kSteps = 8;
    constexpr int64_t kTasks = 2;
    const std::string name = "sluice.care_edit.";
    WeightKeys w;
    w.ints = {{name + "layers", c.layer + 1},
              {name + "dim", s.hidden},
              {name + "conditions", s.conditions},
              {name + "key", kKey},
              {name + "query", kQuery},
              {name + "mlp", kMlp},
              {name + "experts", kExperts},
              {name + "steps", kSteps},
              {name + "tasks", kTasks}};
    const std::string at = Prefix(c);
    w.AddLinear(at + "key", s.hidden, kKey);
    w.AddLinear(at + "condition", s.conditions, kQuery);
    w.tensors.push_back({at + "step", {kQuery, kSteps}});
    w.tensors.push_back({at + "task", {kQuery, kTasks}});
    w.AddLinear(at + "mlp", kKey + kQuery, kMlp);
    w.AddLinear(at + "logits", kMlp, kExperts);
    w.tensors.push_back({at + "gamma", {1, kSteps}});
    return w;
  }

  UnitInfo DescribeUnit(const Plan& p, int64_t) const { return DescribeExpert(p); }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    if ((s.units != 0 && s.units != experts_) || s.hidden != dim_ || s.conditions != conditions_)
      return absl::InvalidArgumentError(
          absl::StrCat("shape: ", s.units, " units, hidden ", s.hidden, ", ", s.conditions,
                       " conditions; wanted ", experts_, " units (or 0), hidden ", dim_, " and ",
                       conditions_, " conditions"));
    Plan p;
    p.shape = s;
    p.shape.units = experts_;
    SLUICE_RETURN_IF_ERROR(CheckExperts(p.shape, 0));
    p.k = config_.k == 0 ? experts_ : config_.k;
    p.places = std::min(experts_, p.k + (config_.gamma == 1 ? 0 : 1));
    p.max_entries = s.items * p.places;
    p.row = pipeline::RowScratch(experts_);

    const int64_t workers = std::max(1, s.workers);
    WorkspaceLayout w;
    p.query = w.Add<float>(query_ + mlp_.out);
    p.logits = w.Add<float>(s.items * experts_);
    if (config_.smooth > 0) p.smoothed = w.Add<float>(s.items * experts_);
    p.floats_each = key_.out + mlp_.out + 2 * experts_;
    p.floats = w.Add<float>(p.floats_each * workers);
    p.select_each = (p.row.bytes() + 63) / 64 * 64;
    p.select = w.Add<std::byte>(p.select_each * workers);
    p.count = w.Add<int64_t>(s.items);
    p.nans = w.Add<int64_t>(s.items);
    p.workspace_bytes = w.bytes();
    if (config_.ema > 0)
      p.state_bytes = kHeader + static_cast<size_t>(s.items * experts_) * sizeof(float);
    return p;
  }

  absl::Status Run(const Plan& p, const RouteInputs& in, RouterState& state, const RunContext& ctx,
                   Assignment& out) const {
    SLUICE_RETURN_IF_ERROR(CheckTokens(in));
    SLUICE_RETURN_IF_ERROR(CheckMoment(in));
    SLUICE_RETURN_IF_ERROR(CheckState(p, in, state));
    const Workspace& w = ctx.workspace;
    MatrixView<float> z = {w.At<float>(p.logits), in.items, experts_, experts_};
    Ask(p, in, ctx);
    Score(p, in, ctx, z);
    if (config_.smooth > 0) {
      const MatrixView<float> to = {w.At<float>(p.smoothed), in.items, experts_, experts_};
      Smooth(z, to);
      z = to;
    }
    if (p.state_bytes > 0) Remember(z, state);
    Select(p, in, ctx, z, out);
    return absl::OkStatus();
  }

 private:
  static constexpr size_t kHeader = 64;  // of the state: how many items it speaks of
  static std::string Prefix(const Config& c) {
    return absl::StrCat("blk.", c.layer, ".care_edit.");
  }
  int64_t base() const { return config_.base < 0 ? experts_ - 1 : config_.base; }
  int64_t shared() const { return config_.shared < 0 ? base() : config_.shared; }

  absl::Status Check(int64_t key, int64_t mlp) const {
    constexpr int64_t kMost = 1 << 20;
    for (int64_t n : {dim_, conditions_, key, query_, mlp, experts_, steps_, tasks_}) {
      if (n <= 0 || n > kMost)
        return absl::InvalidArgumentError(
            absl::StrCat("sluice.care_edit.dim ", dim_, ", conditions ", conditions_, ", key ", key,
                         ", query ", query_, ", mlp ", mlp, ", experts ", experts_, ", steps ",
                         steps_, ", tasks ", tasks_, "; allowed 1 to ", kMost));
    }
    if (config_.k > experts_ || base() >= experts_ || shared() >= experts_)
      return absl::InvalidArgumentError(absl::StrCat("k=", config_.k, ", base=", config_.base,
                                                     ", shared=", config_.shared, " of ", experts_,
                                                     " experts"));
    if (config_.gamma < 0 && config_.gamma != -1)
      return absl::InvalidArgumentError(absl::StrCat(
          "gamma=", config_.gamma, "; allowed 0 to 1, or -1 for the learned one of the step"));
    if ((config_.smooth > 0) != (config_.grid > 0))
      return absl::InvalidArgumentError(absl::StrCat("smooth=", config_.smooth,
                                                     " with grid=", config_.grid,
                                                     "; allowed both, or neither of them"));
    return absl::OkStatus();
  }
  absl::Status CheckMoment(const RouteInputs& in) const {
    if (in.step < 0 || in.step >= steps_)
      return absl::OutOfRangeError(absl::StrCat(kTraits.name, ": step ", in.step,
                                                "; the weights know steps 0 to ", steps_ - 1));
    if (in.task >= static_cast<uint64_t>(tasks_))
      return absl::OutOfRangeError(absl::StrCat(kTraits.name, ": task ", in.task,
                                                "; the weights know tasks 0 to ", tasks_ - 1));
    if (config_.grid > 0 && in.items % config_.grid != 0)
      return absl::InvalidArgumentError(absl::StrCat(
          kTraits.name, ": ", in.items, " tokens are no whole rows of grid=", config_.grid));
    return absl::OkStatus();
  }
  static absl::Status CheckState(const Plan& p, const RouteInputs& in, const RouterState& state) {
    if (p.state_bytes == 0 || state.keys == 0) return absl::OkStatus();
    const int64_t known = *reinterpret_cast<const int64_t*>(state.layer);
    if (known == in.items) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        kTraits.name, ": ", in.items, " tokens, and the state speaks of ", known,
        " of the step before; allowed: the same tokens at every step, or an empty state"));
  }

  // The query, and what it adds to the hidden layer of every token.
  void Ask(const Plan& p, const RouteInputs& in, const RunContext& ctx) const {
    float* query = ctx.workspace.At<float>(p.query);
    condition_.Apply(in.conditions.data(), query);
    const float* step = &step_.weight[static_cast<size_t>(in.step * query_)];
    const float* task = &task_.weight[static_cast<size_t>(in.task) * static_cast<size_t>(query_)];
    for (int64_t c = 0; c < query_; ++c) query[c] += step[c] + task[c];
    float* part = query + query_;
    for (int64_t o = 0; o < mlp_.out; ++o) {
      const float* row = mlp_.weight.data() + o * mlp_.in + key_.out;
      part[o] = kernels::Dot(query, row, DType::kF32, query_) + mlp_.bias[static_cast<size_t>(o)];
    }
  }

  void Score(const Plan& p, const RouteInputs& in, const RunContext& ctx,
             MatrixView<float> z) const {
    const float* part = ctx.workspace.At<float>(p.query) + query_;
    ForEachPiece(in.items, p.shape.workers, ctx, [&](int64_t begin, int64_t end, int worker) {
      float* key = ctx.workspace.At<float>(p.floats) + p.floats_each * worker;
      float* hidden = key + key_.out;
      for (int64_t i = begin; i < end; ++i) {
        key_.Apply(in.hidden.row(i), key);
        for (int64_t o = 0; o < mlp_.out; ++o) {
          const float* row = mlp_.weight.data() + o * mlp_.in;
          const float h = kernels::Dot(key, row, DType::kF32, key_.out) + part[o];
          hidden[o] = h < 0 ? 0.0f : h;
        }
        logits_.Apply(hidden, z.row(i));
      }
    });
  }

  // Each token's logits and the mean of those beside it, above and below.
  void Smooth(MatrixView<float> z, MatrixView<float> to) const {
    const auto smooth = static_cast<float>(config_.smooth);
    const int64_t grid = config_.grid;
    for (int64_t i = 0; i < z.rows; ++i) {
      int64_t beside[4];
      int64_t n = 0;
      if (i >= grid) beside[n++] = i - grid;
      if (i % grid > 0) beside[n++] = i - 1;
      if (i % grid + 1 < grid) beside[n++] = i + 1;
      if (i + grid < z.rows) beside[n++] = i + grid;
      for (int64_t u = 0; u < z.cols; ++u) {
        float sum = 0;
        for (int64_t b = 0; b < n; ++b) sum += z.row(beside[b])[u];
        const float own = z.row(i)[u];
        to.row(i)[u] = n == 0 ? own : (1 - smooth) * own + smooth * sum / static_cast<float>(n);
      }
    }
  }

  void Remember(MatrixView<float> z, const RouterState& state) const {
    *reinterpret_cast<int64_t*>(state.layer) = z.rows;
    const MatrixView<float> before = {reinterpret_cast<float*>(state.layer + kHeader), z.rows,
                                      z.cols, z.cols};
    pipeline::Ema(z, before, state.keys == 0 ? 0 : static_cast<float>(config_.ema));
  }

  // Whether the token at this position is of the share: every 1 / share-th.
  bool InShare(int64_t position) const {
    const auto at = static_cast<double>(position);
    return std::floor((at + 1) * config_.share) > std::floor(at * config_.share);
  }

  void Select(const Plan& p, const RouteInputs& in, const RunContext& ctx, MatrixView<float> z,
              Assignment& out) const {
    const auto units = static_cast<size_t>(experts_);
    const float gamma = Gamma(in.step);
    auto* count = ctx.workspace.At<int64_t>(p.count);
    auto* nans = ctx.workspace.At<int64_t>(p.nans);
    ForEachPiece(in.items, p.shape.workers, ctx, [&](int64_t begin, int64_t end, int worker) {
      float* rank = ctx.workspace.At<float>(p.floats) + p.floats_each * worker;
      float* forced = rank + experts_;
      std::byte* scratch = ctx.workspace.At<std::byte>(p.select) + p.select_each * worker;
      for (int64_t i = begin; i < end; ++i) {
        nans[i] = 0;
        for (int64_t u = 0; u < experts_; ++u) {
          const float bias = in.unit_bias.empty() ? 0.0f : in.unit_bias[static_cast<size_t>(u)];
          const float logit = z.row(i)[u];
          rank[u] = std::isfinite(logit) ? logit + bias : NAN;
          nans[i] += std::isnan(rank[u]);
        }
        std::copy_n(rank, experts_, forced);
        const auto always = static_cast<int32_t>(shared());
        const int64_t position = in.positions.empty() ? i : in.positions[static_cast<size_t>(i)];
        if (InShare(position) && forced[always] > pipeline::kNever)
          pipeline::Force({forced, units}, {&always, 1});

        const int64_t at = i * p.places;
        int32_t* unit = &out.unit[static_cast<size_t>(at)];
        float* weight = &out.weight[static_cast<size_t>(at)];
        int64_t n = pipeline::TopK({forced, units}, p.k, p.row, scratch, unit);
        for (int64_t e = 0; e < n; ++e)
          weight[e] = z.row(i)[unit[e]] / static_cast<float>(config_.temperature);
        pipeline::NormaliseRow(pipeline::Renormalise::kSoftmax, 1,
                               {weight, static_cast<size_t>(n)});
        if (gamma < 1 && rank[base()] > pipeline::kNever) n = Blend(gamma, n, unit, weight);
        for (int64_t e = 0; e < n && !out.score.empty(); ++e)
          out.score[static_cast<size_t>(at + e)] = rank[unit[e]];
        count[i] = n;
      }
    });
    PackRows(in.items, p.places, count, nans, out);
  }

  float Gamma(int64_t step) const {
    if (config_.gamma >= 0) return static_cast<float>(config_.gamma);
    return 1 / (1 + std::exp(-gamma_.weight[static_cast<size_t>(step)]));
  }
  // The n chosen by gamma, the base by the rest beside what it has: how many there are now.
  int64_t Blend(float gamma, int64_t n, int32_t* unit, float* weight) const {
    const auto b = static_cast<int32_t>(base());
    if (gamma == 0) {
      unit[0] = b;
      weight[0] = 1;
      return 1;
    }
    for (int64_t e = 0; e < n; ++e) weight[e] *= gamma;
    int64_t at = 0;
    while (at < n && unit[at] < b) ++at;
    if (at == n || unit[at] != b) {
      std::copy_backward(unit + at, unit + n, unit + n + 1);
      std::copy_backward(weight + at, weight + n, weight + n + 1);
      unit[at] = b;
      weight[at] = 0;
      ++n;
    }
    weight[at] += 1 - gamma;
    return n;
  }

  Config config_;
  int64_t dim_ = 0;
  int64_t conditions_ = 0;
  int64_t query_ = 0;
  int64_t experts_ = 0;
  int64_t steps_ = 0;
  int64_t tasks_ = 0;
  Linear key_;
  Linear condition_;
  Linear step_, task_;  // rows of the query
  Linear mlp_;          // of key and query
  Linear logits_;
  Linear gamma_;  // logits, one a step
};
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_CARE_EDIT_CARE_EDIT_H_
