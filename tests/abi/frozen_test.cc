// Plug-ins that were built when ABI 2.0 was frozen, through today's loader: every record still
// means what it meant. What they must give stands here as numbers, worked out by hand from their
// sources.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "sluice/runtime/dynload/plugin_library.h"
#include "sluice/tests/abi/layout_row.h"
#include "sluice/tests/support/agent_fixture.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using testing::ElementsAre;
using testing::HasSubstr;

class Frozen : public testing::Test {
 protected:
  void SetUp() override {
#ifndef __x86_64__
    GTEST_SKIP() << "the frozen plug-ins are code for x86-64";
#endif
    const std::string folder = std::string(SLUICE_SOURCE_DIR) + "/tests/abi/frozen/2_0/";
    for (const char* file : {"attention.so", "methods.so"}) {
      const auto info = LoadPlugin(folder + file, methods_);
      ASSERT_TRUE(info.ok()) << info.status();
      EXPECT_EQ(info->manifest.abi_major, 2u);
      EXPECT_EQ(info->manifest.abi_minor, 0u);
    }
  }
  Registry methods_;
};

// Numbers by name, and nothing that is not asked for with its own shape.
class FixedWeights final : public WeightSource {
 public:
  absl::StatusOr<int64_t> Int(const std::string& key) const override {
    if (key == "frozen.stride") return 3;
    if (key == "gate.capacity") return 2;
    return absl::NotFoundError(key);
  }
  absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                             absl::Span<const uint64_t> shape) const override {
    const std::map<std::string, std::vector<float>> kTensors = {
        {"frozen.rank", {9, 0.1f, 0.9f, 0.3f, 0.5f, 0, 0, 0}}, {"gate.weight", {1, 2}}};
    const auto it = kTensors.find(name);
    if (it == kTensors.end() || shape.size() != 1 || shape[0] != it->second.size())
      return absl::NotFoundError(name);
    return it->second;
  }
};

std::string EntryText(const AttentionBranch& b, int64_t i) {
  if (b.ByToken()) return absl::StrCat(" ", b.tokens[i]);
  const PlanEntry& e = b.entries[i];
  std::string text = absl::StrCat(" ", e.start, "+", e.len);
  if (e.state == EntryState::kSummary) absl::StrAppend(&text, " of table ", int{e.level});
  if (e.forced != 0) absl::StrAppend(&text, " forced");
  if (!b.entry_bias.empty()) absl::StrAppend(&text, " bias ", b.entry_bias[i]);
  if (!b.row_mask.empty()) absl::StrAppend(&text, " for ", b.row_mask[i]);
  return text;
}

// The rows of a branch, a line each.
std::vector<std::string> RowsText(const AttentionBranch& b) {
  std::vector<std::string> rows;
  for (size_t r = 0; r < b.rows.begin.size(); ++r) {
    rows.emplace_back();
    for (int64_t i = b.rows.begin[r]; i < b.rows.begin[r] + b.rows.count[r]; ++i)
      rows.back() += EntryText(b, i);
  }
  return rows;
}

