#ifndef SLUICE_API_ROUTER_H_
#define SLUICE_API_ROUTER_H_
// Assignment routers: items -> units. An author writes a plain struct that satisfies RouterModel;
// RouterOf makes it virtual, plugin.h makes it C. Plan, then run: MakePlan may fail and allocate;
// Run is const and never allocates, locks or logs.
//
//   struct MyRouter {
//     static constexpr RouteTraits kTraits = {.name = "token/mine", .domain = Domain::kToken, ...};
//     struct Config { ... VisitFields ... };
//     struct Plan : RoutePlanInfo { ... };
//     static absl::StatusOr<MyRouter> Create(const Config&);  // learned: (const Config&, weights)
//     absl::StatusOr<Plan> MakePlan(const RouteShape&) const;
//     absl::Status Run(const Plan&, const RouteInputs&, const RunContext&, Assignment&) const;
//     // or, with RoutePlanInfo::state_bytes, one that remembers earlier Runs:
//     absl::Status Run(const Plan&, const RouteInputs&, RouterState&, const RunContext&,
//                      Assignment&) const;
//     // and where they say more than the defaults:
//     UnitInfo DescribeUnit(const Plan&, int64_t unit) const;
//     absl::Status RunUnit(const Plan&, const UnitRows&, const RunContext&) const;
//     static WeightKeys Weights(const Config&, const RouteShape&);  // learned ones
//   };
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
enum class Domain : uint8_t {
  kLayer = 1,
  kToken,
  kHead,
  kAttention,
  kExpert,
  kAdapter,
  kAgent,
  kWeight
};

// What stands before the slash of a method's name; "?" of numbers that are no domain.
constexpr const char* DomainName(Domain d) {
  constexpr const char* kNames[] = {"?",      "layer",   "token", "head",  "attention",
                                    "expert", "adapter", "agent", "weight"};
  return kNames[d <= Domain::kWeight ? static_cast<size_t>(d) : 0];
}

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
  Executor* executor = nullptr;  // nullptr: the calling thread alone
  const PlanLender* plans = nullptr;
};

// A router's memory of a sequence, owned by the host. Zero bytes and zero keys mean empty. Run
// brings it up to what it is given and the caller then sets `keys`; Truncate of attention routers
// takes keys back.
struct RouterState {
  std::byte* layer = nullptr;     // info().state_bytes, of one layer
  std::byte* sequence = nullptr;  // info().sequence_bytes, of all layers; attention's alone
  int64_t keys = 0;  // of which the layer's bytes speak; of routers of items: Runs, a step each
};

// What a router may read. A host that cannot give what `reads` names cannot use the router.
enum RouteReads : uint32_t {
  kReadsScores = 1 << 0,      // [items, units], made elsewhere
  kReadsFeatures = 1 << 1,    // [items, width], made by the caller
  kReadsHidden = 1 << 2,      // [rows, hidden], the state that enters the routed block
  kReadsQueries = 1 << 3,     // [rows, heads, head_dim], before RoPE
  kReadsFeedback = 1 << 4,    // [items], attention that each item received
  kReadsPositions = 1 << 5,   // [rows], ascending inside an item
  kReadsTask = 1 << 6,        // a number, or what the caller makes of a text
  kReadsConditions = 1 << 7,  // [conditions], shared by all items
  kReadsUnitBias = 1 << 8,    // [units], added for ranking only
  kReadsLayer = 1 << 9,
  kReadsStep = 1 << 10,
};

// How long a decision holds.
enum class Decides : uint8_t { kPrompt, kChunk, kToken };

// What is known of a router before it is made. The hosts, the conformance kit and the ABI obey it.
struct RouteTraits {
  absl::string_view name = {};               // "domain/method": its key in the registry
  absl::string_view title = {}, arxiv = {};  // of the paper; empty: folklore
  Domain domain = Domain::kToken;
  Combine combine = Combine::kWeightedSum;  // how its units' results become one row
  Decides decides = Decides::kToken;
  bool learned = false;
  bool causal = true;       // an item's units do not depend on later items
  bool items_alone = true;  // nor on any other item: a batch decides as its items would one by one
  uint32_t reads = 0;       // RouteReads that it needs
  uint32_t may_read = 0;    // RouteReads that it uses where they are given
  absl::string_view full_budget = {};   // config at which every item costs what the dense model
                                        // costs; empty: there is none
  absl::string_view small_budget = {};  // config at which it must skip something
};

