// What every registered router of items to units must do, whatever its method: it obeys its traits.
// Learned ones run on weights made from what they declare. All of it once more out of a plug-in.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "absl/strings/str_split.h"
#include "sluice/pruners/builtin.h"
#include "sluice/routers/builtin.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/dispatch/dispatch.h"
#include "sluice/tests/support/counting_allocator.h"
#include "sluice/tests/support/plugin_registry.h"
#include "sluice/tests/support/route_problem.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr int64_t kItems = 70;
using testing::HasSubstr;

std::map<std::string, const RouterFactory*> BuiltIn() {
  std::map<std::string, const RouterFactory*> all;
  for (const Registry* r : {&BuiltinRouters(), &BuiltinPruners()}) {
    for (const auto& [name, factory] : r->routers) all[name] = factory.get();
  }
  return all;
}

class AssignmentRouters : public testing::TestWithParam<std::string> {
 protected:
  AssignmentRouters()
      : plugin_(GetParam().rfind("plugin ", 0) == 0),
        name_(plugin_ ? GetParam().substr(7) : GetParam()),
        factory_(plugin_ ? **PluginRouters().routers.Find(name_) : *BuiltIn().at(name_)),
        traits_(factory_.traits()),
        problem_(traits_, kItems) {}

  MadeRouter Make(const std::string& options = "", int workers = 1) {
    auto made = MadeRouter::Make(factory_, options, problem_, workers);
    EXPECT_TRUE(made.ok()) << made.status();
    return *std::move(made);
  }
  Decided Decide(const MadeRouter& m, const RouteInputs& in, Executor* executor = nullptr) {
    AssignmentBuffer out = m.Room();
    const absl::Status s = m.Run(in, out, executor);
    EXPECT_TRUE(s.ok()) << s;
    EXPECT_TRUE(ValidateAssignment(out.view()).ok()) << ValidateAssignment(out.view());
    return Decided::Of(out.view());
  }
  // Runs an assignment's units on the rows x [items, kHidden]; what the host's units give is
  // HostUnit. What it cost, measured, and what came out.
  struct Executed {
    DispatchCounters counters;
    std::vector<float> out;
  };
  static float HostUnit(int64_t unit, float x) {
    return x * (1 + 0.25f * static_cast<float>(unit)) + 0.5f;
  }
  Executed ExecuteOn(const MadeRouter& m, const Assignment& a, const std::vector<float>& x) {
    const RoutePlanInfo& info = m.plan->info();
    const int64_t width = RouteProblem::kHidden;
    auto d = Dispatch::Create({.max_items = kItems,
                               .in_width = width,
                               .out_width = width,
                               .max_entries = info.max_entries,
                               .max_units = info.shape.units,
                               .unit_workspace_bytes = info.unit_workspace_bytes});
    EXPECT_TRUE(d.ok()) << d.status();
    OwnedWorkspace memory(d->workspace_bytes());
    Executed e;
    e.out.resize(x.size());
    const auto host = [](const UnitRows& rows, const RunContext&) {
      for (int64_t r = 0; r < rows.in.rows; ++r) {
        for (int64_t c = 0; c < rows.in.cols; ++c)
          rows.out.row(r)[c] = HostUnit(rows.unit, rows.in.row(r)[c]);
      }
      return absl::OkStatus();
    };
    const absl::Status s = d->Run(*m.router, *m.plan, a, {x.data(), kItems, width, width},
                                  {e.out.data(), kItems, width, width},
                                  {memory.workspace(), nullptr}, host, &e.counters);
    EXPECT_TRUE(s.ok()) << s;
    return e;
  }
  DispatchCounters Execute(const MadeRouter& m, const RouteInputs& in) {
    AssignmentBuffer a = m.Room();
    EXPECT_TRUE(m.Run(in, a).ok());
    return ExecuteOn(m, a.view(), RandomFeatures(kItems, RouteProblem::kHidden, 3)).counters;
  }
  // One unit's result for all rows of x, whatever was routed.
  std::vector<float> UnitOnAll(const MadeRouter& m, int64_t unit, const std::vector<float>& x) {
    const int64_t width = RouteProblem::kHidden;
    const UnitInfo info = m.router->DescribeUnit(*m.plan, unit);
    std::vector<float> y(x.size());
    if (info.kind == UnitKind::kHost) {
      for (size_t i = 0; i < x.size(); ++i) y[i] = HostUnit(unit, x[i]);
    }
    if (info.kind != UnitKind::kOwn) return y;
    OwnedWorkspace memory(m.plan->info().unit_workspace_bytes);
    const int64_t most = info.max_rows > 0 ? info.max_rows : kItems;
    for (int64_t at = 0; at < kItems; at += most) {
      const int64_t n = std::min(most, kItems - at);
      const UnitRows rows = {.unit = unit,
                             .in = {&x[at * width], n, width, width},
                             .out = {&y[at * width], n, width, width}};
      EXPECT_TRUE(m.router->RunUnit(*m.plan, rows, {memory.workspace(), nullptr}).ok());
    }
    return y;
  }

