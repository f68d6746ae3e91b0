#include "sluice/runtime/weights/unit_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <future>

#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
namespace unit_cache_test {
using testing::HasSubstr;
constexpr int64_t kLayers = 3;
constexpr int32_t kUnits = 10;
constexpr int64_t kBytes = 100;  // no multiple of the alignment

std::byte ByteOf(int64_t layer, int32_t unit, size_t i) {
  return static_cast<std::byte>(
      RandomBits({1, 0, static_cast<uint64_t>(layer), static_cast<uint64_t>(unit), i}));
}
absl::Status Fill(int64_t layer, int32_t unit, absl::Span<std::byte> to) {
  for (size_t i = 0; i < to.size(); ++i) to[i] = ByteOf(layer, unit, i);
  return absl::OkStatus();
}
std::unique_ptr<UnitCache> Make(int64_t slots, UnitCache::Read read = Fill) {
  auto cache = UnitCache::Create(slots, kBytes, std::move(read));
  EXPECT_TRUE(cache.ok()) << cache.status();
  return *std::move(cache);
}
bool Holds(const UnitCache& cache, int64_t layer, int32_t unit) {
  const absl::Span<const std::byte> data = cache.Data(layer, unit);
  EXPECT_EQ(data.size(), size_t{kBytes});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(data.data()) % 64, 0u);
  for (size_t i = 0; i < data.size(); ++i) {
    if (data[i] != ByteOf(layer, unit, i)) return false;
  }
  return true;
}
int32_t Draw(uint64_t step, uint64_t what) {
  return static_cast<int32_t>(RandomBits({2, step, what, 0, 0}) % kUnits);
}

// Whatever is hinted, rightly, wrongly or not at all, and whatever fits.
TEST(UnitCache, TheSameBytesForAnyNumberOfSlots) {
  for (int64_t slots : {2, 3, 7, 30, 40}) {
    const auto cache = Make(slots);
    for (uint64_t step = 0; step < 600; ++step) {
      const auto layer = static_cast<int64_t>(step % kLayers);
      const int32_t a = Draw(step, 0);
      const int32_t b = Draw(step, 1);
      if (step % 4 == 1) cache->Hint(layer, std::vector<int32_t>{a, b});
      if (step % 4 == 2) cache->Hint(layer, std::vector<int32_t>{Draw(step, 2), Draw(step, 3), b});
      for (int32_t u : {a, b}) ASSERT_TRUE(cache->Pin(layer, u).ok());
      EXPECT_LE(cache->used_slots(), slots);
      ASSERT_TRUE(Holds(*cache, layer, a)) << slots << " " << step;
      ASSERT_TRUE(Holds(*cache, layer, b)) << slots << " " << step;
      for (int32_t u : {a, b}) cache->Unpin(layer, u);
    }
  }
}
TEST(UnitCache, WhereAllFitEverythingIsReadOnce) {
  std::atomic<int> reads = 0;
  const auto cache = Make(kLayers * kUnits, [&](int64_t l, int32_t u, absl::Span<std::byte> to) {
    ++reads;
    return Fill(l, u, to);
  });
  for (int turn = 0; turn < 3; ++turn) {
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      for (int32_t u = 0; u < kUnits; ++u) {
        ASSERT_TRUE(cache->Pin(layer, u).ok());
        cache->Unpin(layer, u);
      }
    }
  }
  EXPECT_EQ(reads, kLayers * kUnits);
  EXPECT_EQ(cache->counters().loads, kLayers * kUnits);
  EXPECT_EQ(cache->counters().evictions, 0);
}
// Who waits is served before what may be wanted: the reader stands at unit 0 while 3 is pinned.
TEST(UnitCache, APinIsReadBeforeHints) {
  std::promise<void> go;
  std::shared_future<void> gate = go.get_future().share();
  std::vector<int32_t> order;
  const auto cache = Make(5, [&](int64_t l, int32_t u, absl::Span<std::byte> to) {
    gate.wait();
    order.push_back(u);
    return Fill(l, u, to);
  });
  cache->Hint(0, std::vector<int32_t>{0, 1, 2});
  std::thread pins([&] { EXPECT_TRUE(cache->Pin(0, 3).ok()); });
  while (cache->used_slots() < 4) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the reader has begun with 0
  go.set_value();
  pins.join();
  for (int32_t u : {0, 1, 2}) EXPECT_TRUE(cache->Pin(0, u).ok());
  EXPECT_THAT(order, testing::ElementsAre(0, 3, 1, 2));
  EXPECT_GT(cache->waited_seconds(), 0);
}
// A slot that is given away while it is read holds its new unit's bytes in the end, and nobody
// takes the old ones for them.
TEST(UnitCache, ASlotGivenAwayDuringItsRead) {
  std::promise<void> go;
  std::shared_future<void> gate = go.get_future().share();
  std::atomic<int32_t> reading = -1;
  const auto cache = Make(2, [&](int64_t l, int32_t u, absl::Span<std::byte> to) {
    reading = u;
    if (u == 0) gate.wait();
    if (u == 1) std::this_thread::sleep_for(std::chrono::milliseconds(30));
    return Fill(l, u, to);
  });
  cache->Hint(0, std::vector<int32_t>{0});
  while (reading != 0) std::this_thread::yield();
  cache->Hint(0, std::vector<int32_t>{1, 2});  // 2 takes the slot of 0
  go.set_value();
  while (reading != 1) std::this_thread::yield();
  ASSERT_TRUE(cache->Pin(0, 2).ok());
  EXPECT_TRUE(Holds(*cache, 0, 2));
  ASSERT_TRUE(cache->Pin(0, 1).ok());
  EXPECT_TRUE(Holds(*cache, 0, 1));
}
TEST(UnitCache, AFailedReadIsToldAndTriedAgain) {
  std::atomic<bool> broken = true;
  const auto cache = Make(1, [&](int64_t l, int32_t u, absl::Span<std::byte> to) -> absl::Status {
    if (broken) return absl::DataLossError("the disk is gone");
    return Fill(l, u, to);
  });
  EXPECT_THAT(cache->Pin(0, 4).message(), HasSubstr("the disk is gone"));
  broken = false;
  ASSERT_TRUE(cache->Pin(0, 4).ok());
  EXPECT_TRUE(Holds(*cache, 0, 4));
  EXPECT_THAT(cache->Pin(0, 5).message(), HasSubstr("all 1 resident units are pinned"));
  cache->Unpin(0, 4);
  EXPECT_TRUE(cache->Pin(0, 5).ok());
}
TEST(UnitCache, ErrorsSayWhatIsAllowed) {
  for (int64_t slots : {int64_t{0}, int64_t{-1}, INT64_MAX})
    EXPECT_THAT(UnitCache::Create(slots, 10, Fill).status().message(),
                HasSubstr("allowed are 1 or more of each"));
  EXPECT_FALSE(UnitCache::Create(1, 0, Fill).ok());
}
}  // namespace unit_cache_test
SLUICE_END_NAMESPACE
