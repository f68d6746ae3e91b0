#include "sluice/runtime/lab/compare/compare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/text/token_file.h"
#include "sluice/tests/support/host_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace compare_test {
using testing::HasSubstr;
const std::string kFolder = std::string(SLUICE_SOURCE_DIR) + "/examples/models/";

struct Compared {
  CompareOptions o;
  absl::StatusOr<std::vector<CompareDocument>> Run(const std::string& resume = "",
                                                   int64_t stop_after = -1) {
    o.resume = resume;
    int64_t started = 0;
    o.progress = [&](const std::string&, double) {
      if (++started == stop_after) throw std::runtime_error("interrupted");
    };
    return RunComparison(host::Mini(), kFolder + "sluice-mini-q8_0.gguf",
                         *ReadTokens(kFolder + "sluice-mini-eval.u16", 0, -1), o);
  }
  Compared() {
    o.policies = {"dense", "mean_pool:k=2", "ftp"};
    o.contexts = {256, 512};
    o.documents = 2;
    o.facts_each = 4;
    o.draws = 200;
    o.engine.threads = 1;
  }
};

TEST(Compare, AnInterruptedRunGoesOnAndTheSameSeedGivesTheSameBytes) {
  const auto whole = Compared().Run();
  ASSERT_TRUE(whole.ok()) << whole.status();
  ASSERT_EQ(whole->size(), 12u);
  char folder[] = "/tmp/sluice-compare-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  const std::string file = std::string(folder) + "/progress.jsonl";
  EXPECT_THROW((void)Compared().Run(file, 5), std::runtime_error);
  {  // as a crash leaves it
    std::ofstream f(file, std::ios::app);
    f << "{\"key\": \"cut sho";
    f << "\n";
  }
  const auto resumed = Compared().Run(file);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  Compared c;
  const Report a = MakeReport(*whole, c.o, "t", false), b = MakeReport(*resumed, c.o, "t", false);
  EXPECT_EQ(ReportHtml(a), ReportHtml(b));
  EXPECT_EQ(ReportJson(a), ReportJson(b));
  // All is known now: nothing runs, and times come back too.
  const auto again = Compared().Run(file);
  EXPECT_EQ(ReportHtml(MakeReport(*again, c.o, "t", true)),
            ReportHtml(MakeReport(*resumed, c.o, "t", true)));
  // Another seed is another experiment.
  Compared other;
  other.o.seed = 2;
  const auto second = other.Run(file);
  EXPECT_NE((*second)[0].nll, (*resumed)[0].nll);
}

// A path says nothing of what lies there: a file of weights is exchanged for another of the same
// size and time.
TEST(Compare, OtherWeightsAtTheSamePathAreMeasuredAnew) {
  namespace fs = std::filesystem;
  char folder[] = "/tmp/sluice-compare-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  const std::string weights = std::string(folder) + "/weights.gguf";
  const auto put = [&](int seed) {
    const std::string from = absl::StrCat(kFolder, "flux_attention-s", seed, ".gguf");
    fs::copy_file(from, weights, fs::copy_options::overwrite_existing);
    fs::last_write_time(weights, fs::file_time_type{});
  };
  Compared c;
  c.o.policies = {"dense", "flux_attention:weights=" + weights};
  c.o.contexts = {512};
  const std::string file = std::string(folder) + "/progress.jsonl";
  const auto lines = [&] {
    std::ifstream f(file);
    return std::count(std::istreambuf_iterator<char>(f), {}, '\n');
  };
  put(1);
  ASSERT_TRUE(c.Run(file).ok());
  EXPECT_EQ(lines(), 4);
  ASSERT_TRUE(c.Run(file).ok());
  EXPECT_EQ(lines(), 4);  // all is known
  put(2);
  ASSERT_EQ(fs::file_size(weights), fs::file_size(kFolder + "flux_attention-s1.gguf"));
  ASSERT_TRUE(c.Run(file).ok());
  EXPECT_EQ(lines(), 6);  // dense is still known
  fs::remove(weights);
  EXPECT_THAT(c.Run(file).status().message(), HasSubstr("cannot open " + weights));
  fs::remove_all(folder);
}
TEST(Compare, PoliciesDependOnPlugInsByContent) {
  char folder[] = "/tmp/sluice-plugins-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  const char* set = getenv("SLUICE_PLUGIN_PATH");
  const std::string before = set != nullptr ? set : "";
  setenv("SLUICE_PLUGIN_PATH", folder, 1);
  const auto with = [&](const std::string& content) {
    std::ofstream(std::string(folder) + "/mine.so") << content;
    return *host::PolicyFingerprint("mine:k=3");
  };
  const uint64_t none = *host::PolicyFingerprint("mine:k=3");
  const uint64_t one = with("one");
  EXPECT_NE(one, none);
  EXPECT_NE(with("two"), one);
  EXPECT_EQ(with("one"), one);
  setenv("SLUICE_PLUGIN_PATH", before.c_str(), 1);
  std::filesystem::remove_all(folder);
}
TEST(Compare, FilesOfWeightsAreFoundInCompositions) {
  const std::string one = kFolder + "flux_attention-s1.gguf";
  const std::string two = kFolder + "flux_attention-s2.gguf";
  const auto of = [](const std::string& policy) { return *host::PolicyFingerprint(policy); };
  EXPECT_NE(of("cascade(dense<=64 | seer_attention:weights=" + one + ",k=2)"),
            of("cascade(dense<=64 | seer_attention:weights=" + two + ",k=2)"));
  EXPECT_NE(of("flux_attention:weights=" + two), of("flux_attention"));
  EXPECT_EQ(of("flux_attention:weights=" + kFolder + "flux_attention-deep-s1.gguf"),
            of("flux_attention"));  // what is bundled for it
  EXPECT_FALSE(host::PolicyFingerprint("x:weights=/no/such/file").ok());
}