  bool plugin_;
  std::string name_;
  const RouterFactory& factory_;
  RouteTraits traits_;
  RouteProblem problem_;
};

// What only makes sense out of a plug-in.
class AssignmentPlugins : public AssignmentRouters {};

INSTANTIATE_TEST_SUITE_P(All, AssignmentRouters,
                         testing::ValuesIn(AllNames(PluginRouters().routers, BuiltIn())),
                         MethodTestName);
INSTANTIATE_TEST_SUITE_P(All, AssignmentPlugins,
                         testing::ValuesIn(PluginNames(PluginRouters().routers)), MethodTestName);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(AssignmentPlugins);

TEST_P(AssignmentRouters, TraitsAreComplete) {
  constexpr const char* kDomains[] = {"?",      "layer",   "token", "head",  "attention",
                                      "expert", "adapter", "agent", "weight"};
  EXPECT_EQ(traits_.name, name_);
  EXPECT_EQ(name_.substr(0, name_.find('/')), kDomains[static_cast<int>(traits_.domain)]);
  EXPECT_FALSE(traits_.small_budget.empty()) << "name a budget at which it skips";
  EXPECT_EQ(traits_.reads & traits_.may_read, 0u) << "needed and optional at once";
  if (!traits_.arxiv.empty()) {
    EXPECT_EQ(traits_.arxiv.find('.'), 4u) << traits_.arxiv;
    EXPECT_FALSE(traits_.title.empty());
  }
  const auto none = factory_.Create({}, nullptr);
  EXPECT_EQ(none.ok(), !traits_.learned);
  if (traits_.learned) {
    EXPECT_THAT(none.status().message(), HasSubstr("needs trained weights"));
  }
}

TEST_P(AssignmentRouters, ReadsWhatItSaysAndNothingElse) {
  const MadeRouter m = Make();
  const Decided want = Decide(m, problem_.Inputs());
  const auto without = [&](uint32_t bit, auto RouteInputs::*field) {
    RouteInputs in = problem_.Inputs();
    in.*field = {};
    AssignmentBuffer out = m.Room();
    const absl::Status s = m.Run(in, out);
    const bool needed = (traits_.reads & bit) != 0;
    EXPECT_EQ(s.ok(), !needed) << s;
    if (needed) {
      EXPECT_THAT(s.message(), HasSubstr("was given none"));
    }
  };
  without(kReadsScores, &RouteInputs::scores);
  without(kReadsFeatures, &RouteInputs::features);
  without(kReadsHidden, &RouteInputs::hidden);
  without(kReadsQueries, &RouteInputs::queries);
  without(kReadsFeedback, &RouteInputs::feedback);
  without(kReadsConditions, &RouteInputs::conditions);
  without(kReadsUnitBias, &RouteInputs::unit_bias);

  // What it does not name it does not look at.
  const std::vector<float> odd(problem_.rows() * 64, NAN);
  RouteInputs in = problem_.Inputs();
  if (!problem_.Reads(kReadsScores)) in.scores = {odd.data(), kItems, 3, 3};
  if (!problem_.Reads(kReadsFeatures)) in.features = {odd.data(), kItems, 3, 3};
  if (!problem_.Reads(kReadsHidden)) in.hidden = {odd.data(), kItems, 3, 3};
  if (!problem_.Reads(kReadsQueries)) in.queries = {odd.data(), kItems, 1, 3, 3, 3};
  if (!problem_.Reads(kReadsFeedback)) in.feedback = odd;
  if (!problem_.Reads(kReadsConditions)) in.conditions = odd;
  if (!problem_.Reads(kReadsUnitBias)) in.unit_bias = odd;
  if (!problem_.Reads(kReadsTask)) in.task = 77;
  if (!problem_.Reads(kReadsLayer)) in.layer = 77;
  if (!problem_.Reads(kReadsStep)) in.step = 77;
  EXPECT_EQ(Decide(m, in), want);
}

