#include "sluice/runtime/lab/prune/search_sparsity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cmath>
#include <filesystem>

#include "sluice/policies/search/search.h"
#include "sluice/pruners/builtin.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/lab/prune/prune_weights.h"
#include "sluice/runtime/text/token_file.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace search_sparsity_test {
using testing::HasSubstr;
const std::string kMini = host::ModelsFolder() + "/sluice-mini-q8_0.gguf";
const std::string kEval = host::ModelsFolder() + "/sluice-mini-eval.u16";

TEST(ReadSparsityOperator, MethodsSharesAndPatterns) {
  EXPECT_TRUE(ReadSparsityOperator("dense")->stages.empty());
  const auto share = ReadSparsityOperator("wanda@0.6");
  ASSERT_TRUE(share.ok()) << share.status();
  EXPECT_EQ(share->target.kind, PruneTarget::Kind::kRatio);
  EXPECT_EQ(share->target.ratio, 0.6);
  EXPECT_EQ(share->stages.size(), 1u);
  const auto pattern = ReadSparsityOperator("magnitude@1:4");
  ASSERT_TRUE(pattern.ok()) << pattern.status();
  EXPECT_EQ(pattern->target.kind, PruneTarget::Kind::kNofM);
  EXPECT_EQ(pattern->target.n, 1);
  EXPECT_EQ(pattern->target.m, 4);
  const auto repair = ReadSparsityOperator("dsnot:growth=1@0.7");
  ASSERT_TRUE(repair.ok()) << repair.status();
  EXPECT_EQ(repair->stages.size(), 2u);
  EXPECT_EQ(repair->stages[0]->traits().name, "weight/wanda");

  const auto error = [](const std::string& text) {
    return std::string(ReadSparsityOperator(text).status().message());
  };
  for (const char* text : {"wanda", "wanda@", "wanda@x", "wanda@0", "wanda@1", "wanda@-0.5",
                           "wanda@nan", "wanda@4:2", "wanda@2:0", "dense@0.5x", ""})
    EXPECT_THAT(error(text), HasSubstr("allowed: dense, or a pruner of weights and what goes"))
        << text;
  EXPECT_THAT(error("nothing@0.5"), HasSubstr("no method 'nothing'"));
  EXPECT_THAT(error("wanda:x=1@0.5"), HasSubstr("operator 'wanda:x=1@0.5'"));
}

class Sparsity : public testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(mkdtemp(folder_), nullptr); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  SparsitySearchOptions Options() const {
    SparsitySearchOptions o;
    o.model = kMini;
    o.palette = {"dense", "magnitude@2:4", "magnitude@0.75"};
    o.groups = SparsityGroups::kLayer;
    o.context = 64;
    o.documents = 2;
    o.evaluations = 9;
    o.held_out = 3;
    o.seeds = 2;
    return o;
  }
  absl::StatusOr<SparsitySearch> Search(const SparsitySearchOptions& o) {
    return SearchSparsity(model_, tokens_, o);
  }
  // Mean log perplexity of tokens [begin, begin + 64) of each.
  double Log(const host::Model& model, const std::vector<int64_t>& begins) const {
    host::EngineOptions o;
    o.max_tokens = 64;
    const auto engine = *host::Engine::Create(model, o);
    double sum = 0;
    for (int64_t b : begins) {
      const auto first = tokens_.begin() + b;
      sum += std::log(*host::Perplexity(*engine, {first, first + 64}));
    }
    return sum / static_cast<double>(begins.size());
  }
  char folder_[32] = "/tmp/sluice-sparse-XXXXXX";
  host::Model model_ = *host::LoadModel(kMini);
  std::vector<int32_t> tokens_ = *ReadTokens(kEval, 0, 640);  // ten documents
};

// Ten documents: two parts' middles, 2 and 7, are searched on; of the eight others three.
const std::vector<int64_t> kSearched = {2 * 64, 7 * 64};
const std::vector<int64_t> kHeldOut = {1 * 64, 5 * 64, 8 * 64};