// Runs, entry biases, query masks, a pattern, branch weights and key biases.
TEST_F(Frozen, AWeightedSumOfRunsAndAPattern) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 12, 6, 4, 2, 16, 16, 5);
  HarnessOptions o;
  o.methods = &methods_;
  int seen = 0;
  std::vector<float> want;
  o.see = [&](const AttentionPlan& p) {
    ++seen;
    ASSERT_EQ(p.branches.size(), 2u);
    EXPECT_EQ(p.merge, Merge::kWeightedSum);
    EXPECT_EQ(p.branches[0].scope, ListScope::kKvHead);
    EXPECT_THAT(RowsText(p.branches[0]),
                ElementsAre(" 0+2 forced bias 0.5 for 5 6+4 bias -0.25 for 15",
                            " 0+2 forced bias 0.5 for 5 10+2 bias -0.25 for 15",
                            " 0+2 forced bias 0.5 for 5 5+5 bias -0.25 for 15",
                            " 0+2 forced bias 0.5 for 5 9+3 bias -0.25 for 15"));
    ASSERT_EQ(p.branches[1].terms.size(), 2u);
    EXPECT_EQ(p.branches[1].terms[0].kind, PatternKind::kBand);
    EXPECT_EQ(p.branches[1].terms[0].a, 3);
    EXPECT_EQ(p.branches[1].terms[1].kind, PatternKind::kStrideAbsolute);
    EXPECT_EQ(p.branches[1].terms[1].a, 5);
    EXPECT_EQ(p.branches[1].terms[1].b, 1);
    EXPECT_THAT(p.branch_weight.first(4), ElementsAre(0.25f, 0.5f, 0.5f, 0.5f));
    EXPECT_THAT(p.branch_weight.subspan(24, 2), ElementsAre(0.75f, 0.5f));
    EXPECT_THAT(p.key_bias.subspan(12, 4), ElementsAre(0.0f, -0.125f, -0.25f, 0.0f));
    const AttentionInputs in = a.Inputs();
    for (double x : AttendReference(p, in.q, in.k, in.v, static_cast<double>(in.scale)).o)
      want.push_back(static_cast<float>(x));
  };
  const RoutedRun run = RunRouter("frozen_branches:sink=2", a, o);
  ASSERT_TRUE(run.status.ok()) << run.status;
  EXPECT_EQ(seen, 1);
  EXPECT_THAT(run.o, testing::Pointwise(testing::FloatNear(2e-5f), want));
  // Query 7 is the second of its tile, which the sink's mask leaves out. Then the pattern: its
  // three last keys, and 4.
  EXPECT_THAT(run.lists[1 * 4 + 0], ElementsAre(4, 5, 6, 6, 7, 7));
  EXPECT_THAT(run.lists[1 * 4 + 3], ElementsAre(4, 5, 5, 6, 6, 7, 7));
  EXPECT_THAT(methods_.attention.Create("frozen_branches:width=2").status().message(),
              HasSubstr("unknown key"));
}

// Blocks over permuted keys, tiles in an order of their own, a summary table in the workspace.
TEST_F(Frozen, BlocksOfPermutedKeysAndSummaries) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 16, 7, 4, 2, 16, 16, 5);
  HarnessOptions o;
  o.methods = &methods_;
  o.see = [&](const AttentionPlan& p) {
    ASSERT_EQ(p.branches.size(), 2u);
    EXPECT_THAT(p.key_perm, ElementsAre(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    EXPECT_THAT(p.branches[0].q_order, ElementsAre(6, 5, 4, 3, 2, 1, 0));
    EXPECT_THAT(p.branches[0].tile_begin, ElementsAre(0, 3, 6, 7));
    EXPECT_THAT(RowsText(p.branches[0]), ElementsAre(" 0+1 2+1", " 0+1 2+1", " 0+1 2+1"));
    EXPECT_EQ(p.branches[0].entries[0].mask, MaskClass::kPermCausal);
    EXPECT_THAT(RowsText(p.branches[1]), testing::Each(" 0+1 of table 1"));
    ASSERT_EQ(p.tables.size(), 1u);
    EXPECT_EQ(p.tables[0].count[0], 4u);
    const float* k = a.k.data();
    EXPECT_FLOAT_EQ(p.tables[0].k.Get(0, 1, 3), (k[19] + k[51] + k[83] + k[115]) / 4);
  };
  const RoutedRun run = RunRouter("frozen_order", a, o);
  ASSERT_TRUE(run.status.ok()) << run.status;
  // Query 13: of the blocks {12..15} and {4..7}, what is not after it.
  EXPECT_THAT(run.lists[4 * 4], ElementsAre(4, 5, 6, 7, 12, 13));
  EXPECT_EQ(run.counters.summary_pairs, 7 * 4);
}

// Trained weights by the sink and the source, two stages, prefixes of a ranking.
TEST_F(Frozen, ALearnedRouterOfTwoStages) {
  const auto* factory = *methods_.attention.Find("frozen_learned");
  EXPECT_TRUE(factory->learned());
  const auto keys = factory->Weights({}, {.max_queries = 1, .max_kv = 16});
  ASSERT_TRUE(keys.ok()) << keys.status();
  EXPECT_EQ(keys->ints[0].key, "frozen.stride");
  EXPECT_EQ(keys->ints[0].value, 3);
  EXPECT_EQ(keys->tensors[0].name, "frozen.rank");
  EXPECT_THAT(keys->tensors[0].shape, ElementsAre(8));
  EXPECT_THAT(factory->Create({}, nullptr).status().message(), HasSubstr("needs trained weights"));

  methods_.OpenWeightsWith(
      [](const std::string&) -> absl::StatusOr<std::unique_ptr<const WeightSource>> {
        return std::unique_ptr<const WeightSource>(std::make_unique<FixedWeights>());
      });
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 20, 2, 4, 2, 16, 16, 5);
  HarnessOptions o;
  o.methods = &methods_;
  std::vector<std::vector<std::string>> rows;
  std::vector<uint32_t> prefix;
  o.see = [&](const AttentionPlan& p) {
    rows.push_back(RowsText(p.branches[0]));
    prefix.assign(p.branches[0].prefix.begin(), p.branches[0].prefix.end());
  };
  const RoutedRun run = RunRouter("frozen_learned:weights=x", a, o);
  ASSERT_TRUE(run.status.ok()) << run.status;
  ASSERT_EQ(rows.size(), 2u);
  // Every third of the first four keys, from 0 or 1 on; then blocks by falling rank.
  EXPECT_THAT(rows[0], ElementsAre(" 0 3", " 0 3", " 1", " 1", " 0 3", " 0 3", " 1", " 1"));
  EXPECT_THAT(rows[1], ElementsAre(" 2 4 3 1", " 2 4 3 1", " 2 4 3 1", " 2 4 3 1"));
  EXPECT_THAT(prefix, ElementsAre(1, 1, 2, 2, 1, 1, 2, 2));
  EXPECT_THAT(run.lists[0], ElementsAre(0, 3, 8, 9, 10, 11));
  EXPECT_THAT(run.lists[1], ElementsAre(1, 8, 9, 10, 11, 16, 17, 18));
}