TEST_P(AssignmentRouters, RunsWithoutAllocating) {
  const MadeRouter m = Make();
  const RouteInputs in = problem_.Inputs();
  AssignmentBuffer out = m.Room();
  const int64_t before = AllocationCount();
  const absl::Status s = m.Run(in, out);
  EXPECT_EQ(AllocationCount(), before);
  ASSERT_TRUE(s.ok()) << s;
  EXPECT_TRUE(ValidateAssignment(out.view()).ok()) << ValidateAssignment(out.view());
  EXPECT_EQ(out.view().items, kItems);
  EXPECT_EQ(out.view().units, m.plan->info().shape.units);
}

TEST_P(AssignmentRouters, ScoresAreOptional) {
  const MadeRouter m = Make();
  const Decided want = Decide(m, problem_.Inputs());
  AssignmentBuffer out = m.Room();
  out.view().score = {};
  ASSERT_TRUE(m.Run(problem_.Inputs(), out).ok());
  const Decided got = Decided::Of(out.view());
  EXPECT_EQ(got.unit, want.unit);
  EXPECT_EQ(got.weight, want.weight);
}

TEST_P(AssignmentRouters, ItemsDependOnOthersAsItsTraitsSay) {
  const MadeRouter m = Make();
  const Decided all = Decide(m, problem_.Inputs());
  if (traits_.items_alone) {
    for (int64_t i = 0; i < kItems; ++i)
      EXPECT_EQ(Decide(m, problem_.Inputs(i, i + 1)).Units(0), all.Units(i)) << i;
  }
  if (traits_.causal) {
    for (int64_t end : {int64_t{1}, int64_t{9}, kItems - 1}) {
      const Decided prefix = Decide(m, problem_.Inputs(0, end));
      for (int64_t i = 0; i < end; ++i) EXPECT_EQ(prefix.Units(i), all.Units(i)) << i;
    }
  }
}

// At the full budget every item costs what the dense model spends on it, by what Dispatch ran.
TEST_P(AssignmentRouters, TheFullBudgetIsDense) {
  if (traits_.full_budget.empty()) GTEST_SKIP() << "it has none";
  const MadeRouter m = Make(std::string(traits_.full_budget));
  EXPECT_NEAR(Execute(m, problem_.Inputs()).cost, kItems, 1e-6 * kItems);
}
TEST_P(AssignmentRouters, TheSmallBudgetSkips) {
  const MadeRouter m = Make(std::string(traits_.small_budget));
  const DispatchCounters c = Execute(m, problem_.Inputs());
  EXPECT_LT(c.cost, 0.9 * kItems);
}

