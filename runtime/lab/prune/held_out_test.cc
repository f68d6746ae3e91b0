#include "sluice/runtime/lab/prune/held_out.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/text/token_file.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
bool operator==(const TokenRange& a, const TokenRange& b) {
  return a.begin == b.begin && a.end == b.end;
}
namespace held_out_test {
using testing::ElementsAre;
using testing::HasSubstr;

TEST(Without, LeavesWhatIsOnEitherSide) {
  EXPECT_THAT(Without({10, 50}, {20, 30}), ElementsAre(TokenRange{10, 20}, TokenRange{30, 50}));
  EXPECT_THAT(Without({10, 50}, {0, 30}), ElementsAre(TokenRange{30, 50}));
  EXPECT_THAT(Without({10, 50}, {10, 11}), ElementsAre(TokenRange{11, 50}));
  EXPECT_THAT(Without({10, 50}, {40, 90}), ElementsAre(TokenRange{10, 40}));
  EXPECT_THAT(Without({10, 50}, {60, 90}), ElementsAre(TokenRange{10, 50}));
  EXPECT_THAT(Without({10, 50}, {0, 5}), ElementsAre(TokenRange{10, 50}));
  EXPECT_THAT(Without({10, 50}, {}), ElementsAre(TokenRange{10, 50}));
  EXPECT_THAT(Without({10, 50}, {30, 30}), ElementsAre(TokenRange{10, 50}));
  EXPECT_THAT(Without({10, 50}, {10, 50}), ElementsAre());
}

TEST(SpreadWindows, AreTheMiddlesOfEqualParts) {
  EXPECT_THAT(*SpreadWindows({{0, 100}}, 10, 1), ElementsAre(50));
  EXPECT_THAT(*SpreadWindows({{7, 109}}, 10, 2), ElementsAre(27, 77));
  EXPECT_THAT(*SpreadWindows({{0, 19}, {40, 65}}, 10, 3), ElementsAre(0, 40, 50));
}
// Against every window that there is: apart, inside a range, ascending, and no part of the text is
// left out for longer than two parts.
TEST(SpreadWindows, CoverTheTextAndNeverTouch) {
  for (int64_t window : {1, 3, 16}) {
    for (int64_t hole : {0, 5, 70}) {
      const std::vector<TokenRange> ranges = {{11, 11 + hole}, {11 + hole + 20, 211}};
      std::vector<int64_t> all;
      for (const TokenRange& r : ranges) {
        for (int64_t at = r.begin; at + window <= r.end; at += window) all.push_back(at);
      }
      for (int64_t count = 1; count <= std::ssize(all); ++count) {
        const auto begins = SpreadWindows(ranges, window, count);
        ASSERT_TRUE(begins.ok()) << begins.status();
        ASSERT_EQ(std::ssize(*begins), count);
        const double part = static_cast<double>(all.size()) / static_cast<double>(count);
        for (int64_t i = 0; i < count; ++i) {
          const auto at = std::find(all.begin(), all.end(), (*begins)[i]);
          ASSERT_NE(at, all.end()) << (*begins)[i];
          const auto place = static_cast<double>(at - all.begin());
          EXPECT_NEAR(place, (static_cast<double>(i) + 0.5) * part - 0.5, 0.5 + 1e-9);
          if (i == 0) continue;
          ASSERT_GT((*begins)[i], (*begins)[i - 1]);
        }
      }
      EXPECT_EQ(*SpreadWindows(ranges, window, std::ssize(all)), all);
      EXPECT_FALSE(SpreadWindows(ranges, window, std::ssize(all) + 1).ok());
    }
  }
}
TEST(SpreadWindows, ErrorsSayWhatWasGivenAndAllowed) {
  const auto error = [](absl::Span<const TokenRange> ranges, int64_t window, int64_t count) {
    return std::string(SpreadWindows(ranges, window, count).status().message());
  };
  EXPECT_THAT(error({{5, 14}}, 10, 1), HasSubstr("a text of 9 tokens is shorter than a window of "
                                                 "10; allowed: a longer text"));
  EXPECT_THAT(error({{0, 9}, {20, 29}}, 10, 1), HasSubstr("a text of 9 tokens is shorter"));
  EXPECT_THAT(error({}, 10, 1), HasSubstr("a text of 0 tokens is shorter"));
  EXPECT_THAT(error({{0, 100}}, 10, 11), HasSubstr("11 windows of 10 tokens; allowed: 1 to 10"));
  EXPECT_THAT(error({{0, 100}}, 10, 0), HasSubstr("0 windows of 10 tokens; allowed: 1 to 10"));
}

TEST(LogPerplexities, AreThoseOfTheWindowsAlone) {
  const host::Model model = *host::LoadModel(host::ModelsFolder() + "/sluice-mini-q8_0.gguf");
  const std::vector<int32_t> tokens =
      *ReadTokens(host::ModelsFolder() + "/sluice-mini-eval.u16", 0, 400);
  const std::vector<int64_t> begins = {0, 128, 333};
  std::vector<int64_t> done;
  const auto logs =
      LogPerplexities(model, tokens, begins, 64, {}, [&](int64_t n) { done.push_back(n); });
  ASSERT_TRUE(logs.ok()) << logs.status();
  EXPECT_THAT(done, ElementsAre(1, 2, 3));
  for (size_t w = 0; w < begins.size(); ++w) {
    host::EngineOptions o;
    o.max_tokens = 64;
    const auto engine = *host::Engine::Create(model, o);
    const auto first = tokens.begin() + begins[w];
    EXPECT_NEAR((*logs)[w], std::log(*host::Perplexity(*engine, {first, first + 64})), 1e-9);
  }
}
}  // namespace held_out_test
}  // namespace lab
SLUICE_END_NAMESPACE