TEST_F(Frozen, FeedbackAndStatesOfALearnedRouter) {
  const FixedWeights weights;
  const auto router = methods_.attention.Create("frozen_learned", &weights);
  ASSERT_TRUE(router.ok()) << router.status();
  EXPECT_EQ((*router)->traits().stages, 2);
  EXPECT_EQ((*router)->traits().feedback, uint32_t{kKeyMass | kLogSumExp});
  EXPECT_TRUE((*router)->traits().token_causal);
  EXPECT_STREQ((*router)->traits().small_budget, "tokens=4");
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 20, 2, 4, 2, 16, 16, 5);
  const auto plan = (*router)->MakePlan(
      {.max_queries = 2, .max_kv = 20, .heads = 4, .kv_heads = 2, .head_dim = 16, .value_dim = 16});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ((*plan)->info().state_bytes, 16u);
  EXPECT_EQ((*plan)->info().sequence_bytes, 8u);
  const auto storage = *PlanStorage::Create((*plan)->info().layout);
  int64_t layer[2] = {};
  int64_t sequence = 0;
  RouterState state = {reinterpret_cast<std::byte*>(layer), reinterpret_cast<std::byte*>(&sequence),
                       0};
  InlineExecutor one;
  ASSERT_TRUE((*router)->Run(**plan, a.Inputs(), state, {{}, &one}, *storage).ok());
  EXPECT_EQ(layer[0], 2);
  EXPECT_EQ(sequence, 1);
  EXPECT_EQ(state.keys, 20);

  const std::vector<float> mass(4 * 20, 0.25f);
  const std::vector<float> lse(2 * 4);
  AttentionFeedback f;
  f.q_count = 2;
  f.kv_len = 20;
  f.heads = 4;
  f.kv_heads = 2;
  f.key_mass = mass.data();
  EXPECT_THAT((*router)->Observe(**plan, f, state).message(), HasSubstr("mass and lse"));
  f.lse = lse.data();
  EXPECT_TRUE((*router)->Observe(**plan, f, state).ok());
  EXPECT_EQ(layer[1], 20);
  (*router)->Truncate(**plan, state, 7);
  EXPECT_EQ(layer[0], 7);
  EXPECT_EQ(state.keys, 7);
}

