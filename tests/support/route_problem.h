#ifndef SLUICE_TESTS_SUPPORT_ROUTE_PROBLEM_H_
#define SLUICE_TESTS_SUPPORT_ROUTE_PROBLEM_H_
// Everything that an assignment router may read, made up for one that is known by its traits only.
#include <memory>
#include <string>
#include <vector>

#include "sluice/api/registry.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/tests/support/random_weights.h"
#include "sluice/tests/support/synthetic_weights.h"

SLUICE_BEGIN_NAMESPACE
// `items` items; those of routers that read queries are sequences of 1 to 5 rows, all others single
// rows. What the traits do not name is not given.
struct RouteProblem {
  static constexpr int64_t kUnits = 8, kWidth = 24, kHidden = 32, kHeads = 2, kHeadDim = 16;
  RouteTraits traits;
  int64_t items;
  std::vector<float> scores, features, hidden, queries, feedback, conditions, bias;
  std::vector<int64_t> positions, item_rows = {0};

  RouteProblem(const RouteTraits& t, int64_t n, uint64_t seed = 1) : traits(t), items(n) {
    const bool sequences = Reads(kReadsQueries);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t rows = sequences ? 1 + i % 5 : 1;
      item_rows.push_back(item_rows.back() + rows);
      for (int64_t r = 0; r < rows; ++r) positions.push_back(sequences ? r : i);
    }
    scores = RandomFeatures(n, kUnits, seed + 1);
    features = RandomFeatures(n, kWidth, seed + 2);
    hidden = RandomFeatures(rows(), kHidden, seed + 3);
    queries = RandomFeatures(rows(), kHeads * kHeadDim, seed + 4);
    for (float x : RandomFeatures(n, 1, seed + 5)) feedback.push_back(x + 2);
    conditions = RandomFeatures(1, kWidth, seed + 6);
    bias = RandomFeatures(1, kUnits, seed + 7);
  }

  bool Reads(uint32_t bits) const { return ((traits.reads | traits.may_read) & bits) != 0; }
  int64_t rows() const { return item_rows.back(); }

  RouteShape Shape(int workers = 1) const {
    RouteShape s;
    s.items = items;
    // A router that scores for itself knows its units.
    s.units = Reads(kReadsScores) ? kUnits : 0;
    s.width = Reads(kReadsFeatures) ? kWidth : 0;
    s.hidden = Reads(kReadsHidden) ? kHidden : 0;
    s.rows = rows();
    s.heads = Reads(kReadsQueries) ? kHeads : 0;
    s.head_dim = Reads(kReadsQueries) ? kHeadDim : 0;
    s.conditions = Reads(kReadsConditions) ? kWidth : 0;
    s.workers = workers;
    return s;
  }

  // The items [begin, end) of it.
  RouteInputs Inputs(int64_t begin, int64_t end) {
    const int64_t row = item_rows[begin];
    const int64_t n = item_rows[end] - row;
    RouteInputs in;
    in.items = end - begin;
    in.layer = 0;
    in.task = 1;
    if (Reads(kReadsScores)) in.scores = {&scores[begin * kUnits], in.items, kUnits, kUnits};
    if (Reads(kReadsFeatures)) in.features = {&features[begin * kWidth], in.items, kWidth, kWidth};
    if (Reads(kReadsHidden)) in.hidden = {&hidden[row * kHidden], n, kHidden, kHidden};
    if (Reads(kReadsQueries)) {
      constexpr int64_t kRow = kHeads * kHeadDim;
      in.queries = {&queries[row * kRow], n, kHeads, kHeadDim, kRow, kHeadDim};
      part_rows_.clear();
      for (int64_t i = begin; i <= end; ++i) part_rows_.push_back(item_rows[i] - row);
      in.item_rows = part_rows_;
    }
    const auto part = [&](const auto& x, int64_t from, int64_t count) {
      return absl::MakeConstSpan(x).subspan(from, count);
    };
    if (Reads(kReadsFeedback)) in.feedback = part(feedback, begin, in.items);
    if (Reads(kReadsPositions)) in.positions = part(positions, row, n);
    if (Reads(kReadsConditions)) in.conditions = conditions;
    if (Reads(kReadsUnitBias)) in.unit_bias = bias;
    return in;
  }
  RouteInputs Inputs() { return Inputs(0, items); }

 private:
  std::vector<int64_t> part_rows_;
};

