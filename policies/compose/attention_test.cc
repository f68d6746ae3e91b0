#include "sluice/policies/compose/attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/builtin.h"
#include "sluice/tests/support/attention_data.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using testing::HasSubstr;
TEST(Compose, ErrorsSayWhichPart) {
  const auto error = [](absl::string_view text) {
    return std::string(MakeAttentionPolicy(text, BuiltinRouters().attention).status().message());
  };
  EXPECT_THAT(error("none(dense | hip)"),
              HasSubstr("no composition 'none'; known: cascade, fallback, per_layer"));
  EXPECT_THAT(error("fallback(dense | hip"), HasSubstr("parenthesis is missing"));
  EXPECT_THAT(error("fallback(dense | nothing)"), HasSubstr("no method 'nothing'"));
  EXPECT_THAT(error("cascade(dense | hip)"), HasSubstr("ROUTER<=KEYS"));
  EXPECT_THAT(error("cascade(dense<=100 | hip<=200)"), HasSubstr("ROUTER<=KEYS"));
  EXPECT_THAT(error("cascade(dense<=200 | hip<=100 | dense)"),
              HasSubstr("'<=100' is no length above"));
  EXPECT_THAT(error("cascade(dense<=99999999999999999999 | dense)"), HasSubstr("is no length"));
  EXPECT_THAT(error("per_layer(0*dense | hip)"), HasSubstr("N of at least 1"));
  EXPECT_THAT(error("fallback()"), HasSubstr("names no method"));
  std::string deep = "dense";
  for (int i = 0; i < 40; ++i) deep = "fallback(" + deep + ")";
  EXPECT_THAT(error(deep), HasSubstr("nested deeper than 8"));
}
AttentionData Data() { return MakeAttentionData(DataKind::kNeedles, 400, 400, 4, 2, 16, 16, 5); }
RoutedRun RunText(const std::string& text, const AttentionData& a, int32_t layer = -1,
                  int64_t chunk = 64) {
  const auto router = MakeAttentionPolicy(text, BuiltinRouters().attention);
  EXPECT_TRUE(router.ok()) << router.status();
  HarnessOptions o;
  o.chunk = chunk;
  o.adjust = [layer](AttentionShape&, AttentionInputs& in) { in.layer = layer; };
  return RunRouter(**router, a, o);
}
TEST(Compose, PerLayerIsTheLayersOwnRouter) {
  const AttentionData a = Data();
  const std::string text = "per_layer(2*dense | mean_pool:k=2 | 3*sink_window:window=32)";
  EXPECT_EQ(RunText(text, a, 0).o, RunText("dense", a).o);
  EXPECT_EQ(RunText(text, a, 1).o, RunText("dense", a).o);
  EXPECT_EQ(RunText(text, a, 2).o, RunText("mean_pool:k=2", a).o);
  EXPECT_EQ(RunText(text, a, 3).o, RunText("sink_window:window=32", a).o);
  EXPECT_EQ(RunText(text, a, 60).o,
            RunText("sink_window:window=32", a).o);  // the last serves all that follow
  EXPECT_THAT(RunText(text, a).status.message(), HasSubstr("does not say which layer"));
}
TEST(Compose, CascadeGoesByLength) {
  const AttentionData a = Data();
  EXPECT_EQ(RunText("cascade(dense<=400 | sink_window:window=32)", a, -1, 400).o,
            RunText("dense", a).o);
  EXPECT_EQ(RunText("cascade(dense<=399 | sink_window:window=32)", a, -1, 400).o,
            RunText("sink_window:window=32", a).o);
}
TEST(Compose, FallbackTakesTheFirstThatCan) {
  const AttentionData a = Data();
  // Scattered positions are refused by routers of contiguous queries; a layer of its own by none.
  EXPECT_EQ(RunText("fallback(per_layer(dense) | sink_window:window=32)", a).o,
            RunText("sink_window:window=32", a).o);
  EXPECT_EQ(RunText("fallback(per_layer(dense) | sink_window:window=32)", a, 3).o,
            RunText("dense", a).o);
  EXPECT_EQ(RunText("fallback(mean_pool:k=2 | dense)", a).o, RunText("mean_pool:k=2", a).o);
  EXPECT_THAT(RunText("fallback(per_layer(dense))", a).status.message(),
              HasSubstr("does not say which layer"));
}
TEST(Compose,
     StatesStayApart) {  // both parts keep summaries; alternating them must not mix these up
  const AttentionData a = Data();
  EXPECT_EQ(RunText("cascade(mean_pool:k=2<=100 | mean_pool:k=3)", a, -1, 50).status,
            absl::OkStatus());
}
}  // namespace
SLUICE_END_NAMESPACE