// Gathering the rows of every unit, computing and scattering gives what computing every unit on
// every row and masking does.
TEST_P(AssignmentRouters, GatheringIsMasking) {
  const MadeRouter m = Make();
  const int64_t width = RouteProblem::kHidden;
  AssignmentBuffer buffer = m.Room();
  ASSERT_TRUE(m.Run(problem_.Inputs(), buffer).ok());
  const Assignment& a = buffer.view();
  const std::vector<float> x = RandomFeatures(kItems, width, 3);
  const Executed got = ExecuteOn(m, a, x);

  std::vector<double> sum(x.size());
  std::vector<double> weights(kItems);
  std::vector<bool> computed(kItems);
  int64_t pairs = 0;
  for (int64_t u = 0; u < a.units; ++u) {
    if (m.router->DescribeUnit(*m.plan, u).kind == UnitKind::kSkip) continue;
    const std::vector<float> y = UnitOnAll(m, u, x);
    for (int64_t i = 0; i < kItems; ++i) {
      for (int64_t e = a.row_ptr[i]; e < a.row_ptr[i + 1]; ++e) {
        if (a.unit[e] != u) continue;
        const double w = traits_.combine == Combine::kReplace ? 1 : a.weight[e];
        for (int64_t c = 0; c < width; ++c) sum[i * width + c] += w * y[i * width + c];
        weights[i] += w;
        computed[i] = true;
        ++pairs;
      }
    }
  }
  for (int64_t i = 0; i < kItems; ++i) {
    double own = traits_.combine == Combine::kResidual ? 1 : 0;  // of x in the result
    if (traits_.combine == Combine::kBlend) own = 1 - weights[i];
    if (traits_.combine == Combine::kReplace) own = computed[i] ? 0 : 1;
    for (int64_t at = i * width; at < (i + 1) * width; ++at)
      ASSERT_NEAR(got.out[at], own * x[at] + sum[at], 1e-4) << i;
  }
  EXPECT_EQ(got.counters.executed_rows, pairs);
  EXPECT_EQ(got.counters.dropped_pairs, a.num_dropped);
}

// Other names for the units are other names in the decision and nothing else.
TEST_P(AssignmentRouters, UnitsMayBeRelabelled) {
  if (!problem_.Reads(kReadsScores)) GTEST_SKIP() << "its units are its own";
  const MadeRouter m = Make();
  const Decided want = Decide(m, problem_.Inputs());
  constexpr int64_t kUnits = RouteProblem::kUnits;
  constexpr int64_t kStep = 3;  // unit u becomes 3 u mod 8
  RouteProblem other = problem_;
  for (int64_t u = 0; u < kUnits; ++u) {
    const int64_t to = kStep * u % kUnits;
    for (int64_t i = 0; i < kItems; ++i)
      other.scores[i * kUnits + to] = problem_.scores[i * kUnits + u];
    other.bias[to] = problem_.bias[u];
  }
  const Decided got = Decide(m, other.Inputs());
  ASSERT_EQ(got.row_ptr, want.row_ptr);
  for (int64_t i = 0; i < kItems; ++i) {
    std::map<int32_t, float> weight;
    for (int64_t e = got.row_ptr[i]; e < got.row_ptr[i + 1]; ++e)
      weight[got.unit[e]] = got.weight[e];
    for (int64_t e = want.row_ptr[i]; e < want.row_ptr[i + 1]; ++e) {
      const auto to = static_cast<int32_t>(kStep * want.unit[e] % kUnits);
      ASSERT_TRUE(weight.contains(to)) << i;
      EXPECT_NEAR(weight[to], want.weight[e], 1e-5);
    }
  }
}

TEST_P(AssignmentRouters, ThreadsDoNotMatter) {
  const Decided want = Decide(Make(), problem_.Inputs());
  for (int threads : {2, 8}) {
    const MadeRouter m = Make("", threads);
    const auto executor = MakeTbbExecutor(threads);
    EXPECT_EQ(Decide(m, problem_.Inputs(), executor.get()), want) << threads;
  }
}