TEST_F(Frozen, ALearnedRouterOfTokens) {
  const auto* factory = *methods_.routers.Find("frozen_gate");
  const auto keys = factory->Weights({}, {.width = 2});
  ASSERT_TRUE(keys.ok()) << keys.status();
  EXPECT_EQ(keys->ints[0].value, 2);
  EXPECT_THAT(keys->tensors[0].shape, ElementsAre(2));
  const FixedWeights weights;
  const auto router = methods_.routers.Create("frozen_gate:threshold=1", &weights);
  ASSERT_TRUE(router.ok()) << router.status();
  const RouteTraits& t = (*router)->traits();
  EXPECT_EQ(t.title, "Frozen at 2.0");
  EXPECT_EQ(t.combine, Combine::kResidual);
  EXPECT_EQ(t.decides, Decides::kToken);
  EXPECT_TRUE(t.learned && t.causal && !t.items_alone);
  EXPECT_EQ(t.may_read, uint32_t{kReadsUnitBias});

  const auto plan = (*router)->MakePlan({.items = 6, .width = 2});
  ASSERT_TRUE(plan.ok()) << plan.status();
  const RoutePlanInfo& info = (*plan)->info();
  EXPECT_EQ(info.shape.units, 3);
  EXPECT_EQ(info.max_entries, 12);
  EXPECT_EQ(info.max_dropped, 6);
  EXPECT_EQ(info.head_rows, 1);
  EXPECT_EQ(info.tail_rows, 3);
  OwnedWorkspace memory(info.workspace_bytes);
  AssignmentBuffer out;
  out.Reserve(6, info.max_entries, info.max_dropped);
  // Scores x + 2 y, with the bias 0.5 of unit 0: 3.5, 1, 1.5, NaN, 4.5, 1.
  const float features[] = {1, 1, -0.5f, 0.5f, -1, 1, NAN, 0, 2, 1, 0.5f, 0};
  const float bias[] = {0.5f, 0, 0};
  RouteInputs in;
  in.items = 6;
  in.features = {features, 6, 2, 2};
  in.unit_bias = bias;
  in.layer = 4;
  in.step = 3;
  InlineExecutor one;
  Assignment& a = out.view();
  const absl::Status s = (*router)->Run(**plan, in, {memory.workspace(), &one}, a);
  ASSERT_TRUE(s.ok()) << s;
  EXPECT_THAT(a.row_ptr, ElementsAre(0, 1, 3, 4, 6, 7, 9));
  EXPECT_THAT(a.unit.first(9), ElementsAre(0, 1, 2, 0, 1, 2, 1, 1, 2));
  EXPECT_THAT(a.weight.first(9), ElementsAre(1, 1, 0.5f, 1, 1, 0.5f, 1, 1, 0.5f));
  EXPECT_THAT(a.score.first(9), ElementsAre(3, 0.5f, 7, 1, 0, 7, 4, 0.5f, 7));
  EXPECT_EQ(a.nan_scores, 1);
  EXPECT_EQ(a.num_dropped, 1);
  EXPECT_EQ(a.dropped[0], (DroppedPair{4, 0}));

  const UnitInfo forecast = (*router)->DescribeUnit(**plan, 2);
  EXPECT_EQ(forecast.kind, UnitKind::kOwn);
  EXPECT_EQ(forecast.concurrency, Concurrency::kRows);
  EXPECT_EQ(forecast.cost, 0.125);
  EXPECT_EQ(forecast.max_rows, 3);
  EXPECT_EQ((*router)->DescribeUnit(**plan, 1).kind, UnitKind::kSkip);
  const float rows[] = {1, 2, 3, 4};
  const int32_t items[] = {1, 5};
  float results[4] = {};
  OwnedWorkspace unit(info.unit_workspace_bytes);
  const UnitRows job = {2, {rows, 2, 2, 2}, items, {results, 2, 2, 2}};
  ASSERT_TRUE((*router)->RunUnit(**plan, job, {unit.workspace(), &one}).ok());
  EXPECT_THAT(results, ElementsAre(3, 5, 11, 13));
}