TEST_F(Sparsity, ThePlanIsWithinTheBudgetAndTheFileIsWhatWasTold) {
  SparsitySearchOptions o = Options();
  o.keep = 0.6;
  o.out = std::string(folder_) + "/plan.gguf";
  const host::Model before = model_;
  const auto r = Search(o);
  ASSERT_TRUE(r.ok()) << r.status();
  EXPECT_EQ(r->groups, 6);
  EXPECT_EQ(r->held_out, 3);
  EXPECT_EQ(r->weights, 8552448);
  EXPECT_LE(r->found.kept, 0.6 + 1e-9);
  EXPECT_LE(r->random->kept, 0.6 + 1e-9);
  EXPECT_LE(r->found.evaluations, 9);
  EXPECT_EQ(r->random->evaluations, r->found.evaluations);
  // Each half of every matrix goes, or three quarters, or nothing.
  const double layers = r->found.kept * 24;
  EXPECT_NEAR(layers, std::round(layers), 1e-3);
  EXPECT_THAT(r->found.text, HasSubstr("layers("));

  // What is told of the plan is what the written file does.
  const auto written = host::LoadModel(o.out);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_NEAR(std::log(r->found.searched), Log(*written, kSearched), 1e-6);
  EXPECT_NEAR(std::log(r->found.held_out), Log(*written, kHeldOut), 1e-6);
  EXPECT_NEAR(std::log(r->dense.searched), Log(before, kSearched), 1e-6);
  EXPECT_NEAR(std::log(r->dense.held_out), Log(before, kHeldOut), 1e-6);
  int64_t kept = 0;
  for (size_t l = 0; l < 6; ++l) {
    const host::Layer& was = before.layers[l];
    const host::Layer& is = written->layers[l];
    for (const auto& [a, b] : {std::pair(&was.qkv, &is.qkv),
                               {&was.attn_out, &is.attn_out},
                               {&was.gate_up, &is.gate_up},
                               {&was.down, &is.down}}) {
      for (size_t i = 0; i < a->size(); ++i) {
        ASSERT_TRUE((*b)[i] == (*a)[i] || (*b)[i] == 0);
        kept += (*b)[i] == (*a)[i] && ((*a)[i] != 0 || (*b)[i] == 0);
      }
    }
  }
  EXPECT_NEAR(static_cast<double>(kept) / 8552448, r->found.kept, 0.03);  // zeros that were there

  // The uniform plan is the best that fits: half goes everywhere, since dense does not.
  EXPECT_EQ(r->uniform->text, "layers(6*magnitude@2:4)");
  EXPECT_NEAR(r->uniform->kept, 0.5, 1e-9);
  EXPECT_TRUE(std::isnan(r->uniform->change.value));
  EXPECT_NEAR(r->found.change.value, std::log(r->found.held_out) - std::log(r->uniform->held_out),
              1e-6);
  EXPECT_LT(r->found.change.low, r->found.change.value);

  // The model is whole again.
  for (size_t l = 0; l < 6; ++l) {
    EXPECT_EQ(model_.layers[l].qkv, before.layers[l].qkv);
    EXPECT_EQ(model_.layers[l].down, before.layers[l].down);
    EXPECT_EQ(model_.layers[l].gate_up, before.layers[l].gate_up);
    EXPECT_EQ(model_.layers[l].attn_out, before.layers[l].attn_out);
  }
}

