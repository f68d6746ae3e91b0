// A session's memory of keys: what it may go on believing when the cache behind it changes.
#include "sluice/runtime/session/attention_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <tuple>
#include <utility>

#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/session/row_fingerprints.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace attention_session_test {
using testing::HasSubstr;
constexpr int64_t kKeys = 400;
constexpr int64_t kHeads = 4;
constexpr int64_t kKvHeads = 2;
constexpr int64_t kWidth = 16;
constexpr const char* kPolicy = "mean_pool:block=16,k=4";

AttentionData Data(uint64_t seed) {
  return MakeAttentionData(DataKind::kNeedles, kKeys, kKeys, kHeads, kKvHeads, kWidth, kWidth,
                           seed);
}
std::unique_ptr<AttentionSession> Session(const AttentionData& a, bool fingerprints) {
  SessionOptions options = HarnessSession(kPolicy, a, {});
  options.fingerprints = fingerprints;
  return *AttentionSession::Create(options);
}
// The outputs of queries [at, at + n).
std::vector<float> Feed(AttentionSession& s, const AttentionData& a, int64_t at, int64_t n,
                        int64_t sequence = 0) {
  std::vector<float> o(n * kHeads * kWidth);
  const absl::Status status =
      s.Run(0, ChunkOf(a.Inputs(), at, n),
            {.o = {o.data(), n, kHeads, kWidth, kHeads * kWidth, kWidth}}, sequence);
  EXPECT_TRUE(status.ok()) << status;
  return o;
}
// The same, by a session that has never seen other keys.
std::vector<float> Fresh(const AttentionData& a, int64_t at, int64_t n) {
  const auto s = Session(a, false);
  return Feed(*s, a, at, n);
}