struct RouteShape {
  int64_t items = 0;  // upper bounds, known before the data
  int64_t units = 0;  // 0: as many as the router has
  int64_t width = 0;  // columns of `features`, 0 when none are given
  int workers = 1;
  int64_t hidden = 0;               // columns of `hidden`
  int64_t rows = 0;                 // rows of `hidden`, `queries` and `positions`; 0: one an item
  int64_t heads = 0, head_dim = 0;  // of `queries`
  int64_t conditions = 0;
};

struct RoutePlanInfo {
  RouteShape shape;  // as asked, `units` filled in
  size_t workspace_bytes = 0;
  size_t unit_workspace_bytes = 0;  // of one RunUnit
  size_t state_bytes = 0;  // of RouterState::layer, where earlier Runs matter; 0: they do not
  int64_t max_entries = 0;
  int64_t max_dropped = 0;
  // Rows of an item's sequence that are read: the first head_rows and the last tail_rows of its
  // `length`. A host need not compute the others. -1: all.
  int64_t head_rows = -1, tail_rows = -1;

  int64_t max_rows() const { return shape.rows > 0 ? shape.rows : shape.items; }
};

// Views of the caller's data. `items` is always given; everything else as the traits say.
struct RouteInputs {
  int64_t items = 0;
  MatrixView<const float> scores;       // [items, units]
  MatrixView<const float> features;     // [items, width]
  MatrixView<const float> hidden;       // [rows, hidden]
  HeadsView<const float> queries;       // [rows, heads, head_dim], before RoPE
  absl::Span<const float> feedback;     // [items]
  absl::Span<const int64_t> positions;  // [rows], places in the row's sequence; empty: 0, 1, 2, ...
  // Rows [item_rows[i], item_rows[i + 1]) belong to item i, as the tokens of a sequence do. Empty:
  // row i is item i.
  absl::Span<const int64_t> item_rows;
  absl::Span<const int64_t> lengths;   // [items], tokens of each item's sequence; empty: its rows
  absl::Span<const float> conditions;  // [conditions]
  absl::Span<const float> unit_bias;   // [units]
  int64_t layer = -1;                  // -1: unknown
  int64_t step = 0;
  uint64_t task = 0;

  int64_t row_begin(int64_t item) const {
    return item_rows.empty() ? item : item_rows[static_cast<size_t>(item)];
  }
  int64_t row_end(int64_t item) const {
    return item_rows.empty() ? item + 1 : item_rows[static_cast<size_t>(item) + 1];
  }
  int64_t rows() const { return item_rows.empty() ? items : item_rows.back(); }
  int64_t length(int64_t item) const {
    return lengths.empty() ? row_end(item) - row_begin(item) : lengths[static_cast<size_t>(item)];
  }
  int64_t position(int64_t item, int64_t row) const {
    return positions.empty() ? row - row_begin(item) : positions[static_cast<size_t>(row)];
  }
};

// Who computes a unit.
enum class UnitKind : uint8_t {
  kHost,  // the host: a block, an expert, a head
  kSkip,  // nobody
  kOwn,   // the router, by RunUnit: a forecast, a shared expert, a memory read
};
// What may run at the same time.
enum class Concurrency : uint8_t {
  kAlone,  // one call with all its rows, from the calling thread, beside nothing else
  kUnits,  // one call with all its rows, beside other units
  kRows,   // its rows do not depend on each other: any pieces of them, beside anything
};
struct UnitInfo {
  UnitKind kind = UnitKind::kHost;
  double cost = 1;  // of one item, in what the dense model spends on it
  Concurrency concurrency = Concurrency::kAlone;
  int64_t max_rows = 0;  // that one call takes; 0: any number
};
// The rows that go to one unit: in [n, in_width] -> out [n, out_width], packed; items [n]
// ascending.
struct UnitRows {
  int64_t unit = 0;
  MatrixView<const float> in = {};
  absl::Span<const int32_t> items = {};
  MatrixView<float> out = {};
};

template <class R>
concept RemembersRuns = requires(const R& r, const typename R::Plan& p, const RouteInputs& in,
                                 RouterState& state, const RunContext& ctx, Assignment& out) {
  { r.Run(p, in, state, ctx, out) } -> std::same_as<absl::Status>;
};
template <class R>
concept RunsAlone = requires(const R& r, const typename R::Plan& p, const RouteInputs& in,
                             const RunContext& ctx, Assignment& out) {
  { r.Run(p, in, ctx, out) } -> std::same_as<absl::Status>;
};
template <class R>
concept RouterModel =
    (LearnedModel<R> || MadeFromConfig<R>)&&std::default_initializable<typename R::Config> &&
    std::derived_from<typename R::Plan, RoutePlanInfo> &&
    (RemembersRuns<R> || RunsAlone<R>)&&requires(const R& r, const RouteShape& s) {
      { R::kTraits } -> std::convertible_to<const RouteTraits&>;
      { r.MakePlan(s) } -> std::same_as<absl::StatusOr<typename R::Plan>>;
    };
