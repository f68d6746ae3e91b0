// Every attention policy evaluated, on short texts and on planted data.
#include "sluice/runtime/lab/evaluate/attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "sluice/runtime/lab/evaluate/planted.h"
#include "sluice/runtime/text/token_file.h"
#include "sluice/tests/support/host_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace attention_test {
using testing::HasSubstr;
const std::string kFolder = std::string(SLUICE_SOURCE_DIR) + "/examples/models/";

// What one query of one head attends to, in double precision.
std::vector<double> DenseRow(const PlantedData& data, int64_t t, int64_t head) {
  const int64_t seen = data.keys - data.queries + t + 1;
  const int64_t kv = head / (data.heads / data.kv_heads);
  std::vector<double> p;
  double sum = 0;
  for (int64_t s = 0; s < seen; ++s) {
    double x = 0;
    for (int64_t i = 0; i < data.dim; ++i)
      x += static_cast<double>(data.q[(t * data.heads + head) * data.dim + i]) *
           data.k[(s * data.kv_heads + kv) * data.dim + i];
    p.push_back(std::exp(x / std::sqrt(static_cast<double>(data.dim))));
    sum += p.back();
  }
  for (double& x : p) x /= sum;
  return p;
}

TEST(Planted, DataHasTheStructureThatItSays) {
  const int64_t n = 1024;
  const PlantedData needles = MakePlanted(PlantedKind::kNeedles, n, n, 3);
  const std::vector<double> p = DenseRow(needles, n - 1, 5);
  EXPECT_GT(*std::max_element(p.begin(), p.end()), 0.5);  // one key
  const PlantedData sink = MakePlanted(PlantedKind::kSinkRecent, n, n, 3);
  const std::vector<double> s = DenseRow(sink, n - 1, 5);
  double ends = s[0] + s[1] + s[2] + s[3];
  for (int64_t i = n - 64; i < n; ++i) ends += s[static_cast<size_t>(i)];
  EXPECT_GT(ends, 0.5);  // 68 of 1,024 keys
  // Another seed is other data, the same one the same.
  EXPECT_EQ(MakePlanted(PlantedKind::kTopics, 256, 64, 1).k,
            MakePlanted(PlantedKind::kTopics, 256, 64, 1).k);
  EXPECT_NE(MakePlanted(PlantedKind::kTopics, 256, 64, 1).k,
            MakePlanted(PlantedKind::kTopics, 256, 64, 2).k);
}

TEST(Planted, DenseIsExactAndTheOracleFindsWhatAWindowMisses) {
  const PlantedData data = MakePlanted(PlantedKind::kNeedles, 4096, 256, 3);
  const PlantedOptions o = {.chunk = 100, .quality_stride = 7, .threads = 1};
  const auto dense = RunPlanted(data, "dense", o);
  ASSERT_TRUE(dense.ok()) << dense.status();
  EXPECT_NEAR(dense->density, 1, 1e-9);
  EXPECT_NEAR(dense->quality.mass_recall.min(), 1, 1e-6);
  EXPECT_LT(dense->quality.rel_error.max(), 1e-4);
  const auto oracle = RunPlanted(data, "oracle_block_topk:k=12", o);
  const auto window = RunPlanted(data, "sink_window:sink=4,window=764", o);
  ASSERT_TRUE(oracle.ok() && window.ok());
  EXPECT_GT(oracle->quality.mass_recall.mean(), window->quality.mass_recall.mean() + 0.2);
  EXPECT_LT(oracle->quality.rel_error.mean(), window->quality.rel_error.mean());
  EXPECT_FALSE(RunPlanted(data, "nothing", o).ok());
}

EvaluateAttentionOptions Small() {
  EvaluateAttentionOptions o;
  o.planted = 0;
  o.compare.policies = {"dense", "oracle_block_topk:k=2", "mean_pool:k=4",
                        "sink_window:sink=1,window=8"};
  o.compare.contexts = {1024};
  o.compare.documents = 1;
  o.compare.facts_each = 4;
  o.compare.quality_stride = 101;
  o.compare.engine.threads = 1;
  return o;
}
absl::StatusOr<Report> Evaluated(const EvaluateAttentionOptions& o) {
  return EvaluateAttention(host::Mini(), kFolder + "sluice-mini-q8_0.gguf",
                           *ReadTokens(kFolder + "sluice-mini-eval.u16", 0, 2048), o);
}

TEST(EvaluateAttention, AnswersFirstAndMeasuresBetweenTheAnchors) {
  EvaluateAttentionOptions o = Small();
  o.planted = 512;
  const auto report = Evaluated(o);
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ(report->tables.size(), 2 + std::size(kPlantedKinds));
  EXPECT_THAT(report->tables[0].title, HasSubstr("fastest within 1 % perplexity and 3 points"));
  EXPECT_THAT(report->notes, HasSubstr("At 1k tokens the fastest policy within"));
  const auto& rows = report->tables[1].rows;
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_NEAR(rows[0][1].value, 1, 1e-9);         // density of dense
  EXPECT_NEAR(rows[0][2].value, 1, 1e-6);         // its mass
  EXPECT_LT(rows[0][5].value, 1e-3);              // its error
  EXPECT_GT(rows[1][2].value, rows[3][2].value);  // the oracle's mass over the window's
  EXPECT_LE(rows[2][4].value, rows[2][3].value);  // the minimum under the fifth percentile
  EXPECT_LE(rows[2][3].value, rows[2][2].value);  // and that under the mean
  EXPECT_GT(rows[3][10].value, 1);                // a window of 8 loses perplexity
}

// What loses more than the limits is not named, however fast; without limits the fastest is.
TEST(EvaluateAttention, TheAnswerKeepsTheLimitsAndIsNoOracle) {
  EvaluateAttentionOptions o = Small();
  o.compare.policies = {"dense", "oracle_block_topk:k=2", "sink_window:sink=1,window=8"};
  EXPECT_EQ(Evaluated(o)->tables[0].rows[0][1].text, "dense");
  o.perplexity = HUGE_VAL;
  o.facts = HUGE_VAL;
  EXPECT_EQ(Evaluated(o)->tables[0].rows[0][1].text, "sink_window:sink=1,window=8");
}

TEST(EvaluateAttention, SaysWhichPolicyCannotBe) {
  EvaluateAttentionOptions o = Small();
  o.compare.policies.push_back("nothing");
  EXPECT_THAT(Evaluated(o).status().message(), HasSubstr("policy 'nothing': no method"));
  const std::vector<std::string> all = AttentionPolicies();
  EXPECT_EQ(all[0], "dense");
  EXPECT_THAT(all, testing::Contains("quest"));
  EXPECT_THAT(all, testing::Not(testing::Contains("seer_attention")));
}
}  // namespace attention_test
}  // namespace lab
SLUICE_END_NAMESPACE