// Every method on the same small problem, against all of its plans.
TEST_F(Sparsity, EveryMethodKeepsTheBudgetAndNoneBeatsTheBestPlan) {
  model_.shape.layers = 2;
  SparsitySearchOptions o = Options();
  o.documents = 1;
  o.held_out = 1;
  o.keep = 0.5;
  o.evaluations = 9;
  o.seeds = 2;
  double best = INFINITY;
  {
    const Gguf file = *Gguf::Open(kMini);
    const std::vector<int32_t> none;
    std::vector<PruneStages> stages;
    std::vector<WeightPruning> ways;
    for (const char* text : {"magnitude@2:4", "magnitude@0.75"}) {
      SparsityOperator op = *ReadSparsityOperator(text);
      stages.push_back(std::move(op.stages));
      ways.push_back({.stages = stages.back(), .target = op.target});
    }
    const auto made = PruneEachWay(file, model_, none, ways);
    ASSERT_TRUE(made.ok()) << made.status();
    const double kept[] = {1, 0.5, 0.25};
    for (int a = 0; a < 3; ++a) {
      for (int b = 0; b < 3; ++b) {
        if (kept[a] + kept[b] > 1) continue;
        host::Model model = model_;
        for (const auto& [layer, choice] : {std::pair(0, a), {1, b}}) {
          if (choice == 0) continue;
          const auto& tensors = (*made)[static_cast<size_t>(choice - 1)].tensors;
          const auto get = [&](const char* part) {
            const std::string name = absl::StrCat("blk.", layer, ".", part, ".weight");
            return GgufDecodeAs(**file.Tensor(name), tensors.at(name));
          };
          host::Layer& l = model.layers[static_cast<size_t>(layer)];
          l.qkv.clear();
          for (const char* part : {"attn_q", "attn_k", "attn_v"}) {
            const std::vector<float> w = get(part);
            l.qkv.insert(l.qkv.end(), w.begin(), w.end());
          }
          l.gate_up = get("ffn_gate");
          const std::vector<float> up = get("ffn_up");
          l.gate_up.insert(l.gate_up.end(), up.begin(), up.end());
          l.attn_out = get("attn_output");
          l.down = get("ffn_down");
        }
        best = std::min(best, Log(model, {5 * 64}));
      }
    }
  }
  for (const char* method : kSearchMethods) {
    o.method = method;
    const auto r = Search(o);
    ASSERT_TRUE(r.ok()) << method << r.status();
    EXPECT_LE(r->found.kept, 0.5 + 1e-9) << method;
    EXPECT_GE(std::log(r->found.searched), best - 1e-6) << method;
    EXPECT_EQ(r->random.has_value(), o.method != "random");
    if (!r->random.has_value()) {
      EXPECT_NEAR(std::log(r->found.searched), best, 1e-6);  // nine plans are all there are
      continue;
    }
    EXPECT_THAT(r->verdict, HasSubstr("random search: quality"));
    EXPECT_THAT(r->held_out_verdict, HasSubstr("random search: quality"));
    EXPECT_LE(r->random->evaluations, 9);
    if (o.method != "dass") continue;
    EXPECT_EQ(Search(o)->found.text, r->found.text);
  }
}

TEST_F(Sparsity, GroupsArePartsOrMatricesAsAsked) {
  SparsitySearchOptions o = Options();
  model_.shape.layers = 2;
  o.seeds = 1;
  o.method = "random";
  o.evaluations = 1;
  for (const auto& [groups, slots, says] : {std::tuple(SparsityGroups::kPart, 4, "attention("),
                                            {SparsityGroups::kMatrix, 14, "ffn_up("},
                                            {SparsityGroups::kLayer, 2, "layers("}}) {
    o.groups = groups;
    const auto r = Search(o);
    ASSERT_TRUE(r.ok()) << r.status();
    EXPECT_EQ(r->groups, slots);
    EXPECT_THAT(r->found.text, HasSubstr(says));
  }
}