template <class R>
concept NamesUnits = requires(const R& r, const typename R::Plan& p) {
  { r.DescribeUnit(p, int64_t{}) } -> std::same_as<UnitInfo>;
};
template <class R>
concept RunsUnits =
    requires(const R& r, const typename R::Plan& p, const UnitRows& rows, const RunContext& ctx) {
      { r.RunUnit(p, rows, ctx) } -> std::same_as<absl::Status>;
    };
template <class R>
concept DeclaresWeights = requires(const typename R::Config& c, const RouteShape& s) {
  { R::Weights(c, s) } -> std::same_as<WeightKeys>;
};

// What holds of every shape: no negative size. Errors name the router.
inline absl::Status CheckRouteShape(const RouteTraits& t, const RouteShape& s);
// What holds of every Run: the inputs that the traits read, within the planned shape, and room for
// the result, and a memory where one is kept. Both bridges call it, so that no method has to.
// O(items).
inline absl::Status CheckRouteRun(const RouteTraits& t, const RoutePlanInfo& p,
                                  const RouteInputs& in, const RouterState& state,
                                  const RunContext& ctx, const Assignment& out);

// What a host holds. One virtual call a batch, never one an item.
class Router {
 public:
  class Plan {
   public:
    virtual ~Plan() = default;
    virtual const RoutePlanInfo& info() const = 0;
  };
  virtual ~Router() = default;
  virtual const RouteTraits& traits() const = 0;
  absl::string_view name() const { return traits().name; }
  Domain domain() const { return traits().domain; }

  virtual absl::StatusOr<std::unique_ptr<const Plan>> MakePlan(const RouteShape&) const = 0;
  // `state`: of the sequence that the items are of; on success it speaks of one Run more. A router
  // without state_bytes leaves it alone.
  virtual absl::Status Run(const Plan&, const RouteInputs&, RouterState& state, const RunContext&,
                           Assignment&) const = 0;
  // Where nothing is kept between Runs: InvalidArgument of a router that remembers them.
  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    RouterState none;
    return Run(p, in, none, ctx, out);
  }

  virtual UnitInfo DescribeUnit(const Plan&, int64_t unit) const = 0;
  // Computes an own unit. ctx.workspace: unit_workspace_bytes of the caller's thread alone.
  virtual absl::Status RunUnit(const Plan&, const UnitRows&, const RunContext&) const = 0;
};

namespace router_internal {
template <RouterModel R>
absl::StatusOr<typename R::Plan> MakePlan(const R& r, const RouteShape& s) {
  SLUICE_RETURN_IF_ERROR(CheckRouteShape(R::kTraits, s));
  return r.MakePlan(s);
}
template <RouterModel R>
absl::Status Run(const R& r, const typename R::Plan& p, const RouteInputs& in, RouterState& state,
                 const RunContext& ctx, Assignment& out) {
  SLUICE_RETURN_IF_ERROR(CheckRouteRun(R::kTraits, p, in, state, ctx, out));
  out.items = in.items;
  out.units = p.shape.units;
  out.num_dropped = 0;
  out.nan_scores = 0;
  out.row_ptr[0] = 0;
  if constexpr (RemembersRuns<R>) {
    SLUICE_RETURN_IF_ERROR(r.Run(p, in, state, ctx, out));
    if (p.state_bytes > 0) ++state.keys;
    return absl::OkStatus();
  } else {
    return r.Run(p, in, ctx, out);
  }
}
template <RouterModel R>
UnitInfo DescribeUnit(const R& r, const typename R::Plan& p, int64_t unit) {
  if constexpr (NamesUnits<R>) return r.DescribeUnit(p, unit);
  return {};
}
template <RouterModel R>
absl::Status RunUnit(const R& r, const typename R::Plan& p, const UnitRows& rows,
                     const RunContext& ctx) {
  if constexpr (RunsUnits<R>) {
    if (DescribeUnit(r, p, rows.unit).kind != UnitKind::kOwn)
      return absl::InvalidArgumentError(
          absl::StrCat(R::kTraits.name, ": unit ", rows.unit, " is not the router's own"));
    if (ctx.workspace.bytes < p.unit_workspace_bytes)
      return absl::InvalidArgumentError(
          absl::StrCat(R::kTraits.name, ": workspace of ", ctx.workspace.bytes, " bytes for unit ",
                       rows.unit, ", planned ", p.unit_workspace_bytes));
    return r.RunUnit(p, rows, ctx);
  }
  return absl::UnimplementedError(absl::StrCat(R::kTraits.name, " computes no unit itself"));
}
template <RouterModel R>
WeightKeys Weights(const typename R::Config& c, const RouteShape& s) {
  if constexpr (DeclaresWeights<R>) return R::Weights(c, s);
  return {};
}
}  // namespace router_internal