// Its own units: with any pieces, the same bits, in the workspace that was planned.
TEST_P(AssignmentRouters, OwnUnitsRunInPieces) {
  const MadeRouter m = Make();
  const RoutePlanInfo& info = m.plan->info();
  OwnedWorkspace memory(info.unit_workspace_bytes);
  const int64_t width = RouteProblem::kHidden;
  const std::vector<float> x = RandomFeatures(20, width, 9);
  for (int64_t u = 0; u < info.shape.units; ++u) {
    const UnitInfo unit = m.router->DescribeUnit(*m.plan, u);
    EXPECT_GE(unit.cost, 0);
    EXPECT_LE(unit.cost, 1);
    if (unit.kind == UnitKind::kSkip) {
      EXPECT_EQ(unit.cost, 0);
    }
    const auto run = [&](int64_t piece) {
      std::vector<float> y(x.size(), NAN);
      for (int64_t at = 0; at < 20; at += piece) {
        const int64_t n = std::min<int64_t>(piece, 20 - at);
        const UnitRows rows = {.unit = u,
                               .in = {&x[at * width], n, width, width},
                               .out = {&y[at * width], n, width, width}};
        const absl::Status s = m.router->RunUnit(*m.plan, rows, {memory.workspace(), nullptr});
        EXPECT_EQ(s.ok(), unit.kind == UnitKind::kOwn) << s;
        if (!s.ok()) return y;
      }
      return y;
    };
    if (unit.kind != UnitKind::kOwn) {
      run(20);
      continue;
    }
    const std::vector<float> whole = run(20);
    for (float v : whole) EXPECT_TRUE(std::isfinite(v));
    if (unit.concurrency == Concurrency::kRows) {
      EXPECT_EQ(run(1), whole);
      EXPECT_EQ(run(7), whole);
    }
  }
}

// What earlier Runs leave is in the state that the host keeps and nowhere else: sequences may take
// turns, an empty state begins again, and threads do not matter. Without one it is an error.
TEST_P(AssignmentRouters, RemembersWhatItsStateHolds) {
  constexpr int kRuns = 4;
  std::vector<RouteProblem> runs;
  for (int r = 0; r < kRuns; ++r) runs.emplace_back(traits_, kItems, 11 + static_cast<uint64_t>(r));
  const auto steps = [&](const MadeRouter& m, RouterState& state, Executor* executor = nullptr,
                         RouterState* other = nullptr) {
    std::vector<Decided> decided;
    for (int r = 0; r < kRuns; ++r) {
      AssignmentBuffer out = m.Room();
      const absl::Status s = m.Run(runs[r].Inputs(), state, out, executor);
      EXPECT_TRUE(s.ok()) << s;
      decided.push_back(Decided::Of(out.view()));
      if (other == nullptr) continue;
      out.Clear();
      EXPECT_TRUE(m.Run(runs[kRuns - 1 - r].Inputs(), *other, out, executor).ok());
    }
    return decided;
  };
  const MadeRouter m = Make();
  const size_t bytes = m.plan->info().state_bytes;
  RouterState state = MadeRouter::Empty(m.kept);
  const std::vector<Decided> want = steps(m, state);
  EXPECT_EQ(state.keys, bytes > 0 ? kRuns : 0);

  std::vector<Decided> first;
  for (RouteProblem& run : runs) first.push_back(Decide(m, run.Inputs()));
  EXPECT_EQ(want[0], first[0]);
  EXPECT_EQ(want == first, bytes == 0) << "a state without memory, or memory without a state";

  OwnedWorkspace theirs(bytes);
  RouterState other = MadeRouter::Empty(theirs);
  state = MadeRouter::Empty(m.kept);
  EXPECT_EQ(steps(m, state, nullptr, &other), want);
  for (int threads : {2, 8}) {
    const MadeRouter many = Make("", threads);
    const auto executor = MakeTbbExecutor(threads);
    state = MadeRouter::Empty(many.kept);
    EXPECT_EQ(steps(many, state, executor.get()), want) << threads;
  }
  if (plugin_) {
    const auto built_in = MadeRouter::Make(*BuiltIn().at(name_), "", problem_);
    ASSERT_TRUE(built_in.ok()) << built_in.status();
    EXPECT_EQ(built_in->plan->info().state_bytes, bytes);
    state = MadeRouter::Empty(built_in->kept);
    EXPECT_EQ(steps(*built_in, state), want);
  }
  if (bytes == 0) return;
  AssignmentBuffer out = m.Room();
  const absl::Status none =
      m.router->Run(*m.plan, problem_.Inputs(), {m.memory.workspace(), nullptr}, out.view());
  EXPECT_THAT(std::string(none.message()), HasSubstr("remembers earlier steps"));
}