TEST(Compare, DenseAgainstItselfChangesNothingAndSkippingIsMeasured) {
  const auto r = Compared().Run();
  ASSERT_TRUE(r.ok());
  Compared c;
  const Report report = MakeReport(*r, c.o, "t", true);
  ASSERT_EQ(report.tables.size(), 2u);
  const ReportTable& t = report.tables[1];
  EXPECT_THAT(t.title, HasSubstr("512 tokens, 2 documents"));
  EXPECT_EQ(t.rows[0][2].value, 0);  // change of perplexity against itself
  EXPECT_EQ(t.rows[0][2].low, 0);
  EXPECT_NEAR(t.rows[0][5].value, 1, 1e-9);  // density
  EXPECT_LT(t.rows[1][5].value, 0.9);
  EXPECT_LT(t.rows[1][6].value, t.rows[0][6].value);  // MACs
  EXPECT_GT(t.rows[1][1].value, t.rows[0][1].value);  // perplexity
  EXPECT_TRUE(std::isnan(t.rows[2][1].value));        // ftp answers prompts only
  EXPECT_TRUE(t.marked[0] && t.marked[1]);
  EXPECT_EQ(report.heats[0].values[1].size(), static_cast<size_t>(host::Mini().shape.layers));
  for (const auto& row : report.heats[0].values[0]) EXPECT_NEAR(row, 1, 1e-9);
  for (double h : report.heats[1].values[0]) EXPECT_NEAR(h, 1, 1e-9);
  EXPECT_THAT(report.notes, HasSubstr("with 2 documents intervals are not known to cover"));
}