template <RouterModel R>
class RouterOf final : public Router {
  static_assert(R::kTraits.learned == LearnedModel<R>,
                "kTraits.learned must say whether Create takes weights");
  static_assert(!LearnedModel<R> || DeclaresWeights<R>,
                "a learned router declares its weights: static WeightKeys Weights(config, shape)");

 public:
  explicit RouterOf(R r) : r_(std::move(r)) {}
  const RouteTraits& traits() const override { return R::kTraits; }
  absl::StatusOr<std::unique_ptr<const Plan>> MakePlan(const RouteShape& s) const override {
    SLUICE_ASSIGN_OR_RETURN(auto plan, router_internal::MakePlan(r_, s));
    return std::make_unique<const PlanOf>(std::move(plan));
  }
  using Router::Run;
  absl::Status Run(const Plan& p, const RouteInputs& in, RouterState& state, const RunContext& ctx,
                   Assignment& out) const override {
    return router_internal::Run(r_, Of(p), in, state, ctx, out);
  }
  UnitInfo DescribeUnit(const Plan& p, int64_t unit) const override {
    return router_internal::DescribeUnit(r_, Of(p), unit);
  }
  absl::Status RunUnit(const Plan& p, const UnitRows& rows, const RunContext& ctx) const override {
    return router_internal::RunUnit(r_, Of(p), rows, ctx);
  }

 private:
  struct PlanOf final : Plan {
    explicit PlanOf(typename R::Plan p) : plan(std::move(p)) {}
    const RoutePlanInfo& info() const override { return plan; }
    typename R::Plan plan;
  };
  static const typename R::Plan& Of(const Plan& p) { return static_cast<const PlanOf&>(p).plan; }
  R r_;
};

inline absl::Status CheckRouteShape(const RouteTraits& t, const RouteShape& s) {
  constexpr int64_t kMost = int64_t{1} << 40;
  for (int64_t n : {s.items, s.units, s.width, s.hidden, s.rows, s.heads, s.head_dim, s.conditions,
                    int64_t{s.workers}}) {
    if (n < 0 || n > kMost)
      return absl::InvalidArgumentError(absl::StrCat(
          t.name, ": shape of ", s.items, " items, ", s.units, " units, width ", s.width,
          ", hidden ", s.hidden, ", ", s.rows, " rows, ", s.heads, " heads of ", s.head_dim, ", ",
          s.conditions, " conditions, ", s.workers, " workers; allowed 0 to 2^40 each"));
  }
  return absl::OkStatus();
}

namespace router_internal {
// One input: absent where it must not be, or of another shape than planned. What is right costs a
// comparison or two; only what is wrong is put into words.
struct InputCheck {
  const RouteTraits& t;
  uint32_t used;  // RouteReads
  absl::Status status;

  [[gnu::always_inline]] void operator()(uint32_t bit, const char* what, bool given, int64_t rows,
                                         int64_t want_rows, int64_t cols, int64_t want_cols) {
    if ((used & bit) == 0) return;
    const bool missed = (t.reads & bit) != 0 && want_rows > 0;
    if (given ? rows == want_rows && cols == want_cols : !missed) return;
    Fail(what, given, rows, want_rows, cols, want_cols);
  }