// A router made for a problem, with weights from its own declaration, and room to run.
struct MadeRouter {
  std::unique_ptr<const Router> router;
  std::unique_ptr<const Router::Plan> plan;
  OwnedWorkspace memory;
  OwnedWorkspace kept;  // of one sequence, between Runs

  // `options`: "key=value,...", or "".
  static absl::StatusOr<MadeRouter> Make(const RouterFactory& factory, const std::string& options,
                                         const RouteProblem& problem, int workers = 1) {
    const std::string text = options.empty() ? "x" : "x:" + options;
    SLUICE_ASSIGN_OR_RETURN(const Spec spec, ParseSpec(text));
    SLUICE_ASSIGN_OR_RETURN(WeightKeys keys, factory.Weights(spec.options, problem.Shape()));
    const SyntheticWeights weights(std::move(keys));
    MadeRouter m;
    SLUICE_ASSIGN_OR_RETURN(
        m.router, factory.Create(spec.options, factory.traits().learned ? &weights : nullptr));
    SLUICE_ASSIGN_OR_RETURN(m.plan, m.router->MakePlan(problem.Shape(workers)));
    m.memory.Resize(m.plan->info().workspace_bytes);
    m.kept.Resize(m.plan->info().state_bytes);
    return m;
  }

  AssignmentBuffer Room() const {
    const RoutePlanInfo& info = plan->info();
    AssignmentBuffer buffer;
    buffer.Reserve(info.shape.items, info.max_entries, info.max_dropped);
    return buffer;
  }
  // An empty memory, in `bytes` of state_bytes.
  static RouterState Empty(const OwnedWorkspace& bytes) {
    const Workspace w = bytes.workspace();
    std::fill_n(w.data, w.bytes, std::byte{0});
    return {w.bytes > 0 ? w.data : nullptr, nullptr, 0};
  }
  // The first Run of a sequence.
  absl::Status Run(const RouteInputs& in, AssignmentBuffer& out,
                   Executor* executor = nullptr) const {
    RouterState state = Empty(kept);
    return Run(in, state, out, executor);
  }
  absl::Status Run(const RouteInputs& in, RouterState& state, AssignmentBuffer& out,
                   Executor* executor = nullptr) const {
    return router->Run(*plan, in, state, {memory.workspace(), executor}, out.view());
  }
};

// What an assignment says, by value.
struct Decided {
  std::vector<int64_t> row_ptr;
  std::vector<int32_t> unit;
  std::vector<float> weight, score;
  std::vector<DroppedPair> dropped;
  int64_t nan_scores = 0;

  static Decided Of(const Assignment& a) {
    const auto entries = static_cast<size_t>(a.entries());
    Decided d;
    d.row_ptr.assign(a.row_ptr.begin(), a.row_ptr.begin() + a.items + 1);
    d.unit.assign(a.unit.begin(), a.unit.begin() + entries);
    d.weight.assign(a.weight.begin(), a.weight.begin() + entries);
    if (!a.score.empty()) d.score.assign(a.score.begin(), a.score.begin() + entries);
    d.dropped.assign(a.dropped.begin(), a.dropped.begin() + a.num_dropped);
    d.nan_scores = a.nan_scores;
    return d;
  }
  std::vector<int32_t> Units(int64_t item) const {
    return {unit.begin() + row_ptr[item], unit.begin() + row_ptr[item + 1]};
  }
  friend bool operator==(const Decided&, const Decided&) = default;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_ROUTE_PROBLEM_H_
