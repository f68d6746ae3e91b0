#include "sluice/policies/compose/attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/builtin.h"
#include "sluice/tests/support/attention_data.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace attention_test {
using testing::HasSubstr;
TEST(Compose, ErrorsSayWhichPart) {
  const auto error = [](absl::string_view text) {
    return std::string(MakeAttentionPolicy(text, BuiltinRouters().attention).status().message());
  };
  EXPECT_THAT(
      error("none(dense | hip)"),
      HasSubstr(
          "no composition 'none'; known: cascade, cross_layer, fallback, per_layer, refresh"));
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
RoutedRun RunText(const std::string& text, const AttentionData& a, int layer = 0,
                  int64_t chunk = 64) {
  HarnessOptions o;
  o.chunk = chunk;
  o.layer = layer;
  RoutedRun r = RunRouter(text, a, o);
  EXPECT_TRUE(r.status.ok()) << r.status;
  return r;
}
// A call that does not say which layer it is.
absl::Status WithoutLayer(const std::string& text, const AttentionData& a, std::vector<float>& o) {
  auto session = *AttentionSession::Create(HarnessSession(text, a, {}));
  o.assign(400 * 4 * 16, 0);
  return session->Run(-1, a.Inputs(), {.o = {o.data(), 400, 4, 16, 64, 16}});
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
  std::vector<float> o;
  EXPECT_THAT(WithoutLayer(text, a, o).message(), HasSubstr("does not say which layer"));
}
TEST(Compose, CascadeGoesByLength) {
  const AttentionData a = Data();
  EXPECT_EQ(RunText("cascade(dense<=400 | sink_window:window=32)", a, 0, 400).o,
            RunText("dense", a).o);
  EXPECT_EQ(RunText("cascade(dense<=399 | sink_window:window=32)", a, 0, 400).o,
            RunText("sink_window:window=32", a).o);
}
TEST(Compose, FallbackTakesTheFirstThatCan) {
  const AttentionData a = Data();
  std::vector<float> o;
  EXPECT_TRUE(WithoutLayer("fallback(per_layer(dense) | sink_window:window=32)", a, o).ok());
  EXPECT_EQ(o, RunText("sink_window:window=32", a, 0, 400).o);
  EXPECT_EQ(RunText("fallback(per_layer(dense) | sink_window:window=32)", a, 3).o,
            RunText("dense", a).o);
  EXPECT_EQ(RunText("fallback(mean_pool:k=2 | dense)", a).o, RunText("mean_pool:k=2", a).o);
  EXPECT_THAT(WithoutLayer("fallback(per_layer(dense))", a, o).message(),
              HasSubstr("does not say which layer"));
}

// Layers of one session, fed in chunks: the lists of each layer.
std::vector<std::vector<std::vector<uint32_t>>> ListsByLayer(const std::string& policy, int layers,
                                                             const std::vector<AttentionData>& a,
                                                             int64_t prompt) {
  SessionOptions options = HarnessSession(policy, a[0], {});
  options.layers = layers;
  auto session = *AttentionSession::Create(options);
  std::vector<std::vector<std::vector<uint32_t>>> lists(layers);
  session->OnPlan([&](int layer, const AttentionPlan& plan, const AttentionInputs&, double) {
    const absl::Status valid = ValidateAttentionPlan(plan);
    EXPECT_TRUE(valid.ok()) << valid;
    for (int64_t i = 0; i < plan.q_count; ++i) {
      std::vector<uint32_t> list;
      ForEachPair(plan, plan.branches[0], i, 0,
                  [&](int64_t key, int, double) { list.push_back(static_cast<uint32_t>(key)); });
      std::ranges::sort(list);
      lists[layer].push_back(list);
    }
  });
  std::vector<float> o(400 * 4 * 16);
  for (int64_t at = 0, n = prompt; at < 400; at += n, n = 1) {
    for (int layer = 0; layer < layers; ++layer) {
      const absl::Status s = session->Run(layer, ChunkOf(a[layer].Inputs(), at, n),
                                          {.o = {o.data(), n, 4, 16, 64, 16}});
      EXPECT_TRUE(s.ok()) << s;
    }
  }
  return lists;
}
std::vector<AttentionData> FourLayers() {
  std::vector<AttentionData> a;
  for (uint64_t layer = 0; layer < 4; ++layer)
    a.push_back(MakeAttentionData(DataKind::kNeedles, 400, 400, 4, 2, 16, 16, 5 + layer));
  return a;
}
TEST(CrossLayer, SharedLayersTakeTheNearestEarlierList) {
  const auto a = FourLayers();
  for (const char* router : {"dsa:k=30", "hisa:k=30,m=6,block=16", "mean_pool:block=16,k=6"}) {
    const auto own = ListsByLayer(router, 4, a, 300);
    const auto shared = ListsByLayer(absl::StrCat("cross_layer(FSFS | ", router, ")"), 4, a, 300);
    EXPECT_EQ(shared[0], own[0]) << router;
    EXPECT_EQ(shared[1], own[0]) << router;
    EXPECT_EQ(shared[2], own[2]) << router;
    EXPECT_EQ(shared[3], own[2]) << router;
    EXPECT_NE(own[0], own[1]) << "the layers must differ for this to mean anything";
    // All layers marked F are the router itself.
    EXPECT_EQ(ListsByLayer(absl::StrCat("cross_layer(F | ", router, ")"), 4, a, 300), own);
  }
}
TEST(CrossLayer, ErrorsAreClear) {
  const auto error = [](absl::string_view text) {
    return std::string(MakeAttentionPolicy(text, BuiltinRouters().attention).status().message());
  };
  EXPECT_THAT(error("cross_layer(SF | dsa)"), HasSubstr("begins with F"));
  EXPECT_THAT(error("cross_layer(FX | dsa)"), HasSubstr("begins with F"));
  EXPECT_THAT(error("cross_layer(dsa)"), HasSubstr("cross_layer(PATTERN | ROUTER)"));
  EXPECT_THAT(error("refresh(0 | dsa)"), HasSubstr("no number of steps"));
  EXPECT_THAT(error("refresh(-8 | dsa)"), HasSubstr("no number of steps"));
  const AttentionData a = Data();
  std::vector<float> o;
  EXPECT_THAT(WithoutLayer("cross_layer(FS | dsa:k=9)", a, o).message(),
              HasSubstr("lends no earlier plan"));
  auto session = *AttentionSession::Create(HarnessSession("cross_layer(FS | dsa:k=9)", a, {}));
  EXPECT_THAT(session->Run(1, a.Inputs(), {.o = {o.data(), 400, 4, 16, 64, 16}}).message(),
              HasSubstr("of layer 0"));
}
TEST(Refresh, StepsBetweenTakeTheLastListAndTheNewKeys) {
  const auto a = FourLayers();
  for (const char* router :
       {"dsa:k=30", "hip:mask_k=16,block_q=16,sink=4,window=16", "mean_pool:block=16,k=6"}) {
    const auto own = ListsByLayer(router, 1, a, 300)[0];
    EXPECT_EQ(ListsByLayer(absl::StrCat("refresh(1 | ", router, ")"), 1, a, 300)[0], own) << router;
    const auto kept = ListsByLayer(absl::StrCat("refresh(8 | ", router, ")"), 1, a, 300)[0];
    for (int64_t t = 0; t < 400; ++t) {
      if (t < 300 || (t - 300) % 8 == 0) {
        EXPECT_EQ(kept[t], own[t]) << router << " step " << t;
        continue;
      }
      const int64_t planned = t - (t - 300) % 8;
      EXPECT_TRUE(std::ranges::includes(kept[t], own[planned])) << router << " step " << t;
      for (int64_t key = planned + 1; key <= t; ++key) {
        EXPECT_TRUE(std::ranges::binary_search(kept[t], static_cast<uint32_t>(key)))
            << router << " step " << t << " misses key " << key;
      }
    }
  }
}
TEST(Compose,
     StatesStayApart) {  // both parts keep summaries; alternating them must not mix these up
  const AttentionData a = Data();
  EXPECT_EQ(RunText("cascade(mean_pool:k=2<=100 | mean_pool:k=3)", a, 0, 50).status,
            absl::OkStatus());
}
}  // namespace attention_test
SLUICE_END_NAMESPACE