  [[gnu::cold, gnu::noinline]] void Fail(const char* what, bool given, int64_t rows,
                                         int64_t want_rows, int64_t cols, int64_t want_cols) {
    if (!status.ok()) return;  // the first stands
    status = absl::InvalidArgumentError(
        given ? absl::StrCat(t.name, ": ", what, " [", rows, ", ", cols, "], wanted [", want_rows,
                             ", ", want_cols, "]")
              : absl::StrCat(t.name, " reads ", what, " and was given none"));
  }
};

inline absl::Status CheckItemRows(const RouteTraits& t, const RouteInputs& in) {
  if (!in.lengths.empty() && static_cast<int64_t>(in.lengths.size()) != in.items)
    return absl::InvalidArgumentError(
        absl::StrCat(t.name, ": ", in.lengths.size(), " lengths for ", in.items, " items"));
  if (in.item_rows.empty()) return absl::OkStatus();
  if (static_cast<int64_t>(in.item_rows.size()) != in.items + 1 || in.item_rows[0] != 0)
    return absl::InvalidArgumentError(absl::StrCat(t.name, ": item_rows has ", in.item_rows.size(),
                                                   " entries, wanted ", in.items + 1, " for ",
                                                   in.items, " items, the first 0"));
  for (size_t i = 1; i < in.item_rows.size(); ++i) {
    if (in.item_rows[i] < in.item_rows[i - 1])
      return absl::InvalidArgumentError(absl::StrCat(t.name, ": item_rows falls from ",
                                                     in.item_rows[i - 1], " to ", in.item_rows[i],
                                                     " at ", i));
  }
  return absl::OkStatus();
}
}  // namespace router_internal

inline absl::Status CheckRouteRun(const RouteTraits& t, const RoutePlanInfo& p,
                                  const RouteInputs& in, const RouterState& state,
                                  const RunContext& ctx, const Assignment& out) {
  const RouteShape& s = p.shape;
  if (p.state_bytes > 0 && state.layer == nullptr)
    return absl::InvalidArgumentError(
        absl::StrCat(t.name, " remembers earlier steps of the same items in ", p.state_bytes,
                     " bytes, and was given none; allowed: a state of each sequence"));
  if (in.items < 0 || in.items > s.items)
    return absl::InvalidArgumentError(
        absl::StrCat(t.name, ": ", in.items, " items, planned for at most ", s.items));
  if (!in.lengths.empty() || !in.item_rows.empty())
    SLUICE_RETURN_IF_ERROR(router_internal::CheckItemRows(t, in));
  if (in.rows() > p.max_rows())
    return absl::InvalidArgumentError(
        absl::StrCat(t.name, ": ", in.rows(), " rows, planned for at most ", p.max_rows()));

  router_internal::InputCheck check{t, t.reads | t.may_read, absl::OkStatus()};
  const int64_t rows = in.rows();
  check(kReadsScores, "scores", !in.scores.empty(), in.scores.rows, in.items, in.scores.cols,
        s.units);
  check(kReadsFeatures, "features", !in.features.empty(), in.features.rows, in.items,
        in.features.cols, s.width);
  check(kReadsHidden, "hidden states", !in.hidden.empty(), in.hidden.rows, rows, in.hidden.cols,
        s.hidden);
  check(kReadsQueries, "queries before RoPE", !in.queries.empty(), in.queries.rows, rows,
        in.queries.heads * in.queries.dim, s.heads * s.head_dim);
  check(kReadsFeedback, "attention feedback", !in.feedback.empty(),
        static_cast<int64_t>(in.feedback.size()), in.items, 1, 1);
  check(kReadsPositions, "positions", !in.positions.empty(),
        static_cast<int64_t>(in.positions.size()), rows, 1, 1);
  check(kReadsConditions, "conditions", !in.conditions.empty(),
        static_cast<int64_t>(in.conditions.size()), s.conditions, 1, 1);
  check(kReadsUnitBias, "unit bias", !in.unit_bias.empty(),
        static_cast<int64_t>(in.unit_bias.size()), s.units, 1, 1);
  SLUICE_RETURN_IF_ERROR(check.status);

  if (ctx.workspace.bytes < p.workspace_bytes)
    return absl::InvalidArgumentError(absl::StrCat(t.name, ": workspace of ", ctx.workspace.bytes,
                                                   " bytes, planned ", p.workspace_bytes));
  const auto room = static_cast<size_t>(p.max_entries);
  if (static_cast<int64_t>(out.row_ptr.size()) < in.items + 1 || out.unit.size() < room ||
      out.weight.size() < room || (!out.score.empty() && out.score.size() < room) ||
      static_cast<int64_t>(out.dropped.size()) < p.max_dropped)
    return absl::InvalidArgumentError(absl::StrCat(
        t.name, ": the assignment has room for ", out.row_ptr.size(), " row ends, ",
        out.unit.size(), " units, ", out.weight.size(), " weights, ", out.score.size(),
        " scores and ", out.dropped.size(), " dropped pairs; wanted ", in.items + 1, ", ",
        p.max_entries, ", ", p.max_entries, ", 0 or ", p.max_entries, ", ", p.max_dropped));
  return absl::OkStatus();
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_ROUTER_H_