TEST_F(Frozen, AnAgentRouter) {
  auto graph = MakeGraph(1, {3, 2});  // of costs 0.001, 0.002, 0.003 and 0.001, 0.002
  graph->stages[0][1].ability = {0.75};
  AgentUnderTest a("frozen_cheapest:scale=2", graph, 8, nullptr, methods_.agents);
  AgentTrace trace;
  const AgentDecision d = a.Route(1, {1}, &trace);
  EXPECT_THAT(absl::MakeConstSpan(d.path.data(), 2), ElementsAre(1, 3));
  EXPECT_EQ(d.propensity, 1);
  ASSERT_EQ(trace.size(), 5u);
  // 2 (cost + latency / weight - ability) - 0.5 of the state.
  EXPECT_FLOAT_EQ(trace[0].eta, 0.502f);
  EXPECT_FLOAT_EQ(trace[1].eta, -0.996f);
  EXPECT_EQ(trace[3].stage, 1);
  EXPECT_TRUE(trace[3].chosen && !trace[4].chosen);
  // There was no path to follow then: of the one that it takes it says the probability, of others
  // it cannot.
  const std::vector<double> intent = {1};
  AgentRequest q;
  q.id = 1;
  q.intent = intent;
  q.explore = 0.5;  // not heard either
  AgentDecision followed;
  for (const std::vector<int32_t>& path : {std::vector<int32_t>{1, 3}, {0, 3}}) {
    q.follow = path;
    const absl::Status status = a.router().Run(a.plan(), a.state(), q, followed, nullptr);
    EXPECT_EQ(status.code(),
              path[0] == 1 ? absl::StatusCode::kOk : absl::StatusCode::kUnimplemented)
        << status;
  }
  EXPECT_EQ(followed.propensity, 1);
  const std::vector<Block> blocked = {Block::kNone, Block::kUnhealthy, Block::kNone, Block::kNone,
                                      Block::kNone};
  const std::vector<AgentLive> live = {{3, 0}, {0, 0}, {0, 0}, {0, 0}, {0, 0}};
  EXPECT_EQ(a.Route(2, {1}, nullptr, blocked, live).path[0], 2);
  // (quality 1 + accepted 1 - cost 0.25 - latency 0.25) / propensity 0.5 = 3 a stage, and every
  // epoch halves what was: (0.5 / 2 + 3) / 2 of those that were taken, 0.5 / 4 of the others.
  a.Learn({1}, {2, 4}, 1, true, 0.25, 0.25, 0.5);
  a.Learn({1}, {2, 4}, 0, false);
  EXPECT_THAT(a.state(), ElementsAre(0.125, 0.125, 1.625, 0.125, 1.625));
}

TEST_F(Frozen, APrunerOfWeights) {
  const auto pruner = methods_.pruners.Create("frozen_wanda");
  ASSERT_TRUE(pruner.ok()) << pruner.status();
  EXPECT_EQ((*pruner)->traits().reads, uint32_t{kPrunerReadsSumSquares});
  const float w[] = {1, -4, 3, 2, 8, 1, -1, 1};
  const float squares[] = {100, 1, 1, 4};
  PruneInputs in;
  in.weights = {w, 2, 4, 4};
  in.stats.tokens = 10;
  in.stats.sum_squares = squares;
  in.target.ratio = 0.5;
  InlineExecutor one;
  // |w| sqrt(sum): 10 4 3 4 and 80 1 1 2; of equals the first goes.
  const auto mask = (*pruner)->Prune(in, {{}, &one});
  ASSERT_TRUE(mask.ok()) << mask.status();
  EXPECT_THAT(mask->words(), ElementsAre(0b1001, 0b1001));
  Mask start(2, 4, true);
  start.Set(0, 0, false);
  in.start = &start;
  EXPECT_THAT((*pruner)->Prune(in, {{}, &one})->words(), ElementsAre(0b1010, 0b1001));
  in.target.scope = PruneTarget::Scope::kLayer;
  EXPECT_FALSE((*pruner)->Prune(in, {{}, &one}).ok());
}

// A record may grow at its end where it says its size and nobody strides over several of it.
TEST(FrozenLayout, TodaysHeaderAgreesWithIt) {
  std::map<std::string, const layout_row*> today;
  const auto key = [](const layout_row& r) { return absl::StrCat(r.name, ".", r.field); };
  for (const layout_row* r = layout_today; r->name != nullptr; ++r) today[key(*r)] = r;
  int rows = 0;
  for (const layout_row* r = layout_2_0; r->name != nullptr; ++r, ++rows) {
    ASSERT_TRUE(today.contains(key(*r))) << key(*r);
    const layout_row& now = *today[key(*r)];
    EXPECT_EQ(now.at, r->at) << key(*r);
    EXPECT_STREQ(now.text, r->text) << key(*r);
    const bool record = *r->field == 0 && r->size > 0 && r->text == nullptr;
    const bool grows = record && today.contains(absl::StrCat(r->name, ".struct_size")) &&
                       std::string(r->name) != "sluice_plan_branch";
    if (grows) {
      EXPECT_GE(now.size, r->size) << key(*r);
    } else {
      EXPECT_EQ(now.size, r->size) << key(*r);
    }
  }
  EXPECT_GT(rows, 450);
}
}  // namespace
SLUICE_END_NAMESPACE