// Changes are means over documents, with the interval that fits each: made documents, worked out by
// hand.
TEST(Compare, ChangesAreMeansOverDocuments) {
  Compared c;
  c.o.policies = {"dense", "half"};
  c.o.contexts = {512};
  const double nll[] = {0.1, 0.2, 0.3, 0.4, 0.5};
  const double seconds[] = {1, 2, 1, 2, 4};
  std::vector<CompareDocument> documents;
  for (int64_t d = 0; d < 5; ++d) {
    CompareDocument one;
    one.policy = "dense";
    one.context = 512;
    one.document = d;
    one.nll = 200 + static_cast<double>(d);
    one.counted = 100;
    one.right = 16;
    one.asked = 16;
    one.total_s = 4;
    one.layer_density = one.head_density = {1};
    one.block_map.assign(kMapBins * kMapBins, 1);
    documents.push_back(one);
    one.policy = "half";
    one.nll += 100 * nll[d];
    one.right = 16 - 2 * d;
    one.total_s = seconds[d];
    documents.push_back(one);
  }
  const Report report = MakeReport(documents, c.o, "t", true);
  const std::vector<ReportCell>& half = report.tables[0].rows[1];
  // Student's half-width: 2.776445 * sqrt(0.025 / 5) for the log perplexities.
  EXPECT_NEAR(half[2].value, 100 * (std::exp(0.3) - 1), 1e-9);
  EXPECT_LE(half[2].low, 100 * (std::exp(0.3 - 0.1963243) - 1) + 1e-4);
  EXPECT_GE(half[2].high, 100 * (std::exp(0.3 + 0.1963243) - 1) - 1e-4);
  EXPECT_NEAR(half[4].value, 100 * (0 - 4. / 16), 1e-9);
  EXPECT_LE(half[4].low, -25 - 100 * 2 * 1.963243 / 16 + 1e-4);
  // Ratios 4, 2, 4, 2, 1: on the log scale.
  EXPECT_NEAR(half[10].value, std::exp2(6. / 5), 1e-9);
  EXPECT_LT(half[10].low, 1.3);
  EXPECT_GT(half[10].high, 4);
  EXPECT_EQ(report.notes.find("not known to cover"), std::string::npos);
}

TEST(Compare, ErrorsSayWhatIsAllowed) {
  Compared c;
  const auto error = [&](const std::function<void(CompareOptions&)>& spoil) {
    Compared d;
    spoil(d.o);
    return std::string(d.Run().status().message());
  };
  EXPECT_THAT(error([](CompareOptions& o) { o.policies.push_back("dense"); }),
              HasSubstr("'dense' is given twice"));
  EXPECT_THAT(error([](CompareOptions& o) { o.contexts = {1 << 20}; }),
              HasSubstr("allowed 64 to the model's"));
  EXPECT_THAT(error([](CompareOptions& o) { o.policies = {"nothing"}; }),
              HasSubstr("policy 'nothing': no method 'nothing'"));
  EXPECT_THAT(error([](CompareOptions& o) { o.policies = {"ftp:k=1"}; }),
              HasSubstr("unknown key 'k'; known: sparsity, topk, causal"));
  EXPECT_THAT(error([](CompareOptions& o) { o.policies = {"ftp:weights=/nowhere"}; }),
              HasSubstr("/nowhere"));
  EXPECT_THAT(error([](CompareOptions& o) { o.policies.clear(); }),
              HasSubstr("at least one policy"));
}

TEST(SearchLayers, KeepsTheBudgetAndSaysThePolicy) {
  const auto tokens = *ReadTokens(kFolder + "sluice-mini-eval.u16", 0, 4096);
  LayerSearchOptions o;
  o.palette = {"dense", "sink_window:sink=16,window=48"};
  o.budget = 0.6;
  o.context = 512;
  o.documents = 1;
  o.evaluations = 12;
  o.engine.threads = 1;
  for (const char* method : {"random", "greedy", "dynamic"}) {
    o.method = method;
    const auto search = SearchLayers(host::Mini(), tokens, o);
    ASSERT_TRUE(search.ok()) << search.status();
    EXPECT_EQ(search->random.has_value(), o.method != "random");
    EXPECT_EQ(search->verdict.empty(), o.method == "random");
    const LayerPlan* r = &search->found;
    EXPECT_LE(r->density, 0.6 + 1e-9);
    EXPECT_THAT(r->policy, HasSubstr("per_layer("));
    host::EngineOptions e;
    e.max_tokens = 512;
    e.threads = 1;
    const auto engine = host::CreateWithPolicy(host::Mini(), e, r->policy);
    ASSERT_TRUE(engine.ok()) << engine.status();
    EXPECT_NEAR(*host::Perplexity(**engine, {tokens.begin(), tokens.begin() + 512}) / r->perplexity,
                1, 1e-6);
    EXPECT_NEAR((*engine)->counters().density(), r->density, 1e-6);
  }
  o.method = "luck";
  EXPECT_THAT(SearchLayers(host::Mini(), tokens, o).status().message(),
              HasSubstr("allowed: random, greedy"));
}
}  // namespace compare_test
}  // namespace lab
SLUICE_END_NAMESPACE