TEST(Session, UnknownKeysAreCheckedInEveryRowAndHead) {
  const AttentionData before = Data(5);
  // (row, KV head, element) that another sequence changed behind the session's back.
  for (const auto& [row, head, x] : {std::tuple<int64_t, int64_t, int64_t>{0, 0, 0},
                                     {10, 1, kWidth - 1},
                                     {151, 0, 7},
                                     {299, 1, 3}}) {
    const auto s = Session(before, true);
    Feed(*s, before, 0, 300);
    AttentionData after = before;
    after.k[(row * kKvHeads + head) * kWidth + x] += 25;
    s->Unknown(0);
    EXPECT_EQ(Feed(*s, after, 300, 50), Fresh(after, 300, 50)) << row << " " << head << " " << x;
  }
}
TEST(Session, SaysWhichKeysStay) {
  const AttentionData before = Data(5);
  const auto stay = [](AttentionSession& s, const AttentionData& a) {
    const auto keys = s.KeysThatStay(0, ChunkOf(a.Inputs(), 300, 50));
    EXPECT_TRUE(keys.ok()) << keys.status();
    return *keys;
  };
  const auto s = Session(before, true);
  EXPECT_EQ(stay(*s, before), 0);
  Feed(*s, before, 0, 300);
  EXPECT_EQ(stay(*s, before), 300);
  AttentionData after = before;
  after.k[151 * kKvHeads * kWidth] += 25;
  s->Unknown(0);
  EXPECT_EQ(stay(*s, after), 151);
  EXPECT_EQ(Feed(*s, after, 300, 50), Fresh(after, 300, 50));

  SessionOptions forgetful = HarnessSession("dense", before, {});
  forgetful.fingerprints = true;
  const auto dense = *AttentionSession::Create(forgetful);
  Feed(*dense, before, 0, 300);
  EXPECT_EQ(stay(*dense, before), 0);
  EXPECT_THAT(std::string(s->KeysThatStay(99, before.Inputs()).status().message()),
              HasSubstr("layer 99"));
}
TEST(Session, SwappedRowsAreOtherKeys) {
  const AttentionData before = Data(5);
  const auto s = Session(before, true);
  Feed(*s, before, 0, 300);
  AttentionData after = before;
  for (int64_t x = 0; x < kKvHeads * kWidth; ++x)
    std::swap(after.k[3 * kKvHeads * kWidth + x], after.k[200 * kKvHeads * kWidth + x]);
  s->Unknown(0);
  EXPECT_EQ(Feed(*s, after, 300, 50), Fresh(after, 300, 50));
}
// Every bit of a row counts, and changes that a plain sum of products would cancel: two signs.
TEST(RowFingerprints, EveryBitCounts) {
  InlineExecutor alone;
  for (int64_t width : {1, 3, 8, 64, 100}) {
    constexpr int64_t kRows = 7;
    constexpr int64_t kHeads = 2;
    std::vector<uint16_t> keys(static_cast<size_t>(kRows * kHeads * width));
    for (size_t i = 0; i < keys.size(); ++i) keys[i] = static_cast<uint16_t>(i * 2654435761u >> 8);
    const KvView k = {keys.data(), DType::kF16, kRows, kHeads, width, kHeads * width, width};
    RowFingerprints rows;
    rows.Append(k, kRows);
    EXPECT_EQ(rows.FirstDifferent(k, kRows, alone), kRows);
    const size_t row = 4 * static_cast<size_t>(kHeads * width);
    for (size_t i = row; i < row + static_cast<size_t>(kHeads * width); ++i) {
      for (int bit = 0; bit < 16; ++bit) {
        keys[i] ^= static_cast<uint16_t>(1u << bit);
        ASSERT_EQ(rows.FirstDifferent(k, kRows, alone), 4) << i << " " << bit;
        for (size_t j = row; j < i; ++j) {
          keys[j] ^= static_cast<uint16_t>(1u << bit);
          ASSERT_EQ(rows.FirstDifferent(k, kRows, alone), 4) << i << " " << j << " " << bit;
          keys[j] ^= static_cast<uint16_t>(1u << bit);
        }
        keys[i] ^= static_cast<uint16_t>(1u << bit);
      }
    }
    EXPECT_EQ(rows.FirstDifferent(k, kRows, alone), kRows);
  }
}
TEST(RowFingerprints, TheFirstOfManyThatDiffer) {
  const std::unique_ptr<Executor> threads = MakeTbbExecutor(4);
  std::vector<float> keys(10000, 1.0f);
  const KvView k = {keys.data(), DType::kF32, 10000, 1, 1, 1, 1};
  RowFingerprints rows;
  rows.Append(k, 9000);
  EXPECT_EQ(rows.FirstDifferent(k, 10000, *threads), 9000);
  for (int64_t first : {8999, 5000, 1024, 1023, 3, 0}) {
    keys[static_cast<size_t>(first)] = 2;
    EXPECT_EQ(rows.FirstDifferent(k, 10000, *threads), first);
    EXPECT_EQ(rows.FirstDifferent(k, first, *threads), first);
  }
}
TEST(Session, WithoutFingerprintsUnknownForgetsEverything) {
  const AttentionData before = Data(5);
  const AttentionData after = Data(6);
  const auto s = Session(before, false);
  Feed(*s, before, 0, 300);
  s->Unknown(0);
  EXPECT_EQ(Feed(*s, after, 300, 50), Fresh(after, 300, 50));
}
TEST(Session, KeysThatAreStillThereAreKept) {
  const AttentionData a = Data(5);
  const auto s = Session(a, true);
  Feed(*s, a, 0, 300);
  s->Unknown(0);
  EXPECT_EQ(Feed(*s, a, 300, 50), Fresh(a, 300, 50));
  EXPECT_EQ(s->known_keys(0), 350);
}
TEST(Session, TruncatedAndFedAgainIsAFreshOne) {
  const AttentionData before = Data(5);
  AttentionData after = Data(6);
  constexpr int64_t kKept = 130;  // inside a block
  std::copy_n(before.k.begin(), kKept * kKvHeads * kWidth, after.k.begin());
  const auto s = Session(before, false);
  Feed(*s, before, 0, 300);
  s->Truncate(kKept);
  EXPECT_EQ(s->known_keys(0), kKept);
  EXPECT_EQ(Feed(*s, after, kKept, 200), Fresh(after, kKept, 200));
  for (int64_t none : {int64_t{0}, int64_t{-3}}) {
    s->Truncate(none);
    EXPECT_EQ(s->known_keys(0), 0);
  }
}
TEST(Session, SequencesStayApart) {
  const AttentionData a = Data(5);
  const AttentionData b = Data(6);
  const auto s = Session(a, false);
  Feed(*s, a, 0, 200, 1);
  Feed(*s, b, 0, 200, 2);
  EXPECT_EQ(Feed(*s, a, 200, 64, 1), Fresh(a, 200, 64));
  EXPECT_EQ(Feed(*s, b, 200, 64, 2), Fresh(b, 200, 64));
  s->Clear(1);
  EXPECT_EQ(s->known_keys(0, 1), 0);
  EXPECT_EQ(s->known_keys(0, 2), 264);
}
TEST(Session, ErrorsSayWhatIsAllowed) {
  const AttentionData a = Data(5);
  const auto s = Session(a, false);
  std::vector<float> o(kKeys * kHeads * kWidth);
  const SessionOutputs out = {.o = {o.data(), kKeys, kHeads, kWidth, kHeads * kWidth, kWidth}};
  EXPECT_THAT(s->Run(4, a.Inputs(), out).message(), HasSubstr("layer 4, allowed 0 to 3"));
  SessionOptions options = HarnessSession("no_such_method", a, {});
  EXPECT_THAT(AttentionSession::Create(options).status().message(),
              HasSubstr("no method 'no_such_method'"));
  options.policy = kPolicy;
  options.max_kv = 0;
  EXPECT_FALSE(AttentionSession::Create(options).ok());
}
}  // namespace attention_session_test
SLUICE_END_NAMESPACE