TEST_P(AssignmentPlugins, DecideTheSameBits) {
  for (const std::string& options : {std::string(), std::string(traits_.small_budget)}) {
    const auto built_in = MadeRouter::Make(*BuiltIn().at(name_), options, problem_);
    ASSERT_TRUE(built_in.ok()) << built_in.status();
    const MadeRouter remote = Make(options);
    EXPECT_EQ(Decide(remote, problem_.Inputs()), Decide(*built_in, problem_.Inputs()));
    const DispatchCounters a = Execute(remote, problem_.Inputs());
    const DispatchCounters b = Execute(*built_in, problem_.Inputs());
    EXPECT_EQ(a.cost, b.cost);
    EXPECT_EQ(a.own_rows, b.own_rows);
  }
  const RouteTraits& own = BuiltIn().at(name_)->traits();
  EXPECT_EQ(traits_.title, own.title);
  EXPECT_EQ(traits_.arxiv, own.arxiv);
  EXPECT_EQ(traits_.reads, own.reads);
  EXPECT_EQ(traits_.may_read, own.may_read);
  EXPECT_EQ(traits_.combine, own.combine);
  EXPECT_EQ(traits_.decides, own.decides);
  EXPECT_EQ(traits_.full_budget, own.full_budget);
  EXPECT_EQ(traits_.small_budget, own.small_budget);
}

// The defaults as the help prints them, read back, are the defaults.
TEST_P(AssignmentRouters, ItsHelpReadsBack) {
  std::vector<std::string> options;
  for (absl::string_view line : absl::StrSplit(factory_.Describe(), '\n', absl::SkipEmpty())) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    options.emplace_back(words[0]);
  }
  const MadeRouter m = Make(absl::StrJoin(options, ","));
  EXPECT_EQ(Decide(m, problem_.Inputs()), Decide(Make(), problem_.Inputs()));
}

TEST_P(AssignmentRouters, TakesNothingAndNaN) {
  const MadeRouter m = Make();
  EXPECT_TRUE(Decide(m, problem_.Inputs(0, 0)).unit.empty());
  for (std::vector<float>* x : {&problem_.scores, &problem_.features, &problem_.hidden,
                                &problem_.queries, &problem_.feedback})
    (*x)[x->size() / 2] = NAN;
  const Decided odd = Decide(m, problem_.Inputs());
  EXPECT_LT(odd.nan_scores, kItems * m.plan->info().shape.units);
}

TEST_P(AssignmentRouters, ErrorsSayWhatWasGiven) {
  MadeRouter m = Make();
  AssignmentBuffer out = m.Room();
  RouteProblem large(traits_, kItems + 1);
  EXPECT_THAT(m.Run(large.Inputs(), out).message(), HasSubstr("planned for at most"));
  RouteShape negative = problem_.Shape();
  negative.items = -1;
  EXPECT_THAT(m.router->MakePlan(negative).status().message(), HasSubstr("-1 items"));
  const std::vector<KeyValue> unknown = {{"no_such_key", "1"}};
  EXPECT_THAT(factory_.Create(unknown, nullptr).status().message(),
              HasSubstr("unknown key 'no_such_key'"));
  AssignmentBuffer small;
  EXPECT_THAT(m.Run(problem_.Inputs(), small).message(), HasSubstr("the assignment has room for"));
  if (m.plan->info().workspace_bytes == 0) return;
  m.memory.Resize(0);
  EXPECT_THAT(m.Run(problem_.Inputs(), out).message(), HasSubstr("workspace of 0 bytes"));
}
}  // namespace
SLUICE_END_NAMESPACE