// Ways that are made together are those that are made alone, from the dense model's inputs.
TEST_F(Sparsity, EachWayIsPrunedFromTheDenseModel) {
  model_.shape.layers = 2;
  const Gguf file = *Gguf::Open(kMini);
  const std::vector<int32_t> text(tokens_.begin(), tokens_.begin() + 128);
  const PruneStages wanda = std::move(ReadSparsityOperator("wanda@0.5")->stages);
  const PruneStages magnitude = std::move(ReadSparsityOperator("magnitude@0.5")->stages);
  const std::vector<WeightPruning> ways = {
      {.stages = magnitude, .target = {.ratio = 0.9}, .window = 64},
      {.stages = wanda, .target = {.ratio = 0.5}, .window = 64}};
  const host::Model before = model_;
  const auto made = PruneEachWay(file, model_, text, ways);
  ASSERT_TRUE(made.ok()) << made.status();
  for (size_t l = 0; l < 2; ++l) {
    EXPECT_EQ(model_.layers[l].qkv, before.layers[l].qkv);
    EXPECT_EQ(model_.layers[l].down, before.layers[l].down);
  }
  // In place the first layer's inputs are the dense model's, the second's are not.
  const auto alone = PruneWeights(file, model_, text, ways[1]);
  ASSERT_TRUE(alone.ok()) << alone.status();
  const auto same = [&](const char* name) {
    return (*made)[1].masks.at(name) == alone->masks.at(name);
  };
  EXPECT_TRUE(same("blk.0.attn_q.weight"));
  EXPECT_TRUE(same("blk.0.ffn_down.weight"));
  EXPECT_FALSE(same("blk.1.attn_q.weight"));
  model_ = before;
  const auto once_more = PruneEachWay(file, model_, text, {&ways[1], 1});
  ASSERT_TRUE(once_more.ok()) << once_more.status();
  EXPECT_EQ((*once_more)[0].tensors, (*made)[1].tensors);

  std::vector<WeightPruning> uneven = ways;
  uneven[1].window = 32;
  EXPECT_THAT(std::string(PruneEachWay(file, model_, text, uneven).status().message()),
              HasSubstr("in windows of 64 and 32 tokens"));
}

TEST_F(Sparsity, ErrorsSayWhatWasGivenAndAllowed) {
  model_.shape.layers = 2;
  const auto error = [&](const auto& change) {
    SparsitySearchOptions o = Options();
    change(o);
    return std::string(Search(o).status().message());
  };
  using Options = SparsitySearchOptions;
  EXPECT_THAT(error([](Options& o) { o.method = "best"; }), HasSubstr("allowed: random, greedy"));
  EXPECT_THAT(error([](Options& o) { o.palette = {"dense"}; }), HasSubstr("a palette of 1"));
  EXPECT_THAT(error([](Options& o) { o.palette[1] = "wanda"; }), HasSubstr("operator 'wanda'"));
  for (double keep : {0.0, -0.5, 1.5, double{NAN}})
    EXPECT_THAT(error([&](Options& o) { o.keep = keep; }), HasSubstr("allowed: above 0 to 1"));
  EXPECT_THAT(error([](Options& o) { o.keep = 0.1; }), HasSubstr("is below the cheapest plan"));
  EXPECT_THAT(error([](Options& o) { o.context = 1; }), HasSubstr("the model's context of 16384"));
  EXPECT_THAT(error([](Options& o) { o.documents = 10; }), HasSubstr("none are left to report on"));
  EXPECT_THAT(error([](Options& o) { o.documents = 11; }), HasSubstr("allowed: 1 to 10"));
  EXPECT_THAT(error([](Options& o) { o.context = 1024; }),
              HasSubstr("a text of 640 tokens is shorter than a window of 1024"));
  EXPECT_THAT(error([](Options& o) {
                o.method = "dynamic";
                o.evaluations = 5;
              }),
              HasSubstr("6 evaluations are needed, 5 allowed"));
  EXPECT_THAT(error([](Options& o) { o.palette[1] = "wanda@2:5"; }),
              HasSubstr("width 384 is no multiple of M = 5"));
  EXPECT_THAT(error([](Options& o) { o.out = o.model; }), HasSubstr("is the file that is read"));
  model_.shape.experts = 8;
  EXPECT_THAT(error([](Options&) {}), HasSubstr("Mixture of Experts"));
}
}  // namespace search_sparsity_test
}  // namespace lab
SLUICE_END_NAMESPACE
