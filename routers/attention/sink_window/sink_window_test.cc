#include "sluice/routers/attention/sink_window/sink_window.h"

#include <gtest/gtest.h>

#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace sink_window_test {
TEST(SinkWindow, ListsAreExactlySinkAndWindow) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 200, 130, 2, 1, 32, 32, 1);
  const RoutedRun r = RunRouter("sink_window:sink=5,window=20", a);
  for (int64_t i = 0; i < 130; ++i) {
    const int64_t t = 70 + i;
    std::vector<uint32_t> want;
    for (int64_t s = 0; s <= t; ++s) {
      if (s < 5 || s > t - 20) want.push_back(static_cast<uint32_t>(s));
    }
    EXPECT_EQ(r.lists[i * 2], want);
  }
}
TEST(SinkWindow, AWindowOfOneReturnsTheValueAndTheFirstQueryAlwaysDoes) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 70, 70, 4, 2, 32, 32, 3);
  const RoutedRun own = RunRouter("sink_window:sink=0,window=1", a);
  const RoutedRun wide = RunRouter("sink_window:sink=8,window=16", a);
  for (int64_t t = 0; t < 70; ++t) {
    for (int64_t h = 0; h < 4; ++h) {
      for (int64_t i = 0; i < 32; ++i) {
        const size_t at = static_cast<size_t>((t * 4 + h) * 32 + i);
        ASSERT_EQ(own.o[at], a.V().Get(t, h / 2, i));
        if (t == 0) {
          ASSERT_EQ(wide.o[at], a.V().Get(0, h / 2, i));
        }
      }
    }
  }
}
TEST(SinkWindow, DecodeSeesTheLastKeysAndLastDenseSeesAll) {
  const AttentionData one = MakeAttentionData(DataKind::kGaussian, 500, 1, 2, 1, 32, 32, 3);
  const RoutedRun r = RunRouter("sink_window:sink=2,window=3", one);
  EXPECT_EQ(r.lists[0], (std::vector<uint32_t>{0, 1, 497, 498, 499}));
  // Without a prompt's end nobody knows which queries are the last.
  HarnessOptions unknown;
  unknown.adjust = [](SessionOptions&, AttentionInputs& in) { in.prompt_end = 0; };
  EXPECT_EQ(RunRouter("sink_window:sink=2,window=3,last_dense=64", one, unknown).lists[0],
            r.lists[0]);
  EXPECT_EQ(RunRouter("sink_window:sink=2,window=3,last_dense=64", one).lists[0].size(), 500u);
}
TEST(SinkWindow, DecodeReadsTheSameBytesAtAnyLength) {
  int64_t least = int64_t{1} << 40, most = 0;
  for (int64_t length : {4096, 5000, 16384, 40001, 65536}) {
    const AttentionData a = MakeAttentionData(DataKind::kGaussian, length, 1, 2, 1, 32, 32, 3);
    const int64_t bytes = RunRouter("sink_window:sink=64,window=256", a).counters.kv_bytes;
    least = std::min(least, bytes);
    most = std::max(most, bytes);
  }
  EXPECT_GT(least, 0);
  EXPECT_LE(most - least, 64 * 2 * 32 * 4);  // one block of keys and values
}
}  // namespace sink_window_test
SLUICE_END_NAMESPACE
