// Searching within limits, on the bundled model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/lab/compare/compare.h"
#include "sluice/runtime/text/token_file.h"
#include "sluice/tests/support/host_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace search_within_test {
using testing::HasSubstr;
const std::string kFolder = std::string(SLUICE_SOURCE_DIR) + "/examples/models/";

struct Searched {
  char folder[40] = "/tmp/sluice-within-XXXXXX";
  WithinOptions o;
  Searched() {
    EXPECT_NE(mkdtemp(folder), nullptr);
    o.palette = {"dense", "mean_pool:k=4", "sink_window:sink=16,window=32"};
    o.documents = 2;
    o.evaluations = 8;
    o.compare.contexts = {512};
    o.compare.facts_each = 4;
    o.compare.draws = 200;
    o.compare.engine.threads = 1;
    o.compare.resume = std::string(folder) + "/progress.jsonl";
  }
  ~Searched() { std::filesystem::remove_all(folder); }
  absl::StatusOr<std::vector<WithinPlan>> Run(int64_t tokens = 4096) const {
    return SearchWithinLimits(host::Mini(), kFolder + "sluice-mini-q8_0.gguf",
                              *ReadTokens(kFolder + "sluice-mini-eval.u16", 0, tokens), o);
  }
  int64_t lines() const {
    std::ifstream f(o.compare.resume);
    return std::count(std::istreambuf_iterator<char>(f), {}, '\n');
  }
};

TEST(SearchWithinLimits, SaysAPolicyVerifiesItAndGoesOn) {
  Searched s;
  s.o.perplexity = 100;
  s.o.facts = 100;
  const auto first = s.Run();
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_EQ(first->size(), 2u);
  EXPECT_EQ((*first)[0].method, "greedy");
  EXPECT_EQ((*first)[1].method, "random");
  const int64_t measured = s.lines();
  EXPECT_GT(measured, 0);
  // All is known now: the same way, with the same times.
  const auto again = s.Run();
  EXPECT_EQ(s.lines(), measured);
  for (size_t i = 0; i < 2; ++i) {
    const WithinPlan& p = (*first)[i];
    EXPECT_EQ((*again)[i].policy, p.policy);
    EXPECT_EQ((*again)[i].speed.value, p.speed.value);
    EXPECT_LE(p.seconds, p.reference_seconds);
    EXPECT_TRUE(p.within);  // limits of 100 hold anything here
    EXPECT_EQ(p.verified, 1);
    host::EngineOptions e;
    e.max_tokens = 512;
    EXPECT_TRUE(host::CreateWithPolicy(host::Mini(), e, p.policy).ok()) << p.policy;
  }
  EXPECT_LE((*first)[1].evaluations, (*first)[0].evaluations);
}

// What is verified is what another reading of the held-out documents says.
TEST(SearchWithinLimits, VerifiesOnTextThatTheSearchHasNotSeen) {
  Searched s;
  s.o.perplexity = 100;
  const auto found = s.Run();
  ASSERT_TRUE(found.ok()) << found.status();
  const auto all = *ReadTokens(kFolder + "sluice-mini-eval.u16", 0, 2048);
  CompareOptions c = s.o.compare;
  c.resume = "";
  c.facts = false;
  c.documents = 2;
  c.policies = {"dense", (*found)[0].policy};
  const auto d = RunComparison(host::Mini(), kFolder + "sluice-mini-q8_0.gguf",
                               {all.begin() + 1024, all.end()}, c);
  ASSERT_TRUE(d.ok()) << d.status();
  double change = 0;
  for (size_t i = 0; i < 2; ++i)
    change += ((*d)[2 + i].nll - (*d)[i].nll) / static_cast<double>((*d)[i].counted) / 2;
  EXPECT_NEAR((*found)[0].perplexity.value, 100 * std::expm1(change), 1e-6);
  EXPECT_TRUE(std::isnan((*found)[0].facts.value));
}

// No policy here loses nothing: a limit of 0 leaves the first.
TEST(SearchWithinLimits, TightLimitsLeaveTheReference) {
  Searched s;
  s.o.perplexity = 0;
  s.o.palette = {"dense", "sink_window:sink=1,window=8"};
  const auto found = s.Run();
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ((*found)[0].policy, "per_layer(6*dense)");
  EXPECT_TRUE((*found)[0].within);
  EXPECT_EQ((*found)[0].perplexity.value, 0);
}

TEST(SearchWithinLimits, CountsLostFactsWithTheirError) {
  EXPECT_EQ(WithStandardError(0, 100), 0);
  EXPECT_EQ(WithStandardError(-0.05, 100), -0.05);  // found more than the reference
  EXPECT_NEAR(WithStandardError(0.01, 100), 0.02, 1e-15);
  EXPECT_NEAR(WithStandardError(0.04, 100), 0.06, 1e-15);
  EXPECT_NEAR(WithStandardError(0.04, 10000), 0.042, 1e-15);
}

TEST(SearchWithinLimits, RefusesWhatCannotBe) {
  Searched s;
  EXPECT_THAT(s.Run().status().message(), HasSubstr("wanted a limit"));
  s.o.perplexity = 1;
  EXPECT_THAT(s.Run(2047).status().message(), HasSubstr("are 2048 tokens; there are 2047"));
  s.o.palette = {"dense"};
  EXPECT_THAT(s.Run().status().message(), HasSubstr("wanted two or more"));
  s.o.palette = {"dense", "nothing"};
  EXPECT_THAT(s.Run().status().message(), HasSubstr("policy 'nothing'"));
}

TEST(ReadWithin, TakesLimitsAndRefusesOthers) {
  WithinOptions o;
  ASSERT_TRUE(ReadWithin("perplexity=1.5%,facts=3", o).ok());
  EXPECT_EQ(o.perplexity, 1.5);
  EXPECT_EQ(o.facts, 3);
  WithinOptions one;
  ASSERT_TRUE(ReadWithin("facts=0", one).ok());
  EXPECT_TRUE(std::isnan(one.perplexity));
  for (const char* text :
       {"", "perplexity", "perplexity=", "perplexity=x", "perplexity=-1%", "perplexity=nan",
        "facts=101", "facts=3%", "speed=2", "facts=1,facts=2", "facts=1,"}) {
    WithinOptions other;
    EXPECT_THAT(ReadWithin(text, other).message(), HasSubstr("allowed: perplexity=PERCENT%"))
        << text;
  }
}
}  // namespace search_within_test
}  // namespace lab
SLUICE_END_NAMESPACE
